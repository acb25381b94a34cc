"""Segmenting beside the front: one worker thread, a cache of seen subsets, and the rule that the last wish wins.

Every wish raises a generation number. A running segmentation looks at it between windows and gives up when it is no
longer its own; what has become complete anyway goes into the cache but is not announced.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from smml.data.case import Case
from smml.data.labels import REGIONS, LabelScheme, Region
from smml.errors import InputError
from smml.evaluation.metrics import dice, hd95
from smml.failures import explain
from smml.inference import Cancelled, Contributions, Encoding, Predictor, Segmentation, contributions
from smml.modalities import Subset, subset_name
from smml.models.intervals import Volume

CACHE_BYTES = 512 * 2**20

# Seconds between two words of progress: more would only keep the browser busy.
_PROGRESS_EVERY = 0.1


class RegionScore(NamedTuple):
    """How a prediction of one region compares with the truth.

    Attributes:
        dice: overlap, 0 to 1; where the truth lacks the region it says nothing (1 or 0).
        hd95: in mm; NaN where exactly one of the two is empty.
        present: whether the truth holds the region.
        called_ml: volume of the prediction.
    """

    dice: float
    hd95: float
    present: bool
    called_ml: float

    @property
    def words(self) -> str:
        """What stands where a Dice would, because there is none to give; "" where there is."""
        if self.present:
            return "" if self.called_ml else "missed"
        return f"not there, {self.called_ml:.1f} ml called" if self.called_ml else "not there, none called"


RegionScores = dict[Region, RegionScore]


@dataclass(frozen=True, eq=False)
class Result:
    """What is kept of a segmentation, on the case's own grid.

    Attributes:
        subset: the modalities it was made from.
        scheme: names the label values, which are those of the case that was segmented.
        labels: uint8 [X, Y, Z] by source: "mean", "branch 1", "branch 2", and "refined" where there is one.
        uncertainty: float16 [X, Y, Z], disagreement of the branches; None if the predictor gives none.
        volumes: by source and region, with its interval where the predictor has some for that source.
        fitted_on: how many cases the intervals were fitted on; None if there are none.
    """

    subset: Subset
    scheme: LabelScheme
    labels: dict[str, np.ndarray]
    uncertainty: np.ndarray | None
    volumes: dict[str, dict[Region, Volume]] = field(default_factory=dict)
    fitted_on: int | None = None

    @classmethod
    def of(cls, segmentation: Segmentation) -> "Result":
        """Keep the labels and drop the probabilities, which are ten times as large."""
        student = segmentation.student or segmentation
        answers = {"refined": segmentation} if segmentation.refined else {}
        answers["mean"] = student
        if student.branch_labels is not None:
            # Intervals are of what the model answers, and not of a branch.
            for number, array in enumerate(student.branch_labels, start=1):
                answers[f"branch {number}"] = replace(student, labels=array, intervals=None)
        doubt = segmentation.uncertainty
        return cls(
            segmentation.subset,
            segmentation.scheme,
            {source: answer.labels for source, answer in answers.items()},
            None if doubt is None else doubt.astype(np.float16),
            {source: {region: answer.volume(region) for region in REGIONS} for source, answer in answers.items()},
            next((answer.intervals.cases for answer in answers.values() if answer.intervals is not None), None),
        )

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        doubt = 0 if self.uncertainty is None else self.uncertainty.nbytes
        return sum(labels.nbytes for labels in self.labels.values()) + doubt


class ResultCache:
    """Results by subset; the least recently used go when the limit is passed. The newest is always kept.

    Args:
        limit: bytes.

    Raises:
        InputError: the limit is negative.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        if limit < 0:
            raise InputError(f"cache_bytes must not be negative, found {limit}; 0 keeps only what is shown")
        self.limit = limit
        self._results: OrderedDict[Subset, Result] = OrderedDict()

    def __len__(self) -> int:
        return len(self._results)

    def __contains__(self, subset: Subset) -> bool:
        return subset in self._results

    @property
    def nbytes(self) -> int:
        """Memory of all results."""
        return sum(result.nbytes for result in self._results.values())

    def get(self, subset: Subset) -> Result | None:
        """The result of a subset, which counts as a use; None if it is not there."""
        if subset in self._results:
            self._results.move_to_end(subset)
        return self._results.get(subset)

    def put(self, result: Result) -> None:
        """Keep a result, at the cost of those not used for longest."""
        self._results[result.subset] = result
        self._results.move_to_end(result.subset)
        while len(self._results) > 1 and self.nbytes > self.limit:
            self._results.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._results.clear()


@dataclass(frozen=True)
class Event:
    """What the worker tells its listener. What is given up is not told: the wish that ended it is.

    Attributes:
        kind: "busy" (with ``message`` and ``share``), "done" (with ``result``), "scored", "contributed" (the worker has
            them), "failed" (with ``message``) or "idle" (nothing runs or waits).
        subset: that it is about.
        wished: True for the subset that was last asked for, False for one computed in the background.
        share: of the present step that is done, 0 to 1; None if unknown.
        message: for people.
        result: the segmentation.
    """

    kind: Literal["busy", "done", "scored", "contributed", "failed", "idle"]
    subset: Subset = ()
    wished: bool = True
    share: float | None = None
    message: str = ""
    result: Result | None = None


@dataclass(frozen=True)
class _Job:
    generation: int
    kind: Literal["wish", "score", "contributions", "rest"]
    subset: Subset
    source: str = ""
    # What to score: the cache may have let it go meanwhile.
    result: Result | None = None

    @property
    def wished(self) -> bool:
        return self.kind == "wish"


def score(result: Result, source: str, case: Case, *, between: Callable[[], None] | None = None) -> RegionScores:
    """WT, TC and ET against the case's truth.

    Args:
        result: of a segmentation of the case.
        source: which of its labels.
        case: with a label.
        between: called before every region; what it raises ends the work.
    """
    scores: RegionScores = {}
    voxel_ml = float(np.prod(case.spacing)) / 1000
    for region in REGIONS:
        if between is not None:
            between()
        found, wanted = result.scheme.region(result.labels[source], region), case.scheme.region(case.label, region)
        scores[region] = RegionScore(
            dice(found, wanted), hd95(found, wanted, case.spacing), bool(wanted.any()), float(found.sum()) * voxel_ml
        )
    return scores


class Worker:
    """Segments one case on a thread of its own.

    ``contributions`` holds what each sequence of the case contributed, once that was asked for and computed.

    Args:
        case: what to segment.
        predictor: with ``encode`` and ``segment``.
        listener: called with every :class:`Event`, on the worker's thread and without any lock held.
        cache_bytes: limit of the cache of results.
    """

    def __init__(
        self,
        case: Case,
        predictor: Predictor,
        listener: Callable[[Event], None],
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.cache = ResultCache(cache_bytes)
        # By (subset, source); small, so they outlive results that the cache let go.
        self.scores: dict[tuple[Subset, str], RegionScores] = {}
        self.contributions: Contributions | None = None
        self._case, self._predictor, self._listener = case, predictor, listener
        self._encoding: Encoding | None = None
        self._state = threading.Condition()
        self._generation, self._closed = 0, False
        self._wish: _Job | None = None
        self._to_score: deque[_Job] = deque()
        self._contributions_wanted = False
        self._rest: deque[Subset] = deque()
        self._running: _Job | None = None
        self._thread = threading.Thread(target=self._work, name="smml-viewer", daemon=True)
        self._thread.start()

    def request(self, subset: Subset) -> Result | None:
        """Wish for a subset; every earlier wish is void from here on.

        Returns:
            The result if it is in the cache, else None: it will be announced as "done".
        """
        with self._state:
            seen = self.cache.get(subset)
            running = self._running
            if running is not None and self._valid(running):
                if seen is None and running.wished and running.subset == subset:
                    # Already under way: it need not begin again.
                    self._wish = None
                    return None
                if running.kind == "rest":
                    # Interrupted, not cancelled: it is taken up again.
                    self._rest.appendleft(running.subset)
                elif running.kind == "contributions":
                    self._contributions_wanted = True
            self._generation += 1
            self._wish = None if seen is not None else _Job(self._generation, "wish", subset)
            self._state.notify_all()
            return seen

    def request_scores(self, result: Result, source: str) -> None:
        """Score one source of a result against the truth, announced as "scored"; nothing happens without a truth."""
        with self._state:
            if self._case.label is not None and (result.subset, source) not in self.scores:
                self._to_score.append(_Job(self._generation, "score", result.subset, source, result))
                self._state.notify_all()

    def request_contributions(self) -> None:
        """Find what each sequence of the case contributed, behind what is wished for; announced as "contributed"."""
        with self._state:
            running = self._running is not None and self._running.kind == "contributions" and self._valid(self._running)
            if self.contributions is None and not running:
                self._contributions_wanted = True
                self._state.notify_all()

    def request_rest(self, subsets: Iterable[Subset]) -> None:
        """Segment and score these too, whenever nothing else is wished for."""
        with self._state:
            self._rest = deque(subsets)
            self._state.notify_all()

    def cancel(self) -> None:
        """Give up what runs and what waits; what was computed stays."""
        with self._state:
            self._generation += 1
            self._wish = None
            self._contributions_wanted = False
            self._rest.clear()
            self._to_score.clear()
            self._state.notify_all()

    @property
    def busy(self) -> bool:
        """True while anything runs or waits."""
        with self._state:
            return self._is_busy()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs or waits; False if ``timeout`` seconds were not enough."""
        with self._state:
            return self._state.wait_for(lambda: not self._is_busy(), timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Stop the thread and let go of case, encoding and results. May be called twice."""
        self.cancel()
        with self._state:
            self._closed = True
            self._state.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)
        with self._state:
            self.cache.clear()
            self.scores.clear()
            self.contributions = None
            # Nothing asks for them from here on.
            self._case = self._predictor = self._encoding = self._listener = None  # type: ignore[assignment]

    def _is_busy(self) -> bool:
        return not self._closed and (
            self._running is not None
            or self._wish is not None
            or self._contributions_wanted
            or bool(self._to_score)
            or bool(self._rest)
        )

    def _valid(self, job: _Job) -> bool:
        return not self._closed and job.generation == self._generation

    def _next(self) -> _Job | None:
        """The most urgent job, None to end; called with the lock held."""
        while not self._closed:
            if self._wish is not None:
                job, self._wish = self._wish, None
                return job
            if self._to_score:
                return replace(self._to_score.popleft(), generation=self._generation)
            if self._contributions_wanted:
                self._contributions_wanted = False
                return _Job(self._generation, "contributions", self._case.modalities)
            if self._rest:
                return _Job(self._generation, "rest", self._rest.popleft())
            self._state.notify_all()
            self._state.wait()
        return None

    def _work(self) -> None:
        while True:
            with self._state:
                self._running = None
                job = self._next()
                if job is None:
                    return
                self._running = job
            try:
                self._do(job)
            except Cancelled:
                pass
            # Whatever a model or a full memory brings up belongs on screen; the worker must live on.
            except Exception as error:
                logging.getLogger(__name__).debug("segmentation failed", exc_info=True)
                message = explain(error) or f"{type(error).__name__}: {error}"
                if self._current(job):
                    self._tell(Event("failed", job.subset, job.wished, message=message))
            with self._state:
                self._running = None
                idle = not self._is_busy()
                self._state.notify_all()
            if idle:
                self._tell(Event("idle"))

    def _do(self, job: _Job) -> None:
        if job.kind == "contributions":
            self._contribute(job)
            return
        if job.kind == "score":
            if job.result is not None and job.source in job.result.labels:
                self._score(job, job.result, job.source)
            return
        result = self.cache.get(job.subset)
        if result is None:
            if job.kind == "rest" and any(subset == job.subset for subset, _ in self.scores):
                return
            result = self._segment(job)
            with self._state:
                if not self._closed:
                    self.cache.put(result)
        # The listener compares the subset once more: between here and there another may be wished for.
        if self._current(job):
            self._tell(Event("done", job.subset, job.wished, result=result))
        if self._case.label is not None:
            self._score(job, result, next(iter(result.labels)))

    def _segment(self, job: _Job) -> Result:
        encoding = self._encoded(job)
        step = self._begin(job, f"segmenting from {subset_name(job.subset)}")
        return Result.of(self._predictor.segment(encoding, job.subset, **step))

    def _contribute(self, job: _Job) -> None:
        if self.contributions is not None:
            # They became complete although a wish had come in between.
            return
        encoding = self._encoded(job)
        step = self._begin(job, f"what each of {subset_name(job.subset, ', ')} contributed, over all subsets")
        found = contributions(self._predictor, encoding, **step)
        with self._state:
            if self._closed:
                return
            self.contributions = found
        self._tell(Event("contributed", job.subset, job.wished))

    def _encoded(self, job: _Job) -> Encoding:
        """The case's encoding, which is made once."""
        self._stop_if_given_up(job)
        if self._encoding is None:
            step = self._begin(job, "encoding the sequences, once")
            self._encoding = self._predictor.encode(self._case, **step)
        return self._encoding

    def _begin(self, job: _Job, step: str) -> dict[str, Any]:
        """Announce a step of a job; the options with which it can be given up, and tells how far it is."""
        self._tell(Event("busy", job.subset, job.wished, share=0.0, message=step))
        spoken = time.monotonic()

        def tell(done: int, number: int) -> None:
            nonlocal spoken
            # Not too often.
            now = time.monotonic()
            if now - spoken >= _PROGRESS_EVERY and self._current(job):
                spoken = now
                self._tell(Event("busy", job.subset, job.wished, share=done / number, message=step))

        return {"cancelled": lambda: not self._current(job), "progress": tell}

    def _score(self, job: _Job, result: Result, source: str) -> None:
        if (job.subset, source) in self.scores:
            return
        scores = score(result, source, self._case, between=lambda: self._stop_if_given_up(job))
        with self._state:
            if self._closed:
                return
            self.scores[job.subset, source] = scores
        self._tell(Event("scored", job.subset, job.wished))

    def _current(self, job: _Job) -> bool:
        with self._state:
            return self._valid(job)

    def _stop_if_given_up(self, job: _Job) -> None:
        if not self._current(job):
            raise Cancelled

    def _tell(self, event: Event) -> None:
        listener = self._listener
        if listener is not None and not self._closed:
            listener(event)
