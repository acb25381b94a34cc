"""The gradients of ``masked_fusion`` in two passes over the maps.

Write g for the gradient of the output, xhat for a normalised voxel, s for the slope of the LeakyReLU there (1 where
xhat > 0, else ``negative_slope``) and z = s xhat for its value. The InstanceNorm ties all voxels of a channel together,

    dx = rstd (dxhat - mean(dxhat) - xhat mean(xhat dxhat)),     dxhat_c = s_c sum_o W[o, c] g_o,

so that two means have to be known before a first element of dx can be written: hence two passes. W does not depend on
the voxel, therefore everything that the first pass must gather are two small matrices for each sample and modality,

    D[o, c] = sum_v g_o z_c,     T[o, c] = sum_v g_o s_c,

because dW = sum of D over the samples, mean(dxhat_c) = sum_o W[o, c] T[o, c] / V and mean(xhat dxhat) of channel c =
sum_o W[o, c] D[o, c] / V. Each pass reads maps and g once; xhat is computed again from x, nothing of size V is kept.

**First pass, the tiles.** A program takes 8 channels of a map and 8 of g. Both matrices stay in registers, one
number a voxel lane (128 of a thread's 255 registers), over all tiles of the program, and lanes are added up once at
the end. Modalities are the fastest axis of the grid: programs that run side by side read the same piece of g, which
comes from memory once and from the L2 cache after that. Partial sums go to a second, tiny kernel instead of atomics:
the result is the same to the bit in each run.

**Second pass.** A program computes dx of one tile for one modality after another, so that g stays in the L1 cache.
A missing map is not read; its gradient is written as exact zeros.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from smml_kernels.common import launch
from smml_kernels.fusion.maps import (
    ENOUGH,
    arrange,
    column_sums,
    is_present,
    normalised,
    pick,
    store,
    strides_of_voxels,
    tiling,
)

_BLOCK = 128  # pairs of voxels of a tile of the first pass: one a thread, as each needs 128 numbers
_PROGRAMS = 4 * ENOUGH


@triton.jit(do_not_specialize=["start", "given"])
def _products_kernel(
    maps, mask, statistics, g, products, sums, start, given, voxels, x_batch, x_channel, x_voxel, g_batch, g_channel,
    g_voxel, SLOPE: tl.constexpr, M: tl.constexpr, C: tl.constexpr, COUT: tl.constexpr, CC: tl.constexpr,
    CO: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Partial D and T of a chunk [CC, CO]: products [B, M, C chunks, Cout chunks, P, 2, CC * CO]; and sums of g.

    Program numbers of axis 0 count modalities fastest, then chunks; those from M * chunks on add up g, for the bias:
    sums [B, Cout chunks, P, CO].
    """
    part = tl.program_id(0) + start
    program, programs = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    sample = tl.program_id(2).to(tl.int64)
    chunks_c: tl.constexpr = (C + CC - 1) // CC
    chunks_o: tl.constexpr = (COUT + CO - 1) // CO
    for_bias = part >= M * chunks_c * chunks_o
    chunk = part // M
    chunk_o = tl.where(for_bias, part - M * chunks_c * chunks_o, chunk % chunks_o)
    g += sample * g_batch
    rows = ()
    for i in tl.static_range(CO):
        # A chunk that is not full repeats its last channel; nobody reads what comes of the repetition.
        rows = rows + (g + tl.minimum(chunk_o * CO + i, COUT - 1).to(tl.int64) * g_channel,)
    if for_bias:
        total = ()
        for _ in tl.static_range(CO):
            total = total + (tl.full((BLOCK,), 0.0, ACC),)
        for block in range(program, tl.cdiv(voxels, BLOCK), programs):
            v = block * BLOCK + tl.arange(0, BLOCK)
            new = ()
            for i in tl.static_range(CO):
                new = new + (total[i] + tl.load(rows[i] + v * g_voxel, mask=v < voxels, other=0.0).to(ACC),)
            total = new
        sums += ((sample * chunks_o + chunk_o) * programs + program) * CO
        tl.store(sums + tl.arange(0, CO), column_sums(total, CO, BLOCK))
    else:
        m = part % M
        if is_present(mask, given, sample, m, M):
            chunk_c = chunk // chunks_o
            x = pick(maps, m, M) + sample * x_batch
            statistics += (sample * M + m) * C * 3
            product_z = ()
            product_s = ()
            for _ in tl.static_range(CC * CO):
                product_z = product_z + (tl.full((BLOCK,), 0.0, ACC),)
                product_s = product_s + (tl.full((BLOCK,), 0.0, ACC),)
            for block in range(program, tl.cdiv(voxels, 2 * BLOCK), programs):
                # Two neighbouring voxels a thread, read at once, and then apart: a and b.
                v = block * (2 * BLOCK) + 2 * tl.arange(0, BLOCK)[:, None] + tl.arange(0, 2)[None, :]
                inside = v < voxels
                gs_a = ()
                gs_b = ()
                for i in tl.static_range(CO):
                    a, b = tl.split(tl.load(rows[i] + v * g_voxel, mask=inside, other=0.0).to(ACC))
                    gs_a = gs_a + (a,)
                    gs_b = gs_b + (b,)
                new_z = ()
                new_s = ()
                for j in tl.static_range(CC):
                    c = tl.minimum(chunk_c * CC + j, C - 1)
                    at = x + c.to(tl.int64) * x_channel + v * x_voxel
                    a, b = tl.split(normalised(tl.load(at, mask=inside, other=0.0).to(ACC), statistics + 3 * c))
                    s_a = tl.where(a > 0, tl.full((BLOCK,), 1.0, ACC), SLOPE)
                    s_b = tl.where(b > 0, tl.full((BLOCK,), 1.0, ACC), SLOPE)
                    z_a = s_a * a
                    z_b = s_b * b
                    for i in tl.static_range(CO):
                        new_z = new_z + (product_z[j * CO + i] + gs_a[i] * z_a + gs_b[i] * z_b,)
                        new_s = new_s + (product_s[j * CO + i] + gs_a[i] * s_a + gs_b[i] * s_b,)
                product_z = new_z
                product_s = new_s
            place = ((sample * M + m) * chunks_c + chunk_c) * chunks_o + chunk_o
            products += (place * programs + program) * 2 * CC * CO
            at = tl.arange(0, CC * CO)
            tl.store(products + at, column_sums(product_z, CC * CO, BLOCK))
            tl.store(products + CC * CO + at, column_sums(product_s, CC * CO, BLOCK))


@triton.jit
def _row_sums(at, first, rows, stride, valid, ROWS: tl.constexpr, N: tl.constexpr, ACC: tl.constexpr):
    """Sum of ``rows`` vectors [N] at addresses ``at``, each ``stride`` after the one before."""
    total = tl.full((ROWS, N), 0.0, ACC)
    r = tl.arange(0, ROWS)
    for start in range(0, rows, ROWS):
        place = at[None, :] + (start + r)[:, None] * stride
        keep = (start + r < rows)[:, None] & valid[None, :]
        total += tl.load(first + place, mask=keep, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["start", "given"])
def _finish_kernel(
    products, sums, mask, weight, means, d_weight, d_bias, start, given, batch, programs, voxels, w_out, w_in,
    M: tl.constexpr, C: tl.constexpr, COUT: tl.constexpr, CC: tl.constexpr, CO: tl.constexpr, COUT_PADDED: tl.constexpr,
    ROWS: tl.constexpr, WEIGHT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Partial products of one input channel -> its column of dW, and the two means of each sample [B, M, C, 2].

    The program after the last channel sums g up for the bias.
    """
    channel = tl.program_id(0) + start
    chunks_c: tl.constexpr = (C + CC - 1) // CC
    chunks_o: tl.constexpr = (COUT + CO - 1) // CO
    o = tl.arange(0, COUT_PADDED)
    valid = o < COUT
    result = tl.full((COUT_PADDED,), 0.0, ACC)
    if channel == M * C:
        at = (o // CO) * programs * CO + o % CO
        for _ in range(batch):
            result += _row_sums(at, sums, programs, CO, valid, ROWS, COUT_PADDED, ACC)
            sums += chunks_o * programs * CO
        store(d_bias + o, result, valid)
    else:
        m = channel // C
        c = channel % C
        w = tl.load(weight + o.to(tl.int64) * w_out + channel.to(tl.int64) * w_in, mask=valid, other=0.0).to(ACC)
        size = CC * CO
        at = ((m * chunks_c + c // CC) * chunks_o + o // CO) * programs * 2 * size + (c % CC) * CO + o % CO
        for sample in range(batch):
            if is_present(mask, given, sample, m, M):
                product_z = _row_sums(at, products, programs, 2 * size, valid, ROWS, COUT_PADDED, ACC)
                product_s = _row_sums(at, products + size, programs, 2 * size, valid, ROWS, COUT_PADDED, ACC)
                place = means + ((sample * M + m) * C + c) * 2
                tl.store(place, tl.sum(w * product_s, axis=0) / voxels)
                tl.store(place + 1, tl.sum(w * product_z, axis=0) / voxels)
                result += product_z
            products += M * chunks_c * chunks_o * programs * 2 * size
        if WEIGHT:
            store(d_weight + o * (M * C) + channel, result, valid)


@triton.jit(do_not_specialize=["given", "wanted"])
def _gradient_kernel(
    maps, gradients, mask, statistics, means, weight, g, given, wanted, voxels, x_batch, x_channel, x_voxel, g_batch,
    g_channel, g_voxel, w_out, w_in, SLOPE: tl.constexpr, M: tl.constexpr, C: tl.constexpr, COUT: tl.constexpr,
    CC: tl.constexpr, SHARES: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dL/dx of CC channels of one tile, for every modality whose bit of ``wanted`` is set; gradients [B, C, V] each."""
    chunks: tl.constexpr = (C + CC - 1) // CC
    part = tl.program_id(0) % (chunks * SHARES)
    block = (tl.program_id(0) // (chunks * SHARES)).to(tl.int64)
    sample = tl.program_id(1).to(tl.int64)
    first = (part // SHARES).to(tl.int64) * CC
    v = block * BLOCK + tl.arange(0, BLOCK)
    inside = v < voxels
    for m in range(part % SHARES, M, SHARES):
        if ((wanted >> m) & 1) != 0:
            result = pick(gradients, m, M) + (sample * C + first) * voxels + v
            if is_present(mask, given, sample, m, M):
                # All reads of the map are under way before g is mixed: none waits for another, or for a store.
                x = pick(maps, m, M) + sample * x_batch + v * x_voxel
                tiles = ()
                d = ()
                for j in tl.static_range(CC):
                    c = tl.minimum(first + j, C - 1)
                    tiles = tiles + (tl.load(x + c * x_channel, mask=inside, other=0.0).to(ACC),)
                    d = d + (tl.full((BLOCK,), 0.0, ACC),)
                row = g + sample * g_batch + v * g_voxel
                w = weight + (m * C + first) * w_in
                for _ in tl.range(COUT, loop_unroll_factor=2):
                    g_o = tl.load(row, mask=inside, other=0.0).to(ACC)
                    new = ()
                    for j in tl.static_range(CC):
                        new = new + (d[j] + tl.load(w + tl.minimum(j, C - 1 - first) * w_in).to(ACC) * g_o,)
                    d = new
                    row += g_channel
                    w += w_out
                at = (sample * M + m) * C + first
                for j in tl.static_range(CC):
                    if first + j < C:
                        xhat = normalised(tiles[j], statistics + 3 * (at + j))
                        mean = tl.load(means + 2 * (at + j))
                        slope_mean = tl.load(means + 2 * (at + j) + 1)
                        dx = tl.where(xhat > 0, d[j], d[j] * SLOPE) - mean - xhat * slope_mean
                        # One voxel is its own mean: the difference above is 0 but for rounding.
                        dx = tl.where(voxels > 1, dx * tl.load(statistics + 3 * (at + j) + 1), 0.0)
                        store(result, dx, inside)
                        result += voxels
            else:
                for j in tl.static_range(CC):
                    if first + j < C:
                        store(result, tl.full((BLOCK,), 0.0, ACC), inside)
                        result += voxels


def backward(
    upstream: torch.Tensor,
    features: Sequence[torch.Tensor],
    slots: Sequence[int],
    mask: torch.Tensor,
    weight: torch.Tensor,
    statistics: torch.Tensor,
    negative_slope: float,
    wanted: Sequence[bool],
    bias_dtype: torch.dtype,
) -> list[torch.Tensor]:
    """Launch the backward passes.

    Args:
        upstream: the gradient of the output, [B, Cout, X, Y, Z], any strides.
        features: the maps that are given, as in the forward pass.
        slots: their places among the modalities.
        mask: [B, M], uint8, on the device.
        weight: [Cout, M * C], any strides.
        statistics: [B, M, C, 3] of the forward pass.
        negative_slope: of the LeakyReLU.
        wanted: which gradients: of weight, of bias, of each given map.
        bias_dtype: of the gradient of the bias.

    Returns:
        The gradients in the order of ``wanted``; what is not wanted is empty.
    """
    device = upstream.device
    batch, channels, *space = features[0].shape
    modalities, outputs = mask.shape[1], weight.shape[0]
    want_weight, want_bias, *want_maps = wanted
    maps, given, strides = arrange(features, slots, modalities)
    g_strides = strides_of_voxels(tuple(upstream.shape), upstream.stride())
    if g_strides is None:
        upstream = upstream.contiguous()
        g_strides = upstream.flatten(2).stride()
    acc = launch.accumulator(features[0], weight)
    any_map = any(want_maps)
    plan = _plan(
        batch, modalities, channels, math.prod(space), outputs, acc, want_weight, want_bias, any_map, _PROGRAMS, ENOUGH
    )

    d_weight = torch.empty(weight.shape if want_weight else 0, dtype=weight.dtype, device=device)
    d_bias = torch.empty(outputs if want_bias else 0, dtype=bias_dtype, device=device)
    d_maps = [
        torch.empty(f.shape if want else 0, dtype=f.dtype, device=device)
        for f, want in zip(features, want_maps, strict=True)
    ]
    products, sums, means = (
        torch.empty(shape, dtype=acc, device=device)
        for shape in (plan.products, plan.sums, (batch, modalities * channels, 2))
    )
    with launch.device_of(upstream):
        if plan.parts_grid is not None:
            launch.run(
                _products_kernel, plan.parts_grid, plan.parts, maps, mask, statistics, upstream, products, sums,
                plan.first_part, given, plan.voxels, *strides, *g_strides, negative_slope,
            )  # fmt: skip
            launch.run(
                _finish_kernel, plan.finish_grid, plan.finish, products, sums, mask, weight, means, d_weight, d_bias,
                plan.first_column, given, batch, plan.programs, plan.voxels, *weight.stride(),
            )  # fmt: skip
        if any_map:
            gradients, bits = [products] * modalities, 0
            for slot, d, want in zip(slots, d_maps, want_maps, strict=True):
                gradients[slot] = d
                bits |= want << slot
            some = d_maps[want_maps.index(True)]
            gradients = tuple(d if d.dtype == some.dtype else some for d in gradients)
            launch.run(
                _gradient_kernel, plan.gradient_grid, plan.gradient, maps, gradients, mask, statistics, means, weight,
                upstream, given, bits, plan.voxels, *strides, *g_strides, *weight.stride(), negative_slope,
            )  # fmt: skip
    return [d_weight, d_bias, *d_maps]


class _Plan(NamedTuple):
    """Grids and constants of the launches, and shapes of what lies between them.

    Attributes:
        voxels: of a sample.
        programs: that share the voxels of a sample in the first pass.
        products: shape, [B, M C-chunks Cout-chunks, programs, 2, CC CO].
        sums: shape, [B, Cout-chunks, programs, CO].
        first_part: number of the first program of the first pass.
        parts_grid: of the first pass; None where only gradients are wanted that do not need it.
        parts: its constants and options.
        first_column: number of the first program that adds partial sums up.
        finish_grid: of those programs.
        finish: their constants and options.
        gradient_grid: of the second pass.
        gradient: its constants and options.
    """

    voxels: int
    programs: int
    products: tuple[int, ...]
    sums: tuple[int, ...]
    first_part: int
    parts_grid: tuple[int, ...] | None
    parts: dict
    first_column: int
    finish_grid: tuple[int, ...]
    finish: dict
    gradient_grid: tuple[int, ...]
    gradient: dict


@functools.lru_cache(maxsize=256)
def _plan(
    batch: int, modalities: int, channels: int, voxels: int, outputs: int, acc: torch.dtype, want_weight: bool,
    want_bias: bool, want_maps: bool, most: int, enough: int,
) -> _Plan:  # fmt: skip
    """How the backward pass is launched: it depends on its arguments alone, so that a second call finds it made.

    Args:
        batch: B.
        modalities: M.
        channels: C.
        voxels: of a sample.
        outputs: Cout.
        acc: dtype of the sums.
        want_weight: whether the gradient of the weight is wanted.
        want_bias: that of the bias.
        want_maps: that of any map.
        most: programs of the first pass, about.
        enough: programs to keep a GPU busy.
    """
    widest = 4 if acc == torch.float64 else 8
    cc, co = (min(widest, triton.next_power_of_2(n)) for n in (channels, outputs))
    chunks_c, chunks_o = triton.cdiv(channels, cc), triton.cdiv(outputs, co)
    of_maps = modalities * chunks_c * chunks_o
    programs = min(triton.cdiv(voxels, 2 * _BLOCK), max(1, most // (batch * of_maps)))
    # Programs for the products come first and those for the bias last, so that either can be left out.
    need_products = want_weight or want_maps
    first, last = (0 if need_products else of_maps), of_maps + (chunks_o if want_bias else 0)
    columns = modalities * channels
    first_column, end = (0 if need_products else columns), columns + want_bias
    padded = triton.next_power_of_2(outputs)
    sizes = {"M": modalities, "C": channels, "COUT": outputs, "ACC": launch.triton_dtype(acc), "num_warps": 4}
    sizes |= launch.OPTIONS
    chunk, block = tiling(channels, voxels, batch, acc, enough)
    tiles = triton.cdiv(channels, chunk) * triton.cdiv(voxels, block)
    shares = 1 if tiles * batch >= enough else modalities
    return _Plan(
        voxels=voxels,
        programs=programs,
        products=(batch, of_maps, programs, 2, cc * co),
        sums=(batch, chunks_o, programs, co),
        first_part=first,
        parts_grid=(last - first, programs, batch) if last > first else None,
        parts={**sizes, "CC": cc, "CO": co, "BLOCK": _BLOCK},
        first_column=first_column,
        finish_grid=(end - first_column,),
        finish={
            **sizes, "CC": cc, "CO": co, "COUT_PADDED": padded, "ROWS": max(1, 1024 // padded), "WEIGHT": want_weight,
        },
        gradient_grid=(tiles * shares, batch),
        gradient={**sizes, "CC": chunk, "SHARES": shares, "BLOCK": block},
    )  # fmt: skip
