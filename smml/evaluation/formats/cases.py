"""From a file's name to the identifier of its case, so that results of several tools meet."""

import re

_ENDING = re.compile(r"(\.nii\.gz|\.nii|\.mha|\.nrrd|\.npz)$", re.IGNORECASE)
_LABEL = re.compile(r"[-_]seg$", re.IGNORECASE)


def case_of(name: str) -> str:
    """The case that a file of labels or images belongs to: ``data/BraTS-GLI-00000-000-seg.nii.gz`` is of
    ``BraTS-GLI-00000-000``; a bare identifier stays as it is.

    Args:
        name: a path, in any system's spelling.
    """
    return _LABEL.sub("", _ENDING.sub("", re.split(r"[\\/]", name.strip())[-1]))
