"""Between slices of a volume, in voxels, and SAM's square input: the only place with that geometry.

Coordinates, once and for all, in voxels of the slice, as (row, column):

- A *point* (i, j) is the centre of voxel [i, j]; fractions lie between centres.
- A *box* (top, left, bottom, right) is half-open like a slice of Python: it holds ``image[top:bottom, left:right]``.
  The box of a mask is therefore (first row, first column, last row + 1, last column + 1). Its edges are edges of
  voxels, so fractions are fine here too.

A slice is resized by its longer side to SAM's square, aspect kept, and padded at the bottom and on the right (after the
normalisation, with 0), as SAM's own predictor does. Its pixels are grey: background (voxels that are exactly 0) is 0,
the rest runs from 48 to 255 between two percentiles of the brain. So it does not matter whether a volume holds scanner
units or z-scores, and the darkest tissue still stands out from the background.

``encode`` and ``decode`` are for inference. Training calls what they are made of, :func:`embed` and
:func:`predict_on_square`, which let gradients through.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smml.errors import InputError

# Of the brain's voxels: what lies outside is shown like the nearer of the two.
WINDOW_PERCENTILES = (0.5, 99.5)
_DARKEST, _WHITE = 48.0, 255.0


@dataclass(frozen=True)
class SquareFit:
    """How slices of ``shape`` (rows, columns) lie in a square of ``size`` pixels.

    Attributes:
        shape: voxels of a slice.
        size: pixels along the edge of the square.
    """

    shape: tuple[int, int]
    size: int

    @property
    def inside(self) -> tuple[int, int]:
        """Rows and columns of pixels that the resized slice covers, at the top left of the square."""
        scale = self.size / max(self.shape)
        return max(1, int(self.shape[0] * scale + 0.5)), max(1, int(self.shape[1] * scale + 0.5))

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels a voxel along rows and columns; they differ by the rounding to whole pixels."""
        return self.inside[0] / self.shape[0], self.inside[1] / self.shape[1]

    def resize(self, slices: Tensor) -> Tensor:
        """Resize slices to the pixels that they cover, ``inside``; averages where it shrinks.

        Args:
            slices: [S, H, W].
        """
        resized = F.interpolate(slices[:, None], self.inside, mode="bilinear", align_corners=False, antialias=True)
        return resized[:, 0]

    def points(self, points: Tensor) -> Tensor:
        """Points in voxels -> SAM's (x, y) in pixel centres.

        Args:
            points: (row, column), [..., 2].
        """
        edges = (points.float() + 0.5) * points.new_tensor(self.scale, dtype=torch.float32)
        # SAM adds the half pixel from the centre to the edge again.
        return edges.flip(-1) - 0.5

    def boxes(self, boxes: Tensor) -> Tensor:
        """Half-open boxes in voxels -> SAM's (x0, y0, x1, y1) in pixel centres.

        Args:
            boxes: (top, left, bottom, right), [..., 4].
        """
        edges = boxes.float() * boxes.new_tensor(self.scale * 2, dtype=torch.float32)
        return edges.reshape(*edges.shape[:-1], 2, 2).flip(-1).reshape(edges.shape) - 0.5

    def masks_to_square(self, masks: Tensor, pixels: int) -> Tensor:
        """Masks in voxels -> [S, pixels, pixels], the share of each mask pixel that is inside, about.

        The inverse of :meth:`masks_to_slices`.

        Args:
            masks: in [0, 1], [S, H, W].
            pixels: edge of SAM's masks.
        """
        # Centres of the mask pixels in voxel indices, then in grid_sample's -1 to 1 between edges.
        axes = [
            (torch.arange(pixels, device=masks.device) + 0.5) * (self.size / pixels) / scale / length * 2 - 1
            for scale, length in zip(self.scale, self.shape, strict=True)
        ]
        return _sample(masks.float(), axes, padding="zeros")

    def masks_to_slices(self, masks: Tensor) -> Tensor:
        """SAM's mask logits -> [S, H, W], by bilinear interpolation at the centres of the voxels.

        Args:
            masks: logits on SAM's square, [S, m, m].
        """
        axes = [
            (torch.arange(length, device=masks.device) + 0.5) * scale / self.size * 2 - 1
            for scale, length in zip(self.scale, self.shape, strict=True)
        ]
        return _sample(masks, axes, padding="border")


def _sample(images: Tensor, axes: list[Tensor], padding: str) -> Tensor:
    """Bilinear samples of [S, h, w] at a grid of (row, column) positions in [-1, 1] between the images' edges."""
    grid = torch.stack(torch.meshgrid(axes[1].to(images), axes[0].to(images), indexing="xy"), dim=-1)
    grid = grid.expand(len(images), -1, -1, -1)
    return F.grid_sample(images[:, None], grid, mode="bilinear", padding_mode=padding, align_corners=False)[:, 0]


def intensity_window(volume: Tensor) -> tuple[float, float]:
    """The intensities that become the darkest grey and white: percentiles 0.5 and 99.5 of the voxels that are not 0.

    Args:
        volume: [X, Y, Z] or any other shape, any scale; best the whole volume, so that all its slices look alike. NaN
            is refused.

    Returns:
        (low, high) with low < high; (0, 1) for an empty volume.

    Raises:
        InputError: a voxel is not finite.
    """
    values = volume[volume != 0].float()
    if not bool(torch.isfinite(values).all()):
        raise InputError("the slices hold NaN or infinite voxels; mend or mask them before SAM sees them")
    if not len(values):
        return 0.0, 1.0
    low, high = (
        float(values.kthvalue(1 + round(percent / 100 * (len(values) - 1))).values) for percent in WINDOW_PERCENTILES
    )
    # One intensity throughout the brain is shown as white.
    return (low, high) if high > low else (high - max(1.0, abs(high)), high)


def to_grey(slices: Tensor, window: tuple[float, float] | None = None) -> Tensor:
    """Slices of any scale -> grey values, 0 or 48 to 255, float32 of the same shape; voxels that are exactly 0 stay 0.

    Args:
        slices: [S, H, W].
        window: (low, high) of :func:`intensity_window`, or None to take that of these slices.
    """
    low, high = window or intensity_window(slices)
    grey = _DARKEST + ((slices.float() - low) / (high - low)).clamp(0, 1) * (_WHITE - _DARKEST)
    return torch.where(slices != 0, grey, torch.zeros((), device=slices.device))


def to_input(sam: nn.Module, slices: Tensor, window: tuple[float, float] | None = None) -> Tensor:
    """What ``sam.image_encoder`` wants: float32 [S, 3, size, size] on SAM's device.

    Args:
        sam: of :func:`smml.sam.load_sam`.
        slices: [S, H, W], of any scale.
        window: intensities that become black and white; None takes :func:`intensity_window` of these slices.

    Raises:
        InputError: the slices are not [S, H, W] or hold voxels that are not finite.
    """
    if slices.ndim != 3 or 0 in slices.shape[1:]:
        raise InputError(f"slices must be [S, H, W] with H and W at least 1, found {list(slices.shape)}")
    grey = to_grey(slices.to(sam.device), window)
    return sam.preprocess(SquareFit(tuple(slices.shape[1:]), image_size(sam)).resize(grey)[:, None])


def image_size(sam: nn.Module) -> int:
    """Edge of SAM's square input in pixels."""
    return int(sam.image_encoder.img_size)


@torch.no_grad()
def encode(sam: nn.Module, slices: Tensor, *, window: tuple[float, float] | None = None, batch: int = 8) -> Tensor:
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


def embed(sam: nn.Module, images: Tensor) -> Tensor:
    """The differentiable part of :func:`encode`: embeddings of what SAM sees, with its fine detail if it has any.

    Args:
        sam: of :func:`smml.sam.load_sam`.
        images: of :func:`to_input`, [S, 3, size, size].

    Returns:
        [S, C, h, w]: first SAM's own channels, then those of :mod:`smml.sam.detail`.
    """
    embeddings, detail = sam.image_encoder(images), getattr(sam, "detail", None)
    return embeddings if detail is None else torch.cat([embeddings, detail.see(images)], dim=1)


def embedding_channels(sam: nn.Module) -> int:
    """Channels C of :func:`embed`."""
    detail = getattr(sam, "detail", None)
    return sam.prompt_encoder.embed_dim + (0 if detail is None else detail.packed)


@torch.no_grad()
def decode(
    sam: nn.Module,
    embeddings: Tensor,
    boxes: Tensor | None = None,
    points: Tensor | None = None,
    point_labels: Tensor | None = None,
    *,
    shape: tuple[int, int],
    multimask: bool = False,
    batch: int = 64,
) -> Tensor:
    """Masks of one prompt a slice, without gradients. Repeat an embedding to prompt its slice several times.

    Args:
        sam: from :func:`smml.sam.load_sam`.
        embeddings: [S, C, h, w] from :func:`encode`.
        boxes: [S, 4] half-open (top, left, bottom, right) in voxels, or None.
        points: [S, P, 2] (row, column) in voxels, or None.
        point_labels: [S, P], 1 inside, 0 outside, -1 for padding; with ``points``.
        shape: (H, W) of the slices that were encoded.
        multimask: give SAM's three masks for ambiguous prompts instead of the one for clear ones.
        batch: prompts at a time.

    Returns:
        Mask logits [S, H, W], or [S, 3, H, W] with ``multimask``, float32 on SAM's device; the mask is where they are
        above 0.

    Raises:
        InputError: no prompt at all, or shapes that do not belong together.
    """
    parts = []
    for start in range(0, len(embeddings), batch):
        part = slice(start, start + batch)
        masks, _ = predict_masks(
            sam,
            embeddings[part],
            None if boxes is None else boxes[part],
            None if points is None else points[part],
            None if point_labels is None else point_labels[part],
            shape=shape,
            multimask=multimask,
        )
        slices = SquareFit(tuple(shape), image_size(sam)).masks_to_slices(masks.flatten(0, -3))
        parts.append(slices.reshape(*masks.shape[:-2], *shape))
    return torch.cat(parts) if parts else torch.zeros(0, *(3,) * multimask, *shape, device=sam.device)


def predict_masks(
    sam: nn.Module,
    embeddings: Tensor,
    boxes: Tensor | None = None,
    points: Tensor | None = None,
    point_labels: Tensor | None = None,
    *,
    shape: tuple[int, int],
    multimask: bool = False,
) -> tuple[Tensor, Tensor]:
    """The differentiable part of :func:`decode`.

    Args:
        sam: of :func:`smml.sam.load_sam`.
        embeddings: of the slices, [S, C, h, w].
        boxes: half-open (top, left, bottom, right) in voxels, [S, 4].
        points: (row, column) in voxels, [S, P, 2].
        point_labels: 1 inside, 0 outside, -1 padding, [S, P].
        shape: (H, W) of the slices.
        multimask: the three masks for ambiguous prompts.

    Returns:
        Mask logits on SAM's square [S, m, m], m four times the edge of the embeddings, and the IoU that SAM expects of
        them [S]; with ``multimask`` [S, 3, m, m] and [S, 3].

    Raises:
        InputError: as for :func:`decode`.
    """
    _check_prompts(len(embeddings), boxes, points, point_labels)
    if embeddings.shape[1] != embedding_channels(sam):
        raise InputError(
            f"embeddings of {embedding_channels(sam)} channels expected, found {embeddings.shape[1]}; encode slices "
            "with the SAM that is prompted"
        )
    fit = SquareFit(tuple(shape), image_size(sam))
    device = embeddings.device
    if points is not None and not points.shape[1]:
        points = None
    masks, quality = predict_on_square(
        sam,
        embeddings,
        None if boxes is None else fit.boxes(boxes.to(device)),
        None if points is None else fit.points(points.to(device)),
        None if points is None else point_labels.to(device),
        rough_mask=getattr(sam, "takes_rough_mask", False),
    )
    return (masks[:, 1:], quality[:, 1:]) if multimask else (masks[:, 0], quality[:, 0])


def predict_on_square(
    sam: nn.Module,
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


def _filled(sam: nn.Module, boxes: Tensor) -> Tensor:
    """Boxes in SAM's coordinates [S, 4] -> the share of each mask pixel that they cover, [S, 1, m, m]."""
    side = sam.prompt_encoder.mask_input_size[0]
    edges = (boxes + 0.5) * (side / image_size(sam))
    starts = torch.arange(side, device=boxes.device, dtype=edges.dtype)
    columns, rows = (
        (torch.minimum(edges[:, i + 2, None], starts + 1) - torch.maximum(edges[:, i, None], starts)).clamp(min=0)
        for i in (0, 1)
    )
    return (rows[:, :, None] * columns[:, None, :])[:, None]


def _check_prompts(count: int, boxes: Tensor | None, points: Tensor | None, point_labels: Tensor | None) -> None:
    if boxes is None and (points is None or not points.shape[1]):
        raise InputError("SAM needs a prompt: give boxes, points or both")
    if (points is None) != (point_labels is None):
        raise InputError("points and point_labels go together: give both or neither")
    expected = {"boxes": (boxes, [count, 4])}
    if points is not None:
        number = points.shape[1] if points.ndim == 3 else 1
        expected["points"] = (points, [count, number, 2])
        expected["point_labels"] = (point_labels, [count, number])
    for name, (tensor, shape) in expected.items():
        if tensor is not None and list(tensor.shape) != shape:
            raise InputError(f"{name} must be {shape} for {count} embeddings, found {list(tensor.shape)}")
