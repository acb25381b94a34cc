"""Any set of results side by side, ours or another tool's: means over the subsets, differences with intervals.

A result is a CSV file with a row per case, subset and region (``scores.csv`` of ``smml evaluate``, or a table from
another tool):

    case,subset,region,dice[,hd95][,output]
    BraTS20_Training_001,flair+t2,WT,0.91,4.2

``subset`` names modalities in any order and case, joined by "+"; ``region`` is WT, TC or ET; ``dice`` lies in [0, 1];
``hd95`` is in mm and may be empty; ``output`` tells "student" from "refined" where a file holds both, and rows in which
it is blank are one output. A case may lack subsets, as one without T2 does, if all results lack the same.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.evaluation.bootstrap import bootstrap_mean, bootstrap_mean_over_subsets
from smml.evaluation.published import PROTOCOLS
from smml.modalities import SUBSETS, parse_subset, subset_name

_COLUMNS = ("case", "subset", "region", "dice")


def read_scores(path: str | os.PathLike) -> dict[str, pd.DataFrame]:
    """Read a result file.

    Args:
        path: a CSV file; a folder stands for the ``scores.csv`` in it.

    Returns:
        Scores by output ("student", "refined"; "" where the file does not say), each with the columns of this module's
        form, subsets under the project's names.

    Raises:
        InputError: no such file, or rows that are not as above; file, row and value are named.
    """
    path = Path(path)
    path = path / "scores.csv" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path}: no such result; give a CSV file or the folder of `smml evaluate --output`")
    try:
        # As text: what pandas takes for missing ("NA", a blank) may be a name, or must be told with its row.
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise InputError(f"{path}: not a CSV file ({error})") from error
    missing = [column for column in _COLUMNS if column not in table]
    if missing or table.empty:
        what = f"lacks the columns {', '.join(missing)}" if missing else "holds no rows"
        raise InputError(f"{path}: {what}; expected {','.join(_COLUMNS)}[,hd95][,output], a row per case and region")
    # A row that ends early lacks its last cells, which is as if they were blank.
    table = table.fillna("")
    blank = np.flatnonzero(table["case"].str.strip() == "")
    if blank.size:
        raise InputError(f"{path}: row {blank[0] + 2}: names no case; expected its identifier; fill in the column case")
    table["subset"] = [_subset(path, row, text) for row, text in enumerate(table["subset"], start=2)]
    odd = sorted(set(table["region"]) - set(REGIONS))
    if odd:
        raise InputError(f"{path}: unknown region {odd[0]!r}; expected {', '.join(REGIONS)}")
    dice = pd.to_numeric(table["dice"], errors="coerce")
    wrong = np.flatnonzero(~((dice >= 0) & (dice <= 1 + 1e-6)))
    if wrong.size:
        value = table["dice"].iloc[wrong[0]]
        raise InputError(f"{path}: row {wrong[0] + 2}: Dice must lie in [0, 1], found {value!r}; per cent / 100")
    table["dice"] = dice
    table["hd95"] = _distances(path, table["hd95"]) if "hd95" in table else np.nan
    table["output"] = table["output"].str.strip() if "output" in table else ""
    keys = ["output", "case", "subset", "region"]
    twice = table[table.duplicated(keys)]
    if len(twice):
        raise InputError(f"{path}: {', '.join(map(str, twice[keys].iloc[0]))} stands there twice; one row each")
    return {str(output): part for output, part in table.groupby("output")}


def _distances(path: Path, column: pd.Series) -> pd.Series:
    """HD95 as numbers, NaN where the file says that there is none."""
    values = pd.to_numeric(column, errors="coerce")
    absent = column.str.strip().str.lower().isin(["", "nan", "na", "n/a", "none"])
    wrong = np.flatnonzero(~(absent | ((values >= 0) & np.isfinite(values))))
    if wrong.size:
        raise InputError(
            f"{path}: row {wrong[0] + 2}: hd95 must be a distance in mm, found {column.iloc[wrong[0]]!r}; leave the "
            "cell empty where there is none"
        )
    return values


def _subset(path: Path, row: int, text: str) -> str:
    try:
        return subset_name(parse_subset(str(text).lower()))
    except InputError as error:
        raise InputError(f"{path}: row {row}: {error}") from error


def compare(results: Mapping[str, pd.DataFrame], *, resamples: int = 10_000) -> pd.DataFrame:
    """Results side by side over what all of them have: the same cases and subsets.

    A subset that a case lacks in every result, as a case without T2 does, is left out and counted.

    Args:
        results: scores by name, of :func:`read_scores` or :func:`smml.evaluation.evaluate` (one output each); the first
            is what the others are compared with.
        resamples: of the bootstrap.

    Returns:
        One row per name. "Dice WT" ... and "HD95 WT" ...: mean over cases, then over subsets (Dice 0 to 1, mm).
        "Dice WT change" ...: the difference to the first row, an :class:`~smml.evaluation.bootstrap.Interval` from a
        paired bootstrap over cases (None in the first row). ``attrs["protocol"]`` says over what, and
        ``attrs["pairs"]`` lists it: (case, subset).

    Raises:
        InputError: nothing in common, or a result with gaps that the others do not have.
    """
    if not results:
        raise InputError("nothing to compare: give at least one result")
    tables = {name: scores.set_index(["case", "subset", "region"]) for name, scores in results.items()}
    pairs, left_out = _common_pairs(results)
    cases = sorted({case for case, _ in pairs})
    order = [name for name in map(subset_name, SUBSETS) if name in {subset for _, subset in pairs}]
    wanted = pd.MultiIndex.from_tuples([(*pair, region) for pair in pairs for region in REGIONS])
    # By case and subset, NaN where a case lacks a subset.
    dice: dict[str, dict[str, pd.DataFrame]] = {}
    rows = {}
    for name, table in tables.items():
        gaps = wanted.difference(table.index)
        if len(gaps):
            raise InputError(
                f"{name}: has no score of {', '.join(gaps[0])}, which another region or result has; score it too, or "
                "remove this subset of the case from all results"
            )
        chosen = table.loc[wanted].rename_axis(["case", "subset", "region"])
        dice[name] = {
            region: chosen.xs(region, level="region")["dice"].unstack("subset").loc[cases, order] for region in REGIONS
        }
        distance = chosen["hd95"].groupby(["region", "subset"]).mean().groupby("region").mean()
        rows[name] = {f"Dice {region}": float(dice[name][region].mean().mean()) for region in REGIONS}
        rows[name] |= {f"HD95 {region}": float(distance[region]) for region in REGIONS}
    first = next(iter(results))
    for name, row in rows.items():
        for region in REGIONS:
            change = (dice[name][region] - dice[first][region]).to_numpy()
            if name == first:
                row[f"Dice {region} change"] = None
            elif np.isnan(change).any():
                row[f"Dice {region} change"] = bootstrap_mean_over_subsets(change, resamples=resamples)
            else:
                row[f"Dice {region} change"] = bootstrap_mean(change.mean(axis=1), resamples=resamples)
    frame = pd.DataFrame.from_dict(rows, orient="index")
    without = (
        f"; {left_out} of {left_out + len(pairs)} pairs of case and subset left out, because no result has them"
        if left_out
        else ""
    )
    frame.attrs["protocol"] = (
        f"{len(cases)} cases and {len(order)} subsets that all results have{without}; change to {first!r} with 95 % "
        "interval, paired bootstrap over cases"
    )
    frame.attrs["pairs"] = pairs
    return frame


def _common_pairs(results: Mapping[str, pd.DataFrame]) -> tuple[list[tuple[str, str]], int]:
    """(case, subset) that are compared, in order, and how many more these cases and subsets would make.

    Raises:
        InputError: nothing in common, or some results have a pair of these cases and subsets that others lack: leaving
            it out would let a result choose what it is measured on.
    """
    have = {name: set(zip(scores["case"], scores["subset"], strict=True)) for name, scores in results.items()}
    cases = set.intersection(*({case for case, _ in pairs} for pairs in have.values()))
    subsets = set.intersection(*({subset for _, subset in pairs} for pairs in have.values()))
    order = [name for name in map(subset_name, SUBSETS) if name in subsets]
    grid = [(case, subset) for case in sorted(cases) for subset in order]
    pairs = [pair for pair in grid if any(pair in own for own in have.values())]
    if not pairs:
        what = "case" if not cases else "subset"
        raise InputError(f"the results {', '.join(results)} share no {what}; compare them on the same data")
    for name, own in have.items():
        gap = next((pair for pair in pairs if pair not in own), None)
        if gap:
            other = next(other for other in have if gap in have[other])
            raise InputError(
                f"{name}: has no score of {', '.join(gap)}, which {other} has; score it too, or remove its rows from "
                "the other results"
            )
    left = {case for case, _ in pairs}
    kept = {subset for _, subset in pairs}
    return pairs, len(left) * len(kept) - len(pairs)


def published(protocol: str, pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[float, float, float]]:
    """Published means for results on these cases over all 15 subsets, and never for others.

    Args:
        protocol: a key of :data:`smml.evaluation.published.PROTOCOLS`.
        pairs: case and subset of what was scored, as ``attrs["pairs"]`` of :func:`compare`.

    Returns:
        Mean Dice of WT, TC and ET over the 15 subsets, in per cent, by method.

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
    return wanted.means


def format_comparison(table: pd.DataFrame, reference: Mapping[str, tuple[float, float, float]] | None = None) -> str:
    """The comparison as Markdown: Dice in per cent with intervals in points, HD95 in mm, then published means.

    Args:
        table: of :func:`compare`.
        reference: published means of WT, TC and ET in per cent, by the name of the method; printed below, apart.
    """
    head = ["result", *(f"Dice {region}" for region in REGIONS), *(f"HD95 {region}" for region in REGIONS)]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name, row in table.iterrows():
        cells = [str(name)]
        for region in REGIONS:
            change = row[f"Dice {region} change"]
            text = f"{100 * row[f'Dice {region}']:.1f}"
            if change is not None:
                text += f" ({100 * change.mean:+.1f}; {100 * change.low:+.1f} to {100 * change.high:+.1f})"
            cells.append(text)
        cells += ["–" if np.isnan(row[f"HD95 {region}"]) else f"{row[f'HD95 {region}']:.1f}" for region in REGIONS]
        lines.append("| " + " | ".join(cells) + " |")
    for name, means in (reference or {}).items():
        lines.append("| " + " | ".join([f"{name} (published)", *(f"{v:.1f}" for v in means), "–", "–", "–"]) + " |")
    return "\n".join([*lines, "", table.attrs["protocol"] + "."])
