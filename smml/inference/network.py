"""The two students on batches of windows, and how windows are blended into a volume."""

import math

import torch

from smml.errors import InputError
from smml.inference.windows import Slices, WindowPlan
from smml.models import SMML
from smml.models.fusion import StudentShares, decode_fused, fuse_shares, shares_of

# Windows that are encoded together. Besides filling a GPU, more than one makes PyTorch choose oneDNN's convolutions on
# a CPU, which are several times faster than what it takes for a single small volume.
WINDOW_BATCH = 4

# Voxels that go through the network together, if that is more than one window. Above, a full-resolution map of 16
# channels takes more than 32 MiB, for which a C library may ask the system for fresh pages every time: on a CPU four
# windows of 64 then take longer than twice two.
BATCH_VOXELS = 2 * 64**3

# Windows times subsets that are fused and decoded together on a GPU.
FUSED_ON_GPU = 32

PRECISIONS = ("float32", "bf16")


class WindowNetwork:
    """Both students on one device, at one precision.

    Args:
        model: the network; it is put into evaluation mode.
        device: torch device that computes.
        precision: "float32", or "bf16" for autocast.

    Raises:
        InputError: unknown precision.
    """

    def __init__(self, model: SMML, device: str | torch.device, precision: str = "float32") -> None:
        if precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, found {precision!r}")
        self.model, self.device, self.precision = model.eval().to(device), torch.device(device), precision

    def autocast(self) -> torch.autocast:
        """The context in which the networks compute."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def together(self, shares: StudentShares) -> int:
        """How many subsets of these windows are fused and decoded in one pass."""
        most = _per_batch(shares.window) if self.device.type == "cpu" else FUSED_ON_GPU
        return max(1, most // len(shares.present))

    def encode(self, patches: torch.Tensor, present: torch.Tensor) -> tuple[StudentShares, StudentShares]:
        """Patches [B, M, X, Y, Z] -> what each branch makes of the modalities in ``present``, bool [M]."""
        rows = present.to(self.device).expand(len(patches), -1)
        with self.autocast():
            return tuple(shares_of(student, student.encode(patches, rows)) for student in self.model.branches)

    def segment(self, pair: tuple[StudentShares, StudentShares], masks: torch.Tensor) -> torch.Tensor:
        """Probabilities of every subset, float32 [S, 2, B, K, X, Y, Z], of B encoded windows; masks is bool [S, M]."""
        count, parts = len(pair[0].present), []
        for some in masks.split(self.together(pair[0])):
            branches = []
            for student, shares in zip(self.model.branches, pair, strict=True):
                with self.autocast():
                    logits = decode_fused(student, *fuse_shares(student, shares, some))
                branches.append(logits.float().softmax(dim=1).unflatten(0, (len(some), count)))
            parts.append(torch.stack(branches, dim=1))
        return torch.cat(parts)


class Blend:
    """Windows added up with the plan's weights, for any leading axes.

    Args:
        plan: the windows.
        leading: axes before space of what is blended, such as (2, K).
        device: that adds up.
    """

    def __init__(self, plan: WindowPlan, leading: tuple[int, ...], device: torch.device) -> None:
        self._importance = plan.importance.to(device)
        self._total = torch.zeros(*leading, *plan.padded_shape, device=device)
        self._weight = torch.zeros(plan.padded_shape, device=device)
        for place in plan.places:
            self._weight[place] += self._importance

    def add(self, place: Slices, window: torch.Tensor) -> None:
        """Add one window, [..., window]."""
        self._total[(..., *place)].addcmul_(window, self._importance)

    def mean(self) -> torch.Tensor:
        """The blended volume, [..., padded grid]; valid once every window of the plan was added."""
        return self._total.div_(self._weight)


def batches(plan: WindowPlan) -> list[tuple[Slices, ...]]:
    """The places of the windows, in batches that go through the network together."""
    size = _per_batch(plan.window)
    return [plan.places[start : start + size] for start in range(0, len(plan.places), size)]


def _per_batch(window: tuple[int, int, int]) -> int:
    return max(1, min(WINDOW_BATCH, BATCH_VOXELS // math.prod(window)))
