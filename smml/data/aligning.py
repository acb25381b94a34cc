"""Sequences of one case on different grids: the others are brought to the grid of the one named.

What a header says of a place is believed, unless registration is asked for: then the head itself says it. Each sequence
is interpolated once, from its own file, with its brain's voxels alone.
"""

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from smml.data.case import Case
from smml.data.layouts import CaseFiles, find_case, split_suffix
from smml.data.reading import LPS_TO_RAS, import_simpleitk, on_same_grid, read_case
from smml.data.registration import (
    WORKING_EDGE,
    Tissue,
    brought,
    mutual_information,
    working_tissue,
)
from smml.data.registration import (
    register as find_movement,
)
from smml.data.resampling import transform_masked
from smml.errors import InputError
from smml.files import write_text
from smml.modalities import parse_subset, subset_name

# A movement is believed from here on, in mm and as a part of a voxel's edge: below, it is the method's own error.
_LEAST_MM, _LEAST_EDGE = 0.5, 0.25
# Part of the smaller brain that lies in the other: below the first, two images of one head lie apart; a registration
# below the second has failed.
_APART, _FAILED = 0.9, 0.75
# Mean movement in mm and turn in degrees beyond which a patient has hardly moved between two sequences.
_FAR_MM, _FAR_DEGREES = 30.0, 30.0
# Below this the brains hardly meet, and registration begins with one middle on the other.
_MEETS = 0.5


@dataclass(frozen=True, eq=False)
class Alignment:
    """How one sequence was brought to the grid of another, and how well it lies there.

    Attributes:
        sequence: what was brought.
        to: whose grid it is on now.
        movement: float64 [4, 4], RAS+ mm of ``to`` -> RAS+ mm in the sequence's own file, at the same place of the
            head; the identity where the headers were believed.
        registered: whether registration was asked for.
        moved_mm: mean distance in mm by which the movement displaces the brain's voxels.
        turned_degrees: angle of its rotation.
        overlap: part of the smaller brain that lies in the other, by the headers and with the movement.
        information: mutual information in nats over the brain of ``to``, likewise.
    """

    sequence: str
    to: str
    movement: np.ndarray
    registered: bool
    moved_mm: float
    turned_degrees: float
    overlap: tuple[float, float]
    information: tuple[float, float]

    def __str__(self) -> str:
        names = f"{subset_name([self.sequence])} to {subset_name([self.to])}"
        (before, after), (less, more) = self.overlap, self.information
        if not self.registered:
            return f"{names}: resampled where its header puts it; the brains overlap by {after:.0%}"
        if not self.moved_mm:
            return (
                f"{names}: registered, and left where its header puts it, since no movement above the error of the "
                f"method fits better; the brains overlap by {after:.0%}"
            )
        return (
            f"{names}: registered; moved by {self.moved_mm:.1f} mm in the mean and turned by {self.turned_degrees:.1f} "
            f"degrees, the brains overlap by {after:.0%} ({before:.0%} before), mutual information {more:.2f} "
            f"({less:.2f} before)"
        )

    def save(self, path: str | os.PathLike) -> Path:
        """Write the movement as ITK and 3D Slicer read it: applied to the sequence, it brings it to the other.

        Args:
            path: ends in ``.tfm``; the file appears whole or not at all.

        Raises:
            InputError: no place to write, or a disk that is full.
        """
        lps = LPS_TO_RAS @ self.movement @ LPS_TO_RAS
        numbers = " ".join(repr(float(value)) for value in (*lps[:3, :3].ravel(), *lps[:3, 3]))
        write_text(
            path,
            "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
            f"Parameters: {numbers}\nFixedParameters: 0 0 0\n",
        )
        return Path(path)


@dataclass(frozen=True, eq=False)
class AlignedCase(Case):
    """A case whose sequences were brought to one grid; all but the last are as in :class:`Case`.

    Attributes:
        id: name of the case.
        volumes: by modality, float32 [X, Y, Z] on the grid of the sequence named.
        label: uint8 [X, Y, Z], or None.
        affine: float64 [4, 4], of the sequence named.
        layout: key in ``LAYOUTS``.
        sources: the files that the volumes and the label come from.
        header: of the sequence named, or None.
        alignments: by sequence, of those that lay elsewhere or were registered.
    """

    alignments: dict[str, Alignment] = field(default_factory=dict)

    def save_transforms(self, beside: str | os.PathLike) -> list[Path]:
        """Write the transform of each sequence that was registered; ``seg.nii.gz`` -> ``seg_flair_to_t1ce.tfm``.

        Args:
            beside: path of the answer, next to which they are written.

        Returns:
            The files.

        Raises:
            InputError: no place to write, or a disk that is full.
        """
        stem = Path(beside).with_name(split_suffix(beside)[0])
        return [
            each.save(stem.with_name(f"{stem.name}_{each.sequence}_to_{each.to}.tfm"))
            for each in self.alignments.values()
            if each.registered
        ]


def align_case(
    case: CaseFiles | str | os.PathLike | Iterable[str | os.PathLike],
    to: str,
    modalities: str | Iterable[str] | None = None,
    *,
    register: bool = False,
    label: bool = True,
) -> AlignedCase:
    """Read a case whose sequences lie on different grids, all on the grid of one of them.

    A sequence that is on that grid already, and is not moved, keeps every voxel as it is; the others are interpolated
    (linear, the brain's voxels alone, so that its edge is not mixed with the background), and what was background, or
    lies beyond their field of view, gets the value of their background.

    Args:
        case: as for ``read_case``.
        to: the sequence whose grid is taken. Its file is read even where ``modalities`` leaves it out.
        modalities: names or a subset such as "flair+t2"; None reads all that the case has.
        register: find the rigid movement between each sequence and ``to`` first (SimpleITK, mutual information), so
            that headers need not agree about the place of the head.
        label: read the segmentation if there is one; it must lie on the grid of ``to``.

    Returns:
        The case, with how each sequence was brought to the grid. A sequence whose brain hardly meets that of ``to`` is
        warned of, and so is an improbable movement.

    Raises:
        MissingPackage: registration needs SimpleITK, which is not installed.
        InputError: as ``read_case`` says, except that grids may differ; or a sequence has nothing on the grid of
            ``to``, or its registration failed.
    """
    if register:
        import_simpleitk("registration", extra="register")
    files = case if isinstance(case, CaseFiles) else find_case(case)
    named = parse_subset(to)
    if len(named) != 1:
        raise InputError(f"expected one sequence to align to, found {subset_name(named, ', ')}; name one of them")
    (to,) = named
    wanted = files.modalities if modalities is None else parse_subset(modalities)
    reference = read_case(files, to, label=label)
    volumes, sources, alignments = {}, {}, {}
    for name in wanted:
        own = reference if name == to else read_case(files, name, label=False)
        volumes[name], sources[name] = own.volumes[name], own.sources[name]
        if name == to:
            continue
        same = on_same_grid(own.shape, own.affine, reference.shape, reference.affine)
        if same and not register:
            continue
        alignment = _align(files.id, (to, reference), (name, own), register)
        alignments[name] = alignment
        if not same or alignment.moved_mm:
            volumes[name] = _on_grid(own, name, alignment, reference)
    if "label" in reference.sources:
        sources["label"] = reference.sources["label"]
    return AlignedCase(
        files.id,
        volumes,
        reference.label,
        reference.affine,
        files.layout,
        sources,
        reference.header,
        alignments,
    )


def _align(case: str, fixed: tuple[str, Case], moving: tuple[str, Case], register: bool) -> Alignment:
    """How one sequence comes to the grid of another, checked."""
    (to, reference), (name, own) = fixed, moving
    who = f"case {case}: {subset_name([name])} to {subset_name([to])}"
    edges = (*reference.spacing, *own.spacing)
    edge = max(WORKING_EDGE, min(edges))
    still, other = (_tissue(case, one, image, edge) for one, image in (fixed, moving))
    identity = np.eye(4)
    before = _fit(still, other, identity)
    result = Alignment(name, to, identity, register, 0.0, 0.0, (before[0], before[0]), (before[1], before[1]))
    if register:
        start = None if before[0] >= _MEETS else other.middle - still.middle
        try:
            found = find_movement(still, other, start)
        except InputError as error:
            raise InputError(f"{who}: {error}; look whether both show one head") from error
        after, (moved, turned) = _fit(still, other, found), _extent(still, found)
        if after[1] > before[1] and moved >= max(_LEAST_MM, _LEAST_EDGE * min(edges)):
            result = Alignment(name, to, found, True, moved, turned, (before[0], after[0]), (before[1], after[1]))
    overlap = result.overlap[1]
    if register and overlap < _FAILED:
        raise InputError(
            f"{who}: registration failed, the brains overlap by only {overlap:.0%} with the best movement that it "
            f"found (less than {_FAILED:.0%}); look whether both show one whole head without its skull, or leave "
            f"{subset_name([name])} out"
        )
    if not overlap:
        raise InputError(
            f"{who}: nothing of its brain lies where the other's is, by what the headers say; register it (--register, "
            f"register=True), or leave {subset_name([name])} out"
        )
    if overlap < _APART and not register:
        _warn(
            f"{who}: the brains overlap by only {overlap:.0%}, so the headers hardly put them at one place; register "
            "it (--register, register=True)"
        )
    if result.moved_mm > _FAR_MM or result.turned_degrees > _FAR_DEGREES:
        _warn(
            f"{who}: registration moved it by {result.moved_mm:.0f} mm and {result.turned_degrees:.0f} degrees, "
            "further than a patient moves between sequences; look at both before the answer is used"
        )
    return result


def _tissue(case: str, name: str, image: Case, edge: float) -> Tissue:
    try:
        return working_tissue(image.volumes[name], image.brains[name], image.affine, edge)
    except InputError as error:
        raise InputError(f"case {case}: {subset_name([name])} cannot be aligned: {error}; leave it out") from error


def _fit(fixed: Tissue, moving: Tissue, movement: np.ndarray) -> tuple[float, float]:
    """Part of the smaller brain that lies in the other, and mutual information."""
    there = brought(moving, fixed, movement)
    smaller = min(int(fixed.mask.sum()), int(moving.mask.sum()))
    return min(1.0, float((there.mask & fixed.mask).sum()) / smaller), mutual_information(fixed, there)


def _extent(fixed: Tissue, movement: np.ndarray) -> tuple[float, float]:
    """Mean distance in mm that the brain's voxels are moved by, and the angle in degrees."""
    places = np.argwhere(fixed.mask) @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    away = places @ (movement[:3, :3] - np.eye(3)).T + movement[:3, 3]
    cosine = (np.trace(movement[:3, :3]) - 1) / 2
    return float(np.linalg.norm(away, axis=1).mean()), float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _on_grid(own: Case, name: str, alignment: Alignment, reference: Case) -> np.ndarray:
    """A sequence on the reference's grid, float32; its background is that of its file."""
    brain = own.brains[name]
    index = np.linalg.inv(own.affine) @ alignment.movement @ reference.affine
    values, mask = transform_masked(
        torch.from_numpy(own.volumes[name]), torch.from_numpy(brain.mask), index, reference.shape
    )
    return torch.where(mask, values, brain.background).numpy()


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)
