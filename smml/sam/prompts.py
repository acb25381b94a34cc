"""Prompts for SAM, and how a coarse prediction becomes some: where to look, as the branch itself sees it.

No truth is involved; prompts for training, which are drawn from the truth, are in :mod:`smml.sam.training.prompts`.

A region's probability, slice by slice, becomes one prompt for each connected component (8-connected, within the
slice) of the voxels above a threshold: a box with a margin, points inside and points outside. One prompt a component
and not one a slice, because a box round two distant lesions is mostly a box round healthy tissue; SAM's answers to the
prompts of a slice are united afterwards. Of a slice with many components the largest are taken, and specks are left
out: they are more often false alarms than lesions, and a mask of theirs is a handful of SAM's pixels.

Coordinates are those of :mod:`smml.sam.slices`: half-open boxes and voxel centres, as (row, column). Everything here is
deterministic: ties go to the voxel that comes first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from smml.errors import InputError

# Along the first axis, the slices, nothing is connected.
_IN_PLANE = np.zeros((3, 3, 3), bool)
_IN_PLANE[1] = True

# A voxel next to the component may well belong to it: points outside keep this distance, in voxels.
_GAP = 1.5


@dataclass(frozen=True)
class PromptRules:
    """How components become prompts.

    Attributes:
        threshold: a voxel belongs to the region if its probability is above this.
        minimum_area: voxels; smaller components are left out.
        margin: voxels that the box is larger than the component on each side, within the slice. One voxel is what the
            tiny SAM was trained to put up with, and what a coarse outline misses.
        components: prompts a slice at most, the largest components.
        positives: points inside a component: its deepest voxel, then the deepest one outside the disc round the
            former, and so on.
        negatives: points outside: in the surroundings, no further from the box than half its length, the voxels that
            are most certainly background and of these the nearest ones, because a far one tells SAM nothing.

    Raises:
        InputError: a number outside its range.
    """

    threshold: float = 0.5
    minimum_area: int = 8
    margin: float = 1.0
    components: int = 3
    positives: int = 1
    negatives: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise InputError(f"threshold must lie between 0 and 1, found {self.threshold}")
        if self.margin < 0:
            raise InputError(f"margin must be 0 or more voxels, found {self.margin}")
        for name, least in (("minimum_area", 1), ("components", 1), ("positives", 0), ("negatives", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be a whole number of at least {least}, found {value!r}")


@dataclass(frozen=True)
class Prompts:
    """N prompts for SAM: a box each, points, or both.

    Attributes:
        boxes: floating [N, 4], half-open (top, left, bottom, right) in voxels, within the slice; None for points alone.
        points: floating [N, P, 2], (row, column) in voxels, whatever where padded; None or P = 0 for boxes alone.
        point_labels: integer [N, P], with ``points``: 1 inside, 0 outside, -1 padding.
        slices: int64 [N], the slice of a volume that each is for; None where that goes without saying.
    """

    boxes: torch.Tensor | None = None
    points: torch.Tensor | None = None
    point_labels: torch.Tensor | None = None
    slices: torch.Tensor | None = None

    def __len__(self) -> int:
        return next((len(tensor) for tensor in vars(self).values() if tensor is not None), 0)

    def __getitem__(self, rows: slice | torch.Tensor) -> "Prompts":
        """Some of them, in the order of ``rows``."""
        return Prompts(**{name: None if tensor is None else tensor[rows] for name, tensor in vars(self).items()})

    @classmethod
    def concatenate(cls, parts: Sequence["Prompts"]) -> "Prompts":
        """One after the other what has the same fields and number of points.

        Args:
            parts: at least one.
        """
        columns = {name: [getattr(part, name) for part in parts] for name in vars(parts[0])}
        return cls(**{name: None if column[0] is None else torch.cat(column) for name, column in columns.items()})


def coarse_prompts(probability: torch.Tensor | np.ndarray, rules: PromptRules | None = None) -> Prompts:
    """Prompts for one region.

    Args:
        probability: of the region, [S, H, W] in [0, 1], or a boolean mask; slices first. A tensor may need gradients
            and lie on any device: it is read, never differentiated.
        rules: see :class:`PromptRules`.

    Returns:
        A prompt for each component, sorted by slice and, within it, by size, the largest first; all fields are filled.
        On the CPU, boxes and points float32, labels int64. N = 0 where nothing is predicted; P is positives +
        negatives, and a point that is not found is (0, 0) with label -1.

    Raises:
        InputError: another shape, or a probability that is not a number.
    """
    rules = rules or PromptRules()
    if isinstance(probability, torch.Tensor):
        probability = probability.detach().cpu()
        probability = (probability if probability.dtype == torch.bool else probability.float()).numpy()
    if probability.ndim != 3:
        raise InputError(f"the probability of a region must be [S, H, W], found {list(probability.shape)}")
    inside = probability if probability.dtype == bool else probability > rules.threshold
    if probability.dtype != bool and np.isnan(probability).any():
        raise InputError("the coarse prediction holds NaN; check the network that made it")

    pieces, _ = ndimage.label(inside, structure=_IN_PLANE)
    places = ndimage.find_objects(pieces)
    made = []
    for number in _largest(pieces, places, rules):
        layer, rows, columns = places[number - 1]
        box = _box((rows, columns), inside.shape[1:], rules.margin)
        placed = _points(pieces[layer.start] == number, inside[layer.start], probability[layer.start], box, rules)
        made.append((layer.start, box, *placed))
    count = rules.positives + rules.negatives
    slices, boxes, points, labels = zip(*made, strict=True) if made else ((), (), (), ())
    return Prompts(
        boxes=torch.tensor(np.array(boxes, np.float32).reshape(len(made), 4)),
        points=torch.tensor(np.array(points, np.float32).reshape(len(made), count, 2)),
        point_labels=torch.tensor(np.array(labels, np.int64).reshape(len(made), count)),
        slices=torch.tensor(slices, dtype=torch.int64),
    )


def _largest(pieces: np.ndarray, places: list, rules: PromptRules) -> list[int]:
    """Numbers of the components to prompt, slice by slice, the largest first."""
    sizes = np.bincount(pieces.ravel(), minlength=len(places) + 1)
    by_slice: dict[int, list[int]] = {}
    for number, place in enumerate(places, start=1):
        if sizes[number] >= rules.minimum_area:
            by_slice.setdefault(place[0].start, []).append(number)
    # A stable sort: of two equal ones the first stays first.
    return [
        number
        for index in sorted(by_slice)
        for number in sorted(by_slice[index], key=lambda n: -sizes[n])[: rules.components]
    ]


def _box(place: tuple[slice, slice], shape: tuple[int, int], margin: float) -> tuple[float, float, float, float]:
    (rows, columns), (height, width) = place, shape
    return (
        max(0.0, rows.start - margin),
        max(0.0, columns.start - margin),
        min(float(height), rows.stop + margin),
        min(float(width), columns.stop + margin),
    )


def _points(
    piece: np.ndarray,
    inside: np.ndarray,
    probability: np.ndarray,
    box: tuple[float, float, float, float],
    rules: PromptRules,
) -> tuple[np.ndarray, np.ndarray]:
    """Points [P, 2] and labels [P] of one component; all arguments are [H, W] but the box."""
    points = np.zeros((rules.positives + rules.negatives, 2), np.float32)
    labels = np.full(len(points), -1, np.int64)
    # Only the surroundings of the box are looked at: a volume has hundreds of components.
    (top, left, bottom, right), (height, width) = box, piece.shape
    rows, columns = (bottom - top) / 2, (right - left) / 2
    first = max(0, int(top - rows)), max(0, int(left - columns))
    near = slice(first[0], min(height, int(bottom + rows) + 1)), slice(first[1], min(width, int(right + columns) + 1))
    piece, inside, certain = piece[near], inside[near], probability[near].astype(np.float32)

    if rules.positives:
        # Beyond the border of the slice is outside, hence the ring of zeros.
        depth = ndimage.distance_transform_edt(np.pad(piece, 1))[1:-1, 1:-1]
        for index in range(rules.positives):
            deepest = depth.max()
            if deepest <= 0:
                break
            candidates = np.argwhere(depth == deepest)
            chosen = candidates[np.argmax(certain[tuple(candidates.T)])]
            points[index], labels[index] = chosen + first, 1
            depth[_disc(depth.shape, chosen, deepest)] = 0

    if rules.negatives:
        away = ndimage.distance_transform_edt(~piece)
        possible = ~inside & (away > _GAP)
        for index in range(rules.positives, len(points)):
            candidates = np.argwhere(possible)
            if not len(candidates):
                break
            at = tuple(candidates.T)
            # To hundredths: beyond that a softmax is not certainty but noise.
            order = np.lexsort((away[at], np.round(certain[at], 2)))
            chosen = candidates[order[0]]
            points[index], labels[index] = chosen + first, 0
            # The next one belongs on another side of the component.
            possible &= ~_disc(possible.shape, chosen, max(piece.shape) / 4)
    return points, labels


def _disc(shape: tuple[int, int], centre: np.ndarray, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
