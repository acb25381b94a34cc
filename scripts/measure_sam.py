"""Measure the tiny SAM on held-out simulated lesions and shapes, and ship it.

    python scripts/measure_sam.py build/sam/run/sam.safetensors --output results/sam
    python scripts/measure_sam.py build/sam/run/sam.safetensors --ship --hardware "2 CPU cores, shared"

The first writes OUTPUT/tiny.json and OUTPUT/tiny.md: mean IoU of the masks from random prompts for the lesions of
subjects that no training has seen, in each sequence, beside two baselines that see the same box and no image: the box
filled, and the ellipse inscribed in it. SAM has one mask for clear prompts and three for ambiguous ones; of these the
best (judged by the truth, as in SAM's own evaluation), the one that SAM trusts most, and the one that fits the
prediction of shipped students given the same sequence (as SAMPrior chooses) are shown. Below the table it says how
often a box cannot tell what is meant, because the enhancing rim and the core that it surrounds have the same. The
second copies the weights to smml/sam/weights/sam-tiny.safetensors.
"""

import argparse
import json
import platform
import shlex
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from smml.data.case import Case
from smml.data.labels import BRATS_2015, REGIONS, scheme_for_classes
from smml.data.simulation.subject import Subject, simulate_subject
from smml.files import write_text
from smml.inference import Predictor
from smml.modalities import DISPLAY_NAMES
from smml.runs import made_with
from smml.sam import (
    Prompts,
    SquareFit,
    TinyConfig,
    answer,
    best_answers,
    encode,
    intensity_window,
    load_sam,
    read_tiny,
    save_tiny,
)
from smml.sam.calls import embed
from smml.sam.load import WEIGHTS
from smml.sam.training.prompts import draw_points, fill_box, fill_ellipse, iou, jittered_box, mask_box
from smml.sam.training.scenes import HELD_OUT_SEED, VISIBLE, plain_grey

# Objects of fewer voxels than this (225 mm2 at 3 mm) are counted but not part of the means.
SMALLEST = 25
# From this IoU of their exact boxes on, a rim and the core of its slice count as prompted alike.
SAME_BOX = 0.8
# One mask; of three the best, SAM's choice and the students' choice; one mask from other greys and for other prompts;
# no SAM at all.
METHODS = (
    "jittered box", "best of three", "most confident", "as predicted",
    "plain greys", "exact box", "box and points", "one point",
    "box filled", "ellipse", "best threshold", "students",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="tiny or a .safetensors file of a tiny SAM")
    parser.add_argument("--output", type=Path, default=Path("results/sam"), help="folder of the results")
    parser.add_argument("--subjects", type=int, default=16, help="held-out subjects")
    parser.add_argument("--data-seed", type=int, default=HELD_OUT_SEED, help="their cohort's seed")
    parser.add_argument("--spacing", type=float, default=3.0, help="voxel edge in mm")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--students", default="tiny", help="checkpoint of the students that choose among three masks")
    parser.add_argument("--threads", type=int, default=0, help="that compute; 0: as many as torch takes here")
    parser.add_argument("--name", default="tiny", help="name of the two files")
    parser.add_argument("--ship", action="store_true", help="copy the weights into the package instead")
    parser.add_argument("--commit", help="with --ship: the commit that they were trained with")
    parser.add_argument("--hardware", help="with --ship: what they were trained on")
    arguments = parser.parse_args()
    if arguments.ship:
        ship(Path(arguments.weights), arguments.commit, arguments.hardware)
        return
    started = time.monotonic()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    table = measure(arguments)
    facts = {
        "command": "python " + shlex.join(sys.argv),
        "date": date.today().isoformat(),
        "data": f"simulated, seed {arguments.data_seed}, {arguments.subjects} subjects, {arguments.spacing:g} mm, "
        f"axial slices, regions of at least {SMALLEST} voxels",
        "students": arguments.students,
        "prompts": f"seed {arguments.seed}; a jittered box's sides move by up to 10 % of its length, at least a voxel",
        **made_with("torchvision", "segment-anything"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "seconds": round(time.monotonic() - started),
    }
    report(table, facts, arguments.output, arguments.name)


def ship(source: Path, commit: str | None, hardware: str | None) -> None:
    """Copy weights into the package with their provenance; commit and hardware are those in the file if not given."""
    sam, facts = read_tiny(source)
    size = TinyConfig.from_dict(facts["size"])
    kept = ("commit", "hardware", "training", "versions", "multimask", "started from")
    given = {name: value for name, value in (("commit", commit), ("hardware", hardware)) if value}
    made = {name: facts[name] for name in kept if name in facts} | given
    if not made.get("commit") or not made.get("hardware"):
        sys.exit(f"measure_sam.py: {source} does not say on what commit and hardware it was trained; give --commit and "
                 "--hardware")  # fmt: skip
    path = WEIGHTS / "sam-tiny.safetensors"
    save_tiny(sam, path, size, made)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {facts['training']['steps']} steps")


def measure(arguments: argparse.Namespace) -> pd.DataFrame:
    """A row for each held-out object and sequence, with the IoU of every method."""
    sam, students = load_sam(arguments.weights), Predictor.from_checkpoint(arguments.students, refine=False)
    random = np.random.default_rng(arguments.seed)
    rows = []
    for index in range(arguments.subjects):
        subject = simulate_subject(arguments.data_seed, index, spacing=arguments.spacing)
        objects = [
            (position, region, BRATS_2015.region(subject.labels[:, :, position], region))
            for position in range(subject.labels.shape[2])
            for region in REGIONS
        ]
        objects = [item for item in objects if item[2].sum() >= SMALLEST]
        if not objects:
            continue
        shape = subject.labels.shape[:2]
        positions = sorted({position for position, _, _ in objects})
        cores = {position: mask for position, region, mask in objects if region == "TC"}
        repeat = [positions.index(position) for position, _, _ in objects]
        fit = SquareFit.of(sam, shape)
        # The same prompts in every sequence.
        jittered = np.stack([jittered_box(mask, random) for _, _, mask in objects])
        exact = np.array([mask_box(mask) for _, _, mask in objects])
        points = [draw_points(mask, 2, 1, random) for _, _, mask in objects]
        place, label = (torch.from_numpy(np.stack([point[i] for point in points])) for i in (0, 1))
        boxes = torch.from_numpy(jittered)
        asked = {
            "jittered box": Prompts(boxes),
            "exact box": Prompts(torch.from_numpy(exact)),
            "box and points": Prompts(boxes, place, label),
            "one point": Prompts(None, place[:, :1], label[:, :1]),
        }
        predicted = predictions(students, subject, arguments.spacing)
        for name, volume in subject.volumes.items():
            tensor = torch.from_numpy(volume)
            slices = tensor.movedim(2, 0)[positions]
            embeddings = encode(sam, slices, window=intensity_window(tensor))[repeat]
            three, trusted = answer(sam, embeddings, Prompts(boxes), fit, multimask=True)
            wanted = torch.stack([predicted[name][region][:, :, position] for position, region, _ in objects])
            masks = {
                method: answer(sam, embeddings, prompts, fit, multimask=False)[0][:, 0] > 0
                for method, prompts in asked.items()
            }
            # As a reader would hand a slice to SAM's own predictor, with no window of the volume and no darkest grey.
            with torch.no_grad():
                plain = embed(sam, sam.preprocess(fit.resize(plain_grey(slices.float()))[:, None]))[repeat]
            masks["plain greys"] = answer(sam, plain, Prompts(boxes), fit, multimask=False)[0][:, 0] > 0
            masks["most confident"] = three[torch.arange(len(three)), trusted.argmax(dim=1)] > 0
            masks["as predicted"] = best_answers(three.sigmoid(), wanted, boxes) > 0.5
            for i, (position, region, mask) in enumerate(objects):
                scores = {method: iou(found[i].numpy(), mask) for method, found in masks.items()}
                scores["best of three"] = max(iou((logits > 0).numpy(), mask) for logits in three[i])
                scores["students"] = iou((wanted[i] > 0.5).numpy() & fill_box(jittered[i], shape), mask)
                scores["box filled"] = iou(fill_box(jittered[i], shape), mask)
                scores["ellipse"] = iou(fill_ellipse(jittered[i], shape), mask)
                scores["best threshold"] = best_threshold(volume[:, :, position], fill_box(jittered[i], shape), mask)
                facts = {"subject": index, "slice": position, "region": region, "sequence": name}
                if region == "ET" and position in cores:
                    facts |= same_box(mask, cores[position])
                rows.append(facts | {"voxels": int(mask.sum())} | scores)
    return pd.DataFrame(rows)


def predictions(students: Predictor, subject: Subject, spacing: float) -> dict[str, dict[str, torch.Tensor]]:
    """Probabilities [X, Y, Z] of the regions, as students say that are given one sequence, by sequence and region."""
    case = Case("held out", subject.volumes, None, subject.affine, "simulated")
    encoding = students.encode(case)
    found = {}
    for segmentation in students.segment_all(encoding, [(name,) for name in subject.volumes]):
        probabilities = torch.from_numpy(segmentation.probabilities)
        regions = scheme_for_classes(len(probabilities)).regions
        found[segmentation.subset[0]] = {r: probabilities[list(regions[r])].sum(dim=0) for r in REGIONS}
    return found


def same_box(rim: np.ndarray, core: np.ndarray) -> dict[str, float]:
    """IoU of the exact boxes of two masks [H, W], and of the masks themselves."""
    boxes = (fill_box(np.array(mask_box(mask)), mask.shape) for mask in (rim, core))
    return {"box shared with core": iou(*boxes), "IoU with core": iou(rim, core)}


def ambiguity(visible: pd.DataFrame) -> dict[str, float]:
    """What boxes alone allow at most: rims that share their box with the core, and the mean IoU without other errors.

    One mask answers one box. Where a rim R and the core C that it lies in have the same, no mask has more than
    1 + IoU(R, C) of IoU with the two together: a mask between them, x times as large as C, has x + IoU(R, C) / x,
    which is convex in x and so highest at an end, C or R itself.

    Args:
        visible: rows of :func:`measure`, of regions in sequences that show them.
    """
    shared = visible[visible["box shared with core"] > SAME_BOX]
    return {
        "rims": int((visible["region"] == "ET").sum()),
        "rims that share their box": len(shared),
        "IoU of those rims with their cores": float(shared["IoU with core"].mean()),
        "highest mean IoU": 1 - float((1 - shared["IoU with core"]).sum()) / len(visible),
    }


def best_threshold(image: np.ndarray, inside: np.ndarray, mask: np.ndarray) -> float:
    """IoU of the bright part of a box under the threshold that suits the *truth* best: what the image alone holds."""
    levels = np.quantile(image[inside], np.linspace(0.02, 0.98, 40))
    return max(iou(inside & (image > level), mask) for level in levels)


def report(table: pd.DataFrame, facts: dict, output: Path, name: str) -> None:
    """Write the means as JSON and Markdown, and print the latter."""
    methods = list(METHODS)
    groups = table.groupby(["region", "sequence"], sort=False)
    means = groups[methods].mean().reset_index()
    means.insert(2, "objects", groups.size().to_numpy())
    visible = table[[pair in VISIBLE for pair in zip(table["region"], table["sequence"], strict=True)]]
    summaries = {"where the region is visible": visible, "all sequences": table}
    lines = [
        "# The tiny SAM on held-out simulated lesions",
        "",
        "Mean IoU of masks from a prompt. All data simulated.",
        "",
    ]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += ["", "| region | sequence | objects | " + " | ".join(methods) + " |", "|---" * (3 + len(methods)) + "|"]
    for _, row in means.iterrows():
        mark = "" if (row["region"], row["sequence"]) in VISIBLE else " *"
        scores = " | ".join(f"{row[method]:.3f}" for method in methods)
        lines.append(f"| {row['region']} | {DISPLAY_NAMES[row['sequence']]}{mark} | {row['objects']} | {scores} |")
    for title, part in summaries.items():
        scores = " | ".join(f"**{part[method].mean():.3f}**" for method in methods)
        lines.append(f"| {title} | | {len(part)} | {scores} |")
    limits = ambiguity(visible)
    lines += [
        "",
        "\\* the simulated sequence hardly shows this region. The first four columns have the same jittered box:",
        "*jittered box* is SAM's mask for clear prompts; the next three are one of its three for ambiguous ones:",
        "*best of three* by the truth (SAM's own protocol: that it was found, not that it was known), *most confident*",
        f"by the IoU that SAM expects, *as predicted* by the output of `{facts['students']}` from this one sequence,",
        "which is how `SAMPrior` chooses. *Plain greys* is the jittered box's one mask where the slice's grey values",
        "run from 0 to 255 between its own extremes, as they are often made for SAM's own predictor, and not as",
        "`smml.sam` makes them. *Students* is that prediction itself, cut to the box. *Box filled* and *ellipse* see",
        "the box and no image; *best threshold* is the bright part of the box at the level that suits the truth best:",
        "no method, but a measure of what the image holds. Means are over objects (a region in an axial slice), not",
        "over subjects.",
        "",
        f"A box does not always tell what is meant: {limits['rims that share their box']} of {limits['rims']} "
        "enhancing rims have that of the core of the same",
        f"slice (IoU of the exact boxes above {SAME_BOX:g}), while rim and core have an IoU of "
        f"{limits['IoU of those rims with their cores']:.2f}. One mask cannot be right",
        "for both, hence the three: even without any other error, its mean where the region is visible would be "
        f"{limits['highest mean IoU']:.2f}.",
        "",
    ]
    data = {
        "facts": facts,
        "means": means.round(4).to_dict("records"),
        "ambiguity": {name: round(value, 4) for name, value in limits.items()},
        "summary": {title: part[methods].mean().round(4).to_dict() for title, part in summaries.items()},
    }
    text = "\n".join(lines)
    write_text(output / f"{name}.json", json.dumps(data, indent=1) + "\n")
    write_text(output / f"{name}.md", text)
    print(text)


if __name__ == "__main__":
    main()
