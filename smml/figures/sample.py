"""One training sample through every loss: what its terms are in one step, what they weigh, and what they add up to."""

import math
from collections.abc import Mapping

import torch

from smml.data.labels import LabelScheme
from smml.errors import InputError
from smml.figures.drawing import INK, PALE, Drawing, tint
from smml.figures.slices import axial_picture, widest_slice
from smml.figures.theme import BRANCH_COLOURS, PART_COLOURS
from smml.modalities import DISPLAY_NAMES, MODALITIES
from smml.training import TrainingConfig
from smml.training.objective import Objective, term_weights

_WIDTH = 900
_FIRST, _PITCH, _GAP = 96, 44, 14  # middle of the first row, from row to row, and between groups
_STUDENT, _ROW, _TOTAL = 206, 352, 784  # left edges of students, losses and total
_ROW_WIDTH = 206

# What the rows are called; "1" and "2" stand for the branch.
_ROWS = {
    "fuse": ("L_{{fuse,{b}}}", "fused head"),
    "separate": ("L_{{sep,{b}}}", "one modality each"),
    "deep": ("L_{{prm,{b}}}", "coarser levels"),
    "refine": ("S_{{{b}}}", "refined"),
    "refine_kl": ("KL_{{{b}}}", "refined teaches"),
    "teach_12": ("L_{{1→2}}", "1 teaches 2"),
    "teach_21": ("L_{{2→1}}", "2 teaches 1"),
    "relation": ("L_{{rel}}", "relations of tokens"),
    "classes": ("L_{{cls}}", "relations of classes"),
}
_BRANCH_ROWS = ("fuse", "separate", "deep", "refine", "refine_kl")
_COMMON_ROWS = ("teach_12", "teach_21", "relation", "classes")


def sample_figure(
    sample: Mapping[str, torch.Tensor], loss: Objective, config: TrainingConfig, step: int, scheme: LabelScheme
) -> Drawing:
    """One sample from its images to the total: each loss with its value, its weight and their product at its arrow.

    Args:
        sample: of a :class:`smml.data.dataset.CohortDataset`: ``image`` [M, P, P, P], ``label`` [P, P, P],
            ``masks`` [2, M] and ``available`` [M].
        loss: the objective of this sample alone, before the step.
        config: of the run; it gives the weights.
        step: 0, 1, ...; it gives the schedule.
        scheme: names the label's values.

    Raises:
        InputError: the products do not add up to the total, so the loss is not one of this configuration and step.
    """
    weights = term_weights(config, step)
    values = {name: float(value) for name, value in loss.terms.items()}
    products = {name: weights[name] * value for name, value in values.items()}
    total = float(loss.total.detach())
    added = math.fsum(products.values())
    if not math.isclose(added, total, rel_tol=1e-5, abs_tol=1e-5):
        raise InputError(
            f"the terms times their weights add up to {added:.6g}, and the total is {total:.6g}; "
            f"give the configuration and the step (found {step}) that the loss was computed with"
        )
    kinds = [kind for kind in _BRANCH_ROWS if config.refinement or not kind.startswith("refine")]
    groups = [[f"{kind}_1" for kind in kinds], list(_COMMON_ROWS), [f"{kind}_2" for kind in kinds]]
    places, y = {}, float(_FIRST)
    for group in groups:
        for name in group:
            places[name] = y
            y += _PITCH
        y += _GAP
    bottom = y - _GAP - _PITCH / 2
    drawing = Drawing(_WIDTH, round(bottom + 40), f"One training sample through every loss: the total is {total:.4f}")
    drawing.words(18, 30, "One training sample through every loss", size=18, anchor="start", bold=True)
    drawing.words(18, 50, f"step {step} of {config.steps}; value × weight = product",
                  anchor="start", colour="#555555")  # fmt: skip
    middles = [sum(places[name] for name in group) / len(group) for group in (groups[0], groups[2])]
    _pictures(drawing, sample, scheme, middles)
    for branch, middle in enumerate(middles):
        _student(
            drawing, branch, middle, [places[name] for name in groups[2 * branch]], [places[n] for n in _COMMON_ROWS]
        )
    for name, place in places.items():
        _row(drawing, name, place, values[name], weights[name], products[name])
    drawing.box(_TOTAL, _FIRST - 20, 100, bottom - _FIRST + 18, thickness=2.2, fill="#f5f5f5")
    for group in groups:
        part = math.fsum(products[name] for name in group)
        middle = (places[group[0]] + places[group[-1]]) / 2
        drawing.words(_TOTAL + 50, middle + 5, f"{part:.4f}", size=14)
    middle = _TOTAL + 50
    for above, below in ((groups[0][-1], groups[1][0]), (groups[1][-1], groups[2][0])):
        drawing.words(middle, (places[above] + places[below]) / 2 + 5, "+", size=16)
    drawing.words(_TOTAL + 100, bottom + 26, f"L = {total:.4f}", size=18, bold=True, anchor="end")
    return drawing


def _pictures(drawing: Drawing, sample: Mapping[str, torch.Tensor], scheme: LabelScheme, middles: list[float]) -> None:
    """The sequences that each branch is given, and the truth between them, in the slice with most of the tumour."""
    image, label = sample["image"].numpy(), sample["label"].numpy()
    z, side = widest_slice(label, scheme), 62
    # The pictures are higher than three rows of losses.
    places = (max(middles[0], _FIRST + 66), middles[1])
    for branch, (mask, student, middle) in enumerate(zip(sample["masks"], middles, places, strict=True)):
        drawing.words(88, middle - 88, f"mask {branch + 1}", bold=True, colour=BRANCH_COLOURS[branch])
        for number, (name, given) in enumerate(zip(MODALITIES, mask.tolist(), strict=True)):
            left, top = 22 + (side + 8) * (number % 2), middle - 80 + (side + 22) * (number // 2)
            if given:
                drawing.image(left, top, side, axial_picture(image[number], z))
            drawing.box(left, top, side, side, colour=BRANCH_COLOURS[branch] if given else PALE, dashed=not given,
                        fill="none", radius=2)  # fmt: skip
            drawing.words(left + side / 2, top + side + 14, DISPLAY_NAMES[name], size=12, colour=INK if given else PALE)
        drawing.arrow((160, student), (_STUDENT - 1, student), colour=BRANCH_COLOURS[branch])
    # Half-way between what stands under the first pictures and over the second.
    middle = sum(places) / 2 - 36
    shown = next(number for number, there in enumerate(sample["available"]) if there)
    drawing.image(57, middle - 31, side, axial_picture(image[shown], z, label, scheme, opacity=0.7))
    drawing.words(88, middle + 48, "truth", size=12, bold=True)
    drawing.words(88, middle + 64, "judges every head,", size=12, colour="#555555")
    drawing.words(88, middle + 80, "and who may teach", size=12, colour="#555555")


def _student(drawing: Drawing, branch: int, middle: float, own: list[float], common: list[float]) -> None:
    """A student, and the lines from it to the losses that look at what it says."""
    colour, right = BRANCH_COLOURS[branch], _STUDENT + 92
    drawing.box(_STUDENT, middle - 26, 92, 52, f"student {branch + 1}", "all its heads", colour=colour,
                fill=tint(colour, 0.1), size=12, thickness=2)  # fmt: skip
    bus, shift = right + 18 + 12 * branch, -7 if branch == 0 else 7
    ends = [*own, *(y + shift for y in common)]
    drawing.arrow((right + 1, middle), (bus, middle), colour=colour, heads="none")
    drawing.arrow((bus, min(ends)), (bus, max(ends)), colour=colour, heads="none")
    for y in ends:
        drawing.arrow((bus, y), (_ROW - 1, y), colour=colour)


def _row(drawing: Drawing, name: str, y: float, value: float, weight: float, product: float) -> None:
    kind, _, branch = name.rpartition("_") if name not in _ROWS else (name, "", "")
    symbol, words = _ROWS[kind]
    colour = _colour(name)
    off = weight == 0
    drawing.box(_ROW, y - 16, _ROW_WIDTH, 32, colour=PALE if off else colour, fill=tint(colour, 0.06), dashed=off)
    ink = PALE if off else INK
    drawing.words(_ROW + 12, y + 4, symbol.format(b=branch), anchor="start", bold=True, colour=ink)
    drawing.words(_ROW + 72, y + 4, words, anchor="start", size=12, colour=ink)
    start = _ROW + _ROW_WIDTH + 1
    drawing.arrow((start, y), (_TOTAL - 1, y), colour=PALE if off else colour, dashed=off)
    numbers = f"{value:.4f} × {weight:.3g} = {product:.4f}"
    drawing.words((start + _TOTAL - 8) / 2, y - 6, numbers, colour=ink)


def _colour(name: str) -> str:
    """That of the branch whose loss it is, and for a lesson that of the teacher, as in the learning curves."""
    if name in PART_COLOURS:
        return PART_COLOURS[name]
    return BRANCH_COLOURS[name.endswith("_2") or name == "teach_21"]
