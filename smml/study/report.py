"""What a study found: means, paired differences with intervals, the table over the subsets.

The unit is a case: its Dice of a region is first averaged over the 15 subsets. A difference between two arms is paired
by seed and case; its interval comes from a bootstrap that draws seeds and cases anew
(:mod:`smml.evaluation.bootstrap`).
"""

import gzip
import json
import math
import os
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.evaluation.added import Loss, added_sequences, largest_loss, losses_sheet
from smml.evaluation.bootstrap import bootstrap_mean
from smml.evaluation.by_number import by_number_of_sequences
from smml.evaluation.calibration import BINS
from smml.evaluation.metrics import NSD_TOLERANCE
from smml.evaluation.scores import Scores
from smml.evaluation.sheets import Kind, Sheet, number
from smml.evaluation.tables import MEAN, overlap_table
from smml.files import check_target, replacing, write_text
from smml.modalities import MODALITIES, SUBSETS, subset_name
from smml.study.presets import ARMS, EVERY_ARM, arm_label
from smml.study.run import CALIBRATION, PATIENTS, REPORT_SCORES, SETTINGS, is_report, reported_runs, run_name
from smml.study.variance import signs, variance_parts
from smml.study.witnesses import SUBSETS as WITNESSED
from smml.study.witnesses import cases_of, differences_sheet, summarise, witnesses_sheet

REPORT = "study.md"
MEASURES = (*REGIONS, "mean")
# Dice points: an interval so narrow tells whether a part of the method is worth what it costs.
_WANTED = 2.5
# Options that came after the first runs, each with the one that switches on what it weighs. Runs that do not name them
# had w_min = 0.05, which is no longer the default.
_LATER = {"gate_min_class_weight": "pixel_weight", "refinement_min_class_weight": "refinement"}
COLUMNS = ["arm", "seed", "case", "subset", "output", "region", "dice", "hd95", "nsd", "truth_ml", "predicted_ml"]
_CALIBRATED = ["arm", "seed", "sequences", "region", "ece"]


@dataclass(frozen=True)
class Study:
    """Scores of a study.

    Attributes:
        settings: its preset.
        scores: a row each of ``arm``, ``seed``, ``case``, ``subset``, ``output``, ``region``, ``dice`` (0 to 1),
            ``hd95`` (mm), ``nsd`` (0 to 1; not in the first study) and the region's true and predicted volume,
            ``truth_ml`` and ``predicted_ml`` (ml); every arm has the rows of the output that counts, a trained one
            "branch 1" and "student" too.
        runs: options, versions, commit and hardware of each training, by "ARM-seedN", with its minutes.
        patients: the same trainings on labelled patients, as :func:`smml.study.witnesses.summarise` has them; None
            where none were scored.
        calibration: a row each of ``arm``, ``seed``, number of ``sequences``, ``region`` and ``ece`` (0 to 1), of the
            output that counts; None where it was not measured.
    """

    settings: dict
    scores: pd.DataFrame
    runs: dict[str, dict]
    patients: pd.DataFrame | None = None
    calibration: pd.DataFrame | None = None

    @cached_property
    def arms(self) -> list[str]:
        """Arms that have scores, in table order."""
        present = set(self.scores["arm"])
        return [name for name in EVERY_ARM if name in present]

    def seeds(self, arm: str) -> list[int]:
        """Seeds of an arm that are done.

        Args:
            arm: its name.
        """
        return sorted(self.scores.loc[self.scores["arm"] == arm, "seed"].unique().tolist())

    @property
    def complete(self) -> bool:
        """Whether all arms of the preset are there with all seeds."""
        return all(name in self.arms and self.seeds(name) == self.settings["seeds"] for name in self.planned)

    @property
    def planned(self) -> list[str]:
        """The arms of a complete study, (a) to (f) where the preset does not name them."""
        return list(self.settings.get("arms", ARMS))

    def rows(self, arm: str, output: str | None = None) -> pd.DataFrame:
        """An arm's scores.

        Args:
            arm: its name.
            output: "student", "branch 1" or "refined"; None takes the one that counts for the arm.
        """
        return self._by_output.get((arm, output or EVERY_ARM[arm].output), self.scores[:0])

    @cached_property
    def _by_output(self) -> dict[tuple[str, str], pd.DataFrame]:
        """The scores by arm and output: a report asks for each of them hundreds of times."""
        return dict(iter(self.scores.groupby(["arm", "output"])))

    def values(
        self, arm: str, measure: str, *, column: str = "dice", output: str | None = None, present: bool = False
    ) -> pd.DataFrame:
        """Per seed (rows) and case (columns), the mean over the subsets; NaN is left out.

        Args:
            arm: its name.
            measure: a region, or "mean" for the mean of all three.
            column: "dice" (0 to 1) or "hd95" (mm).
            output: as for :meth:`rows`.
            present: only where the case has the region; of a case that has two of the three, "mean" is theirs.
        """
        rows = self.rows(arm, output)
        rows = rows if measure == "mean" else rows[rows["region"] == measure]
        rows = rows[rows["truth_ml"] > 0] if present else rows
        by_region = rows.groupby(["seed", "case", "region"])[column].mean()
        return by_region.groupby(["seed", "case"]).mean().unstack("case")

    def distances(self, region: str) -> pd.DataFrame:
        """HD95 (mm) per seed and case, an arm in each column: the mean over the subsets of which all have one.

        Each arm over what it has itself would be another set for each: where it misses the region it has none. So the
        region is there in every case here, a case has a value with every seed, and an arm that with some seed has one
        in fewer than half of its scores has no column, as it would take from the others what they have.

        Args:
            region: "WT", "TC" or "ET".
        """
        return self._distances[region]

    @cached_property
    def _distances(self) -> dict[str, pd.DataFrame]:
        """By region: a report asks for them with every arm."""
        return {region: self._common_distances(region) for region in REGIONS}

    def _common_distances(self, region: str) -> pd.DataFrame:
        columns = {}
        for arm in self.arms:
            rows = self.rows(arm)
            rows = rows[(rows["region"] == region) & (rows["truth_ml"] > 0)]
            if len(rows) and rows["hd95"].notna().groupby(rows["seed"]).mean().min() >= 0.5:
                columns[arm] = rows.set_index(["seed", "case", "subset"])["hd95"]
        if not columns:
            return pd.DataFrame()
        means = pd.DataFrame(columns).dropna().groupby(["seed", "case"]).mean()
        seeds = means.groupby("case").size()
        kept = seeds.index[seeds == means.index.get_level_values("seed").nunique()]
        return means[means.index.get_level_values("case").isin(kept)]

    def on_common_seeds(self) -> "Study":
        """The study over the seeds that all of its arms have, so that its arms can stand side by side; all of it where
        there is no such seed."""
        common = set.intersection(*(set(self.seeds(arm)) for arm in self.arms)) if self.arms else set()
        if not common or all(set(self.seeds(arm)) == common for arm in self.arms):
            return self
        scores = self.scores[self.scores["seed"].isin(common)].reset_index(drop=True)
        patients, calibration = (
            None if part is None else part[part["seed"].isin(common)] for part in (self.patients, self.calibration)
        )
        return replace(self, scores=scores, patients=patients, calibration=calibration)

    def difference(self, arm: str, parent: str, measure: str = "mean", *, present: bool = False) -> pd.DataFrame:
        """Dice of an arm less that of another (0 to 1), per seed (rows) and case (columns) that both have.

        Args:
            arm: its name.
            parent: the other's name.
            measure: as for :meth:`values`.
            present: as for :meth:`values`.
        """
        own, other = (self.values(name, measure, present=present) for name in (arm, parent))
        return (own - other).dropna()

    def volume_ratio(self, arm: str, region: str) -> float:
        """Predicted over true volume of a region, all subsets, seeds and cases that have it added up; 1 is right.

        Args:
            arm: its name.
            region: "WT", "TC" or "ET".
        """
        rows = self.rows(arm)
        rows = rows[(rows["region"] == region) & (rows["truth_ml"] > 0)]
        return float(rows["predicted_ml"].sum() / rows["truth_ml"].sum())


def read_study(output: str | os.PathLike, report: str | os.PathLike | None = None) -> Study:
    """Read what is there of a study.

    Args:
        output: the folder of :func:`run_study`, or the one that :func:`write_study` wrote.
        report: a report of the same study, whose trainings count where ``output`` has not made them itself; a folder
            that holds none is passed over.

    Raises:
        InputError: no study there, or no scores yet; or the report is that of another study.
    """
    output = Path(output)
    if not (output / SETTINGS).exists():
        raise InputError(f"{output}: holds no study ({SETTINGS} is missing); run `smml study` first")
    settings = json.loads((output / SETTINGS).read_text(encoding="utf-8"))
    if (output / REPORT_SCORES).exists():
        patients, calibration = (
            pd.read_csv(output / name) if (output / name).exists() else None for name in (PATIENTS, CALIBRATION)
        )
        return Study(settings["preset"], pd.read_csv(output / REPORT_SCORES), settings["runs"], patients, calibration)
    earlier = read_study(report) if report is not None and reported_runs(report, settings) else None
    frames: list[pd.DataFrame] = []
    witnessed: list[pd.DataFrame] = []
    calibrated: list[pd.DataFrame] = []
    runs: dict[str, dict] = {}
    for name, arm in EVERY_ARM.items():
        trained = arm.trained_as or name
        for seed in settings["seeds"]:
            path = output / "scores" / f"{run_name(trained, seed)}.csv"
            if not path.exists():
                continue
            frame = pd.read_csv(path).assign(arm=name, seed=seed)
            frames.append(
                frame[frame["output"].isin({arm.output, *(() if arm.trained_as else ("student", "branch 1"))})]
            )
            runs[path.stem] = _facts(path)
            for file, parts in ((PATIENTS, witnessed), (CALIBRATION, calibrated)):
                beside = path.with_name(f"{path.stem}-{file}")
                if beside.exists():
                    rows = pd.read_csv(beside).assign(arm=name, seed=seed)
                    parts.append(rows[rows["output"] == arm.output])
    if not frames and earlier is None:
        raise InputError(f"{output}: no arm of the study is done yet; run `smml study` to its end")
    here = [frame[COLUMNS] for frame in frames]
    before = earlier or Study(settings, pd.DataFrame(columns=COLUMNS), {})
    return Study(
        settings,
        _together(here, before.scores),
        {name: (before.runs | runs)[name] for name in sorted(before.runs | runs)},
        _together([summarise(rows) for rows in witnessed], before.patients) if witnessed else before.patients,
        _together([rows[_CALIBRATED] for rows in calibrated], before.calibration) if calibrated else before.calibration,
    )


def _together(here: list[pd.DataFrame], before: pd.DataFrame | None) -> pd.DataFrame:
    """The rows that were made here, and the earlier ones of other arms and seeds, in the arms' order."""
    made = {pair for frame in here for pair in zip(frame["arm"], frame["seed"], strict=True)}
    if before is not None and len(before):
        others = [pair not in made for pair in zip(before["arm"], before["seed"], strict=True)]
        here = [*here, before[others]]
    rows = pd.concat(here, ignore_index=True)
    order = rows["arm"].map({name: place for place, name in enumerate(EVERY_ARM)})
    return rows.iloc[np.lexsort((rows["seed"], order))].reset_index(drop=True)


def _facts(scores: Path) -> dict:
    """What the training run says of itself."""
    facts = json.loads(scores.with_name(f"{scores.stem}-config.json").read_text(encoding="utf-8"))
    log = pd.read_csv(scores.with_name(f"{scores.stem}-log.csv"))
    # The cases' names and hashes are the cohort's, whose seed is known.
    return {name: value for name, value in facts.items() if name != "cases"} | {
        "minutes": round(float(log["seconds"].sum() + log["prior_seconds"].sum()) / 60, 1)
    }


def compare_arms(study: Study, *, present: bool = False) -> pd.DataFrame:
    """Each arm against its parents, over the seeds that both have.

    Args:
        study: of :func:`read_study`.
        present: only over the cases that have the region (:meth:`Study.values`).

    Returns:
        A row per pair: ``arm``, ``parent``, ``seeds`` (how many), and for WT, TC, ET and their mean the difference in
        Dice (0 to 1), such as ``WT``, and its 95 % interval, ``WT low`` and ``WT high``; and ``signs mean``, the sign
        of the mean's difference for each seed, such as "++-".
    """
    rows = []
    for name in study.arms:
        for parent in EVERY_ARM[name].parents:
            if parent not in study.arms:
                continue
            pairs = {measure: study.difference(name, parent, measure, present=present) for measure in MEASURES}
            by_seed = pairs["mean"].mean(axis=1)
            if by_seed.empty:
                continue
            row = {"arm": name, "parent": parent, "seeds": len(by_seed)}
            for measure, pair in pairs.items():
                interval = bootstrap_mean(pair.to_numpy())
                row |= {measure: interval.mean, f"{measure} low": interval.low, f"{measure} high": interval.high}
            rows.append(row | {"signs mean": signs(by_seed)})
    return pd.DataFrame(rows)


def write_study(study: Study, folder: str | os.PathLike, title: str) -> Path:
    """Write ``scores.csv.gz``, ``study.json`` (preset, provenance of each run) and ``study.md``; returns the latter.

    Where patients were scored ``patients.csv`` is written too, and ``calibration.csv`` where that was measured.

    Args:
        study: of :func:`read_study`.
        folder: made if needed; a report that is there is written anew.
        title: heading: which preset, which data.

    Raises:
        InputError: the folder is a file or holds the study itself, whose ``study.json`` the report's would replace.
    """
    folder = Path(folder)
    check_report_folder(folder)
    with (
        replacing(folder / REPORT_SCORES) as temporary,
        open(temporary, "wb") as stream,
        # Neither time nor name of the temporary file: the same scores are the same bytes.
        gzip.GzipFile("scores.csv", "wb", fileobj=stream, mtime=0) as packed,
    ):
        study.scores.to_csv(packed, index=False)
    for name, rows in ((PATIENTS, study.patients), (CALIBRATION, study.calibration)):
        if rows is not None:
            write_text(folder / name, rows.to_csv(index=False, float_format="%.5g"))
    write_text(folder / SETTINGS, json.dumps({"preset": study.settings, "runs": study.runs}, indent=1) + "\n")
    write_text(folder / REPORT, format_study(study, title))
    return folder / REPORT


def check_report_folder(folder: str | os.PathLike, output: str | os.PathLike | None = None) -> None:
    """Refuse a folder that a report cannot be written to, before hours are spent on what it would say.

    A study and its report both call their settings ``study.json``: one in the other's place would destroy it.

    Args:
        folder: of the report.
        output: of the study, which may not exist yet, or the report that is written anew.

    Raises:
        InputError: the folder is a file, or lies in one, or holds a study; or it cannot be made or written to.
    """
    folder = Path(folder)
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if there.exists() and not there.is_dir():
        raise InputError(f"{folder}: {there} is a file, expected a folder for the report; choose another name")
    a_study = (folder / SETTINGS).exists() or (output is not None and folder.resolve() == Path(output).resolve())
    if a_study and not is_report(folder):
        raise InputError(
            f"{folder}: is the folder of a study, whose {SETTINGS} the report would replace; name another folder for "
            "the report (--results), or none: it is then written to report/ inside the study"
        )
    for name in (REPORT_SCORES, SETTINGS, REPORT, PATIENTS, CALIBRATION):
        check_target(folder / name)


def format_study(study: Study, title: str) -> str:
    """The report as Markdown."""
    shown = study.on_common_seeds()
    compared, there = (compare_arms(study, present=present) for present in (False, True))
    unfinished = "**Unfinished: not all of its arms, or not all of their seeds, are here.**"
    if shown is not study:
        seeds = shown.seeds(shown.arms[0])
        only = f"the seed{'s' if len(seeds) > 1 else ''} that all have: {', '.join(map(str, seeds))}"
        unfinished += f" Tables of the arms are over {only}; differences over all that both have."
    state = "" if study.complete else f"{unfinished}\n\n"
    return f"""# {title}

{state}{_protocol(shown)}

## Arms

{_lines(_means_lines(shown))}

## Differences, in Dice points, paired by case and seed

{_lines(_difference_lines(compared))}

{_many_comparisons(study, compared)}

Over the cases that have the region only: the table above also counts each case without it, with 1 where an arm calls
none of it and with 0 where it calls any.

{_lines(_difference_lines(there))}

## Where the width of these intervals comes from

{_widths_sheet(study, compared).markdown()}

Of the mean Dice, in points, from an analysis of variance of the paired differences: the share of their variance that
comes from training seeds, from the cases, and from neither alone (the residual); and how many seeds an interval
{_WANTED:g} points wide would need with these cases, a dash where the cases alone make it wider.
{_patients(study, shown, there)}
## What averaging two students brings by itself

{_lines(_alone_lines(shown))}

## Overlap, misses and false alarms, mean over the subsets

{_apart_sheet(shown).markdown()}

Dice over the cases that have the region; missed: the share of them in which nothing of it is found; false alarms: the
share of the others in which some of it is called.

{_surfaces_and_volumes(shown)}{_calibration(shown)}## By subset, mean Dice over WT, TC and ET

{_lines(_subset_table(shown))}

## By number of sequences, mean Dice over the cases that have the region

{_number_sheet(shown).markdown()}

Averaged over the subsets of as many sequences, then over WT, TC and ET; values: triples of seed, case and subset that
have the region, all three regions.

## Where one sequence more costs most

{_losses_sheet(shown).markdown()}

The least of many means, so chance has a part in it; the standard error is over the cases, each with the mean of its
seeds.

## How it was made

{_provenance(study)}
"""


def _means_lines(study: Study) -> list[str]:
    """A row per arm: Dice, HD95 and volume."""
    cases = {region: len(found.groupby("case")) if len(found := study.distances(region)) else 0 for region in REGIONS}
    heads = [*(f"Dice {m}" for m in MEASURES), *(f"HD95 {region} ({cases[region]})" for region in REGIONS), "WT volume"]
    means = [f"| arm | seeds | {' | '.join(heads)} |", "|---|---:|" + "---:|" * len(heads)]
    for name in study.arms:
        dice = [bootstrap_mean(study.values(name, measure).to_numpy()) for measure in MEASURES]
        cells = [f"{100 * i.mean:.1f} ({100 * i.low:.1f} to {100 * i.high:.1f})" for i in dice]
        distances = [distance_cell(study, name, region) for region in REGIONS]
        volume = f"{study.volume_ratio(name, 'WT'):.2f}"
        means.append(
            "| " + " | ".join([EVERY_ARM[name].title, str(len(study.seeds(name))), *cells, *distances, volume]) + " |"
        )
    return means


def _alone_lines(study: Study) -> list[str]:
    """A row per trained arm: one of its students, both, and what the second one brings."""
    alone = ["| arm | branch 1 alone | both, averaged | gain of averaging |", "|---|---:|---:|---:|"]
    for name in study.arms:
        if EVERY_ARM[name].trained_as is None:
            one, two = (study.values(name, "mean", output=o).to_numpy().mean() for o in ("branch 1", "student"))
            alone.append(f"| {EVERY_ARM[name].title} | {100 * one:.1f} | {100 * two:.1f} | {100 * (two - one):+.1f} |")
    return alone


def _difference_lines(compared: pd.DataFrame) -> list[str]:
    """The table of :func:`compare_arms`, in Dice points."""
    lines = ["| arm | against | " + " | ".join(MEASURES) + " | sign by seed |", "|---|---|" + "---:|" * 5]
    for _, row in compared.iterrows():
        cells = [
            f"{100 * row[m]:+.1f} ({100 * row[f'{m} low']:+.1f} to {100 * row[f'{m} high']:+.1f})" for m in MEASURES
        ]
        signs = row["signs mean"].replace("-", "−")
        lines.append(
            "| " + " | ".join([EVERY_ARM[row["arm"]].title, EVERY_ARM[row["parent"]].title, *cells, signs]) + " |"
        )
    return lines


def _many_comparisons(study: Study, compared: pd.DataFrame) -> str:
    """Which of the differences (of :func:`compare_arms`) stay if one looks at all of them (Bonferroni)."""
    if compared.empty:
        return "There are no two arms to compare yet."
    level = 1 - 0.05 / len(compared)
    # Over few seeds a bootstrap draws one of them alone so often that no level widens its interval any more.
    few = compared["seeds"].map(lambda seeds: float(seeds) ** -seeds > (1 - level) / 2)
    stay = []
    for _, row in compared[~few].iterrows():
        interval = bootstrap_mean(study.difference(row["arm"], row["parent"]).to_numpy(), level=level)
        if interval.low > 0 or interval.high < 0:
            stay.append(f"{arm_label(row['arm'])} against {arm_label(row['parent'])} ({100 * interval.mean:+.1f})")
    return (
        f"Of {len(compared)} comparisons some leave 0 out by chance. With intervals of {100 * level:.1f} % "
        f"(Bonferroni), of the mean Dice, these still do: {', '.join(stay) or 'none'}."
        + (
            f" Of {few.sum()} of them nothing can be said so: their seeds are too few for such a level."
            if few.any()
            else ""
        )
    )


def _widths_sheet(study: Study, compared: pd.DataFrame) -> Sheet:
    """A row per difference of :func:`compare_arms` over two or more seeds: its width, and where that comes from."""
    columns: list[tuple[str, Kind]] = [("arm", "word"), ("against", "word"), ("width", "number")]
    columns += [(f"{part}, %", "number") for part in ("from seeds", "from cases", "residual")]
    columns += [(f"seeds needed for {_WANTED:g} points", "number")]
    rows = []
    for row in compared.to_dict("records"):
        if row["seeds"] < 2:
            continue
        parts = variance_parts(100 * study.difference(row["arm"], row["parent"]).to_numpy())
        titles = (EVERY_ARM[row["arm"]].title, EVERY_ARM[row["parent"]].title)
        shares = [number(100 * share, 0) for share in parts.shares]
        wanted = parts.seeds_for(_WANTED)
        width = 100 * (row["mean high"] - row["mean low"])
        rows.append((*titles, number(width), *shares, number(math.nan if wanted is None else wanted, 0)))
    return Sheet(tuple(columns), tuple(rows))


def _patients(study: Study, shown: Study, compared: pd.DataFrame) -> str:
    """The patients' scores, and their differences beside those of :func:`compare_arms` where the region is."""
    if study.patients is None or shown.patients is None:
        return ""
    sheet, apart = differences_sheet(study.patients, compared)
    pairs = ", ".join(f"{arm_label(arm)} against {arm_label(parent)}" for arm, parent in apart)
    return f"""
## Patients, as witnesses

Where they point the other way than the simulated subjects that have the region: {pairs or "nowhere"}.

{witnesses_sheet(shown.patients).markdown()}

Real patients: no arm and no option was chosen on them, though the simulator's ranges were set with some of them in
view. Dice over those that have the region ({cases_of(study.patients)}), averaged over the seeds. The last column is the
most that any of these trainings calls ET in a patient without it, from
{", ".join(WITNESSED)}.

{sheet.markdown()}

Dice points, mean over the nine columns above, by seed; beside it the difference on the simulated subjects that have the
region, over all subsets. No interval: so few patients are no sample.
"""


def _apart_sheet(study: Study) -> Sheet:
    """A row per arm: overlap where the region is there, misses and false alarms, mean over the subsets."""
    tables = {name: overlap_table(_scores(study, name)) for name in study.arms}
    heads: dict[str, Kind] = {"Dice": "share", "missed": "harm", "false alarms": "harm"}
    columns: list[tuple[str, Kind]] = [("arm", "word")]
    columns += [(f"{head} {region}, %", kind) for head, kind in heads.items() for region in REGIONS]
    rows = []
    for name, table in tables.items():
        assert table is not None  # a study says where a region is
        mean = 100 * table.loc[MEAN]
        cells = [number(float(mean[f"{head} {region}"])) for head in heads for region in REGIONS]
        rows.append((EVERY_ARM[name].title, *cells))
    return Sheet(tuple(columns), tuple(rows))


def _surfaces_and_volumes(study: Study) -> str:
    """A row per arm: NSD and how far volumes are off, where the region is there; nothing where no NSD was kept."""
    if "nsd" not in study.scores:
        return ""
    columns: list[tuple[str, Kind]] = [("arm", "word")]
    columns += [(f"NSD {region}, %", "share") for region in REGIONS]
    columns += [(f"volume error {region}, ml", "number") for region in REGIONS]
    rows = []
    for name in study.arms:
        own = study.rows(name)
        own = own[own["truth_ml"] > 0]
        own = own.assign(off=(own["predicted_ml"] - own["truth_ml"]).abs())
        # As for Dice: over the cases, then over the subsets.
        means = own.groupby(["region", "subset"])[["nsd", "off"]].mean().groupby("region").mean().reindex(REGIONS)
        cells = [*(number(100 * value) for value in means["nsd"]), *(number(value) for value in means["off"])]
        rows.append((EVERY_ARM[name].title, *cells))
    return f"""## Surfaces and volumes, mean over the subsets

{Sheet(tuple(columns), tuple(rows)).markdown()}

Over the cases that have the region. NSD: the share of both surfaces within {NSD_TOLERANCE:g} mm of each other, which
between voxels of {study.settings["spacing"]:g} mm is hard to get; volume error: the mean distance in ml between what is
found and what is there.

"""


def _calibration(study: Study) -> str:
    """A row per arm: the calibration error of each region, and by number of sequences."""
    if study.calibration is None:
        return ""
    columns: list[tuple[str, Kind]] = [("arm", "word")]
    columns += [(f"ECE {region}, %", "number") for region in REGIONS]
    columns += [(f"ECE from {count}, %", "number") for count in range(1, len(MODALITIES) + 1)]
    rows = []
    for name in (name for name in study.arms if name in set(study.calibration["arm"])):
        own = 100 * study.calibration[study.calibration["arm"] == name].groupby(["region", "sequences"])["ece"].mean()
        means = [own.groupby("region").mean().reindex(REGIONS), own.groupby("sequences").mean()]
        rows.append((EVERY_ARM[name].title, *(number(value, 2) for part in means for value in part)))
    return f"""## Calibration

{Sheet(tuple(columns), tuple(rows)).markdown()}

Expected calibration error over the brain's voxels of all held-out subjects together, {BINS} bins: of each region, the
mean over one to four sequences, and from each number of sequences, the mean over the regions; then over the seeds. Less
is better.

"""


def _protocol(study: Study) -> str:
    sizes, options = study.settings, study.settings["training"]
    # The first presets did not name it.
    look = f" of the look `{sizes['look']}`" if "look" in sizes else ""
    return (
        f"{sizes['training_cases']} **simulated** subjects{look} to train on (cohort seed {sizes['data_seed']}) and "
        f"{study.scores['case'].nunique()} held out ({sizes['data_seed'] + 1}), {sizes['spacing']:g} mm; "
        f"{options['steps']} steps of {options['batch_size']} patches of {options['patch']}³, students "
        f"`{options['preset']}`. A case's Dice is its mean over the 15 subsets; intervals (95 %) come from a bootstrap "
        f"over cases and seeds. Windows of {options['patch']}³, overlap 50 %. Dice in per cent; HD95 in mm, over the "
        "cases that have the region (in brackets: how many) and the subsets from which all arms find some of it with "
        "every seed, a dash for an arm that with some seed finds none in more than half; volume: predicted over true; "
        "no post-processing. (a) is branch 1 of (b), between whose students nothing is exchanged."
    )


def distance_cell(study: Study, arm: str, region: str) -> str:
    """Mean HD95 (mm) over what all arms have (:meth:`Study.distances`), with its interval, or a dash.

    Args:
        study: of :func:`read_study`.
        arm: its name.
        region: "WT", "TC" or "ET".
    """
    found = study.distances(region)
    if arm not in found or found.empty:
        return "–"
    interval = bootstrap_mean(found[arm].unstack("case").to_numpy())
    return f"{interval.mean:.1f} ({interval.low:.1f} to {interval.high:.1f})"


def _subset_table(study: Study) -> list[str]:
    head = [arm_label(name) for name in study.arms]
    lines = ["| subset | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    columns = {name: study.rows(name).groupby("subset")["dice"].mean() for name in study.arms}
    for subset in map(subset_name, SUBSETS):
        lines.append(f"| {subset} | " + " | ".join(f"{100 * column[subset]:.1f}" for column in columns.values()) + " |")
    return lines


def _number_sheet(study: Study) -> Sheet:
    """A row per arm, and for each number of sequences the mean Dice and over how many values."""
    tables = {name: by_number_of_sequences(_scores(study, name)) for name in study.arms}
    counts = range(1, len(MODALITIES) + 1)
    columns: list[tuple[str, Kind]] = [("arm", "word")]
    for count in counts:
        columns += [(f"Dice from {count}, %", "share"), (f"values from {count}", "number")]
    rows = []
    for name, table in tables.items():
        assert table is not None  # a study says where a region is
        cells = [EVERY_ARM[name].title]
        for row in (table.reindex(counts).loc[count] for count in counts):
            cells += [number(100 * float(row[[f"Dice {region}" for region in REGIONS]].mean()))]
            cells += [number(float(row[[f"values {region}" for region in REGIONS]].sum()), 0)]
        rows.append(tuple(cells))
    return Sheet(tuple(columns), tuple(rows))


def _losses_sheet(study: Study) -> Sheet:
    losses: dict[str, Loss] = {}
    for name in study.arms:
        added = added_sequences(_scores(study, name))
        losses |= {EVERY_ARM[name].title: largest_loss(added)} if len(added) else {}
    return losses_sheet(losses, "arm")


def _scores(study: Study, arm: str) -> Scores:
    """An arm's scores, as those of one output."""
    return Scores(study.rows(arm).drop(columns="output"))


def _provenance(study: Study) -> str:
    def each(key: str) -> str:
        """The values of all trainings; of several, each with the number of trainings that have it."""
        found = Counter(json.dumps(run[key]).strip('"') for run in study.runs.values())
        return ", ".join(value if len(found) == 1 else f"{value} ({found[value]})" for value in sorted(found))

    minutes = np.array([run["minutes"] for run in study.runs.values()])
    least, most = (f"{value:.0f}" for value in (minutes.min(), minutes.max()))
    lasting = f"{most} minutes" if least == most else f"{least} to {most} minutes"
    trainings = "training" if len(minutes) == 1 else "trainings"
    arms = "" if study.arms == study.planned else f" --arms {','.join(study.arms)}"
    unnamed = {
        option: sum(bool(run[switch]) and option not in run for run in study.runs.values())
        for option, switch in _LATER.items()
    }
    early = ", ".join(f"`{option}` ({count})" for option, count in unnamed.items() if count)
    return (
        f"`smml study FOLDER --preset {study.settings['preset']}{arms}`: {len(minutes)} {trainings} of "
        f"{lasting}, {minutes.sum():.0f} in all, evaluation not counted; "
        f"{each('hardware')}; commit {each('commit')}; versions {each('versions')}. Options of every run: `{SETTINGS}` "
        "beside this file; every score: `scores.csv.gz`."
        + (f" Runs made before an option was one do not name it; it was 0.05 there: {early}." if early else "")
    )


def _lines(lines: list[str]) -> str:
    return "\n".join(lines)
