"""What a further sequence is worth: by how much the Dice of held-out cases rose when it joined the sequences at hand.

A table, learnt on cases that the model was not trained on (:mod:`smml.evaluation.next_scan` fits it). It says what is
to be expected of this model over many cases like those, and nothing of what a radiologist would see in the scan.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from smml.data.labels import REGIONS, Region
from smml.errors import InputError
from smml.modalities import MODALITIES, Subset, parse_subset, subset_name


@dataclass(frozen=True)
class Gain:
    """What one absent sequence is expected to bring.

    Attributes:
        modality: the sequence.
        dice: expected rise of the mean Dice of WT, TC and ET, in [-1, 1]; below 0 where it is expected to do harm.
        error: standard error of ``dice``, over the cases of the table.
        regions: expected rise of the Dice of each region, and its standard error.
    """

    modality: str
    dice: float
    error: float
    regions: Mapping[Region, tuple[float, float]]

    def __str__(self) -> str:
        points = f"{100 * self.dice:+.1f} points (standard error {100 * self.error:.1f})"
        return f"{subset_name(self.modality)}, Dice {points}"


@dataclass(frozen=True)
class Gains:
    """What each absent sequence brought, by the sequences at hand.

    Attributes:
        cases: how many the table was learnt on.
        by_subset: for each subset at hand but that of all four, each absent sequence.
    """

    cases: int
    by_subset: Mapping[Subset, tuple[Gain, ...]]

    def expected(self, have: str | Iterable[str]) -> tuple[Gain, ...]:
        """What each absent sequence is expected to bring.

        Args:
            have: the sequences at hand, such as "flair+t2".

        Returns:
            One for each absent sequence, the most useful first.

        Raises:
            InputError: unknown or empty subset, none is absent, or the table has no row for these.
        """
        subset = parse_subset(have)
        if len(subset) == len(MODALITIES):
            raise InputError(f"all of {subset_name(subset, ', ')} are at hand: there is no further sequence to ask for")
        if subset not in self.by_subset:
            raise InputError(
                f"the table of gains has no row for {subset_name(subset)}: it was learnt on cases without it; fit it "
                "again on cases with all sequences"
            )
        return tuple(sorted(self.by_subset[subset], key=lambda gain: -gain.dice))

    def next_scan(self, have: str | Iterable[str]) -> Gain:
        """The absent sequence that is expected to raise the mean Dice most.

        Args:
            have: the sequences at hand.

        Raises:
            InputError: as :meth:`expected`.
        """
        return self.expected(have)[0]

    def to_dict(self) -> dict:
        """As plain values, for a checkpoint."""
        table = {
            "+".join(subset): {
                gain.modality: {"mean": [gain.dice, gain.error]}
                | {region: list(pair) for region, pair in gain.regions.items()}
                for gain in gains
            }
            for subset, gains in self.by_subset.items()
        }
        return {"cases": self.cases, "gains": table}

    @classmethod
    def from_dict(cls, values: Any) -> "Gains | None":
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
            _need(type(values["cases"]) is int)
            table = {
                parse_subset(name): tuple(
                    Gain(modality, *_pair(found["mean"]), {region: _pair(found[region]) for region in REGIONS})
                    for modality, found in gains.items()
                )
                for name, gains in values["gains"].items()
            }
            for subset, gains in table.items():
                _need({gain.modality for gain in gains} == set(MODALITIES) - set(subset) != set())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"gains must be what `smml intervals` writes, found {values!r:.80}; fit them again"
            ) from error
        return cls(values["cases"], table)


def _pair(pair: Any) -> tuple[float, float]:
    _need(isinstance(pair, list | tuple))
    _need(all(type(value) in (int, float) and math.isfinite(value) for value in pair))
    mean, error = map(float, pair)
    return mean, error


def _need(condition: bool) -> None:
    if not condition:
        raise ValueError
