"""nnU-Net's ``summary.json`` (version 2), as its evaluation of a folder writes it.

From its source (github.com/MIC-DKFZ/nnUNet, ``nnunetv2/evaluation/evaluate_predictions.py``): ``metric_per_case`` is a
list with ``reference_file``, ``prediction_file`` and ``metrics``, which holds for each region "(1, 2, 3)" or label "3"
its ``Dice`` from 0 to 1, NaN where both are empty, and counts of voxels, ``n_ref`` and ``n_pred``. The file does not
say which sequences the network was given, nor the size of a voxel, and has no distances.

Of three regions inside one another the largest is WT and the smallest ET. A network that was trained on labels has none
but the labels' own scores; of 1, 2, 3, as nnU-Net numbers BraTS and MSD has them, 3 is ET, and the Dice of WT and TC
cannot be told from those of their parts.
"""

import itertools
import json
import math
from pathlib import Path

import pandas as pd

from smml.data.labels import REGIONS
from smml.errors import InputError
from smml.evaluation.formats.cases import case_of
from smml.evaluation.scores import Scores

NAME = "nnU-Net"
_EXPECTED = 'nnU-Net\'s summary.json with "metric_per_case"'
_ADVICE = (
    "evaluate on the regions WT, TC and ET: name them in dataset.json, as nnU-Net's page on region-based training says"
)


def read(path: Path, subset: str) -> Scores:
    """Read such a file.

    Args:
        path: the JSON file.
        subset: what the network was given ("FLAIR+T2"), as :func:`smml.modalities.subset_name` spells it.

    Returns:
        ``case``, ``subset``, ``region``, ``dice``, ``hd95`` (NaN) and ``present``, whether the region is there; rows of
        ET alone where the file holds labels.

    Raises:
        InputError: not such a file, or regions that are not WT, TC and ET; file, entry and value are named.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a JSON file ({error}); expected {_EXPECTED}") from error
    entries = content.get("metric_per_case") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: holds no metric_per_case; expected {_EXPECTED}, which version 2 writes")
    regions: dict[str, str] | None = None
    rows: list[dict] = []
    seen: dict[str, int] = {}
    for number, entry in enumerate(entries, start=1):
        place = f"{path}: entry {number} of metric_per_case"
        if not isinstance(entry, dict) or not isinstance(entry.get("metrics"), dict):
            raise InputError(f"{place} has no metrics; expected {_EXPECTED}")
        file = entry.get("reference_file") or entry.get("prediction_file")
        if not isinstance(file, str):
            raise InputError(f"{place} names no case; expected reference_file or prediction_file")
        case = case_of(file)
        if case in seen:
            raise InputError(f"{place}: case {case} stands in entry {seen[case]} too; one entry each")
        seen[case] = number
        regions = regions or _regions(path, list(entry["metrics"]))
        for region, key in regions.items():
            dice, there = _dice(f"{place} ({case}), {key}", entry["metrics"].get(key))
            rows.append({"case": case, "subset": subset, "region": region, "dice": dice, "present": there})
    known = ", ".join(f"{region} from {key}" for region, key in (regions or {}).items())
    return Scores(
        pd.DataFrame(rows).assign(hd95=math.nan),
        f"nnU-Net's summary.json, given {subset}; {known}; both empty, which nnU-Net leaves out, counts 1; no HD95",
    )


def _regions(path: Path, keys: list[str]) -> dict[str, str]:
    """Which of the file's keys is which region."""
    labels = {}
    for key in keys:
        try:
            labels[key] = frozenset(int(part) for part in key.strip("()").split(",") if part.strip())
        except ValueError:
            labels[key] = frozenset()
    order = sorted(labels, key=lambda key: -len(labels[key]))
    if sorted(labels.values(), key=sorted) == [frozenset({1}), frozenset({2}), frozenset({3})]:
        return {"ET": next(key for key in labels if labels[key] == {3})}
    nested = all(labels[small] < labels[large] for large, small in itertools.pairwise(order))
    if len(order) != len(REGIONS) or not nested or not labels[order[-1]]:
        raise InputError(
            f"{path}: holds scores of {', '.join(keys) or 'nothing'}; expected three regions inside one another, such "
            f'as "(1, 2, 3)", "(2, 3)" and "3", or the labels 1, 2 and 3; {_ADVICE}'
        )
    return dict(zip(REGIONS, order, strict=True))


def _dice(place: str, metrics: object) -> tuple[float, bool]:
    """Dice in the literature's way, and whether the region is there."""
    value = metrics.get("Dice") if isinstance(metrics, dict) else None
    if isinstance(metrics, dict) and "Dice" in metrics and (value is None or value != value):
        return 1.0, False
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1 + 1e-6:
        raise InputError(f"{place}: Dice must lie in [0, 1] or be NaN, found {value!r}; per cent / 100")
    assert isinstance(metrics, dict)
    count = metrics.get("n_ref")
    if isinstance(count, bool) or not isinstance(count, int | float) or not count >= 0:
        raise InputError(f"{place}: n_ref must be a number of voxels, found {count!r}; expected {_EXPECTED}")
    return float(value), count > 0
