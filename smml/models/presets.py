"""Sizes of a branch: of its student network and of the refinement network behind it."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from smml.errors import InputError

Precision = Literal["float32", "bf16"]

# Largest sizes that a branch may have. They are far beyond the published ones, and there so that a damaged or forged
# file is refused at once: what it asks for would fill any memory, or take hours to build.
_MOST = {
    "widths": 4096,
    "token_width": 16384,
    "heads": 256,
    "mlp_width": 65536,
    "depth": 64,
    "token_grid": 64,
    "num_classes": 5,
    "num_modalities": 16,
    "refinement_widths": 4096,
}


@dataclass(frozen=True)
class StudentConfig:
    """Everything that decides a branch's shape.

    Attributes:
        widths: channels at strides 1, 2, 4, 8, 16.
        token_width: channels of a transformer token.
        heads: attention heads; divides ``token_width``.
        mlp_width: hidden channels of the transformer's MLP.
        depth: transformer layers, of the intra-modal and of the inter-modal block each.
        token_grid: edge of the grid for which position embeddings are learned (interpolated elsewhere).
        dropout: in the transformers, at least 0 and below 1.
        num_classes: K, background included: 4, or 5 for BraTS 2015.
        num_modalities: M.
        refinement_widths: channels of the refinement network at strides 1, 2, 4, 8: two to four of them.

    Raises:
        InputError: sizes that are not positive whole numbers, are beyond all reason, or do not fit together.
    """

    widths: tuple[int, int, int, int, int]
    token_width: int
    heads: int
    mlp_width: int
    depth: int = 1
    token_grid: int = 8
    dropout: float = 0.0
    num_classes: int = 4
    num_modalities: int = 4
    refinement_widths: tuple[int, ...] = (8, 16, 24)

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            several = name in ("widths", "refinement_widths")
            if several and not isinstance(value, tuple):
                raise InputError(f"{name} must be a tuple of whole numbers, found {value!r:.80}")
            # Not isinstance: True is an int.
            if not all(type(number) is int and 0 < number <= most for number in (value if several else (value,))):
                raise InputError(
                    f"a student has sizes that are positive whole numbers: {name} must lie between 1 and {most}, "
                    f"found {value!r:.80}"
                )
        if len(self.widths) != 5:
            raise InputError(f"a student has five widths, found {self.widths!r:.80}")
        if not 2 <= len(self.refinement_widths) <= 4:
            raise InputError(
                f"refinement_widths must be two to four positive whole numbers, one for each of the strides 1, 2, 4 "
                f"and 8, found {self.refinement_widths!r:.80}"
            )
        if self.num_classes < 4:
            raise InputError(f"num_classes must be 4, or 5 for BraTS 2015, found {self.num_classes}")
        if self.token_width % self.heads:
            raise InputError(f"heads must divide token_width, found {self.heads} and {self.token_width}")
        # A NaN fails the comparison too.
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be a number of at least 0 and below 1, found {self.dropout!r:.80}")

    def to_dict(self) -> dict:
        """A dictionary of plain values, for checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "StudentConfig":
        """Inverse of :meth:`to_dict`; what was written before there was a refinement lacks its widths.

        Those are then the ones of the preset that the student's widths belong to, so that a checkpoint of a preset
        stays one.

        Args:
            values: by field, as a checkpoint stores them.

        Raises:
            InputError: a field is unknown, missing or out of its range.
        """
        if not isinstance(values, dict):
            raise InputError(f"a student's sizes are stored by name, found {values!r:.80}")
        known = {field.name for field in fields(cls)}
        unknown = sorted(map(str, values.keys() - known))
        missing = [name for name in ("widths", "token_width", "heads", "mlp_width") if name not in values]
        if unknown or missing:
            raise InputError(
                f"a student's sizes are {', '.join(sorted(known))}; found {', '.join(unknown) or 'none'} besides, and "
                f"{', '.join(missing) or 'none'} missing"
            )
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        if plain.get("refinement_widths") is None:
            same = (known.refinement_widths for known in PRESETS.values() if known.widths == plain["widths"])
            plain["refinement_widths"] = next(same, cls.refinement_widths)
        return cls(**plain)


PRESETS: dict[str, StudentConfig] = {
    # For tests and notebooks on a CPU: the same architecture, a step in about a second.
    "tiny": StudentConfig(
        (8, 8, 16, 24, 32), token_width=64, heads=4, mlp_width=128, token_grid=2, refinement_widths=(8, 16, 24)
    ),
    # As many parameters as two of "tiny" have: its rival in the ablation study.
    "tiny-wide": StudentConfig(
        (12, 12, 22, 34, 46), token_width=88, heads=4, mlp_width=176, token_grid=2, refinement_widths=(8, 16, 24)
    ),
    # For useful weights of a few MB.
    "small": StudentConfig(
        (8, 16, 24, 32, 48), token_width=96, heads=6, mlp_width=192, token_grid=4, refinement_widths=(8, 16, 32, 48)
    ),
    # The published size (mmFormer's trunk).
    "paper": StudentConfig(
        (8, 16, 32, 64, 128),
        token_width=512,
        heads=8,
        mlp_width=4096,
        dropout=0.1,
        refinement_widths=(32, 64, 128, 256),
    ),
}


def preset_name(config: StudentConfig) -> str | None:
    """The preset of a configuration, the number of classes apart; None where it is none's. Inverse of :func:`preset`.

    Args:
        config: of a student.
    """
    sizes = replace(config, num_classes=StudentConfig.num_classes)
    return next((name for name, known in PRESETS.items() if known == sizes), None)


def preset(name: str) -> StudentConfig:
    """Look up a preset.

    Args:
        name: "tiny", "tiny-wide", "small" or "paper".

    Raises:
        InputError: the name is unknown; the valid ones are listed.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
    return PRESETS[name]
