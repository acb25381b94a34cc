"""One subject's head: the atlas warped, folded and aged, and what lies in it besides grey and white matter.

The template is an average of 152 heads, so its cortex is blurred. Gyri are put back by sheets of CSF that go from the
surface inwards (the zero level of a noise that is constant along the way in), with grey matter on both sides. Age
widens sulci and ventricles.
"""

import math
from dataclasses import dataclass

import torch

from smml.data.simulation.atlas import COARSE, COARSE_MAPS, VARIANTS, load_atlas
from smml.data.simulation.draws import Draws
from smml.data.simulation.fields import CENTRE, Grid, sample
from smml.data.simulation.lattice import Window, along_axes, noise, resample

# Ellipsoid about the brain in which sheets of CSF point to the centre: centre and half-axes, mm.
_HUB, _RADII = (0.0, -18.0, 2.0), (68.0, 88.0, 66.0)
_FOLD_STEP = 3.0


@dataclass(frozen=True)
class Shape:
    """What is drawn once for a subject's head and then read at any grid.

    Attributes:
        points: template coordinates of the growth grid's voxels, mm, float32 [3, X, Y, Z].
        window: that grid.
        folds: noise in template space whose zero level is where sulci are, float32 [1, X, Y, Z] at 3 mm.
        age: 0 (young) to 1 (old).
        gap: half-width of sulci, in units of the folds' noise.
        thin: how far grey matter has given way to CSF.
        fold: how strongly gyri are folded.
    """

    points: torch.Tensor
    window: Window
    folds: torch.Tensor
    folds_origin: tuple[float, float, float]
    age: float
    gap: float
    thin: float
    fold: float


@dataclass(frozen=True)
class Head:
    """A subject's head on a window.

    Attributes:
        points: template coordinates, mm, float32 [3, X, Y, Z].
        grey, white, csf: fractions, float32 [X, Y, Z]; they add up to ``brain``.
        brain: 1 or 0.
        maps: the atlas's smooth maps by name (``COARSE_MAPS``) and "surface vein", float32 [X, Y, Z].
    """

    points: torch.Tensor
    grey: torch.Tensor
    white: torch.Tensor
    csf: torch.Tensor
    brain: torch.Tensor
    maps: dict[str, torch.Tensor]


def draw_shape(draws: Draws, window: Window) -> Shape:
    """Draw a subject's head: size, turn, lobes, ventricles, folds and age.

    Args:
        draws: the stream "shape".
        window: the growth grid.
    """
    age = draws.between(0, 1)
    flip = -1.0 if draws.chance(0.5) else 1.0
    size = draws.normal(0.035, 0.925)
    scale = [size * draws.normal(0.02, 1.0) for _ in range(3)]
    angles = [math.radians(draws.normal(4.0)) for _ in range(3)]
    shift = torch.tensor([draws.normal(2.0) for _ in range(3)])
    linear = torch.diag(torch.tensor([flip / scale[0], 1 / scale[1], 1 / scale[2]]))
    for axis, angle in enumerate(angles):
        turn = torch.eye(3)
        i, j = [a for a in range(3) if a != axis]
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        linear = linear @ turn
    centre = torch.tensor(CENTRE).view(3, 1, 1, 1)
    points = torch.stack(torch.meshgrid(*window.axes(), indexing="ij")).cpu() - centre - shift.view(3, 1, 1, 1)
    points = torch.einsum("ij,jxyz->ixyz", linear, points) + centre
    cpu = Window(Grid(window.spacing, torch.device("cpu")), window.first, window.shape)
    # Lobes, then the course of gyri and ventricles.
    points = points + draws.between(1.5, 3.2) * noise(cpu, 70.0, draws.generator, 3)
    points = points + draws.between(1.0, 2.2) * noise(cpu, 26.0, draws.generator, 3)

    # Ventricles from slits to wide: their wall moves along its normal, what lies further out moves less.
    atlas = load_atlas()
    widen = draws.between(-1.6, 1.2) + 4.0 * age**2 * draws.between(0.0, 1.0)
    reach = draws.between(10.0, 18.0)
    wall = sample(atlas.smooth[1:2], atlas.smooth_origin, COARSE, points, beyond="border")
    normal = torch.stack(torch.gradient(wall[0])) / window.spacing
    normal = torch.einsum("ij,jxyz->ixyz", linear, normal)
    normal = normal / normal.norm(dim=0).clamp_min(0.3)
    uneven = (1 + 0.35 * noise(cpu, 40.0, draws.generator)[0]).clamp(0.2, 1.8)
    points = points - widen * uneven * torch.exp(-((wall[0].abs() / reach) ** 2)) * normal

    step = 0.6 * draws.between(11.0, 15.0)
    folds, origin = _draw_folds(draws, step)
    return Shape(
        points=points.to(window.grid.device),
        window=window,
        folds=folds,
        folds_origin=origin,
        age=age,
        gap=draws.between(0.07, 0.14) + 0.20 * age * draws.between(0.3, 1.0),
        thin=draws.between(-0.05, 0.05) + 0.10 * age * draws.between(0.3, 1.0),
        fold=draws.between(0.35, 0.55),
    )


def _draw_folds(draws: Draws, step: float) -> tuple[torch.Tensor, tuple[float, float, float]]:
    """The folds' noise in template space, cubic between control points ``step`` mm apart, read every 3 mm."""
    low, high = -110.0, 100.0
    places = torch.arange(low, high, _FOLD_STEP)
    count = math.ceil((high - low) / step) + 4
    nodes = low - 1.5 * step + step * torch.arange(count, dtype=torch.float32)
    distance = ((places[:, None] - nodes) / step).abs()
    weights = torch.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, (2 - distance).clamp_min(0) ** 3 / 6)
    control = torch.randn(1, count, count, count, generator=draws.generator) / 0.479**1.5
    return along_axes(control, [weights] * 3), (low, low, low)


def look_at(shape: Shape, window: Window, push: torch.Tensor | None = None, variant: int = 0) -> Head:
    """The head on a window.

    Args:
        shape: the subject's shape.
        window: where to read it.
        push: how far a tumour pushed the tissue, mm, float32 [3, X, Y, Z] on the shape's window: what is now at x was
            at x - push(x).
        variant: which of the atlas's surface veins.
    """
    atlas = load_atlas()
    points = shape.points if push is None else _displaced(shape, push)
    points = resample(points, shape.window, window)
    device = points.device
    grey, white, mask = sample(atlas.tissue.to(device), atlas.tissue_origin, 1.0, points)
    names = [*COARSE_MAPS, "surface vein"]
    chosen = [*range(len(COARSE_MAPS)), len(COARSE_MAPS) + variant % VARIANTS]
    smooth = atlas.smooth[chosen].to(device)
    values = sample(smooth, atlas.smooth_origin, COARSE, points, beyond="border")
    maps = dict(zip(names, values, strict=True))
    # Beyond the atlas distances go on growing from its border.
    away = _beyond(points, smooth.shape[1:], atlas.smooth_origin)
    maps["depth"] = maps["depth"] - away
    for name in ("ventricle", "artery", "vein", "sinus", "surface vein"):
        maps[name] = maps[name] + away
    brain = (mask > 0.5).float()
    depth = maps["depth"]

    hub = torch.tensor(_HUB, device=device).view(3, 1, 1, 1)
    radii = torch.tensor(_RADII, device=device).view(3, 1, 1, 1)
    way = points - hub
    radius = (way / radii).square().sum(0).sqrt().clamp_min(0.3)
    fold = sample(shape.folds.to(device), shape.folds_origin, _FOLD_STEP, hub + way * radius**-0.7)[0]
    x, y, z = points
    cerebellum = torch.sigmoid((-34 - y) / 3) * torch.sigmoid((-12 - 0.25 * (y + 60) - z) / 3)
    stem = torch.sigmoid((-12 - z) / 3) * torch.sigmoid((22 - x.abs()) / 3)
    nucleus = maps["deep"]
    # The cortex between the hemispheres is as folded as the outer one.
    below = torch.minimum(depth, x.abs() + 12 * torch.sigmoid((6 - z + 0.2 * y.abs()) / 4))
    band = torch.sigmoid((20 - below) / 3) * (1 - torch.maximum(cerebellum, stem)) * (1 - nucleus)
    band = band * torch.sigmoid((radius - 0.45) / 0.04)
    # A thin sheet in a thick voxel keeps its volume and loses its depth.
    gap = shape.gap + 0.02
    wide = math.sqrt(gap**2 + (0.032 * window.spacing) ** 2)
    sheet = torch.exp(-0.5 * (fold / wide) ** 2) * (gap / wide)
    ridge = fold.abs().clamp(max=1.1)
    csf = (1 - grey - white).clamp(0, 1)
    scores = torch.stack(
        [
            grey + 0.10 * nucleus - 0.5 * shape.thin,
            white + shape.fold * band * (ridge - 0.60),
            csf + 0.95 * band * sheet + shape.thin,
        ]
    )
    sharp = 7.0 + 5.0 * band
    parts = torch.softmax(sharp * scores, dim=0) * brain
    return Head(points=points, grey=parts[0], white=parts[1], csf=parts[2], brain=brain, maps=maps)


def _displaced(shape: Shape, push: torch.Tensor) -> torch.Tensor:
    """Template coordinates of the growth grid's voxels after a push in the subject's mm, float32 [3, X, Y, Z].

    They are read at x - push(x), as a subject's millimetres are not the template's: a head may be mirrored in it.
    """
    window = shape.window
    axes = window.axes()
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")) - push
    first = tuple(float(axis[0]) for axis in axes)
    return sample(shape.points, first, window.spacing, places, beyond="border")


def _beyond(points: torch.Tensor, shape: torch.Size, origin: tuple[float, ...]) -> torch.Tensor:
    """How far points lie outside the atlas's coarse maps, mm, float32 [X, Y, Z]."""
    over = [p - p.clamp(o, o + COARSE * (n - 1)) for p, o, n in zip(points, origin, shape, strict=True)]
    return torch.stack(over).norm(dim=0)
