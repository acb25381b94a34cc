"""Calls of a SAM: encode slices, and answer prompts.

``encode`` and ``answer`` are for inference. Training calls what they are made of, :func:`embed` and
:func:`predict_on_square`, which let gradients through. The geometry is that of :mod:`smml.sam.slices`.
"""

import torch
from torch import Tensor

from smml.errors import InputError
from smml.sam.prompts import Prompts
from smml.sam.slices import SquareFit, image_size, intensity_window, to_input
from smml.sam.torchvision_gap import Sam


@torch.no_grad()
def encode(sam: Sam, slices: Tensor, *, window: tuple[float, float] | None = None, batch: int = 8) -> Tensor:
    """Image embeddings of slices, without gradients.

    Args:
        sam: from :func:`smml.sam.load_sam`.
        slices: [S, H, W], any scale of intensities, background 0; moved to SAM's device in batches.
        window: (low, high) of :func:`intensity_window` of the whole volume. None takes that of these slices, so that
            the embedding of a slice then depends on the others.
        batch: slices at a time.

    Returns:
        [S, C, h, w] on SAM's device.

    Raises:
        InputError: wrong shape, or voxels that are not finite.
    """
    if slices.ndim == 3 and len(slices):
        window = window or intensity_window(slices)
    side = sam.prompt_encoder.image_embedding_size
    if not len(slices):
        return torch.zeros(0, embedding_channels(sam), *side, device=sam.device)
    return torch.cat([embed(sam, to_input(sam, part, window)) for part in slices.split(batch)])


def embed(sam: Sam, images: Tensor) -> Tensor:
    """The differentiable part of :func:`encode`: embeddings of what SAM sees, with its fine detail if it has any.

    Args:
        sam: of :func:`smml.sam.load_sam`.
        images: of :func:`smml.sam.slices.to_input`, [S, 3, size, size].

    Returns:
        [S, C, h, w]: first SAM's own channels, then those of :mod:`smml.sam.detail`.
    """
    embeddings, detail = sam.image_encoder(images), getattr(sam, "detail", None)
    return embeddings if detail is None else torch.cat([embeddings, detail.see(images)], dim=1)


def embedding_channels(sam: Sam) -> int:
    """Channels C of :func:`embed`."""
    detail = getattr(sam, "detail", None)
    return sam.prompt_encoder.embed_dim + (0 if detail is None else detail.packed)


@torch.no_grad()
def answer(
    sam: Sam,
    embeddings: Tensor,
    prompts: Prompts,
    fit: SquareFit,
    *,
    multimask: bool | None = None,
    batch: int = 64,
) -> tuple[Tensor, Tensor]:
    """SAM's K masks for each of P prompts, without gradients.

    Args:
        sam: from :func:`smml.sam.load_sam`.
        embeddings: of the slice that each prompt is for, [P, C, h, w], from :func:`encode`. Repeat one to prompt its
            slice several times.
        prompts: P of them.
        fit: of the slices that were encoded: ``SquareFit.of(sam, (H, W))``.
        multimask: answer with SAM's three masks for ambiguous prompts, as a box round a rim and the core in it is one;
            else with its one mask for clear prompts. None: three if they were trained (``sam.answers_three``).
        batch: prompts at a time.

    Returns:
        Mask logits [P, K, H, W], a mask is where they are above 0, and the IoU [P, K] that SAM expects of each mask;
        float32 on SAM's device, K = 3 with ``multimask`` and else 1.

    Raises:
        InputError: no prompt at all, or shapes that do not belong together.
    """
    _check(sam, embeddings, prompts)
    multimask = getattr(sam, "answers_three", True) if multimask is None else multimask
    chosen = slice(1, None) if multimask else slice(0, 1)
    boxes, points, labels = prompts.boxes, prompts.points, prompts.point_labels
    if points is not None and not points.shape[1]:
        points = labels = None
    square = (
        None if boxes is None else fit.boxes(boxes.to(sam.device)),
        None if points is None else fit.points(points.to(sam.device)),
        None if labels is None else labels.to(sam.device),
    )
    rough_mask = getattr(sam, "takes_rough_mask", False)
    logits, expected = [], []
    # Without prompts one empty batch gives the shapes.
    for start in range(0, max(1, len(embeddings)), batch):
        part = slice(start, start + batch)
        prompted = (None if tensor is None else tensor[part] for tensor in square)
        masks, quality = predict_on_square(sam, embeddings[part], *prompted, rough_mask=rough_mask)
        logits.append(fit.masks_to_slices(masks[:, chosen]))
        expected.append(quality[:, chosen])
    return torch.cat(logits), torch.cat(expected)


def predict_on_square(
    sam: Sam,
    embeddings: Tensor,
    boxes: Tensor | None,
    points: Tensor | None,
    point_labels: Tensor | None,
    *,
    rough_mask: bool = False,
) -> tuple[Tensor, Tensor]:
    """All masks that SAM has for prompts in its own coordinates, for batches of slices of different shapes.

    segment-anything's own forward pass of the mask decoder pairs all prompts with one image. Here prompt s belongs to
    embedding s, so the decoder's parts are called with the embeddings as they are.

    Args:
        boxes, points: from :meth:`SquareFit.boxes` and :meth:`SquareFit.points`.
        rough_mask: also give the filled box as SAM's third kind of prompt, a mask to be refined.

    Returns:
        Mask logits [S, 4, m, m] and expected IoU [S, 4]: first the one for clear prompts, then three for ambiguous
        ones.
    """
    count = len(embeddings)
    own, detail = sam.prompt_encoder.embed_dim, getattr(sam, "detail", None)
    coarse = embeddings[:, :own]
    prompted = None if points is None else (points, point_labels)
    # The official models have no use for it.
    filled = _filled(sam, boxes) if boxes is not None and (rough_mask or detail is not None) else None
    rough = None if filled is None or not rough_mask else 2 * filled - 1
    sparse, dense = sam.prompt_encoder(points=prompted, boxes=boxes, masks=rough)

    decoder = sam.mask_decoder
    outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([outputs.expand(count, -1, -1), sparse], dim=1)
    places = sam.prompt_encoder.get_dense_pe().expand(count, -1, -1, -1)
    tokens, pixels = decoder.transformer(coarse + dense, places, tokens)
    features = decoder.output_upscaling(pixels.transpose(1, 2).reshape(coarse.shape))
    if detail is not None:
        features = detail.add(features, embeddings[:, own:], filled)
    filters = torch.stack([mlp(tokens[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
    masks = torch.einsum("skc,schw->skhw", filters, features)
    return masks, decoder.iou_prediction_head(tokens[:, 0])


def _filled(sam: Sam, boxes: Tensor) -> Tensor:
    """Boxes in SAM's coordinates [S, 4] -> the share of each mask pixel that they cover, [S, 1, m, m]."""
    side = sam.prompt_encoder.mask_input_size[0]
    edges = (boxes + 0.5) * (side / image_size(sam))
    starts = torch.arange(side, device=boxes.device, dtype=edges.dtype)
    columns, rows = (
        (torch.minimum(edges[:, i + 2, None], starts + 1) - torch.maximum(edges[:, i, None], starts)).clamp(min=0)
        for i in (0, 1)
    )
    return (rows[:, :, None] * columns[:, None, :])[:, None]


def _check(sam: Sam, embeddings: Tensor, prompts: Prompts) -> None:
    count, (boxes, points, labels) = len(embeddings), (prompts.boxes, prompts.points, prompts.point_labels)
    if boxes is None and (points is None or not points.shape[1]):
        raise InputError("SAM needs a prompt: give boxes, points or both")
    if (points is None) != (labels is None):
        raise InputError("points and point_labels go together: give both or neither")
    expected = {"boxes": (boxes, [count, 4])}
    if points is not None:
        number = points.shape[1] if points.ndim == 3 else 1
        expected["points"] = (points, [count, number, 2])
        expected["point_labels"] = (labels, [count, number])
    for name, (tensor, shape) in expected.items():
        if tensor is not None and list(tensor.shape) != shape:
            raise InputError(f"{name} must be {shape} for {count} embeddings, found {list(tensor.shape)}")
    if embeddings.shape[1] != embedding_channels(sam):
        raise InputError(
            f"embeddings of {embedding_channels(sam)} channels expected, found {embeddings.shape[1]}; encode slices "
            "with the SAM that is prompted"
        )
