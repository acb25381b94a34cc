"""The refinement network of a branch: it corrects the student's segmentation with what SAM saw (docs/METHOD.md).

A gate decides, per modality, region and place, how far SAM's map is to be trusted. It looks at the prediction and at
the map, never at the truth, so it works where no truth exists; there is no argument for one anywhere in this file. The
gated maps, averaged over the modalities, go with the student's probabilities through a small 3-D U-Net whose output
is a correction of the student's logits. Its last layer starts at zero: an untrained refinement is the student.
"""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from smml.data.labels import REGIONS, Region, scheme_for_classes
from smml.errors import InputError
from smml.models.convolution import NEGATIVE_SLOPE, PreNormConv, ReflectConv
from smml.models.upsampling import double

# exp(-8) is 3e-4: what happens to probabilities below that is no concern of a segmentation.
_LOWEST_LOG = -8.0


@dataclass(frozen=True)
class RefinementOutput:
    """What a refinement network returns.

    Attributes:
        logits: the refined segmentation, [B, K, X, Y, Z], float32 at least.
        gate: how far SAM's map of each modality and region is trusted, [B, M, R, X, Y, Z] in [0, 1]; exactly 0 for
            missing modalities.
        prior: the gated maps, averaged over the modalities present, [B, R, X, Y, Z] in [0, 1].
    """

    logits: torch.Tensor
    gate: torch.Tensor
    prior: torch.Tensor


class PriorGate(nn.Module):
    """From the prediction and the priors to a gate in [0, 1] per modality, region and place.

    Trust is a matter of places, not of single voxels, so the evidence is gathered at half the resolution, where it
    costs an eighth, and the gate is interpolated back. For modality m and region r it is, with p the student's
    probability of the region and s SAM's map of it:

    - p and s themselves, and their agreement 1 - |p - s|;
    - the entropy of the student's prediction, as a share of log K: where the student is sure, it needs no help;
    - the overlap 2 sum(p s) / (sum p + sum s) over the whole patch, 0 where both are empty: a map that misses the
      prediction altogether is a map that went astray.

    Each (m, r) has its own small network of 1x1x1 convolutions; the weights tell the gate that, say, SAM finds ET in
    T1ce but not in T1.
    """

    EVIDENCE = 5
    HIDDEN = 8

    def __init__(self, modalities: int, regions: int) -> None:
        super().__init__()
        pairs = modalities * regions
        self.enter = nn.Conv3d(pairs * self.EVIDENCE, pairs * self.HIDDEN, 1, groups=pairs)
        self.activation = nn.LeakyReLU(NEGATIVE_SLOPE)
        self.leave = nn.Conv3d(pairs * self.HIDDEN, pairs, 1, groups=pairs)

    def forward(
        self, region: torch.Tensor, entropy: torch.Tensor, priors: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """The gate [B, M, R, X, Y, Z], exactly 0 for missing modalities.

        Args:
            region: p, [B, R, X, Y, Z].
            entropy: [B, 1, X, Y, Z] in [0, 1].
            priors: s, [B, M, R, X, Y, Z], 0 (never NaN) for missing modalities.
            mask: bool [B, M].
        """
        (batch, modalities, regions), size = priors.shape[:3], priors.shape[3:]
        sums = region.sum(dim=(2, 3, 4))[:, None] + priors.sum(dim=(3, 4, 5))  # [B, M, R]
        common = (region[:, None] * priors).sum(dim=(3, 4, 5))
        overlap = 2 * common / torch.where(sums > 0, sums, 1.0)

        maps = F.avg_pool3d(priors.flatten(1, 2), 2)
        half = maps.shape[2:]
        s = maps.unflatten(1, (modalities, regions))
        p = F.avg_pool3d(region, 2)[:, None].expand_as(s)
        h = F.avg_pool3d(entropy, 2)[:, None].expand_as(s)
        kinds = [p, s, 1 - (p - s).abs(), h, overlap[..., None, None, None].expand_as(s)]
        evidence = torch.stack(kinds, dim=3).reshape(batch, -1, *half)  # pairs outside, evidence inside, as grouped

        gate = self.leave(self.activation(self.enter(evidence))).sigmoid().float()
        gate = F.interpolate(gate, size=tuple(size), mode="trilinear", align_corners=False)
        return gate.unflatten(1, (modalities, regions)) * mask[:, :, None, None, None, None]


class RefinementNetwork(nn.Module):
    """Refined logits = the student's logits + a correction drawn from gated priors.

    Args:
        num_classes: K, 4 or 5; decides which classes make up a region.
        num_modalities: M.
        widths: channels at strides 1, 2, 4, 8 (two to four of them); ``StudentConfig.refinement_widths``.
        regions: names of the R regions of the priors, in their order.

    Raises:
        InputError: an unknown region, a number of classes without a scheme, or unusable widths.
    """

    MINIMUM = 16

    def __init__(
        self,
        num_classes: int = 4,
        num_modalities: int = 4,
        *,
        widths: tuple[int, ...] = (8, 16, 24),
        regions: tuple[Region, ...] = REGIONS,
    ) -> None:
        super().__init__()
        scheme = scheme_for_classes(num_classes)
        if not regions or set(regions) - set(REGIONS):
            raise InputError(f"regions must be names out of {', '.join(REGIONS)}, found {regions!r}")
        if not 2 <= len(widths) <= 4:
            raise InputError(f"widths must hold two to four numbers of channels, found {widths!r}")
        self.num_classes, self.num_modalities, self.regions = num_classes, num_modalities, tuple(regions)
        self.stride = 2 ** (len(widths) - 1)
        members = torch.zeros(len(regions), num_classes)
        for r, name in enumerate(regions):
            members[r, list(scheme.regions[name])] = 1
        # It follows from the arguments, so it is no part of a checkpoint.
        self.register_buffer("members", members, persistent=False)
        self.gate = PriorGate(num_modalities, len(regions))
        self.trunk = UNet(2 * num_classes + 2 * len(regions), widths)
        self.head = nn.Conv3d(widths[0], num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight)
        # An untrained refinement changes nothing, to the bit; training can only leave the student, not start without.
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, logits: torch.Tensor, priors: torch.Tensor, mask: torch.Tensor) -> RefinementOutput:
        """Refine one branch's prediction.

        Args:
            logits: the student's fused logits, floating [B, K, X, Y, Z]; each edge at least 16 and divisible by 8 (by
                the stride of the deepest level, where there are fewer). They are detached here: what trains the
                refinement does not train the student.
            priors: of :class:`smml.sam.SAMPrior`, floating [B, M, R, X, Y, Z] in [0, 1]. Those of missing modalities
                are never used: they may be NaN.
            mask: bool [B, M], the modalities that the branch was given.

        Returns:
            See :class:`RefinementOutput`. A sample's result does not depend on the others in the batch.

        Raises:
            InputError: shapes that do not fit.
        """
        mask = self._check(logits, priors, mask)
        logits = logits.detach()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # Selected, not multiplied: 0 x NaN is NaN.
        priors = torch.where(mask[:, :, None, None, None, None], priors.detach().to(logits.dtype), 0.0)

        log_p = logits.log_softmax(dim=1)
        p = log_p.exp()
        region = torch.einsum("rk,bkxyz->brxyz", self.members.to(p.dtype), p)
        entropy = torch.special.entr(p).sum(dim=1, keepdim=True) / torch.tensor(float(self.num_classes)).log().item()

        gate = self.gate(region, entropy, priors, mask)
        # An average, so that two modalities that say the same do not count as more certain than one.
        present = mask.sum(dim=1).clamp_min(1)[:, None, None, None, None]
        combined = (gate * priors).sum(dim=1) / present
        trust = gate.sum(dim=1) / present

        scaled = log_p.clamp_min(_LOWEST_LOG) / -_LOWEST_LOG
        features = self.trunk(torch.cat([p, scaled, combined, trust], dim=1))
        return RefinementOutput(logits + self.head(features).to(logits.dtype), gate, combined)

    def _check(self, logits: torch.Tensor, priors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if logits.ndim != 5 or logits.shape[1] != self.num_classes:
            raise InputError(f"logits must be [B, {self.num_classes}, X, Y, Z], found {list(logits.shape)}")
        batch, size = logits.shape[0], tuple(logits.shape[2:])
        if any(edge < self.MINIMUM or edge % self.stride for edge in size):
            raise InputError(
                f"each edge of logits must be at least {self.MINIMUM} and divisible by {self.stride}, found "
                f"{list(size)}; pad the volume or choose another patch"
            )
        expected = (batch, self.num_modalities, len(self.regions), *size)
        if tuple(priors.shape) != expected:
            raise InputError(
                f"priors must be {list(expected)} (batch, modalities, {', '.join(self.regions)}, volume), found "
                f"{list(priors.shape)}"
            )
        if mask.dtype != torch.bool or tuple(mask.shape) != expected[:2]:
            raise InputError(f"mask must be bool {list(expected[:2])}, found {mask.dtype} {list(mask.shape)}")
        return mask.to(logits.device)


class UNet(nn.Module):
    """A small 3-D U-Net: [B, Cin, X, Y, Z] -> features [B, widths[0], X, Y, Z].

    One convolution a level on the way down and one on the way up, each with a second one as a residual at the two
    finest levels, which carry few of the parameters and all of the outline.
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        # Probabilities share one scale already: normalising them would blow up the faintest trace of a class.
        downs: list[nn.Module] = [ReflectConv(in_channels, widths[0])]
        downs += [PreNormConv(a, b, stride=2) for a, b in itertools.pairwise(widths)]
        self.downs = nn.ModuleList(downs)
        self.more_down = nn.ModuleList(PreNormConv(width, width) for width in widths[:2])
        self.more_up = nn.ModuleList(PreNormConv(width, width) for width in widths[: min(2, len(widths) - 1)])
        pairs = list(itertools.pairwise(widths))
        self.narrows = nn.ModuleList(PreNormConv(deep, shallow, kernel_size=1) for shallow, deep in pairs)
        self.merges = nn.ModuleList(PreNormConv(2 * shallow, shallow) for shallow, _ in pairs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = []
        for level, down in enumerate(self.downs):
            x = down(x)
            if level < len(self.more_down):
                x = x + self.more_down[level](x)
            levels.append(x)
        x = levels.pop()
        for level in reversed(range(len(levels))):
            x = double(self.narrows[level](x))
            x = self.merges[level](torch.cat([levels[level], x], dim=1))
            if level < len(self.more_up):
                x = x + self.more_up[level](x)
        return x
