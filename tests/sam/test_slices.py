"""Geometry and intensities between slices and SAM's square, without trained weights."""

import pytest
import torch

from smml.sam import SquareFit, TinyConfig, build_tiny, intensity_window, to_input
from smml.sam.slices import to_grey
from smml.sam.torchvision_gap import import_segment_anything

# Not the shipped size, so that these numbers stay what they are when that one changes.
SIZE = TinyConfig(image_size=144, patch_size=8, width=32, depth=1, heads=2, channels=32, decoder_mlp=32)
SHAPES = [(70, 56), (56, 70), (96, 96), (31, 200), (240, 155), (1, 7)]


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return build_tiny(SIZE).eval().requires_grad_(False)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_resized_slice_is_as_large_as_sams_own(shape):
    transforms = import_segment_anything().utils.transforms
    assert SquareFit(shape, 144).inside == transforms.ResizeLongestSide.get_preprocess_shape(*shape, 144)


@pytest.mark.parametrize("shape", SHAPES[:5])
@pytest.mark.parametrize("size", [144, 1024])
def test_a_marked_voxel_is_where_its_point_is(shape, size):
    """The brightest pixel of the resized slice is at SAM's coordinates of the voxel; so for the corners of its box."""
    fit = SquareFit(shape, size)
    row, column = shape[0] // 3, shape[1] * 3 // 4
    slices = torch.zeros(1, *shape)
    slices[0, row, column] = 1
    resized = fit.resize(slices)[0]
    assert resized.shape == fit.inside
    total = resized.sum()
    y, x = (float((resized.sum(dim=1 - axis) * torch.arange(resized.shape[axis])).sum() / total) for axis in (0, 1))
    point = fit.points(torch.tensor([[float(row), float(column)]]))[0]
    assert torch.allclose(point, torch.tensor([x, y]), atol=0.05)
    box = fit.boxes(torch.tensor([[row, column, row + 1, column + 1]]))[0]
    assert torch.allclose((box[:2] + box[2:]) / 2, point, atol=1e-4)
    assert torch.allclose(box[2:] - box[:2], torch.tensor(fit.scale).flip(0), atol=1e-4)


def test_the_box_of_a_whole_slice_is_the_covered_part(sam):
    fit = SquareFit.of(sam, torch.zeros(70, 56).shape)
    assert fit == SquareFit((70, 56), 144)
    # SAM adds half a pixel: from -0.5 (the outer edge of pixel 0) to the outer edge of the last pixel.
    assert fit.boxes(torch.tensor([[0, 0, 70, 56]]))[0].tolist() == pytest.approx([-0.5, -0.5, 114.5, 143.5])


@pytest.mark.parametrize("shape", [(70, 56), (56, 70), (60, 60)])
def test_masks_come_back_to_their_voxels(shape):
    """A disc goes to SAM's mask grid and back, without a shift."""
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    disc = ((rows - 30) ** 2 + (columns - 22) ** 2 <= 144).float()[None]
    fit = SquareFit(shape, 144)
    back = fit.masks_to_slices(fit.masks_to_square(disc, 72)[:, None] - 0.5)[:, 0] > 0
    assert (back & (disc > 0)).sum() / (back | (disc > 0)).sum() > 0.97


def test_masks_come_back_as_with_sams_own_postprocessing(sam):
    fit = SquareFit((70, 56), 144)
    smooth = torch.linspace(-1, 1, 72)
    masks = torch.outer(torch.sin(3 * smooth), torch.cos(2 * smooth))[None]
    theirs = sam.postprocess_masks(masks[None], fit.inside, (70, 56))[0]
    # Theirs interpolates twice, over the image; the difference is a small part of a mask pixel's step.
    assert torch.allclose(fit.masks_to_slices(masks[None])[0, :, 2:-2, 2:-2], theirs[:, 2:-2, 2:-2], atol=0.02)


def test_masks_of_several_prompts_and_answers_stay_apart():
    fit, masks = SquareFit((70, 56), 144), torch.randn(3, 4, 72, 72)
    together = fit.masks_to_slices(masks)
    assert together.shape == (3, 4, 70, 56)
    for p in range(3):
        for k in range(4):
            assert torch.equal(together[p, k], fit.masks_to_slices(masks[p : p + 1, k : k + 1])[0, 0])


def test_the_scale_of_intensities_does_not_matter(sam):
    brain = torch.rand(3, 40, 50) + 0.5
    brain[:, :5] = 0
    scores = torch.where(brain != 0, (brain - 1) / 0.3, torch.zeros(()))
    assert torch.allclose(to_input(sam, 700 * brain), to_input(sam, scores), atol=1e-3)
    grey = to_grey(scores)
    assert not bool(grey[:, :5].any())
    assert float(grey[:, 5:].min()) == 48
    assert float(grey.max()) == 255


def test_one_outlier_does_not_darken_the_brain():
    volume = torch.rand(10, 40, 50) + 1
    low, high = intensity_window(volume)
    volume[0, 0, 0] = 1e6
    assert intensity_window(volume) == pytest.approx((low, high), abs=0.01)
