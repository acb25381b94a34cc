"""Between slices of a volume, in voxels, and SAM's square input: the only place with that geometry.

Coordinates, once and for all, in voxels of the slice, as (row, column):

- A *point* (i, j) is the centre of voxel [i, j]; fractions lie between centres.
- A *box* (top, left, bottom, right) is half-open like a slice of Python: it holds ``image[top:bottom, left:right]``.
  The box of a mask is therefore (first row, first column, last row + 1, last column + 1). Its edges are edges of
  voxels, so fractions are fine here too.

A slice is resized by its longer side to SAM's square, aspect kept, and padded at the bottom and on the right (after the
normalisation, with 0), as SAM's own predictor does. Its pixels are grey: the background (:mod:`smml.data.brain`) is 0,
the brain runs from 48 to 255 between two of its percentiles. So it does not matter whether a volume holds scanner
units or z-scores, and the darkest tissue still stands out from the background.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smml.data.brain import find_brain
from smml.errors import InputError
from smml.sam.torchvision_gap import Sam

# Of the brain's voxels: what lies outside is shown like the nearer of the two.
WINDOW_PERCENTILES = (0.5, 99.5)
# The grey of the brain's darkest voxels, and white.
DARKEST, _WHITE = 48.0, 255.0


@dataclass(frozen=True)
class SquareFit:
    """How slices of ``shape`` (rows, columns) lie in a square of ``size`` pixels.

    Attributes:
        shape: voxels of a slice.
        size: pixels along the edge of the square.
    """

    shape: tuple[int, int]
    size: int

    @classmethod
    def of(cls, sam: Sam, shape: Sequence[int]) -> "SquareFit":
        """How slices lie in the square of a SAM.

        Args:
            sam: of :func:`smml.sam.load_sam`.
            shape: (H, W) of the slices.
        """
        rows, columns = shape
        return cls((rows, columns), image_size(sam))

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
        masks = masks.float()[:, None]
        grid = _grid(axes, masks)
        return F.grid_sample(masks, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]

    def masks_to_slices(self, masks: Tensor) -> Tensor:
        """SAM's mask logits -> [P, K, H, W], by bilinear interpolation at the centres of the voxels.

        Args:
            masks: logits on SAM's square, floating [P, K, m, m].
        """
        axes = [
            (torch.arange(length, device=masks.device) + 0.5) * scale / self.size * 2 - 1
            for scale, length in zip(self.scale, self.shape, strict=True)
        ]
        grid = _grid(axes, masks)
        return F.grid_sample(masks, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _grid(axes: list[Tensor], images: Tensor) -> Tensor:
    """Rows times columns of positions in [-1, 1] between the images' edges, as (x, y): where grid_sample samples.

    Args:
        axes: positions of the H rows and of the W columns.
        images: [N, K, h, w].

    Returns:
        [N, H, W, 2].
    """
    rows, columns = (axis.to(images) for axis in axes)
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).expand(len(images), -1, -1, -1)


def intensity_window(volume: Tensor) -> tuple[float, float]:
    """The intensities that become the darkest grey and white: percentiles 0.5 and 99.5 of the brain.

    Args:
        volume: [X, Y, Z] or any other shape, any scale; best the whole volume, so that all its slices look alike. NaN
            is refused.

    Returns:
        (low, high) with low < high; (0, 1) for an empty volume.

    Raises:
        InputError: a voxel is not finite.
    """
    if not bool(torch.isfinite(volume).all()):
        raise InputError("the slices hold NaN or infinite voxels; mend or mask them before SAM sees them")
    values = volume[_brain(volume)].float()
    if not len(values):
        return 0.0, 1.0
    low, high = (
        float(values.kthvalue(1 + round(percent / 100 * (len(values) - 1))).values) for percent in WINDOW_PERCENTILES
    )
    # One intensity throughout the brain is shown as white.
    return (low, high) if high > low else (high - max(1.0, abs(high)), high)


def to_grey(slices: Tensor, window: tuple[float, float] | None = None) -> Tensor:
    """Slices of any scale -> grey values, 48 to 255 in the brain and 0 elsewhere, float32 of the same shape.

    Args:
        slices: [S, H, W].
        window: (low, high) of :func:`intensity_window`, or None to take that of these slices.
    """
    low, high = window or intensity_window(slices)
    grey = DARKEST + ((slices.float() - low) / (high - low)).clamp(0, 1) * (_WHITE - DARKEST)
    return torch.where(_brain(slices), grey, torch.zeros((), device=slices.device))


def _brain(slices: Tensor) -> Tensor:
    """Where the brain is, bool of the same shape."""
    return torch.from_numpy(find_brain(slices.detach().float().cpu().numpy()).mask).to(slices.device)


def to_input(sam: Sam, slices: Tensor, window: tuple[float, float] | None = None) -> Tensor:
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
    grey = to_grey(slices, window).to(sam.device)
    return sam.preprocess(SquareFit.of(sam, slices.shape[1:]).resize(grey)[:, None])


def image_size(sam: Sam) -> int:
    """Edge of SAM's square input in pixels."""
    return int(sam.image_encoder.img_size)
