"""What ``torchrun`` tells each process of a run through its environment, checked before anybody waits for anybody."""

import os
from dataclasses import dataclass

from smml.errors import InputError

_REMEDY = "start with torchrun, which sets all of them, or unset WORLD_SIZE to run in one process"


@dataclass(frozen=True)
class Place:
    """The place of a process among those of its run.

    Attributes:
        rank: its number, 0 to ``count - 1``.
        count: how many processes there are.
        local: its number on its machine, which is that of its GPU.
    """

    rank: int = 0
    count: int = 1
    local: int = 0


def own_place() -> Place:
    """The place of this process; that of the only one without ``torchrun``.

    Raises:
        InputError: a variable is missing, or is not what it must be.
    """
    if "WORLD_SIZE" not in os.environ:
        return Place()
    count = _number("WORLD_SIZE", 1, 1_000_000)
    if count == 1:
        return Place()
    rank = _number("RANK", 0, count - 1)
    local = _number("LOCAL_RANK", 0, 1_000_000) if "LOCAL_RANK" in os.environ else 0
    if not os.environ.get("MASTER_ADDR", "").strip():
        raise InputError(f"MASTER_ADDR: expected a host name beside WORLD_SIZE={count}, found nothing; {_REMEDY}")
    _number("MASTER_PORT", 0, 65535)
    return Place(rank, count, local)


def _number(name: str, low: int, high: int) -> int:
    text = os.environ.get(name)
    try:
        number = int(text or "")
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        found = "nothing" if text is None else repr(text)
        raise InputError(f"{name}: expected a whole number from {low} to {high}, found {found}; {_REMEDY}")
    return number
