"""Batches from loader processes, and what goes wrong in them as if it had gone wrong here."""

import os
import resource
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from smml.errors import InputError
from smml.failures import explain, portable

# File handles of a loader's process: its pipes, and those of the tensors of two batches that wait.
_HANDLES_A_WORKER = 24
_HANDLES_TO_SPARE = 64

Batch = dict[str, torch.Tensor]


def load_batches(
    dataset: Dataset[Batch], batches: Sequence[Sequence[int]], *, workers: int = 0, pin_memory: bool = False
) -> Iterator[Batch]:
    """Load samples and stack them.

    Args:
        dataset: of samples.
        batches: the indices of each batch.
        workers: processes that load; 0 loads in this one.
        pin_memory: for a GPU.

    Yields:
        The batches in their order, as ``default_collate`` stacks them.

    Raises:
        InputError: the machine lacks what loader processes need, or one was ended by the system.
        Exception: what loading a sample raised, of the class that it had in the loader's process.
    """
    if workers:
        _check_machine(workers)
    loader = DataLoader(
        _Guarded(dataset),
        batch_sampler=batches,  # type: ignore[arg-type]  # any sequences of indices do
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        # A generator of its own: by default each new loader draws a seed from the global one, and a resumed run, which
        # makes one loader more, would then see other dropout masks.
        generator=torch.Generator(),
    )
    try:
        for batch in loader:
            if isinstance(batch, _Failure):
                raise batch.error
            yield batch
    except (OSError, RuntimeError) as error:
        # One that names a file is about a sample, not about the processes.
        said = explain(error) if workers and getattr(error, "filename", None) is None else None
        if said is None:
            raise
        raise InputError(f"--workers {workers}: {said}") from error


def _check_machine(workers: int) -> None:
    """Make sure that processes can be started and talk: later, their own threads would print what they lack.

    Raises:
        InputError: they cannot.
    """
    needed = len(os.listdir("/dev/fd")) + _HANDLES_TO_SPARE + _HANDLES_A_WORKER * workers
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        if most != resource.RLIM_INFINITY and most < needed:
            raise InputError(
                f"--workers {workers}: needs about {needed} open files, and {most} are allowed; allow more with "
                "`ulimit -n 8192`, or use fewer workers (0 needs none)"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))
    try:
        torch.multiprocessing.get_context().Lock()
    except OSError as error:
        raise InputError(
            f"--workers {workers}: processes that load data cannot be started here, for want of shared memory "
            f"({error.strerror}); make /dev/shm writable, or use --workers 0"
        ) from error


@dataclass(frozen=True)
class _Failure:
    """What takes the place of a sample or batch. torch's own way rewrites an error as a traceback of another class."""

    error: BaseException


class _Guarded(Dataset):
    """A data set whose samples may be failures."""

    def __init__(self, dataset: Dataset[Batch]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Batch | _Failure:
        try:
            return self.dataset[index]
        # Whatever it is, it is raised again where somebody can be told.
        except Exception as error:
            return _failure(error)


def _collate(samples: list[Batch | _Failure]) -> Batch | _Failure:
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
    try:
        return default_collate(samples)
    # Here the memory is asked for that processes share.
    except Exception as error:
        return _failure(error)


def _failure(error: Exception) -> _Failure:
    """What is sent of an error; a fault of the program takes along where it happened."""
    if get_worker_info() is None:
        return _Failure(error)
    sent = portable(error)
    if explain(error) is None:
        sent.add_note(f"In a loader's process:\n{''.join(traceback.format_exception(error))}")
    return _Failure(sent)
