"""The four MRI sequences, their 15 non-empty subsets, and boolean masks over them.

The order FLAIR, T1ce, T1, T2 (as in RFNet, mmFormer and SMML) holds for every tensor of the project; data sets that
order their files otherwise are mapped by name when they are read.
"""

from collections.abc import Iterable, Sequence

import torch

from smml.errors import InputError

__all__ = [
    "DISPLAY_NAMES",
    "MODALITIES",
    "SUBSETS",
    "mask_subset",
    "parse_subset",
    "subset_mask",
    "subset_name",
    "subsets_of",
]

MODALITIES: tuple[str, ...] = ("flair", "t1ce", "t1", "t2")

Subset = tuple[str, ...]

# The 15 subsets in the order in which the tables of the field print them (docs/CONVENTIONS.md: RFNet, mmFormer).
SUBSETS: tuple[Subset, ...] = (
    ("t2",),
    ("t1ce",),
    ("t1",),
    ("flair",),
    ("t1ce", "t2"),
    ("t1ce", "t1"),
    ("flair", "t1"),
    ("t1", "t2"),
    ("flair", "t2"),
    ("flair", "t1ce"),
    ("flair", "t1ce", "t1"),
    ("flair", "t1", "t2"),
    ("flair", "t1ce", "t2"),
    ("t1ce", "t1", "t2"),
    ("flair", "t1ce", "t1", "t2"),
)

DISPLAY_NAMES: dict[str, str] = {"flair": "FLAIR", "t1ce": "T1ce", "t1": "T1", "t2": "T2"}


def parse_subset(text: str | Iterable[str]) -> Subset:
    """Read a subset such as ``"t1ce+t2"``, ``"FLAIR, T2"``, ``"all"`` or a sequence of names.

    Args:
        text: names joined by "+" or ",", in any case and order, or an iterable of names.

    Returns:
        The names in the project's order, without repetition.

    Raises:
        InputError: a name is unknown (the valid ones are listed) or nothing is left.
    """
    names = text.replace("+", ",").split(",") if isinstance(text, str) else list(text)
    names = [str(name).strip().lower() for name in names]
    names = [name for name in names if name]
    if names == ["all"]:
        return MODALITIES
    unknown = [name for name in names if name not in MODALITIES]
    if unknown:
        raise InputError(
            f"unknown modality {', '.join(map(repr, unknown))} in subset {text!r}: "
            f"choose from {', '.join(MODALITIES)}, joined by '+' or ',', or 'all'"
        )
    if not names:
        raise InputError(f"the subset {text!r} is empty: name at least one of {', '.join(MODALITIES)}")
    return tuple(name for name in MODALITIES if name in names)


def subset_mask(subset: str | Iterable[str]) -> torch.Tensor:
    """Boolean mask of a subset, True where the modality is present, in the order of ``MODALITIES``.

    Args:
        subset: as :func:`parse_subset` reads it.

    Returns:
        Bool [M].

    Raises:
        InputError: as for :func:`parse_subset`.
    """
    present = parse_subset(subset)
    return torch.tensor([name in present for name in MODALITIES])


def mask_subset(mask: Sequence[bool] | torch.Tensor) -> Subset:
    """The subset that a boolean mask stands for (inverse of :func:`subset_mask`).

    Args:
        mask: bool [M], in the order of ``MODALITIES``.

    Raises:
        InputError: the mask does not have M entries, or none is True.
    """
    flags = [bool(flag) for flag in mask]
    if len(flags) != len(MODALITIES):
        raise InputError(f"a modality mask has {len(MODALITIES)} entries, found {len(flags)}")
    return parse_subset(name for name, flag in zip(MODALITIES, flags, strict=True) if flag)


def subset_name(subset: str | Iterable[str], separator: str = "+") -> str:
    """How a subset is printed, for example ``"FLAIR+T2"``.

    Args:
        subset: as :func:`parse_subset` reads it.
        separator: between the names.
    """
    return separator.join(DISPLAY_NAMES[name] for name in parse_subset(subset))


def subsets_of(available: Iterable[str]) -> tuple[Subset, ...]:
    """The subsets that can be made from the available modalities, in table order.

    A case may lack sequences on disk: training masks and evaluation rows are drawn from these.

    Args:
        available: names of modalities, at least one.
    """
    have = set(parse_subset(available))
    return tuple(subset for subset in SUBSETS if have.issuperset(subset))
