"""The fusion layer over the modalities that are present, without a map in between.

    out_o = bias_o + sum over m present, c of W[o, m C + c] LeakyReLU((x_mc - mean_mc) / sqrt(var_mc + eps))

**Why eager is slow.** Let E be the bytes of all M maps. Setting missing maps to zero, joining them, normalising,
activating and convolving are separate operations that read and write everything: 14.25 E forward and 25.25 E backward
for the code that is usually published, 10.25 E and 12.25 E for tidy code. And half of that is about zeros: with p the
share of the modalities that are present (8/15 over all fifteen subsets of four), the maps that count are p E.

**What is needed.** The statistics of a channel must be known before its first voxel can be normalised, so the maps are
read twice, (2p + 1/4) E forward with C outputs (the 1/4 is the output at M = 4), and twice more backward, with the
gradients of the maps written once: (2p + 1.5) E. A missing modality costs nothing: its map is not read, so that nothing
it holds can leak, and its columns of W are skipped.

**Statistics.** Each lane of a program keeps a mean and a sum of squares about it (Welford) over the tiles of the
program, nothing is exchanged inside the loop, and lanes, then programs, are merged by Chan's formula

    n = n_a + n_b,    mean = (n_a mean_a + n_b mean_b) / n,    M2 = M2_a + M2_b + sum n_i (mean_i - mean)^2.

**Normalise, activate, mix.** A program owns a tile of voxels and up to 16 output channels. It goes through the present
modalities and their channels one by one: read the tile of that channel, normalise and activate it in registers, add its
multiples to all outputs. The mixing is a product with a matrix of few rows, too small for tensor cores to matter, so
it runs in full float32 (float64 for float64).

The backward pass is in :mod:`smml_kernels.fusion.backward`.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from smml_kernels.common import launch
from smml_kernels.common.operation import forbid_double_backward, operation
from smml_kernels.fusion import backward
from smml_kernels.fusion.maps import ENOUGH, arrange, is_present, normalised, pick, store, tiling
from smml_kernels.fusion.reference import check_fusion

_PROGRAMS = 2112  # of the statistics: 16 small ones for every multiprocessor of the largest GPU


@triton.jit(do_not_specialize=["given"])
def _moments_kernel(
    maps, mask, partial, given, voxels, x_batch, x_channel, x_voxel, M: tl.constexpr, C: tl.constexpr,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Pivot, number, mean and M2 of a share of the voxels of one channel: partial [B, M, C, P, 4]; mean less pivot."""
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    channel = tl.program_id(1)
    sample = tl.program_id(2).to(tl.int64)
    m = channel // C
    if is_present(mask, given, sample, m, M):
        x = pick(maps, m, M) + sample * x_batch + (channel % C).to(tl.int64) * x_channel
        pivot = tl.load(x).to(ACC)
        mean = tl.full((BLOCK,), 0.0, ACC)
        spread = tl.full((BLOCK,), 0.0, ACC)
        seen = tl.full((), 0.0, ACC)
        for block in range(program, tl.cdiv(voxels, BLOCK), programs):
            v = block * BLOCK + tl.arange(0, BLOCK)
            inside = v < voxels
            values = tl.load(x + v * x_voxel, mask=inside, other=0.0).to(ACC) - pivot
            seen += 1.0
            off = values - mean
            moved = mean + off * (1.0 / seen)
            spread += tl.where(inside, off * (values - moved), 0.0)
            mean = tl.where(inside, moved, mean)
        # Every lane saw a voxel in each tile, but for those that the last tile was too short for.
        last = (tl.cdiv(voxels, BLOCK) - 1 - program) // programs * programs + program
        count = tl.where(last * BLOCK + tl.arange(0, BLOCK) < voxels, seen, seen - 1.0)
        number = tl.sum(count, axis=0)
        average = tl.sum(mean * count, axis=0) / number
        off = mean - average
        partial += ((sample * M * C + channel) * programs + program) * 4
        tl.store(partial, pivot)
        tl.store(partial + 1, number)
        tl.store(partial + 2, average)
        tl.store(partial + 3, tl.sum(spread + count * off * off, axis=0))


@triton.jit(do_not_specialize=["given"])
def _statistics_kernel(
    partial, mask, statistics, given, channels, programs, EPS: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
    ROWS: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Merge the shares of ROWS channels: statistics [B, M, C, 3] = pivot, rstd, (pivot - mean) rstd."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    every = row < channels
    valid = every & (((given >> (row // C % M)) & 1) != 0)
    valid = valid & (tl.load(mask + row // C, mask=valid, other=0) != 0)
    p = tl.arange(0, P)
    at = partial + (row[:, None] * programs + p[None, :]) * 4
    keep = valid[:, None] & (p < programs)[None, :]
    n = tl.load(at + 1, mask=keep, other=0.0).to(tl.float64)
    mean = tl.load(at + 2, mask=keep, other=0.0).to(tl.float64)
    spread = tl.load(at + 3, mask=keep, other=0.0).to(tl.float64)
    number = tl.maximum(tl.sum(n, axis=1), 1.0)
    average = tl.sum(n * mean, axis=1) / number
    off = mean - average[:, None]
    variance = tl.sum(spread + n * off * off, axis=1) / number
    rstd = 1.0 / tl.sqrt(variance + EPS)
    # Nobody reads the zeros of a missing map, but two runs of one op have to agree in all that they return.
    tl.store(statistics + row * 3, tl.load(partial + row * programs * 4, mask=valid, other=0.0), mask=every)
    tl.store(statistics + row * 3 + 1, tl.where(valid, rstd, 0.0), mask=every)
    tl.store(statistics + row * 3 + 2, tl.where(valid, -average * rstd, 0.0), mask=every)


@triton.jit(do_not_specialize=["given"])
def _mix_kernel(
    maps, mask, statistics, weight, bias, out, given, voxels, x_batch, x_channel, x_voxel, w_out, w_in, b_stride,
    SLOPE: tl.constexpr, M: tl.constexpr, C: tl.constexpr, COUT: tl.constexpr, CO: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """CO channels of a tile of the output, contiguous [B, Cout, V]; chunks of outputs run side by side, to share L2."""
    chunks: tl.constexpr = (COUT + CO - 1) // CO
    first = (tl.program_id(0) % chunks) * CO
    block = (tl.program_id(0) // chunks).to(tl.int64)
    sample = tl.program_id(1).to(tl.int64)
    v = block * BLOCK + tl.arange(0, BLOCK)
    inside = v < voxels
    rows = ()
    sums = ()
    for i in tl.static_range(CO):
        # A chunk that is not full repeats its last channel and does not store the repetition.
        o = tl.minimum(first + i, COUT - 1).to(tl.int64)
        rows = rows + (o * w_out,)
        sums = sums + (tl.full((BLOCK,), 0.0, ACC) + tl.load(bias + o * b_stride).to(ACC),)
    for m in range(M):
        if is_present(mask, given, sample, m, M):
            x = pick(maps, m, M) + sample * x_batch
            w = weight + tl.full((), m * C, tl.int64) * w_in
            row = statistics + (sample * M + m) * C * 3
            ahead = tl.load(x + v * x_voxel, mask=inside, other=0.0)
            for c in range(C):
                # The next channel (after the last: the last) is under way while this one is mixed.
                values = ahead.to(ACC)
                x += tl.where(c + 1 < C, x_channel, 0)
                ahead = tl.load(x + v * x_voxel, mask=inside, other=0.0)
                xhat = normalised(values, row)
                z = tl.where(xhat > 0, xhat, xhat * SLOPE)
                new = ()
                for i in tl.static_range(CO):
                    new = new + (sums[i] + tl.load(w + rows[i]).to(ACC) * z,)
                sums = new
                w += w_in
                row += 3
    out += (sample * COUT + first) * voxels + v
    for i in tl.static_range(CO):
        if first + i < COUT:
            store(out, sums[i], inside)
        out += voxels


def forward(
    features: Sequence[torch.Tensor],
    slots: Sequence[int],
    mask: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    negative_slope: float,
    eps: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the forward pass.

    Args:
        features: the maps that are given, [B, C, X, Y, Z] of one dtype, any strides.
        slots: their places among the modalities.
        mask: [B, M], uint8, on the device.
        weight: [Cout, M * C], any strides.
        bias: [Cout].
        negative_slope: of the LeakyReLU.
        eps: added to the variance.
        dtype: of the output.

    Returns:
        The output, contiguous [B, Cout, X, Y, Z], and the statistics [B, M, C, 3] (0 for missing maps).
    """
    batch, channels, *space = features[0].shape
    modalities, outputs = mask.shape[1], weight.shape[0]
    maps, given, strides = arrange(features, slots, modalities)
    acc = launch.accumulator(features[0], weight)
    plan = _plan(batch, modalities, channels, math.prod(space), outputs, acc, _PROGRAMS, ENOUGH)
    out, statistics = _outputs(features, mask, weight, dtype)
    partial = torch.empty(plan.partial, dtype=acc, device=out.device)
    rows, programs, _ = plan.partial
    with launch.device_of(out):
        launch.run(_moments_kernel, plan.moments_grid, plan.moments, maps, mask, partial, given, plan.voxels, *strides)
        launch.run(
            _statistics_kernel, plan.statistics_grid, plan.statistics, partial, mask, statistics, given, rows, programs,
            eps,
        )  # fmt: skip
        launch.run(
            _mix_kernel, plan.mix_grid, plan.mix, maps, mask, statistics, weight, bias, out, given, plan.voxels,
            *strides, *weight.stride(), *bias.stride(), negative_slope,
        )  # fmt: skip
    return out, statistics


class _Plan(NamedTuple):
    """Grids and constants of the three launches, and what lies between the first two.

    Attributes:
        voxels: of a sample.
        partial: shape of the shares of all channels, [B M C, programs, 4].
        moments_grid: of the first launch, and so on.
        moments: its constants and options, and so on.
    """

    voxels: int
    partial: tuple[int, int, int]
    moments_grid: tuple[int, ...]
    moments: dict
    statistics_grid: tuple[int, ...]
    statistics: dict
    mix_grid: tuple[int, ...]
    mix: dict


@functools.lru_cache(maxsize=256)
def _plan(
    batch: int, modalities: int, channels: int, voxels: int, outputs: int, acc: torch.dtype, most: int, enough: int
) -> _Plan:
    """How the forward pass is launched: it depends on its arguments alone, so that a second call finds it made.

    Args:
        batch: B.
        modalities: M.
        channels: C.
        voxels: of a sample.
        outputs: Cout.
        acc: dtype of the sums.
        most: programs of the statistics, about.
        enough: programs to keep a GPU busy.
    """
    # Two reads of 16 bytes a thread in float32; a small volume is one tile.
    tile = min(1024, max(128, triton.next_power_of_2(voxels)))
    rows = batch * modalities * channels
    programs = min(triton.cdiv(voxels, tile), triton.cdiv(most, rows))
    padded = triton.next_power_of_2(programs)
    merged = min(triton.next_power_of_2(rows), max(1, 1024 // padded))
    chunk, block = tiling(outputs, voxels, batch, acc, enough)
    sizes = {"M": modalities, "C": channels, "num_warps": 4, **launch.OPTIONS}
    dtype = launch.triton_dtype(acc)
    return _Plan(
        voxels=voxels,
        partial=(rows, programs, 4),
        moments_grid=(programs, modalities * channels, batch),
        moments={**sizes, "BLOCK": tile, "ACC": dtype},
        statistics_grid=(triton.cdiv(rows, merged),),
        statistics={**sizes, "ROWS": merged, "P": padded},
        mix_grid=(triton.cdiv(outputs, chunk) * triton.cdiv(voxels, block), batch),
        mix={**sizes, "COUT": outputs, "CO": chunk, "BLOCK": block, "ACC": dtype},
    )


def _outputs(
    features: Sequence[torch.Tensor], mask: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for what :func:`forward` returns."""
    batch, channels, *space = features[0].shape
    out = torch.empty((batch, weight.shape[0], *space), dtype=dtype, device=features[0].device)
    acc = launch.accumulator(features[0], weight)
    return out, torch.empty((batch, mask.shape[1], channels, 3), dtype=acc, device=out.device)


@operation("masked_fusion")
def _op(
    features: list[torch.Tensor],
    slots: list[int],
    mask: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    negative_slope: float,
    eps: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    launch.require(features[0], "masked_fusion")
    return forward(features, slots, mask, weight, bias, negative_slope, eps, dtype)


@_op.register_fake
def _(features, slots, mask, weight, bias, negative_slope, eps, dtype):
    return _outputs(features, mask, weight, dtype)


@operation("masked_fusion_backward")
def _backward_op(
    upstream: torch.Tensor,
    features: list[torch.Tensor],
    slots: list[int],
    mask: torch.Tensor,
    weight: torch.Tensor,
    statistics: torch.Tensor,
    negative_slope: float,
    wanted: list[bool],
    bias_dtype: torch.dtype,
) -> list[torch.Tensor]:
    launch.require(upstream, "masked_fusion")
    return backward.backward(upstream, features, slots, mask, weight, statistics, negative_slope, wanted, bias_dtype)


@_backward_op.register_fake
def _(upstream, features, slots, mask, weight, statistics, negative_slope, wanted, bias_dtype):
    shapes = [weight.shape, weight.shape[:1], *(f.shape for f in features)]
    dtypes = [weight.dtype, bias_dtype, *(f.dtype for f in features)]
    return [
        torch.empty(shape if want else (0,), dtype=dtype, device=upstream.device)
        for shape, dtype, want in zip(shapes, dtypes, wanted, strict=True)
    ]


def _save(ctx, inputs, output):
    features, ctx.slots, mask, weight, bias, ctx.negative_slope, _, _ = inputs
    ctx.bias_dtype = bias.dtype
    ctx.save_for_backward(mask, weight, output[1], *features)


def _differentiate(ctx, upstream):
    mask, weight, statistics, *features = ctx.saved_tensors
    of_maps, _, _, of_weight, of_bias, *_ = ctx.needs_input_grad
    wanted = [of_weight, of_bias, *of_maps]
    gradients = _backward_op(
        upstream, features, ctx.slots, mask, weight, statistics, ctx.negative_slope, wanted, ctx.bias_dtype
    )
    d_weight, d_bias, *d_maps = (d if want else None for d, want in zip(gradients, wanted, strict=True))
    return d_maps, None, None, d_weight, d_bias, None, None, None


_op.register_autograd(_differentiate, _save)
forbid_double_backward(_backward_op, "masked_fusion")


def masked_fusion(
    features: Sequence[torch.Tensor | None],
    mask: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    negative_slope: float,
    eps: float,
) -> torch.Tensor:
    """The fusion layer by Triton, differentiable once; see :func:`smml_kernels.masked_fusion`."""
    first = check_fusion(features, mask, weight, bias)
    device = first.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else torch.promote_types(first.dtype, weight.dtype)
    slots = [m for m, f in enumerate(features) if f is not None]
    maps = [features[m] for m in slots]
    if any(f.dtype != first.dtype for f in maps):  # kernels take maps of one dtype
        common = first.dtype
        for f in maps:
            common = torch.promote_types(common, f.dtype)
        maps = [f.to(common) for f in maps]
    return _op(maps, slots, _bytes_of(mask, first.device), weight, bias, float(negative_slope), float(eps), dtype)[0]


def _bytes_of(mask: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The mask [B, M] as numbers, uint8, on the device: the same memory where it lies there, in a row.

    A mask on the CPU is copied to a GPU once for all calls with the same values: a copy at each call would take longer
    than a launch, and CUDA refuses it while it captures a graph.
    """
    if mask.device == device:
        return mask.contiguous().view(torch.uint8)
    if type(mask) is torch.Tensor and mask.device.type == "cpu" and not torch.compiler.is_compiling():
        return _mask_on(tuple(map(tuple, mask.tolist())), device)
    return mask.to(device, torch.uint8, non_blocking=True)


@functools.lru_cache(maxsize=256)
def _mask_on(rows: tuple[tuple[bool, ...], ...], device: torch.device) -> torch.Tensor:
    """These rows as uint8 on the device. Nothing ever writes to it."""
    with torch.inference_mode(False):  # or else it could not be kept for a backward pass
        found = torch.tensor(rows, dtype=torch.uint8, device=device)
    if device.type == "cuda":  # a call on another stream may be the next to read it
        torch.cuda.current_stream(device).synchronize()
    return found
