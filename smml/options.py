"""Options of a run: fields of a dataclass that carry help and range, for the command and for the check of them all.

A configuration is a frozen dataclass whose fields are made by :func:`option` and whose ``__post_init__`` calls
:func:`check`. The command line builds its options from the same fields (:mod:`smml.config_command`).
"""

import math
import types
from collections.abc import Callable
from dataclasses import field, fields
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from smml.errors import InputError


class Range(NamedTuple):
    """Which numbers an option takes.

    Attributes:
        words: they complete "NAME must ...".
        holds: whether a number is one of them; False for NaN.
    """

    words: str
    holds: Callable[[float], bool]


POSITIVE = Range("be positive and finite", lambda number: 0 < number < math.inf)
ZERO_OR_MORE = Range("be 0 or more and finite", lambda number: 0 <= number < math.inf)
SHARE = Range("lie between 0 and 1", lambda number: 0 <= number <= 1)
BELOW_ONE = Range("lie in [0, 1)", lambda number: 0 <= number < 1)
SPACING = Range("lie between 0.2 and 10 mm", lambda number: 0.2 <= number <= 10)
PATCH = Range("be at least 32 and divisible by 16, and at most 512", lambda n: 32 <= n <= 512 and n % 16 == 0)
# What PyTorch takes as a seed.
SEED = Range("be a whole number from 0 to 2^63 - 1", lambda number: 0 <= number < 2**63)


def count(most: int, *, off: bool = False) -> Range:
    """From 1, or with ``off`` from 0, to ``most``: more would not fit into memory, or never end."""
    if off:
        return Range(f"be 0 (off) or more, and at most {most:,}", lambda number: 0 <= number <= most)
    return Range(f"be positive and at most {most:,}", lambda number: 0 < number <= most)


def option(default: Any, help: str, range: Range | None = None) -> Any:
    """A field of a configuration.

    Args:
        default: its value if it is not given.
        help: one line for the command.
        range: which numbers it takes.
    """
    return field(default=default, metadata={"help": help, "range": range})


def check(options: Any) -> None:
    """Refuse a configuration with a value of another type than its field's, or out of its range.

    Args:
        options: a dataclass instance; ranges are those of :func:`option`.

    Raises:
        InputError: for the first such field, with what it must be and what was found.
    """
    hints = get_type_hints(type(options))
    for each in fields(options):
        value, kind = getattr(options, each.name), hints[each.name]
        allowed = each.metadata.get("range")
        if not _is_a(value, kind):
            # The range says more than the type, where it speaks of whole numbers itself.
            words = allowed.words if allowed is SEED else f"be {_words(kind)}"
        elif allowed is not None and value is not None and not allowed.holds(value):
            words = allowed.words
        else:
            continue
        raise InputError(f"{each.name} must {words}, found {_shown(value)}")


def choices(kind: Any) -> tuple:
    """The words of a ``Literal``; none for any other type."""
    return get_args(kind) if get_origin(kind) is Literal else ()


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is types.UnionType:
        return any(_is_a(value, one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        # A whole number will do, if it is none that overflows.
        return (_is_a(value, int) and abs(value) < 1e300) or isinstance(value, float)
    if kind is str:
        return isinstance(value, str) and not set(value) & set("\0\n\r")
    return isinstance(value, get_origin(kind) or kind)


def _words(kind: Any) -> str:
    if get_origin(kind) is types.UnionType:
        return " or ".join(map(_words, get_args(kind)))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    known = {bool: "true or false", int: "a whole number", float: "a number", str: "text of one line", None: "nothing"}
    return known.get(None if kind is types.NoneType else kind) or f"a {(get_origin(kind) or kind).__name__}"


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
