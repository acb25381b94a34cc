"""A slice as SAM is asked about it: prompts drawn over the image, and the mask that came back."""

import numpy as np

from smml.figures.pixels import edge
from smml.figures.slices import axial_picture
from smml.figures.theme import rgb

MASK_COLOUR, BOX_COLOUR, TRUTH_COLOUR = "#56b4e9", "#f0e442", "#ffffff"
_POINT_COLOURS = {1: "#009e73", 0: "#d55e00"}
_SCALE = 3  # picture pixels a voxel: lines are one of them


def prompt_picture(
    volume: np.ndarray,
    z: int,
    *,
    mask: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    points: np.ndarray | None = None,
    point_labels: np.ndarray | None = None,
    opacity: float = 0.5,
) -> np.ndarray:
    """One axial slice with prompts, uint8 [rows, columns, 3], radiological convention.

    Args:
        volume: RAS+ [X, Y, Z].
        z: slice.
        mask: [X, Y], in [0, 1], painted blue: SAM's answer.
        truth: bool [X, Y], its outline in white.
        boxes: [S, 4] in voxels, half-open (x0, y0, x1, y1), yellow.
        points: [P, 2] in voxels (x, y).
        point_labels: [P], 1 inside (green), 0 outside (red), -1 not drawn.
        opacity: of the mask.
    """
    picture = axial_picture(volume, z).astype(float)
    if mask is not None:
        strength = opacity * np.clip(np.asarray(mask, float), 0, 1).T[::-1, ::-1, None]
        picture = (1 - strength) * picture + strength * np.asarray(rgb(MASK_COLOUR))
    picture = picture.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
    # Painting in voxel order, [x, y], and turning at the end like the image.
    canvas = picture[::-1, ::-1].transpose(1, 0, 2)
    if truth is not None:
        _paint(canvas, edge(np.asarray(truth, bool).repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)), TRUTH_COLOUR)
    for box in () if boxes is None else np.asarray(boxes):
        x0, y0, x1, y1 = np.round(box * _SCALE).astype(int)
        inside = np.zeros(canvas.shape[:2], bool)
        inside[max(x0, 0) : x1, max(y0, 0) : y1] = True
        _paint(canvas, edge(inside), BOX_COLOUR)
    if points is not None:
        for (x, y), label in zip(np.asarray(points), np.asarray(point_labels), strict=True):
            if int(label) in _POINT_COLOURS:
                spot = np.zeros(canvas.shape[:2], bool)
                column, row = round(float(x) * _SCALE), round(float(y) * _SCALE)
                spot[max(column - 1, 0) : column + 3, max(row - 1, 0) : row + 3] = True
                _paint(canvas, spot, _POINT_COLOURS[int(label)])
    return np.ascontiguousarray(canvas.transpose(1, 0, 2)[::-1, ::-1].round().astype(np.uint8))


def _paint(canvas: np.ndarray, where: np.ndarray, colour: str) -> None:
    canvas[where] = rgb(colour)
