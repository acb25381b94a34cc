"""From fractions and levels to four images: texture, slices, coil profile, noise, stripping and field of view.

A ``Look`` says how far each of these goes. ``TYPICAL`` is what protocols and processing leave as a rule; ``VARIED`` is
for training and goes further in every direction. Labels do not depend on the look: whatever is cut off, is cut off
beside the lesion.
"""

import math
from dataclasses import dataclass, replace

import torch

from smml.data.simulation.contrast import Contrast, draw_contrasts
from smml.data.simulation.draws import Draws
from smml.data.simulation.head import Head
from smml.data.simulation.lattice import Window, along_axes, blur_matrix, noise, slice_matrix
from smml.data.simulation.lesion import Lesion
from smml.errors import InputError
from smml.modalities import MODALITIES

Range = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """How images differ from one another. Ranges are (low, high) of a uniform draw.

    Attributes:
        version: changes whenever the same seed gives other bytes.
        freedom: of the contrasts, see :func:`smml.data.simulation.contrast.draw_contrasts`.
        texture: amplitude of fine texture in levels.
        uneven: the same within the tumour.
        gamma: standard deviation of the log of the exponent on brightness.
        bias: standard deviation of the log bias field.
        centre: standard deviation of the coil profile's log: how much brighter or darker the middle is.
        thick: share of sequences with thick slices.
        thickness: of these slices, mm.
        any_axis: share of them that are not axial.
        blur: standard deviation of the point spread within slices, mm.
        noise: its standard deviation at voxels of 1 mm, in levels, drawn in the logarithm.
        odd: share of sequences with an artefact: a few extreme voxels, stripes, ringing.
        strip: standard deviation in mm of how far the stripping is off.
        remains: share of heads where stripping leaves parts below and beside the brain.
        cut: share of heads whose field of view ends early.
        deep_white: how much brighter than the rest the white matter far below the surface is, in levels of FLAIR; where
            a draw is below 0 it is no brighter.
        plain: share of heads that are otherwise imaged as with ``TYPICAL``: without them a network meets hardly any
            sharp head, which is what scanners aim at.
    """

    version: int
    freedom: float
    texture: Range
    uneven: Range
    gamma: float
    bias: Range
    centre: float
    thick: float
    thickness: Range
    any_axis: float
    blur: Range
    noise: Range
    odd: float
    strip: float
    remains: float
    cut: float
    deep_white: Range = (0.0, 0.0)
    plain: float = 0.0


TYPICAL = Look(
    version=2,
    freedom=0.0,
    texture=(0.05, 0.14),
    uneven=(0.35, 0.75),
    gamma=0.05,
    bias=(0.02, 0.08),
    centre=0.12,
    thick=0.5,
    thickness=(2.5, 5.5),
    any_axis=0.15,
    blur=(0.3, 0.7),
    noise=(0.04, 0.15),
    odd=0.02,
    strip=0.6,
    remains=0.25,
    cut=0.08,
)
VARIED = Look(
    version=5,
    freedom=1.0,
    texture=(0.0, 0.3),
    uneven=(0.1, 0.9),
    gamma=0.25,
    bias=(0.0, 0.16),
    centre=0.16,
    thick=0.55,
    thickness=(2.0, 7.0),
    any_axis=0.4,
    blur=(0.2, 1.5),
    noise=(0.02, 0.35),
    odd=0.15,
    strip=1.4,
    remains=0.5,
    cut=0.2,
    deep_white=(-0.8, 1.2),
    plain=0.4,
)
LOOKS = {"typical": TYPICAL, "varied": VARIED}


def find_look(name: str) -> Look:
    """The look of that name.

    Raises:
        InputError: there is none.
    """
    if name not in LOOKS:
        raise InputError(f"unknown look {name!r}: choose from {', '.join(LOOKS)}")
    return LOOKS[name]


def image(
    parts: dict[str, torch.Tensor], head: Head, lesion: Lesion | None, window: Window, look: Look, seed: int, index: int
) -> dict[str, torch.Tensor]:
    """Image one subject with all four sequences.

    Args:
        parts: fractions of :func:`smml.data.simulation.structures.fill`.
        head: on ``window``, mass effect included.
        lesion: the tumour's compartments, or None.
        window: the subject's window.
        look: how far the images may differ.
        seed: the cohort's seed.
        index: the subject's number.

    Returns:
        By modality, float32 [X, Y, Z] on the window, whole numbers, 0 where stripping or the field of view left
        nothing, at least 1 elsewhere; zeros are at the same places in all of them.
    """
    if Draws(seed, index, "look").chance(look.plain):
        look = replace(TYPICAL, deep_white=look.deep_white)
    contrasts = draw_contrasts(Draws(seed, index, "contrast"), freedom=look.freedom)
    draws, grain = Draws(seed, index, "image"), Draws(seed, index, "grain")
    keep = torch.zeros_like(head.brain, dtype=torch.bool)
    if lesion is not None:
        keep[lesion.window.inside(window)] = lesion.labels > 0
    seen = _seen(head, keep, window, look, draws)
    scene = _Scene(
        parts=parts,
        window=window,
        lesion=None if lesion is None else lesion.window,
        texture=noise(window, 6.0, draws.generator)[0],
        course=(1 + 0.35 * noise(window, 12.0, draws.generator)[0]).clamp(0.2, 2.0),
        uneven=None if lesion is None else _mixed_noise(lesion.window, {12.0: 0.55, 4.5: 0.4}, draws),
    )
    middle = _middle(head, draws)
    centre = draws.normal(look.centre)
    slices = _draw_slices(look, draws)
    deep_white = _deep_white(parts, head, window, look, Draws(seed, index, "deep white"))
    images = {}
    for name in MODALITIES:
        # Sequences of one examination share much of their profile and often their slices.
        reach = 0.35 if name == "flair" else 1.0
        profile = torch.exp(reach * (0.7 * centre + draws.normal(0.8 * look.centre)) * middle)
        if draws.chance(0.6):
            slices = _draw_slices(look, draws)
        contrast = contrasts[name]
        signal = _signal(name, scene, contrast, look, draws) + deep_white.get(name, 0.0)
        signal = along_axes(signal[None], _point_spread(window, draws.between(*look.blur), slices))[0]
        brightness = (contrast.mean + contrast.deviation * signal).clamp_min(0.02 * contrast.mean) / contrast.mean
        gamma = math.exp(draws.normal(look.gamma))
        bias = draws.between(*look.bias) * _mixed_noise(window, {110.0: 0.8, 60.0: 0.4}, draws)
        brightness = brightness**gamma * torch.exp(bias) * profile
        unit = gamma * contrast.deviation / contrast.mean
        brightness = _add_noise(brightness, unit, window, slices, look, draws, grain)
        if draws.chance(look.odd):
            brightness = _spoil(brightness, window, draws)
        brightness = draws.log_between(250, 2500) * brightness
        images[name] = torch.where(seen, brightness.round().clamp(1, 32000), 0.0)
    return images


@dataclass(frozen=True)
class _Scene:
    """What all sequences of a subject look at: fractions, and how uneven texture, vessels and tumour are."""

    parts: dict[str, torch.Tensor]
    window: Window
    lesion: Window | None
    texture: torch.Tensor
    course: torch.Tensor
    uneven: torch.Tensor | None


# Uneven along their course, and not part of the brain's texture.
_COVERINGS = {"artery", "vein", "vessel", "sinus", "dura", "plexus", "outside"}


def _mixed_noise(window: Window, shares: dict[float, float], draws: Draws) -> torch.Tensor:
    """A sum of noises, share by correlation length in mm, float32 [X, Y, Z]."""
    noises = (share * noise(window, length, draws.generator)[0] for length, share in shares.items())
    return sum(noises, torch.zeros(()))


def _signal(name: str, scene: _Scene, contrast: Contrast, look: Look, draws: Draws) -> torch.Tensor:
    """One sequence in levels, before it is measured, float32 [X, Y, Z]."""
    level, parts, window = contrast.level, scene.parts, scene.window
    signal = draws.between(*look.texture) * 0.7 * (scene.texture + noise(window, 3.5, draws.generator)[0])
    for tissue, part in parts.items():
        signal += part * level[tissue] * (scene.course if tissue in _COVERINGS else 1.0)
    if name == "flair":
        # Water moves in the ventricles: FLAIR does not null it everywhere.
        signal += draws.between(0.0, 0.5) * parts["csf"] * noise(window, 22.0, draws.generator)[0]
    if scene.lesion is None or scene.uneven is None:
        return signal
    box = scene.lesion.inside(window)
    field = scene.uneven + _mixed_noise(scene.lesion, {9.0: 0.6, 4.0: 0.35}, draws)
    for tissue in ("NCR", "NET", "ET", "ED"):
        values = draws.between(*look.uneven) * (0.7 if tissue == "ED" else 1.0) * field
        if tissue == "ET" and name == "t1ce":
            # Patchy, but it enhances: nowhere darker than what it grew in.
            lift = max(0.5, level["ET"] - max(level["grey"], level["white"]))
            values = (draws.between(0.5, 1.3) * field).clamp(min=-0.8 * lift)
        if tissue in parts:
            signal[box] += parts[tissue][box] * values
    return signal


def _deep_white(
    parts: dict[str, torch.Tensor], head: Head, window: Window, look: Look, draws: Draws
) -> dict[str, torch.Tensor]:
    """What white matter far below the surface adds to levels, by modality; nothing in many heads.

    Its water relaxes more slowly than that of the white matter below the cortex: in some heads the centrum semiovale
    and the corona radiata are bands on FLAIR as bright as grey matter, alike on both sides, which are no oedema. What
    seeps into it is as much brighter.
    """
    amount = draws.between(*look.deep_white)
    if amount <= 0:
        return {}
    begin, width = draws.between(8.0, 20.0), draws.between(6.0, 16.0)
    inner = ((head.maps["depth"] - begin) / width).clamp(0, 1)
    uneven = (1 + 0.35 * noise(window, 25.0, draws.generator)[0]).clamp(0.2, 2.0)
    field = amount * inner * inner * (3 - 2 * inner) * uneven * (parts["white"] + parts["ED"])
    darker = -draws.between(0.0, 0.3)
    return {"flair": field, "t2": draws.between(0.2, 0.8) * field, "t1": darker * field, "t1ce": darker * field}


def _draw_slices(look: Look, draws: Draws) -> tuple[int, float, float] | None:
    """Axis, thickness in mm and offset of thick slices, or None."""
    thick, other = draws.chance(look.thick), draws.chance(look.any_axis)
    axis = int(draws.chance(0.5)) if other else 2
    thickness, offset = draws.between(*look.thickness), draws.between(0, 1)
    return (axis, thickness, offset) if thick else None


def _point_spread(window: Window, spread: float, slices: tuple[int, float, float] | None) -> list[torch.Tensor | None]:
    matrices = [blur_matrix(n, spread / window.spacing) for n in window.shape]
    if slices is not None:
        axis, thickness, offset = slices
        matrix = slice_matrix(window.axes()[axis].cpu(), thickness, offset)
        if matrix is not None:
            matrices[axis] = matrix
    return matrices


def _add_noise(
    brightness: torch.Tensor,
    unit: float,
    window: Window,
    slices: tuple[int, float, float] | None,
    look: Look,
    draws: Draws,
    grain: Draws,
) -> torch.Tensor:
    """Rician noise, white or as resampling leaves it, and not everywhere alike.

    ``grain`` gives a number a voxel: a stream of its own, so that nothing else depends on the spacing.
    """
    size = draws.log_between(*look.noise) * unit
    # Larger voxels average; less than independent voxels would, because measured ones were not independent.
    size = size * (1.0 / window.spacing) ** 0.5
    # A magnitude has two channels, each with noise of its own; the signal is in the first.
    channels = torch.randn((2, *window.shape), generator=grain.generator).to(brightness.device)
    correlated, width = draws.chance(0.6), draws.between(0.3, 0.9)
    if correlated:
        matrices = [blur_matrix(n, width / window.spacing) for n in window.shape]
        if slices is not None:
            matrices[slices[0]] = _point_spread(window, width, slices)[slices[0]]
        for axis, matrix in enumerate(matrices):
            if matrix is not None:
                only: list[torch.Tensor | None] = [None, None, None]
                only[axis] = matrix
                channels = along_axes(channels, only) / matrix.square().sum(1).mean().sqrt()
    uneven = draws.between(-0.2, 0.35)
    ramp = torch.exp(uneven * noise(window, 80.0, draws.generator)[0])
    real, imaginary = size * ramp * channels
    return ((brightness + real) ** 2 + imaginary**2).sqrt()


def _spoil(brightness: torch.Tensor, window: Window, draws: Draws) -> torch.Tensor:
    """An artefact: a few extreme voxels, dark or bright stripes of slices, or ringing."""
    kind = draws.choice({"voxels": 0.4, "stripes": 0.3, "ringing": 0.3})
    axis, strength = int(draws.between(0, 3)), draws.between(0.03, 0.12)
    shape = [-1 if a == axis else 1 for a in range(3)]
    if kind == "voxels":
        count = 1 + int(draws.between(0, 12))
        places = torch.randint(0, brightness.numel(), (count,), generator=draws.generator)
        brightness = brightness.clone()
        brightness.view(-1)[places.to(brightness.device)] = draws.log_between(4, 12)
        return brightness
    places = window.axes()[axis]
    period, phase = draws.between(4.0, 14.0), draws.between(0, 6.3)
    wave = torch.cos(2 * math.pi * places / period + phase)
    if kind == "stripes":
        wave = wave.sign()
    return brightness * (1 + strength * wave.view(shape))


def _middle(head: Head, draws: Draws) -> torch.Tensor:
    """The coil's and the radio frequency's profile: 1 in the middle of the head, below 0 at its surface."""
    x, y, z = head.points
    place = (draws.normal(8), -18 + draws.normal(10), 8 + draws.normal(10))
    width = [draws.between(34, 60), draws.between(42, 75), draws.between(34, 60)]
    away = sum(((axis - p) / w) ** 2 for axis, p, w in zip((x, y, z), place, width, strict=True))
    shape = torch.exp(-away / 2)
    tilt = sum(draws.normal(0.2) * (axis - p) / 70 for axis, p in zip((x, y, z), place, strict=True))
    return 1.6 * (shape - 0.45) + tilt


def _seen(head: Head, keep: torch.Tensor, window: Window, look: Look, draws: Draws) -> torch.Tensor:
    """Where there is an image, bool [X, Y, Z]: stripped too much or too little, cut or not, never the lesion."""
    depth = head.maps["depth"]
    x, y, z = head.points
    ragged = noise(window, 20.0, draws.generator)[0] + 0.5 * noise(window, 7.0, draws.generator)[0]
    off, rough = draws.normal(look.strip, 0.1 * look.strip), draws.between(0.3, 0.9) * look.strip
    edge = torch.where(head.brain > 0, depth, depth.clamp(max=-0.5))
    seen = edge > off + rough * ragged
    left, size = draws.chance(look.remains), draws.between(0.3, 0.75)
    if left:
        below = torch.exp(-0.5 * ((x / 24) ** 2 + ((y + 3) / 22) ** 2 + ((z + 28) / 12) ** 2)) + 0.12 * ragged
        seen |= (below > size) & (depth > -12)
    seen |= (head.brain > 0) & (depth > 6)
    seen |= keep
    ends, count = draws.chance(look.cut), 1 + int(draws.chance(0.35))
    for _ in range(count):
        axis, share, first = int(draws.between(0, 3)), draws.between(4, 36), draws.chance(0.5)
        if not ends:
            continue
        places = window.axes()[axis]
        others = [a for a in range(3) if a != axis]
        filled = torch.nonzero(seen.any(dim=others[1]).any(dim=others[0])).flatten()
        needed = torch.nonzero(keep.any(dim=others[1]).any(dim=others[0])).flatten()
        if first:
            limit = float(places[filled[0]]) + share
            if len(needed):
                limit = min(limit, float(places[needed[0]]) - 0.1)
            good = places >= limit
        else:
            limit = float(places[filled[-1]]) - share
            if len(needed):
                limit = max(limit, float(places[needed[-1]]) + 0.1)
            good = places <= limit
        seen &= good.view([-1 if a == axis else 1 for a in range(3)])
    return seen
