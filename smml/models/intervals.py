"""How far a volume may be off, by the sequences given: intervals that hold the true volume of 90 % of the cases.

They are conformal (Vovk et al., 2005; split conformal prediction as in Lei et al., JASA 2018): on cases that the model
was not trained on the errors of its volumes were ranked, for each subset of the sequences and each region by itself,
and the interval reaches as far as the error of the right rank (:mod:`smml.evaluation.conformal` fits them). Whatever
the errors look like, the interval of a new case then holds its true volume with the promised probability on average
over cases, if the new case is like those on which the ranks were taken. That is the whole promise: it is about cases
of that kind, all together and not about any one of them, and simulated cases say nothing about the patients of a
hospital.

Errors are taken between powers of volumes, as large volumes are further off than small ones; a volume of 0 ml has a
power, while it has no logarithm. Which power only decides how long intervals are (``scripts/measure_intervals.py``
compares some). Either side has its own rank. No side reaches inwards: the interval holds the model's own volume even
where the model is nearly always too low.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smml.data.labels import REGIONS, Region
from smml.errors import InputError
from smml.modalities import Subset, parse_subset

# Those of a volume, and of each of two volumes whose difference is to hold with the first one's.
LEVELS = (0.9, 0.95)

# Errors are differences of ml to this power.
POWER = 2 / 3


@dataclass(frozen=True)
class Volume:
    """A volume with its interval.

    Attributes:
        ml: of what the model calls the region.
        low: lower end of the interval in ml; NaN where the model has none for these sequences.
        high: upper end, likewise.
        level: share of cases, in (0, 1), whose true volume such an interval holds.
    """

    ml: float
    low: float = math.nan
    high: float = math.nan
    level: float = LEVELS[0]

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.ml:.1f} ml"
        return f"{self.ml:.1f} ml ({100 * self.level:g} %: {self.low:.1f} to {self.high:.1f})"


@dataclass(frozen=True)
class VolumeIntervals:
    """What intervals of volumes are made of.

    Attributes:
        cases: how many they were fitted on.
        output: of the model, whose volumes these are: "student" or "refined".
        reach: by subset, region and level (in the order of ``LEVELS``): how far the interval reaches down and up, in
            ml to the power ``POWER``. Subsets of which there were too few cases are not there.
    """

    cases: int
    output: str
    reach: Mapping[Subset, Mapping[Region, tuple[tuple[float, float], ...]]]

    def volume(self, subset: Subset, region: Region, ml: float, level: float = LEVELS[0]) -> Volume:
        """A volume with its interval.

        Args:
            subset: the sequences that it was found from, in the project's order.
            region: "WT", "TC" or "ET".
            ml: what the model found, 0 or more.
            level: one of ``LEVELS``.

        Raises:
            InputError: another level.
        """
        if level not in LEVELS:
            raise InputError(f"intervals hold {' or '.join(map(str, LEVELS))} of the cases, found {level!r}")
        if subset not in self.reach:
            return Volume(ml, level=level)
        down, up = self.reach[subset][region][LEVELS.index(level)]
        # Not there and back where nothing is added: any volume stays itself to the bit.
        low = ml if down == 0 else max(ml**POWER - down, 0.0) ** (1 / POWER)
        high = ml if up == 0 else (ml**POWER + up) ** (1 / POWER)
        return Volume(ml, low, high, level)

    def to_dict(self) -> dict:
        """As plain values, for a checkpoint."""
        reach = {
            "+".join(subset): {region: [list(pair) for pair in pairs] for region, pairs in regions.items()}
            for subset, regions in self.reach.items()
        }
        return {"cases": self.cases, "output": self.output, "levels": list(LEVELS), "power": POWER, "reach": reach}

    @classmethod
    def from_dict(cls, values: Any) -> "VolumeIntervals | None":
        """As they come from a file.

        Args:
            values: of :meth:`to_dict`; None stays None.

        Raises:
            InputError: something else than :meth:`to_dict` gives.
        """
        if values is None:
            return None
        try:
            _need(isinstance(values, dict))
            _need((values["levels"], values["power"]) == (list(LEVELS), POWER))
            _need(type(values["cases"]) is int)
            _need(values["output"] in ("student", "refined"))
            reach = {
                parse_subset(name): {region: tuple(_pair(pair) for pair in regions[region]) for region in REGIONS}
                for name, regions in values["reach"].items()
            }
            _need(all(len(pairs) == len(LEVELS) for regions in reach.values() for pairs in regions.values()))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"intervals must be what `smml intervals` writes, found {values!r:.80}; fit them again"
            ) from error
        return cls(values["cases"], values["output"], reach)


def _pair(pair: Any) -> tuple[float, float]:
    _need(isinstance(pair, list | tuple))
    _need(all(type(end) in (int, float) and 0 <= end < math.inf for end in pair))
    down, up = map(float, pair)
    return down, up


def volume_change(before: Volume, after: Volume) -> Volume:
    """By how much a volume changed between two visits of one patient.

    The interval goes from the least that ``after`` can be less the most that ``before`` can be, to the reverse. It
    fails only where one of the two fails, so it holds with at least ``before.level + after.level - 1`` (Bonferroni),
    however the errors of the two visits depend on each other: two volumes at 95 % give a change at 90 %. The sequences
    may differ from visit to visit. What is assumed is that either visit is like the cases on which the intervals were
    fitted; these were single visits before any treatment, and a cavity left by surgery is not among them.

    Args:
        before: of the earlier visit; :meth:`smml.inference.Segmentation.volume` gives it.
        after: of the later one, of the same region.

    Returns:
        The change in ml, below 0 where the tumour shrank; ends and level as above, NaN if either volume has no
        interval.
    """
    level = round(before.level + after.level - 1, 10)
    return Volume(after.ml - before.ml, after.low - before.high, after.high - before.low, level)


def _need(condition: bool) -> None:
    if not condition:
        raise ValueError
