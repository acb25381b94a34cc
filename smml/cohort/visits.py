"""By how much the volumes of a patient changed from one visit to the next, with intervals where the model has some.

OUTPUT/changes.csv   a row for each region and each two visits of a patient that follow each other

Patients and visits are told by their ids, as data sets of several time points write them: ``BraTS-GLI-00005-100`` and
``BraTS-GLI-00005-101``, ``TCGA-02-0006_1996.08.23``, ``sub-07_ses-2``.
"""

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

from smml.cohort.rows import CohortRow, volume_of
from smml.data.labels import REGIONS, Region
from smml.files import write_text
from smml.models.intervals import Volume, volume_change

CHANGES = "changes.csv"

# A patient, and what orders the visits: a number, or year, month and day.
_VISITS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?P<patient>BraTS-[A-Z]+-\d+)-(?P<visit>\d+)",
        r"(?P<patient>TCGA-\w+-\w+)_(?P<visit>\d+\.\d+\.\d+)",
        r"(?P<patient>.*sub-[A-Za-z0-9]+)_ses-(?P<visit>\d+)",
    )
)


@dataclass(frozen=True)
class Change:
    """Of one region between two visits.

    Attributes:
        patient: of both.
        before: id of the earlier case.
        after: id of the later one.
        region: "WT", "TC" or "ET".
        volume: by how much it changed, in ml; its interval is NaN where either visit has none.
    """

    patient: str
    before: str
    after: str
    region: Region
    volume: Volume


def find_changes(rows: Mapping[str, CohortRow]) -> list[Change]:
    """The changes between visits that follow each other, by patient.

    Args:
        rows: by case; those without volumes are passed over.
    """
    visits: list[tuple[str, tuple[int, ...], CohortRow]] = []
    for case, row in rows.items():
        match = next((match for pattern in _VISITS if (match := pattern.fullmatch(case))), None)
        if match and row.measured:
            visits.append((match["patient"], tuple(int(part) for part in match["visit"].split(".")), row))
    found = []
    for patient, group in groupby(sorted(visits, key=lambda visit: visit[:2]), key=lambda visit: visit[0]):
        for (_, _, before), (_, _, after) in pairwise(group):
            for region in REGIONS:
                volumes = [volume_of(row, region, 0.95) for row in (before, after)]
                if volumes[0] is not None and volumes[1] is not None:
                    change = volume_change(volumes[0], volumes[1])
                    found.append(Change(patient, before.case, after.case, region, change))
    return found


def write_changes(folder: Path, changes: list[Change]) -> None:
    """Write the changes as CSV; nothing where there are none, and what an earlier run wrote is then removed.

    Args:
        folder: of the answers.
        changes: of :func:`find_changes`.
    """
    path = folder / CHANGES
    if not changes:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("patient", "before", "after", "region", "change ml", "from ml", "to ml", "level"))
    for change in changes:
        ends = (f"{end:.3f}" if end == end else "" for end in (change.volume.low, change.volume.high))
        level = f"{change.volume.level:g}"
        writer.writerow(
            (change.patient, change.before, change.after, change.region, f"{change.volume.ml:.3f}", *ends, level)
        )
    write_text(path, text.getvalue())
