"""Any set of results side by side, ours or another tool's: means over the subsets, differences with intervals."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from smml.data.labels import REGIONS
from smml.data.releases import patient_of
from smml.errors import InputError
from smml.evaluation.added import Loss, added_sequences, largest_loss, losses_sheet
from smml.evaluation.bootstrap import Interval, bootstrap_mean, bootstrap_mean_over_subsets
from smml.evaluation.by_number import NUMBER_WORDS, by_number_of_sequences, number_sheet
from smml.evaluation.distances import common_distances
from smml.evaluation.overlap import false_alarms, misses, present_dice, tells_presence
from smml.evaluation.page import page
from smml.evaluation.pairing import common_pairs, presence
from smml.evaluation.published import PROTOCOLS, Figure
from smml.evaluation.scores import Scores
from smml.evaluation.sheets import Kind, Section, Sheet, number, signed
from smml.modalities import SUBSETS, subset_name


@dataclass(frozen=True, eq=False)
class Comparison:
    """Results side by side.

    Attributes:
        frame: one row per result, by its name. "Dice WT" ...: the literature's mean, over cases, then over subsets
            (0 to 1; both empty counts 1, a false alarm 0). "Dice WT change" ...: the difference to the first row, and
            "Dice WT low", "Dice WT high" its 95 % interval, from a paired bootstrap over cases; NaN in the first row.
            "HD95 WT" ...: in mm, over the cases and subsets of which all results have one; "no HD95 WT" ...: of how
            many pairs of case and subset this result has none. Over these pairs, as :mod:`smml.evaluation.overlap`
            counts them: "present Dice WT" ..., "present WT", "missed WT", "absent WT", "false alarms WT" and "false
            alarm ml WT" (median). NaN where the files do not tell.
        by_number: by result and number of sequences, what :func:`smml.evaluation.by_number_of_sequences` gives of these
            pairs; without the results of which it cannot be told which regions are there.
        losses: by result, where one sequence more costs most (:func:`smml.evaluation.largest_loss`), over these pairs;
            empty where no two of the subsets differ by one sequence.
        protocol: over what, and how the changes came about.
        pairs: what was compared: (case, subset).
        left_out: by region, of how many pairs not all results have an HD95.
        notes: where the results are not of one kind, and what was done about it.
    """

    frame: pd.DataFrame
    by_number: dict[str, pd.DataFrame]
    losses: dict[str, Loss]
    protocol: str
    pairs: list[tuple[str, str]]
    left_out: dict[str, int]
    notes: tuple[str, ...] = ()


def compare(results: Mapping[str, Scores], *, resamples: int = 10_000) -> Comparison:
    """Results side by side over what all of them have: the same cases and subsets.

    A subset that a case lacks in every result, as a case without T2 does, is left out and counted. A region that a
    result lacks altogether, as a network's that was trained on labels, stays empty in its row.

    Args:
        results: scores by name, one output each (:meth:`Scores.outputs`); the first is what the others are compared
            with.
        resamples: of the bootstrap.

    Raises:
        InputError: nothing in common, or a result with gaps that the others do not have.
    """
    if not results:
        raise InputError("nothing to compare: give at least one result")
    tables = {name: scores.frame.set_index(["case", "subset", "region"]) for name, scores in results.items()}
    pairs, left_out, notes = common_pairs(tables)
    cases = sorted({case for case, _ in pairs})
    order = [name for name in map(subset_name, SUBSETS) if name in {subset for _, subset in pairs}]
    tables = {name: _chosen(name, table, pairs) for name, table in tables.items()}
    first = next(iter(results))
    # By case and subset, NaN where a case lacks a subset.
    dice = {
        name: {
            region: part["dice"].droplevel("region").unstack("subset").loc[cases, order]
            for region, part in table.groupby(level="region")
        }
        for name, table in tables.items()
    }
    distances = common_distances(tables)
    there, differences = presence(tables)
    rows: dict[str, dict[str, float]] = {}
    by_number: dict[str, pd.DataFrame] = {}
    losses: dict[str, Loss] = {}
    for name, table in tables.items():
        row = {f"Dice {r}": float(dice[name][r].mean().mean()) if r in dice[name] else np.nan for r in REGIONS}
        row |= {f"HD95 {region}": distances.means[name][region] for region in REGIONS}
        for region in REGIONS:
            columns = [f"Dice {region} {part}" for part in ("change", "low", "high")]
            if name == first or region not in dice[name] or region not in dice[first]:
                row |= dict.fromkeys(columns, np.nan)
                continue
            interval = _interval(dice[name][region] - dice[first][region], resamples)
            row |= dict(zip(columns, (interval.mean, interval.low, interval.high), strict=True))
        row |= {f"no HD95 {region}": distances.missing[name][region] for region in REGIONS}
        scores = _told(table, there[name])
        rows[name] = row | _apart(scores)
        numbers, added = by_number_of_sequences(scores), added_sequences(scores)
        by_number |= {} if numbers is None else {name: numbers}
        losses |= {name: largest_loss(added)} if len(added) else {}
        lacks = [region for region in REGIONS if region not in dice[name]]
        if lacks:
            notes.append(f"{name} has no scores of {', '.join(lacks)}")
        if there[name] is None:
            notes.append(f"of {name} it cannot be told which regions are there: no file says so (truth_ml)")
    protocols = {name: scores.protocol for name, scores in results.items()}
    if len(set(protocols.values())) > 1:
        notes += [f"{name}: {protocol}" for name, protocol in protocols.items() if protocol != "not stated"]
    notes += differences + ([distances.note] if distances.note else [])
    return Comparison(
        pd.DataFrame.from_dict(rows, orient="index"),
        by_number,
        losses,
        _protocol(first, cases, len(order), len(pairs), left_out, distances.left_out),
        pairs,
        distances.left_out,
        tuple(notes),
    )


def _chosen(name: str, table: pd.DataFrame, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """The rows of these pairs, in all regions that the result has."""
    held = set(table.index.get_level_values("region"))
    wanted = pd.MultiIndex.from_tuples(
        [(*pair, region) for pair in pairs for region in REGIONS if region in held], names=table.index.names
    )
    gaps = wanted.difference(table.index)
    if len(gaps):
        raise InputError(
            f"{name}: has no score of {', '.join(gaps[0])}, which another region or result has; score it too, or "
            "remove this subset of the case from all results"
        )
    return table.loc[wanted]


def _interval(change: pd.DataFrame, resamples: int) -> Interval:
    values, patients = change.to_numpy(), [patient_of(case) for case in change.index]
    if np.isnan(values).any() or len(set(patients)) < len(patients):
        return bootstrap_mean_over_subsets(values, groups=patients, resamples=resamples)
    return bootstrap_mean(values.mean(axis=1), resamples=resamples)


def _told(table: pd.DataFrame, there: pd.Series | None) -> Scores:
    """The rows as scores of one output, which say as much of what is there as all results together."""
    own = table.drop(columns=["truth_ml", "present", "output"], errors="ignore")
    return Scores((own if there is None else own.assign(present=there)).reset_index())


def _apart(scores: Scores) -> dict[str, float]:
    """Overlap where a region is there, misses and false alarms, by the names of the columns."""
    columns = ("present Dice", "present", "missed", "absent", "false alarms", "false alarm ml")
    row = {f"{column} {region}": np.nan for column in columns for region in REGIONS}
    if not tells_presence(scores):
        return row
    overlap = present_dice(scores)["dice"].groupby(level="region", observed=True).mean()
    missed, alarms = misses(scores, by=("region",)), false_alarms(scores, by=("region",))
    for region in missed.index:
        values = (overlap[region], *missed.loc[region, ["present", "missed"]])
        values += tuple(alarms.loc[region, ["absent", "called", "median_ml"]])
        row |= {f"{column} {region}": float(value) for column, value in zip(columns, values, strict=True)}
    return row


def _protocol(
    first: str, cases: list[str], subsets: int, pairs: int, left_out: int, no_distance: dict[str, int]
) -> str:
    patients = len(set(map(patient_of, cases)))
    drawn = "cases" if patients == len(cases) else f"{patients} patients, each with all visits"
    without = (
        f"; {left_out} of {left_out + pairs} pairs of case and subset left out, because no result has them"
        if left_out
        else ""
    )
    each = ", ".join(f"{region} {count}" for region, count in no_distance.items())
    return (
        f"{len(cases)} cases and {subsets} subsets that all results have{without}; Dice is the literature's mean, in "
        "which both empty counts 1 and a false alarm 0; HD95 is over the pairs of case and subset of which all results "
        f"with distances have one, left out of {pairs}: {each}; change to {first!r} with 95 % interval, paired "
        f"bootstrap over {drawn}"
    )


def published(protocol: str, pairs: Iterable[tuple[str, str]]) -> dict[str, Figure]:
    """Published means for results on these cases over all 15 subsets, and never for others.

    Args:
        protocol: a key of :data:`smml.evaluation.published.PROTOCOLS`.
        pairs: case and subset of what was scored, as :attr:`Comparison.pairs` lists them.

    Returns:
        Mean Dice of WT, TC and ET over the 15 subsets, in per cent, by method, and where each stands.

    Raises:
        InputError: an unknown protocol, cases of another data set (simulated ones, say), another number of them, or
            cases that were not scored on all 15 subsets.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"no published figures for {protocol!r}; there are {', '.join(PROTOCOLS)}")
    wanted = PROTOCOLS[protocol]
    subsets: dict[str, set[str]] = {}
    for case, subset in pairs:
        subsets.setdefault(case, set()).add(subset)
    cases = sorted(subsets)
    strangers = [case for case in cases if not wanted.pattern.fullmatch(case)]
    if strangers:
        raise InputError(
            f"case {strangers[0]} is not of {wanted.title}: published figures stand beside results on the same data "
            "only; leave --published out"
        )
    if len(cases) != wanted.cases:
        raise InputError(
            f"published figures of {wanted.title} are means over {wanted.cases} cases, these results over "
            f"{len(cases)}: not the same protocol; leave --published out"
        )
    partial = next((case for case in cases if len(subsets[case]) < len(SUBSETS)), None)
    if partial:
        raise InputError(
            f"published figures of {wanted.title} are means over all {len(SUBSETS)} subsets of sequences, these "
            f"results have only {len(subsets[partial])} of case {partial}: not the same protocol; leave --published out"
        )
    return wanted.figures


def format_comparison(comparison: Comparison, reference: Mapping[str, Figure] | None = None) -> str:
    """The comparison as Markdown: means, differences with intervals, what they mix, the protocol, and notes.

    Dice in per cent with differences in points, HD95 in mm. Published means stand below the results' own.

    Args:
        comparison: of :func:`compare`.
        reference: published means by the name of the method, of :func:`published`.
    """
    first, *others = _sections(comparison, reference or {})
    parts = [first.sheet.markdown(), *(f"{each.words}:\n\n{each.sheet.markdown()}" for each in others)]
    return "\n\n".join([*parts, comparison.protocol + ".", *(f"Note: {note}." for note in comparison.notes)])


def comparison_page(comparison: Comparison, reference: Mapping[str, Figure] | None = None) -> str:
    """The same tables as one HTML file, which fetches nothing and runs nothing.

    Args:
        comparison: of :func:`compare`.
        reference: published means by the name of the method, of :func:`published`.
    """
    said = [f"{comparison.protocol}.", *(f"Note: {note}." for note in comparison.notes)]
    return page(" · ".join(map(str, comparison.frame.index)), said, _sections(comparison, reference or {}))


def _sections(comparison: Comparison, reference: Mapping[str, Figure]) -> list[Section]:
    frame = comparison.frame
    found = [Section("Means over the subsets", _means_sheet(frame, reference))]
    if len(frame) > 1:
        words = f"Differences of Dice to {frame.index[0]}, with 95 % intervals"
        found.append(Section("Differences", _changes_sheet(frame), words))
    words = (
        "What the mean mixes: pairs of case and subset that have a region and in how many it is missed, those "
        "without it and in how many it is called, and the median of what is called"
    )
    found.append(Section("Overlap, misses and false alarms", _apart_sheet(frame), words))
    if comparison.by_number:
        sheet = number_sheet(comparison.by_number, "result")
        found.append(Section("By number of sequences", sheet, NUMBER_WORDS))
    if comparison.losses:
        found.append(
            Section(
                "One sequence more", losses_sheet(comparison.losses, "result"), "Where one sequence more costs most"
            )
        )
    return found


def _means_sheet(frame: pd.DataFrame, reference: Mapping[str, Figure]) -> Sheet:
    columns: list[tuple[str, Kind]] = [("result", "word"), *((f"Dice {region}, %", "share") for region in REGIONS)]
    columns += [(f"HD95 {region}, mm", "number") for region in REGIONS]
    rows = []
    for name, row in frame.iterrows():
        dice = (number(100 * row[f"Dice {region}"]) for region in REGIONS)
        rows.append((str(name), *dice, *(number(row[f"HD95 {region}"]) for region in REGIONS)))
    for name, figure in reference.items():
        none = [number(np.nan)] * len(REGIONS)
        rows.append((f"{name} (published: {figure.source})", *map(number, figure.means), *none))
    return Sheet(tuple(columns), tuple(rows))


def _changes_sheet(frame: pd.DataFrame) -> Sheet:
    heads = ("difference, points", "from, points", "to, points")
    columns: tuple[tuple[str, Kind], ...] = (("result", "word"), ("region", "word"), *((h, "number") for h in heads))
    rows = [
        (str(name), region, *(signed(100 * row[f"Dice {region} {part}"]) for part in ("change", "low", "high")))
        for name, row in frame.iloc[1:].iterrows()
        for region in REGIONS
    ]
    return Sheet(columns, tuple(rows))


def _apart_sheet(frame: pd.DataFrame) -> Sheet:
    columns: tuple[tuple[str, Kind], ...] = (
        ("result", "word"),
        ("region", "word"),
        ("Dice where it is, %", "share"),
        ("there", "number"),
        ("missed", "number"),
        ("missed, %", "harm"),
        ("not there", "number"),
        ("called", "number"),
        ("called, %", "harm"),
        ("median called, ml", "number"),
        ("no HD95", "number"),
    )
    rows = []
    for name, row in frame.iterrows():
        for region in REGIONS:
            there, missed = row[f"present {region}"], row[f"missed {region}"]
            absent, called = row[f"absent {region}"], row[f"false alarms {region}"]
            rows.append(
                (
                    str(name),
                    region,
                    number(100 * row[f"present Dice {region}"]),
                    *(number(there, 0), number(missed, 0), _per_cent(missed, there)),
                    *(number(absent, 0), number(called, 0), _per_cent(called, absent)),
                    number(row[f"false alarm ml {region}"], 2),
                    number(row[f"no HD95 {region}"], 0),
                )
            )
    return Sheet(columns, tuple(rows))


def _per_cent(count: float, of: float) -> str:
    return number(100 * count / of if of > 0 else np.nan)
