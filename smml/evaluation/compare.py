"""Any set of results side by side, ours or another tool's: means over the subsets, differences with intervals."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.evaluation.bootstrap import bootstrap_mean, bootstrap_mean_over_subsets
from smml.evaluation.published import PROTOCOLS
from smml.evaluation.scores import Scores
from smml.modalities import SUBSETS, subset_name


@dataclass(frozen=True, eq=False)
class Comparison:
    """Results side by side.

    Attributes:
        frame: one row per result, by its name. "Dice WT" ... and "HD95 WT" ...: mean over cases, then over subsets
            (Dice 0 to 1, mm). "Dice WT change" ...: the difference to the first row, and "Dice WT low", "Dice WT high"
            its 95 % interval, from a paired bootstrap over cases; NaN in the first row.
        protocol: over what, and how the changes came about.
        pairs: what was compared: (case, subset).
    """

    frame: pd.DataFrame
    protocol: str
    pairs: list[tuple[str, str]]


def compare(results: Mapping[str, Scores], *, resamples: int = 10_000) -> Comparison:
    """Results side by side over what all of them have: the same cases and subsets.

    A subset that a case lacks in every result, as a case without T2 does, is left out and counted.

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
    pairs, left_out = _common_pairs(tables)
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
            columns = [f"Dice {region} {part}" for part in ("change", "low", "high")]
            if name == first:
                row |= dict.fromkeys(columns, np.nan)
                continue
            if np.isnan(change).any():
                interval = bootstrap_mean_over_subsets(change, resamples=resamples)
            else:
                interval = bootstrap_mean(change.mean(axis=1), resamples=resamples)
            row |= dict(zip(columns, (interval.mean, interval.low, interval.high), strict=True))
    without = (
        f"; {left_out} of {left_out + len(pairs)} pairs of case and subset left out, because no result has them"
        if left_out
        else ""
    )
    protocol = (
        f"{len(cases)} cases and {len(order)} subsets that all results have{without}; change to {first!r} with 95 % "
        "interval, paired bootstrap over cases"
    )
    return Comparison(pd.DataFrame.from_dict(rows, orient="index"), protocol, pairs)


def _common_pairs(tables: Mapping[str, pd.DataFrame]) -> tuple[list[tuple[str, str]], int]:
    """(case, subset) that are compared, in order, and how many more these cases and subsets would make.

    Raises:
        InputError: nothing in common, or some results have a pair of these cases and subsets that others lack: leaving
            it out would let a result choose what it is measured on.
    """
    have = {name: set(table.index.droplevel("region")) for name, table in tables.items()}
    cases = set.intersection(*({case for case, _ in pairs} for pairs in have.values()))
    subsets = set.intersection(*({subset for _, subset in pairs} for pairs in have.values()))
    order = [name for name in map(subset_name, SUBSETS) if name in subsets]
    grid = [(case, subset) for case in sorted(cases) for subset in order]
    pairs = [pair for pair in grid if any(pair in own for own in have.values())]
    if not pairs:
        what = "case" if not cases else "subset"
        raise InputError(f"the results {', '.join(have)} share no {what}; compare them on the same data")
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
        pairs: case and subset of what was scored, as :attr:`Comparison.pairs` lists them.

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


def format_comparison(comparison: Comparison, reference: Mapping[str, tuple[float, float, float]] | None = None) -> str:
    """The comparison as Markdown: Dice in per cent with intervals in points, HD95 in mm, then published means.

    Args:
        comparison: of :func:`compare`.
        reference: published means of WT, TC and ET in per cent, by the name of the method; printed below, apart.
    """
    head = ["result", *(f"Dice {region}" for region in REGIONS), *(f"HD95 {region}" for region in REGIONS)]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name, row in comparison.frame.iterrows():
        cells = [str(name)]
        for region in REGIONS:
            change, low, high = (100 * row[f"Dice {region} {part}"] for part in ("change", "low", "high"))
            text = f"{100 * row[f'Dice {region}']:.1f}"
            if not np.isnan(change):
                text += f" ({change:+.1f}; {low:+.1f} to {high:+.1f})"
            cells.append(text)
        cells += ["–" if np.isnan(row[f"HD95 {region}"]) else f"{row[f'HD95 {region}']:.1f}" for region in REGIONS]
        lines.append("| " + " | ".join(cells) + " |")
    for name, means in (reference or {}).items():
        lines.append("| " + " | ".join([f"{name} (published)", *(f"{v:.1f}" for v in means), "–", "–", "–"]) + " |")
    return "\n".join([*lines, "", comparison.protocol + "."])
