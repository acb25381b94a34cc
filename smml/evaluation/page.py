"""A report as one HTML file: nothing is fetched, no script runs, and it is dark where the reader's screen is."""

import base64
from collections.abc import Sequence
from html import escape

from smml.evaluation.sheets import Section

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1f24; --soft: #5b6470; --line: #dde1e6; --row: #f4f6f8;
  --good: #b9d7f0; --bad: #f4cfae; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --text: #e4e7eb; --soft: #9aa4b0; --line: #333a43;
  --row: #1c2127; --good: #1d4f7c; --bad: #7a4317; } }
body { margin: 0 auto; max-width: 84rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
p { max-width: 48rem; overflow-wrap: anywhere; } p.soft { color: var(--soft); }
summary { cursor: pointer; font-size: 1.15rem; font-weight: bold; margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .55rem; text-align: right; border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; line-height: 1.25; max-width: 5.5rem; font-weight: 600; color: var(--soft);
  border-bottom: 2px solid var(--soft); }
td, th span { white-space: nowrap; } th span { display: block; }
.word { text-align: left; max-width: 24rem; } td.word { white-space: normal; }
.mark { text-align: center; padding-inline: .35rem; } .off { color: var(--soft); }
tbody tr:hover { background-color: var(--row); }
tr.mean td { font-weight: bold; border-top: 2px solid var(--soft); }
.share, .harm { --bar: var(--good); min-width: 3.6rem; } .harm { --bar: var(--bad); }
td[style] { background: linear-gradient(var(--bar) 0 0) no-repeat left / calc(var(--share) * .94%) 78%,
  linear-gradient(var(--row) 0 0) no-repeat left / 94% 78%; print-color-adjust: exact; }
"""
_BARS = (
    "Bars reach from 0 to 100 %: blue where more is better, orange where less is. A dash: there is no such value. "
    "Numbers can be copied into a spreadsheet as they stand."
)


_GALLERY = """
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .75rem; margin-top: 1rem; }
figure { margin: 0; } figure img { width: 100%; display: block; }
figcaption { font-size: .85rem; color: var(--soft); overflow-wrap: anywhere; }
"""


def page(
    title: str,
    said: Sequence[str],
    sections: Sequence[Section],
    folded: Sequence[Section] = (),
    gallery: Sequence[tuple[str, bytes]] = (),
) -> str:
    """The text of the file.

    Args:
        title: its heading.
        said: paragraphs below the heading: how the numbers came about.
        sections: tables in their order.
        folded: tables below them that open on a click.
        gallery: pictures at the end, each a caption and a PNG file's bytes.
    """
    bars = any(kind in ("share", "harm") for section in (*sections, *folded) for _, kind in section.sheet.columns)
    parts = [
        "<!DOCTYPE html>",
        '<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}{_GALLERY if gallery else ''}</style>",
        f"<h1>{escape(title)}</h1>",
        *(_paragraph(text) for text in said),
        *([f"<p class=soft>{_BARS}</p>"] if bars else []),
    ]
    for section in sections:
        parts += [f"<h2>{escape(section.title)}</h2>"] if section.title else []
        parts += _body(section)
    for section in folded:
        parts += [f"<details><summary>{escape(section.title)}</summary>", *_body(section), "</details>"]
    if gallery:
        parts += ["<div class=gallery>", *(_figure(*each) for each in gallery), "</div>"]
    return "\n".join([*parts, "</html>"]) + "\n"


def _body(section: Section) -> list[str]:
    before = [_paragraph(f"{section.words}:")] if section.words else []
    return [*before, section.sheet.html(), *([_paragraph(section.after)] if section.after else [])]


def _figure(caption: str, png: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    said = escape(caption)
    return f'<figure><img alt="{said}" loading=lazy src="{source}"><figcaption>{said}</figcaption></figure>'


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"
