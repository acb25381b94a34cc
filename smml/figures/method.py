"""Masked mutual learning in one picture: one patch, two masks, two students, and what runs between them."""

from smml.figures.drawing import INK, PALE, Drawing, block_depth, tint
from smml.figures.sizes import NetworkSizes, in_short, sizes_of
from smml.figures.theme import BRANCH_COLOURS, PART_COLOURS
from smml.modalities import DISPLAY_NAMES, MODALITIES
from smml.models import StudentConfig
from smml.training import TrainingConfig

# The example's masks.
_GIVEN = (("flair", "t2"), ("t1ce",))

_WIDTH, _HEIGHT = 900, 672
_MIDDLE = 313  # between the branches
_ROWS = (_MIDDLE - 132, _MIDDLE + 132)  # middles of the branches
_MASKS, _STUDENT, _LOGITS = 128, 222, 640  # x of masks and students (left edges) and of the logits (middle)
_PARTS = (130, 122, 84)  # widths of encoders, transformers, decoder
_BOTTLENECK = _STUDENT + 10 + _PARTS[0] + 14 + _PARTS[1] / 2
_TRUTH = 806
_LOSS = 112  # width of the boxes in the column of the truth


def method_figure(config: str | StudentConfig = "paper", training: TrainingConfig | None = None) -> Drawing:
    """The two branches, their masks, outputs and losses, with the sizes of a network that is built for it.

    Args:
        config: a preset's name or a configuration.
        training: patch, weights and schedule; None takes the defaults, and the patch for whose tokens the positions
            are learned.

    Raises:
        InputError: an unknown preset, or sizes that cannot be drawn.
    """
    sizes = sizes_of(config, None if training is None else training.patch)
    training = training or TrainingConfig()
    total = in_short(sizes.parameters["student"])
    drawing = Drawing(
        _WIDTH, _HEIGHT, f"Masked mutual learning, preset {sizes.name}: two students of {total} parameters"
    )
    drawing.words(18, 30, "Masked mutual learning", size=18, anchor="start", bold=True)
    example = f"Preset {sizes.name}: two students of {total} parameters learn from the truth, and from each other."
    drawing.words(18, 50, example, anchor="start", colour="#555555")
    _patch(drawing, sizes)
    for branch in (0, 1):
        _branch(drawing, sizes, branch)
        _refinement(drawing, sizes, branch)
    _between(drawing, sizes)
    _truth(drawing)
    _total(drawing, training)
    return drawing


def _patch(drawing: Drawing, sizes: NetworkSizes) -> None:
    for number in reversed(range(sizes.modalities)):
        drawing.box(24 + 7 * number, _MIDDLE - 12 - 7 * number, 44, 44, radius=3, fill="#eeeeee", thickness=1.2)
    drawing.words(57, _MIDDLE + 50, f"{sizes.modalities} × {sizes.patch}³", bold=True)
    drawing.words(57, _MIDDLE + 67, "one patch", size=12)
    for branch, y in enumerate(_ROWS):
        start = _MIDDLE - 38 if branch == 0 else _MIDDLE + 76
        drawing.arrow((57, start), (57, y), (_MASKS - 2, y), colour=BRANCH_COLOURS[branch])


def _branch(drawing: Drawing, sizes: NetworkSizes, branch: int) -> None:
    colour, y = BRANCH_COLOURS[branch], _ROWS[branch]
    drawing.words(_MASKS + 34, y - 58, f"mask {branch + 1}", bold=True, colour=colour)
    for number, name in enumerate(MODALITIES):
        given = name in _GIVEN[branch]
        top = y - 49 + 25 * number
        drawing.box(_MASKS, top, 68, 20, DISPLAY_NAMES[name], radius=10, size=12, dashed=not given,
                    colour=colour if given else PALE, fill=tint(colour, 0.2) if given else "#ffffff")  # fmt: skip
    width = sum(_PARTS) + 2 * 14 + 20
    drawing.arrow((_MASKS + 69, y), (_STUDENT - 1, y), colour=colour)
    drawing.box(_STUDENT, y - 52, width, 104, colour=colour, fill=tint(colour, 0.08), thickness=2.2, radius=10)
    total = in_short(sizes.parameters["student"])
    # Title and blocks lie so that the bottlenecks face each other.
    drawing.words(
        _STUDENT + width / 2,
        y - 33 if branch == 0 else y + 43,
        f"student {branch + 1}: {total} parameters",
        bold=True,
        colour=colour,
    )
    widths = ", ".join(map(str, sizes.widths))
    texts = (
        ("encoder", (f"{sizes.modalities} encoders", widths, "channels")),
        ("transformer", ("transformers", f"{sizes.token_width} wide", f"{sizes.heads} heads")),
        ("decoder", ("fusion", "and", "decoder")),
    )
    left, top = _STUDENT + 10, y - 23 if branch == 0 else y - 43
    for number, ((part, lines), wide) in enumerate(zip(texts, _PARTS, strict=True)):
        paint = PART_COLOURS[part]
        drawing.box(left, top, wide, 66, *lines, size=12, colour=paint, fill=tint(paint, 0.25))
        if number:
            drawing.arrow((left - 13, top + 33), (left - 1, top + 33))
        left += wide + 14
    drawing.arrow((_STUDENT + width + 1, y), (_LOGITS - 19, y), colour=colour)
    drawing.map(_LOGITS, y, 34, sizes.classes, colour, str(sizes.classes))
    drawing.words(_LOGITS + 32, y - 8, "logits", anchor="start", size=12)
    drawing.words(_LOGITS + 32, y + 17, f"{sizes.classes} × {sizes.patch}³", anchor="start", size=12)
    heads = f"1 + {sizes.modalities} + {sizes.deep_heads} heads"
    drawing.arrow((_LOGITS + 24, y), (_TRUTH - _LOSS / 2 - 1, y), colour=colour)
    drawing.box(
        _TRUTH - _LOSS / 2, y - 22, _LOSS, 44, f"L_{{{branch + 1}}}", heads, colour=colour, size=12, thickness=2
    )


def _refinement(drawing: Drawing, sizes: NetworkSizes, branch: int) -> None:
    y = _ROWS[branch]
    away = -1 if branch == 0 else 1
    middle = y + away * 98
    number = in_short(sizes.parameters["refinement"])
    drawing.box(_LOGITS - 92, middle - 20, 184, 40, "refinement", f"{number} parameters", dashed=True, size=12)
    drawing.box(334, middle - 20, 182, 40, "SAM", "prompted by the logits", dashed=True, size=12)
    drawing.arrow((517, middle), (_LOGITS - 93, middle), dashed=True)
    # A map's upper side is higher by its depth.
    near = y + (18 if branch else -18 - block_depth(sizes.classes))
    far = middle - away * 21
    drawing.arrow((_LOGITS - 12, near), (_LOGITS - 12, far), dashed=True)
    drawing.arrow((_LOGITS + 10, far), (_LOGITS + 10, near), dashed=True)
    drawing.words(_LOGITS + 22, (near + far) / 2 + 5, f"KL_{{{branch + 1}}}", anchor="start", bold=True)
    drawing.arrow((_LOGITS + 93, middle), (_TRUTH - _LOSS / 2 - 1, middle), dashed=True)
    drawing.box(
        _TRUTH - _LOSS / 2, middle - 20, _LOSS, 40, f"S_{{{branch + 1}}}", "1 head", dashed=True, size=12, colour=INK
    )


def _between(drawing: Drawing, sizes: NetworkSizes) -> None:
    first, second = BRANCH_COLOURS
    green = PART_COLOURS["relation"]
    top, bottom = _ROWS[0], _ROWS[1]
    x = _BOTTLENECK
    drawing.arrow((x, top + 44), (x, _MIDDLE - 35), colour=green, heads="both")
    drawing.arrow((x, _MIDDLE + 35), (x, bottom - 44), colour=green, heads="both")
    drawing.box(
        x - 88,
        _MIDDLE - 34,
        176,
        68,
        "L_{fc} = L_{rel} + λ L_{cls}",
        f"relations of {sizes.tokens} tokens,",
        f"{sizes.bottleneck} wide, and of classes",
        colour=green,
        fill=tint(green, 0.12),
        size=12,
        thickness=2,
    )
    drawing.words(x + 10, top + 70, "bottleneck", anchor="start", size=12)
    drawing.words(x + 10, bottom - 62, "bottleneck", anchor="start", size=12)
    drawing.box(_LOGITS - 92, _MIDDLE - 40, 184, 80, colour=PALE, thickness=1, radius=9)
    for left, name, words, colour, down in (
        (_LOGITS - 86, "L_{1→2}", "where 1 is", first, True),
        (_LOGITS + 4, "L_{2→1}", "where 2 is", second, False),
    ):
        drawing.box(
            left,
            _MIDDLE - 34,
            82,
            68,
            name,
            words,
            "nearer y",
            colour=colour,
            fill=tint(colour, 0.1),
            size=12,
            thickness=2,
        )
        place = _LOGITS + (-10 if down else 12)
        # A map's upper side is higher by its depth.
        upper_side = bottom - 18 - block_depth(sizes.classes)
        ends = ((place, top + 18), (place, _MIDDLE - 35)), ((place, _MIDDLE + 35), (place, upper_side))
        for start, end in ends:
            drawing.arrow(*((start, end) if down else (end, start)), colour=colour)


def _truth(drawing: Drawing) -> None:
    drawing.box(_TRUTH - _LOSS / 2, _MIDDLE - 22, _LOSS, 44, "truth", "y", size=12, fill="#eeeeee")
    drawing.arrow((_TRUTH, _MIDDLE - 23), (_TRUTH, _ROWS[0] + 23))
    drawing.arrow((_TRUTH, _MIDDLE + 23), (_TRUTH, _ROWS[1] - 23))
    drawing.arrow((_TRUTH - _LOSS / 2 - 1, _MIDDLE), (_LOGITS + 93, _MIDDLE))
    for branch, away in ((0, -1), (1, 1)):
        y = _ROWS[branch]
        x = _TRUTH + 76
        drawing.arrow(
            (_TRUTH + _LOSS / 2 + 1, _MIDDLE + 8 * away),
            (x, _MIDDLE + 8 * away),
            (x, y + away * 98),
            (_TRUTH + _LOSS / 2 + 1, y + away * 98),
            dashed=True,
        )


def _total(drawing: Drawing, training: TrainingConfig) -> None:
    first, second = BRANCH_COLOURS
    y = _HEIGHT - 74
    drawing.box(16, y - 14, _WIDTH - 32, 76, thickness=0, fill="#f5f5f5", radius=8)
    green = PART_COLOURS["relation"]
    drawing.words(
        _WIDTH / 2, y + 10,
        [("L = ", INK), ("L_{1}", first), (" + ", INK), ("L_{2}", second), (" + l_{fc} ", INK), ("L_{fc}", green),
         (" + r(t) l_{pc} (", INK), ("L_{1→2}", first), (" + ", INK), ("L_{2→1}", second),
         (") + S_{1} + S_{2} + r(t) l_{ref} (KL_{1} + KL_{2})", INK)],
        size=15, bold=True,
    )  # fmt: skip
    values = {
        "l_{fc}": training.feature_weight,
        "l_{pc}": training.pixel_weight,
        "l_{ref}": training.refinement_weight,
        "λ": training.class_weight,
    }
    weights = ", ".join(f"{name} = {value:g}" for name, value in values.items())
    start, over = f"{100 * training.consistency_start:g} %", f"{100 * training.consistency_ramp:g} %"
    drawing.words(
        _WIDTH / 2,
        y + 32,
        f"{weights}; r(t) is 0 for the first {start} of the training, then rises to 1 over {over}",
        size=12,
    )
    drawing.words(
        _WIDTH / 2,
        y + 52,
        "Dashed: with refinement only; SAM sees no truth. In use: the mean of the two students' probabilities.",
        size=12,
    )
