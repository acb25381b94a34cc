"""Where the time of evaluating a case from all its subsets goes, and what encoding once saves."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch

from smml.data.case import Case
from smml.data.preprocessing import prepare
from smml.errors import InputError
from smml.inference import Encoding, Predictor
from smml.inference.windows import blend_windows, plan_windows, windows_of
from smml.modalities import subset_mask, subsets_of
from smml.models import Student

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Profile:
    """Seconds of one case; both branches, all windows.

    Attributes:
        case: its id.
        shape: voxels of the network's input, before padding.
        windows: how many.
        subsets: how many.
        encoders: every modality's encoder and intra-modal transformer, once.
        fusion: every modality's shares once, and for each subset their sum, the rest of the fusion layers, the
            inter-modal transformer and the fusion of what it gives.
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
    prepared = prepare(case, predictor.spacing, preprocessing=predictor.preprocessing)
    masks = [subset_mask(subset) for subset in subsets_of(case.modalities)]
    shape = prepared.geometry.shape
    plan = plan_windows(shape, predictor.window, predictor.overlap)
    # A batch of windows from one subset, without the clock: what is done once, such as choosing algorithms, is no part.
    first = replace(plan, places=plan.batches[0])
    _Work(predictor, Encoding(case, prepared, first), masks[-1:]).measure()
    work = _Work(predictor, Encoding(case, prepared, plan), masks)
    return Profile(case.id, shape, len(plan.places), len(masks), **work.measure())


class _Work:
    """The three ways over one case's windows, with a clock that may be read inside them."""

    def __init__(self, predictor: Predictor, encoding: Encoding, masks: Sequence[torch.Tensor]) -> None:
        self.predictor, self.encoding, self.plan = predictor, encoding, encoding.plan
        self.image = encoding.plan.pad(encoding.prepared.image)
        self.masks = torch.stack(list(masks))

    @torch.inference_mode()
    def measure(self) -> dict[str, float]:
        ways = {"once": self.once, "skipping": self.skipping, "whole": self.whole}
        with self.predictor.autocast():
            seconds = {name: self.clock(way)[0] for name, way in ways.items()}
            return {**self.parts(), **seconds}

    def clock(self, work: Callable[[], _Result]) -> tuple[float, _Result]:
        """Seconds and result of ``work()``."""
        began = self.now()
        result = work()
        return self.now() - began, result

    def now(self) -> float:
        """Seconds, once the device has done what it was told."""
        if self.predictor.device.type == "cuda":
            torch.cuda.synchronize(self.predictor.device)
        return time.perf_counter()

    def windows(self) -> Iterator[torch.Tensor]:
        """The windows on the device, [B, M, window], a batch at a time."""
        return (window.to(self.predictor.device) for window in windows_of(self.plan, self.image))

    def once(self) -> None:
        """As the predictor does it."""
        self.predictor.blend(self.encoding, self.masks)

    def skipping(self) -> None:
        """Each subset by itself, without the encoders of what is missing."""
        self.run_each(lambda window, mask: (window, mask))

    def whole(self) -> None:
        """Each subset by itself, with every encoder and every map, zero where missing."""

        def zeroed(window: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return window * mask[:, :, None, None, None], torch.ones_like(mask)

        self.run_each(zeroed)

    def run_each(self, given: Callable) -> None:
        for mask in self.masks.to(self.predictor.device):
            blend_windows(
                self.plan, (self.both(*given(window, mask.expand(len(window), -1))) for window in self.windows())
            )

    def both(self, window: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Probabilities of both branches, [B, 2, K, window]."""
        logits = [student(window, rows).logits for student in self.predictor.model.branches]
        return torch.stack([each.float().softmax(dim=1) for each in logits], dim=1)

    def parts(self) -> dict[str, float]:
        """Encoders, fusion and decoder by themselves."""
        seconds = {"encoders": 0.0, "fusion": 0.0, "decoder": 0.0}
        for window in self.windows():
            rows = self.encoding.prepared.available.to(window.device).expand(len(window), -1)
            for student in self.predictor.model.branches:
                self.add_parts(seconds, cast(Student, student), window, rows)
        return seconds

    def add_parts(self, seconds: dict[str, float], student: Student, window: torch.Tensor, rows: torch.Tensor) -> None:
        took, encoding = self.clock(lambda: student.encode(window, rows))
        seconds["encoders"] += took
        took, shares = self.clock(lambda: student.share(encoding))
        seconds["fusion"] += took
        began = []
        handle = student.fusion_decoder.decoder.register_forward_pre_hook(lambda *_: began.append(self.now()))
        for some in self.masks.split(max(1, self.predictor.fused_together(self.plan) // len(window))):
            start = self.now()
            student.segment(shares, some)
            seconds["fusion"] += began[-1] - start
            seconds["decoder"] += self.now() - began[-1]
        handle.remove()


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
        "| part | seconds | share, % |",
        "|---|---:|---:|",
    ]
    parts = together.parts
    for name, seconds in parts.items():
        lines.append(f"| {name} | {seconds:.2f} | {100 * seconds / sum(parts.values()):.0f} |")
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
