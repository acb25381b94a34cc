"""What a built network is made of, as its drawings tell it: nothing here is written down a second time."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import nn

from smml.errors import InputError
from smml.modalities import MODALITIES
from smml.models import SMML, Student, StudentConfig
from smml.models.presets import preset, preset_name


@dataclass(frozen=True)
class NetworkSizes:
    """Sizes of one branch, read off its modules.

    Attributes:
        name: of the preset, or "of its own".
        patch: edge of the patch, voxels.
        edges: of the maps at the five levels, voxels.
        widths: channels of the encoders' maps at the five levels.
        fused: at the five levels, channels that enter the fusion and that leave it.
        decoded: channels of the decoder's maps at the five levels.
        token_width: channels of a token.
        heads: attention heads of a layer.
        mlp_width: hidden channels of a layer.
        layers: of the transformer within a modality, and of the one across them.
        bottleneck: channels of the bottleneck.
        classes: of the fused head.
        deep_heads: heads of deep supervision.
        modalities: encoders.
        parameters: by part of a student ("encoder" and "intra" of one modality, "inter", "fusion and decoder",
            "separate"), of a whole "student", and of its "refinement".
    """

    name: str
    patch: int
    edges: tuple[int, ...]
    widths: tuple[int, ...]
    fused: tuple[tuple[int, int], ...]
    decoded: tuple[int, ...]
    token_width: int
    heads: int
    mlp_width: int
    layers: tuple[int, int]
    bottleneck: int
    classes: int
    deep_heads: int
    modalities: int
    parameters: dict[str, int]

    @property
    def tokens(self) -> int:
        """Of one modality: a token is one place of the deepest level."""
        return self.edges[-1] ** 3


def sizes_of(config: str | StudentConfig, patch: int | None = None) -> NetworkSizes:
    """Build the two-branch network without memory for its weights, and read its sizes.

    Args:
        config: a preset's name or a configuration.
        patch: edge of the patch in voxels; None takes the one for whose tokens the positions are learned.

    Raises:
        InputError: an unknown preset, a patch that a student refuses, or other modalities than the drawings have names
            for.
    """
    config = preset(config) if isinstance(config, str) else config
    patch = config.token_grid * Student.STRIDE if patch is None else patch
    if patch < Student.MINIMUM or patch % Student.STRIDE:
        raise InputError(f"patch must be at least {Student.MINIMUM} and divisible by {Student.STRIDE}, found {patch}")
    if config.num_modalities != len(MODALITIES):
        raise InputError(f"a network is drawn for {len(MODALITIES)} modalities, found {config.num_modalities}")
    network = _built(config)
    student: Any = network.branches[0]
    refinement: Any = cast(nn.ModuleList, network.refinements)[0]
    levels = range(len(student.encoders[0].stages))
    layer = student.inter.layers[0]
    fused = tuple((fusion.weight.shape[1], fusion.weight.shape[0]) for fusion in student.fusion_decoder.fusions)
    ups = (up.out.conv.out_channels for up in student.fusion_decoder.decoder.ups)
    return NetworkSizes(
        name=preset_name(config) or "of its own",
        patch=patch,
        edges=tuple(patch // 2**level for level in levels),
        widths=tuple(
            stage.enter.out_channels if level == 0 else stage.enter.conv.out_channels
            for level, stage in enumerate(student.encoders[0].stages)
        ),
        fused=fused,
        decoded=(*ups, fused[-1][1]),
        token_width=student.inter.width,
        heads=layer.heads,
        mlp_width=layer.mlp[0].out_features,
        layers=(len(student.intra[0].layers), len(student.inter.layers)),
        bottleneck=student.inter.decode.out_channels,
        classes=student.fusion_decoder.head.out_channels,
        deep_heads=len(student.fusion_decoder.deep_heads),
        modalities=len(student.encoders),
        parameters={
            "encoder": _count(student.encoders[0]),
            "intra": _count(student.intra[0]),
            "inter": _count(student.inter),
            "fusion and decoder": _count(student.fusion_decoder),
            "separate": _count(student.separate_decoder),
            "student": _count(student),
            "refinement": _count(refinement),
        },
    )


def in_short(count: int) -> str:
    """A number of parameters with three digits: 812, 34.5 k, 38.0 M."""
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if count >= 0.9995 * unit:
            value = count / unit
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{name}"
    return str(count)


@lru_cache(maxsize=4)
def _built(config: StudentConfig) -> SMML:
    """The network without memory for its weights; a page draws the same one more than once."""
    with torch.device("meta"):
        return SMML(config, refine=True)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
