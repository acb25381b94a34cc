"""L_pc in both directions, in one pass each way: two branches teach each other where one of them is the better.

    L_{a->b} = sum_v g(v) KL(sg[p_a(v)] || p_b(v)) / sum_v g(v),        0 where the denominator is 0

The gates are those of :mod:`smml_kernels.exchange.reference`.

**Why eager is slow.** Two softmaxes, the cross-entropies that decide who teaches, the class weights and two divergences
are a few dozen operations a voxel; as separate PyTorch operations they move about 54 maps [B, K, V] through memory in
tidy code and 84 in the code that is usually published (notebook 9 counts them). Six are needed: both logits read,
forward and backward, and both gradients written.

**What one pass must gather.** Both directions need the same two softmaxes, so they share a pass. The gate's class
weights are constant within a class of a sample, so the pass gathers, for each sample and class, the gated divergence
and the gate of both directions without weights, and the voxels: 5 B K numbers. The quotient, and the coefficient
``w[b, k] / sum g`` that each voxel of the backward pass needs, follow from these. The gradient of a gated divergence
is as simple as that of a cross-entropy,

    dL_{a->b} / dlogits_b = g(v) / sum g  (p_b - p_a),

so backward computes both softmaxes and the gate again; nothing of the size of a map is stored.

**The tiles** are those of :mod:`smml_kernels.dice_ce.op`: all classes of neighbouring voxels, each voxel in one
thread, sums in registers over many tiles, added up in an order that does not change.
"""

import torch
import triton
import triton.language as tl

from smml_kernels.common import launch
from smml_kernels.common.operation import forbid_double_backward, operation
from smml_kernels.common.targets import working_dtype
from smml_kernels.common.tiles import (
    FINISH_WARPS,
    WARPS,
    add_up,
    fold,
    one_hot,
    programs_for,
    row,
    rows_at_once,
    softmax_and_log,
    tile_shape,
)
from smml_kernels.exchange.reference import Gate, check_exchange


@triton.jit
def _gates(p1, lp1, p2, lp2, k, y, KP: tl.constexpr, GATE: tl.constexpr):
    """The gates of 1 -> 2 and 2 -> 1 of each voxel, [BLOCK], without class weights; k [KP], y [BLOCK]."""
    if GATE == "entropy":
        h1 = -tl.sum(p1 * lp1, axis=0)
        h2 = -tl.sum(p2 * lp2, axis=0)
        gate12 = tl.where(h2 > h1, h2 - h1, 0.0)
        gate21 = tl.where(h1 > h2, h1 - h2, 0.0)
    elif GATE == "lower_ce":
        # Of the true class alone the difference is left: positive where branch 1 is the better one.
        ahead = tl.sum(tl.where(k[:, None] == y[None, :], lp1 - lp2, 0.0), axis=0)
        gate12 = tl.where(ahead > 0.0, 1.0, 0.0).to(lp1.dtype)
        gate21 = tl.where(ahead < 0.0, 1.0, 0.0).to(lp1.dtype)
    elif GATE == "correct":
        # The first class with the largest probability, as argmax counts ties.
        best1 = tl.min(tl.where(lp1 == tl.max(lp1, axis=0)[None, :], k[:, None], KP), axis=0)
        best2 = tl.min(tl.where(lp2 == tl.max(lp2, axis=0)[None, :], k[:, None], KP), axis=0)
        gate12 = tl.where(best1 == y, 1.0, 0.0).to(lp1.dtype)
        gate21 = tl.where(best2 == y, 1.0, 0.0).to(lp1.dtype)
    else:
        gate12 = tl.full(y.shape, 1.0, lp1.dtype)
        gate21 = gate12
    return gate12, gate21


@triton.jit
def _load_tile(x, at, valid, k, K: tl.constexpr, ACC: tl.constexpr):
    """softmax and log softmax of one tile of logits."""
    return softmax_and_log(tl.load(x + at, mask=valid, other=0.0).to(ACC), k, K)


@triton.jit
def _divergence(p_teacher, lp_teacher, lp_learner):
    """KL(teacher || learner) of each voxel, [BLOCK]; rows that are padding have p = 0 and count 0."""
    return tl.sum(p_teacher * (lp_teacher - lp_learner), axis=0)


@triton.jit
def _add_tile(
    taught12, open12, taught21, open21, count, x1, x2, target, v, voxels, x1_class, x1_voxel, x2_class, x2_voxel,
    target_voxel, GATE: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, FOLD: tl.constexpr, ACC: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """The five sums with the voxels v of a tile added; WHOLE promises that all of them exist."""
    BLOCK: tl.constexpr = v.shape[0]
    k = tl.arange(0, KP)
    wide = k.to(tl.int64)[:, None]
    inside = v < voxels
    valid = (k < K)[:, None] & (WHOLE | inside)[None, :]
    p1, lp1 = _load_tile(x1, wide * x1_class + v[None, :] * x1_voxel, valid, k, K, ACC)
    p2, lp2 = _load_tile(x2, wide * x2_class + v[None, :] * x2_voxel, valid, k, K, ACC)
    if target is not None:
        y = tl.load(target + v * target_voxel, mask=WHOLE | inside, other=0).to(tl.int32)
    else:
        y = tl.zeros((BLOCK,), tl.int32)  # without classes all sums are kept in row 0
    mine = one_hot(y, k, valid, p1)
    gate12, gate21 = _gates(p1, lp1, p2, lp2, k, y, KP, GATE)
    # gate * divergence, not a selection: NaN in the logits stays visible in the loss.
    taught12 += fold(mine * (gate12 * _divergence(p1, lp1, lp2))[None, :], KP, BLOCK, FOLD)
    taught21 += fold(mine * (gate21 * _divergence(p2, lp2, lp1))[None, :], KP, BLOCK, FOLD)
    open12 += fold(mine * gate12[None, :], KP, BLOCK, FOLD)
    open21 += fold(mine * gate21[None, :], KP, BLOCK, FOLD)
    count += fold(mine, KP, BLOCK, FOLD)
    return taught12, open12, taught21, open21, count


@triton.jit
def _sums_kernel(
    x1, x2, target, partial, voxels, x1_batch, x1_class, x1_voxel, x2_batch, x2_class, x2_voxel, target_batch,
    target_voxel, GATE: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, BLOCK: tl.constexpr, FOLD: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """The five sums of a share of one sample's voxels: partial [B, P, 8, KP], the last three 0."""
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    sample = tl.program_id(1).to(tl.int64)
    x1 += sample * x1_batch
    x2 += sample * x2_batch
    if target is not None:
        target += sample * target_batch
    taught12 = tl.zeros((KP, BLOCK // FOLD), ACC)
    open12 = tl.zeros((KP, BLOCK // FOLD), ACC)
    taught21 = tl.zeros((KP, BLOCK // FOLD), ACC)
    open21 = tl.zeros((KP, BLOCK // FOLD), ACC)
    count = tl.zeros((KP, BLOCK // FOLD), ACC)
    whole = voxels // BLOCK
    for block in range(program, whole, programs):
        v = block * BLOCK + tl.arange(0, BLOCK)
        taught12, open12, taught21, open21, count = _add_tile(
            taught12, open12, taught21, open21, count, x1, x2, target, v, voxels, x1_class, x1_voxel, x2_class,
            x2_voxel, target_voxel, GATE, K, KP, FOLD, ACC, True,
        )  # fmt: skip
    if (whole * BLOCK < voxels) & (whole % programs == program):
        v = tl.cast(whole, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        taught12, open12, taught21, open21, count = _add_tile(
            taught12, open12, taught21, open21, count, x1, x2, target, v, voxels, x1_class, x1_voxel, x2_class,
            x2_voxel, target_voxel, GATE, K, KP, FOLD, ACC, False,
        )  # fmt: skip
    k = tl.arange(0, KP)
    partial += (sample * programs + program) * 8 * KP + k
    tl.store(partial, tl.sum(taught12, axis=1))
    tl.store(partial + KP, tl.sum(open12, axis=1))
    tl.store(partial + 2 * KP, tl.sum(taught21, axis=1))
    tl.store(partial + 3 * KP, tl.sum(open21, axis=1))
    tl.store(partial + 4 * KP, tl.sum(count, axis=1))
    for unused in tl.static_range(5, 8):  # the table of sums is read as a power of two
        tl.store(partial + unused * KP, tl.zeros((KP,), ACC))


@triton.jit
def _finish_kernel(
    partial, totals, coefficients, loss12, loss21, batch, programs, voxels, min_weight: tl.float64,
    WEIGHTED: tl.constexpr, KP: tl.constexpr, ROWS: tl.constexpr, GATHER: tl.constexpr, FINISH: tl.constexpr,
):  # fmt: skip
    """Partial sums -> totals [4] (GATHER); totals -> both losses and the coefficients [B, 2, KP] (FINISH).

    Apart they leave room for a sum of the totals over the ranks of a process group in between.
    """
    k = tl.arange(0, KP)
    if GATHER:
        taught12 = tl.zeros((KP,), tl.float64)
        open12 = tl.zeros((KP,), tl.float64)
        taught21 = tl.zeros((KP,), tl.float64)
        open21 = tl.zeros((KP,), tl.float64)
        for sample in range(batch):
            mine = partial + sample * programs * 8 * KP
            sums = add_up(mine, programs, 8, KP, ROWS)
            n = row(sums, 4, 8)
            if WEIGHTED:
                # A label without a class is counted nowhere: it shows as a sample that is short of voxels.
                weight = tl.where(tl.sum(n, axis=0) == voxels, tl.maximum(1.0 - n / voxels, min_weight), float("nan"))
            else:
                weight = tl.full((KP,), 1.0, tl.float64)
            taught12 += weight * row(sums, 0, 8)
            open12 += weight * row(sums, 1, 8)
            taught21 += weight * row(sums, 2, 8)
            open21 += weight * row(sums, 3, 8)
            tl.store(coefficients + 2 * sample * KP + k, weight)
        total12, weight12 = tl.sum(taught12, axis=0), tl.sum(open12, axis=0)
        total21, weight21 = tl.sum(taught21, axis=0), tl.sum(open21, axis=0)
        tl.store(totals, total12)
        tl.store(totals + 1, weight12)
        tl.store(totals + 2, total21)
        tl.store(totals + 3, weight21)
    else:
        total12, weight12 = tl.load(totals), tl.load(totals + 1)
        total21, weight21 = tl.load(totals + 2), tl.load(totals + 3)
    if FINISH:
        # Where nothing is gated the loss is 0 / 1 and no voxel has a gate for the coefficient to meet.
        weight12 = tl.where(weight12 == 0.0, 1.0, weight12)
        weight21 = tl.where(weight21 == 0.0, 1.0, weight21)
        tl.store(loss12, total12 / weight12)
        tl.store(loss21, total21 / weight21)
        tl.debug_barrier()  # the weights that other threads stored are read again
        for sample in range(batch):
            at = coefficients + 2 * sample * KP + k
            weight = tl.load(at)
            tl.debug_barrier()
            tl.store(at, weight / weight12)
            tl.store(at + KP, weight / weight21)


@triton.jit
def _gradient_kernel(
    x1, x2, target, coefficients, upstream12, upstream21, gradient1, gradient2, voxels, x1_batch, x1_class, x1_voxel,
    x2_batch, x2_class, x2_voxel, target_batch, target_voxel, GATE: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Both gradients of one tile, [B, K, V] contiguous; one that nobody needs is None."""
    sample = tl.program_id(1).to(tl.int64)
    k = tl.arange(0, KP)
    wide = k.to(tl.int64)[:, None]
    v = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = v < voxels
    valid = (k < K)[:, None] & inside[None, :]
    p1, lp1 = _load_tile(x1, sample * x1_batch + wide * x1_class + v[None, :] * x1_voxel, valid, k, K, ACC)
    p2, lp2 = _load_tile(x2, sample * x2_batch + wide * x2_class + v[None, :] * x2_voxel, valid, k, K, ACC)
    if target is not None:
        y = tl.load(target + sample * target_batch + v * target_voxel, mask=inside, other=0).to(tl.int32)
    else:
        y = tl.zeros((BLOCK,), tl.int32)
    mine = k[:, None] == y[None, :]
    gate12, gate21 = _gates(p1, lp1, p2, lp2, k, y, KP, GATE)
    # The maximum changes nothing: it keeps the compiler from subtracting one probability before it is rounded, which
    # would leave a gradient where the branches agree to the bit.
    NAN: tl.constexpr = tl.PropagateNan.ALL
    difference = tl.maximum(p2, 0.0, propagate_nan=NAN) - tl.maximum(p1, 0.0, propagate_nan=NAN)
    at = (sample * K + wide) * voxels + v[None, :]
    coefficients += 2 * sample * KP + k
    if gradient2 is not None:
        c12 = tl.load(coefficients).to(ACC) * tl.load(upstream12).to(ACC)
        g = gate12 * tl.sum(tl.where(mine, c12[:, None], 0.0), axis=0)
        tl.store(gradient2 + at, g[None, :] * difference, mask=valid)
    if gradient1 is not None:
        c21 = tl.load(coefficients + KP).to(ACC) * tl.load(upstream21).to(ACC)
        g = gate21 * tl.sum(tl.where(mine, c21[:, None], 0.0), axis=0)
        tl.store(gradient1 + at, -(g[None, :] * difference), mask=valid)


def forward(
    x1: torch.Tensor, x2: torch.Tensor, target: torch.Tensor | None, gate: str, min_class_weight: float, group: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the forward pass.

    Args:
        x1: logits of branch 1, [B, K, spatial...], floating, any strides.
        x2: of branch 2.
        target: [B, spatial...], uint8 or int64, any strides; None for the gate "entropy".
        gate: one of the reference's gates.
        min_class_weight: w_min.
        group: name of a process group, or "".

    Returns:
        L_{1->2} and L_{2->1}, 0-dim float32 (float64 for float64), and the coefficients [B, 2, K padded], float64.
    """
    x1, x2 = x1.flatten(2), x2.flatten(2)
    target = None if target is None else target.flatten(1)
    batch, classes, voxels = x1.shape
    padded, block, side_by_side = tile_shape(x1)
    programs = programs_for(x1, block)
    acc = launch.accumulator(x1, x2)
    partial = x1.new_empty((batch, programs, 8, padded), dtype=acc)
    totals = x1.new_empty(4, dtype=torch.float64)
    coefficients = x1.new_empty((batch, 2, padded), dtype=torch.float64)
    loss12, loss21 = x1.new_empty((), dtype=acc), x1.new_empty((), dtype=acc)
    with launch.device_of(x1):
        _sums_kernel[(programs, batch)](
            x1, x2, target, partial, voxels, *x1.stride(), *x2.stride(), *_strides(target), GATE=gate, K=classes,
            KP=padded, BLOCK=block, FOLD=side_by_side, ACC=launch.triton_dtype(acc), num_warps=WARPS, **launch.OPTIONS,
        )  # fmt: skip

        def finish(gather: bool, finish: bool) -> None:
            _finish_kernel[(1,)](
                partial, totals, coefficients, loss12, loss21, batch, programs, voxels, min_class_weight,
                WEIGHTED=gate != "entropy", KP=padded, ROWS=rows_at_once(8, padded), GATHER=gather, FINISH=finish,
                num_warps=FINISH_WARPS, **launch.OPTIONS,
            )  # fmt: skip

        if group:
            finish(gather=True, finish=False)
            launch.all_reduce(totals, group)
            finish(gather=False, finish=True)
        else:
            finish(gather=True, finish=True)
    return loss12, loss21, coefficients


def backward(
    upstream12: torch.Tensor,
    upstream21: torch.Tensor,
    x1: torch.Tensor,
    x2: torch.Tensor,
    target: torch.Tensor | None,
    coefficients: torch.Tensor,
    gate: str,
    need1: bool,
    need2: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the backward pass: the gradients of x1 and x2, contiguous; an empty tensor for one that is not needed."""
    gradient1, gradient2 = _gradients(x1, x2, need1, need2)
    x1, x2 = x1.flatten(2), x2.flatten(2)
    target = None if target is None else target.flatten(1)
    batch, classes, voxels = x1.shape
    padded, block, _ = tile_shape(x1)
    with launch.device_of(x1):
        _gradient_kernel[(triton.cdiv(voxels, block), batch)](
            x1, x2, target, coefficients, upstream12, upstream21, gradient1 if need1 else None,
            gradient2 if need2 else None, voxels, *x1.stride(), *x2.stride(), *_strides(target), GATE=gate, K=classes,
            KP=padded, BLOCK=block, ACC=launch.triton_dtype(launch.accumulator(x1, x2)), num_warps=WARPS,
            **launch.OPTIONS,
        )  # fmt: skip
    return gradient1, gradient2


def _strides(target: torch.Tensor | None) -> tuple[int, ...]:
    return (0, 0) if target is None else target.stride()


def _gradients(x1: torch.Tensor, x2: torch.Tensor, need1: bool, need2: bool) -> tuple[torch.Tensor, torch.Tensor]:
    one, two = (
        torch.empty(x.shape if needed else (0,), dtype=x.dtype, device=x.device)
        for x, needed in ((x1, need1), (x2, need2))
    )
    return one, two


@operation("exchange")
def _op(
    x1: torch.Tensor, x2: torch.Tensor, target: torch.Tensor | None, gate: str, min_class_weight: float, group: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    launch.require(x1, "exchange_loss")
    return forward(x1, x2, target, gate, min_class_weight, group)


@_op.register_fake
def _(x1, x2, target, gate, min_class_weight, group):
    acc = launch.accumulator(x1, x2)
    coefficients = x1.new_empty((x1.shape[0], 2, tile_shape(x1)[0]), dtype=torch.float64)
    return x1.new_empty((), dtype=acc), x1.new_empty((), dtype=acc), coefficients


@operation("exchange_backward")
def _backward_op(
    upstream12: torch.Tensor,
    upstream21: torch.Tensor,
    x1: torch.Tensor,
    x2: torch.Tensor,
    target: torch.Tensor | None,
    coefficients: torch.Tensor,
    gate: str,
    need1: bool,
    need2: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    launch.require(x1, "exchange_loss")
    return backward(upstream12, upstream21, x1, x2, target, coefficients, gate, need1, need2)


@_backward_op.register_fake
def _(upstream12, upstream21, x1, x2, target, coefficients, gate, need1, need2):
    return _gradients(x1, x2, need1, need2)


def _save(ctx, inputs, output):
    x1, x2, target, ctx.gate, _, _ = inputs
    ctx.save_for_backward(x1, x2, target, output[2])


def _differentiate(ctx, upstream12, upstream21):
    x1, x2, target, coefficients = ctx.saved_tensors
    need1, need2 = ctx.needs_input_grad[:2]
    # Where only one loss was used the other's gradient is zero.
    upstream12 = torch.zeros_like(upstream21) if upstream12 is None else upstream12
    upstream21 = torch.zeros_like(upstream12) if upstream21 is None else upstream21
    gradient1, gradient2 = _backward_op(upstream12, upstream21, x1, x2, target, coefficients, ctx.gate, need1, need2)
    return gradient1 if need1 else None, gradient2 if need2 else None, None, None, None, None


_op.register_autograd(_differentiate, _save, differentiable=2)
forbid_double_backward(_backward_op, "exchange_loss")


def exchange_loss(
    logits1: torch.Tensor,
    logits2: torch.Tensor,
    target: torch.Tensor | None,
    *,
    gate: Gate,
    min_class_weight: float,
    group: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both losses by Triton, differentiable once; see :func:`smml_kernels.exchange_loss`.

    A label outside 0 .. K-1 makes both losses NaN: looking before the launch would make the host wait for the device.
    """
    check_exchange(logits1, logits2, target, gate, min_class_weight)
    target = None if gate == "entropy" else target
    dtype = working_dtype(logits1, logits2)
    loss12, loss21, _ = _op(logits1, logits2, target, gate, float(min_class_weight), group)
    return loss12.to(dtype), loss21.to(dtype)
