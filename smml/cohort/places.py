"""Where the answers of a cohort go, and what forbids it, told before the work.

OUTPUT/cohort.json   what they were made with (:mod:`smml.cohort.rows`)
OUTPUT/cases.csv     a row for each case
OUTPUT/changes.csv   between the visits of a patient, if there are some (:mod:`smml.cohort.visits`)
OUTPUT/cases.html    the same to look at, with a slice of each case (:mod:`smml.cohort.page`)
OUTPUT/slices/       these slices
OUTPUT/...           labels, in the names of each case's data set, or of a BIDS derivative (:mod:`smml.cohort.bids`)
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smml.cohort.bids import VALUES_OF, dseg_path, probseg_path
from smml.cohort.rows import IDENTITY, ROWS
from smml.data.labels import LabelScheme
from smml.data.layouts import CaseFiles, role_of_output, split_suffix
from smml.data.writing import label_path
from smml.errors import InputError
from smml.files import check_target

PAGE = "cases.html"
SLICES = "slices"
OUTPUT_LAYOUTS = ("own", "bids")


@dataclass(frozen=True)
class Place:
    """Where the answers of one case go.

    Attributes:
        labels: its segmentation.
        probabilities: its class probabilities; None where nobody asked for them.
        picture: its slice, a PNG.
        bids: whether side files of BIDS stand beside them.
    """

    labels: Path
    probabilities: Path | None
    picture: Path
    bids: bool = False

    def values(self, scheme: LabelScheme) -> str | None:
        """The layout whose label values are written for a model of such classes; None: the case's own."""
        return VALUES_OF[scheme.num_classes] if self.bids else None

    @property
    def images(self) -> tuple[Path, ...]:
        """The labels and, where somebody asked for them, the probabilities."""
        return (self.labels,) if self.probabilities is None else (self.labels, self.probabilities)

    @property
    def complete(self) -> bool:
        """Whether all of it is there; each file appears whole, and the slice is the last."""
        return all(path.exists() for path in (*self.images, self.picture))


def plan_places(
    cases: Sequence[CaseFiles],
    output: str | os.PathLike,
    output_layout: str = "own",
    probabilities: str | os.PathLike | None = None,
) -> list[Place]:
    """The places of a cohort's answers, case by case; nothing is written.

    Args:
        cases: from ``find_cases``.
        output: folder of the answers.
        output_layout: "own" or "bids".
        probabilities: folder of the class probabilities, which may be ``output``; None for none.

    Raises:
        InputError: an unknown layout; two cases of one name; a place that cannot be written, that is a file of a case,
            or where the next run would take the answer for one.
    """
    if output_layout not in OUTPUT_LAYOUTS:
        raise InputError(f"output layout {output_layout!r} is unknown: choose from {', '.join(OUTPUT_LAYOUTS)}")
    root, bids = Path(output), output_layout == "bids"
    apart = None if probabilities is None else Path(probabilities)
    if bids and apart is not None and apart.resolve() != root.resolve():
        raise InputError(
            f"probabilities {apart}: in BIDS they lie beside the labels; name the output, {root}, for both"
        )
    for target in (root / IDENTITY, root / ROWS, root / PAGE, *([apart / ROWS] if apart is not None else [])):
        check_target(target)
    places = [_place(files, root, bids, apart) for files in cases]
    taken: dict[Path, str] = {}
    sources = {source.resolve(): files.id for files in cases for source in files.paths}
    for files, place in zip(cases, places, strict=True):
        for path in (*place.images, place.picture):
            if path in taken:
                raise InputError(
                    f"{path}: would hold the answers of two cases, {taken[path]} and {files.id}; segment folders that "
                    "hold only one of them, each into an output of its own"
                )
            taken[path] = files.id
            if (of := sources.get(path.resolve())) is not None:
                raise InputError(f"{path}: is a file of case {of}, which would be lost; choose another output")
            if role := role_of_output(path, files, files.paths[0].parent):
                raise InputError(
                    f"{path}: there, this name stands for {role} of a case, and the next run would take the answer for "
                    "that; choose an output outside the folders of the cases"
                )
    return places


def _place(files: CaseFiles, root: Path, bids: bool, apart: Path | None) -> Place:
    picture = root / SLICES / f"{files.id}.png"
    if bids:
        return Place(dseg_path(root, files), None if apart is None else probseg_path(root, files), picture, bids)
    labels = label_path(root, files)
    name = f"{split_suffix(labels)[0]}_probabilities.nii.gz"
    probabilities = None if apart is None else apart / labels.relative_to(root).with_name(name)
    return Place(labels, probabilities, picture)
