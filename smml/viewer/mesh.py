"""The tumour and the brain in 3D, as plotly figures.

Surfaces come from *surface nets*: one vertex in every cell of eight voxels that the surface crosses, in the mean of its
crossings, and one quadrilateral round every crossed edge. Smooth, closed, and a few lines of numpy.
"""

import numpy as np
import plotly.graph_objects as go
from scipy import ndimage

from smml.data.case import Case
from smml.data.labels import REGIONS, LabelScheme
from smml.errors import InputError
from smml.figures.theme import REGION_COLOURS

# Triangles that stay fluent in a browser without a graphics card.
_MOST_VOXELS = 72**3
# What a labelled voxel counts at least, just above the level of the surface.
_INSIDE = 0.55


def surface(field: np.ndarray, level: float, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The closed surface where a field passes a level.

    Args:
        field: floating [X, Y, Z]; outside the array it counts as lower than the level.
        level: value on the surface.
        affine: float64 [4, 4], voxel index -> mm.

    Returns:
        Vertices, float64 [V, 3] in mm, and triangles, int64 [F, 3], turned outwards; both empty if nothing exceeds
        the level.
    """
    values = np.pad(np.asarray(field, np.float64), 1, constant_values=min(float(field.min()), level) - 1) - level
    inside = values > 0
    shape = tuple(n - 1 for n in values.shape)
    total, count = np.zeros((*shape, 3)), np.zeros(shape)
    corners = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(-1, 3)
    for axis in range(3):
        for corner in corners[corners[:, axis] == 0]:
            other = corner.copy()
            other[axis] = 1
            a, b = (values[tuple(slice(c, c + n) for c, n in zip(k, shape, strict=True))] for k in (corner, other))
            crossed = np.nonzero((a > 0) != (b > 0))
            # Where along the edge the level lies; clamped, as the border's made-up values would pull it off.
            share = np.clip(a[crossed] / (a[crossed] - b[crossed]), 0.05, 0.95)
            place = np.broadcast_to(corner, (len(share), 3)).astype(float)
            place[:, axis] = share
            total[crossed] += place
            count[crossed] += 1
    cells = np.nonzero(count)
    number = np.full(shape, -1, np.int64)
    number[cells] = np.arange(len(cells[0]))
    # Minus 1 for the padding.
    vertices = np.stack(cells, -1) + total[cells] / count[cells][:, None] - 1
    faces = []
    for axis in range(3):
        low = [slice(0, -1) if a == axis else slice(None) for a in range(3)]
        high = [slice(1, None) if a == axis else slice(None) for a in range(3)]
        leaving = inside[tuple(low)] & ~inside[tuple(high)]
        entering = ~inside[tuple(low)] & inside[tuple(high)]
        u, v = ((axis + 1) % 3, (axis + 2) % 3)
        for passed, outwards in ((leaving, True), (entering, False)):
            edges = np.stack(np.nonzero(passed), -1)
            ring = []
            for du, dv in ((0, 0), (1, 0), (1, 1), (0, 1)):
                cell = edges.copy()
                cell[:, u] -= 1 - du
                cell[:, v] -= 1 - dv
                ring.append(number[tuple(cell.T)])
            ring = ring if outwards else ring[::-1]
            faces += [np.stack([ring[0], ring[1], ring[2]], -1), np.stack([ring[0], ring[2], ring[3]], -1)]
    triangles = np.concatenate(faces)
    if np.linalg.det(affine[:3, :3]) < 0:
        # A mirrored grid turns every triangle inside out.
        triangles = triangles[:, ::-1]
    return vertices @ affine[:3, :3].T + affine[:3, 3], triangles


def mesh_figure(
    case: Case,
    labels: np.ndarray | None = None,
    scheme: LabelScheme | None = None,
    *,
    regions: tuple[str, ...] = REGIONS,
    brain: bool = True,
    title: str = "",
) -> go.Figure:
    """Surfaces of the tumour's regions inside a transparent brain, in mm to the right, front and top.

    Args:
        case: its grid, and the voxels of its first modality for the brain.
        labels: uint8 [X, Y, Z], in-memory values; None takes the truth.
        scheme: names the label values; None takes the case's.
        regions: which of WT, TC, ET.
        brain: draw the brain too.
        title: of the figure.

    Raises:
        InputError: neither labels nor a truth, or labels of another shape than the case's.
    """
    labels = case.label if labels is None else labels
    if labels is None:
        raise InputError(f"case {case.id} has no truth; give labels to mesh_figure")
    if labels.shape != case.shape:
        raise InputError(f"labels must have the case's shape {case.shape}, found {labels.shape}")
    scheme = scheme or case.scheme
    figure = go.Figure()
    if brain:
        mask = next(iter(case.brains.values())).mask
        step = max(1, int(np.ceil((mask.size / _MOST_VOXELS) ** (1 / 3))))
        smooth = ndimage.gaussian_filter(mask.astype(np.float32), step)[::step, ::step, ::step]
        _add(figure, smooth, case.affine @ np.diag([step, step, step, 1.0]), "brain", "#9a9a9a", 0.12)
    opacities = {"WT": 0.3, "TC": 0.55, "ET": 1.0}
    for region in (name for name in REGIONS if name in regions):
        inside = scheme.region(labels, region)
        hit = np.nonzero(inside)
        if not len(hit[0]):
            continue
        first = np.array([max(0, axis.min() - 3) for axis in hit])
        box = tuple(slice(a, axis.max() + 4) for a, axis in zip(first, hit, strict=True))
        place = case.affine.copy()
        place[:3, 3] += case.affine[:3, :3] @ first
        smooth = ndimage.gaussian_filter(inside[box].astype(np.float32), 0.7)
        # Smoothing alone would put specks and threads below one half: what is labelled stays inside the surface.
        smooth = np.maximum(smooth, _INSIDE * inside[box])
        _add(figure, smooth, place, region, REGION_COLOURS[region], opacities[region])
    axes = {
        f"{name}axis": {"title": {"text": f"{text} (mm)"}, "backgroundcolor": "white", "gridcolor": "#dddddd"}
        for name, text in zip("xyz", ("left – right", "back – front", "bottom – top"), strict=True)
    }
    camera = {"eye": {"x": 0.9, "y": 1.5, "z": 0.6}}
    figure.update_layout(
        title=title,
        width=640,
        height=560,
        margin={"l": 0, "r": 0, "t": 40 if title else 0, "b": 0},
        scene={**axes, "aspectmode": "data", "camera": camera},
        showlegend=True,
    )
    return figure


def _add(
    figure: go.Figure,
    field: np.ndarray,
    affine: np.ndarray,
    name: str,
    colour: str,
    opacity: float,
) -> None:
    vertices, triangles = surface(field, 0.5, affine)
    if not len(triangles):
        return
    x, y, z = vertices.astype(np.float32).T
    i, j, k = triangles.astype(np.int32).T
    figure.add_trace(
        go.Mesh3d(
            x=x,
            y=y,
            z=z,
            i=i,
            j=j,
            k=k,
            name=name,
            color=colour,
            opacity=opacity,
            showlegend=True,
            hoverinfo="name",
            lighting={"ambient": 0.65, "diffuse": 0.6, "specular": 0.1},
        )
    )
