"""The drawings of the method tell the sizes of the network, fit on their canvas, and are the committed ones."""

import dataclasses
import re
from xml.etree import ElementTree

import make_method_figures
import numpy as np
import pytest
import torch
from PIL import ImageFont

from smml.data.labels import BRATS_2023
from smml.errors import InputError
from smml.figures import Drawing, method_figure, sample_figure, student_figure
from smml.figures.drawing import SMALLEST_SUBSCRIPT
from smml.figures.sizes import in_short, sizes_of
from smml.models import SMML, Student, StudentConfig
from smml.models.presets import PRESETS
from smml.training import TrainingConfig
from smml.training.objective import TERMS, Objective, term_weights

SVG = "{http://www.w3.org/2000/svg}"


def lines(drawing: Drawing) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(drawing.text).iter(f"{SVG}text")]


@pytest.mark.parametrize("name", ["tiny", "paper"])
def test_the_drawings_have_the_sizes_of_the_network(name):
    """Written out from the configuration here, read off the modules there."""
    with torch.device("meta"):
        network = SMML(name, refine=True)
    config, patch = network.config, 16 * network.config.token_grid
    parts = (network.branches[0], network.refinements[0])
    whole, refinement = (in_short(sum(p.numel() for p in part.parameters())) for part in parts)
    student, method = lines(student_figure(name)), lines(method_figure(name))
    assert student[0] == f"One student, preset {name}: {whole} parameters"
    for level, width in enumerate(config.widths):
        assert f"4 × {width} → {width}" in student
        assert f"{patch // 2**level}³" in student
        # Three modalities of the example and the decoder, at every level that has this width.
        assert student.count(str(width)) == 4 * config.widths.count(width) + (width == 4 * config.widths[-1])
    tokens = config.token_grid**3
    assert {f"{tokens} tokens", f"{4 * tokens} tokens", f"{config.token_width} wide"} <= set(student)
    assert student.count(f"1 layer, {config.heads} heads, MLP {config.mlp_width}") == 2
    assert str(4 * config.widths[-1]) in student, "the bottleneck"
    assert method.count(f"student 1: {whole} parameters") == method.count(f"student 2: {whole} parameters") == 1
    assert method.count(", ".join(map(str, config.widths))) == 2
    assert method.count(f"{refinement} parameters") == 2
    assert {f"relations of {tokens} tokens,", f"{4 * config.widths[-1]} wide, and of classes"} <= set(method)
    assert method.count(f"4 × {patch}³") == 3, "the patch, and the logits of both"


def test_the_maps_of_a_student_that_runs_are_those_of_the_drawing():
    narrow = StudentConfig((2, 3, 4, 5, 6), token_width=12, heads=3, mlp_width=24, token_grid=2)
    sizes, seen = sizes_of(narrow), {}
    student = Student(narrow).train()
    for level, stage in enumerate(student.encoders[0].stages):
        stage.register_forward_hook(lambda _, __, out, level=level: seen.update({level: tuple(out.shape[1:3])}))
    with torch.no_grad():
        output = student(torch.zeros(1, 4, *(sizes.patch,) * 3), torch.ones(1, 4, dtype=torch.bool))
    assert list(seen.values()) == list(zip(sizes.widths, sizes.edges, strict=True))
    assert output.bottleneck.shape[1:3] == (sizes.bottleneck, sizes.edges[-1])
    assert output.bottleneck[0, 0].numel() == sizes.tokens
    assert (output.logits.shape[1], len(output.deep), len(output.separate)) == (
        sizes.classes, sizes.deep_heads, sizes.modalities
    )  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"widths": (8, 8, 16, 24, 40)}, {"token_width": 128}, {"heads": 8}, {"depth": 2}, {"mlp_width": 64},
        {"token_grid": 4}, {"num_classes": 5}, {"refinement_widths": (8, 16, 32)},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_the_drawings_change_with_their_preset(monkeypatch, change):
    before = {name: draw("tiny").text for name, draw in (("student", student_figure), ("method", method_figure))}
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(PRESETS["tiny"], **change))
    changed = {"method": method_figure("tiny").text != before["method"]}
    changed["student"] = student_figure("tiny").text != before["student"]
    # A student has no part of the refinement.
    assert changed == {"method": True, "student": "refinement_widths" not in change}


def test_the_committed_drawings_are_what_the_command_makes():
    for name, drawing in make_method_figures.drawings().items():
        committed = (make_method_figures.DOCS / name).read_text(encoding="utf-8")
        same = committed == drawing.text
        assert same, f"run: python scripts/make_method_figures.py, then look at docs/{name}"


def test_a_drawing_needs_nothing_from_outside_and_disturbs_nothing():
    for drawing in (student_figure("paper"), method_figure("paper"), drawn(*step())):
        root = ElementTree.fromstring(drawing.text)
        assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
            "svg", "title", "rect", "text", "tspan", "polyline", "polygon", "image"
        }  # fmt: skip
        assert all(image.get("href").startswith("data:image/png;base64,") for image in root.iter(f"{SVG}image"))
        assert 'id="' not in drawing.text, "two drawings in one page would share it"
        ground = root.find(f"{SVG}rect")
        assert (ground.get("fill"), ground.get("width")) == ("#ffffff", root.get("width")), "unreadable in a dark page"


def boxes(drawing: Drawing) -> list[tuple[str, float, float, float, float]]:
    """Each line of text with left, top, right and bottom, about as wide as in DejaVu Sans, a wide font."""
    found = []
    for text in ElementTree.fromstring(drawing.text).iter(f"{SVG}text"):
        words, size, y = "".join(text.itertext()), float(text.get("font-size")), float(text.get("y"))
        width = 1.08 * ImageFont.load_default(100).getlength(words) * size / 100
        left = float(text.get("x")) - width * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")]
        found.append((words, left, y - 0.75 * size, left + width, y + 0.2 * size))
    return found


@pytest.mark.parametrize("kind", ["student", "method", "sample"])
def test_text_is_large_enough_and_does_not_overlap(kind):
    big = dataclasses.replace(PRESETS["paper"], widths=(16, 32, 128, 256, 512), num_classes=5, depth=12)
    draw = {"student": student_figure, "method": method_figure}.get(kind)
    drawings = [draw(config) for config in ("tiny", "small", "paper", big)] if draw else [
        drawn(*step()), drawn(*step(refinement="tiny", feature_weight=0.125))]  # fmt: skip
    for drawing in drawings:
        sizes = {float(size) for size in re.findall(r'font-size="([\d.]+)"', drawing.text)}
        assert min(sizes) >= SMALLEST_SUBSCRIPT == 11
        placed = boxes(drawing)
        for number, (words, left, top, right, bottom) in enumerate(placed):
            assert left > 6, words
            assert right < drawing.width - 6, words
            assert bottom < drawing.height - 4, words
            for other, left2, top2, right2, bottom2 in placed[number + 1 :]:
                assert right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top, (words, other)


def step(**options) -> tuple[Objective, TrainingConfig, int]:
    """A made objective in the middle of the ramp, and what it belongs to."""
    config, number = TrainingConfig(steps=100, class_weight=0.5, **options), 15
    values = {name: 0.3 + 0.1 * place for place, name in enumerate(TERMS)}
    if not config.refinement:
        values |= {name: 0.0 for name in TERMS if name.startswith("refine")}
    total = sum(term_weights(config, number)[name] * value for name, value in values.items())
    return Objective(torch.tensor(total), {k: torch.tensor(v) for k, v in values.items()}), config, number


def drawn(loss: Objective, config: TrainingConfig, number: int) -> Drawing:
    label = torch.zeros(32, 32, 32, dtype=torch.uint8)
    label[8:20, 8:20, 8:20] = 2
    sample = {
        "image": torch.from_numpy(np.random.default_rng(0).normal(size=(4, 32, 32, 32)).astype(np.float32)),
        "label": label,
        "masks": torch.tensor([[True, False, False, True], [False, True, False, False]]),
        "available": torch.ones(4, dtype=torch.bool),
    }
    return sample_figure(sample, loss, config, number, BRATS_2023)


@pytest.mark.parametrize("refinement", ["", "tiny"])
def test_a_sample_shows_every_term_with_its_weight_and_product_and_they_add_up(refinement):
    loss, config, number = step(refinement=refinement)
    found = lines(drawn(loss, config, number))
    sums = [re.fullmatch(r"([\d.]+) × ([\d.]+) = ([\d.]+)", line) for line in found]
    products = [tuple(map(float, match.groups())) for match in sums if match]
    assert len(products) == (14 if refinement else 10)
    assert all(abs(value * weight - product) < 1e-3 for value, weight, product in products)
    assert sum(product for *_, product in products) == pytest.approx(float(loss.total), abs=0.01)
    assert found[-1] == f"L = {float(loss.total):.4f}"


def test_a_loss_of_another_step_or_configuration_is_refused():
    loss, config, number = step()
    with pytest.raises(InputError, match=r"give the configuration and the step \(found 5\)"):
        drawn(loss, config, 5)
    with pytest.raises(InputError, match="add up to"):
        drawn(dataclasses.replace(loss, total=loss.total + 1e-3), config, number)


def test_the_pictures_of_a_sample_are_those_of_its_masks():
    text = drawn(*step()).text
    assert text.count("<image ") == 2 + 1 + 1, "two sequences, one sequence, and the truth"


def test_a_network_that_cannot_be_drawn_is_refused():
    with pytest.raises(InputError, match="drawn for 4 modalities, found 3"):
        student_figure(dataclasses.replace(PRESETS["tiny"], num_modalities=3))
    with pytest.raises(InputError, match="divisible by 16, found 40"):
        student_figure("tiny", patch=40)


@pytest.mark.parametrize(
    ("count", "text"), [(812, "812"), (34_512, "34.5 k"), (999_600, "1.00 M"), (37_967_184, "38.0 M"), (152e6, "152 M")]
)
def test_parameters_have_three_digits(count, text):
    assert in_short(count) == text
