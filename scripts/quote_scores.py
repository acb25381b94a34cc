"""Write the scores that pages quote, from the committed results, between their markers.

    python scripts/quote_scores.py

A page marks a place with ``<!-- scores: NAME -->`` and ``<!-- end of scores -->``. A test compares what stands there.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"(<!-- scores: (\S+) -->\n).*?(<!-- end of scores -->)", re.DOTALL)
PAGES = ("README.md", "smml/sam/weights/sam-tiny.md")


def main() -> None:
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """The text of a page with the committed scores between its markers."""
    return MARKED.sub(lambda match: match[1] + BLOCKS[match[2]]() + match[3], text)


def rows(page: str) -> list[list[str]]:
    """The cells of every table of a committed result, without their emphasis."""
    lines = (ROOT / "results" / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]


def shipped_weights() -> str:
    """Mean Dice in per cent of the shipped weights: over all subsets, and from all sequences."""
    lines = ["| | | WT | TC | ET |", "|---|---|---:|---:|---:|"]
    for weights, page in (("`small`, 2 mm", "simulator/small/table.md"), ("`tiny`, 3 mm", "simulator/sequences.md")):
        # The first table of the page: others of it have rows of the same names.
        measured: dict[tuple[str, ...], list[str]] = {}
        for row in rows(page):
            measured.setdefault(tuple(row[:4]), row[4:7])
        for first, name, row in (
            (weights, "mean over the 15 subsets", ("mean", "", "", "")),
            ("", "all four sequences", ("●", "●", "●", "●")),
        ):
            lines.append(" | ".join([f"| {first}" if first else "|", name, *measured[row]]) + " |")
    return "\n".join(lines) + "\n"


def tiny_sam() -> str:
    """Mean IoU of the tiny SAM from a jittered box, over lesions that their sequence shows."""
    titles, *measured = (row for row in rows("sam/tiny.md") if len(row) > 3)
    visible = dict(zip(titles, next(row for row in measured if row[0] == "where the region is visible"), strict=True))
    rim = dict(zip(titles, next(row for row in measured if row[:2] == ["ET", "T1ce"]), strict=True))
    lines = ["| from a jittered box, where the sequence shows the region | mean IoU |", "|---|---:|"]
    for words, score in (
        (
            "the one of its three masks that the asking prediction picks, as `SAMPrior` does",
            visible["as predicted"],
        ),
        ("the one that the truth picks, as in SAM's own protocol", visible["best of three"]),
        ("its one mask for clear prompts", visible["jittered box"]),
        ("the enhancing rim on T1ce alone, picked as `SAMPrior` does", rim["as predicted"]),
        ("no SAM: the box filled", visible["box filled"]),
        ("no SAM: the ellipse inscribed in it", visible["ellipse"]),
        ("no SAM: the prediction by itself", visible["students"]),
    ):
        lines.append(f"| {words} | {float(score):.2f} |")
    return "\n".join(lines) + "\n"


BLOCKS = {"shipped-weights": shipped_weights, "sam-tiny": tiny_sam}


if __name__ == "__main__":
    main()
