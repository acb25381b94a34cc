"""How common a region is: the share of the brain's voxels that belong to it, which needs no image to be told.

It is the value of the empty set of sequences, from which contributions are counted
(:mod:`smml.inference.contributions`).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from tqdm.auto import tqdm

from smml.data.case import Case
from smml.data.labels import REGIONS, Region
from smml.data.layouts import CaseFiles
from smml.data.reading import read_case
from smml.errors import InputError

# What counts for a model whose checkpoint does not say it: that of the simulated subjects on which the weights that
# ship are trained (cohort seed 11, which `scripts/measure_prevalence.py` measured: results/prevalence).
PREVALENCE: dict[Region, float] = {"WT": 0.04455, "TC": 0.01745, "ET": 0.00594}


def measure_prevalence(cases: Sequence[CaseFiles | Case], *, progress: bool = True) -> dict[Region, float]:
    """The share of the brains' voxels that belong to WT, TC and ET, over all cases together.

    Args:
        cases: labelled ones. The brain of a case is that of any of its sequences.
        progress: show a progress bar.

    Raises:
        InputError: no case, one without a label, or one that cannot be read.
    """
    if not len(cases):
        raise InputError("no cases to measure the prevalence on: name a folder that holds some")
    inside, brain_ml = dict.fromkeys(REGIONS, 0.0), 0.0
    for item in tqdm(cases, desc="measuring", unit="case", disable=not progress):
        case = item if isinstance(item, Case) else read_case(item)
        if case.label is None:
            raise InputError(f"case {case.id}: has no segmentation; measure the prevalence on labelled cases")
        brain = case.brain
        voxel = float(np.prod(case.spacing)) / 1000
        brain_ml += voxel * int(brain.sum())
        for region in REGIONS:
            inside[region] += voxel * int(case.scheme.region(case.label, region)[brain].sum())
    return {region: volume / brain_ml for region, volume in inside.items()}


def check_prevalence(prevalence: object) -> dict[Region, float] | None:
    """Prevalence as it comes from a file or a caller; None stays None.

    Raises:
        InputError: something else than a share in [0, 1] for each region.
    """
    if prevalence is None:
        return None
    # Not isinstance: True is an int. A NaN fails the comparison.
    if (
        not isinstance(prevalence, Mapping)
        or set(prevalence) != set(REGIONS)
        or not all(type(value) in (int, float) and 0 <= value <= 1 for value in prevalence.values())
    ):
        raise InputError(
            f"prevalence must be a share in [0, 1] for each of {', '.join(REGIONS)}, found {prevalence!r:.80}"
        )
    return {region: float(prevalence[region]) for region in REGIONS}
