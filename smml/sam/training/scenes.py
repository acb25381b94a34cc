"""What the tiny SAM learns from: slices of simulated lesions and anatomy, and synthetic shapes, with their objects.

Nothing here knows classes: an object is a mask in a slice. Lesions come from ``simulate_subject``, in both looks;
anatomy from heads without a tumour (pieces of their tissues, the brain as a whole); shapes are ellipses, blobs and
rings of any contrast on an empty, an uneven or a brain-like background. Planes are axial, coronal and sagittal,
spacings 2 and 3 mm, all four sequences. Everything is *simulated*.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from smml.data.labels import BRATS_2015, REGIONS
from smml.data.simulation.subject import Subject, simulate_anatomy, simulate_subject
from smml.modalities import MODALITIES
from smml.sam.slices import SquareFit, intensity_window, to_grey

# No other cohort has them: the table of seeds in docs/CONVENTIONS.md.
TRAINING_SEED, HELD_OUT_SEED = 90, 91

# Where a region can be seen: oedema on FLAIR and T2, the core and its rim on T1ce (smml/data/simulation).
VISIBLE = {("WT", "flair"), ("WT", "t2"), ("TC", "t1ce"), ("ET", "t1ce")}
# The sequences of lesion scenes: T1 shows none of their objects.
_SHOWING = tuple(name for name in MODALITIES if name in {sequence for _, sequence in VISIBLE})

# Half of the lesions as protocols show them, half in contrasts far beyond; anatomy, whose tissues a sequence of the
# second kind may not tell apart, as protocols show it.
_LOOKS = ("typical", "varied")
# Heads of the anatomy are others than those with lesions.
_HEALTHY_FROM = 100_000
_TISSUES = {"white": "white matter", "grey": "grey matter", "csf": "CSF", "brain": "brain"}

# Scenes whose greys run from 0, the slice's darkest voxel, to 255, its brightest, as a reader would make them for
# SAM's own predictor; the others have those of smml/sam/slices.py. results/sam compares what both give.
_PLAIN_GREYS = 0.3

SMALLEST_OBJECT = 12  # voxels; below that a mask is a handful of pixels of SAM's square
_OBJECTS = 4  # kept a slice


@dataclass(frozen=True)
class Scene:
    """A slice and some objects in it.

    Attributes:
        grey: uint8 [h, w], the slice on the pixels that it covers of SAM's square.
        shape: (H, W) of the slice in voxels.
        masks: bool [K, H, W], one object each.
        targets: uint8 [K, m, m], the same on SAM's mask grid, 255 where a pixel is wholly inside.
        names: [K], what the objects are ("WT", "white matter", "shape" ...).
    """

    grey: torch.Tensor
    shape: tuple[int, int]
    masks: torch.Tensor
    targets: torch.Tensor
    names: tuple[str, ...]


def make_scene(
    slice_: np.ndarray,
    window: tuple[float, float] | None,
    objects: dict[str, np.ndarray],
    size: int,
    pixels: int,
    random: np.random.Generator,
) -> Scene | None:
    """A scene of at most four of the objects, or None where all are too small.

    Args:
        slice_: [H, W], background 0.
        window: of the volume, see :func:`smml.sam.slices.intensity_window`.
        objects: bool [H, W] by name.
        size, pixels: edges of SAM's square and of its masks.
        random: which objects are kept where there are more, and how grey values are made.
    """
    names = [name for name, mask in objects.items() if mask.sum() >= SMALLEST_OBJECT]
    if not names:
        return None
    names = [names[i] for i in random.permutation(len(names))[:_OBJECTS]]
    masks = torch.from_numpy(np.stack([objects[name] for name in names]))
    fit = SquareFit(slice_.shape, size)
    voxels = torch.from_numpy(np.ascontiguousarray(slice_))[None].float()
    grey = fit.resize(plain_grey(voxels) if random.random() < _PLAIN_GREYS else to_grey(voxels, window))[0]
    targets = fit.masks_to_square(masks, pixels)
    return Scene(
        grey=grey.round().to(torch.uint8),
        shape=slice_.shape,
        masks=masks,
        targets=(targets * 255).round().to(torch.uint8),
        names=tuple(name.split(",")[0] for name in names),
    )


def plain_grey(slices: torch.Tensor) -> torch.Tensor:
    """Each slice's intensities from its least (0) to its largest (255), float32 of the same shape [S, H, W]."""
    low, high = slices.amin((1, 2), keepdim=True), slices.amax((1, 2), keepdim=True)
    return (slices.float() - low) / (high - low).clamp_min(1e-6) * 255


def lesion_scenes(
    seed: int, index: int, count: int, *, spacing: float, size: int, pixels: int, random: np.random.Generator
) -> Iterator[Scene]:
    """About ``count`` scenes of one simulated subject's lesion; none where it is healthy.

    Objects are those of WT, TC, ET and the necrosis in them that the sequence shows (``VISIBLE``): the whole region of
    a slice (several pieces, holes) and its largest piece. Objects that cannot be seen would teach to guess, and did.
    """
    subject = simulate_subject(seed, index, spacing=spacing, look=_LOOKS[index % len(_LOOKS)])
    if subject.kind == "healthy":
        return
    windows = _windows({name: subject.volumes[name] for name in _SHOWING})
    for _ in range(count):
        name = _SHOWING[random.integers(len(_SHOWING))]
        axis, position = _lesion_plane(subject, random, core_only=("WT", name) not in VISIBLE)
        turn = _draw_turn(random)
        labels = turn(np.take(subject.labels, position, axis))
        objects: dict[str, np.ndarray] = {
            region: BRATS_2015.region(labels, region) for region in REGIONS if (region, name) in VISIBLE
        }
        if {"TC", "ET"} <= objects.keys():
            objects["necrosis"] = objects["TC"] & ~objects["ET"]
        for region in list(objects):
            piece = _largest_piece(objects[region])
            if 0 < piece.sum() < 0.9 * objects[region].sum():
                objects[f"{region}, piece"] = piece
        scene = make_scene(
            turn(np.take(subject.volumes[name], position, axis)), windows[name], objects, size, pixels, random
        )
        if scene is not None:
            yield scene


def anatomy_scenes(
    seed: int, index: int, count: int, *, spacing: float, size: int, pixels: int, random: np.random.Generator
) -> Iterator[Scene]:
    """About ``count`` scenes of a brain without a tumour: connected pieces of its tissues, and the brain."""
    volumes, fractions = simulate_anatomy(seed, _HEALTHY_FROM + index, spacing=spacing)
    windows = _windows(volumes)
    tissues = {_TISSUES[name]: fraction > 0.5 for name, fraction in fractions.items()}
    for _ in range(count):
        name = MODALITIES[random.integers(len(MODALITIES))]
        axis = int(random.integers(3))
        length = volumes[name].shape[axis]
        position = int(random.integers(length // 5, length - length // 5))
        turn = _draw_turn(random)
        objects = {}
        for tissue, mask in tissues.items():
            pieces, number = ndimage.label(turn(np.take(mask, position, axis)))
            sizes = np.bincount(pieces.ravel())[1:]
            for rank, piece in enumerate(np.argsort(-sizes)[: min(3, number)]):
                objects[f"{tissue}, {rank}"] = pieces == piece + 1
        scene = make_scene(turn(np.take(volumes[name], position, axis)), windows[name], objects, size, pixels, random)
        if scene is not None:
            yield scene


def shape_scenes(
    count: int, *, size: int, pixels: int, random: np.random.Generator, backgrounds: list[np.ndarray] | None = None
) -> Iterator[Scene]:
    """``count`` scenes of one to three synthetic shapes on slices of 40 to 120 voxels.

    Args:
        backgrounds: slices [H, W] in [0, 1] to paint some of the shapes on; the others are empty or uneven.
    """
    made = 0
    while made < count:
        kind = random.integers(4)
        if kind == 0 and backgrounds:
            image = backgrounds[random.integers(len(backgrounds))].copy()
        else:
            rows, columns = (int(n) for n in random.integers(40, 121, 2))
            shape = rows, columns
            image = np.zeros(shape) if kind < 3 else _uneven(shape, random) * 0.3 + random.uniform(0.2, 0.7)
        shape = image.shape
        objects = {}
        for number in range(random.integers(1, 4)):
            mask = draw_shape(shape, random)
            contrast = random.uniform(0.1, 0.8) * random.choice([-1, 1])
            # On an empty background an object has some brightness of its own; a dark one would be no object there.
            value = abs(contrast) if kind in (1, 2) else contrast
            soft = ndimage.gaussian_filter(mask.astype(float), random.uniform(0, 1.2)) if kind else mask.astype(float)
            image = image + soft * value * (1 + 0.3 * random.random() * _uneven(shape, random))
            # Where a later shape covers an earlier one, both remain objects: SAM is asked for what the box is round.
            objects[f"shape, {number}"] = mask
        noise = random.uniform(0, 0.08)
        if kind == 1:  # outside stays exactly 0, as after skull stripping
            image = np.where(image > 0.02, image + noise * random.standard_normal(shape), 0.0)
        else:
            image = image + noise * random.standard_normal(shape)
        scene = make_scene(image.astype(np.float32), None, objects, size, pixels, random)
        if scene is not None:
            made += 1
            yield scene


def draw_shape(shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """An ellipse, a blob or a ring somewhere in a slice, bool [H, W], 3 to 35 % of its shorter side in radius."""
    radius = min(shape) * float(np.exp(random.uniform(np.log(0.04), np.log(0.35))))
    radius = max(radius, 2.2)
    stretch = np.exp(random.uniform(-0.5, 0.5)) if random.random() < 0.7 else 1.0
    angle = random.uniform(0, np.pi)
    centre = [random.uniform(0.15, 0.85) * n for n in shape]
    rows, columns = np.meshgrid(np.arange(shape[0]) - centre[0], np.arange(shape[1]) - centre[1], indexing="ij")
    along = (np.cos(angle) * rows + np.sin(angle) * columns) * stretch
    across = (np.cos(angle) * columns - np.sin(angle) * rows) / stretch
    distance, direction = np.hypot(along, across), np.arctan2(across, along)
    edge = np.full(shape, radius)
    if random.random() < 0.5:
        for wave in range(2, 7):
            edge = edge + radius * random.normal(0, 0.35 / wave) * np.cos(wave * direction + random.uniform(0, 6.3))
    mask = distance <= edge
    if random.random() < 0.2:
        mask &= distance > edge * random.uniform(0.3, 0.7)
    return mask


def _windows(volumes: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    return {name: intensity_window(torch.from_numpy(volume)) for name, volume in volumes.items()}


def _lesion_plane(subject: Subject, random: np.random.Generator, *, core_only: bool) -> tuple[int, int]:
    """An axis and a position along it, always through the lesion, and through its core, if it has one, in more than
    half of the cases or always."""
    axis = int(random.integers(3))
    lesion = subject.labels > 0
    core = BRATS_2015.region(subject.labels, "TC")
    if core.any() and (core_only or random.random() < 0.6):
        lesion = core
    others = tuple(a for a in range(3) if a != axis)
    areas = lesion.sum(axis=others)
    return axis, int(random.choice(np.flatnonzero(areas >= min(SMALLEST_OBJECT, areas.max()))))


def _draw_turn(random: np.random.Generator):
    """A flip and a transposition of slices, drawn once and applied to image and labels alike."""
    flips = [slice(None, None, int(step)) for step in random.choice([-1, 1], 2)]
    transpose = random.random() < 0.5

    def turn(slice_: np.ndarray) -> np.ndarray:
        turned = slice_[flips[0], flips[1]]
        return np.ascontiguousarray(turned.T if transpose else turned)

    return turn


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    pieces, number = ndimage.label(mask)
    return pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:])) if number else mask


def _uneven(shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Smooth noise of unit variance, correlated over 2 to 20 voxels."""
    noise = ndimage.gaussian_filter(random.standard_normal(shape), float(np.exp(random.uniform(0.3, 2.3))))
    return noise / max(float(noise.std()), 1e-6)
