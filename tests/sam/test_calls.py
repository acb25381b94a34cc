"""Calls of a SAM, without trained weights: embeddings and answers are those of segment-anything's own code."""

from dataclasses import replace

import pytest
import torch

from smml.errors import InputError
from smml.sam import Prompts, SquareFit, TinyConfig, answer, build_tiny, encode, intensity_window, to_input
from smml.sam.calls import embed, predict_on_square
from smml.sam.slices import to_grey

# Not the shipped size, so that these numbers stay what they are when that one changes.
SIZE = TinyConfig(image_size=144, patch_size=8, width=32, depth=1, heads=2, channels=32, decoder_mlp=32)


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return build_tiny(SIZE).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def plain():
    """Without fine detail, as segment-anything's own models are."""
    torch.manual_seed(0)
    return build_tiny(replace(SIZE, detail=0)).eval().requires_grad_(False)


@pytest.mark.parametrize("multimask", [False, True])
def test_masks_agree_with_segment_anythings_own_decoder(plain, monkeypatch, multimask):
    embeddings = encode(plain, torch.rand(2, 70, 56) + 1)
    boxes = torch.tensor([[10.0, 5, 30, 20], [3, 4, 50, 51]])
    points = torch.tensor([[[10.0, 5], [20, 8]], [[3, 3], [0, 0]]])
    labels = torch.tensor([[1, 0], [1, -1]])
    fit = SquareFit((70, 56), 144)
    # The official models take no rough mask with a box.
    monkeypatch.setattr(plain, "takes_rough_mask", False)
    ours, quality = answer(plain, embeddings, Prompts(boxes, points, labels), fit, multimask=multimask)
    assert ours.shape == (2, 3 if multimask else 1, 70, 56)
    assert quality.shape == ours.shape[:2]
    for s in range(2):
        sparse, dense = plain.prompt_encoder(
            (fit.points(points[s : s + 1]), labels[s : s + 1]), fit.boxes(boxes[s : s + 1]), None
        )
        theirs, iou = plain.mask_decoder(
            embeddings[s : s + 1], plain.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=multimask
        )
        assert torch.allclose(ours[s], fit.masks_to_slices(theirs)[0], atol=1e-5)
        assert torch.allclose(quality[s], iou[0], atol=1e-5)


def test_embeddings_agree_with_segment_anythings_own_preprocessing(plain):
    slices = torch.rand(1, 72, 144) * 100 + 1
    window = intensity_window(slices)
    image = to_grey(slices, window).expand(3, -1, -1)
    assert torch.allclose(
        encode(plain, slices, window=window), plain.image_encoder(plain.preprocess(image)[None]), atol=1e-4
    )


@pytest.mark.parametrize("slices", [torch.zeros(2, 9, 8), torch.full((2, 9, 8), 5.0), torch.full((2, 9, 8), -5.0)])
def test_empty_and_constant_slices_are_encoded(sam, slices):
    assert bool(torch.isfinite(encode(sam, slices)).all())


def test_batches_change_nothing(sam):
    slices = torch.rand(5, 30, 20)
    embeddings = encode(sam, slices)
    assert torch.allclose(embeddings, encode(sam, slices, batch=2), atol=1e-4)
    prompts, fit = Prompts(torch.tensor([[5.0, 5, 12, 12]]).expand(5, -1)), SquareFit.of(sam, (30, 20))
    for multimask, count in ((False, 1), (True, 3)):
        whole, quality = answer(sam, embeddings, prompts, fit, multimask=multimask)
        assert whole.shape == (5, count, 30, 20)
        parts, expected = answer(sam, embeddings, prompts, fit, multimask=multimask, batch=2)
        assert torch.allclose(whole, parts, atol=1e-4)
        assert torch.allclose(quality, expected, atol=1e-4)


def test_no_slices_give_nothing(sam, plain):
    assert encode(plain, torch.zeros(0, 30, 20)).shape == (0, 32, 18, 18)
    nothing = encode(sam, torch.zeros(0, 30, 20))
    assert nothing.shape == (0, 32 + 8 * 16, 18, 18)
    for multimask, count in ((False, 1), (True, 3)):
        prompts, fit = Prompts(torch.zeros(0, 4)), SquareFit.of(sam, (30, 20))
        logits, quality = answer(sam, nothing, prompts, fit, multimask=multimask)
        assert logits.shape == (0, count, 30, 20)
        assert quality.shape == (0, count)


def test_three_masks_are_asked_for_only_where_they_were_trained(sam, monkeypatch):
    embeddings, fit = encode(sam, torch.rand(2, 20, 30)), SquareFit.of(sam, (20, 30))
    prompts = Prompts(torch.tensor([[2.0, 3, 9, 12], [1, 1, 18, 28]]))
    three, one = (answer(sam, embeddings, prompts, fit, multimask=flag)[0] for flag in (True, False))
    assert not torch.equal(three[:, :1], one)
    # As from a checkpoint of Meta's, which says nothing of it.
    assert torch.equal(answer(sam, embeddings, prompts, fit)[0], three)
    monkeypatch.setattr(sam, "answers_three", False, raising=False)
    assert torch.equal(answer(sam, embeddings, prompts, fit)[0], one)


def test_points_that_are_none_are_no_points(sam):
    embeddings, fit = encode(sam, torch.rand(1, 30, 20)), SquareFit.of(sam, (30, 20))
    box = torch.tensor([[5.0, 5, 12, 12]])
    empty = Prompts(box, torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.int64))
    assert torch.equal(answer(sam, embeddings, empty, fit)[0], answer(sam, embeddings, Prompts(box), fit)[0])


def test_gradients_reach_the_encoder_in_training_only():
    sam = build_tiny(SIZE)
    slices, boxes, fit = torch.rand(1, 30, 20) + 1, torch.tensor([[5.0, 5, 12, 12]]), SquareFit.of(sam, (30, 20))
    masks, _ = predict_on_square(sam, embed(sam, to_input(sam, slices)), fit.boxes(boxes), None, None)
    masks.sum().backward()
    assert float(sam.image_encoder.patch_embed.proj.weight.grad.abs().sum()) > 0
    assert float(sam.detail.look[0].weight.grad.abs().sum()) > 0
    assert not encode(sam, slices).requires_grad
    assert not any(part.requires_grad for part in answer(sam, encode(sam, slices), Prompts(boxes), fit))


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
        answer(sam, torch.zeros(1, 32 + 8 * 16, 18, 18), Prompts(**prompts), SquareFit.of(sam, (30, 20)))


def test_embeddings_of_another_sam_are_refused(sam, plain):
    prompts, fit = Prompts(torch.tensor([[1.0, 1, 9, 9]])), SquareFit.of(sam, (30, 20))
    with pytest.raises(InputError, match="embeddings of 160 channels expected, found 32"):
        answer(sam, encode(plain, torch.rand(1, 30, 20)), prompts, fit)


def test_slices_that_cannot_be_shown_are_refused(sam):
    with pytest.raises(InputError, match="NaN or infinite"):
        encode(sam, torch.full((1, 5, 5), float("nan")))
    with pytest.raises(InputError, match=r"\[S, H, W\]"):
        encode(sam, torch.zeros(5, 5))
