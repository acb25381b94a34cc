"""What is measured: sizes, dtypes and inputs of every case."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod

import torch

from smml_kernels.benchmarks import floors

OPERATIONS = ("relation_loss", "masked_fusion", "exchange_loss", "dice_ce_loss")

MODALITIES = 4
ALL = ((True,) * MODALITIES,)
TWO = ((True, False, True, False),)
ONE = ((True, False, False, False),)
# Mean presence: every subset of the four but the empty one, p = 8 / 15.
SUBSETS = tuple(mask for mask in itertools.product((True, False), repeat=MODALITIES) if any(mask))

_PRESENCE_NAMES = {ALL: "4 of 4", TWO: "2 of 4", ONE: "1 of 4", SUBSETS: "mean of 15 subsets"}
_TOKENS_PER_CHANNEL = 2.8  # where the direct and the linear form need the same operations
# The first one of torch.amp.GradScaler.
_LOSS_SCALE = 2.0**16


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    Attributes:
        operation: a public function of :mod:`smml_kernels`.
        shape: relation_loss: [N, C]; masked_fusion: [B, C, X, Y, Z] of each map; the losses: [B, K, X, Y, Z].
        dtype: of the floating inputs.
        precision: of float32 matrix products, "highest" or "high" (tf32), as torch.set_float32_matmul_precision.
        masks: masked_fusion: presence of the modalities, one tuple a set of inputs; times are means over the sets.
        target_dtype: of the labels.
        compiled: whether torch.compile takes part.
        without: names of contestants that stay away, because they would take minutes or not fit.
    """

    operation: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    precision: str = "highest"
    masks: tuple[tuple[bool, ...], ...] = ()
    target_dtype: torch.dtype = torch.uint8
    compiled: bool = False
    without: tuple[str, ...] = ()

    @property
    def size(self) -> str:
        """The shape as people write it."""
        return f"({', '.join(map(str, self.shape))})"

    @property
    def presence(self) -> str:
        """masked_fusion: how many modalities are there; "" elsewhere."""
        return _PRESENCE_NAMES.get(self.masks, f"{len(self.masks)} masks") if self.masks else ""

    @property
    def dtype_name(self) -> str:
        """ "float32", "bfloat16", ..., "tf32" for float32 with matrix products in tf32."""
        return "tf32" if self.precision == "high" else str(self.dtype).removeprefix("torch.")

    @property
    def name(self) -> str:
        """Unique among the cases."""
        parts = [self.operation, self.size, self.dtype_name, self.presence]
        return " ".join(part for part in parts if part)

    @property
    def form(self) -> str:
        """relation_loss: the cheaper form by shape; "" elsewhere."""
        if self.operation != "relation_loss":
            return ""
        return "direct" if self.shape[0] <= _TOKENS_PER_CHANNEL * self.shape[1] else "linear"

    @property
    def matrix_rate(self) -> str | None:
        """Which measured matrix rate bounds the case: float64 by default, as the definition asks; None: none does."""
        if self.operation != "relation_loss":
            return None
        return "tf32" if self.precision == "high" else "float64"

    def floor(self) -> floors.Floor:
        """The least bytes and operations of one call."""
        item, label = self.dtype.itemsize, self.target_dtype.itemsize
        if self.operation == "relation_loss":
            tokens, channels = self.shape
            return floors.relation_loss(tokens, channels, itemsize=item, form=self.form)
        if self.operation == "masked_fusion":
            present = sum(map(sum, self.masks)) / sum(map(len, self.masks))
            return floors.masked_fusion(self.shape, MODALITIES, self.shape[1], present, item)
        return getattr(floors, self.operation)(self.shape, itemsize=item, target_itemsize=label)


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call.

    Attributes:
        leaves: tensors whose gradient is wanted, in the operation's order (masked_fusion: maps, weight, bias).
        constants: mask (on the CPU) or target.
        cotangents: gradients of the outputs, none of them 1.
    """

    leaves: tuple[torch.Tensor, ...]
    constants: tuple[torch.Tensor, ...]
    cotangents: tuple[torch.Tensor, ...]

    def double(self) -> "Inputs":
        """The same numbers in float64, as leaves of their own."""
        leaves = tuple(leaf.detach().double().requires_grad_() for leaf in self.leaves)
        return Inputs(leaves, self.constants, tuple(c.double() for c in self.cotangents))

    def bytes(self) -> int:
        """Of leaves and constants."""
        return sum(t.numel() * t.element_size() for t in (*self.leaves, *self.constants))


def make_inputs(case: Case, device: torch.device, seed: int, sets: int = 1) -> list[Inputs]:
    """Random inputs of a case: ``sets`` of them, or one for each of its masks (which then share their maps).

    Args:
        case: what to make inputs for.
        device: where.
        seed: of everything.
        sets: how many, so that together they do not fit a cache.
    """
    # A generator of its own: a CUDA-graph capture that failed can leave the default one unusable.
    generator = torch.Generator(device).manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(case.dtype)

    def scalar(value: float) -> torch.Tensor:
        return torch.tensor(value, device=device, dtype=torch.promote_types(case.dtype, torch.float32))

    if case.operation == "masked_fusion" and len(case.masks) > 1:
        # The maps are shared, or 15 subsets would not fit; they are larger than any cache.
        first = _fusion_inputs(case, randn)
        return [Inputs(first.leaves, (_mask(case, present),), first.cotangents) for present in case.masks]
    found = []
    for _ in range(sets):
        if case.operation == "masked_fusion":
            found.append(_fusion_inputs(case, randn))
            continue
        if case.operation == "relation_loss":
            f1 = randn(*case.shape)
            # Branches that agree to some extent, as in training: independent ones would hide cancellation.
            f2 = 0.9 * f1 + 0.3 * randn(*case.shape)
            found.append(Inputs((f1.requires_grad_(), f2.requires_grad_()), (), (scalar(0.7),)))
            continue
        batch, classes, *space = case.shape
        target = torch.randint(classes, (batch, *space), generator=generator, device=device)
        truth = torch.nn.functional.one_hot(target, classes).movedim(-1, 1)
        # Predictions that are right more often than not: both sides of the losses' clamp and gate occur.
        logits = [
            (2.0 * randn(*case.shape) + 1.5 * truth).to(case.dtype).requires_grad_()
            for _ in range(2 if case.operation == "exchange_loss" else 1)
        ]
        # Gradients of a mean over millions of voxels lie below float16's smallest numbers: training scales the loss.
        scale = _LOSS_SCALE if case.dtype == torch.float16 else 1.0
        weights = (0.7, 1.3) if case.operation == "exchange_loss" else (0.7,)
        cotangents = tuple(scalar(scale * weight) for weight in weights)
        found.append(Inputs(tuple(logits), (target.to(case.target_dtype),), cotangents))
    return found


def _fusion_inputs(case: Case, randn: Callable[..., torch.Tensor]) -> Inputs:
    """Maps of a mean and a spread that InstanceNorm has to take away, and a layer of the usual size."""
    channels = case.shape[1]
    maps = [(2.0 * randn(*case.shape) + 0.5).requires_grad_() for _ in range(MODALITIES)]
    weight = (randn(channels, MODALITIES * channels) * (MODALITIES * channels) ** -0.5).requires_grad_()
    leaves = (*maps, weight, randn(channels).requires_grad_())
    return Inputs(leaves, (_mask(case, case.masks[0]),), (randn(*case.shape),))


def _mask(case: Case, present: tuple[bool, ...]) -> torch.Tensor:
    """[B, M] on the CPU, where masked_fusion wants it."""
    return torch.tensor([present] * case.shape[0])


def sets_beyond(cache_bytes: int, case: Case) -> int:
    """How many sets of inputs rotate so that none is still in a cache of that size when it is used again (1 to 32)."""
    maps = MODALITIES if case.operation == "masked_fusion" else 1 if case.operation == "dice_ce_loss" else 2
    each = maps * prod(case.shape) * case.dtype.itemsize
    return min(32, max(1, ceil(2 * cache_bytes / each)))


def cpu_cases(quick: bool = False) -> list[Case]:
    """Sizes that a laptop can bear; ``quick`` takes a few seconds in all."""
    edge = 16 if quick else 48
    tokens = (512, 1024, 2048) if quick else (4096, 8192, 16384)
    return [
        *(Case("relation_loss", (n, 128), without=("public",) if n == tokens[-1] else ()) for n in tokens),
        *(Case("masked_fusion", (1, 8, edge, edge, edge), masks=masks) for masks in (ALL, TWO, ONE)),
        Case("exchange_loss", (1, 4, edge, edge, edge)),
        Case("dice_ce_loss", (1, 4, edge, edge, edge)),
    ]


def cuda_cases(quick: bool = False) -> list[Case]:
    """The sizes of a training step at 128^3; ``quick`` keeps those that a goal speaks of."""
    f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16
    full, middle, coarse = (1, 8, 128, 128, 128), (1, 16, 64, 64, 64), (1, 32, 32, 32, 32)
    logits = (1, 4, 128, 128, 128)
    found = [
        Case("relation_loss", (32768, 128), compiled=True),
        Case("relation_loss", (262144, 128)),
        Case("masked_fusion", full, f32, masks=ALL, compiled=True),
        Case("masked_fusion", full, f32, masks=SUBSETS),
        *(Case("exchange_loss", logits, dtype, compiled=dtype == f32) for dtype in (f32, bf16, f16)),
        *(Case("dice_ce_loss", logits, dtype, compiled=dtype == f32) for dtype in (f32, bf16, f16)),
        Case("masked_fusion", full, bf16, masks=ALL),
        Case("masked_fusion", full, f16, masks=ALL),
    ]
    if quick:
        return found
    relation = [
        Case("relation_loss", shape, precision=precision)
        for shape in ((4096, 128), (32768, 128), (32768, 512), (262144, 128), (1024, 512))
        for precision in ("highest", "high")
    ]
    fusion = [
        Case("masked_fusion", full, f32, masks=ONE),
        Case("masked_fusion", full, bf16, masks=SUBSETS),
        Case("masked_fusion", full, bf16, masks=ONE),
        *(Case("masked_fusion", shape, dtype, masks=ALL) for shape in (middle, coarse) for dtype in (f32, bf16)),
    ]
    known = {case.name for case in found}
    return found + [case for case in relation + fusion if case.name not in known]
