"""Geometry and intensities between slices and SAM's square, without trained weights."""

from dataclasses import replace

import pytest
import torch

from smml.errors import InputError
from smml.sam import SquareFit, TinyConfig, build_tiny, decode, encode, intensity_window, predict_masks, to_input
from smml.sam.slices import embed, to_grey
from smml.sam.torchvision_gap import import_segment_anything

# Not the shipped size, so that these numbers stay what they are when that one changes.
SIZE = TinyConfig(image_size=144, patch_size=8, width=32, depth=1, heads=2, channels=32, decoder_mlp=32)
SHAPES = [(70, 56), (56, 70), (96, 96), (31, 200), (240, 155), (1, 7)]


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return build_tiny(SIZE).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def plain():
    """Without fine detail, as segment-anything's own models are."""
    torch.manual_seed(0)
    return build_tiny(replace(SIZE, detail=0)).eval().requires_grad_(False)


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


def test_the_box_of_a_whole_slice_is_the_covered_part():
    fit = SquareFit((70, 56), 144)
    # SAM adds half a pixel: from -0.5 (the outer edge of pixel 0) to the outer edge of the last pixel.
    assert fit.boxes(torch.tensor([[0, 0, 70, 56]]))[0].tolist() == pytest.approx([-0.5, -0.5, 114.5, 143.5])


@pytest.mark.parametrize("shape", [(70, 56), (56, 70), (60, 60)])
def test_masks_come_back_to_their_voxels(shape):
    """A disc goes to SAM's mask grid and back, without a shift."""
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    disc = ((rows - 30) ** 2 + (columns - 22) ** 2 <= 144).float()[None]
    fit = SquareFit(shape, 144)
    back = fit.masks_to_slices(fit.masks_to_square(disc, 72) - 0.5) > 0
    assert (back & (disc > 0)).sum() / (back | (disc > 0)).sum() > 0.97


def test_masks_come_back_as_with_sams_own_postprocessing(sam):
    fit = SquareFit((70, 56), 144)
    smooth = torch.linspace(-1, 1, 72)
    masks = torch.outer(torch.sin(3 * smooth), torch.cos(2 * smooth))[None]
    theirs = sam.postprocess_masks(masks[None], fit.inside, (70, 56))[0]
    # Theirs interpolates twice, over the image; the difference is a small part of a mask pixel's step.
    assert torch.allclose(fit.masks_to_slices(masks)[:, 2:-2, 2:-2], theirs[:, 2:-2, 2:-2], atol=0.02)


@pytest.mark.parametrize("multimask", [False, True])
def test_masks_agree_with_segment_anythings_own_decoder(plain, monkeypatch, multimask):
    embeddings = encode(plain, torch.rand(2, 70, 56) + 1)
    boxes = torch.tensor([[10.0, 5, 30, 20], [3, 4, 50, 51]])
    points = torch.tensor([[[10.0, 5], [20, 8]], [[3, 3], [0, 0]]])
    labels = torch.tensor([[1, 0], [1, -1]])
    fit = SquareFit((70, 56), 144)
    # The official models take no rough mask with a box.
    monkeypatch.setattr(plain, "takes_rough_mask", False)
    ours, quality = predict_masks(plain, embeddings, boxes, points, labels, shape=(70, 56), multimask=multimask)
    if not multimask:
        ours, quality = ours[:, None], quality[:, None]
    assert ours.shape[:2] == quality.shape == (2, 3 if multimask else 1)
    for s in range(2):
        sparse, dense = plain.prompt_encoder(
            (fit.points(points[s : s + 1]), labels[s : s + 1]), fit.boxes(boxes[s : s + 1]), None
        )
        theirs, iou = plain.mask_decoder(
            embeddings[s : s + 1], plain.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=multimask
        )
        assert torch.allclose(ours[s], theirs[0], atol=1e-5)
        assert torch.allclose(quality[s], iou[0], atol=1e-5)


def test_embeddings_agree_with_segment_anythings_own_preprocessing(plain):
    slices = torch.rand(1, 72, 144) * 100 + 1
    window = intensity_window(slices)
    image = to_grey(slices, window).expand(3, -1, -1)
    assert torch.allclose(
        encode(plain, slices, window=window), plain.image_encoder(plain.preprocess(image)[None]), atol=1e-4
    )


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


@pytest.mark.parametrize("slices", [torch.zeros(2, 9, 8), torch.full((2, 9, 8), 5.0), torch.full((2, 9, 8), -5.0)])
def test_empty_and_constant_slices_are_encoded(sam, slices):
    assert bool(torch.isfinite(encode(sam, slices)).all())


def test_batches_change_nothing(sam):
    slices = torch.rand(5, 30, 20)
    embeddings = encode(sam, slices)
    assert torch.allclose(embeddings, encode(sam, slices, batch=2), atol=1e-4)
    boxes = torch.tensor([[5.0, 5, 12, 12]]).expand(5, -1)
    whole = decode(sam, embeddings, boxes, shape=(30, 20))
    assert whole.shape == (5, 30, 20)
    assert torch.allclose(whole, decode(sam, embeddings, boxes, shape=(30, 20), batch=2), atol=1e-4)
    three = decode(sam, embeddings, boxes, shape=(30, 20), multimask=True)
    assert three.shape == (5, 3, 30, 20)
    parts = decode(sam, embeddings, boxes, shape=(30, 20), multimask=True, batch=2)
    assert torch.allclose(three, parts, atol=1e-4)


def test_no_slices_give_nothing(sam, plain):
    assert encode(plain, torch.zeros(0, 30, 20)).shape == (0, 32, 18, 18)
    nothing = encode(sam, torch.zeros(0, 30, 20))
    assert nothing.shape == (0, 32 + 8 * 16, 18, 18)
    assert decode(sam, nothing, torch.zeros(0, 4), shape=(30, 20)).shape == (0, 30, 20)
    three = decode(sam, nothing, torch.zeros(0, 4), shape=(30, 20), multimask=True)
    assert three.shape == (0, 3, 30, 20)


def test_gradients_reach_the_encoder_in_training_only():
    sam = build_tiny(SIZE)
    slices, boxes = torch.rand(1, 30, 20) + 1, torch.tensor([[5.0, 5, 12, 12]])
    masks, _ = predict_masks(sam, embed(sam, to_input(sam, slices)), boxes, shape=(30, 20))
    masks.sum().backward()
    assert float(sam.image_encoder.patch_embed.proj.weight.grad.abs().sum()) > 0
    assert float(sam.detail.look[0].weight.grad.abs().sum()) > 0
    assert not encode(sam, slices).requires_grad
    assert not decode(sam, encode(sam, slices), boxes, shape=(30, 20)).requires_grad


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "SAM needs a prompt"),
        ({"points": torch.zeros(1, 0, 2), "point_labels": torch.zeros(1, 0)}, "SAM needs a prompt"),
        ({"boxes": torch.zeros(2, 4)}, r"boxes must be \[1, 4\] for 1 embeddings, found \[2, 4\]"),
        ({"points": torch.zeros(1, 2, 2)}, "go together"),
        ({"points": torch.zeros(1, 2, 2), "point_labels": torch.zeros(1, 3)}, r"point_labels must be \[1, 2\]"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(sam, prompts, message):
    with pytest.raises(InputError, match=message):
        decode(sam, torch.zeros(1, 32 + 8 * 16, 18, 18), **prompts, shape=(30, 20))


def test_embeddings_of_another_sam_are_refused(sam, plain):
    boxes = torch.tensor([[1.0, 1, 9, 9]])
    with pytest.raises(InputError, match="embeddings of 160 channels expected, found 32"):
        decode(sam, encode(plain, torch.rand(1, 30, 20)), boxes, shape=(30, 20))


def test_slices_that_cannot_be_shown_are_refused(sam):
    with pytest.raises(InputError, match="NaN or infinite"):
        encode(sam, torch.full((1, 5, 5), float("nan")))
    with pytest.raises(InputError, match=r"\[S, H, W\]"):
        encode(sam, torch.zeros(5, 5))
