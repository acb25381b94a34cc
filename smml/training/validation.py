"""Validation during training: a fixed list of subsets on cases that training never sees, and what follows from it.

**The rule of the best checkpoint.** The score of a validation is the mean Dice of the students: over the cases, then
over WT, TC and ET, then over ``VALIDATION_SUBSETS``. ``best.pt`` holds the weights of the highest score so far, the
earlier one of equal scores. The list is fixed, so that scores of different steps and runs compare; the table over all
15 subsets is what ``smml evaluate`` is for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smml.data.labels import REGIONS
from smml.data.layouts import CaseFiles, find_cases
from smml.errors import InputError
from smml.evaluation.evaluate import Scored, score_cases
from smml.inference import Predictor
from smml.modalities import parse_subset, subset_name
from smml.models.smml import SMML
from smml.ranks import Ranks
from smml.runs import file_digest
from smml.training.config import TrainingConfig

# All sequences, two common pairs, and the two single ones that show different parts of a tumour.
VALIDATION_SUBSETS: tuple[str, ...] = ("flair+t1ce+t1+t2", "flair+t1ce", "t1+t2", "flair", "t1ce")
VALIDATION_COLUMNS: tuple[str, ...] = (
    "step",
    "dice",
    *(f"dice_{region}" for region in REGIONS),
    *(f"dice_{subset_name(subset)}" for subset in VALIDATION_SUBSETS),
)


@dataclass
class BestScore:
    """The highest score so far.

    Attributes:
        dice: the score, -1 before the first validation.
        step: steps done when it was reached.
        since: validations since then that did not improve on it.
    """

    dice: float = -1.0
    step: int = 0
    since: int = 0

    def take(self, dice: float, step: int) -> bool:
        """Take in a new score; says whether it is the best."""
        if dice > self.dice:
            self.dice, self.step, self.since = dice, step, 0
            return True
        self.since += 1
        return False


def split_cases(files: Sequence[CaseFiles], config: TrainingConfig) -> tuple[list[CaseFiles], list[CaseFiles]]:
    """The cases to train on and those to validate on, by ``config.validation`` or ``config.holdout``.

    No patient is on both sides. Which patients are held out follows from the seed and the order of the cases alone.

    Raises:
        InputError: no case would be left to train on, a patient of the folder is trained on too, or a case has no
            label.
    """
    files = list(files)
    if not config.validate_every:
        return files, []
    if config.validation:
        held = find_cases(config.validation)
        ours = {case.patient: case.id for case in files}
        same = {case.patient: case.id for case in held if case.patient in ours}
        if same:
            there = min(same.values())
            here = ours[next(patient for patient, case in same.items() if case == there)]
            as_what = "" if here == there else f", trained on as {here}"
            raise InputError(
                f"validation: {config.validation} holds {len(same)} of the patients that are trained on (for example "
                f"{there}{as_what}); name a folder of other patients, or hold some out with holdout"
            )
        _check_copies(files, held)
    else:
        patients = list(dict.fromkeys(case.patient for case in files))
        count = max(1, round(config.holdout * len(patients)))
        if count >= len(patients):
            raise InputError(
                f"holdout of {config.holdout:g} leaves none of the {len(patients)} patients to train on: lower it, or "
                "give more cases"
            )
        order = np.random.default_rng([config.seed, 5]).permutation(len(patients))
        chosen = {patients[number] for number in order[:count]}
        held = [case for case in files if case.patient in chosen]
        files = [case for case in files if case.patient not in chosen]
    unlabelled = [case.id for case in held if case.label is None]
    if unlabelled:
        raise InputError(f"validation: case {unlabelled[0]} has no segmentation; validate on labelled cases")
    return files, held


def _check_copies(files: Sequence[CaseFiles], held: Sequence[CaseFiles]) -> None:
    """Refuse to validate on images that are trained on under other names."""
    ours = {file_digest(source.path): case.id for case in files for source in list(case.images.values())[:1]}
    for case in held:
        for source in list(case.images.values())[:1]:
            if known := ours.get(file_digest(source.path)):
                raise InputError(
                    f"validation: {source.path} is the image of case {known}, which is trained on; name a folder of "
                    "other patients"
                )


def validate(
    model: SMML,
    files: Sequence[CaseFiles],
    step: int,
    config: TrainingConfig,
    spacing: tuple[float, float, float],
    ranks: Ranks,
) -> dict[str, float]:
    """Score the students on the cases held out, shared out over the ranks.

    Args:
        model: comes back in the mode in which it came.
        files: labelled cases.
        step: steps done.
        config: of the run.
        spacing: of the prepared grid, mm.
        ranks: all of them must call.

    Returns:
        A row of ``validation.csv``: ``step``, ``dice`` (the score), and its means by region and by subset. Dice are
        shares of 1; NaN for a subset that no case has.
    """
    was_training = model.training
    try:
        predictor = Predictor(
            model, spacing, patch=config.patch, device=ranks.device, preprocessing=config.preprocessing
        )
        what = Scored(tuple(map(parse_subset, VALIDATION_SUBSETS)), distances=False)
        scores = score_cases(predictor, files, what, ranks=ranks).frame
    finally:
        model.train(was_training)
    if scores.empty:
        raise InputError("validation: no case has the sequences of a subset that is scored; validate on other cases")
    by_both = scores.groupby(["subset", "region"])["dice"].mean()
    by_subset = {name: by_both[name].mean() for name in by_both.index.levels[0]}
    return {
        "step": step,
        "dice": float(np.mean(list(by_subset.values()))),
        **{f"dice_{region}": float(by_both.xs(region, level="region").mean()) for region in REGIONS},
        **{
            name: by_subset.get(name.removeprefix("dice_"), math.nan) for name in VALIDATION_COLUMNS[2 + len(REGIONS) :]
        },
    }
