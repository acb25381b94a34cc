"""Any set of results side by side, ours or another tool's: means over the subsets, differences with intervals.

A result is a CSV file with a row per case, subset and region (``scores.csv`` of ``smml evaluate``, or a table from
another tool):

    case,subset,region,dice[,hd95][,output]
    BraTS20_Training_001,flair+t2,WT,0.91,4.2

``subset`` names modalities in any order and case, joined by "+"; ``region`` is WT, TC or ET; ``dice`` lies in [0, 1];
``hd95`` is in mm and may be empty; ``output`` tells "student" from "refined" where a file holds both.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.evaluation.bootstrap import bootstrap_mean
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
        table = pd.read_csv(path, dtype={"case": str, "subset": str, "region": str})
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise InputError(f"{path}: not a CSV file ({error})") from error
    missing = [column for column in _COLUMNS if column not in table]
    if missing or table.empty:
        what = f"lacks the columns {', '.join(missing)}" if missing else "holds no rows"
        raise InputError(f"{path}: {what}; expected {','.join(_COLUMNS)}[,hd95][,output], a row per case and region")
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
    if "hd95" not in table:
        table["hd95"] = np.nan
    if "output" not in table:
        table["output"] = ""
    keys = ["output", "case", "subset", "region"]
    twice = table[table.duplicated(keys)]
    if len(twice):
        raise InputError(f"{path}: {', '.join(map(str, twice[keys].iloc[0]))} stands there twice; one row each")
    return {str(output): part for output, part in table.groupby("output")}


def _subset(path: Path, row: int, text: str) -> str:
    try:
        return subset_name(parse_subset(str(text).lower()))
    except InputError as error:
        raise InputError(f"{path}: row {row}: {error}") from error


def compare(results: Mapping[str, pd.DataFrame], *, resamples: int = 10_000) -> pd.DataFrame:
    """Results side by side over what all of them have: the same cases and subsets.

    Args:
        results: scores by name, of :func:`read_scores` or :func:`smml.evaluation.evaluate` (one output each); the first
            is what the others are compared with.
        resamples: of the bootstrap.

    Returns:
        One row per name. "Dice WT" ... and "HD95 WT" ...: mean over cases, then over subsets (Dice 0 to 1, mm).
        "Dice WT change" ...: the difference to the first row, an :class:`~smml.evaluation.bootstrap.Interval` from a
        paired bootstrap over cases (None in the first row). ``attrs["protocol"]`` says over what.

    Raises:
        InputError: nothing in common, or a result with gaps.
    """
    if not results:
        raise InputError("nothing to compare: give at least one result")
    tables = {name: scores.set_index(["case", "subset", "region"]) for name, scores in results.items()}
    cases = set.intersection(*(set(scores["case"]) for scores in results.values()))
    subsets = set.intersection(*(set(scores["subset"]) for scores in results.values()))
    if not cases or not subsets:
        what = "case" if not cases else "subset"
        raise InputError(f"the results {', '.join(results)} share no {what}; compare them on the same data")
    order = [name for name in map(subset_name, SUBSETS) if name in subsets]
    wanted = pd.MultiIndex.from_product([sorted(cases), order, REGIONS])
    dice: dict[str, dict[str, np.ndarray]] = {}
    rows = {}
    for name, table in tables.items():
        gaps = wanted.difference(table.index)
        if len(gaps):
            raise InputError(f"{name}: has no score of {', '.join(gaps[0])}, which another case or result has")
        chosen = table.loc[wanted].rename_axis(["case", "subset", "region"])
        dice[name] = {region: chosen.xs(region, level="region")["dice"].groupby("case").mean() for region in REGIONS}
        distance = chosen["hd95"].groupby(["region", "subset"]).mean().groupby("region").mean()
        rows[name] = {f"Dice {region}": float(dice[name][region].mean()) for region in REGIONS}
        rows[name] |= {f"HD95 {region}": float(distance[region]) for region in REGIONS}
    first = next(iter(results))
    for name, row in rows.items():
        for region in REGIONS:
            change = dice[name][region] - dice[first][region]
            row[f"Dice {region} change"] = None if name == first else bootstrap_mean(change, resamples=resamples)
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.attrs["protocol"] = (
        f"{len(cases)} cases and {len(order)} subsets that all results have; change to {first!r} with 95 % interval, "
        "paired bootstrap over cases"
    )
    return frame


def published(protocol: str, cases: list[str]) -> dict[str, tuple[float, float, float]]:
    """Published means for results on these cases, and never for others.

    Args:
        protocol: a key of :data:`smml.evaluation.published.PROTOCOLS`.
        cases: identifiers of the cases that were scored.

    Returns:
        Mean Dice of WT, TC and ET over the 15 subsets, in per cent, by method.

    Raises:
        InputError: an unknown protocol, cases of another data set (simulated ones, say), or another number of them.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"no published figures for {protocol!r}; there are {', '.join(PROTOCOLS)}")
    wanted = PROTOCOLS[protocol]
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
