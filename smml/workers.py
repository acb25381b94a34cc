"""Independent pieces of work in several processes, whatever script or notebook asks for them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from joblib import Parallel, delayed, parallel_config


def in_processes(work: Callable[..., Any], jobs: Sequence[tuple], workers: int) -> Iterator[Any]:
    """``work(*job)`` for every job, several at a time, each in a process with one thread.

    Fresh processes, as a fork would copy threads that PyTorch has begun already; and joblib's rather than the standard
    library's, as those run the caller's script again and so fail in one without ``if __name__ == "__main__"``.

    Args:
        work: a function of a module; what it takes and gives back goes through pickle. One of a script must not call a
            cached function (``functools.cache``) of that script, which another process does not find.
        jobs: its arguments, job by job.
        workers: processes at most.

    Yields:
        What each job gave back, as soon as it is done: not in the jobs' order.

    Raises:
        Exception: what a job raised, with the traceback of its process; jobs not yet begun are dropped.
    """
    with parallel_config(backend="loky", inner_max_num_threads=1):
        yield from Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)(
            delayed(work)(*job) for job in jobs
        )
