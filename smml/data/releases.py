"""How the data sets of the field name their files and what their label values mean; a new one goes here.

Names and label values of the releases: of 2019 and 2022 (FeTS) as of the years beside them; TCGA by Bakas et al. 2017
(https://doi.org/10.1038/sdata.2017.117); the collections of 2023 by their papers (arXiv:2305.19369, 2405.09787,
2306.00838, 2407.08855); 2024 and later by the challenge's own code, brats-evaluation 0.0.10 on PyPI, and
arXiv:2405.18368. Names of files were taken from participants' public code in November 2026; that every case of 2024
(post-treatment) has a time point from 100 is what all those listings show, and nothing that the challenge promises.
"""

import functools
import re
from dataclasses import dataclass, replace

from smml.data.labels import BRATS_2015, BRATS_2018, BRATS_2023, BRATS_2024, BRATS_PED, MSD, LabelScheme
from smml.data.nnunet import CHANNELS, scheme_named
from smml.errors import InputError


@dataclass(frozen=True)
class Layout:
    """One data set's way of naming files.

    Attributes:
        name: key in ``LAYOUTS``.
        scheme: label values on disk and in memory.
        summary: the pattern as a person would write it.
        tokens: how each modality, and "label", is spelt in a file name.
        case_name: format of a case's name, from ``id`` (text) or ``number`` (int).
        case_pattern: what a case's name looks like.
        file: format of a file's path below the root, from ``case``, ``token`` and, in 2015, ``grade`` and ``number``;
            in TCGA, ``patient``.
        label_file: the same for the label where it differs.
        channels: modalities along the last axis where one 4D file holds them all.
        patient: what a case's id looks like, with the patient's name as its group, where a patient can have several
            cases (visits); None where each case is a patient of its own.
        separator: between a case's name and the token.
        named: what a case's name looks like where the layout is named by the user, if that is more than
            ``case_pattern``, because another release has such names.
        sign: a value that only this release's labels hold, by which it is told from the one of the same names.
        automatic: token of a segmentation that was computed and seen by nobody.
        by_names: whether the names of its files tell the layout.
    """

    name: str
    scheme: LabelScheme
    summary: str
    tokens: dict[str, str]
    case_name: str
    case_pattern: str
    file: str
    label_file: str | None = None
    channels: tuple[str, ...] | None = None
    patient: str | None = None
    separator: str = "_"
    named: str | None = None
    sign: int | None = None
    automatic: str | None = None
    by_names: bool = True

    @functools.cached_property
    def file_pattern(self) -> re.Pattern:
        """Matches a file name without its suffix; groups ``case`` and, unless 4D, ``token``."""
        return self._pattern(self.case_pattern)

    @functools.cached_property
    def named_pattern(self) -> re.Pattern:
        """The same where the user named the layout."""
        return self._pattern(self.named or self.case_pattern)

    def names(self, case: str, pattern: str | None = None) -> bool:
        """Whether a case of this layout may be called so, and the name tells the layout.

        Args:
            case: its id, without the grade that ``find_cases`` puts before those of 2015.
            pattern: instead of ``case_pattern``.
        """
        return self.by_names and re.fullmatch(pattern or self.case_pattern, case, re.IGNORECASE) is not None

    def _pattern(self, case: str) -> re.Pattern:
        spelt = [*self.tokens.values(), *([self.automatic] if self.automatic else [])]
        tokens = "|".join(sorted(map(re.escape, spelt), key=len, reverse=True))
        ending = "" if self.channels else f"{self.separator}(?P<token>{tokens})"
        return re.compile(f"(?P<case>{case}){ending}", re.IGNORECASE)


_TOKENS = {"flair": "flair", "t1ce": "t1ce", "t1": "t1", "t2": "t2", "label": "seg"}
_TOKENS_2023 = {"flair": "t2f", "t1ce": "t1c", "t1": "t1n", "t2": "t2w", "label": "seg"}


def _collection(
    name: str, scheme: LabelScheme, letters: str, visit: str = "000", *, visits: str = r"\d+", **more
) -> Layout:
    """One of the collections of 2023 and later, which differ in three letters and in what labels mean."""
    return Layout(
        name,
        scheme,
        f"BraTS-{letters}-*/BraTS-{letters}-*-{{t1n,t1c,t2w,t2f,seg}}.nii[.gz]",
        _TOKENS_2023,
        f"BraTS-{letters}-{{number:05d}}-{visit}",
        rf"BraTS-{letters}-\d+-{visits}",
        "{case}/{case}-{token}.nii.gz",
        patient=rf"(BraTS-{letters}-\d+)-\d+",
        separator="-",
        **more,
    )


_SEQUENCE_2015 = "{grade}/{case}/VSD.Brain.XX.O.{token}.{number}/VSD.Brain.XX.O.{token}.{number}.mha"

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "brats2015",
            BRATS_2015,
            "{HGG,LGG}/<patient>/VSD.Brain*.XX.O.{MR_Flair,MR_T1,MR_T1c,MR_T2,OT}.<n>/*.mha",
            {"flair": "MR_Flair", "t1ce": "MR_T1c", "t1": "MR_T1", "t2": "MR_T2", "label": "OT"},
            "brats_2015_pat{id}_1",
            # Almost anything, but digits alone, which are MSD's.
            r"brats_(?!\d+$)\w+",
            _SEQUENCE_2015,
            _SEQUENCE_2015.replace("VSD.Brain.", "VSD.Brain_3more."),
            patient=r"(\w+?)(?:_\d+)?",
        ),
        Layout(
            "brats2018",
            BRATS_2018,
            "{HGG,LGG}/Brats18_*/Brats18_*_{flair,t1,t1ce,t2,seg}.nii[.gz]",
            _TOKENS,
            "Brats18_{id}_1",
            # 2017 is named alike and labelled alike.
            r"Brats1[78]_\w+",
            "HGG/{case}/{case}_{token}.nii.gz",
            # The releases of three years share patients.
            patient=r"Brats1\d_(\w+?)(?:_\d+)?",
        ),
        Layout(
            "brats2019",
            BRATS_2018,
            "{HGG,LGG}/BraTS19_*/BraTS19_*_{flair,t1,t1ce,t2,seg}.nii[.gz]",
            _TOKENS,
            "BraTS19_{id}_1",
            r"BraTS19_\w+",
            "HGG/{case}/{case}_{token}.nii.gz",
            patient=r"Brats1\d_(\w+?)(?:_\d+)?",
        ),
        Layout(
            "brats2020",
            BRATS_2018,
            "BraTS20_Training_*/BraTS20_Training_*_{flair,t1,t1ce,t2,seg}.nii[.gz]",
            _TOKENS,
            "BraTS20_Training_{number:03d}",
            r"BraTS20_(?:Training|Validation|Testing)_\d+",
            "{case}/{case}_{token}.nii.gz",
        ),
        Layout(
            "brats2021",
            BRATS_2018,
            "BraTS2021_*/BraTS2021_*_{flair,t1,t1ce,t2,seg}.nii[.gz]",
            _TOKENS,
            "BraTS2021_{number:05d}",
            r"BraTS2021_\d+",
            "{case}/{case}_{token}.nii.gz",
        ),
        Layout(
            "fets2022",
            BRATS_2018,
            "FeTS2022_*/FeTS2022_*_{flair,t1,t1ce,t2,seg}.nii[.gz]",
            _TOKENS,
            "FeTS2022_{number:05d}",
            r"FeTS2022_\d+",
            "{case}/{case}_{token}.nii.gz",
        ),
        # After treatment, with the resection cavity; before 2023, whose names are these with other time points.
        _collection("brats2024", BRATS_2024, "GLI", "100", visits=r"1\d\d", named=r"BraTS-GLI-\d+-\d+"),
        _collection("brats2023", BRATS_2023, "GLI"),
        # From 2025 on with the resection cavity; the other values mean the same in all years.
        _collection("brats-met", BRATS_2024, "MET"),
        _collection("brats-men", BRATS_2023, "MEN"),
        _collection("brats-ssa", BRATS_2023, "SSA"),
        # 2024 and later. In 2023 there were three classes: 1 was what does not enhance, cysts included, 2 ED, 3 ET.
        _collection("brats-ped", BRATS_PED, "PED", sign=4),
        _collection("brats-ped-2023", BRATS_2023, "PED"),
        Layout(
            "tcga",
            BRATS_2018,
            "TCGA-*/TCGA-*_<date>_{flair,t1,t1Gd,t2,GlistrBoost_ManuallyCorrected}.nii[.gz]",
            {"flair": "flair", "t1ce": "t1Gd", "t1": "t1", "t2": "t2", "label": "GlistrBoost_ManuallyCorrected"},
            "TCGA-00-{number:04d}_2000.01.01",
            r"TCGA-\w{2}-\w{4}_\d{4}\.\d{2}\.\d{2}",
            "{patient}/{case}_{token}.nii.gz",
            patient=r"(TCGA-\w+-\w+)_.*",
            automatic="GlistrBoost",
        ),
        Layout(
            "msd",
            MSD,
            "{imagesTr,imagesTs,labelsTr}/BRATS_*.nii[.gz] with 4D images",
            {},
            "BRATS_{number:03d}",
            r"BRATS_\d+",
            "imagesTr/{case}.nii.gz",
            "labelsTr/{case}.nii.gz",
            ("flair", "t1", "t1ce", "t2"),
        ),
        # Names that no data set has: what is simulated can be told from a patient by its id.
        Layout(
            "simulated",
            BRATS_2018,
            "Simulated_*/Simulated_*_{flair,t1,t1ce,t2,seg}.nii[.gz]",
            _TOKENS,
            "Simulated_{number:05d}",
            r"Simulated_\d+",
            "{case}/{case}_{token}.nii.gz",
        ),
        Layout(
            "nnunet",
            BRATS_2023,
            "nnU-Net's dataset.json beside {imagesTr,imagesTs,labelsTr}/*.nii[.gz]",
            CHANNELS,
            "case_{number:05d}",
            # Any name; one of digits alone is a number that takes the form above.
            r"(?!\d+$)[\w.-]+",
            "imagesTr/{case}_{token}.nii.gz",
            "labelsTr/{case}.nii.gz",
            by_names=False,
        ),
    )
}


def layout_named(name: str) -> Layout:
    """The layout of that name.

    Args:
        name: key in ``LAYOUTS``, or nnU-Net's with its label values, such as "nnunet(NCR=2,ED=1,ET=3)".

    Raises:
        InputError: unknown; the valid ones are listed.
    """
    if name not in LAYOUTS:
        if scheme := scheme_named(name):
            return replace(LAYOUTS["nnunet"], name=name, scheme=scheme)
        raise InputError(f"unknown layout {name!r}: choose from {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


# Visits by the names of BIDS, which any data set may have been given.
_BIDS_VISIT = re.compile(r"(.*sub-[a-z0-9]+)_ses-[a-z0-9]+", re.IGNORECASE)


@functools.lru_cache(maxsize=2**14)
def match_visit(case: str, layout: str | None = None) -> re.Match | None:
    """A case's id as a visit of a patient, whose name is the match's first group; None where the id tells no visits.

    Args:
        case: id of the case.
        layout: its layout; None goes by the id alone.

    Raises:
        InputError: an unknown layout.
    """
    style = None if layout is None else layout_named(layout)
    if style is None or not style.by_names:  # its cases keep the names of the data set that they were converted from
        style = next((each for each in LAYOUTS.values() if each.names(case)), None)
    own = re.fullmatch(style.patient, case, re.IGNORECASE) if style is not None and style.patient else None
    return own or _BIDS_VISIT.fullmatch(case)


def patient_of(case: str, layout: str | None = None) -> str:
    """The patient's name in a case's id, which all visits of one patient share, in small letters.

    Args:
        case: id of the case.
        layout: its layout; None goes by the id alone.

    Raises:
        InputError: an unknown layout.
    """
    visit = match_visit(case, layout)
    return (visit[1] if visit else case).casefold()
