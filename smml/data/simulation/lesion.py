"""A glioma grown in one subject's head, and its compartments.

Growth is the Fisher-Kolmogorov equation du/dt = div(D grad u) + rho u (1 - u) for the tumour cell density u in [0, 1]
(Swanson et al., 2000; Harpold et al., 2007), with D about ten times larger in white than in grey matter, zero in CSF,
and larger along tracts than across them. Oedema is a level set of u that keeps to white matter. The core lies where u
is high and on one side of the oedema; necrosis or a cyst lies in it, the enhancing rim around that.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from smml.data.simulation.draws import Draws
from smml.data.simulation.head import Head
from smml.data.simulation.lattice import Window, blur, noise, resample

GROWTH_SPACING = 3.0
# Tumour cell density above which the tumour counts as visible.
_VISIBLE = 0.2

# How often each kind of subject is drawn. More healthy and low-grade ones than in BraTS: what is trained on them must
# learn where nothing enhances.
KINDS = {"ring": 0.35, "solid": 0.15, "low-grade": 0.30, "healthy": 0.20}


@dataclass(frozen=True)
class Growth:
    """A grown tumour on the growth grid.

    Attributes:
        density: u, float32 [X, Y, Z] in [0, 1].
        seeds: where its foci began, mm, [n, 3].
    """

    density: torch.Tensor
    seeds: torch.Tensor


@dataclass(frozen=True)
class Lesion:
    """Compartments of one subject's tumour.

    Attributes:
        window: the box that holds it.
        labels: uint8 [X, Y, Z] on it, the five classes of BraTS 2015 (0 none, 1 NCR, 2 ED, 3 NET, 4 ET).
        density: u, float32 [X, Y, Z] on it.
        depth: mm under the core's surface, float32 [X, Y, Z], 0 outside the core.
    """

    window: Window
    labels: torch.Tensor
    density: torch.Tensor
    depth: torch.Tensor


def draw_kind(draws: Draws) -> str:
    """Draw the kind of a subject with the frequencies of ``KINDS``; ``draws`` is the stream "kind"."""
    return draws.choice(KINDS)


def grow(head: Head, kind: str, window: Window, draws: Draws) -> Growth:
    """Grow one tumour until its visible part has a random volume, 1 to 280 ml.

    Args:
        head: on the growth grid.
        kind: a key of ``KINDS`` other than "healthy".
        window: the growth grid.
        draws: the stream "growth".
    """
    median, spread, least = (38.0, 0.95, 1.5) if kind == "low-grade" else (78.0, 0.75, 2.0)
    volume = float(np.clip(median * math.exp(spread * draws.normal()), least, 280.0))
    if draws.chance(0.06):
        volume = draws.log_between(1.0, 6.0)
    target = volume * 1000.0 / window.spacing**3

    white, grey, brain = (part.cpu().numpy() for part in (head.white, head.grey, head.brain))
    depth, ventricle = head.maps["depth"].cpu().numpy(), head.maps["ventricle"].cpu().numpy()
    points = head.points.cpu().numpy()
    cerebrum = (brain > 0) & ((points[2] > -18) | (points[1] > -32))
    if draws.chance(0.05):  # now and then below the tentorium
        cerebrum = (brain > 0) & ~cerebrum
    site = draws.choice({"anywhere": 0.5, "gyrus": 0.25, "deep": 0.15, "callosum": 0.10})
    near = {
        "anywhere": (white > 0.5) & (depth > 7),
        "gyrus": (white + grey > 0.7) & (depth > 3) & (depth < 11),
        "deep": (white + grey > 0.7) & (ventricle < 12) & (ventricle > 1),
        "callosum": (white > 0.5) & (np.abs(points[0]) < 12) & (ventricle < 12) & (points[2] > 2),
    }[site]
    places = np.argwhere(near & cerebrum)
    if not len(places):
        places = np.argwhere((white > 0.5) & (depth > 7))
    foci = 1 + int(draws.chance(0.20)) + int(draws.chance(0.06))
    density = np.zeros_like(white)
    seeds: list[np.ndarray] = []
    for number in range(foci):
        pool = places
        if number:
            everywhere = np.argwhere((white > 0.4) & (brain > 0) & (depth > 4))
            distance = np.linalg.norm(everywhere - seeds[0], axis=1) * window.spacing
            pool = everywhere[(distance > 20) & (distance < draws.between(45, 90))]
            if not len(pool):
                continue
        seed = pool[min(len(pool) - 1, int(draws.between(0, 1) * len(pool)))]
        seeds.append(seed)
        around = tuple(slice(max(0, v - 1), v + 2) for v in seed) if volume > 8 and not number else tuple(seed)
        density[around] = 0.9 if not number else draws.between(0.3, 0.9)

    density = _spread(density, head, window, draws, target)
    origin = torch.tensor([float(axis[0]) for axis in window.axes()])
    return Growth(
        density=torch.from_numpy(density).to(head.white.device),
        seeds=origin + window.spacing * torch.from_numpy(np.stack(seeds)).float(),
    )


def _spread(density: np.ndarray, head: Head, window: Window, draws: Draws, target: float) -> np.ndarray:
    """Steps of reaction and diffusion until ``target`` voxels are visible, in a box that grows with the front."""
    white, grey = head.white.cpu().numpy(), head.grey.cpu().numpy()
    passable = (head.csf.cpu().numpy() < 0.6) & (head.brain.cpu().numpy() > 0)
    # Dimensionless steps (D dt / h^2); the sum over the six faces must stay below 1. rho dt sets how sharp the front
    # is, from invasive to compact.
    diffusion = (0.11 * white + draws.between(0.004, 0.02) * grey) * passable
    rate = draws.between(0.045, 0.14) * (white + 0.6 * grey) * passable
    # Along tracts: in each axis its own share, and from side to side in the corpus callosum.
    share = np.exp(0.35 * noise(window, 45.0, draws.generator, 3).cpu().numpy())
    share = 3 * share / share.sum(axis=0)
    points = head.points.cpu().numpy()
    bridge = (np.abs(points[0]) < 22) & (head.maps["ventricle"].cpu().numpy() < 12) & (points[2] > 0)
    share[0] = np.where(bridge, 2.0, share[0])
    faces = [_face_mean(diffusion * np.minimum(share[axis], 1.5), axis) for axis in range(3)]

    low = np.argwhere(density > 0).min(axis=0)
    high = np.argwhere(density > 0).max(axis=0) + 1
    for step in range(600):
        if step % 6 == 0:
            low, high = np.maximum(low - 1, 0), np.minimum(high + 1, density.shape)
            edge = density[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] > 1e-3
            hit = [np.flatnonzero(edge.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
            high = np.minimum(low + [h[-1] + 8 for h in hit], density.shape)
            low = np.maximum(low + [h[0] - 7 for h in hit], 0)
            box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            part, speed = density[box], rate[box]
            local = [
                face[tuple(slice(s.start, s.stop - (a == axis)) for a, s in enumerate(box))]
                for axis, face in enumerate(faces)
            ]
        change = speed * part * (1 - part)
        for axis, face in enumerate(local):
            flux = face * np.diff(part, axis=axis)
            change[_but(axis, slice(None, -1))] += flux
            change[_but(axis, slice(1, None))] -= flux
        part += change
        np.clip(part, 0, 1, out=part)
        if np.count_nonzero(part > _VISIBLE) >= target:
            break
    return density


def _but(axis: int, which: slice) -> tuple[slice, ...]:
    return tuple(which if a == axis else slice(None) for a in range(3))


def _face_mean(diffusion: np.ndarray, axis: int) -> np.ndarray:
    """Diffusivity on the faces between voxels: the harmonic mean, so that nothing crosses into a voxel with D = 0."""
    left, right = diffusion[_but(axis, slice(None, -1))], diffusion[_but(axis, slice(1, None))]
    return 2 * left * right / np.maximum(left + right, 1e-12)


def mass_effect(growth: Growth, window: Window, strength: float) -> torch.Tensor:
    """Displacement of tissue pushed outwards by the core, mm, float32 [3, X, Y, Z] on the growth grid.

    The pressure is the blurred core; tissue moves down its gradient, at most ``strength`` mm.
    """
    pressure = blur((growth.density > 0.55).float()[None], 12.0 / window.spacing)[0]
    gradient = torch.stack(torch.gradient(pressure))
    return -strength * gradient / gradient.norm(dim=0).amax().clamp_min(1e-6)


def compartments(growth: Growth, head: Head, kind: str, outer: Window, growth_window: Window, draws: Draws) -> Lesion:
    """Label one tumour.

    Args:
        growth: what :func:`grow` returned.
        head: on ``outer``, mass effect included.
        kind: a key of ``KINDS`` other than "healthy".
        outer: the subject's window.
        growth_window: that of the growth grid.
        draws: the stream "compartments".
    """
    box = outer.around(resample(growth.density[None], growth_window, outer)[0] > 0.04, 4.0)
    index = box.inside(outer)
    density = resample(blur(growth.density[None], 0.6), growth_window, box)[0]
    brain, csf, white = head.brain[index] > 0, head.csf[index], head.white[index]
    random = draws.generator
    ragged, lumpy, patchy, gaps = noise(box, 9.0, random, 4)
    fine, frayed = noise(box, 4.5, random, 2)
    broad = noise(box, 22.0, random)[0]

    # Oedema keeps to white matter and sends fingers into the gyri.
    finger = draws.between(0.05, 0.75)
    smoothness = draws.between(0.6, 1.6), draws.between(0.8, 3.0)  # of the outlines, mm
    tissue = brain & (csf < 0.6)
    edge = density + 0.06 * ragged + 0.03 * fine + finger * (white - 0.6).clamp(-0.6, 0.3)
    whole = (edge > _VISIBLE) & (density > 0.05) & tissue
    if not bool(whole.any()):
        whole = (density > 0.5 * density.max()) & brain
    core = torch.zeros_like(whole)
    places = torch.stack(torch.meshgrid(*box.axes(), indexing="ij"))
    nearest = torch.stack([(places - seed.view(3, 1, 1, 1).to(places)).square().sum(0) for seed in growth.seeds])
    focus = nearest.argmin(0)
    for number in range(len(growth.seeds)):
        share = draws.between(0.30, 1.0) if kind == "low-grade" else draws.between(0.08, 0.70)
        lean, gather = draws.between(0.0, 0.9), draws.between(0.2, 0.9)
        rough = draws.log_between(0.03, 0.15)
        towards = torch.nn.functional.normalize(torch.randn(3, generator=random), dim=0)
        bare = draws.chance(0.25) and number > 0  # a satellite of oedema only
        own = whole & (focus == number)
        if not bool(own.any()) or bare:
            continue
        # Off the middle of the oedema, and one lump: nearer to its densest place counts more.
        middle = places[:, own].mean(dim=1)
        spread = float((places[:, own] - middle[:, None]).norm(dim=0).mean().clamp_min(1.0))
        side = ((places - middle.view(3, 1, 1, 1)) * towards.to(places).view(3, 1, 1, 1)).sum(0) / (2 * spread)
        packed = density + rough * (lumpy + 0.3 * fine + 0.6 * broad) + lean * side
        best = places.reshape(3, -1)[:, torch.where(own, packed, -9.0).argmax()]
        packed = packed - gather * (places - best.view(3, 1, 1, 1)).norm(dim=0) / (2 * spread)
        level = torch.quantile(packed[own], 1 - share)
        # The core swallows the sulci in it.
        core |= (packed > level) & (focus == number) & (density > 0.5 * _VISIBLE) & brain & (csf < 0.9)
    core = _round(core, smoothness[1], box) & brain
    whole = (_round(whole, smoothness[0], box) & brain & (csf < 0.8)) | core
    whole = _tidy(whole, box, 0.15) & brain
    core = _tidy(core & whole, box, 0.10) & brain
    whole = whole | core
    depth = _depth(core, box)

    labels = torch.zeros(box.shape, dtype=torch.uint8, device=density.device)
    labels[whole] = 2
    labels[core] = 3
    if kind == "low-grade":
        cystic, least = draws.chance(0.18), draws.between(0.3, 1.2)
        if cystic:
            labels[(depth > 2.5) & (broad + 0.5 * lumpy > least)] = 1
    elif kind == "solid":
        labels[core] = 4
        spots, least = draws.choice({"NET": 0.5, "NCR": 0.3, "none": 0.2}), draws.between(0.8, 1.9)
        if spots != "none":
            labels[core & (gaps + 0.4 * frayed > least)] = 3 if spots == "NET" else 1
    else:
        necrotic = draws.chance(0.85)
        thickness = draws.log_between(1.3, 6.0)
        patch, fray = draws.between(0.15, 0.7), 1.7 * draws.between(0.0, 1.0) ** 2
        broken = draws.between(-2.6, -0.5)
        form = draws.choice({"rim": 0.62, "several": 0.2, "crescent": 0.18})
        towards = torch.nn.functional.normalize(torch.randn(3, generator=random), dim=0)
        tongue = draws.between(1.5, 2.8)
        width = thickness * torch.exp(patch * patchy).clamp(0.2, 3.0)
        if form == "crescent" and bool(core.any()):  # a nodule in the wall, the rest is thin or does not enhance
            middle = places[:, core].mean(dim=1).view(3, 1, 1, 1)
            side = ((places - middle) * towards.to(places).view(3, 1, 1, 1)).sum(0)
            side = side / side[core].abs().mean().clamp_min(0.5)
            width = width * (0.25 + 1.6 * torch.sigmoid(2.5 * (side - 0.5)))
            broken = broken + 0.8
        rim = core & (depth + fray * frayed <= width)
        if form == "several":  # several necrotic lumps with tissue between them
            rim = core & (rim | (lumpy + 0.4 * frayed < draws.between(-0.9, 0.2)))
        rim = rim | (core & (frayed > tongue))
        labels[core] = 1 if necrotic else 3
        labels[rim] = 4
        labels[rim & (gaps + 0.3 * broad < broken)] = 3
    return Lesion(window=box, labels=labels, density=density, depth=depth)


def _depth(core: torch.Tensor, window: Window) -> torch.Tensor:
    """Distance in mm from each core voxel's centre to the core's surface, float32 [X, Y, Z], 0 outside."""
    mask = np.pad(core.cpu().numpy(), 1)
    inside = ndimage.distance_transform_edt(mask)[1:-1, 1:-1, 1:-1] * window.spacing - window.spacing / 2
    return torch.from_numpy(np.maximum(inside, 0).astype(np.float32)).to(core.device)


def _round(mask: torch.Tensor, width: float, window: Window) -> torch.Tensor:
    """The outline smoothed over ``width`` mm; what is too small for that stays as it is."""
    smooth = blur(mask.float()[None], width / window.spacing)[0] > 0.5
    return smooth if bool(smooth.any()) else mask


def _tidy(mask: torch.Tensor, window: Window, least: float) -> torch.Tensor:
    """Drop islands below ``least`` ml, which level sets of noise leave behind, and fill closed holes."""
    array = mask.cpu().numpy()
    islands, count = ndimage.label(array)
    if count > 1:
        sizes = np.bincount(islands.ravel())
        sizes[0] = 0
        keep = sizes * window.spacing**3 >= 1000 * least
        keep[np.argmax(sizes)] = True
        array = keep[islands]
    return torch.from_numpy(ndimage.binary_fill_holes(array)).to(mask.device)
