"""Published mean Dice over the 15 subsets, by data set: reference lines for a comparison under the same protocol.

Means of the literature's tables (WT, TC, ET in per cent), over the test split of each data set, all fifteen subsets.
Each says in which file of which repository on GitHub it was read, and of which date that file is; most are reprints by
the authors of another method. No figure of SMML's own is known to this project, so there is none.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A published row.

    Attributes:
        means: Dice of WT, TC and ET in per cent.
        source: repository, file and date of that file's state.
    """

    means: tuple[float, float, float]
    source: str


@dataclass(frozen=True)
class Protocol:
    """A data set and split under which figures were published.

    Attributes:
        title: for headings.
        cases: of the test split.
        pattern: of the identifiers of its cases.
        figures: by method.
    """

    title: str
    cases: int
    pattern: re.Pattern[str]
    figures: dict[str, Figure]


# Files and the dates of the commits in which they were read.
_RFNET = "dyh127/RFNet, README.md, 2022-06-13"
_DEMOSEG = "kk42yy/DeMoSeg, ReadMe.md, 2025-03-31"
_PRISMS = "DavidRutkevich/PRISM-Docs, content/prisms/result.md, 2025-05-10"
_ORHNA = "orhna/missing_modality_MRI, README.md, 2025-09-16"


def _figures(*tables: tuple[str, dict[str, tuple[float, float, float]]]) -> dict[str, Figure]:
    return {method: Figure(means, source) for source, rows in tables for method, means in rows.items()}


PROTOCOLS: dict[str, Protocol] = {
    "brats2023": Protocol(
        "BraTS 2023 (GLI), split 875/125/251",
        251,
        re.compile(r"BraTS-GLI-\d+-\d+", re.IGNORECASE),
        # To one digit, as printed there.
        _figures((_ORHNA, {"mmFormer": (90.0, 84.7, 73.6), "IM-Fuse": (90.2, 85.5, 74.3)})),
    ),
    "brats2020": Protocol(
        "BraTS 2020, split 219/50/100",
        100,
        re.compile(r"BraTS20_Training_\d+", re.IGNORECASE),
        _figures(
            (
                _RFNET,
                {
                    "HeMIS": (75.10, 65.45, 47.73),
                    "U-HVED": (81.24, 67.19, 48.55),
                    "RobustSeg": (84.17, 73.45, 55.49),
                    "RFNet": (86.98, 78.23, 61.47),
                },
            ),
            (
                _DEMOSEG,
                {
                    "mmFormer": (87.08, 78.69, 64.08),
                    "MAVP": (87.58, 79.67, 64.87),
                    "GSS": (88.09, 79.24, 66.42),
                    "DeMoSeg": (88.90, 81.58, 69.71),
                },
            ),
            (_PRISMS, {"PRISMS": (87.86, 79.20, 66.77)}),
        ),
    ),
    "brats2018": Protocol(
        "BraTS 2018, split 199/29/57, three folds",
        57,
        re.compile(r"Brats18_.+", re.IGNORECASE),
        _figures(
            (
                _RFNET,
                {
                    "HeMIS": (78.60, 59.70, 48.10),
                    "U-HVED": (80.10, 64.00, 50.00),
                    "RobustSeg": (84.37, 69.78, 51.02),
                    "RFNet": (85.67, 76.53, 57.12),
                },
            ),
            (
                _DEMOSEG,
                {
                    "mmFormer": (86.38, 75.82, 59.12),
                    "MAVP": (86.60, 76.00, 60.01),
                    "GSS": (87.20, 78.25, 63.49),
                    "DeMoSeg": (87.96, 79.79, 64.90),
                },
            ),
            # It does not say whether over the three folds.
            (_PRISMS, {"PRISMS": (86.53, 79.11, 63.87)}),
        ),
    ),
    "brats2015": Protocol(
        "BraTS 2015, split 242/12/20",
        20,
        # ``find_cases`` puts the grade in front.
        re.compile(r"((HGG|LGG)_)?(brats_2013_pat\d+_1|brats_tcia_pat\d+_\d+|VSD\.Brain.*)", re.IGNORECASE),
        _figures(
            (
                _RFNET,
                {
                    "HeMIS": (68.22, 54.07, 43.86),
                    "U-HVED": (81.57, 64.68, 56.76),
                    "RobustSeg": (84.45, 69.19, 57.33),
                    "RFNet": (86.13, 71.93, 64.13),
                },
            ),
            (
                _DEMOSEG,
                {
                    "mmFormer": (85.67, 69.96, 61.77),
                    "MAVP": (86.56, 71.94, 62.06),
                    "GSS": (87.59, 74.16, 66.92),
                    "DeMoSeg": (88.96, 75.88, 66.17),
                },
            ),
        ),
    ),
}
