"""SAMPrior: what SAM makes, in each sequence, of the places where a branch sees a tumour (docs/METHOD.md).

The branch's own coarse prediction is turned into prompts, slice by slice and region by region; SAM is shown the slice
of each available sequence with these prompts; its masks, as probabilities, form a volume per sequence and region. The
truth has no part in it and cannot have: there is no argument for it. The prompts are the same for all sequences,
the answers are not, and which of them to trust is for the gate of the refinement network to find out.

SAM has three answers to a prompt that can be understood in several ways, and a box can: that of a rim is that of the
core inside it. The branch knows which of them it asked for, so the answer that fits its prediction best is taken.
"""

from collections.abc import Sequence
from typing import cast

import torch

from smml.data.labels import REGIONS, Region, scheme_for_classes
from smml.errors import InputError
from smml.sam.cache import EmbeddingCache, embedding_key
from smml.sam.calls import answer, encode
from smml.sam.prompts import PromptRules, Prompts, coarse_prompts
from smml.sam.slices import SquareFit, intensity_window
from smml.sam.torchvision_gap import Sam
from smml.tensors import weights_fingerprint

# The axis of [X, Y, Z] that a slice of each plane fixes.
PLANES: dict[str, int] = {"sagittal": 0, "coronal": 1, "axial": 2}

# Slices whose embeddings are held at a time. It bounds the memory without a cache; the official SAMs take 4 MB a slice.
_CHUNK = 32


class SAMPrior:
    """Prior volumes from a frozen SAM, the available sequences and a coarse prediction.

    Args:
        sam: of :func:`smml.sam.load_sam`. Its weights are hashed once, when this is made: do not train it afterwards.
        planes: which slices SAM sees: "axial", "coronal", "sagittal"; with several, their priors are averaged, and a
            slice without a prompt counts as 0 there.
        regions: the R regions, in the order of the result.
        rules: how a prediction becomes prompts.
        cache: of embeddings; None makes one in memory. ``EmbeddingCache(0)`` keeps nothing, which is right for
            training on random crops, where no slice comes twice.

    Raises:
        InputError: unknown planes or regions.
    """

    def __init__(
        self,
        sam: Sam,
        *,
        planes: Sequence[str] = ("axial",),
        regions: Sequence[Region] = REGIONS,
        rules: PromptRules | None = None,
        cache: EmbeddingCache | None = None,
    ) -> None:
        planes, regions = tuple(planes), tuple(regions)
        for name, given, known in (("planes", planes, PLANES), ("regions", regions, REGIONS)):
            if not given or set(given) - set(known) or len(set(given)) < len(given):
                raise InputError(f"{name} must be different ones of {', '.join(known)}, found {given!r}")
        self.sam, self.fingerprint = sam, weights_fingerprint(sam)
        self.planes, self.regions = planes, regions
        self.rules = rules or PromptRules()
        self.cache = EmbeddingCache() if cache is None else cache

    @torch.no_grad()
    def __call__(self, image: torch.Tensor, probabilities: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The priors of a batch.

        Args:
            image: float [B, M, X, Y, Z], of any scale, background exactly 0. Voxels of a modality that is not in the
                mask are never read: they may be NaN.
            probabilities: the branch's coarse prediction, softmax of its logits, [B, K, X, Y, Z] on the same grid; they
                are detached here.
            mask: bool [B, M], the modalities that the branch was given.

        Returns:
            float32 [B, M, R, X, Y, Z] in [0, 1] on the image's device: the largest probability among SAM's masks for
            the components of that slice, the one of :func:`best_answers` for each; exactly 0 for missing modalities and
            in slices without a prompt. Whether embeddings come from the cache changes no more than the rounding of
            another batch size would.

        Raises:
            InputError: shapes that do not fit, logits in place of probabilities, or a voxel of an available modality
                that is not finite.
        """
        self._check(image, probabilities, mask)
        classes = [list(scheme_for_classes(probabilities.shape[1]).regions[region]) for region in self.regions]
        result = torch.zeros(*mask.shape, len(self.regions), *image.shape[2:], device=image.device)
        # Half precision would give other embeddings under the same key.
        with torch.autocast(self.sam.device.type, enabled=False):
            for b, available in enumerate(mask.tolist()):
                of_class = probabilities[b].detach().float().cpu()
                of_region = torch.stack([of_class[members].sum(dim=0) for members in classes])
                for axis in (1 + PLANES[name] for name in self.planes):
                    coarse = of_region.movedim(axis, 1)
                    by_region = [coarse_prompts(probability, self.rules) for probability in coarse]
                    # The prompts of all regions in one row, so that a slice is encoded once and SAM answers full
                    # batches.
                    prompts = Prompts.concatenate(by_region)
                    region = torch.arange(len(by_region)).repeat_interleave(torch.tensor([len(p) for p in by_region]))
                    for m in torch.tensor(available).nonzero()[:, 0].tolist() if len(prompts) else ():
                        # A view of the result: what is added there is added to it.
                        view = result[b, m].movedim(axis, 1)
                        view += self._ask(image[b, m].movedim(axis - 1, 0), coarse, prompts, region)
        return result.div_(len(self.planes)).clamp_(0, 1)

    def _ask(self, volume: torch.Tensor, coarse: torch.Tensor, prompts: Prompts, region: torch.Tensor) -> torch.Tensor:
        """SAM's answers in the slices of one modality, [S, H, W], by region, [R, S, H, W], as is ``coarse``.

        Args:
            region: of each prompt, its number [N].
        """
        slices, boxes = prompts.slices, prompts.boxes
        # coarse_prompts fills all fields.
        assert slices is not None
        assert boxes is not None
        fit, window = SquareFit.of(self.sam, volume.shape[1:]), intensity_window(volume)
        seen = torch.zeros(coarse.shape, device=volume.device)
        for chunk in slices.unique().split(_CHUNK):
            embeddings = self._embeddings(volume[chunk.to(volume.device)], window)
            for rows in torch.isin(slices, chunk).nonzero()[:, 0].split(2 * _CHUNK):
                regions, numbers = region[rows], slices[rows]
                places = torch.searchsorted(chunk, numbers)
                logits, _ = answer(self.sam, embeddings[places.to(embeddings.device)], prompts[rows], fit)
                wanted = coarse[regions, numbers].to(logits.device)
                best = best_answers(logits.float().sigmoid(), wanted, boxes[rows]).to(seen.device)
                for r, s, mask in zip(regions.tolist(), numbers.tolist(), best, strict=True):
                    torch.maximum(seen[r, s], mask, out=seen[r, s])
        return seen

    def _embeddings(self, slices: torch.Tensor, window: tuple[float, float]) -> torch.Tensor:
        """Embeddings [S, C, h, w] of slices [S, H, W], from the cache or computed."""
        if not self.cache.active:
            return encode(self.sam, slices, window=window)
        keys = [embedding_key(self.fingerprint, slice_, window) for slice_ in slices.cpu()]
        found = [self.cache.get(key, self.sam.device) for key in keys]
        unknown = [index for index, embedding in enumerate(found) if embedding is None]
        if unknown:
            for index, embedding in zip(unknown, encode(self.sam, slices[unknown], window=window), strict=True):
                self.cache.put(keys[index], embedding)
                found[index] = embedding
        # None of them is None any more.
        return torch.stack(cast(list[torch.Tensor], found))

    def _check(self, image: torch.Tensor, probabilities: torch.Tensor, mask: torch.Tensor) -> None:
        if image.ndim != 5 or mask.dtype != torch.bool or mask.shape != image.shape[:2]:
            raise InputError(
                f"image must be [B, M, X, Y, Z] and mask bool [B, M], found {list(image.shape)} and {mask.dtype} "
                f"{list(mask.shape)}"
            )
        if probabilities.ndim != 5 or probabilities.shape[:1] + probabilities.shape[2:] != (
            image.shape[:1] + image.shape[2:]
        ):
            raise InputError(
                f"probabilities must be [B, K, X, Y, Z] on the grid of the image {list(image.shape)}, found "
                f"{list(probabilities.shape)}"
            )
        lowest, highest = probabilities.detach().aminmax()
        # A NaN fails this comparison too.
        if not (float(lowest) >= -1e-3 and float(highest) <= 1.001):
            raise InputError(
                f"probabilities must lie in [0, 1], found {float(lowest):g} to {float(highest):g}; give the softmax of "
                "the logits"
            )


def best_answers(answers: torch.Tensor, coarse: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Of K answers to each prompt the one with the highest soft IoU, sum of minima over sum of maxima, with the coarse
    prediction inside the prompt's box (s* of docs/EQUATIONS.md); the first of equals.

    Args:
        answers: in [0, 1], [P, K, H, W].
        coarse: the region's probability in the prompt's slice, [P, H, W], on the same device.
        boxes: of the prompts, half-open (top, left, bottom, right) in voxels, [P, 4].

    Returns:
        [P, H, W].
    """
    if answers.shape[1] == 1:
        return answers[:, 0]
    rows, columns = (torch.arange(length, device=coarse.device) + 0.5 for length in coarse.shape[1:])
    top, left, bottom, right = boxes.to(coarse).T[:, :, None]
    inside = ((rows > top) & (rows < bottom))[:, :, None] & ((columns > left) & (columns < right))[:, None, :]
    # Another piece of the region has a prompt of its own.
    wanted = (coarse * inside)[:, None]
    overlap = torch.minimum(answers, wanted).sum(dim=(2, 3))
    union = torch.maximum(answers, wanted).sum(dim=(2, 3))
    best = (overlap / union.clamp(min=1e-6)).argmax(dim=1)
    return answers[torch.arange(len(answers), device=answers.device), best]
