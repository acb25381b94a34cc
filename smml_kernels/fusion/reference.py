"""The fusion layer over whatever modalities a sample has.

    out = conv1x1x1(LeakyReLU(InstanceNorm(concat_m select(f_m, mask_m))))

A missing modality is zero, so its InstanceNorm is 0, its LeakyReLU is 0 and it adds nothing: leaving its columns of the
weight out gives the same result, costs less, and cannot leak. It is selected, never multiplied by the mask, because
0 * NaN is NaN and nothing of a missing modality may reach the network.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def masked_fusion(
    features: Sequence[torch.Tensor | None],
    mask: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    negative_slope: float = 0.2,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Normalise, activate and mix the maps of the modalities that are present.

    InstanceNorm has no affine part and divides by the biased variance of each channel of each map, in float32 at least
    and about the mean, so that a large mean does not cancel. A map of one spatial element is normalised to 0. Where
    the mask is False the map is not read and its gradient is exactly zero, whatever it holds.

    Args:
        features: M maps [B, C, X, Y, Z]; None for a modality that no sample of the batch has.
        mask: [B, M] bool, True where the sample has the modality. (A copy on the CPU spares a wait for the device.)
        weight: [Cout, M*C], the 1x1x1 convolution; columns m*C to (m+1)*C belong to modality m.
        bias: [Cout], all that a sample without any modality gets.
        negative_slope: of the LeakyReLU.
        eps: added to the variance.

    Returns:
        [B, Cout, X, Y, Z], in the autocast dtype where autocast is on, else in the wider dtype of maps and weight.

    Raises:
        ValueError: every map is None, a map is None for a sample whose mask says that it is there, or shapes disagree.
            (Of a mask on a GPU the device finds out, and stops.)
    """
    first = check_fusion(features, mask, weight, bias)
    device = first.device.type
    wider = torch.promote_types(first.dtype, weight.dtype)
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else wider
    accumulator = torch.promote_types(wider, torch.float32)

    batch, channels, *space = first.shape
    out = bias.to(accumulator).view(1, -1, 1, 1, 1).expand(batch, -1, *space)
    present = mask.cpu()
    with torch.autocast(device, enabled=False):
        for m, f in enumerate(features):
            if f is None:
                continue
            rows = present[:, m].nonzero()[:, 0].to(f.device)
            if len(rows) == 0:
                out = out + f[:0].sum()  # an empty sum: adds 0, and gives the unused map a gradient of exactly zero
                continue
            everyone = len(rows) == batch
            x = f if everyone else f.index_select(0, rows)
            x = F.leaky_relu(_instance_norm(x, eps), negative_slope)
            columns = weight[:, m * channels : (m + 1) * channels]
            part = F.conv3d(x.to(dtype), columns.to(dtype)[:, :, None, None, None]).to(accumulator)
            out = out + part if everyone else out.index_add(0, rows, part)
        return out.to(dtype)


def _instance_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """(x - mean) / sqrt(biased variance + eps) over the space of each channel of each sample."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x[0, 0].numel() == 1:
        return x - x  # torch refuses one element, yet its mean is itself
    return F.instance_norm(x, eps=eps)


def check_fusion(
    features: Sequence[torch.Tensor | None], mask: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Raise ``ValueError`` for inputs that do not belong together; returns the first map that is there."""
    modalities = len(features)
    maps = [f for f in features if f is not None]
    if not maps:
        raise ValueError("every feature map is None: at least one modality must be given, if only for the grid")
    first = maps[0]
    if first.dim() != 5 or 0 in first.shape:
        raise ValueError(f"a feature map must be a non-empty [B, C, X, Y, Z], found shape {tuple(first.shape)}")
    if any(f.shape != first.shape for f in maps):
        raise ValueError(f"feature maps must share one shape, found {[tuple(f.shape) for f in maps]}")
    batch, channels = first.shape[:2]
    if mask.dtype != torch.bool or tuple(mask.shape) != (batch, modalities):
        raise ValueError(f"mask must be bool [{batch}, {modalities}], found {mask.dtype} {list(mask.shape)}")
    if weight.dim() != 2 or weight.shape[1] != modalities * channels:
        raise ValueError(
            f"weight must be [Cout, {modalities * channels}] for {modalities} maps of {channels} channels, "
            f"found {list(weight.shape)}"
        )
    if tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias must be [{weight.shape[0]}], one for each row of weight, found {list(bias.shape)}")
    absent = [m for m, f in enumerate(features) if f is None]
    if absent:
        words = f"the mask says that a sample has a modality whose map is None (None: positions {absent})"
        if mask.device.type == "cpu":
            if any(row[m] for row in mask.tolist() for m in absent):
                raise ValueError(words)
        else:
            # The device looks: the host would have to wait for it. Columns one by one, since a list of numbers as an
            # index is copied to the device, which is a wait as well.
            torch._assert_async(~torch.stack([mask[:, m] for m in absent]).any(), words)
    return first
