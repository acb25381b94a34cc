"""The student in one picture: levels from top to bottom, from the images on the left to the heads on the right."""

from smml.figures.drawing import INK, PALE, Drawing, block_depth, tint
from smml.figures.sizes import NetworkSizes, in_short, sizes_of
from smml.figures.theme import PART_COLOURS
from smml.modalities import DISPLAY_NAMES, MODALITIES
from smml.models import StudentConfig

# The example has all others.
_MISSING = "t1ce"

_WIDTH, _HEIGHT = 900, 640
_LEFT, _RIGHT = 112, 416  # of the encoders
_TOP, _PITCH = 166, 66  # middle of the first level, and from one level to the next
_FUSION, _DECODER, _HEADS = 496, 612, 676
_SIDES = (40, 37, 34, 31, 28)  # of the fronts of the maps
_INTRA, _INTER = (474, 46), (548, 64)  # upper edge and height


def student_figure(config: str | StudentConfig = "paper", patch: int | None = None) -> Drawing:
    """One student, with the sizes of its maps, tokens and heads and the parameters of its parts.

    All of it is read off a network that is built for it.

    Args:
        config: a preset's name or a configuration.
        patch: edge of the patch in voxels; None takes the one for whose tokens the positions are learned.

    Raises:
        InputError: an unknown preset, or sizes that cannot be drawn.
    """
    sizes = sizes_of(config, patch)
    total = in_short(sizes.parameters["student"])
    drawing = Drawing(_WIDTH, _HEIGHT, f"The student of the preset {sizes.name}, {total} parameters")
    drawing.words(18, 30, f"One student, preset {sizes.name}: {total} parameters", size=18, anchor="start", bold=True)
    example = f"A patch of {sizes.patch}³ voxels; here the case has no {DISPLAY_NAMES[_MISSING]}."
    drawing.words(18, 50, f"{example} Numbers on the maps are their channels.", anchor="start", colour="#555555")
    _encoders(drawing, sizes)
    _transformers(drawing, sizes)
    _fusion_and_decoder(drawing, sizes)
    _separate(drawing, sizes)
    _legend(drawing)
    return drawing


def _level(number: int) -> float:
    """The middle of a level's row."""
    return _TOP + _PITCH * number


def _columns() -> dict[str, float]:
    """The middle of each modality's column."""
    step = (_RIGHT - _LEFT) / len(MODALITIES)
    return {name: _LEFT + step * (number + 0.45) for number, name in enumerate(MODALITIES)}


def _encoders(drawing: Drawing, sizes: NetworkSizes) -> None:
    colour = PART_COLOURS["encoder"]
    frame = 68
    drawing.box(_LEFT - 8, frame, _RIGHT - _LEFT + 16, _level(4) + 31 - frame, colour=colour, fill="#ffffff", radius=10)
    number = in_short(sizes.parameters["encoder"])
    drawing.words((_LEFT + _RIGHT) / 2, 86, f"{sizes.modalities} encoders of {number}, one per modality", bold=True)
    drawing.words(18, 113, "image", anchor="start", bold=True)
    for level, edge in enumerate(sizes.edges):
        y = _level(level)
        # One band: all maps of a level go to its fusion together.
        drawing.box(_LEFT - 2, y - 28, _RIGHT - _LEFT + 4, 56, fill=tint(colour, 0.12), thickness=0, radius=8)
        drawing.words(18, y - 2, f"{edge}³", anchor="start", size=14, bold=True)
        drawing.words(18, y + 15, f"stride {sizes.patch // edge}", anchor="start", colour="#555555", size=12)
    for name, x in _columns().items():
        missing = name == _MISSING
        drawing.box(x - 30, 96, 60, 24, DISPLAY_NAMES[name], colour=PALE if missing else INK, dashed=missing, radius=12)
        for level, (side, channels) in enumerate(zip(_SIDES, sizes.widths, strict=True)):
            y = _level(level)
            if missing:
                drawing.box(x - side / 2, y - side / 2, side, side, colour=PALE, dashed=True, radius=2, thickness=1)
                continue
            above = 121 if level == 0 else y - _PITCH + _SIDES[level - 1] / 2 + 1
            drawing.arrow((x, above), (x, y - side / 2 - block_depth(channels)))
            drawing.map(x, y, side, channels, colour, str(channels))


def _transformers(drawing: Drawing, sizes: NetworkSizes) -> None:
    colour = PART_COLOURS["transformer"]
    width, middle = _RIGHT - _LEFT + 16, (_LEFT + _RIGHT) / 2
    intra, inter = sizes.layers
    inside = f"{sizes.heads} heads, MLP {sizes.mlp_width}"
    within = (
        f"{sizes.modalities} transformers of {in_short(sizes.parameters['intra'])}, one each",
        f"{_layers(intra)}, {inside}",
    )
    across = (
        f"1 of {in_short(sizes.parameters['inter'])} across the modalities",
        f"{_layers(inter)}, {inside}",
        "only the modalities present are attended to",
    )
    for (top, height), lines in ((_INTRA, within), (_INTER, across)):
        drawing.box(middle - width / 2, top, width, height, *lines, colour=colour, fill=tint(colour, 0.25))
    for name, x in _columns().items():
        if name != _MISSING:
            drawing.arrow((x, _level(4) + _SIDES[4] / 2 + 1), (x, _INTRA[0] - 1))
            drawing.arrow((x, sum(_INTRA) + 1), (x, _INTER[0] - 1))
    for top, tokens in ((_INTRA[0] + 20, sizes.tokens), (_INTER[0] + 28, sizes.modalities * sizes.tokens)):
        drawing.words(18, top, f"{tokens} tokens", anchor="start", size=12)
        drawing.words(18, top + 17, f"{sizes.token_width} wide", anchor="start", colour="#555555", size=12)
    y = _INTER[0] + _INTER[1] / 2
    drawing.arrow((_RIGHT + 9, y), (_FUSION - 18, y))
    drawing.arrow((_FUSION, y - 18), (_FUSION, _level(4) + 18))
    drawing.map(_FUSION, y, 34, sizes.bottleneck, colour, str(sizes.bottleneck))
    drawing.words(_FUSION, y + 34, f"bottleneck, {sizes.edges[-1]}³", bold=True)


def _layers(count: int) -> str:
    return f"{count} layer" if count == 1 else f"{count} layers"


def _fusion_and_decoder(drawing: Drawing, sizes: NetworkSizes) -> None:
    fusion, decoder = PART_COLOURS["fusion"], PART_COLOURS["decoder"]
    number = in_short(sizes.parameters["fusion and decoder"])
    drawing.words(_FUSION, 134, "fusion", bold=True)
    drawing.words(_DECODER + 4, 134, "decoder", bold=True)
    drawing.words(_HEADS, 134, f"heads; all three: {number}", anchor="start", bold=True)
    for level, (entering, leaving) in enumerate(sizes.fused):
        y = _level(level)
        if level < 4:
            drawing.arrow((_RIGHT + 3, y), (_FUSION - 54, y))
        each = entering // sizes.modalities
        drawing.box(
            _FUSION - 53,
            y - 17,
            106,
            34,
            f"{sizes.modalities} × {each} → {leaving}",
            size=12,
            colour=fusion,
            fill=tint(fusion, 0.2),
        )
        side, channels = _SIDES[level], sizes.decoded[level]
        drawing.arrow((_FUSION + 54, y), (_DECODER - side / 2 - 1, y))
        if level:
            drawing.arrow(
                (_DECODER, y - side / 2 - block_depth(channels)), (_DECODER, y - _PITCH + _SIDES[level - 1] / 2 + 1)
            )
            drawing.words(_DECODER - 12, y - _PITCH / 2 + 2, "× 2", size=12, anchor="end", colour="#555555")
        drawing.map(_DECODER, y, side, channels, decoder, str(channels))
        drawing.arrow((_DECODER + side / 2 + block_depth(channels), y), (_HEADS - 1, y), dashed=level > 0)
        size = f"{sizes.classes} × {sizes.patch}³"
        lines = (
            (f"fused head: {size}", f"the segmentation, {sizes.classes} classes")
            if level == 0
            else (f"deep head: {size}", f"enlarged {sizes.patch // sizes.edges[level]} times")
        )
        drawing.box(
            _HEADS,
            y - 22,
            _WIDTH - 16 - _HEADS,
            44,
            *lines,
            dashed=level > 0,
            size=12,
            thickness=2.2 if level == 0 else 1.3,
        )


def _separate(drawing: Drawing, sizes: NetworkSizes) -> None:
    left, top, height = 548, 68, 46
    number = in_short(sizes.parameters["separate"])
    drawing.box(
        left, top, _WIDTH - 16 - left, height,
        f"separate decoder of {number}, shared by all",
        f"from each modality alone: {sizes.classes} × {sizes.patch}³",
        dashed=True, size=12, colour=INK, fill=tint(PART_COLOURS["decoder"], 0.12), thickness=1.3,
    )  # fmt: skip
    drawing.arrow((_RIGHT + 8, top + height / 2), (left - 1, top + height / 2), dashed=True)
    drawing.words((_RIGHT + 8 + left) / 2, top + height / 2 - 7, "5 maps of each", size=12)


def _legend(drawing: Drawing) -> None:
    x, y = _HEADS - 96, _INTRA[0] + 14
    drawing.box(x, y - 16, _WIDTH - 16 - x, 150, thickness=0, fill="#f5f5f5", radius=8)
    entries = (
        "a map: the deeper, the more channels",
        "missing: not read, not computed",
        "in training only",
        "fusion of the modalities present",
    )
    for number, words in enumerate(entries):
        middle = y + 6 + 34 * number
        if number == 0:
            drawing.map(x + 26, middle + 2, 18, 32, PALE)
        elif number == 1:
            drawing.box(x + 16, middle - 10, 20, 20, colour=PALE, dashed=True, radius=2, thickness=1)
        elif number == 2:
            drawing.arrow((x + 10, middle), (x + 46, middle), dashed=True)
        else:
            drawing.box(
                x + 12, middle - 9, 32, 18, colour=PART_COLOURS["fusion"], fill=tint(PART_COLOURS["fusion"], 0.2)
            )
        drawing.words(x + 58, middle + 4, words, anchor="start", size=12)
