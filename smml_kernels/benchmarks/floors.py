"""The fewest bytes and floating-point operations that each operation needs, whoever computes it.

Bytes: each input read as often as the dependencies force, each output written once, nothing intermediate stored. A
statistic over all voxels (or tokens) forces a second read: nothing can be normalised before the mean is known.
Nothing here is measured.
"""

from dataclasses import dataclass
from math import prod

PHASES = ("forward", "backward", "both")


@dataclass(frozen=True)
class Floor:
    """The least work of one call.

    Attributes:
        bytes_forward: through device memory.
        bytes_backward: the same for the gradient, which reads the inputs again instead of storing anything.
        flops_forward: multiplications and additions, one each.
        flops_backward: the same for the gradient.
        matrix: whether the operations are matrix products, so that their rate bounds the time. Otherwise the count is
            approximate (an exponential is one), bounds nothing, and only places a point on the roofline.
    """

    bytes_forward: float
    bytes_backward: float
    flops_forward: float
    flops_backward: float
    matrix: bool = False

    def bytes(self, phase: str) -> float:
        """Bytes of "forward", "backward" or "both"."""
        return _of_phase(phase, self.bytes_forward, self.bytes_backward)

    def flops(self, phase: str) -> float:
        """Operations of "forward", "backward" or "both"."""
        return _of_phase(phase, self.flops_forward, self.flops_backward)

    def seconds(self, phase: str, bandwidth: float, matrix_rate: float | None) -> float | None:
        """The time that no formulation beats: the larger of bytes / bandwidth and operations / rate.

        Args:
            phase: one of ``PHASES``.
            bandwidth: measured, bytes a second.
            matrix_rate: measured, operations a second, of the arithmetic that the case asks for; None where it was not
                measured, and then a matrix-bound operation has no floor (None).
        """
        if not self.matrix:
            return self.bytes(phase) / bandwidth
        if matrix_rate is None:
            return None
        return max(self.bytes(phase) / bandwidth, self.flops(phase) / matrix_rate)


def _of_phase(phase: str, forward: float, backward: float) -> float:
    """Raises ``KeyError`` for an unknown phase."""
    return {"forward": forward, "backward": backward, "both": forward + backward}[phase]


def relation_loss(tokens: int, channels: int, itemsize: int, form: str = "linear") -> Floor:
    """Linear: 34 N C^2 operations and 10 N C numbers; direct, nothing N x N stored: 12 N^2 C and 6 N C.

    Linear, forward: three C x C moments and three projections of 2 N C^2 each; backward: three moments and eight
    projections. Both features are read twice, and twice more with two written in the backward.

    Args:
        tokens: N.
        channels: C.
        itemsize: bytes of a number of the features.
        form: "linear" or "direct".
    """
    numbers = tokens * channels
    if form == "linear":
        work = numbers * channels
        return Floor(4 * numbers * itemsize, 6 * numbers * itemsize, 12 * work, 22 * work, matrix=True)
    if form == "direct":
        work = tokens * numbers
        return Floor(2 * numbers * itemsize, 4 * numbers * itemsize, 4 * work, 8 * work, matrix=True)
    raise ValueError(f"unknown form {form!r}: choose linear or direct")


def masked_fusion(shape: tuple[int, ...], modalities: int, out_channels: int, present: float, itemsize: int) -> Floor:
    """(2p + o) E forward and (2p + 2o + 1) E backward: E the bytes of all maps, o E those of the output.

    Forward: statistics, then normalise and mix: the maps present are read twice, the output is written. Backward: maps
    and output gradient are read twice (the norm's gradient needs two sums first), and the gradient of every map is
    written, that of a missing one as zeros.

    Args:
        shape: [B, C, X, Y, Z] of each map.
        modalities: M.
        out_channels: Cout.
        present: p, share of the maps that are present, 0 to 1.
        itemsize: bytes of a number.
    """
    channels = shape[1]
    numbers = modalities * prod(shape)
    everything = numbers * itemsize
    out = out_channels / (modalities * channels)
    read = present * numbers
    # Statistics 4, normalise 2, activate 1, dot product 2 Cout; backward: two dot products and the norm's gradient.
    return Floor(
        (2 * present + out) * everything,
        (2 * present + 2 * out + 1) * everything,
        (7 + 2 * out_channels) * read,
        (11 + 4 * out_channels) * read,
    )


def exchange_loss(shape: tuple[int, ...], itemsize: int, target_itemsize: int) -> Floor:
    """Two maps of logits and the target read in each direction, two gradients written: 6 maps and 2 targets.

    Args:
        shape: [B, K, X, Y, Z] of each branch's logits.
        itemsize: bytes of a logit.
        target_itemsize: bytes of a label: 1 for uint8, 8 for int64.
    """
    numbers = prod(shape)
    logits, target = numbers * itemsize, numbers // shape[1] * target_itemsize
    return Floor(2 * logits + target, 4 * logits + target, 14 * numbers, 20 * numbers)


def dice_ce_loss(shape: tuple[int, ...], itemsize: int, target_itemsize: int) -> Floor:
    """One map and the target read in each direction, one gradient written: 3 maps and 2 targets.

    Args:
        shape: [B, K, X, Y, Z] of the prediction.
        itemsize: bytes of one of its numbers.
        target_itemsize: bytes of a label: 1 for uint8, 8 for int64.
    """
    numbers = prod(shape)
    prediction, target = numbers * itemsize, numbers // shape[1] * target_itemsize
    return Floor(prediction + target, 2 * prediction + target, 8 * numbers, 14 * numbers)
