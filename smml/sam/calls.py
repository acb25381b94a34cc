"""What the priors need of a SAM: encode slices, answer prompts, and say which weights it has."""

from typing import Protocol

import torch
from torch import nn

from smml.sam.cache import digest
from smml.sam.slices import decode, encode


class Segmenter(Protocol):
    """Something that is prompted like SAM. Coordinates are those of :mod:`smml.sam.slices`.

    Attributes:
        fingerprint: names the weights; equal fingerprints give equal embeddings.
        device: where it computes.
    """

    fingerprint: str
    device: torch.device

    def encode(self, slices: torch.Tensor, window: tuple[float, float]) -> torch.Tensor:
        """Slices [S, H, W] of a volume with that intensity window -> embeddings [S, C, h, w] on ``device``."""
        ...

    def decode(
        self,
        embeddings: torch.Tensor,
        boxes: torch.Tensor | None,
        points: torch.Tensor | None,
        point_labels: torch.Tensor | None,
        shape: tuple[int, int],
    ) -> torch.Tensor:
        """One prompt an embedding -> logits [S, K, H, W] of K answers to it, on ``device``; K may be 1."""
        ...


class SAMSegmenter:
    """A SAM of :func:`smml.sam.load_sam` as a :class:`Segmenter`.

    Its weights are hashed once, when this is made: do not train it afterwards.

    Args:
        sam: a ``segment_anything.modeling.Sam``.
        multimask: answer with SAM's three masks for ambiguous prompts, as a box round a rim and the core in it is one;
            else with its one mask for clear prompts. None: three if they were trained (``sam.answers_three``).
        encode_batch: slices that are encoded at a time.
        decode_batch: prompts that are answered at a time.
    """

    def __init__(
        self, sam: nn.Module, *, multimask: bool | None = None, encode_batch: int = 8, decode_batch: int = 64
    ) -> None:
        self.sam = sam
        self.multimask = getattr(sam, "answers_three", True) if multimask is None else multimask
        self.encode_batch, self.decode_batch = encode_batch, decode_batch
        self.fingerprint = weights_fingerprint(sam)

    @property
    def device(self) -> torch.device:
        return self.sam.device

    def encode(self, slices: torch.Tensor, window: tuple[float, float]) -> torch.Tensor:
        return encode(self.sam, slices, window=window, batch=self.encode_batch)

    def decode(
        self,
        embeddings: torch.Tensor,
        boxes: torch.Tensor | None,
        points: torch.Tensor | None,
        point_labels: torch.Tensor | None,
        shape: tuple[int, int],
    ) -> torch.Tensor:
        options = {"shape": shape, "multimask": self.multimask, "batch": self.decode_batch}
        logits = decode(self.sam, embeddings, boxes, points, point_labels, **options)
        return logits if self.multimask else logits[:, None]


def weights_fingerprint(module: nn.Module) -> str:
    """A hash of a module's parameters and buffers, by name, dtype, shape and value."""

    def parts():
        yield f"{type(module).__name__}".encode()
        for name, tensor in sorted((*module.named_parameters(), *module.named_buffers())):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            # Through float32, because numpy has no bfloat16; both SAM's and half precision fit into it.
            yield tensor.detach().float().cpu().contiguous().numpy().tobytes()

    return digest(parts())
