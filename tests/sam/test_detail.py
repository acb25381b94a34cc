"""Fine detail: where it lies, that a box sets its scale, and that models without it are as they were."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smml.errors import InputError
from smml.sam import TinyConfig, build_tiny, encode, load_sam
from smml.sam.calls import predict_on_square
from smml.sam.detail import MASK_PIXELS, FineDetail
from smml.sam.load import save_tiny

SMALL = {"image_size": 48, "patch_size": 8, "width": 16, "depth": 1, "heads": 2, "channels": 16, "decoder_mlp": 16}


@pytest.fixture
def detail():
    torch.manual_seed(0)
    return FineDetail(8, 3, 2).requires_grad_(False)


def box_of(top, left, bottom, right, side=24):
    inside = torch.zeros(1, 1, side, side)
    inside[..., top:bottom, left:right] = 1
    return inside


@pytest.mark.parametrize("patch", [4, 8, 12, 16])
def test_fine_features_lie_where_the_pixels_are(patch):
    detail, stride = FineDetail(patch, 3, 2), patch // MASK_PIXELS
    images = torch.zeros(1, 3, 6 * patch, 6 * patch)
    images[..., 7 * stride, 13 * stride] = stride**2
    packed = detail.see(images)
    assert packed.shape == (1, detail.packed, 6, 6)
    fine = torch.nn.functional.pixel_shuffle(packed, MASK_PIXELS)[0]
    expected = torch.zeros(24, 24)
    expected[7, 13] = 1
    assert torch.equal(fine[0], expected)
    # What the convolutions see of it lies round the same place.
    seen = (fine[1:] - detail.look(torch.zeros_like(images))[0]).abs().sum(dim=0)
    rows, columns = torch.nonzero(seen > 1e-6, as_tuple=True)
    assert abs(rows.float().mean() - 7) < 0.6
    assert abs(columns.float().mean() - 13) < 0.6


@settings(max_examples=30, deadline=None)
@given(st.floats(0.2, 5), st.floats(-3, 3), st.integers(0, 1000))
def test_what_is_bright_in_a_box_does_not_depend_on_brightness_and_contrast(scale, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of the weights, so that an example that fails can be repeated
    detail = FineDetail(8, 3, 2).requires_grad_(False)
    features, fine = torch.randn(1, 2, 24, 24, generator=generator), torch.randn(1, 48, 6, 6, generator=generator)
    box = box_of(3, 5, 17, 20)
    found = detail.add(features, fine * scale + shift, box)
    assert torch.allclose(found, detail.add(features, fine, box), atol=2e-2)
    assert not torch.allclose(found, detail.add(features, fine * torch.linspace(-1, 1, 6), box), atol=2e-2)


def test_what_lies_far_outside_a_box_does_not_change_its_scale(detail):
    features, fine = torch.randn(1, 2, 24, 24), torch.rand(1, 3, 24, 24)
    box, changed = box_of(2, 2, 10, 10), fine.clone()
    changed[..., 16:, 16:] += 100
    one, other = (detail.add(features, torch.nn.functional.pixel_unshuffle(f, 4), box) for f in (fine, changed))
    assert torch.equal(one[..., 2:10, 2:10], other[..., 2:10, 2:10])
    assert not torch.equal(one, other)


@pytest.mark.parametrize("box", [None, box_of(0, 0, 0, 0), box_of(4, 4, 5, 5)])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_empty_boxes_and_flat_images_give_numbers_and_gradients(box, value):
    detail = FineDetail(8, 3, 2)
    packed = torch.full((1, 48, 6, 6), value, requires_grad=True)
    result = detail.add(torch.zeros(1, 2, 24, 24), packed, box)
    result.square().sum().backward()
    assert bool(torch.isfinite(result).all())
    assert bool(torch.isfinite(packed.grad).all())


def test_masks_see_more_of_an_image_than_its_coarse_embedding():
    torch.manual_seed(0)
    sam = build_tiny(TinyConfig(**SMALL)).eval().requires_grad_(False)
    slices = torch.rand(2, 40, 30) + 1
    embeddings = encode(sam, slices)
    assert embeddings.shape == (2, 16 + 8 * 16, 6, 6)
    assert torch.allclose(embeddings[:, :16], encode_coarse(sam, slices), atol=1e-6)
    changed = embeddings.clone()
    changed[:, 16:, 2, 3] += torch.randn(8 * 16)
    box = torch.tensor([[5.0, 5.0, 40.0, 40.0]]).expand(2, 4)
    one, other = (predict_on_square(sam, e, box, None, None)[0] for e in (embeddings, changed))
    assert not torch.allclose(one, other)


def encode_coarse(sam, slices):
    plain = build_tiny(TinyConfig(**SMALL, detail=0)).eval().requires_grad_(False)
    plain.load_state_dict({name: value for name, value in sam.state_dict().items() if not name.startswith("detail.")})
    return encode(plain, slices)


def test_a_file_from_before_there_was_detail_still_loads(tmp_path):
    sam = build_tiny(TinyConfig(**SMALL, detail=0))
    save_tiny(sam, tmp_path / "old.safetensors", type("Old", (), {"to_dict": lambda self: SMALL})(), {})
    loaded = load_sam(tmp_path / "old.safetensors")
    assert not hasattr(loaded, "detail")
    assert encode(loaded, torch.rand(1, 20, 20) + 1).shape == (1, 16, 6, 6)


def test_patches_that_mask_pixels_do_not_divide_are_refused():
    with pytest.raises(InputError, match="detail needs a patch_size divisible by 4, found 6"):
        TinyConfig(**SMALL | {"image_size": 48, "patch_size": 6})
