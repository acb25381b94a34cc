"""Write the scores that pages quote, from the committed results, between their markers.

    python scripts/quote_scores.py

A page marks a place with ``<!-- scores: NAME -->`` and ``<!-- end of scores -->``. A test compares what stands there.
"""

import functools
import itertools
import json
import re
import textwrap
from pathlib import Path

import pandas as pd

from smml.data import REGIONS
from smml.evaluation import Scores, overlap_table
from smml.evaluation.published import PROTOCOLS
from smml.evaluation.tables import MEAN
from smml.study import EVERY_ARM

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
MARKED = re.compile(r"(<!-- scores: (\S+) -->\n).*?(<!-- end of scores -->)", re.DOTALL)
PAGES = (
    "README.md", "docs/READING_RESULTS.md", "results/study/cpu2/findings.md", "smml/sam/weights/sam-tiny.md",
    "smml/weights/small.md", "smml/weights/tiny.md", "smml/weights/tiny-refined.md",
)  # fmt: skip
# Shipped weights, and their name in results/patients/looks.csv, whose last rows may be of others.
LOOKED_AT: dict[str, str] = json.loads((RESULTS / "patients" / "shipped.json").read_text(encoding="utf-8"))
# The same weights with labels by the argmax and by the rule, in that table.
DECISIONS = ("small-stage8", LOOKED_AT["small"])
PATIENT_SUBSETS = ("FLAIR", "T1ce", "FLAIR+T1ce", "FLAIR+T1ce+T1+T2")


def main() -> None:
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """The text of a page with the committed scores between its markers."""
    return MARKED.sub(lambda match: match[1] + BLOCKS[match[2]]() + match[3], text)


def rows(page: str) -> list[list[str]]:
    """The cells of every table of a committed result, without their emphasis."""
    lines = (RESULTS / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]


def simulated(weights: str) -> str:
    """Mean Dice in per cent on held-out simulated subjects of both looks, where the region is there; false alarms."""
    lines = [
        "| simulated, held out | | WT | TC | ET | false alarms of ET, cases |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for look in ("typical", "varied"):
        if not (RESULTS / "simulator" / weights / look).is_dir():
            lines.append(f"| look `{look}` | not measured with these weights yet | – | – | – | – |")
            continue
        scores = Scores.read(RESULTS / "simulator" / weights / look)
        table = overlap_table(scores)
        for first, name, subset in (
            (f"look `{look}`, {scores.frame['case'].nunique()} subjects", "mean over the 15 subsets", MEAN),
            ("", "FLAIR + T1ce", "FLAIR+T1ce"),
            ("", "all four sequences", "FLAIR+T1ce+T1+T2"),
        ):
            row = table.loc[subset]
            dice = [f"{100 * row[f'Dice {region}']:.1f}" for region in REGIONS]
            alarms = f"{100 * row['false alarms ET']:.0f} %"
            lines.append(" | ".join([f"| {first}" if first else "|", name, *dice, alarms]) + " |")
    return "\n".join(lines) + "\n"


def patients(weights: str) -> str:
    """Mean Dice of shipped weights on the shared patients, and the most that was called ET in the one without any."""
    lines = [
        "| patients, literature's mean | cases | WT | TC | ET | false ET, ml |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for group, words in (("enhancing", "with enhancement"), ("all", "all")):
        look = _look(LOOKED_AT[weights], group)
        for subset in PATIENT_SUBSETS:
            row = look.loc[subset]
            dice = [f"{100 * row[region]:.1f}" for region in REGIONS]
            false = "" if pd.isna(row["false_ET_ml"]) else f"{row['false_ET_ml']:.1f}"
            name = subset.replace("+", " + ")
            lines.append(" | ".join([f"| {name}, {words}", f"{row['cases']:.0f}", *dice, false]) + " |")
    return "\n".join(lines) + "\n"


def _look(name: str, group: str = "all") -> pd.DataFrame:
    """Mean Dice of one look at the shared patients, over those of a group that have the subset, by subset."""
    table = pd.read_csv(RESULTS / "patients" / "looks.csv")
    return table[(table["group"] == group) & (table["weights"] == name)].set_index("subset")


def _means(name: str) -> list[str]:
    """Of one look the means over the 15 subsets in per cent: WT, TC, ET."""
    return [f"{100 * value:.1f}" for value in _look(name)[list(REGIONS)].mean()]


def decisions() -> str:
    """Dice of `small` on the shared patients with labels by the argmax and by the greatest expected Dice."""
    argmax, rule = map(_look, DECISIONS)
    lines = ["| patients, literature's mean | cases | WT | TC | ET |", "|---|---:|---:|---:|---:|"]

    def line(name: str, cases: str, before: pd.Series, after: pd.Series) -> str:
        change = [f"{100 * before[region]:.1f} → {100 * after[region]:.1f}" for region in REGIONS]
        return " | ".join([f"| {name}", cases, *change]) + " |"

    for subset in ("FLAIR", "T1ce", "FLAIR+T1ce", "T1", "T2", "T1+T2", "T1ce+T2", "FLAIR+T1ce+T1+T2"):
        before, after = argmax.loc[subset], rule.loc[subset]
        lines.append(line(subset.replace("+", " + "), f"{after['cases']:.0f}", before, after))
    regions = list(REGIONS)
    lines.append(line("mean over the 15 subsets", "2 to 5", argmax[regions].mean(), rule[regions].mean()))
    return "\n".join(lines) + "\n"


def decision_patients() -> str:
    """Of the patient who enhances and has all sequences what the rule finds, and of the other what it calls wrongly."""
    argmax, rule = (_look(name, "enhancing")["WT"] for name in DECISIONS)
    dice = [f"{100 * rule[subset]:.1f} from {words}" for subset, words in _FEW]
    before = [f"{100 * argmax[subset]:.1f}" for subset, _ in _FEW]
    false_before, false = (_look(name)["false_ET_ml"]["T1ce"] for name in DECISIONS)
    return _lines(
        f"In the one who enhances the Dice of WT is with it {dice[0]}, {dice[1]} and {dice[2]} (argmax: "
        f"{', '.join(before)}). From T1ce alone {false:.1f} ml of ET are called in the patient who has none (argmax: "
        f"{false_before:.1f})."
    )


# Of little the whole tumour is hard to tell: T1 and T2, which two of the patients have.
_FEW = (("T1", "T1"), ("T2", "T2"), ("T1+T2", "both"))


def few(weights: str) -> str:
    """What shipped weights find in the patient who enhances and has all sequences, from T1, T2 and both."""
    look = 100 * _look(LOOKED_AT[weights], "enhancing").loc[[subset for subset, _ in _FEW]]
    return _lines(
        "T1 alone, T2 alone and the two together were seen in two patients only: in the one who enhances the whole "
        f"tumour has a Dice of {look['WT'].min():.0f} to {look['WT'].max():.0f} from them, and its core of "
        f"{look['TC'].max():.0f} at most."
    )


def intervals(weights: str) -> str:
    """How often the intervals of shipped weights hold the true volume, how long they are, and which scan they name."""
    found = json.loads((RESULTS / "intervals" / weights / "intervals.json").read_text(encoding="utf-8"))
    subjects, seeds, coverage = found["subjects"], found["seeds"], found["coverage"]
    shares = [100 * share for part in coverage.values() for share in part.values()]
    titles, one, _, _, four, *others = rows(f"intervals/{weights}/intervals.md")
    length = titles.index("WT length, ml")
    named = {row[0]: float(row[2]) for row in others if row[0] in ("no T1ce", "T1ce")}
    return _lines(
        f"They were fitted to {subjects['fit']} **simulated** subjects of the look `{found['look']}` (cohort seed "
        f"{seeds['fit']}). Of {subjects['measure']} others (seed {seeds['measure']}) the 90 % intervals hold the true "
        f"volume in {min(shares):.1f} to {max(shares):.1f} %, by region and by whether one, two, three or four "
        f"sequences are given; of WT from all four it is {round(coverage['4']['WT'] * subjects['measure'])} of "
        f"{subjects['measure']}. The intervals are wide: for WT the median length is {four[length]} ml from all "
        f"four sequences and {one[length]} ml from one. Without T1ce the scan that the table names is the best next "
        f"one in {named['no T1ce']:.0f} % of the choices; with T1ce at hand in {named['T1ce']:.0f} %."
    )


def _lines(text: str) -> str:
    """A paragraph in lines of a page."""
    return textwrap.fill(text, 120) + "\n"


def decision_means() -> str:
    """Their means over the 15 subsets as a sentence."""
    argmax, rule = (" / ".join(_means(name)) for name in DECISIONS)
    return (
        f"The means over the 15 subsets are {rule} (WT / TC / ET) on these patients, of whom two\n"
        "have all sequences. Labels are those of the greatest expected Dice: a region is called as large as makes the\n"
        f"Dice that the model expects greatest. The argmax of the same probabilities gives {argmax}\n"
        "([card](smml/weights/small.md)).\n"
    )


def beside_small(weights: str) -> str:
    """On the shared patients: means over the 15 subsets beside those of `small`, and most that is called ET wrongly."""
    own, small = (LOOKED_AT[name] for name in (weights, "small"))
    return _lines(
        f"The means over the 15 subsets are {' / '.join(_means(own))} (WT / TC / ET) on these patients, of whom two "
        f"have all sequences, and those of `small` {' / '.join(_means(small))}. In the patient who has no ET at "
        f"most {_false_et(own)} are called ET, by `small` {_false_et(small)}."
    )


def _false_et(name: str) -> str:
    """The most that a look's weights call ET where there is none, and from which sequences."""
    false = _look(name)["false_ET_ml"]
    return f"{false.max():.1f} ml" + (f" ({false.idxmax().replace('+', ' + ')})" if false.max() else "")


def refined_patients() -> str:
    """Means over the 15 subsets on the shared patients of the students of `tiny-refined`, and of what is refined."""
    lines = ["| mean over the 15 subsets | WT | TC | ET | most false ET, ml |", "|---|---:|---:|---:|---:|"]
    students = LOOKED_AT["tiny-refined"]
    for output, name in (("students", students), ("refined", f"{students} refined")):
        lines.append(" | ".join([f"| {output}", *_means(name), f"{_look(name)['false_ET_ml'].max():.0f}"]) + " |")
    return "\n".join(lines) + "\n"


def looks() -> str:
    """How often the shared patients were scored so far."""
    table = pd.read_csv(RESULTS / "patients" / "looks.csv")
    # What is refined is scored together with its students.
    scored = table["weights"].str.removesuffix(" refined")
    number = len(table.assign(weights=scored)[["date", "commit", "weights", "preprocessing"]].drop_duplicates())
    return f"These patients were scored {number} times so far, each time with other weights or other code.\n"


def healthy(weights: str) -> str:
    """Share of healthy simulated subjects in whom less than 1 ml is called, over all subsets, and the worst subset."""
    path = RESULTS / "simulator" / weights / "healthy" / "false-alarms.json"
    if not path.exists():
        return "Healthy simulated subjects are not measured with these weights yet.\n"
    found = json.loads(path.read_text(encoding="utf-8"))
    table = pd.DataFrame.from_dict(found["quiet"], orient="index")
    mean = [f"{region} {100 * table[region].mean():.0f} %" for region in REGIONS]
    worst = table["WT"].idxmin()
    return (
        f"In {found['subjects']} other healthy **simulated** subjects less than 1 ml is called, over all subsets, of "
        f"{', '.join(mean)};\nfewest of WT from {worst} ({100 * table.loc[worst, 'WT']:.0f} %).\n"
    )


def tiny_sam() -> str:
    """Mean IoU of the tiny SAM from a jittered box, over lesions that their sequence shows."""
    titles, *measured = (row for row in rows("sam/tiny.md") if len(row) > 3)
    visible = dict(zip(titles, next(row for row in measured if row[0] == "where the region is visible"), strict=True))
    rim = dict(zip(titles, next(row for row in measured if row[:2] == ["ET", "T1ce"]), strict=True))
    lines = ["| from a jittered box, where the sequence shows the region | mean IoU |", "|---|---:|"]
    for words, score in (
        (
            "the one of its three masks that the asking prediction picks, as `SAMPrior` does",
            visible["as predicted"],
        ),
        ("the one that the truth picks, as in SAM's own protocol", visible["best of three"]),
        ("its one mask for clear prompts", visible["jittered box"]),
        ("the enhancing rim on T1ce alone, picked as `SAMPrior` does", rim["as predicted"]),
        ("no SAM: the box filled", visible["box filled"]),
        ("no SAM: the ellipse inscribed in it", visible["ellipse"]),
        ("no SAM: the prediction by itself", visible["students"]),
    ):
        lines.append(f"| {words} | {float(score):.2f} |")
    return "\n".join(lines) + "\n"


def published_means() -> str:
    """The published means that the package knows, each with the file in which it was read."""
    lines = ["| data set and split | method | WT | TC | ET | read in |", "|---|---|---:|---:|---:|---|"]
    for protocol in PROTOCOLS.values():
        for method, figure in protocol.figures.items():
            dice = " | ".join(f"{value:.1f}" for value in figure.means)
            repository, file, date = figure.source.split(", ")
            link = f"[{repository}](https://github.com/{repository}), {file}, {date}"
            lines.append(f"| {protocol.title} | {method} | {dice} | {link} |")
    return "\n".join(lines) + "\n"


# What an arm is called on pages that tell a study in short.
ARM_WORDS = {
    "single": "(a) one student",
    "pair": "(b) two students, no exchange, averaged",
    "feature": "(d) with feature consistency",
    "pixel-even": "(c) with pixel consistency",
    "both-even": "(e) with both",
    "refined-flat": "(f) with both and refinement",
    "wide": "(g) one student with the parameters of two",
    "average": "(h) one student, twice the steps, averaged weights",
    "pair-unweighted": "(b), cross-entropy not weighted by class",
    "both-unweighted": "(e), cross-entropy not weighted by class",
}


def differences(preset: str, pairs: tuple[tuple[str, str], ...]) -> str:
    """Differences of the mean Dice of a study's arms, from the tables of its report."""
    found = rows(f"study/{preset}/study.md")
    lines = ["| | against | all cases | those with the region | five patients |", "|---|---|---:|---:|---:|"]
    for pair in pairs:
        titles = [EVERY_ARM[name].title for name in pair]
        everywhere, there, *_, patients = (row for row in found if row[:2] == titles)
        words = [ARM_WORDS[name] for name in pair]
        lines.append("| " + " | ".join([*words, everywhere[5], there[5], patients[2]]) + " |")
    return "\n".join(lines) + "\n"


def further() -> str:
    """(f) against (b) over the study's own subjects, the further ones and all, and by what there is to find in them."""
    report = json.loads((RESULTS / "study" / "cpu2" / "further" / "further.json").read_text(encoding="utf-8"))
    everywhere, there = (
        [row for row in report["differences"] if row["counted"] == counted]
        for counted in ("all cases", "those with the region")
    )
    lines = ["| subjects | number | all cases | width | those with the region |", "|---|---:|---:|---:|---:|"]
    for row, present in itertools.zip_longest((*everywhere, *report["by kind"]), there):
        ends = [f"{one['difference']:+.1f} ({one['low']:+.1f} to {one['high']:+.1f})" for one in (row, present) if one]
        cells = [row["subjects"], str(row["cases"]), ends[0], f"{row['high'] - row['low']:.1f}", *(ends[1:] or ["–"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


_CPU2 = (
    ("pair", "single"),
    ("feature", "pair"),
    ("pixel-even", "pair"),
    ("both-even", "pair"),
    ("refined-flat", "both-even"),
    ("refined-flat", "pair"),
    ("refined-flat", "single"),
    ("refined-flat", "wide"),
    ("refined-flat", "average"),
    ("average", "pair"),
)
_PROBE2 = (("both-even", "pair"), ("both-unweighted", "pair-unweighted"), ("pair-unweighted", "pair"))

BLOCKS = {
    "study-cpu2": functools.partial(differences, "cpu2", _CPU2),
    "study-cpu2-further": further,
    "study-probe2": functools.partial(differences, "probe2", _PROBE2),
    "sam-tiny": tiny_sam,
    "decisions": decisions,
    "decision-means": decision_means,
    "decision-patients": decision_patients,
    "few-small": functools.partial(few, "small"),
    "intervals-small": functools.partial(intervals, "small"),
    "beside-small": functools.partial(beside_small, "tiny"),
    "looks": looks,
    "refined-patients": refined_patients,
    "published": published_means,
} | {
    f"{block.__name__}-{weights}": functools.partial(block, weights)
    for block in (simulated, patients, healthy)
    for weights in ("small", "tiny")
}


if __name__ == "__main__":
    main()
