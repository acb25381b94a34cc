"""The worker: the last wish wins, nothing is computed twice, and it can be stopped at any time."""

import threading
import time
import weakref

import numpy as np
import pytest
from viewer_phantom import FakePredictor, phantom

from smml.data.labels import BRATS_2023
from smml.errors import InputError
from smml.evaluation import hd95
from smml.modalities import SUBSETS
from smml.viewer.worker import Result, ResultCache, Worker

SHORT = 10.0


@pytest.fixture
def start():
    """Make workers that end with the test."""
    made = []

    def make(predictor, case=None, **options):
        events = []
        worker = Worker(case or phantom(), predictor, events.append, **options)
        made.append(worker)
        return worker, events

    yield make
    for worker in made:
        worker.close()


def done(events):
    return [event.subset for event in events if event.kind == "done"]


def test_a_wish_is_answered_and_the_second_time_at_once(start):
    predictor = FakePredictor()
    worker, events = start(predictor)
    assert worker.request(("t2",)) is None
    assert worker.wait(SHORT)
    assert done(events) == [("t2",)]
    again = worker.request(("t2",))
    assert again is events[[e.kind for e in events].index("done")].result
    worker.wait(SHORT)
    assert predictor.calls == [("t2",)]
    assert len(predictor.encodings) == 1
    assert set(again.labels) == {"mean", "branch 1", "branch 2"}


def test_toggling_quickly_ends_on_the_last_wish_and_announces_no_other(start):
    predictor = FakePredictor(held=True)
    worker, events = start(predictor)
    for number, subset in enumerate(SUBSETS):
        worker.request(subset)
        if number % 3 == 0:
            # Some of them are already running when the next wish comes.
            predictor.begun.wait(SHORT)
            predictor.begun.clear()
    predictor.gate.set()
    assert worker.wait(SHORT)
    assert done(events) == [SUBSETS[-1]]


def test_a_result_that_comes_too_late_is_kept_but_not_announced(start):
    class Deaf(FakePredictor):
        """Does not look at ``cancelled``, like a model with a single window."""

        def segment(self, encoding, subset, **options):
            return super().segment(encoding, subset, **{**options, "cancelled": lambda: False})

    predictor = Deaf(held=True)
    worker, events = start(predictor)
    worker.request(("t1",))
    predictor.begun.wait(SHORT)
    worker.request(("t2",))
    predictor.gate.set()
    assert worker.wait(SHORT)
    assert done(events) == [("t2",)]
    assert worker.request(("t1",)).subset == ("t1",)


def test_asking_again_for_what_runs_does_not_begin_again(start):
    predictor = FakePredictor(held=True)
    worker, events = start(predictor)
    worker.request(("t1",))
    predictor.begun.wait(SHORT)
    worker.request(("t1",))
    predictor.gate.set()
    assert worker.wait(SHORT)
    assert predictor.calls == [("t1",)]
    assert done(events) == [("t1",)]


def test_a_running_segmentation_is_cancelled_and_the_worker_lives_on(start):
    predictor = FakePredictor(held=True)
    worker, events = start(predictor)
    worker.request(("t1",))
    predictor.begun.wait(SHORT)
    worker.cancel()
    assert worker.wait(SHORT)
    assert done(events) == []
    assert predictor.given_up == [("t1",)]
    assert {event.kind for event in events} <= {"busy", "idle"}, "nothing failed, and nothing was done"
    predictor.gate.set()
    worker.request(("t1",))
    assert worker.wait(SHORT)
    assert done(events) == [("t1",)]


def test_the_rest_is_computed_behind_a_wish_and_taken_up_again(start):
    predictor = FakePredictor(held=True)
    worker, events = start(predictor)
    worker.request_rest(SUBSETS)
    predictor.begun.wait(SHORT)
    worker.request(SUBSETS[7])
    predictor.gate.set()
    assert worker.wait(SHORT)
    assert predictor.calls[:2] == [SUBSETS[0], SUBSETS[7]], "the wish did not wait for the rest"
    assert {subset for subset, _ in worker.scores} == set(SUBSETS), "what was interrupted came back"
    assert [event.subset for event in events if event.kind == "done" and event.wished] == [SUBSETS[7]]


def test_scores_compare_with_the_truth_and_outlive_the_cache(start):
    case, predictor = phantom(), FakePredictor()
    worker, _ = start(predictor, case, cache_bytes=0)
    worker.request_rest(SUBSETS)
    assert worker.wait(SHORT)
    assert len(worker.cache) == 1
    assert len(worker.scores) == len(SUBSETS)
    labels = FakePredictor.says(case, ("flair",))
    found, truth = labels == 3, case.label == 3
    expected = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    score = worker.scores[("flair",), "mean"]["ET"]
    assert score.dice == pytest.approx(expected, abs=1e-6)
    assert score.hd95 == hd95(found, truth, case.spacing) > 10, "one voxel of a few, far away, in mm"
    assert score.present
    assert score.called_ml == pytest.approx(found.sum() * np.prod(case.spacing) / 1000)


def test_without_a_truth_nothing_is_scored(start):
    worker, _ = start(FakePredictor(), phantom(label=False))
    worker.request(("t1",))
    assert worker.wait(SHORT)
    worker.request_scores(worker.cache.get(("t1",)), "mean")
    assert worker.wait(SHORT)
    assert worker.scores == {}


def test_a_failure_is_told_and_the_worker_lives_on(start):
    predictor = FakePredictor()
    predictor.fails = MemoryError("no room")
    worker, events = start(predictor)
    worker.request(("t1",))
    assert worker.wait(SHORT)
    (told,) = [event.message for event in events if event.kind == "failed"]
    assert told.startswith("too little memory (no room): ")
    predictor.fails = None
    worker.request(("t1",))
    assert worker.wait(SHORT)
    assert done(events) == [("t1",)]


def test_progress_rises_and_names_what_is_done(start, monkeypatch):
    monkeypatch.setattr("smml.viewer.worker._PROGRESS_EVERY", 0.0)
    worker, events = start(FakePredictor(steps=4))
    worker.request(("t1", "t2"))
    assert worker.wait(SHORT)
    told = [(event.message, event.share) for event in events if event.kind == "busy"]
    assert told[0] == ("encoding the sequences, once", 0.0)
    assert [share for message, share in told if message == "segmenting from T1+T2"] == [0, 0.25, 0.5, 0.75, 1]


def test_closing_ends_the_thread_and_frees_case_and_results():
    case, predictor = phantom(), FakePredictor(held=True)
    worker = Worker(case, predictor, lambda event: None)
    worker.request(("t1",))
    predictor.begun.wait(SHORT)
    held = weakref.ref(case)
    worker.close()
    worker.close()
    del case
    assert held() is None
    assert all(thread.name != "smml-viewer" for thread in threading.enumerate())


def test_two_workers_do_not_disturb_each_other(start):
    slow, fast = FakePredictor(held=True), FakePredictor()
    (first, _), (second, events) = start(slow), start(fast)
    first.request(("t1",))
    slow.begun.wait(SHORT)
    began = time.monotonic()
    second.request(("t2",))
    assert second.wait(SHORT)
    assert time.monotonic() - began < SHORT / 2
    assert done(events) == [("t2",)]
    assert first.busy


def test_the_cache_forgets_what_was_not_used_for_longest():
    def result(name):
        return Result((name,), BRATS_2023, {"mean": np.zeros(100, np.uint8)}, np.zeros(100, np.float16))

    cache = ResultCache(700)
    for name in ("flair", "t1"):
        cache.put(result(name))
    assert cache.nbytes == 600
    cache.get(("flair",))
    cache.put(result("t2"))
    assert ("t1",) not in cache
    assert ("flair",) in cache
    assert ("t2",) in cache
    tiny = ResultCache(0)
    tiny.put(result("t1"))
    assert len(tiny) == 1, "what is on screen must be there"
    with pytest.raises(InputError, match="cache_bytes"):
        ResultCache(-1)
