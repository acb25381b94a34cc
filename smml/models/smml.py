"""Two students under different masks, each with a refinement network on wish: masked mutual learning's network."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from smml.errors import InputError
from smml.models.presets import StudentConfig, preset
from smml.models.refinement import RefinementNetwork
from smml.models.student import SeparateHeads, Student, StudentOutput, StudentShares


@dataclass(frozen=True)
class SMMLOutput:
    """What the two-branch network returns.

    Attributes:
        branches: the output of branch 1 and of branch 2.
        refined: refined logits of each branch, [B, K, X, Y, Z]; None where the network was given no priors.
    """

    branches: tuple[StudentOutput, StudentOutput]
    refined: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def of(cls, branches: Iterable[tuple[StudentOutput, torch.Tensor | None]]) -> "SMMLOutput":
        """Join what :meth:`SMML.branch` says of each branch.

        Args:
            branches: two pairs, each of a student's output and its refined probabilities, [B, K, X, Y, Z], or None.
        """
        (first, refined), (second, also_refined) = branches
        pair = None if refined is None or also_refined is None else (refined, also_refined)
        return cls((first, second), pair)


class SMML(nn.Module):
    """Two students of one architecture and separate weights.

    Args:
        config: a preset's name or a :class:`StudentConfig`.
        num_classes: K, overrides the preset's (5 for BraTS 2015).
        separate_heads: see :class:`Student`.
        refine: whether each branch has a refinement network.

    Attributes:
        branches: the students, each callable as ``student(x, mask)``.
        refinements: the refinement networks, each callable as ``network(logits, priors, mask)``, or None.
    """

    def __init__(
        self,
        config: str | StudentConfig = "small",
        *,
        num_classes: int | None = None,
        separate_heads: SeparateHeads = "available",
        refine: bool = False,
    ) -> None:
        super().__init__()
        config = preset(config) if isinstance(config, str) else config
        if num_classes is not None:
            config = replace(config, num_classes=num_classes)
        self.config = config
        self.branches = nn.ModuleList(Student(config, separate_heads=separate_heads) for _ in range(2))
        # Made after the students: their random weights are the same with and without refinement.
        self.refinements = None
        if refine:
            sizes = (config.num_classes, config.num_modalities)
            self.refinements = nn.ModuleList(
                RefinementNetwork(*sizes, widths=config.refinement_widths) for _ in range(2)
            )

    def forward(
        self,
        x: torch.Tensor,
        masks: torch.Tensor,
        available: torch.Tensor | None = None,
        priors: torch.Tensor | None = None,
    ) -> SMMLOutput:
        """Run both students on the same volume, each under its own mask, and refine what they say.

        Args:
            x: float [B, M, X, Y, Z].
            masks: bool [2, B, M], one mask a branch and sample.
            available: bool [B, M], what the cases have on disk (None: everything).
            priors: SAM's priors of each branch, float [2, B, M, R, X, Y, Z]; None leaves the refinement out.

        Raises:
            InputError: a shape or a mask is unusable, or there are priors but no refinement networks.
        """
        if masks.ndim != 3 or masks.shape[0] != 2:
            raise InputError(f"masks must be [2, B, M], one a branch, found {list(masks.shape)}")
        shared = [None, None] if priors is None else priors
        return SMMLOutput.of(self.branch(number, x, masks[number], available, shared[number]) for number in (0, 1))

    def branch(
        self,
        number: int,
        x: torch.Tensor,
        mask: torch.Tensor,
        available: torch.Tensor | None = None,
        priors: torch.Tensor | None = None,
    ) -> tuple[StudentOutput, torch.Tensor | None]:
        """One branch of :meth:`forward`: what its student says, and the refined logits if there are priors.

        Args:
            number: 0 or 1.
            x: float [B, M, X, Y, Z].
            mask: bool [B, M].
            available: bool [B, M] as in :meth:`forward`.
            priors: float [B, M, R, X, Y, Z], or None.

        Raises:
            InputError: as :meth:`forward`.
        """
        output = self.branches[number](x, mask, available)
        if priors is None:
            return output, None
        if self.refinements is None:
            raise InputError("priors were given to a network without refinement; build it with refine=True")
        return output, self.refinements[number](output.logits, priors, mask.to(priors.device)).logits

    def encode(self, x: torch.Tensor, present: torch.Tensor) -> tuple[StudentShares, StudentShares]:
        """What each branch makes of the modalities that are present, whatever subset is fused later; for inference.

        Args:
            x: float [B, M, X, Y, Z]; the other modalities are not read.
            present: bool [M].
        """
        rows = present.to(x.device).expand(len(x), -1)
        first, second = (student.share(student.encode(x, rows)) for student in cast(Iterable[Student], self.branches))
        return first, second

    def segment(
        self, pair: tuple[StudentShares, StudentShares], subsets: torch.Tensor, most: int | None = None
    ) -> torch.Tensor:
        """Probabilities of both branches for every subset of what was encoded; for inference.

        Args:
            pair: of :meth:`encode`, for B samples.
            subsets: bool [S, M], at least one True a row.
            most: samples times subsets that are fused and decoded together; None: all.

        Returns:
            Float32 [B, S, 2, K, X, Y, Z].

        Raises:
            InputError: a subset asks for a modality that was not encoded.
        """
        count, parts = len(pair[0].present), []
        students = cast(Iterable[Student], self.branches)
        for some in subsets.split(max(1, (most or count * len(subsets)) // count)):
            logits = [student.segment(shares, some) for student, shares in zip(students, pair, strict=True)]
            branches = [each.float().softmax(dim=1).unflatten(0, (len(some), count)) for each in logits]
            parts.append(torch.stack(branches, dim=1))
        return torch.cat(parts).movedim(2, 0)
