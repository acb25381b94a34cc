"""What simulated images are like: statistics of brightness, texture and volumes beside those of patients.

    python scripts/measure_simulator.py --look typical --subjects 60 --spacing 2 --seed 71
    python scripts/measure_simulator.py --look varied --subjects 60 --spacing 2 --seed 71
    python scripts/measure_simulator.py --patients FOLDER --spacing 2

Writes LOOK.json (every row's percentiles, with command, versions and hardware) and LOOK.md, histograms of the sequences
(LOOK-histograms.png) and a page of slices (LOOK-slices.png) to results/simulator-statistics. With ``--patients`` the
same rows are measured on a folder of labelled cases and printed; nothing is written.

Brightness is in standard deviations from the mean of the brain (z), each sequence by itself, all its non-zero voxels.
Ranges of patients are read from patients.json.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy import ndimage

import smml
from smml.data import find_cases, read_case
from smml.data.simulation.atlas import load_atlas
from smml.data.simulation.imaging import LOOKS
from smml.data.simulation.subject import simulate_subject
from smml.files import write_text
from smml.modalities import MODALITIES

HOME = Path(__file__).resolve().parent.parent / "results" / "simulator-statistics"
# Memory values of the four classes of BraTS from 2017 on.
CLASSES = {"NCR": 1, "ED": 2, "ET": 3}
# A compartment below this volume has no statistics.
LEAST_ML = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--look", choices=LOOKS, default="typical")
    parser.add_argument("--subjects", type=int, default=60)
    parser.add_argument("--spacing", type=float, default=2.0, help="voxel edge in mm")
    parser.add_argument("--seed", type=int, default=71, help="cohort seed; 70 was looked at while the looks were made")
    parser.add_argument("--patients", type=Path, help="measure these labelled cases instead, and print")
    parser.add_argument("--output", type=Path, default=HOME)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ranges = json.loads((HOME / "patients.json").read_text(encoding="utf-8"))["rows"]
    if arguments.patients:
        subjects = [measure(*read_patient(files, arguments.spacing)) for files in find_cases(arguments.patients)]
        print(as_table(summarise(subjects), ranges))
        return
    load_atlas()
    seconds = 0.0
    subjects, pictures, histograms = [], [], Histograms()
    for index in range(arguments.subjects):
        began = time.process_time()
        subject = simulate_subject(arguments.seed, index, spacing=arguments.spacing, look=arguments.look)
        seconds += (time.process_time() - began) / arguments.subjects
        labels = np.asarray([0, 1, 2, 1, 3], np.uint8)[subject.labels]
        subjects.append(measure(subject.volumes, labels, arguments.spacing))
        histograms.add(subject.volumes, labels)
        if len(pictures) < 12:
            pictures.append((f"{index} {subject.kind}", draw_slices(subject.volumes, labels)))
    write_report(arguments, summarise(subjects), ranges, seconds)
    stack_pictures(pictures).save(arguments.output / f"{arguments.look}-slices.png")
    histograms.draw().save(arguments.output / f"{arguments.look}-histograms.png")


def read_patient(files, spacing: float) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """Volumes and labels of a case at voxels of about ``spacing`` mm; the brain is averaged without the background."""
    case = read_case(files)
    factor = max(1, round(spacing / case.spacing[0]))
    volumes = {}
    for name, volume in case.volumes.items():
        total, share = _pool(volume, factor), _pool((volume != 0).astype(np.float32), factor)
        volumes[name] = np.where(share > 0.5, total / np.maximum(share, 1e-6), 0)
    half = factor // 2
    labels = case.label[half::factor, half::factor, half::factor]
    shape = tuple(min(a, b) for a, b in zip(labels.shape, next(iter(volumes.values())).shape, strict=True))
    cut = tuple(slice(n) for n in shape)
    return {name: volume[cut] for name, volume in volumes.items()}, labels[cut], factor * case.spacing[0]


def _pool(volume: np.ndarray, factor: int) -> np.ndarray:
    return torch.nn.functional.avg_pool3d(torch.from_numpy(np.ascontiguousarray(volume))[None].float(), factor)[
        0
    ].numpy()


def measure(volumes: dict[str, np.ndarray], labels: np.ndarray, spacing: float) -> dict[str, float]:
    """Every row that this subject has.

    Args:
        volumes: [X, Y, Z] by modality, background 0.
        labels: [X, Y, Z], memory values of the four classes.
        spacing: voxel edge, mm.
    """
    ml = spacing**3 / 1000
    rows = {}
    for name, volume in volumes.items():
        brain = volume != 0
        z = np.zeros(volume.shape, np.float32)
        z[brain] = (volume[brain] - volume[brain].mean()) / volume[brain].std()
        for region, value in CLASSES.items():
            where = brain & (labels == value)
            if where.sum() * ml >= LEAST_ML:
                rows[f"{name}, {region}"] = float(z[where].mean())
                rows[f"{name}, {region}, deviation"] = float(z[where].std())
        # A voxel beside a lesion is not normal brain.
        normal = brain & ~ndimage.binary_dilation(labels > 0, iterations=max(1, round(4 / spacing)))
        rows[f"{name}, normal brain, 99.9th percentile"] = float(np.percentile(z[normal], 99.9))
        rows[f"{name}, normal brain, 99th percentile"] = float(np.percentile(z[normal], 99))
        rows[f"{name}, normal brain, 1st percentile"] = float(np.percentile(z[normal], 1))
        wide = _masked_blur(z, normal, 15 / spacing)
        rows[f"{name}, profile"] = float(np.subtract(*np.percentile(wide[normal], [95, 5])))
        inner = ndimage.binary_erosion(normal, iterations=2)
        for axis, letter in enumerate("xyz"):
            both = inner & np.roll(inner, -1, axis)
            step = (np.roll(z, -1, axis) - z)[both]
            rows[f"{name}, step along {letter}"] = float(np.median(np.abs(step)))
    first = next(iter(volumes.values())) != 0
    rows["brain, litres"] = float(first.sum() * ml / 1000)
    whole = labels > 0
    if whole.any():
        core, enhancing = np.isin(labels, (1, 3)), labels == 3
        rows["WT, ml"] = float(whole.sum() * ml)
        rows["TC of WT"] = float(core.sum() / whole.sum())
        if enhancing.any():
            rows["ET of TC"] = float(enhancing.sum() / core.sum())
            # Surface over volume in units of a ball's: 1 is a ball, more is thinner or more frayed.
            rows["ET, roughness"] = _roughness(enhancing)
        rows["WT, roughness"] = _roughness(whole)
        if core.any():
            rows["TC, roughness"] = _roughness(core)
            gap = np.subtract(np.argwhere(whole).mean(0), np.argwhere(core).mean(0))
            rows["core off the middle, of WT's radius"] = float(
                np.linalg.norm(gap) / (3 * whole.sum() / (4 * np.pi)) ** (1 / 3)
            )
    if {"t1", "t1ce"} <= volumes.keys() and (labels == 3).sum() * ml >= LEAST_ML:
        rows["ET, t1ce less t1"] = rows["t1ce, ET"] - rows["t1, ET"]
    return rows


def _masked_blur(z: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    share = ndimage.gaussian_filter(mask.astype(np.float32), sigma, truncate=2.5)
    return ndimage.gaussian_filter(np.where(mask, z, 0).astype(np.float32), sigma, truncate=2.5) / np.maximum(
        share, 1e-3
    )


def _roughness(mask: np.ndarray) -> float:
    padded = np.pad(mask, 1)
    faces = sum(int(np.count_nonzero(np.diff(padded.astype(np.int8), axis=axis))) for axis in range(3))
    # A ball of voxels shows 1.5 times its smooth surface.
    return float(faces / 1.5 / (36 * np.pi * mask.sum() ** 2) ** (1 / 3))


def summarise(subjects: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Percentiles over the subjects of each row, and how many had it."""
    names = list(dict.fromkeys(name for rows in subjects for name in rows))
    result = {}
    for name in sorted(names):
        values = np.array([rows[name] for rows in subjects if name in rows])
        low, middle, high = np.percentile(values, [5, 50, 95])
        result[name] = {"n": len(values), "p5": float(low), "median": float(middle), "p95": float(high)}
    healthy = sum("WT, ml" not in rows for rows in subjects)
    without = sum("WT, ml" in rows and "ET of TC" not in rows for rows in subjects)
    count = len(subjects)
    for name, number in (("healthy", healthy), ("tumour without ET", without)):
        share = number / count
        result[f"share {name}"] = {"n": count, "p5": share, "median": share, "p95": share}
    return result


def as_table(rows: dict[str, dict[str, float]], ranges: list[dict]) -> str:
    """A table in Markdown: the rows with a range of patients first, with whether the median lies in it."""
    known = {row["name"]: row for row in ranges}
    lines = [
        "| z, unless a unit is given | patients | n | median | 5th to 95th | median inside | range covered |",
        "|---|---|---:|---:|---|---|---|",
    ]
    for name in [*known, *(name for name in rows if name not in known)]:
        if name not in rows:
            continue
        row, patients = rows[name], known.get(name)
        text = inside = covered = ""
        if patients:
            low, high = patients["low"], patients["high"]
            text = f"{low:g} to {high:g}" + (f" ({patients['note']})" if patients.get("note") else "")
            inside = "yes" if low <= row["median"] <= high else "**no**"
            covered = "yes" if row["p5"] <= low and high <= row["p95"] else "**no**"
        lines.append(
            f"| {name} | {text} | {row['n']} | {row['median']:.2f} | {row['p5']:.2f} to {row['p95']:.2f} "
            f"| {inside} | {covered} |"
        )
    return "\n".join(lines)


def write_report(arguments: argparse.Namespace, rows: dict, ranges: list[dict], seconds: float) -> None:
    arguments.output.mkdir(parents=True, exist_ok=True)
    options = f"--look {arguments.look} --subjects {arguments.subjects} --spacing {arguments.spacing:g}"
    report = {
        "what": f"simulated subjects, look {arguments.look!r}, version {LOOKS[arguments.look].version}",
        "command": f"python scripts/measure_simulator.py {options} --seed {arguments.seed}",
        "rows": rows,
        "cpu_seconds_per_subject": round(seconds, 2),
        "commit": subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip(),
        "versions": {"smml": smml.__version__, "torch": str(torch.__version__), "python": platform.python_version()},
        "hardware": f"CPU, one thread of {os.cpu_count()}, {platform.machine()}",
    }
    write_text(arguments.output / f"{arguments.look}.json", json.dumps(report, indent=1) + "\n")
    text = "\n".join(
        [
            f"# Statistics of simulated images, look `{arguments.look}`",
            "",
            f"{arguments.subjects} **simulated** subjects of the cohort seed {arguments.seed} at {arguments.spacing:g} "
            "mm; ranges of patients are those of `patients.json`. Brightness in standard deviations from the mean of "
            "the brain, each sequence by itself.",
            "",
            as_table(rows, ranges),
            "",
            f"A subject took {seconds:.2f} CPU seconds of one thread. Made by `{report['command']}` at commit "
            f"{report['commit'][:10]}, torch {report['versions']['torch']}, {report['hardware']}.",
            "",
        ]
    )
    write_text(arguments.output / f"{arguments.look}.md", text)
    print(text)


def draw_slices(volumes: dict[str, np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Four sequences and the labels in the axial slice that shows most of the lesion, uint8 [h, w]."""
    weight = (labels == 3) * 3 + (labels == 1) * 2 + (labels > 0)
    position = int(weight.sum((0, 1)).argmax()) if labels.any() else labels.shape[2] // 2
    tiles = []
    for name in MODALITIES:
        volume = volumes[name]
        top = np.percentile(volume[volume > 0], 99.7)
        tiles.append(np.clip(volume[:, ::-1, position].T / top, 0, 1))
    tiles.append(np.asarray([0, 0.5, 0.25, 1.0])[labels[:, ::-1, position].T])
    return (255 * np.concatenate(tiles, 1)).astype(np.uint8)


def stack_pictures(pictures: list[tuple[str, np.ndarray]]) -> Image.Image:
    """Rows of slices with their names, two columns of six."""
    half = (len(pictures) + 1) // 2
    height, width = pictures[0][1].shape
    page = Image.new("L", (2 * width + 8, half * height))
    for number, (name, picture) in enumerate(pictures):
        place = ((number // half) * (width + 8), (number % half) * height)
        page.paste(Image.fromarray(picture), place)
        ImageDraw.Draw(page).text((place[0] + 2, place[1] + 2), name, fill=200)
    return page


class Histograms:
    """Distribution of z in normal brain and in the compartments, by sequence."""

    def __init__(self):
        self.edges = np.linspace(-4, 8, 97)
        self.counts: dict[tuple[str, str], np.ndarray] = {}

    def add(self, volumes: dict[str, np.ndarray], labels: np.ndarray) -> None:
        for name, volume in volumes.items():
            brain = volume != 0
            z = (volume - volume[brain].mean()) / volume[brain].std()
            for region, value in ({"brain": 0} | CLASSES).items():
                counts, _ = np.histogram(z[brain & (labels == value)], self.edges)
                self.counts[name, region] = self.counts.get((name, region), 0) + counts

    def draw(self) -> Image.Image:
        """A panel a sequence; each curve has the same area."""
        width, height, gap = 300, 180, 16
        page = Image.new("RGB", (len(MODALITIES) * (width + gap), height + 40), "white")
        pen = ImageDraw.Draw(page)
        colours = {"brain": (120, 120, 120), "NCR": (40, 80, 200), "ED": (40, 150, 80), "ET": (210, 60, 40)}
        for number, name in enumerate(MODALITIES):
            left = number * (width + gap) + gap // 2
            pen.text((left, 2), f"{name}: z from -4 to 8", fill="black")
            for tick in range(-4, 9, 2):
                x = left + (tick + 4) / 12 * width
                pen.line([(x, height + 16), (x, height + 20)], fill="black")
                pen.text((x - 4, height + 22), str(tick), fill="black")
            for region, colour in colours.items():
                counts = self.counts[name, region]
                share = counts / max(1, counts.sum()) / 0.10
                points = [
                    (left + (i + 0.5) / len(share) * width, height + 16 - height * 0.9 * min(1.0, value))
                    for i, value in enumerate(share)
                ]
                pen.line(points, fill=colour, width=2)
        for number, (region, colour) in enumerate(colours.items()):
            pen.text((gap + 60 * number, height + 30), region, fill=colour)
        return page


if __name__ == "__main__":
    main()
