"""Tables for people: a cell holds one word or one number, and the unit of the numbers stands in the head.

So a column can be copied into a spreadsheet as it is. The same cells are written as Markdown and as HTML, in which a
share also has a bar behind it that is as long as the number, from 0 to 100 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

# Whether a sequence is given, a word, a number, a share in per cent of which more is better, or one of which less is.
Kind = Literal["mark", "word", "number", "share", "harm"]
GIVEN, NOT_GIVEN = "●", "○"
_NONE = "–"
_RULES: dict[Kind, str] = {"mark": ":-:", "word": "---", "number": "-:", "share": "-:", "harm": "-:"}


@dataclass(frozen=True)
class Sheet:
    """A table for people.

    Attributes:
        columns: head and kind of each.
        rows: the cells of each row, as long as ``columns``.
        closed: whether the last row sums up those above it.
    """

    columns: tuple[tuple[str, Kind], ...]
    rows: tuple[tuple[str, ...], ...]
    closed: bool = False

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [_line([head for head, _ in self.columns]), "|" + "".join(f"{_RULES[k]}|" for _, k in self.columns)]
        for place, row in enumerate(self.rows, start=1):
            first = f"**{row[0]}**" if self.closed and place == len(self.rows) else row[0]
            lines.append(_line([first, *row[1:]]))
        return "\n".join(lines)

    def html(self) -> str:
        """The table as HTML, for the style of :mod:`smml.evaluation.page`."""
        heads = "".join(f"<th scope=col class={kind}>{_head(head)}" for head, kind in self.columns)
        lines = ["<div class=scroll tabindex=0><table>", f"<thead><tr>{heads}</thead>", "<tbody>"]
        for place, row in enumerate(self.rows, start=1):
            cells = [_cell(cell, kind) for cell, (_, kind) in zip(row, self.columns, strict=True)]
            last = self.closed and place == len(self.rows)
            lines.append(f"<tr{' class=mean' if last else ''}>{''.join(cells)}")
        return "\n".join([*lines, "</table></div>"])


@dataclass(frozen=True)
class Section:
    """A table with what is said of it.

    Attributes:
        title: its heading; "" for none.
        sheet: the table.
        words: what it shows.
        after: what stands below it.
        long: whether a screen shows only the words.
    """

    title: str
    sheet: Sheet
    words: str = ""
    after: str = ""
    long: bool = False


def number(value: float, digits: int = 1) -> str:
    """A cell with a number, or a dash where there is none."""
    return _NONE if math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """A cell with a difference and its sign, or a dash where there is none."""
    return _NONE if math.isnan(value) else f"{value:+.1f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _head(text: str) -> str:
    """A head of two lines, of which the second has the unit and what it is of."""
    name, comma, unit = text.rpartition(", ")
    first, space, last = name.rpartition(" ")
    return f"{escape(first + space)}<span>{escape(last + comma + unit)}</span>" if comma and first else escape(text)


def _cell(text: str, kind: Kind) -> str:
    if kind in ("share", "harm") and text != _NONE:
        return f'<td class={kind} style="--share:{float(text):g}">{text}'
    off = " off" if text in (NOT_GIVEN, _NONE) else ""
    return f'<td class="{kind}{off}">{escape(text)}' if off else f"<td class={kind}>{escape(text)}"
