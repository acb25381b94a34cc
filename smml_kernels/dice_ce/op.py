"""Class-weighted cross-entropy plus soft Dice of one head, in one pass each way.

    CE   = - mean over the voxels of the batch of  w[b, y_v] log clamp(p_v[y_v], 0.005, 1)
    Dice = 1 - mean over k of  2 sum p_k y_k / (sum p_k + sum y_k + 1e-7),     sums over the whole batch

**Why eager is slow.** The arithmetic is a softmax and a logarithm a voxel, nothing to a GPU; the time goes into moving
maps. Written with PyTorch's operations, the softmax, the one-hot target, the clamp, the logarithm, the weights and the
products are each read from and written to memory: 31 maps of [B, K, V] for tidy code, 104 for the code that is usually
published (notebook 9 counts them), where 3 are needed: the logits read once forward, once backward, and the gradient
written.

**What one pass must gather.** The class weights depend on how many voxels each class has, which is known only at the
end, but they are constant within a class of a sample. So four sums for each sample b and class k suffice,

    sum of log clamp(p_y) where y = k,    sum of p_k where y = k,    sum of p_k,    voxels where y = k,

and CE and Dice are a few operations on these 4 B K numbers. Backward, a voxel needs three coefficients of its class,

    dL/dp_k = - [y = k] ce[b, k] / p_k  +  [y = k] a[k]  +  c[k],
    ce = w / (B V),     a_k = - 2 / (K (S_k + eps)),     c_k = 2 I_k / (K (S_k + eps)^2),

with I_k the overlap and S_k the two sizes together, and the softmax is computed again rather than stored.

**The tiles.** A tile holds all K classes of BLOCK neighbouring voxels; a thread keeps all classes of its voxels, so the
softmax needs no exchange between threads. Each program walks over many tiles with the sums in registers, one number a
lane, and adds the lanes up once: no atomics, so that two runs agree to the bit, and pairwise sums, so that millions of
voxels keep their digits. A second, tiny kernel turns the partial sums into the loss and the coefficients.
"""

import torch
import triton
import triton.language as tl

from smml_kernels.common import launch
from smml_kernels.common.operation import forbid_double_backward, operation
from smml_kernels.common.targets import check_min_class_weight, check_prediction, check_target, working_dtype
from smml_kernels.common.tiles import (
    FINISH_WARPS,
    WARPS,
    add_up,
    fold,
    one_hot,
    programs_for,
    row,
    rows_at_once,
    softmax,
    tile_shape,
)
from smml_kernels.dice_ce.reference import CLAMP, DICE_EPS


@triton.jit
def _add_tile(
    logs, overlap, size, count, x, target, v, voxels, x_class, x_voxel, target_voxel, CLAMP: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr, FOLD: tl.constexpr, FROM_LOGITS: tl.constexpr, ACC: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """The four sums with the voxels v of a tile added; WHOLE promises that all of them exist."""
    BLOCK: tl.constexpr = v.shape[0]
    k = tl.arange(0, KP)
    inside = v < voxels
    valid = (k < K)[:, None] & (WHOLE | inside)[None, :]
    values = tl.load(x + k.to(tl.int64)[:, None] * x_class + v[None, :] * x_voxel, mask=valid, other=0.0).to(ACC)
    y = tl.load(target + v * target_voxel, mask=WHOLE | inside, other=0)
    p = softmax(values, k, K) if FROM_LOGITS else values
    mine = one_hot(y, k, valid, p)
    own = tl.sum(mine * p, axis=0)
    # NaN must pass: a minimum or maximum that drops it would hide a broken network.
    log = tl.log(tl.where(own < CLAMP, CLAMP, tl.where(own > 1.0, 1.0, own)))
    logs += fold(mine * log[None, :], KP, BLOCK, FOLD)
    overlap += fold(mine * p, KP, BLOCK, FOLD)
    size += fold(p if WHOLE else tl.where(valid, p, 0.0), KP, BLOCK, FOLD)
    count += fold(mine, KP, BLOCK, FOLD)
    return logs, overlap, size, count


@triton.jit
def _sums_kernel(
    x, target, partial, voxels, x_batch, x_class, x_voxel, target_batch, target_voxel,
    CLAMP: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, BLOCK: tl.constexpr, FOLD: tl.constexpr,
    FROM_LOGITS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The four sums of a share of one sample's voxels: partial [B, P, 4, KP]."""
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    sample = tl.program_id(1).to(tl.int64)
    x += sample * x_batch
    target += sample * target_batch
    logs = tl.zeros((KP, BLOCK // FOLD), ACC)
    overlap = tl.zeros((KP, BLOCK // FOLD), ACC)
    size = tl.zeros((KP, BLOCK // FOLD), ACC)
    count = tl.zeros((KP, BLOCK // FOLD), ACC)
    whole = voxels // BLOCK
    for block in range(program, whole, programs):
        v = block * BLOCK + tl.arange(0, BLOCK)
        logs, overlap, size, count = _add_tile(
            logs, overlap, size, count, x, target, v, voxels, x_class, x_voxel, target_voxel, CLAMP, K, KP, FOLD,
            FROM_LOGITS, ACC, True,
        )  # fmt: skip
    if (whole * BLOCK < voxels) & (whole % programs == program):
        v = tl.cast(whole, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        logs, overlap, size, count = _add_tile(
            logs, overlap, size, count, x, target, v, voxels, x_class, x_voxel, target_voxel, CLAMP, K, KP, FOLD,
            FROM_LOGITS, ACC, False,
        )  # fmt: skip
    k = tl.arange(0, KP)
    partial += (sample * programs + program) * 4 * KP + k
    tl.store(partial, tl.sum(logs, axis=1))
    tl.store(partial + KP, tl.sum(overlap, axis=1))
    tl.store(partial + 2 * KP, tl.sum(size, axis=1))
    tl.store(partial + 3 * KP, tl.sum(count, axis=1))


@triton.jit
def _finish_kernel(
    partial, totals, coefficients, loss, batch, programs, voxels, min_weight: tl.float64, DICE_EPS: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr, ROWS: tl.constexpr, GATHER: tl.constexpr, FINISH: tl.constexpr,
):  # fmt: skip
    """Partial sums -> totals [4, KP] (GATHER), and totals -> loss and coefficients [B + 2, KP] (FINISH).

    Apart they leave room for a sum of the totals over the ranks of a process group in between.
    """
    k = tl.arange(0, KP)
    if GATHER:
        ce = tl.zeros((KP,), tl.float64)
        overlap = tl.zeros((KP,), tl.float64)
        size = tl.zeros((KP,), tl.float64)
        count = tl.zeros((KP,), tl.float64)
        for sample in range(batch):
            mine = partial + sample * programs * 4 * KP
            sums = add_up(mine, programs, 4, KP, ROWS)
            n = row(sums, 3, 4)
            weight = tl.maximum(1.0 - n / voxels, min_weight)
            tl.store(coefficients + sample * KP + k, weight)
            ce -= weight * row(sums, 0, 4)
            overlap += row(sums, 1, 4)
            size += row(sums, 2, 4) + n
            # A label without a class is counted nowhere: it shows as a batch that is short of voxels.
            count += tl.where(tl.sum(n, axis=0) == voxels, n, float("nan"))
        tl.store(totals + k, ce)
        tl.store(totals + KP + k, overlap)
        tl.store(totals + 2 * KP + k, size)
        tl.store(totals + 3 * KP + k, count)
    else:
        ce = tl.load(totals + k)
        overlap = tl.load(totals + KP + k)
        size = tl.load(totals + 2 * KP + k)
        count = tl.load(totals + 3 * KP + k)
    if FINISH:
        everyone = tl.sum(count, axis=0)
        dice = tl.where(k < K, 2.0 * overlap / (size + DICE_EPS), 0.0)
        tl.store(loss, tl.sum(ce, axis=0) / everyone + 1.0 - tl.sum(dice, axis=0) / K)
        tl.debug_barrier()  # the weights that other threads stored are read again
        for sample in range(batch):
            at = coefficients + sample * KP + k
            weight = tl.load(at)
            tl.debug_barrier()  # every warp has read them before one writes
            tl.store(at, weight / everyone)
        tl.store(coefficients + batch * KP + k, -2.0 / (K * (size + DICE_EPS)))
        tl.store(coefficients + (batch + 1) * KP + k, dice / (K * (size + DICE_EPS)))


@triton.jit
def _gradient_kernel(
    x, target, coefficients, upstream, gradient, batch, voxels, x_batch, x_class, x_voxel, target_batch, target_voxel,
    CLAMP: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, BLOCK: tl.constexpr, FROM_LOGITS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """dL/dx of one tile, the softmax computed again; gradient is contiguous [B, K, V]."""
    sample = tl.program_id(1).to(tl.int64)
    k = tl.arange(0, KP)
    v = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = v < voxels
    valid = (k < K)[:, None] & inside[None, :]
    at = sample * x_batch + k.to(tl.int64)[:, None] * x_class + v[None, :] * x_voxel
    values = tl.load(x + at, mask=valid, other=0.0).to(ACC)
    y = tl.load(target + sample * target_batch + v * target_voxel, mask=inside, other=0)
    ce = tl.load(coefficients + sample * KP + k).to(ACC)[:, None]
    a = tl.load(coefficients + batch * KP + k).to(ACC)[:, None]
    c = tl.load(coefficients + (batch + 1) * KP + k).to(ACC)[:, None]

    mine = k[:, None] == y[None, :]
    p = softmax(values, k, K) if FROM_LOGITS else values
    dice = tl.where(mine, a, 0.0) + c
    taught = tl.where(mine & (p >= CLAMP) & (p <= 1.0), ce, 0.0)  # the clamp stops the gradient of the CE
    if FROM_LOGITS:
        # Of the CE: sum over j of taught_j (p_k - [j = k]). Of the Dice: through the softmax.
        result = p * (dice - tl.sum(p * dice, axis=0)[None, :] + tl.sum(taught, axis=0)[None, :]) - taught
    else:
        result = dice - taught / tl.where(taught != 0.0, p, 1.0)
    result *= tl.load(upstream).to(ACC)
    at = (sample * K + k.to(tl.int64)[:, None]) * voxels + v[None, :]
    tl.store(gradient + at, result, mask=valid)


def forward(
    x: torch.Tensor, target: torch.Tensor, from_logits: bool, min_class_weight: float, group: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the forward pass.

    Args:
        x: [B, K, spatial...], floating, any strides.
        target: [B, spatial...], uint8 or int64, any strides.
        from_logits: whether x are logits.
        min_class_weight: w_min.
        group: name of a process group, or "".

    Returns:
        The loss, 0-dim float32 (float64 for float64), and the coefficients [B + 2, K padded], float64.
    """
    x, target = x.flatten(2), target.flatten(1)
    batch, classes, voxels = x.shape
    padded, block, side_by_side = tile_shape(x)
    programs = programs_for(x, block)
    acc = launch.accumulator(x)
    partial = x.new_empty((batch, programs, 4, padded), dtype=acc)
    totals = x.new_empty((4, padded), dtype=torch.float64)
    coefficients = x.new_empty((batch + 2, padded), dtype=torch.float64)
    loss = x.new_empty((), dtype=acc)
    with launch.device_of(x):
        if batch:  # a rank without a sample adds zeros to what the others have
            _sums_kernel[(programs, batch)](
                x, target, partial, voxels, *x.stride(), *target.stride(), CLAMP=CLAMP, K=classes, KP=padded,
                BLOCK=block, FOLD=side_by_side, FROM_LOGITS=from_logits, ACC=launch.triton_dtype(acc), num_warps=WARPS,
                **launch.OPTIONS,
            )  # fmt: skip

        def finish(gather: bool, finish: bool) -> None:
            _finish_kernel[(1,)](
                partial, totals, coefficients, loss, batch, programs, voxels, min_class_weight,
                DICE_EPS=DICE_EPS, K=classes, KP=padded, ROWS=rows_at_once(4, padded), GATHER=gather, FINISH=finish,
                num_warps=FINISH_WARPS, **launch.OPTIONS,
            )  # fmt: skip

        if group:
            finish(gather=True, finish=False)
            launch.all_reduce(totals, group)
            finish(gather=False, finish=True)
        else:
            finish(gather=True, finish=True)
    return loss, coefficients


def backward(
    upstream: torch.Tensor, x: torch.Tensor, target: torch.Tensor, coefficients: torch.Tensor, from_logits: bool
) -> torch.Tensor:
    """Launch the backward pass: dL/dx, contiguous, in the dtype and shape of x, times ``upstream`` (0-dim)."""
    gradient = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, target = x.flatten(2), target.flatten(1)
    batch, classes, voxels = x.shape
    padded, block, _ = tile_shape(x)
    if not batch:
        return gradient
    with launch.device_of(x):
        _gradient_kernel[(triton.cdiv(voxels, block), batch)](
            x, target, coefficients, upstream, gradient, batch, voxels, *x.stride(), *target.stride(), CLAMP=CLAMP,
            K=classes, KP=padded, BLOCK=block, FROM_LOGITS=from_logits, ACC=launch.triton_dtype(launch.accumulator(x)),
            num_warps=WARPS, **launch.OPTIONS,
        )  # fmt: skip
    return gradient


@operation("dice_ce")
def _op(
    x: torch.Tensor, target: torch.Tensor, from_logits: bool, min_class_weight: float, group: str
) -> tuple[torch.Tensor, torch.Tensor]:
    launch.require(x, "dice_ce_loss")
    return forward(x, target, from_logits, min_class_weight, group)


@_op.register_fake
def _(x, target, from_logits, min_class_weight, group):
    coefficients = x.new_empty((x.shape[0] + 2, tile_shape(x)[0]), dtype=torch.float64)
    return x.new_empty((), dtype=launch.accumulator(x)), coefficients


@operation("dice_ce_backward")
def _backward_op(
    upstream: torch.Tensor, x: torch.Tensor, target: torch.Tensor, coefficients: torch.Tensor, from_logits: bool
) -> torch.Tensor:
    launch.require(x, "dice_ce_loss")
    return backward(upstream, x, target, coefficients, from_logits)


@_backward_op.register_fake
def _(upstream, x, target, coefficients, from_logits):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _save(ctx, inputs, output):
    x, target, ctx.from_logits, _, _ = inputs
    ctx.save_for_backward(x, target, output[1])


def _differentiate(ctx, upstream):
    x, target, coefficients = ctx.saved_tensors
    return _backward_op(upstream, x, target, coefficients, ctx.from_logits), None, None, None, None


_op.register_autograd(_differentiate, _save)
forbid_double_backward(_backward_op, "dice_ce_loss")


def dice_ce_loss(
    x: torch.Tensor, target: torch.Tensor, *, from_logits: bool, min_class_weight: float, group: str
) -> torch.Tensor:
    """The loss by Triton, differentiable once in ``x``; see :func:`smml_kernels.dice_ce_loss`.

    A label outside 0 .. K-1 makes the loss NaN: looking before the launch would make the host wait for the device.
    """
    check_prediction("x", x, may_lack_samples=bool(group))
    check_target(x, target)
    check_min_class_weight(min_class_weight)
    return _op(x, target, from_logits, float(min_class_weight), group)[0].to(working_dtype(x))
