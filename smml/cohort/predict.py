"""A cohort in one call: each case from the sequences that it has, resumable, with a table and a page."""

import contextlib
import hashlib
import os
import pickle
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

import smml
from smml.cohort.bids import write_dataset, write_sidecar
from smml.cohort.page import write_page, write_slice
from smml.cohort.places import Place, plan_places
from smml.cohort.rows import CohortRow, CohortTable, measure
from smml.cohort.visits import find_changes, write_changes
from smml.data.aligning import AlignedCase, align_case
from smml.data.case import Case
from smml.data.layouts import CaseFiles, find_cases
from smml.data.reading import read_case
from smml.devices import keep_freed_memory
from smml.errors import InputError
from smml.failures import explain
from smml.inference import Predictor
from smml.locks import claimed
from smml.modalities import Subset, parse_subset, subset_name
from smml.ranks import Ranks
from smml.runs import files_digest
from smml.workers import in_processes


@dataclass(frozen=True)
class Reading:
    """How the images of each case are read.

    Attributes:
        wanted: the sequences; None uses all that a case has.
        align: sequence to whose grid the others are brought; None refuses cases on several grids.
        register: whether the head's movement is found first.
    """

    wanted: Subset | None = None
    align: str | None = None
    register: bool = False

    def __post_init__(self) -> None:
        if self.register and self.align is None:
            raise InputError("register: expected a sequence to align to as well, such as t1ce")
        if self.align is not None:
            named = parse_subset(self.align)
            if len(named) != 1:
                raise InputError(f"align: expected one sequence, found {subset_name(named, ', ')}; name one of them")
            object.__setattr__(self, "align", named[0])

    def read(self, files: CaseFiles) -> Case:
        """The case, without its label; raises as ``read_case`` and ``align_case`` do."""
        if self.align is None:
            return read_case(files, self.wanted, label=False)
        return align_case(files, self.align, self.wanted, register=self.register, label=False)

    def digest(self, files: CaseFiles) -> str:
        """A digest of the images that a case is segmented from."""
        names = {*(files.modalities if self.wanted is None else self.wanted), *([self.align] if self.align else [])}
        return files_digest(dict.fromkeys(files.images[name].path for name in files.modalities if name in names))


Job = tuple[CaseFiles, Place, Reading, Path]


def predict_cohort(
    predictor: Predictor,
    cases: str | os.PathLike | Sequence[CaseFiles],
    output: str | os.PathLike,
    *,
    modalities: str | Sequence[str] | None = None,
    align: str | None = None,
    register: bool = False,
    output_layout: str = "own",
    probabilities: str | os.PathLike | None = None,
    workers: int = 1,
    ranks: Ranks | None = None,
    title: str = "Segmentations",
    progress: bool = True,
) -> list[CohortRow]:
    """Segment every case of a folder, and say in a table and a page what became of each.

    A case that cannot be read or segmented is a row with the reason, and the others go on. The same call again does
    what is not complete yet: what was interrupted, what could not be segmented, and cases that have come since. Several
    folders may go into one output, one after another.

    Args:
        predictor: a trained model.
        cases: a folder of cases, also of several layouts, or cases from ``find_cases``.
        output: folder of the answers (:mod:`smml.cohort.places`), made if needed.
        modalities: names or a subset such as "flair+t2"; None uses all that each case has. A case that lacks one of
            them cannot be segmented.
        align: sequence to whose grid the others of a case are brought (:func:`smml.data.align_case`); None refuses
            cases whose sequences lie on different grids.
        register: with ``align``, find how the head moved between them first; the movements are written beside the
            labels (``.tfm``) and told in the table.
        output_layout: "own" names labels as the case's data set does, with its label values; "bids" makes a derivative
            of BIDS, with values of one meaning (:mod:`smml.cohort.bids`).
        probabilities: folder of the class probabilities, which may be ``output``; None writes none.
        workers: processes that share out the cases, each with a thread and a model of its own.
        ranks: the processes of ``torchrun`` that share out the cases; all of them must call, and each gets all rows.
        title: heading of the page.
        progress: show a progress bar.

    Returns:
        The rows of ``cases`` in their order.

    Raises:
        InputError: no case; an unknown modality or layout; a place that cannot be written or that holds the answers of
            other settings or of other images under the same names, told before the first case is segmented.
    """
    found = find_cases(cases, mixed=True, labels=False) if isinstance(cases, str | os.PathLike) else list(cases)
    if not found:
        raise InputError("no cases to segment: name a folder that holds some")
    ranks = ranks or Ranks()
    if workers < 1 or (workers > 1 and ranks.count > 1):
        raise InputError(f"workers must be at least 1, and 1 in each process of torchrun, found {workers}")
    reading = Reading(None if modalities is None else parse_subset(modalities), align, register)
    root = Path(output)
    places = plan_places(found, root, output_layout, probabilities)
    identity = {
        "smml": smml.__version__,
        **predictor.facts(),
        "modalities": None if reading.wanted is None else list(reading.wanted),
        # Not among the model's facts: they change the table and no label.
        "intervals": None if predictor.intervals is None else predictor.intervals.to_dict(),
        "align": reading.align,
        "register": reading.register,
        "output_layout": output_layout,
        "probabilities": probabilities is not None,
    }
    with claimed(root) if ranks.first else contextlib.nullcontext():
        table: CohortTable | None = None
        left: list[int] = []
        if ranks.first:
            table = CohortTable(root, identity, [path for place in places for path in place.images])
            left = _left(found, places, reading, table)
            table.begin()
            if output_layout == "bids":
                write_dataset(root, predictor.scheme)
        # What was done before is known to the process that writes.
        left, rows = ranks.gather((left, table.rows if table else {}))[0]
        jobs = [(found[number], places[number], reading, root) for number in left]
        before = f", {len(found) - len(left)} done before" if len(left) < len(found) else ""
        with tqdm(
            total=len(left), desc=f"segmenting{before}", unit="case", disable=not (progress and ranks.first and left)
        ) as bar:
            for row in _segmented(predictor, jobs, workers, ranks):
                rows[row.case] = row
                if table is not None:
                    table.add(row)
                bar.update()
        if ranks.first:
            changes = find_changes(rows)
            write_changes(root, changes)
            write_page(root, rows, title, changes)
        ranks.wait()
    return [rows[files.id] for files in found]


def _left(found: list[CaseFiles], places: list[Place], reading: Reading, table: CohortTable) -> list[int]:
    """Which cases are not complete; InputError where an answer belongs to other images, or has other values."""
    left: list[int] = []
    other: list[tuple[CaseFiles, Place]] = []
    renamed: list[tuple[CaseFiles, Place, CohortRow]] = []
    for number, (files, place) in enumerate(zip(found, places, strict=True)):
        row = table.rows.get(files.id)
        if row is None or row.reason or not place.complete:
            left.append(number)
        elif row.digest != reading.digest(files):
            other.append((files, place))
        elif row.layout != files.layout:
            renamed.append((files, place, row))
    if other:
        files, place = other[0]
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        raise InputError(
            f"{place.labels}: was made from other images of case {files.id} than are there now{more}; choose another "
            "output, or remove that file to have the case segmented again"
        )
    if renamed:
        files, place, row = renamed[0]
        raise InputError(
            f"{place.labels}: holds labels of case {files.id} in the values of {row.layout}, and these are now those "
            f"of {files.layout}; choose another output, or remove that file to have the case segmented again"
        )
    return left


def _segmented(predictor: Predictor, jobs: list[Job], workers: int, ranks: Ranks) -> Iterator[CohortRow]:
    """The rows of all jobs as they are done, on every rank."""
    if workers > 1 and len(jobs) > 1:
        # As one array: joblib keeps a large one in shared memory instead of sending it along with every case.
        content = pickle.dumps(predictor)
        packed = np.frombuffer(content, np.uint8)
        # Its facts say nothing of intervals, and processes outlive this call with the model of an earlier one.
        model = hashlib.sha256(content).hexdigest()
        yield from in_processes(_segment_apart, [(packed, model, job) for job in jobs], min(workers, len(jobs)))
        return
    # In rounds of a case for each rank, so that what is done is in the table.
    for start in range(0, len(jobs), ranks.count):
        some = jobs[start : start + ranks.count]
        for rows in ranks.gather([segment_case(predictor, *some[place]) for place in ranks.deal(len(some))]):
            yield from rows


# The model of a process that others sent, and what it is known by.
_unpacked: dict[str, Predictor] = {}


def _segment_apart(packed: np.ndarray, model: str, job: Job) -> CohortRow:
    """:func:`segment_case` in a process of :func:`smml.workers.in_processes`."""
    if model not in _unpacked:
        _unpacked.clear()
        _unpacked[model] = pickle.loads(packed.tobytes())
        if _unpacked[model].device.type == "cpu":
            keep_freed_memory()
    return segment_case(_unpacked[model], *job)


def segment_case(predictor: Predictor, files: CaseFiles, place: Place, reading: Reading, root: Path) -> CohortRow:
    """Segment one case, write its answers, and say what became of it.

    Args:
        predictor: a trained model.
        files: the case.
        place: where its answers go.
        reading: how its images are read.
        root: folder of the table.

    Raises:
        InputError: an answer cannot be written: the next one could not either.
    """
    began = time.perf_counter()
    with _warned() as said:
        try:
            digest = reading.digest(files)
            case = reading.read(files)
            result = predictor.predict(case)
        except Exception as error:
            reason = explain(error)
            if reason is None:  # a fault of the program
                raise
            return CohortRow(files.id, files.layout, reason=" ".join(reason.split()))
    scheme = predictor.scheme
    predictor.save(result, place.labels, layout=place.values(scheme), probabilities=place.probabilities)
    if place.bids:
        for image in place.images:
            write_sidecar(image, result.subset, scheme)
    if isinstance(case, AlignedCase):
        case.save_transforms(place.labels)
        said += [str(each) for each in case.alignments.values()]
    write_slice(place.picture, case, result)
    return CohortRow(
        files.id,
        files.layout,
        result.subset,
        measure(result),
        time.perf_counter() - began,
        tuple(said),
        place.labels.relative_to(root).as_posix(),
        digest=digest,
    )


@contextlib.contextmanager
def _warned() -> Iterator[list[str]]:
    """What the package warns of meanwhile, as sentences; warnings of others are passed on."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    for warning in caught:
        if Path(warning.filename).is_relative_to(Path(smml.__file__).parent):
            said.append(" ".join(str(warning.message).split()))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
