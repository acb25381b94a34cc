"""Limits of a machine become one sentence each; a fault of the program stays one."""

import errno
import os
import pickle

import numpy as np
import pytest
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError

from smml.errors import InputError, MissingPackage, one_line
from smml.failures import explain, portable


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028", "\x1b[2J", "\udcff"])
def test_what_the_user_gave_cannot_break_the_sentence(end):
    assert (explain(FileNotFoundError(errno.ENOENT, "No such file", f"case{end}7")) or "").isprintable()
    said = str(pickle.loads(pickle.dumps(InputError(f"case{end}7 (T1, 3 mm³): no such case"))))
    assert said.isprintable()
    assert said.splitlines() == [said]
    assert one_line(said) == said  # twice is once
    assert said.startswith("case\\")
    assert said.endswith("7 (T1, 3 mm³): no such case")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InputError("data: no cases here"), ["data: no cases here"]),
        (OSError(errno.ENOSPC, "No space left on device", "run/log.csv"), ["run/log.csv: no space left", "free some"]),
        (OSError(errno.EMFILE, "Too many open files"), ["too many open files", "ulimit -n"]),
        (PermissionError(errno.EACCES, "Permission denied", "run"), ["run: permission denied"]),
        (OSError(errno.EIO, "Input/output error", "x.nii"), ["x.nii: Input/output error"]),
        (MemoryError(), ["too little memory", "--window"]),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                "to allocate 4 bytes. Error code 12 (Cannot allocate memory)"
            ),
            ["too little memory", "--batch-size"],
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), ["memory on the GPU"]),
        (
            TerminatedWorkerError("A worker process managed by the executor was unexpectedly terminated."),
            ["ended by the system", "memory"],
        ),
        (RuntimeError("can't start new thread"), ["no more threads", "ulimit -u"]),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 617600 vs 617488"),
            ["no space left"],
        ),
    ],
)
def test_users_and_machines_are_told_in_one_sentence(error, words):
    said = explain(error)
    assert said is not None
    assert "\n" not in said
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    "error", [KeyError("t1"), RuntimeError("shape mismatch"), OSError("of some library"), ZeroDivisionError()]
)
def test_a_fault_of_the_program_has_no_sentence(error):
    assert explain(error) is None


def test_arrays_and_tensors_that_do_not_fit_are_too_little_memory():
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**60, np.uint8)
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**60, dtype=torch.uint8)
    for raised in (of_numpy, of_torch):
        assert explain(raised.value).startswith("too little memory (")


def test_what_an_error_was_raised_from_counts_too():
    error = RuntimeError("writing failed")
    error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")
    assert explain(error).startswith("x: no space left")


def test_errors_cross_to_another_process_as_they_are():
    sent = portable(MissingPackage("x.mha: needs SimpleITK", extra="mha"))
    assert isinstance(sent, MissingPackage)
    error = MissingPackage("x.mha: needs SimpleITK", extra="mha")
    copied = error.__reduce__()[0](*error.__reduce__()[1])
    assert (str(copied), copied.extra) == (str(error), "mha")
