"""Sizes of a branch: of its student network and of the refinement network behind it."""

from dataclasses import asdict, dataclass

from smml.errors import InputError


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
        dropout: in the transformers.
        num_classes: K, background included: 4, or 5 for BraTS 2015.
        num_modalities: M.
        refinement_widths: channels of the refinement network at strides 1, 2, 4, 8: two to four of them.

    Raises:
        InputError: sizes that are not positive whole numbers, or do not fit together.
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
        numbers = (*self.widths, self.token_width, self.heads, self.mlp_width, self.depth, self.token_grid)
        if len(self.widths) != 5 or not all(isinstance(number, int) and number > 0 for number in numbers):
            raise InputError(f"a student has five widths and sizes that are positive whole numbers, found {self}")
        if self.token_width % self.heads:
            raise InputError(f"heads must divide token_width, found {self.heads} and {self.token_width}")
        refinement = self.refinement_widths
        if not 2 <= len(refinement) <= 4 or not all(isinstance(width, int) and width > 0 for width in refinement):
            raise InputError(
                f"refinement_widths must be two to four positive whole numbers, one for each of the strides 1, 2, 4 "
                f"and 8, found {refinement}"
            )

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
        """
        widths = tuple(values["widths"])
        same = (known.refinement_widths for known in PRESETS.values() if known.widths == widths)
        refinement = values.get("refinement_widths") or next(same, cls.refinement_widths)
        return cls(**{**values, "widths": widths, "refinement_widths": tuple(refinement)})


PRESETS: dict[str, StudentConfig] = {
    # For tests and notebooks on a CPU: the same architecture, a step in about a second.
    "tiny": StudentConfig(
        (8, 8, 16, 24, 32), token_width=64, heads=4, mlp_width=128, token_grid=2, refinement_widths=(8, 16, 24)
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


def preset(name: str) -> StudentConfig:
    """Look up a preset.

    Args:
        name: "tiny", "small" or "paper".

    Raises:
        InputError: the name is unknown; the valid ones are listed.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
    return PRESETS[name]
