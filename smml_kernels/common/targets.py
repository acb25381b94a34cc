"""Target volumes: which ones fit a prediction, and how much each class of a sample weighs.

Both per-voxel losses weigh a voxel of class y in sample b by ``w[b, y] = max(w_min, 1 - n[b, y] / n)``, n[b, k] the
number of voxels of class k in that sample and n the number of its voxels: what fills a patch counts little.
"""

import torch


def check_prediction(name: str, x: torch.Tensor, *, may_lack_samples: bool = False) -> None:
    """Raise ``ValueError`` unless ``x`` is a non-empty floating tensor [B, K, spatial...]; on wish B may be 0."""
    if not x.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor, found {x.dtype}")
    if x.dim() < 3:
        raise ValueError(f"{name} must be [B, K, X, Y, Z], found shape {tuple(x.shape)}")
    if x.numel() == 0 and not (may_lack_samples and len(x) == 0):
        raise ValueError(f"{name} is empty: shape {tuple(x.shape)}; leave such a term out instead")


def check_target(x: torch.Tensor, target: torch.Tensor) -> None:
    """Raise ``ValueError`` unless ``target`` is an integer volume [B, spatial...] on the grid of ``x`` [B, K, ...]."""
    expected = (x.shape[0], *x.shape[2:])
    if tuple(target.shape) != expected:
        raise ValueError(
            f"target must be {list(expected)} for a prediction of shape {list(x.shape)}, found {list(target.shape)}"
        )
    if target.dtype not in (torch.uint8, torch.int64):
        raise ValueError(f"target must hold class indices as uint8 or int64, found {target.dtype}")


def check_min_class_weight(min_class_weight: float) -> None:
    """Raise ``ValueError`` unless w_min lies between 0 and 1."""
    if not 0.0 <= min_class_weight <= 1.0:
        raise ValueError(f"min_class_weight must lie between 0 and 1, found {min_class_weight}")


def class_counts(target: torch.Tensor, classes: int) -> torch.Tensor:
    """Voxels of each class in each sample, n[b, k].

    Args:
        target: [B, spatial...], uint8 or int64.
        classes: K.

    Returns:
        [B, K] int64.

    Raises:
        ValueError: on a CPU, where looking costs nothing, a label outside 0 .. K-1. (On a GPU the check would make the
            host wait; there the gather of the losses stops with a device-side assertion.)
    """
    # K comparisons rather than bincount: no wait for the device, and faster than it for a handful of classes.
    counts = torch.stack([(target == k).flatten(1).sum(1) for k in range(classes)], dim=1)
    # Nor is there a value to look at while torch.compile traces; the gather of the losses still checks its index.
    looks = counts.device.type == "cpu" and not torch.compiler.is_compiling()
    if looks and int(counts.sum()) != target.numel():
        raise ValueError(
            f"target holds labels from {int(target.min())} to {int(target.max())}, "
            f"but the prediction has {classes} classes (0 to {classes - 1})"
        )
    return counts


def class_weights(counts: torch.Tensor, min_class_weight: float, dtype: torch.dtype) -> torch.Tensor:
    """w[b, k] = max(w_min, 1 - n[b, k] / n), [B, K] in ``dtype``, from the counts [B, K] of each sample.

    With w_min = 0 (the published value) a patch of a single class weighs nothing anywhere.
    """
    check_min_class_weight(min_class_weight)
    share = counts.double() / counts.sum(dim=1, keepdim=True)
    return (1.0 - share).clamp_min(min_class_weight).to(dtype)


def working_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """The dtype in which a loss is computed: that of the tensors, float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
