"""Label values on disk and in memory, and the regions that are scored (docs/CONVENTIONS.md, "Labels and regions").

In memory every data set has the same meaning: 0 background, 1 NCR/NET, 2 ED, 3 ET (K = 4), except BraTS 2015, which
keeps its five classes 0 background, 1 NCR, 2 ED, 3 NET, 4 ET (K = 5). Later releases that tell one class more, the
resection cavity or the cyst, have it as 4 behind these; a network learns the four, and :func:`not_learnt` says so.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from smml.errors import InputError

Region = Literal["WT", "TC", "ET"]

REGIONS: tuple[Region, ...] = ("WT", "TC", "ET")

# How far a label value may lie from a whole number: floats and scales of a header store them inexactly, while
# resampling leaves values in between at every edge.
WHOLE = 0.02
# What is smaller is rounding, in a label without any tumour.
_NOISE = 1e-4


@dataclass(frozen=True)
class LabelScheme:
    """What the integers of one data set mean.

    Attributes:
        classes: names of the classes in memory; the position is the value.
        on_disk: value on disk of each class, in the same order; None where the number of classes alone was known, which
            does not tell them.
        regions: classes that make up WT, TC and ET.
        learnt_as: where a network learns fewer classes than the data set tells, the one that it learns each as; None
            where it learns them all.
    """

    classes: tuple[str, ...]
    on_disk: tuple[int, ...] | None
    regions: dict[Region, tuple[int, ...]]
    learnt_as: tuple[int, ...] | None = None

    @property
    def num_classes(self) -> int:
        """K, background included."""
        return len(self.classes)

    @property
    def learnt_classes(self) -> tuple[str, ...]:
        """Names of the classes that a network learns, background included."""
        return self.classes[: max(self.learnt_as) + 1] if self.learnt_as else self.classes

    def learnt(self, labels):
        """Memory values -> those of the classes that a network learns.

        Args:
            labels: uint8 array or tensor of memory values, of any shape.

        Returns:
            The same shape and type; ``labels`` itself where a network learns all classes.
        """
        if self.learnt_as is None:
            return labels
        result = labels + 0  # a copy of an array and of a tensor alike
        for value, taken in enumerate(self.learnt_as):
            if taken != value:
                result[labels == value] = taken
        return result

    def decode(self, stored: np.ndarray, name: str, scale: tuple[float, float] | None = None) -> np.ndarray:
        """Disk values -> memory values, uint8 of the same shape.

        Args:
            stored: values as read, [X, Y, Z], of any real type; each counts as the nearest whole number.
            name: file to name in an error.
            scale: slope and intercept by which the file's header made ``stored`` of what the file holds, for the error.

        Raises:
            InputError: a value is further than ``WHOLE`` from a whole number or does not belong to the scheme, or the
                scheme has no values on disk.
        """
        on_disk = self._known_values()
        scaled = ""
        if scale is not None:
            scaled = f"; its header multiplies what is stored by {scale[0]:g} and adds {scale[1]:g}: if what is stored "
            scaled += "are the labels, set scl_slope to 1 and scl_inter to 0"
        if np.issubdtype(stored.dtype, np.floating):
            with np.errstate(invalid="ignore"):
                nearest = np.rint(stored)
                # A NaN fails the comparison, and so does infinity less itself.
                odd = stored.size - int((np.abs(stored - nearest) <= WHOLE).sum())
            if odd:
                remedy = scaled or "; give the segmentation itself, resampled with nearest neighbour only"
                raise InputError(
                    f"{name}: expected whole label values, found {odd} of {stored.size} voxels that are not (or are "
                    f"NaN){remedy}"
                )
            if not nearest.any() and (largest := float(np.abs(stored).max(initial=0))) > _NOISE:
                raise InputError(
                    f"{name}: expected whole label values, found none above {largest:.3g}, where they would all count "
                    f"as background{scaled or '; they were divided by something: write them as whole numbers'}"
                )
            stored = nearest
        # Bytes are sorted faster than what a file may hold.
        if stored.min() >= 0 and stored.max() <= 255:
            stored = stored.astype(np.uint8)
        values = np.unique(stored)
        foreign = [value for value in values.tolist() if value not in on_disk]
        if foreign:
            raise InputError(
                f"{name}: label value {', '.join(f'{value:g}' for value in foreign[:5])} is not one of "
                f"{', '.join(map(str, on_disk))} of this layout"
                + (scaled or "; check that the file is a segmentation of the data set that its name says")
            )
        result = np.zeros(stored.shape, np.uint8)
        for value, disk in enumerate(on_disk):
            result[stored == disk] = value
        return result

    def encode(self, labels: np.ndarray) -> np.ndarray:
        """Memory values -> disk values, uint8 of the same shape (inverse of :meth:`decode`).

        Args:
            labels: memory values 0 to K-1, integer [X, Y, Z].

        Raises:
            InputError: the scheme has no values on disk.
        """
        return np.asarray(self._known_values(), np.uint8)[labels]

    def _known_values(self) -> tuple[int, ...]:
        """``on_disk`` where it is known."""
        if self.on_disk is None:
            raise InputError(
                f"{self.num_classes} classes have other values on disk in each data set; take the scheme of the case "
                "or of its layout (case.scheme, LAYOUTS[name].scheme)"
            )
        return self.on_disk

    def region(self, labels, region: Region):
        """Boolean array or tensor of the shape of ``labels``, True inside a region.

        Args:
            labels: array or tensor of memory values, [X, Y, Z] or any other shape.
            region: "WT", "TC" or "ET".
        """
        inside = labels == self.regions[region][0]
        for value in self.regions[region][1:]:
            inside = inside | (labels == value)
        return inside


_FOUR = ("background", "NCR/NET", "ED", "ET")
_FOUR_REGIONS: dict[Region, tuple[int, ...]] = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}

BRATS_2015 = LabelScheme(
    ("background", "NCR", "ED", "NET", "ET"), (0, 1, 2, 3, 4), {"WT": (1, 2, 3, 4), "TC": (1, 3, 4), "ET": (4,)}
)
BRATS_2018 = LabelScheme(_FOUR, (0, 1, 2, 4), _FOUR_REGIONS)
BRATS_2023 = LabelScheme(_FOUR, (0, 1, 2, 3), _FOUR_REGIONS)
MSD = LabelScheme(_FOUR, (0, 2, 1, 3), _FOUR_REGIONS)


def with_cavity(on_disk: tuple[int, ...]) -> LabelScheme:
    """The four classes and the resection cavity (RC), which belongs to no region: after treatment it is no tumour.

    Args:
        on_disk: values of background, NCR/NET, ED, ET and RC.
    """
    return LabelScheme((*_FOUR, "RC"), on_disk, _FOUR_REGIONS, (0, 1, 2, 3, 0))


def with_cyst(on_disk: tuple[int, ...]) -> LabelScheme:
    """The four classes and the cystic component (CC), a part of the tumour core as NCR/NET is.

    Args:
        on_disk: values of background, NCR/NET, ED, ET and CC.
    """
    regions: dict[Region, tuple[int, ...]] = {"WT": (1, 2, 3, 4), "TC": (1, 3, 4), "ET": (3,)}
    return LabelScheme((*_FOUR, "CC"), on_disk, regions, (0, 1, 2, 3, 1))


# Values and regions of 2024 and later by the challenge's own code: brats-evaluation 0.0.10 on PyPI, config_gli.yaml
# (1 NETC, 2 SNFH, 3 ET, 4 RC; WT 1, 2, 3; TC 1, 3) and config_ped.yaml (1 ET, 2 NETC, 3 CC, 4 ED; WT all; TC 1, 2, 3).
BRATS_2024 = with_cavity((0, 1, 2, 3, 4))
BRATS_PED = with_cyst((0, 2, 4, 1, 3))
_ANY_FOUR = LabelScheme(_FOUR, None, _FOUR_REGIONS)


def scheme_for_classes(num_classes: int) -> LabelScheme:
    """Classes and regions of a model with K outputs; in memory all four-class data sets agree.

    On disk they do not, so with four classes the scheme has no values to write: those come from a layout.

    Args:
        num_classes: K, background included.

    Raises:
        InputError: K is neither 4 nor 5.
    """
    if num_classes == 4:
        return _ANY_FOUR
    if num_classes == 5:
        return BRATS_2015
    raise InputError(f"num_classes must be 4 (BraTS 2018 and later, MSD) or 5 (BraTS 2015), found {num_classes}")


_NOT_LEARNT = {
    "RC": "the resection cavity (RC, {value} on disk) counts as background and is not predicted",
    "CC": "the cystic component (CC, {value} on disk) counts as NCR/NET and is not told apart",
}


def not_learnt(layout: str, scheme: LabelScheme) -> str:
    """A sentence on what a data set tells and a network does not learn; "" if it learns all.

    Args:
        layout: name of the data set.
        scheme: its label values.
    """
    further = scheme.classes[len(scheme.learnt_classes) :]
    values = scheme.on_disk or ()
    said = [_NOT_LEARNT[name].format(value=values[scheme.classes.index(name)]) for name in further]
    return f"{layout}: {' and '.join(said)}: networks here know {', '.join(scheme.learnt_classes[1:])}" if said else ""
