"""Loader processes: what goes wrong in one is told as if there were none, and limits of the machine in one sentence."""

import resource

import pytest
import torch
from torch.utils.data import Dataset

from smml.errors import InputError, MissingPackage
from smml.training.loading import load_batches


class Samples(Dataset):
    """Sample i is i, and sample 3 an error."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index == 3 and self.error is not None:
            raise self.error
        return {"image": torch.full((2,), float(index))}


class TwoWords(Exception):
    """Cannot be built again from its text alone, as pickle tries to."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


BATCHES = [range(0, 2), range(2, 4)]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_come_in_their_order_and_stacked(workers):
    found = [batch["image"][:, 0].tolist() for batch in load_batches(Samples(), BATCHES, workers=workers)]
    assert found == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    "error",
    [
        InputError("flair.nii.gz: damaged"),
        MissingPackage("x.mha: needs SimpleITK", extra="mha"),
        OSError(5, "Input/output error", "flair.nii.gz"),
        MemoryError("Unable to allocate 1 TiB"),
    ],
)
def test_what_a_sample_raises_arrives_as_it_was(error):
    with pytest.raises(type(error)) as raised:
        list(load_batches(Samples(error), BATCHES, workers=1))
    assert type(raised.value) is type(error)
    assert str(raised.value) == str(error)
    assert getattr(raised.value, "errno", None) == getattr(error, "errno", None)


def test_an_error_that_cannot_be_sent_arrives_in_words_with_the_place_where_it_happened():
    with pytest.raises(RuntimeError, match="TwoWords: odd thing") as raised:
        list(load_batches(Samples(TwoWords("odd", "thing")), BATCHES, workers=1))
    assert "raise self.error" in raised.value.__notes__[0]


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)", "--shm-size"),
        ("unable to open shared memory object </torch_1_2> in read-write mode: Too many open files (24)", "ulimit -n"),
        ("received 0 items of ancdata", "ulimit -n"),
        (
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit.",
            "--shm-size",
        ),
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "--cache"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "--cache"),
    ],
)
def test_what_loader_processes_lack_is_one_sentence_with_the_remedy(said, remedy):
    with pytest.raises(InputError, match="--workers 1") as raised:
        list(load_batches(Samples(RuntimeError(said)), BATCHES, workers=1))
    assert remedy in str(raised.value)
    assert "\n" not in str(raised.value)


def test_too_few_file_handles_are_told_before_a_process_starts_and_a_low_limit_is_raised(monkeypatch):
    asked = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 8192))
    assert len(list(load_batches(Samples(), BATCHES, workers=1))) == 2
    assert asked[0][0] > 20
    assert asked[0][1] == 8192
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 30))
    with pytest.raises(InputError, match=r"--workers 1: needs about .* open files, and 30 are allowed.*`ulimit -n"):
        next(load_batches(Samples(), BATCHES, workers=1))


def test_a_machine_without_shared_memory_for_locks_is_told(monkeypatch):
    class Nowhere:
        def Lock(self):
            raise OSError(30, "Read-only file system")

    monkeypatch.setattr(torch.multiprocessing, "get_context", lambda: Nowhere())
    with pytest.raises(InputError, match=r"Read-only file system.*--workers 0"):
        next(load_batches(Samples(), BATCHES, workers=1))
