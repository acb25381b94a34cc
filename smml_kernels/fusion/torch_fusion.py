"""``masked_fusion`` in PyTorch for maps in channels-last format on a CPU: what ``implementation="torch"`` runs there.

The numbers are those of :mod:`smml_kernels.fusion.reference` up to rounding. Only the order in memory is another one:
norm, activation and mixing keep it, and so does the result.
"""

from collections.abc import Sequence

import torch

from smml_kernels.channels_last import as_voxels, is_channels_last, of_voxels, pre_norm_convolution
from smml_kernels.fusion import reference


def torch_masked_fusion(
    features: Sequence[torch.Tensor | None],
    mask: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    negative_slope: float = 0.2,
    eps: float = 1e-5,
) -> torch.Tensor:
    """The fusion of :func:`smml_kernels.fusion.reference.masked_fusion`, whose arguments, result and errors it has."""
    first = reference.check_fusion(features, mask, weight, bias)
    here = [f for f in features if f is not None]
    if first.device.type != "cpu" or not all(is_channels_last(f) for f in here) or negative_slope <= 0:
        return reference.masked_fusion(features, mask, weight, bias, negative_slope=negative_slope, eps=eps)
    wider = torch.promote_types(first.dtype, weight.dtype)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else wider
    accumulator = torch.promote_types(wider, torch.float32)
    batch, channels, *space = first.shape
    # Voxels before channels, as they lie in memory: choosing samples would turn [B, C, X, Y, Z] round.
    out = bias.to(accumulator).expand(batch, *space, -1)
    with torch.autocast("cpu", enabled=False):
        for m, f in enumerate(features):
            if f is None:
                continue
            rows = mask[:, m].nonzero()[:, 0].to("cpu")
            if len(rows) == 0:
                # An empty sum: adds 0, and gives the unused map a gradient of exactly zero.
                out = out + f[:0].sum()
                continue
            everyone = len(rows) == batch
            x = f if everyone else of_voxels(as_voxels(f).index_select(0, rows))
            columns = weight[:, m * channels : (m + 1) * channels, None, None, None]
            part = pre_norm_convolution(x, columns, None, negative_slope=negative_slope, eps=eps, dtype=dtype)
            part = as_voxels(part).to(accumulator)
            out = out + part if everyone else out.index_add(0, rows, part)
        return of_voxels(out.to(dtype))
