"""From probabilities to labels: which voxels are called a region.

The *argmax* gives a voxel its likeliest class. Voxel by voxel it is right most often, which is not what Dice counts:
where a model hesitates, no class of the tumour may be likelier than the background, and nothing is called at all.

*Expected Dice* calls a region as large as makes the expected Dice greatest. For a region A called and probabilities p,
voxel by voxel, that is about

    2 sum_A p / (|A| + sum p),

where the second sum is over all voxels. Its best A holds the voxels above a threshold, which is half of that greatest
value (Lipton et al., ECML 2014; Dai and Li, JMLR 2023): one half where the model is sure of the outline, less where it
is not. WT is called so, then TC within it, then ET within that. The formula supposes that there is something to call.
Therefore a part of a region is left out of which the model expects less than ``least_ml``, the sum of the probabilities
times the volume of a voxel: a small part must be sure, and a large one may be faint.

A rule may also weigh that a region is not there (``may_be_absent``): calling nothing then scores 1, as in the
literature's mean, and calling anything 0. With the chance c that it is there, the probabilities are p / c where it is,
and A is called only if

    2 sum_A p / (|A| + sum p / c)  >=  1 - c.

The mean probability over A is taken for c: the voxels of A are those that are there if anything is. It may be said of
which sequences this needs (``shown_on``): where none shows a region, its probabilities do not tell whether it is there.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from scipy import ndimage

from smml.data.labels import REGIONS, LabelScheme, Region
from smml.errors import InputError
from smml.modalities import MODALITIES

# Voxels that are likelier background than this are not looked at: nothing is called there, and of a whole head they
# would be nearly all.
SURELY_BACKGROUND = 0.99

# A rule that leaves out more than this is a mistake: tumours are of that size.
_MOST_ML = 20.0

# Voxels that share a face, an edge or a corner touch.
_TOUCHING = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class ExpectedDice:
    """The rule of the greatest expected Dice.

    Attributes:
        least_ml: by region, the volume in ml that is to be expected of a part at least; 0 keeps every part.
        may_be_absent: the regions of which nothing is called where that is expected to score more.
        shown_on: the sequences that must be given for that; without any it is so from every subset.

    Raises:
        InputError: a region too many or too few, a volume out of its range, a region or sequence that is named twice
            or is none, or sequences without a region that they show.
    """

    least_ml: Mapping[Region, float]
    may_be_absent: tuple[Region, ...] = ()
    shown_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        least = self.least_ml
        # Not isinstance: True is an int. A NaN fails the comparison.
        if (
            not isinstance(least, Mapping)
            or set(least) != set(REGIONS)
            or not all(type(value) in (int, float) and 0 <= value <= _MOST_ML for value in least.values())
        ):
            raise InputError(
                f"decision must have a volume from 0 to {_MOST_ML:g} ml for each of {', '.join(REGIONS)}, found "
                f"{least!r:.80}"
            )
        # Without the check a sequence that is misspelt would be one that is never given.
        for named, names, what in (
            (self.may_be_absent, REGIONS, "regions that may be absent"),
            (self.shown_on, MODALITIES, "the sequences that show them"),
        ):
            if not isinstance(named, tuple) or [name for name in names if name in named] != list(named):
                raise InputError(
                    f"decision must name {what}, of {', '.join(names)}, in that order, found {named!r:.80}"
                )
        if self.shown_on and not self.may_be_absent:
            raise InputError(
                f"decision must name the regions that may be absent with {', '.join(self.shown_on)}, found none"
            )

    def __str__(self) -> str:
        said = "labels of the greatest expected Dice"
        if self.may_be_absent:
            given = f" and {', '.join(self.shown_on)} is given" if self.shown_on else ""
            said += f", of {', '.join(self.may_be_absent)} none where that is expected to score more{given}"
        least = ", ".join(f"{region} {self.least_ml[region]:g}" for region in REGIONS)
        return f"{said}, without parts of which less is expected than (ml) {least}"

    def to_dict(self) -> dict:
        """As a checkpoint stores it."""
        stored = {"rule": "expected Dice", "least_ml": dict(self.least_ml)}
        # Named only where there are any: what is older than they are stays what it is.
        if self.may_be_absent:
            stored["may_be_absent"] = list(self.may_be_absent)
        if self.shown_on:
            stored["shown_on"] = list(self.shown_on)
        return stored

    def from_subset(self, modalities: Collection[str]) -> "ExpectedDice":
        """The rule for labels from these sequences."""
        return self if set(self.shown_on) <= set(modalities) else replace(self, may_be_absent=(), shown_on=())


# Chosen for `small` by simulated validation subjects (results/decision/small).
EXPECTED_DICE = ExpectedDice({"WT": 3.0, "TC": 0.5, "ET": 1.5}, may_be_absent=("ET",), shown_on=("t1ce",))


def find_decision(name: str | ExpectedDice, own: ExpectedDice | None) -> ExpectedDice | None:
    """The rule that a caller asks for; None is the argmax.

    Args:
        name: "own", "argmax" or "expected-dice" (the checkpoint's where it has one, else that of `small`), or a rule
            itself.
        own: the checkpoint's.

    Raises:
        InputError: another name.
    """
    if isinstance(name, ExpectedDice):
        return name
    rules = {"own": own, "argmax": None, "expected-dice": own or EXPECTED_DICE}
    if name not in rules:
        raise InputError(f"decision must be one of {', '.join(rules)}, found {name!r:.80}")
    return rules[name]


def check_decision(found: object) -> ExpectedDice | None:
    """The rule of a checkpoint's facts; None where they name none, and labels are the argmax.

    Args:
        found: what :meth:`ExpectedDice.to_dict` made, or such a rule itself, or None.

    Raises:
        InputError: another rule, or what :class:`ExpectedDice` refuses.
    """
    if found is None or isinstance(found, ExpectedDice):
        return found
    if not isinstance(found, Mapping) or found.get("rule") != "expected Dice":
        raise InputError(f"decision must be the rule 'expected Dice' or none, found {found!r:.80}")
    # A file holds lists; what is none is for the rule to refuse.
    named = (found.get(key, []) for key in ("may_be_absent", "shown_on"))
    return ExpectedDice(found.get("least_ml", {}), *(tuple(each) if isinstance(each, list) else each for each in named))


class Labelling(Protocol):
    """Labels in the making: it is shown the probabilities class by class, because all at once take much memory."""

    def see(self, k: int, probability: torch.Tensor) -> None:
        """Take note of class ``k``, float32 [X, Y, Z]; the classes come in order, and the tensor changes afterwards."""

    def labels(self) -> np.ndarray:
        """uint8 [X, Y, Z], after the last class."""


def labelling(
    rule: ExpectedDice | None, scheme: LabelScheme, shape: tuple[int, int, int], voxel_ml: float
) -> Labelling:
    """Begin labels by a rule.

    Args:
        rule: None is the argmax.
        scheme: classes and regions of the model.
        shape: of the grid.
        voxel_ml: volume of a voxel in ml.
    """
    return _Argmax(shape) if rule is None else _Regions(rule, scheme, shape, voxel_ml)


class _Argmax:
    """Several times as fast as ``argmax`` over classes that lie apart in memory; as in it, the first of equals wins."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._labels, self._highest = torch.zeros(shape, dtype=torch.uint8), torch.full(shape, -1.0)

    def see(self, k: int, probability: torch.Tensor) -> None:
        self._labels.masked_fill_(probability > self._highest, k)
        torch.maximum(self._highest, probability, out=self._highest)

    def labels(self) -> np.ndarray:
        return self._labels.numpy()


class _Regions:
    """The rule of the expected Dice, at the voxels that are not surely background."""

    def __init__(self, rule: ExpectedDice, scheme: LabelScheme, shape: tuple[int, int, int], voxel_ml: float) -> None:
        self._rule, self._scheme, self._shape, self._voxel_ml = rule, scheme, shape, voxel_ml
        self._places, self._values = torch.empty(0, dtype=torch.long), list[np.ndarray]()

    def see(self, k: int, probability: torch.Tensor) -> None:
        flat = probability.reshape(-1)
        if k == 0:
            self._places = torch.nonzero(flat <= SURELY_BACKGROUND).flatten()
        else:
            self._values.append(flat[self._places].numpy())

    def labels(self) -> np.ndarray:
        values, places = np.stack(self._values), self._places.numpy()
        result, called = np.zeros(int(np.prod(self._shape)), np.uint8), np.ones(len(places), bool)
        regions = [self._scheme.regions[region] for region in REGIONS]
        for region, classes, inner in zip(REGIONS, regions, [*regions[1:], ()], strict=True):
            probability = values[[k - 1 for k in classes]].sum(axis=0)
            expected = probability[called].sum(dtype=np.float64)
            called[called] = probability[called] >= best_threshold(probability[called])
            called[called] = self._enough(places[called], probability[called], self._rule.least_ml[region])
            if region in self._rule.may_be_absent and rather_nothing(probability[called], expected):
                called[:] = False
            # What of the region is no part of the next one, by its likeliest class.
            own = np.array([k for k in classes if k not in inner], np.uint8)
            result[places[called]] = own[values[own[:, None] - 1, called].argmax(axis=0)]
        return result.reshape(self._shape)

    def _enough(self, places: np.ndarray, probability: np.ndarray, least_ml: float) -> np.ndarray:
        """Of voxels by their flat places, whether enough is expected of the part that each belongs to."""
        if not len(places) or least_ml == 0:
            return np.ones(len(places), bool)
        points = np.stack(np.unravel_index(places, self._shape))
        points -= points.min(axis=1, keepdims=True)
        inside = np.zeros(points.max(axis=1) + 1, bool)
        inside[tuple(points)] = True
        parts, _ = ndimage.label(inside, _TOUCHING)
        part = parts[tuple(points)]
        expected_ml = np.bincount(part, weights=probability) * self._voxel_ml
        return expected_ml[part] >= least_ml


def best_threshold(probability: np.ndarray) -> float:
    """The threshold from which voxels are called for the greatest expected Dice; above 1 for no voxel at all.

    Args:
        probability: floating, 1D: of the region, voxel by voxel.
    """
    if not probability.any():
        return 2.0
    falling = np.sort(probability)[::-1]
    found = np.cumsum(falling, dtype=np.float64)
    expected = 2 * found / (np.arange(1, len(falling) + 1) + found[-1])
    return float(falling[expected.argmax()])


def rather_nothing(called: np.ndarray, expected: float) -> bool:
    """Whether calling nothing of a region is expected to score more than calling these voxels.

    Args:
        called: floating, 1D: the probabilities of the region at the voxels that would be called.
        expected: the sum of its probabilities over all voxels.
    """
    if not called.any():
        return True
    found = called.sum(dtype=np.float64)
    chance = found / len(called)
    return bool(2 * found / (len(called) + expected / chance) < 1 - chance)
