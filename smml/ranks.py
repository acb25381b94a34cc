"""Several processes that compute as one: who they are, what each of them does, and how they notice that one is lost.

``torchrun`` starts the processes ("ranks") and tells each its number; without it there is one rank, which does
everything. A step's batch is shared out over the ranks, the losses add up over them (:mod:`smml_kernels`, ``group``),
and every rank takes the same optimiser step from the same gradient, so the replicas stay equal to the bit.

**Why gradients are added up here, by one all-reduce after the backward pass, and not by DistributedDataParallel's
hooks during it.** Let L be the loss of the whole batch. Rank r finds d(L)/d(its activations), exactly, and from it
g_r, the part of dL/d(parameters) that flows through its own samples; by the chain rule the sum of g_r over ranks is
dL/d(parameters). One sum therefore is the gradient, whatever the graph of a rank looks like. The hooks would compute
the same number, but

- L_rel adds moments up over ranks inside the backward pass. The hooks start all-reduces of their own there, and as soon
  as a bucket is full: a rank whose samples lack a modality finds those parameters unused at once and its bucket full
  early. Ranks would then issue different collectives at one moment, which hangs or adds up what does not belong
  together.
- With weight decay a parameter without a gradient stays as it is, and one with a gradient of 0 decays. Here a parameter
  has a gradient if any rank has one, as in one process with the whole batch; the flags travel with the gradients.

What it costs: the all-reduce does not overlap with the backward pass. These networks hold 0.2 to 82 million parameters,
little to send beside a step in 3-D.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from smml.devices import find_device
from smml.errors import InputError, LostProcess
from smml.launcher import Place, own_place

# How long the others may take over what is shared out unevenly, such as SAM's priors of a large case.
TIMEOUT_MINUTES = 30.0
# How long a rank that lost contact waits for the others to say that they are still there.
_ROLL_CALL_SECONDS = 3.0


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: number of this process, 0 to ``count - 1``.
        count: how many there are.
        device: where this process computes.
        group: of all of them, for the losses; None where there is one.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None
    _store: dist.Store | None = field(default=None, repr=False)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and talks."""
        return self.rank == 0

    def share(self, samples: range) -> range:
        """This rank's part of a batch: neighbours, and one sample more for each of the first ranks where it is uneven.

        Raises:
            InputError: there are fewer samples than ranks.
        """
        if len(samples) < self.count:
            raise InputError(
                f"a batch of {len(samples)} cannot be shared out over {self.count} processes: raise batch_size (or "
                "lower accumulate) so that each gets a sample, or start fewer processes"
            )
        size, left = divmod(len(samples), self.count)
        start = self.rank * size + min(self.rank, left)
        return samples[start : start + size + (self.rank < left)]

    def deal(self, count: int) -> range:
        """Which of ``count`` independent pieces of work are this rank's: one in turn for each rank."""
        return range(self.rank, count, self.count)

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.group is not None:
            # On the CPU: there gloo notices a rank that is gone, and no GPU spins meanwhile.
            dist.all_reduce(torch.zeros(1), group=self.group)

    def gather(self, value) -> list:
        """Every rank's value, in the order of ranks, on every rank; anything that can be pickled."""
        if self.group is None:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value, group=self.group)
        return values

    def agree(self, facts: dict[str, object]) -> None:
        """Make sure that all ranks are about to do the same.

        Raises:
            InputError: a fact differs; it is named with the rank, and what rank 0 has instead.
        """
        everyone = self.gather(facts)
        for rank, other in enumerate(everyone):
            for name, value in other.items():
                if value != everyone[0][name]:
                    raise InputError(
                        f"process {rank} of the run has {name} {value!r}, process 0 has {everyone[0][name]!r}: start "
                        "all with the same command, and keep data and output on a file system that all machines share"
                    )

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Give every parameter the sum over ranks of its gradients; None where no rank has one.

        Args:
            parameters: of one dtype and device, the same on every rank.
        """
        if self.group is None:
            return
        parameters = list(parameters)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flags = parameters[0].new_tensor([p.grad is not None for p in parameters])
        flat = torch.cat([flags, *(gradient.flatten() for gradient in gradients)])
        dist.all_reduce(flat, group=self.group)
        counts, *sums = flat.split([len(flags), *(p.numel() for p in parameters)])
        for parameter, count, total in zip(parameters, counts.tolist(), sums, strict=True):
            parameter.grad = total.view(parameter.shape) if count else None

    @torch.no_grad()
    def check_replicas(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Make sure that all ranks hold the same weights, to the bit.

        Raises:
            LostProcess: a rank's weights differ: its machine computes differently, or it is broken.
        """
        if self.group is None:
            return
        # Bits as integers: a sum of numbers would depend on the order in which they are added up.
        total = sum(p.detach().float().view(torch.int32).sum(dtype=torch.int64) for p in parameters)
        totals = self.gather(int(total))
        odd = [rank for rank, other in enumerate(totals) if other != totals[0]]
        if odd:
            raise LostProcess(
                f"the weights of process {odd[0]} are no longer those of process 0: use machines of one kind with the "
                "same versions of PyTorch"
            )

    def _missing(self) -> list[int] | None:
        """The ranks that do not answer a roll call; None where nobody can tell."""
        if self._store is None:
            return None
        until = time.monotonic() + _ROLL_CALL_SECONDS
        missing = list(range(self.count))
        try:
            self._store.set(f"here/{self.rank}", "1")
            while missing and time.monotonic() < until:
                missing = [rank for rank in missing if not self._store.check([f"here/{rank}"])]
                time.sleep(0.1)
        except RuntimeError:  # the store lies with the launcher, or with rank 0, and went with it
            return None
        return missing


@contextlib.contextmanager
def start_ranks(device: str | torch.device = "cpu", *, timeout_minutes: float = TIMEOUT_MINUTES) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, for as long as the context lasts; alone without it.

    Processes talk through gloo, and through NCCL about what lies on GPUs. A group that the program made itself
    (``torch.distributed.init_process_group``) is used as it is.

    Args:
        device: torch device. With "cuda" each process takes the GPU of its number on its machine (``LOCAL_RANK``).
        timeout_minutes: how long a process waits for the others before it gives up.

    Raises:
        InputError: the device is not usable, the machine has fewer GPUs than processes, or the environment is not one
            of ``torchrun`` (:func:`smml.launcher.own_place`).
        LostProcess: the other processes do not come, one of them ended before the work was done (its number is named if
            it can be found out), or the launcher told this one to stop (SIGTERM).
    """
    joined = dist.is_available() and dist.is_initialized()
    place = _place_in_group() if joined else own_place()
    if place.count == 1:
        yield Ranks(device=find_device(device))
        return
    count, own = place.count, _own_device(device, place.local)
    store = None
    if not joined:
        store = _join(own, timedelta(minutes=timeout_minutes))
    ranks = Ranks(dist.get_rank(), count, own, dist.group.WORLD, store)
    with contextlib.nullcontext(lambda: None) if joined else _told_to_stop(ranks) as ignore:
        try:
            yield ranks
        except LostProcess:
            raise
        except (RuntimeError, _ToldToStop) as error:
            if not _is_lost_contact(error):
                raise
            ignore()
            raise LostProcess(_describe_loss(ranks, error)) from error
    if not joined:
        dist.destroy_process_group()


def _place_in_group() -> Place:
    """The place in a group that the program made itself, whatever the environment says of others."""
    local = os.environ.get("LOCAL_RANK", "")
    return Place(dist.get_rank(), dist.get_world_size(), int(local) if local.isdigit() else 0)


def _own_device(device: str | torch.device, local: int) -> torch.device:
    """The device of the process of that number on its machine."""
    if str(device) != "cuda":
        return find_device(device)
    if torch.cuda.is_available() and local >= torch.cuda.device_count():
        raise InputError(
            f"process {local} of this machine has no GPU, there are {torch.cuda.device_count()}: start at most as many "
            "with --nproc-per-node, or choose device cpu"
        )
    own = find_device(f"cuda:{local}")
    torch.cuda.set_device(own)
    return own


def _join(device: torch.device, timeout: timedelta) -> dist.Store:
    """Meet the other processes at the address that torchrun put into the environment."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, rank, count = next(iter(dist.rendezvous("env://", timeout=timeout)))
        store.set_timeout(timeout)
        dist.init_process_group(
            backend, store=dist.PrefixStore("smml", store), rank=rank, world_size=count, timeout=timeout
        )
    except (RuntimeError, ValueError) as error:
        raise LostProcess(
            f"process {os.environ.get('RANK', '?')} of {os.environ.get('WORLD_SIZE', '?')} could not meet the others "
            f"({_first_line(error)}): start them with torchrun, on several machines with the same --rdzv-endpoint"
        ) from error
    return dist.PrefixStore("smml-roll-call", store)


class _ToldToStop(BaseException):
    """SIGTERM came. No Exception, or whoever reads a file just then would take it for a damaged one."""


@contextlib.contextmanager
def _told_to_stop(ranks: Ranks) -> Iterator[Callable[[], None]]:
    """Turn SIGTERM, which torchrun sends to the others when a process has ended, into an error with a message.

    Gives a function after whose call the signal is ignored: whoever is about to say why it ends may finish.
    """
    state = {"ignored": False}

    def stop(*_) -> None:
        if not state["ignored"]:
            state["ignored"] = True
            raise _ToldToStop("SIGTERM")

    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield lambda: None
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield lambda: state.update(ignored=True)
    finally:
        # Whoever ends with an error still has to say so; torchrun would not wait for that.
        if not state["ignored"]:
            signal.signal(signal.SIGTERM, before)


def _is_lost_contact(error: BaseException) -> bool:
    """Whether a collective failed, which gloo and NCCL say in their own ways, or the launcher ends the run."""
    text = str(error)
    return isinstance(error, dist.DistError | _ToldToStop) or any(
        word in text for word in ("gloo", "Gloo", "NCCL", "TCPStore")
    )


def _describe_loss(ranks: Ranks, error: BaseException) -> str:
    """One sentence for the user: who is gone, as far as this rank can tell."""
    missing = ranks._missing()
    if missing:
        who = f"process {', '.join(map(str, missing))} of {ranks.count} ended before the work was done"
    elif isinstance(error, _ToldToStop):
        who = "the run was told to stop from outside"
    else:
        who = "the other processes cannot be reached"
    return f"process {ranks.rank} of {ranks.count} stops: {who} ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
