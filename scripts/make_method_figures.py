"""Make docs/student.svg and docs/method.svg, the drawings of the network and of the method at the published size.

    python scripts/make_method_figures.py

A test compares the committed files with what this makes.
"""

from pathlib import Path

from smml.figures import Drawing, method_figure, student_figure

DOCS = Path(__file__).resolve().parent.parent / "docs"


def drawings() -> dict[str, Drawing]:
    """By name of the file."""
    return {"student.svg": student_figure("paper"), "method.svg": method_figure("paper")}


def main() -> None:
    for name, drawing in drawings().items():
        drawing.save(DOCS / name)
        print(DOCS / name, (DOCS / name).stat().st_size // 1000, "kB")


if __name__ == "__main__":
    main()
