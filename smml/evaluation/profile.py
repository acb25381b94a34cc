"""Where the time of evaluating a case from all its subsets goes, and what encoding once saves."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from smml.data.case import Case
from smml.data.preprocessing import prepare
from smml.errors import InputError
from smml.inference import Predictor
from smml.inference.network import Blend, batches
from smml.inference.windows import WindowPlan, plan_windows
from smml.modalities import Subset, subset_mask, subsets_of
from smml.models.fusion import decode_fused, fuse_shares, shares_of


@dataclass(frozen=True)
class Profile:
    """Seconds of one case; both branches, all windows.

    Attributes:
        case: its id.
        shape: voxels of the network's input, before padding.
        windows: how many.
        subsets: how many.
        encoders: every modality's encoder and intra-modal transformer, once.
        fusion: every modality's shares once, and for each subset their sum, the rest of the fusion layers and the
            inter-modal transformer.
        decoder: decoder and head, for each subset.
        once: the three above and the blending of windows, as the predictor runs them.
        skipping: a run of the network for each subset that calls the encoders of its modalities only.
        whole: a run of the network for each subset as the public code of this family does it: every encoder each time,
            on zeros where a modality is missing, and the fusion of all maps.
    """

    case: str
    shape: tuple[int, int, int]
    windows: int
    subsets: int
    encoders: float
    fusion: float
    decoder: float
    once: float
    skipping: float
    whole: float

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of encoders, fusion and decoder, and of blending, which is what ``once`` takes besides."""
        parts = {"encoders": self.encoders, "fusion": self.fusion, "decoder": self.decoder}
        # The parts were timed by themselves; on a busy machine they may add up to more.
        return {**parts, "blending": max(0.0, self.once - sum(parts.values()))}

    @property
    def against_whole(self) -> float:
        """How many times faster encoding once is than whole runs."""
        return self.whole / self.once

    @property
    def against_skipping(self) -> float:
        """How many times faster encoding once is than runs that skip missing encoders."""
        return self.skipping / self.once


def profile(predictor: Predictor, case: Case) -> Profile:
    """Time the networks on a case, from all its subsets, in three ways.

    Reading, resampling and scoring are left out: they are the same in all three, and so are the windows and how many
    of them go through the network together. The public code also computes deep supervision, which is left out here.
    Refinement takes no part.

    Args:
        predictor: runs on its own device and precision.
        case: with at least one modality.

    Returns:
        Seconds by ``time.perf_counter``, the device waited for. Every part is run once without the clock first.

    Raises:
        InputError: the case has no modality.
    """
    if not case.volumes:
        raise InputError(f"case {case.id}: no modality was read; there is nothing to time")
    prepared = prepare(case, predictor.spacing)
    plan = plan_windows(tuple(prepared.image.shape[1:]), predictor.window, predictor.overlap)
    work = _Work(predictor, plan, plan.pad(prepared.image), prepared.available, subsets_of(case.modalities))
    return Profile(case.id, tuple(prepared.image.shape[1:]), len(plan.places), len(work.masks), **work.measure())


class _Work:
    """The three ways over one case's windows, with a clock that may be read inside them."""

    def __init__(
        self,
        predictor: Predictor,
        plan: WindowPlan,
        image: torch.Tensor,
        available: torch.Tensor,
        subsets: Sequence[Subset],
    ) -> None:
        self.network, self.plan, self.image, self.available = predictor.network, plan, image, available
        self.masks = torch.stack([subset_mask(subset) for subset in subsets])
        self.classes = predictor.model.config.num_classes

    @torch.inference_mode()
    def measure(self) -> dict[str, float]:
        ways = {"once": self.once, "skipping": self.skipping, "whole": self.whole}
        for way in ways.values():
            way(limit=1)
        seconds = {name: self.clock(way)[0] for name, way in ways.items()}
        return {**self.parts(), **seconds}

    def clock(self, work: Callable) -> tuple[float, object]:
        """Seconds and result of ``work()``."""
        self.settle()
        began = time.perf_counter()
        result = work()
        self.settle()
        return time.perf_counter() - began, result

    def settle(self) -> None:
        if self.network.device.type == "cuda":
            torch.cuda.synchronize(self.network.device)

    def patches(self, limit: int | None = None) -> Iterator[tuple[tuple, torch.Tensor]]:
        """(places, patches [B, M, window]) of the first ``limit`` batches of windows, all if None."""
        for places in batches(self.plan)[:limit]:
            patches = torch.stack([self.image[(slice(None), *place)] for place in places])
            yield places, patches.to(self.network.device)

    def once(self, limit: int | None = None) -> None:
        """As the predictor does it."""
        blend = Blend(self.plan, (len(self.masks), 2, self.classes), self.network.device)
        for places, patches in self.patches(limit):
            pair = self.network.encode(patches, self.available)
            probabilities = self.network.segment(pair, self.masks)
            for number, place in enumerate(places):
                blend.add(place, probabilities[:, :, number])
        blend.mean()

    def skipping(self, limit: int | None = None) -> None:
        """Each subset by itself, without the encoders of what is missing."""
        self.run_each(limit, lambda patches, mask: (patches, mask))

    def whole(self, limit: int | None = None) -> None:
        """Each subset by itself, with every encoder and every map, zero where missing."""

        def zeroed(patches: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return patches * mask[:, :, None, None, None], torch.ones_like(mask)

        self.run_each(limit, zeroed)

    def run_each(self, limit: int | None, given: Callable) -> None:
        for mask in self.masks[:limit].to(self.network.device):
            blend = Blend(self.plan, (2, self.classes), self.network.device)
            for places, patches in self.patches(limit):
                patches, rows = given(patches, mask.expand(len(places), -1))
                for branch, student in enumerate(self.network.model.branches):
                    with self.network.autocast():
                        logits = student(patches, rows).logits
                    for place, window in zip(places, logits.float().softmax(dim=1), strict=True):
                        blend.add((branch, slice(None), *place), window)
            blend.mean()

    def parts(self) -> dict[str, float]:
        """Encoders, fusion and decoder by themselves."""
        seconds = {"encoders": 0.0, "fusion": 0.0, "decoder": 0.0}
        for places, patches in self.patches():
            rows = self.available.to(self.network.device).expand(len(places), -1)
            for student in self.network.model.branches:
                self.add_parts(seconds, student, patches, rows)
        return seconds

    def add_parts(self, seconds: dict[str, float], student, patches: torch.Tensor, rows: torch.Tensor) -> None:
        with self.network.autocast():
            took, encoding = self.clock(lambda: student.encode(patches, rows))
            seconds["encoders"] += took
            took, shares = self.clock(lambda: shares_of(student, encoding))
            seconds["fusion"] += took
            for some in self.masks.split(self.network.together(shares)):
                took, (fused, bottleneck) = self.clock(lambda some=some: fuse_shares(student, shares, some))
                seconds["fusion"] += took
                took, _ = self.clock(
                    lambda fused=fused, bottleneck=bottleneck: decode_fused(student, fused, bottleneck)
                )
                seconds["decoder"] += took


def format_profile(profiles: Sequence[Profile]) -> str:
    """The mean over cases as lines of text: seconds, shares and both ratios."""
    count = len(profiles)

    def mean(name: str) -> float:
        return sum(getattr(one, name) for one in profiles) / count

    together = Profile(
        case="mean",
        shape=profiles[0].shape,
        windows=profiles[0].windows,
        subsets=profiles[0].subsets,
        **{name: mean(name) for name in ("encoders", "fusion", "decoder", "once", "skipping", "whole")},
    )
    first = profiles[0]
    cases = f"case {first.case}" if count == 1 else f"mean of {count} cases, the first being {first.case}"
    lines = [
        f"{cases}: {' x '.join(map(str, first.shape))} voxels, {first.windows} windows, {first.subsets} subsets, "
        "both branches",
        "",
        "| part | seconds | share |",
        "|---|---:|---:|",
    ]
    parts = together.parts
    for name, seconds in parts.items():
        lines.append(f"| {name} | {seconds:.2f} | {100 * seconds / sum(parts.values()):.0f} % |")
    lines += [
        "",
        f"| way to {first.subsets} subsets | seconds | encode once is faster by |",
        "|---|---:|---:|",
        f"| encode once, then fuse and decode each subset | {together.once:.2f} | |",
        f"| a run for each subset that skips missing encoders | {together.skipping:.2f} | "
        f"{together.against_skipping:.2f} |",
        f"| a whole run for each subset, as the public code does it | {together.whole:.2f} | "
        f"{together.against_whole:.2f} |",
    ]
    return "\n".join(lines)
