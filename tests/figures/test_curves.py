"""Learning curves show what a run has, and leave out what it has not."""

import pandas as pd
import pytest

from smml import figures
from smml.errors import InputError
from smml.figures.theme import rgb

TERMS = ("total", "fuse_1", "fuse_2", "teach_12", "teach_21", "relation", "classes", "gradient_norm", "learning_rate")


@pytest.fixture
def run(tmp_path):
    pd.DataFrame({"step": [1, 2], **{term: [2.0, 1.0] for term in TERMS}}).to_csv(tmp_path / "log.csv", index=False)
    return tmp_path


def test_a_run_without_validation_has_no_empty_panel(run):
    figure = figures.curves_figure(run)
    assert [note.text for note in figure.layout.annotations][-1] == "gradient norm and learning rate"
    assert {trace.xaxis for trace in figure.data} == {"x", "x2", "x3"} == axes(figure)
    assert not any("Dice" in (trace.name or "") for trace in figure.data)


def test_a_run_with_validation_shows_it_in_a_fourth_panel(run):
    scores = {"step": [1, 2], "dice": [0.2, 0.1], **{f"dice_{region}": [0.2, 0.1] for region in ("WT", "TC", "ET")}}
    pd.DataFrame(scores).to_csv(run / "validation.csv", index=False)
    figure = figures.curves_figure(run)
    assert axes(figure) == {"x", "x2", "x3", "x4"}
    best = next(trace for trace in figure.data if trace.name == "best.pt")
    assert (best.x[0], best.y[0], best.xaxis) == (1, 0.2, "x4")
    lines = {trace.name: trace.line for trace in figure.data if (trace.name or "").startswith("Dice")}
    assert len(lines) == len({line.dash for line in lines.values()}) == 3, "told apart without colours too"
    assert all(1.05 / (luminance(line.color) + 0.05) > 3 for line in lines.values()), "lost on white"


def test_a_log_without_a_row_is_refused(run):
    (run / "log.csv").write_text("step,total\n")
    with pytest.raises(InputError, match="no row yet"):
        figures.curves_figure(run)


def luminance(colour: str) -> float:
    """Relative luminance of the Web Content Accessibility Guidelines."""
    shares = (value / 255 for value in rgb(colour))
    linear = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def axes(figure) -> set[str]:
    return {name.replace("axis", "") for name in figure.layout if name.startswith("xaxis")}
