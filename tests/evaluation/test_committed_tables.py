"""The tables under results/ that are made from committed scores: made again, they are the same bytes.

``sequences.md`` also shows the oedema, which ``scores.csv`` does not hold: it is made from the means in
``sequences.json``, and the means that both hold are compared. ``false-alarms.md`` is made from volumes, not scores.
"""

import importlib.util
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from smml.evaluation import Scores, summary_table, write_report
from smml.evaluation.evaluate import protocol
from smml.models.checkpoint import load_checkpoint
from smml.study import read_study, write_study

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"


def script(name: str):
    """A script as a module; only what is called of it runs."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def committed(folder: str) -> Scores:
    scores = Scores.read(RESULTS / folder)
    part, weights, *_ = *Path(folder).parts, "tiny-refined"
    rule = load_checkpoint(weights).decision if part in ("simulator", "refinement") else None
    return Scores(scores.frame, protocol(scores.frame["case"].nunique(), decision=rule))


def title(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


# Whatever has scores, its tables are made of them.
SCORED = sorted(
    str(path.parent.relative_to(RESULTS))
    for part in ("simulator", "refinement", "first-edition")
    for path in (RESULTS / part).rglob("scores.csv")
)
SEQUENCES = sorted(str(path.parent.relative_to(RESULTS)) for path in RESULTS.rglob("sequences.json"))


def test_there_are_committed_scores():
    assert {"simulator/tiny/typical", "refinement", "first-edition/simulator/small"} <= set(SCORED)
    assert {"simulator/tiny/typical", "first-edition/simulator"} <= set(SEQUENCES)


@pytest.mark.parametrize("folder", SCORED)
def test_the_table_of_committed_scores_is_made_again_to_the_byte(folder, tmp_path):
    csv, table, page = write_report(committed(folder), tmp_path, title(RESULTS / folder / "table.md"))
    made = table.read_bytes()
    if folder.endswith("refinement"):
        refinement = script("measure_refinement")
        made += refinement.difference(refinement.student_and_refined(committed(folder))).encode()
    assert made == (RESULTS / folder / "table.md").read_bytes()
    assert csv.read_bytes() == (RESULTS / folder / "scores.csv").read_bytes()
    assert page.read_bytes() == (RESULTS / folder / "table.html").read_bytes()


@pytest.mark.parametrize("folder", SEQUENCES)
def test_the_table_of_the_sequences_is_made_again_to_the_byte(folder):
    report = json.loads((RESULTS / folder / "sequences.json").read_text(encoding="utf-8"))
    scores = committed(folder)
    made = script("measure_sequences").as_markdown(report, scores.frame["case"].nunique())
    assert made.encode() == (RESULTS / folder / "sequences.md").read_bytes()
    assert report["protocol"] == scores.protocol
    for name, row in summary_table(scores).iterrows():
        assert {column: report["means"][name][column] for column in row.index} == pytest.approx(row.to_dict(), abs=1e-4)


@pytest.mark.parametrize("preset", ["cpu", "cpu2", "probe", "probe2"])
def test_the_report_of_the_study_is_made_again_to_the_byte(preset, tmp_path):
    folder = RESULTS / "study" / preset
    study = read_study(folder)
    made = write_study(study, tmp_path, title(folder / "study.md"))
    assert made.read_bytes() == (folder / "study.md").read_bytes()
    assert re.fullmatch(rf"Ablation study `{preset}`, simulated cases", title(made))


def test_the_report_of_the_further_subjects_is_made_again_to_the_byte():
    folder, further = RESULTS / "study" / "cpu2" / "further", script("score_further_subjects")
    report = json.loads((folder / "further.json").read_text(encoding="utf-8"))
    scores = pd.read_csv(folder / "further.csv.gz")
    asked = (scores, report["preset"], *report["arms"])
    assert further.differences(*asked) == report["differences"]
    assert further.differences_by_kind(*asked) == report["by kind"]
    assert further.as_markdown(report).encode() == (folder / "further.md").read_bytes()
    own, others = (set(scores.loc[scores["subjects"] == name, "case"]) for name in (further.OWN, further.FURTHER))
    assert own == set(read_study(folder.parent).scores["case"])
    assert not own & others


@pytest.mark.parametrize("weights", [folder.name for folder in sorted((RESULTS / "decision").iterdir())])
def test_the_choice_of_the_rule_for_labels_is_made_again_and_is_the_rule_in_use(weights):
    folder, decision = RESULTS / "decision" / weights, script("choose_decision")
    report = json.loads((folder / "decision.json").read_text(encoding="utf-8"))
    assert decision.as_markdown(report).encode() == (folder / "decision.md").read_bytes()
    tables = {region: pd.DataFrame(rows).set_index("least") for region, rows in report["tables"].items()}
    chosen = {region: decision.choose(table, region, **report["limits"]) for region, table in tables.items()}
    assert chosen == report["chosen"]
    rule = load_checkpoint(weights).decision
    assert rule is not None
    absence = tuple(report["may_be_absent"]), tuple(report["shown_on"])
    assert (report["chosen"], *absence) == (rule.least_ml, rule.may_be_absent, rule.shown_on)


@pytest.mark.parametrize(("folder", "may_be_absent"), [("never", []), ("always", ["ET"]), ("tiny-never", [])])
def test_what_the_other_ways_to_weigh_the_absence_of_et_do_is_told_from_the_report(folder, may_be_absent):
    path, decision = RESULTS / "absence" / folder / "decision.json", script("choose_decision")
    report = json.loads(path.read_text(encoding="utf-8"))
    assert decision.as_markdown(report).encode() == path.with_suffix(".md").read_bytes()
    assert (report["may_be_absent"], report["shown_on"]) == (may_be_absent, [])


def test_what_method_says_of_the_absence_of_et_stands_in_the_rows_that_were_chosen():
    method = (ROOT / "docs" / "METHOD.md").read_text(encoding="utf-8")
    told = method[method.index("A rule may also weigh") : method.index("A window is as large")]
    links = re.findall(r"\.\./(results/(?:absence|decision)/[\w-]+/decision)\.md", told)
    assert len(links) == 5
    rows = set()
    for link in links:
        report = json.loads((ROOT / f"{link}.json").read_text(encoding="utf-8"))
        row = next(row for row in report["tables"]["ET"] if row["least"] == f"{report['chosen']['ET']:g}")
        rows |= {f"{value:.1f}" for name, value in row.items() if name in ("Dice", "literature's mean", "missed")}
    assert set(re.findall(r"\d+\.\d", told)) <= rows


@pytest.fixture
def least_volumes() -> pd.DataFrame:
    """Of three least volumes the greatest misses most and calls least; by Dice and the literature's mean 1 is best."""
    rows = {"argmax": (80, 70, 2, 80), "0": (81, 71, 2, 85), "1": (83, 75, 5, 94), "2": (79, 76, 9, 97)}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["Dice", "literature's mean", "missed", "quiet"])


@pytest.mark.parametrize(
    ("region", "quiet", "more_missed", "chosen"),
    [("WT", 0, None, 1), ("WT", 95, None, 2), ("WT", 0, 2, 0), ("TC", 95, None, 1), ("ET", 95, 3, 1)],
)
def test_the_least_volume_is_the_best_of_those_within_the_limits(least_volumes, region, quiet, more_missed, chosen):
    assert script("choose_decision").choose(least_volumes, region, quiet, more_missed) == chosen


def test_where_no_least_volume_is_within_the_limits_none_is_chosen(least_volumes):
    with pytest.raises(SystemExit, match="WT: no least volume is within the limits; see --quiet"):
        script("choose_decision").choose(least_volumes, "WT", quiet=95, more_missed=2)


def test_every_figure_of_the_second_findings_stands_in_a_report():
    findings = (RESULTS / "study" / "cpu2" / "findings.md").read_text(encoding="utf-8")
    prose = re.sub(r"<!-- scores: .*?<!-- end of scores -->", "", findings, flags=re.DOTALL)
    of = ("cpu2/study.md", "cpu2/further/further.md", "probe2/study.md", "operating-point/operating-point.md")
    reports = [f"study/{name}" for name in of]
    known = "\n".join((RESULTS / report).read_text(encoding="utf-8") for report in reports)
    told = set(re.findall(r"\d+\.\d+", prose.replace("−", "-")))
    # The width that was wanted and that of the first study, and an option of all arms.
    assert told - set(re.findall(r"\d+\.\d+", known)) <= {"4.5", "7.9", "0.05"}
    assert len(told) > 20
