"""Vector pictures: boxes, feature maps and arrows as an SVG that needs nothing from outside.

There are no scripts, style sheets, fonts or ids in it: it can stand in a page, in a notebook beside others, or as a
file behind an image's address. The ground is white, so it reads the same in a dark page.
"""

import base64
import io
import os
import re
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from smml.figures.theme import rgb
from smml.files import write_text

INK, PALE = "#222222", "#8a8a8a"
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
# Smallest text and smallest subscript, at the picture's own width.
SMALLEST, SMALLEST_SUBSCRIPT = 12, 11
_HEAD = 8

Point = tuple[float, float]


class Drawing:
    """A picture that grows by what is drawn on it; later things lie on top.

    A notebook shows it by itself. Places and sizes are pixels at the picture's own width; y grows downwards.

    Args:
        width: of the picture.
        height: of the picture.
        title: what it is, for readers who cannot see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        """The SVG file."""
        opening = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" font-family="{FONT}" style="max-width: 100%; height: auto">'
        )
        ground = f'<rect width="{self.width}" height="{self.height}" rx="10" fill="#ffffff"/>'
        return "\n".join([opening, f"<title>{escape(self.title)}</title>", ground, *self._parts, "</svg>", ""])

    def _repr_svg_(self) -> str:
        return self.text

    def save(self, path: str | os.PathLike) -> None:
        """Write the SVG file, whole or not at all.

        Args:
            path: of the file.
        """
        write_text(path, self.text)

    def words(
        self,
        x: float,
        y: float,
        text: str | Sequence[tuple[str, str]],
        *,
        size: int = 13,
        anchor: str = "middle",
        colour: str = INK,
        bold: bool = False,
    ) -> None:
        """One line of text with its baseline at y; ``L_{fc}`` has a subscript.

        Args:
            x: where the line starts, has its middle or ends, by ``anchor``.
            y: of the baseline.
            text: the line, or its pieces with a colour each.
            size: of the letters, at least 12.
            anchor: "start", "middle" or "end".
            colour: of the text where it is one piece.
            bold: heavier.
        """
        assert size >= SMALLEST, f"{text!r} would be too small to read"
        pieces = [(text, colour)] if isinstance(text, str) else text
        body, lowered = "", False
        for words, paint in pieces:
            for number, part in enumerate(re.split(r"_\{(.*?)\}", words)):
                if not part:
                    continue
                below = number % 2 == 1
                move = "" if below == lowered else f' dy="{3 if below else -3}"'
                smaller = f' font-size="{max(SMALLEST_SUBSCRIPT, round(0.75 * size))}"' if below else ""
                body += f'<tspan{move}{smaller} fill="{paint}">{escape(part, quote=False)}</tspan>'
                lowered = below
        weight = ' font-weight="600"' if bold else ""
        place = f'x="{_number(x)}" y="{_number(y)}" text-anchor="{anchor}" font-size="{size}"{weight}'
        self._parts.append(f"<text {place}>{body}</text>")

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *lines: str,
        colour: str = INK,
        fill: str = "#ffffff",
        dashed: bool = False,
        size: int = 13,
        thickness: float = 1.5,
        radius: float = 6,
    ) -> None:
        """A rounded box, with lines of text in its middle of which the first is bold if there are several.

        Args:
            x: of its left edge.
            y: of its upper edge.
            width: of the box.
            height: of the box.
            lines: text, one below the other.
            colour: of the outline.
            fill: of the ground.
            dashed: for what is not always there.
            size: of the letters.
            thickness: of the outline; 0 draws none.
            radius: of the corners.
        """
        stroke = f'stroke="{colour}" stroke-width="{thickness:g}"{_dashes(dashed)}' if thickness else 'stroke="none"'
        sizes = f'width="{_number(width)}" height="{_number(height)}" rx="{radius:g}"'
        self._parts.append(f'<rect x="{_number(x)}" y="{_number(y)}" {sizes} fill="{fill}" {stroke}/>')
        step = size + 4
        first = y + height / 2 - step * (len(lines) - 1) / 2 + 0.36 * size
        for number, line in enumerate(lines):
            heavy = number == 0 and len(lines) > 1
            self.words(x + width / 2, first + number * step, line, size=size, bold=heavy)

    def map(self, x: float, y: float, side: float, channels: int, colour: str, words: str = "") -> None:
        """A feature map as a block: its front for the grid, its depth for the channels.

        Args:
            x: of the middle of the front.
            y: of the middle of the front.
            side: of the front.
            channels: four times as many are drawn one step deeper.
            colour: of the outline; the faces have tints of it.
            words: on the front.
        """
        depth = block_depth(channels)
        left, top, right, bottom = x - side / 2, y - side / 2, x + side / 2, y + side / 2
        faces = (
            ([(left, top), (right, top), (right, bottom), (left, bottom)], 0.25),
            ([(left, top), (left + depth, top - depth), (right + depth, top - depth), (right, top)], 0.4),
            ([(right, top), (right + depth, top - depth), (right + depth, bottom - depth), (right, bottom)], 0.6),
        )
        for corners, strength in faces:
            points = " ".join(f"{_number(px)},{_number(py)}" for px, py in corners)
            fill = tint(colour, strength)
            self._parts.append(
                f'<polygon points="{points}" fill="{fill}" stroke="{colour}" stroke-width="1" stroke-linejoin="round"/>'
            )
        if words:
            self.words(x, y + 4.5, words)

    def arrow(
        self,
        *points: Point,
        colour: str = INK,
        dashed: bool = False,
        heads: str = "end",
        thickness: float = 1.6,
    ) -> None:
        """A line through points, with a head at its end, at both ends ("both") or at none ("none").

        Args:
            points: (x, y), two or more; a head's tip lies on its point.
            colour: of line and heads.
            dashed: for what is not always there.
            heads: "end", "both" or "none".
            thickness: of the line.
        """
        line = list(points)
        tips = []
        if heads in ("end", "both"):
            line[-1], tip = _head(line[-2], line[-1])
            tips.append(tip)
        if heads == "both":
            line[0], tip = _head(line[1], line[0])
            tips.append(tip)
        path = " ".join(f"{_number(x)},{_number(y)}" for x, y in line)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{thickness:g}"'
            f'{_dashes(dashed)} stroke-linejoin="round"/>'
        )
        for tip in tips:
            corners = " ".join(f"{_number(x)},{_number(y)}" for x, y in tip)
            self._parts.append(f'<polygon points="{corners}" fill="{colour}"/>')

    def image(self, x: float, y: float, side: float, pixels: np.ndarray) -> None:
        """A picture in a square, its pixels kept sharp.

        Args:
            x: of its left edge.
            y: of its upper edge.
            side: of the square.
            pixels: uint8 [rows, columns, 3].
        """
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        place = f'x="{_number(x)}" y="{_number(y)}" width="{_number(side)}" height="{_number(side)}"'
        self._parts.append(f'<image {place} href="data:image/png;base64,{data}" style="image-rendering: pixelated"/>')


def tint(colour: str, strength: float) -> str:
    """A colour on white, "#RRGGBB"; strength 1 is the colour itself.

    Args:
        colour: "#RRGGBB".
        strength: 0 to 1.
    """
    return "#" + "".join(f"{round(255 - strength * (255 - part)):02x}" for part in rgb(colour))


def block_depth(channels: int) -> float:
    """How deep a feature map of so many channels is drawn, pixels."""
    return 2 + 2 * float(np.log2(channels))


def _head(start: Point, tip: Point) -> tuple[Point, list[Point]]:
    """Where the line ends so that it does not blunt its head, and the head's corners."""
    way = np.subtract(tip, start)
    along = way / np.hypot(*way)
    across = np.array([-along[1], along[0]])
    base = tip - _HEAD * along
    corners = [tip, base + 0.45 * _HEAD * across, base - 0.45 * _HEAD * across]
    return _point(base + 2 * along), [_point(corner) for corner in corners]


def _point(place: np.ndarray | Point) -> Point:
    return float(place[0]), float(place[1])


def _dashes(dashed: bool) -> str:
    return ' stroke-dasharray="5 4"' if dashed else ""


def _number(value: float) -> str:
    """To a tenth of a pixel, the same on every machine."""
    return f"{round(value, 1) + 0.0:g}"
