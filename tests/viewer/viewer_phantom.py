"""A case that is different on every side, so that a mirrored or turned picture cannot pass."""

import threading
import weakref
from types import MappingProxyType

import nibabel as nib
import numpy as np

from smml.data import Case
from smml.data.labels import BRATS_2023
from smml.inference import Cancelled, Segmentation
from smml.modalities import MODALITIES, subsets_of

# Intensity of a block near each side of the patient.
SIDES = {"R": 600.0, "L": 500.0, "A": 400.0, "P": 300.0, "S": 200.0, "I": 150.0}
SHAPE = (30, 36, 26)
BODY = 60.0


def phantom(axes: str = "RAS", *, oblique: float = 0.0, label: bool = True, modalities=MODALITIES) -> Case:
    """A body of one intensity with a marked block at each side, stored along the given axes.

    Args:
        axes: directions of the voxel axes, such as "LPS".
        oblique: degrees by which the grid is turned about an axis that is none of its own.
        label: with a truth, in the right front top part.
        modalities: that the case has; each has intensities of its own.
    """
    x, y, z = SHAPE
    volume = np.zeros(SHAPE, np.float32)
    volume[2:-2, 2:-2, 2:-2] = BODY
    middle = (slice(x // 2 - 3, x // 2 + 3), slice(y // 2 - 3, y // 2 + 3), slice(z // 2 - 3, z // 2 + 3))
    volume[x - 7 : x - 2, middle[1], middle[2]] = SIDES["R"]
    volume[2:7, middle[1], middle[2]] = SIDES["L"]
    volume[middle[0], y - 7 : y - 2, middle[2]] = SIDES["A"]
    volume[middle[0], 2:7, middle[2]] = SIDES["P"]
    volume[middle[0], middle[1], z - 7 : z - 2] = SIDES["S"]
    volume[middle[0], middle[1], 2:7] = SIDES["I"]
    truth = np.zeros(SHAPE, np.uint8)
    truth[17:25, 20:30, 14:22] = 2
    truth[19:23, 22:27, 16:20] = 1
    truth[20:22, 23:26, 17:19] = 3
    affine = nib.affines.from_matvec(np.diag([2.0, 2.0, 3.0]), [-30.0, -36.0, -39.0])
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    affine = affine @ nib.orientations.inv_ornt_aff(turn, SHAPE)
    if oblique:
        axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
        cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        angle = np.radians(oblique)
        turning = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
        affine = nib.affines.from_matvec(turning) @ affine
    stored = np.ascontiguousarray(nib.apply_orientation(volume, turn))
    return Case(
        id="phantom",
        volumes={name: stored * (1 + number) for number, name in enumerate(MODALITIES) if name in modalities},
        label=np.ascontiguousarray(nib.apply_orientation(truth, turn)) if label else None,
        affine=affine,
        layout="brats2023",
    )


class Encoded:
    """Stands in for an encoding."""

    def __init__(self, case: Case) -> None:
        self.case = case


class FakePredictor:
    """Segments at once, or only when told to; what it says tells the subset.

    With n modalities the result is the truth without its first n slices along the first axis. ``gate`` holds every
    segmentation until it is set; ``calls`` lists what was begun, ``given_up`` what ended without an answer, and
    ``encodings`` holds weak references to what was encoded.
    """

    scheme = BRATS_2023
    prevalence = MappingProxyType({"WT": 0.1, "TC": 0.05, "ET": 0.02})

    def __init__(self, *, held: bool = False, steps: int = 1) -> None:
        self.gate, self.begun = threading.Event(), threading.Event()
        self.calls, self.given_up, self.encodings, self.steps = [], [], [], steps
        self.fails: Exception | None = None
        self.intervals = None
        if not held:
            self.gate.set()

    def encode(self, case, *, cancelled=None, progress=None):
        encoding = Encoded(case)
        self.encodings.append(weakref.ref(encoding))
        return encoding

    def segment(self, encoding, subset, *, cancelled=None, progress=None):
        self.calls.append(subset)
        self.begun.set()
        while not self.gate.wait(0.005):
            if cancelled():
                self.given_up.append(subset)
                raise Cancelled
        if self.fails is not None:
            raise self.fails
        for step in range(self.steps):
            if progress is not None:
                progress(step + 1, self.steps)
        labels = self.says(encoding.case, subset)
        one_hot = np.stack([labels == value for value in range(4)]).astype(np.float32)
        other = np.roll(one_hot, 1, axis=1)
        return Segmentation(
            labels=labels,
            probabilities=(one_hot + other) / 2,
            affine=encoding.case.affine,
            subset=subset,
            layout=encoding.case.layout,
            uncertainty=np.abs(one_hot - other).sum(0) / 2,
            branch_labels=np.stack([one_hot.argmax(0), other.argmax(0)]).astype(np.uint8),
            intervals=self.intervals,
        )

    def segment_all(self, encoding, *, cancelled=None, progress=None):
        for subset in subsets_of(encoding.case.modalities):
            yield self.segment(encoding, subset, cancelled=cancelled, progress=progress)

    @staticmethod
    def says(case: Case, subset) -> np.ndarray:
        labels = np.zeros(case.shape, np.uint8) if case.label is None else case.label.copy()
        number = sum(2 ** MODALITIES.index(name) for name in subset)
        labels.reshape(-1)[:number] = 3
        return labels
