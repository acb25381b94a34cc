"""Run the challenges' own codes on 20 simulated pairs of segmentations, and ours on the same: results/witness.

    python3 -m venv build/witness && build/witness/bin/pip install brats-evaluation==0.0.10 "pandas<3"
    git clone https://github.com/rachitsaluja/BraTS-2023-Metrics build/BraTS-2023-Metrics
    python3.9 -m venv build/witness-2023
    build/witness-2023/bin/pip install -r build/BraTS-2023-Metrics/requirements.txt
    python scripts/measure_witness.py build/witness/bin/python build/witness-2023/bin/python build/BraTS-2023-Metrics

Both codes stay outside the project, in environments of their own; only their numbers are kept. A truth is a simulated
tumour, some with more lesions put beside it; a prediction is the truth damaged: moved, eroded, lesions dropped and
added, labels swapped; one is empty, one perfect. All are cut close, so that regions touch the border. They are made if
OUTPUT/pairs.npz is not there, and kept in it. Writes OUTPUT/brats-evaluation.json (the codes' numbers, and the largest
difference of ours in each column) and OUTPUT/brats-evaluation.md. A test compares ours with the committed numbers.
"""

import argparse
import io
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from smml.data.labels import BRATS_2023, REGIONS, Region
from smml.data.simulation.subject import simulate_subject
from smml.evaluation.lesions import lesion_scores, region_scores
from smml.evaluation.metrics import dice, hd95, nsd
from smml.files import replacing, write_text
from smml.runs import made_with

SEED = 400
PAIRS = 20
# Distances are float32 in our scores and float64 in the codes.
ROUNDING = 1e-4
COLUMNS = {
    "2026": {
        "dice": "global_dsc",
        "hd95": "global_hd95",
        "nsd": "global_nsd",
        "lesion dice": "lesionwise_dsc_mean",
        "lesion hd95": "lesionwise_hd95_mean",
        "lesion nsd": "lesionwise_nsd_mean",
        "found": "all_instance_tp",
        "false alarms": "all_instance_fp",
        "missed": "all_instance_fn",
    },
    "2023": {
        "dice": "Legacy_Dice",
        "hd95": "Legacy_HD95",
        "lesion dice": "LesionWise_Score_Dice",
        "lesion hd95": "LesionWise_Score_HD95",
        "found": "Num_TP",
        "false alarms": "Num_FP",
        "missed": "Num_FN",
    },
}


@dataclass(frozen=True, eq=False)
class Pair:
    """A prediction and the truth: labels of BraTS 2023, uint8 [X, Y, Z], and the voxel edge in mm."""

    prediction: np.ndarray
    truth: np.ndarray
    spacing: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python_2026", help="Python of an environment that has brats-evaluation")
    parser.add_argument("python_2023", help="Python of an environment that has what the code of 2023 needs")
    parser.add_argument("code_2023", type=Path, help="folder of the code of 2023, a clone")
    parser.add_argument("--output", type=Path, default=Path("results/witness"))
    arguments = parser.parse_args()
    stored = arguments.output / "pairs.npz"
    if not stored.exists():
        write_pairs([make_pair(number) for number in range(PAIRS)], stored)
    pairs = read_pairs(stored)
    with tempfile.TemporaryDirectory() as folder:
        write_images(pairs, Path(folder))
        witness = {
            "2026": run_2026(arguments.python_2026, Path(folder)),
            "2023": run_2023(arguments.python_2023, arguments.code_2023, Path(folder)),
        }
    report = {
        "what": f"{PAIRS} pairs, simulated: cohort seed {SEED}, look typical, 3 and 4 mm; damage seeded by pair",
        "command": "python " + shlex.join(sys.argv),
        "witnesses": {
            "2026": packages(arguments.python_2026, "brats-evaluation", "panoptica", "numpy", "scipy"),
            "2023": packages(arguments.python_2023, "connected-components-3d", "numpy", "pandas", "scipy")
            | {"commit": commit_of(arguments.code_2023)},
        },
        **made_with("monai", "numpy", "scipy"),
        "hardware": f"CPU, {os.cpu_count()} cores, {platform.machine()}",
        "largest difference": {},
        "cells that differ": {},
        "numbers": {rules: as_rows(table, rules) for rules, table in witness.items()},
    }
    for rules in COLUMNS:
        apart = differences(ours(pairs, rules), numbers(report, rules))
        report["largest difference"][rules] = apart.max().to_dict()
        report["cells that differ"][rules] = [list(cell) for cell, size in apart.stack().items() if size > ROUNDING]
    report["our own scores against those of 2026"] = own_scores(pairs, numbers(report, "2026"))
    write_text(arguments.output / "brats-evaluation.json", as_json(report))
    text = as_markdown(report)
    write_text(arguments.output / "brats-evaluation.md", text)
    print(text)


def make_pair(number: int) -> Pair:
    """Pair ``number`` of the 20."""
    spacing = 3.0 + number % 2
    random = np.random.default_rng([SEED, number])
    subject = simulate_subject(SEED, number, spacing=spacing, look="typical")
    truth = np.asarray([0, 1, 2, 1, 3], np.uint8)[subject.labels]  # NCR and NET are one class
    brain = subject.volumes["flair"] > 0
    for _ in range(random.integers(0, 4)):
        add_ball(truth, brain, random)
    if number % 4 == 0:  # a lesion of 27 mm3, too small for the rules of 2023
        add_ball(truth, brain, random, radii=(0.5,))
    if number == 1:
        prediction = truth.copy()
    elif number == 3:
        prediction = np.zeros_like(truth)
    else:
        prediction = damaged(truth, brain, random)
    box = cut(truth | prediction, int(random.integers(0, 3)))
    return Pair(prediction[box], truth[box], spacing)


def damaged(truth: np.ndarray, brain: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Labels with about half of the kinds of damage that there are."""
    labels = truth.copy()
    if random.random() < 0.5:  # moved
        labels = np.roll(labels, random.integers(-1, 2, 3), axis=(0, 1, 2))
    if random.random() < 0.5:  # eroded
        labels[~ndimage.binary_erosion(labels > 0)] = 0
    parts, count = ndimage.label(labels > 0, np.ones((3, 3, 3)))
    if count and random.random() < 0.5:  # a lesion dropped
        labels[parts == random.integers(1, count + 1)] = 0
    if random.random() < 0.5:  # labels swapped in one half
        half = labels[labels.shape[0] // 2 :]
        half[:] = np.asarray([0, 3, 2, 1], np.uint8)[half]
    for _ in range(random.integers(0, 3)):
        add_ball(labels, brain, random)
    return labels


def add_ball(
    labels: np.ndarray,
    brain: np.ndarray,
    random: np.random.Generator,
    radii: tuple[float, ...] = (0.5, 1.0, 1.5, 2.2),
) -> None:
    """Put a ball of one label into the brain, of one of the radii: 1, 7, 19 and 33 voxels."""
    centre = random.choice(np.argwhere(brain))
    radius = random.choice(radii)
    away = np.square(np.indices(labels.shape) - centre[:, None, None, None]).sum(axis=0)
    labels[away <= radius**2] = random.integers(1, 4)


def cut(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """The box of what is not 0, ``margin`` voxels wider; a few voxels if there is nothing."""
    (box,) = ndimage.find_objects((mask > 0).astype(int)) or [(slice(0, 4),) * 3]
    return tuple(slice(max(0, side.start - margin), side.stop + margin) for side in box)


def write_pairs(pairs: list[Pair], path: Path) -> None:
    arrays = {}
    for number, pair in enumerate(pairs):
        arrays[f"prediction {number}"], arrays[f"truth {number}"] = pair.prediction, pair.truth
        arrays[f"spacing {number}"] = np.float64(pair.spacing)
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def read_pairs(path: Path) -> list[Pair]:
    with np.load(path) as stored:
        return [
            Pair(stored[f"prediction {number}"], stored[f"truth {number}"], float(stored[f"spacing {number}"]))
            for number in range(len(stored.files) // 3)
        ]


def write_images(pairs: list[Pair], folder: Path) -> None:
    """NIfTI files truth/NNNNN.nii.gz and prediction/NNNNN.nii.gz."""
    for number, pair in enumerate(pairs):
        affine = np.diag([pair.spacing] * 3 + [1.0])
        for name in ("truth", "prediction"):
            (folder / name).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(getattr(pair, name), affine), folder / name / f"{number:05d}.nii.gz")


def run_2026(python: str, folder: Path) -> pd.DataFrame:
    """The CSV that the package of 2026 writes for a challenge of gliomas, a row per pair and region."""
    summary, table = folder / "summary.json", folder / "table.csv"
    run = [python, "-m", "brats_evaluation.evaluation", "--config", "gli", "--ref_path", folder / "truth"]
    subprocess.run([*run, "--pred_path", folder / "prediction", "--summary_json", summary], check=True)
    parse = [python, "-m", "brats_evaluation.metrics_parser", "seg", "--json_path", summary]
    subprocess.run([*parse, "--output_csv_path", table], check=True)
    wide = pd.read_csv(table).iloc[:PAIRS]
    assert list(wide["subject_id"]) == [f"{number:05d}.nii.gz" for number in range(PAIRS)]
    return pd.DataFrame(
        {column: wide.at[number, f"{column}_{region.lower()}"] for column in COLUMNS["2026"].values()}
        | {"pair": number, "region": region}
        for number in range(PAIRS)
        for region in REGIONS
    )


def run_2023(python: str, code: Path, folder: Path) -> pd.DataFrame:
    """What the code of 2023 returns with the settings of BraTS-GLI, a row per pair and region."""
    program = (
        "import sys, pandas\n"
        "from metrics import get_LesionWiseResults\n"
        "folder, count = sys.argv[1], int(sys.argv[2])\n"
        "tables = []\n"
        "for number in range(count):\n"
        "    names = [f'{folder}/{part}/{number:05d}.nii.gz' for part in ('prediction', 'truth')]\n"
        "    tables.append(get_LesionWiseResults(*names, 'BraTS-GLI').assign(pair=number))\n"
        "pandas.concat(tables).rename(columns={'Labels': 'region'}).to_csv(f'{folder}/2023.csv', index=False)\n"
    )
    command = [python, "-W", "ignore", "-c", program, folder, str(PAIRS)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(code)})
    return pd.read_csv(folder / "2023.csv")


def packages(python: str, *names: str) -> dict[str, str]:
    """Versions of packages in another environment, and of its Python."""
    program = "import platform, sys; from importlib.metadata import version; print(platform.python_version(), *map(version, sys.argv[1:]))"  # noqa: E501 (a program)
    answer = subprocess.run([python, "-c", program, *names], check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(("python", *names), answer, strict=True))


def commit_of(folder: Path) -> str:
    answer = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return answer.stdout.strip()


def as_rows(table: pd.DataFrame, rules: str) -> dict[str, list]:
    """By "pair region": the numbers of COLUMNS in their order; NaN as null and infinity as text, which JSON lacks."""

    def plain(value: float) -> float | str | None:
        return None if math.isnan(value) else float(value) if math.isfinite(value) else "inf"

    return {
        f"{row['pair']} {row['region']}": [plain(float(row[column])) for column in COLUMNS[rules].values()]
        for _, row in table.iterrows()
    }


def numbers(report: dict, rules: str) -> pd.DataFrame:
    """The committed numbers of a witness: a row per "pair region", our names of the columns."""
    rows = report["numbers"][rules]
    return pd.DataFrame(rows, index=list(COLUMNS[rules])).T.astype(float)


def ours(pairs: list[Pair], rules: str) -> pd.DataFrame:
    """Our numbers of the same rows and columns as :func:`numbers`."""
    rows = {}
    for number, pair in enumerate(pairs):
        for region in REGIONS:
            prediction, truth = masks(pair, region)
            # The package of 2026 measures whole regions in voxels, whatever their size.
            edge = 1.0 if rules == "2026" else pair.spacing
            whole = region_scores(prediction, truth, (edge,) * 3, rules)
            lesions = lesion_scores(prediction, truth, (pair.spacing,) * 3, rules)
            both_empty = not (prediction | truth).any()
            row = {
                "dice": math.nan if both_empty and rules == "2026" else dice(prediction, truth),
                "hd95": whole.hd95,
                "nsd": whole.nsd,
                "lesion dice": lesions.dice,
                "lesion hd95": lesions.hd95,
                "lesion nsd": lesions.nsd,
                "found": lesions.found,
                "false alarms": lesions.false_alarms,
                "missed": lesions.missed,
            }
            rows[f"{number} {region}"] = {name: float(row[name]) for name in COLUMNS[rules]}
    return pd.DataFrame(rows).T


def masks(pair: Pair, region: Region) -> tuple[np.ndarray, np.ndarray]:
    return BRATS_2023.region(pair.prediction, region), BRATS_2023.region(pair.truth, region)


def differences(mine: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Sizes; NaN beside NaN and infinity beside infinity are no difference, beside a number an infinite one."""
    alike = (mine == theirs) | (mine.isna() & theirs.isna())
    return (mine - theirs).abs().fillna(math.inf).where(~alike, 0.0)


def own_scores(pairs: list[Pair], theirs: pd.DataFrame) -> dict[str, dict[str, float]]:
    """How far ``hd95`` and ``nsd`` of smml.evaluation, at a spacing of 1, are from the whole regions' of 2026."""
    rows = []
    for name, row in theirs.iterrows():
        number, region = str(name).split()
        prediction, truth = masks(pairs[int(number)], region)
        if (prediction & truth).any():
            edges = (1.0, 1.0, 1.0)
            one_voxel, half = (nsd(prediction, truth, edges, tolerance=near) for near in (1.0, 0.5))
            found = hd95(prediction, truth, edges)
            rows.append(
                {
                    "HD95, voxels": found - row["hd95"],
                    "NSD at 0.5": half - row["nsd"],
                    "NSD at 1": one_voxel - row["nsd"],
                }
            )
    table = pd.DataFrame(rows)
    return {name: {"mean": float(table[name].mean()), "largest": float(table[name].abs().max())} for name in table}


def as_json(report: dict) -> str:
    """JSON with a line per row of numbers."""
    text = io.StringIO()
    numbers_ = report["numbers"]
    text.write(json.dumps({k: v for k, v in report.items() if k != "numbers"} | {"columns": COLUMNS}, indent=1)[:-2])
    text.write(',\n "numbers": {')
    for i, (rules, rows) in enumerate(numbers_.items()):
        lines = ",\n".join(f"   {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        text.write(f'{"," if i else ""}\n  "{rules}": {{\n{lines}\n  }}')
    text.write("\n }\n}\n")
    return text.getvalue()


def as_markdown(report: dict) -> str:
    lines = [
        "# Lesion-wise scores beside the challenges' own codes",
        "",
        f"{report['what']}; {len(REGIONS)} regions each. The largest difference between our numbers and the codes':",
        "",
        "| column | 2026 | 2023 |",
        "|---|---:|---:|",
    ]
    largest = report["largest difference"]
    for column in COLUMNS["2026"]:
        cells = [f"{largest[rules][column]:.1g}" if column in largest[rules] else "" for rules in ("2026", "2023")]
        lines.append(f"| {column} | {cells[0]} | {cells[1]} |")
    differ = {rules: cells for rules, cells in report["cells that differ"].items() if cells}
    for rules, cells in differ.items():
        where = "; ".join(f"pair {row}, {column}" for row, column in cells)
        lines += ["", f"Of {rules}, differs by more than rounding: {where}."]
    if differ:
        lines += [
            "Where the area up to some distance is exactly 95 % of a surface, the last bit of a sum decides which of",
            "two neighbouring distances is the percentile, in the code as in ours.",
        ]
    lines += [
        "",
        "Distances are in mm; those of whole regions under 2026 are in voxels, as its package counts them. NaN beside",
        "NaN and infinity beside infinity count as no difference.",
        "",
        "The scores that this project prints for whole regions (`hd95`, `nsd`) are defined otherwise than those of",
        "2026. On the same pairs, where prediction and truth have a voxel in common, at a spacing of 1, ours less",
        "theirs:",
        "",
        "| | mean | largest, either way |",
        "|---|---:|---:|",
    ]
    for name, row in report["our own scores against those of 2026"].items():
        lines.append(f"| {name} | {row['mean']:+.3f} | {row['largest']:.3f} |")
    lines += ["", f"- command: `{report['command']}`"]
    lines += [f"- code of {rules}: {facts(found)}" for rules, found in report["witnesses"].items()]
    lines += [
        f"- ours: {facts(report['versions'])}, commit {report['commit']}",
        f"- hardware: {report['hardware']}",
        "",
    ]
    return "\n".join(lines)


def facts(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in found.items())


if __name__ == "__main__":
    main()
