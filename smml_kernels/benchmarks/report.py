"""What a run leaves behind: every number as JSON, tables as Markdown, the roofline as a page and a picture."""

import json
import os
from pathlib import Path
from typing import Any

from smml_kernels.benchmarks.contestants import PUBLIC
from smml_kernels.benchmarks.runner import Row
from smml_kernels.benchmarks.targets import ratio

Run = dict[str, Any]


def write(run: Run, folder: Path, name: str, *, pictures: bool = True) -> list[Path]:
    """Write NAME.json, NAME.md, NAME-roofline.html and, where kaleido finds a browser, NAME-roofline.png.

    Args:
        run: {"provenance", "ceilings", "rows", "targets", "notes"}; ``notes`` (sentences) gains one for each file that
            could not be written.
        folder: created if need be.
        name: of the hardware.
        pictures: without them only the JSON and the table are written, which takes no time while a run goes on.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    if pictures:
        try:
            from smml_kernels.benchmarks.roofline import roofline, write_figure

            files += write_figure(roofline(run), folder / f"{name}-roofline", run["notes"])
        except ImportError as error:
            run["notes"].append(f"No roofline: {error}.")
    for suffix, text in ((".json", json.dumps(run, indent=1) + "\n"), (".md", markdown(run))):
        path = folder / f"{name}{suffix}"
        partial = path.with_suffix(f"{suffix}.partial")
        partial.write_text(text)
        os.replace(partial, path)
        files.append(path)
    return files


def markdown(run: Run) -> str:
    """The whole run as Markdown."""
    made, ceilings = run["provenance"], run["ceilings"]
    machine = made["hardware"]
    cpu = machine["device"] == "cpu"
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    rates = ", ".join(f"{key} {value / 1e9:.3g} GFLOP/s" for key, value in ceilings.items() if "bytes" not in key)
    lines = [
        f"# Benchmarks of smml_kernels: {machine['cpu'] if cpu else machine['device']}",
        "",
        f"`{made['command']}`, seed {made['seed']}, {made['date']}, commit {made['commit']}.",
        f"{machine['system']}, {machine['cpu']}, threads: {machine['threads']}. {versions}.",
        "",
        f"Measured ceilings: copy {ceilings['copy_bytes_per_s'] / 1e9:.4g} GB/s (read plus written); matrix products "
        f"{rates}.",
        "",
        "Times are medians in milliseconds, in brackets p20 to p80. *Graph* is the replay of a captured CUDA graph, "
        "without launch gaps. *x public* is the public formulation's time over this one's, forward and backward, both "
        "by graph or both by eager launch. *Floor* is the least time that the bytes (or matrix products) allow at the "
        "measured ceilings, over the time taken. *Extra memory* is the peak beyond inputs, outputs and gradients. "
        "Errors are relative, against float64. A formulation that is wrong is not timed.",
        "",
        "## Goals",
        "",
        *([f"On {_processor(machine)}: a ratio of times belongs to one processor.", ""] if cpu else []),
        "| goal | | found |",
        "|---|---|---|",
        *(f"| {t['goal']} | {t['status']} | {t['found']} |" for t in run["targets"]),
    ]
    for operation in dict.fromkeys(row["operation"] for row in run["rows"]):
        rows = [row for row in run["rows"] if row["operation"] == operation]
        lines += ["", f"## {operation}", "", *_table(rows), "", *_legend(rows)]
    if run["notes"]:
        lines += ["", "## Notes", "", *(f"- {note}" for note in run["notes"])]
    return "\n".join(lines) + "\n"


def _processor(machine: dict[str, Any]) -> str:
    """What a time on a CPU depends on. Its name may be all that a virtual machine tells."""
    vectors = machine.get("vectors", "its vector instructions were not recorded")
    return f"{machine['cpu']} ({vectors}; threads: {machine['threads']})"


def _table(rows: list[Row]) -> list[str]:
    graphs = any(row["graph"] or row["graph_reason"] for row in rows)
    head = ["case", "formulation", "forward", "backward", "both", *(["both, graph"] if graphs else []), "x public"]
    head += ["floor", "extra memory, MB", "error", "error of gradient"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    previous = None
    for row in rows:
        case = row["case"].removeprefix(row["operation"]).strip()
        cells = [case if case != previous else "", row["contestant"]]
        previous = case
        cells += [_milliseconds(row["eager"], phase) or "" for phase in ("forward", "backward")]
        cells.append(_milliseconds(row["eager"], "both") or row["reason"])
        if graphs:
            cells.append(_milliseconds(row["graph"], "both") or ("not captured" if row["eager"] else ""))
        cells += [_times_public(row, rows), _share(row), _megabytes(row["peak_bytes"])]
        errors = row["errors"] or {}
        cells += [f"{errors[part]:.1e}" if part in errors else "" for part in ("result", "gradient")]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return lines


def _legend(rows: list[Row]) -> list[str]:
    """What each contestant runs, what bounds the cases, and why some were not captured."""
    runs = dict.fromkeys(f"*{row['contestant']}*: {row['runs']}" for row in rows)
    bounds = dict.fromkeys(row["bound_by"] for row in rows)
    lines = ["; ".join(runs) + f". Floor by {' or '.join(bounds)}."]
    if any("float64" in bound for bound in bounds):
        lines.append(
            "(The definition asks for float64 products; a formulation that makes do with float32 may be faster.)"
        )
    lines += dict.fromkeys(
        f"- {row['contestant']}, {row['case']}: no graph, {row['graph_reason']}" for row in rows if row["graph_reason"]
    )
    return lines


def _milliseconds(times: dict | None, phase: str) -> str:
    if not times or phase not in times:
        return ""
    q = times[phase]
    return f"{1e3 * q['p50']:.3g} ({1e3 * q['p20']:.3g} to {1e3 * q['p80']:.3g})"


def _times_public(row: Row, rows: list[Row]) -> str:
    public = next((r for r in rows if r["case"] == row["case"] and r["contestant"] == PUBLIC), None)
    found = ratio(public, row)
    return "" if found is None or row is public else f"{found[0]:.3g}"


def _share(row: Row) -> str:
    return "" if row["share_of_ceiling"] is None else f"{100 * row['share_of_ceiling']:.2g} %"


def _megabytes(number: int | None) -> str:
    return "" if number is None else f"{number / 1e6:.3g}"
