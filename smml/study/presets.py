"""The arms of the ablation study, and its sizes: fixed before the first run, so that no result can choose them."""

from dataclasses import asdict, dataclass, field, replace

import torch

from smml.data.simulation.imaging import find_look
from smml.errors import InputError
from smml.options import SEED, SPACING, check, count
from smml.training import TrainingConfig


@dataclass(frozen=True)
class Arm:
    """One way of training, and which of its outputs is scored.

    Attributes:
        title: for tables.
        options: what differs from the defaults of :class:`~smml.training.TrainingConfig`.
        output: which rows of ``evaluate`` count: "student" (mean of both students), "branch 1" or "refined".
        trained_as: name of the arm whose training run this one shares; None has its own.
        parents: the arms that it is compared with.
        wide: whether its students have the parameters of two: preset "tiny-wide" instead of "tiny".
        longer: how many times the study's steps it is trained.
    """

    title: str
    options: dict = field(default_factory=dict)
    output: str = "student"
    trained_as: str | None = None
    parents: tuple[str, ...] = ()
    wide: bool = False
    longer: int = 1


_NO_EXCHANGE = {"pixel_weight": 0.0, "feature_weight": 0.0}
# Gates weighted by class, as the cross-entropy is.
_PIXEL = {"pixel_weight": 1.0, "gate_min_class_weight": 0.05}
_EVEN = {"pixel_weight": 1.0, "gate_min_class_weight": 1.0}
# The refinement's cross-entropy weighted by class too.
_REFINED = {"refinement": "tiny", "refinement_min_class_weight": 0.05}

ARMS: dict[str, Arm] = {
    # Without exchange nothing couples the two students, not even clipping: branch 1 of "pair" is, to the bit, the
    # student that would have been trained alone on the same samples and masks (tests/study).
    "single": Arm("(a) one student, random masks", output="branch 1", trained_as="pair"),
    "pair": Arm("(b) two students, no exchange, averaged", _NO_EXCHANGE, parents=("single",)),
    "pixel": Arm("(c) b + pixel consistency", _PIXEL | {"feature_weight": 0.0}, parents=("pair",)),
    "feature": Arm("(d) b + feature consistency", {"pixel_weight": 0.0}, parents=("pair",)),
    "both": Arm("(e) b + both", _PIXEL, parents=("pair", "single", "pixel", "feature")),
    "refined": Arm("(f) e + refinement", _PIXEL | _REFINED, output="refined", parents=("both", "pair", "single")),
}

# What the paper leaves open (docs/METHOD.md), each against the arm that it changes: why they are here is said in
# results/study.
READINGS: dict[str, Arm] = {
    "pixel-weak": Arm(
        "(c) with l_pc = 0.1",
        {"pixel_weight": 0.1, "feature_weight": 0.0, "gate_min_class_weight": 0.05},
        parents=("pixel", "pair"),
    ),
    "pixel-even": Arm("(c) with even gates", _EVEN | {"feature_weight": 0.0}, parents=("pixel", "pair")),
    "both-even": Arm("(e) with even gates", _EVEN, parents=("both", "pair", "single", "pixel-even")),
    "refined-even": Arm(
        "(f) with even gates",
        _EVEN | _REFINED,
        output="refined",
        parents=("refined", "both-even", "pair", "single"),
    ),
    "refined-flat": Arm(
        "(f) with even gates and refinement",
        _EVEN | {"refinement": "tiny", "refinement_min_class_weight": 1.0},
        output="refined",
        parents=("refined-even", "both-even", "pair", "single", "wide", "average"),
    ),
    # A class-weighted cross-entropy calls too much, and even gates pull back from that. What of (e) is left where no
    # voxel weighs more than another, so that there is nothing to pull back from?
    "pair-unweighted": Arm(
        "(b) with an unweighted cross-entropy", _NO_EXCHANGE | {"min_class_weight": 1.0}, parents=("pair",)
    ),
    "both-unweighted": Arm(
        "(e) with even gates and an unweighted cross-entropy",
        _EVEN | {"min_class_weight": 1.0},
        parents=("both-even", "pair-unweighted"),
    ),
    "refined-unweighted": Arm(
        "(f) with even gates and refinement and an unweighted cross-entropy",
        _EVEN | {"min_class_weight": 1.0, "refinement": "tiny", "refinement_min_class_weight": 1.0},
        output="refined",
        parents=("refined-flat", "both-unweighted", "pair-unweighted"),
    ),
    "gate-correct": Arm("(e) with even gates, `correct`", _EVEN | {"gate": "correct"}, parents=("both-even",)),
    "gate-entropy": Arm("(e) with even gates, `entropy`", _EVEN | {"gate": "entropy"}, parents=("both-even",)),
    "gate-none": Arm("(e) with even gates, `none`", _EVEN | {"gate": "none"}, parents=("both-even",)),
    "no-classes": Arm("(e) with even gates, without L_cls", _EVEN | {"class_weight": 0.0}, parents=("both-even",)),
    "masked-heads": Arm(
        "(e) with even gates, masked sep heads", _EVEN | {"separate_heads": "masked"}, parents=("both-even",)
    ),
}

# What the cost of a second student buys otherwise. Each is branch 1 of two students that exchange nothing, as (a) is.
RIVALS: dict[str, Arm] = {
    "wide": Arm(
        "(g) one student with the parameters of two",
        _NO_EXCHANGE,
        output="branch 1",
        parents=("single", "pair"),
        wide=True,
    ),
    "average": Arm(
        "(h) one student, twice the steps, the average of its weights",
        _NO_EXCHANGE | {"ema": 0.995},
        output="branch 1",
        parents=("single", "pair"),
        longer=2,
    ),
}

EVERY_ARM: dict[str, Arm] = ARMS | READINGS | RIVALS


def arm_label(name: str) -> str:
    """What figures and tables call an arm: "(a)", and for a reading also what it changes: "(e) both-even".

    Args:
        name: a key of ``EVERY_ARM``.
    """
    letter = EVERY_ARM[name].title.split(" ")[0]
    return f"{letter} {name}" if name in READINGS else letter


def arms_named(names: list[str] | None) -> dict[str, Arm]:
    """Arms by name, in their order; None gives those of the ablation, (a) to (f).

    Raises:
        InputError: a name is unknown; the valid ones are listed.
    """
    # A list, as a name from a file may be of a type that a dictionary cannot look up.
    unknown = [name for name in names or () if name not in list(EVERY_ARM)]
    if unknown:
        raise InputError(f"unknown arm {unknown[0]!r}: choose from {', '.join(EVERY_ARM)}")
    return {name: arm for name, arm in EVERY_ARM.items() if name in (names if names is not None else ARMS)}


@dataclass(frozen=True)
class StudyPreset:
    """Sizes of a study.

    Attributes:
        spacing: of the simulated cohorts, mm.
        training_cases: simulated subjects to train on.
        held_out_cases: simulated subjects that no arm sees.
        data_seed: cohort seed of the training subjects; the held-out ones have ``data_seed + 1``.
        seeds: of weights, samples and masks, one training a seed and arm.
        training: options of every arm; not those that the study or an arm decides.
        look: of the simulated subjects, "typical" or "varied" (:mod:`smml.data.simulation`).
        arms: of a complete study, names of ``EVERY_ARM``.

    Raises:
        InputError: a value of another type or out of its range, or options that no training takes.
    """

    spacing: float = field(metadata={"range": SPACING})
    training_cases: int = field(metadata={"range": count(100_000)})
    held_out_cases: int = field(metadata={"range": count(100_000)})
    data_seed: int = field(metadata={"range": SEED})
    seeds: tuple[int, ...]
    training: dict
    look: str = "typical"
    arms: tuple[str, ...] = tuple(ARMS)

    def __post_init__(self) -> None:
        check(self)
        if not self.seeds or len(set(map(str, self.seeds))) < len(self.seeds):
            raise InputError(f"seeds must be one or more different ones, found {self.seeds!r}")
        find_look(self.look)
        if not self.arms or len(set(map(str, self.arms))) < len(self.arms):
            raise InputError(f"arms must be one or more different ones, found {self.arms!r}")
        arms_named(list(self.arms))
        decided = {"spacing", "seed", "device"}.union(*(arm.options for arm in EVERY_ARM.values()))
        taken = sorted(decided & self.training.keys())
        if taken:
            raise InputError(f"training must leave {', '.join(taken)} to the study and its arms; take them out of it")
        for seed in self.seeds:
            TrainingConfig.from_dict(self.training | {"spacing": self.spacing, "seed": seed})
        for arm in self.arms:
            self.config(EVERY_ARM[arm], self.seeds[0])

    def config(self, arm: Arm, seed: int, device: str | torch.device = "cpu") -> TrainingConfig:
        """Options of one training run.

        Args:
            arm: what is trained.
            seed: one of ``seeds``.
            device: torch device.
        """
        # Every run of a study computes in the same precision, whatever is fastest where it is trained.
        options = {"precision": "float32"} | self.training | arm.options
        config = TrainingConfig(**options, spacing=self.spacing, seed=seed, device=str(device))
        wide = f"{config.preset}-wide" if arm.wide else config.preset
        return replace(config, preset=wide, steps=arm.longer * config.steps)

    def to_dict(self) -> dict:
        """Plain values, as JSON gives them back."""
        return asdict(self) | {"seeds": list(self.seeds), "arms": list(self.arms)}


# 15 trainings, of coarse images and not to the end: some three hours on two CPU cores, a thread each. The rate was
# chosen on other subjects (cohort seed 312, arm "pair", 110 steps: a lower loss than 1e-3).
_CPU = StudyPreset(
    spacing=4.0,
    training_cases=80,
    held_out_cases=16,
    data_seed=300,
    seeds=(0, 1, 2),
    training={
        "preset": "tiny", "steps": 500, "batch_size": 2, "patch": 32, "learning_rate": 2e-3, "tumour_share": 0.5,
        "checkpoint_every": 50,
    },
)  # fmt: skip

# The second study, harder and larger. Its arms take the readings that the first one led to, which are the defaults.
_CPU2 = StudyPreset(
    spacing=4.0,
    training_cases=96,
    held_out_cases=64,
    data_seed=340,
    seeds=(0, 1, 2, 3, 4, 5),
    training={
        "preset": "tiny", "steps": 600, "batch_size": 2, "patch": 32, "learning_rate": 2e-3, "tumour_share": 0.5,
        "appearance": 0.5, "precision": "bf16", "checkpoint_every": 50,
    },
    look="varied",
    arms=("single", "pair", "pixel-even", "feature", "both-even", "refined-flat", "wide", "average"),
)  # fmt: skip

STUDIES: dict[str, StudyPreset] = {
    "cpu": _CPU,
    "cpu2": _CPU2,
    # To look for reasons on subjects and seeds of which no figure of a study is made.
    "probe": replace(_CPU, held_out_cases=8, data_seed=330, seeds=(10, 11)),
    # The second study's intervals came from its 64 cases more than from its seeds: here are more of them.
    "probe2": replace(
        _CPU2,
        held_out_cases=160,
        data_seed=350,
        seeds=(10, 11, 12),
        arms=("single", "pair", "both-even", "pair-unweighted", "both-unweighted"),
    ),
    # On one large card.
    "gpu": StudyPreset(
        spacing=3.0,
        training_cases=160,
        held_out_cases=24,
        data_seed=310,
        seeds=(0, 1, 2),
        training={
            "preset": "small", "steps": 1000, "batch_size": 4, "patch": 48, "learning_rate": 1e-3, "tumour_share": 0.5,
            "checkpoint_every": 500, "workers": 8,
        },
    ),
    # For tests: says nothing about the method.
    "smoke": StudyPreset(
        spacing=6.0,
        training_cases=2,
        held_out_cases=2,
        data_seed=320,
        seeds=(0, 1),
        training={"preset": "tiny", "steps": 2, "batch_size": 2, "patch": 32, "checkpoint_every": 1},
    ),
}  # fmt: skip


def study_preset(name: str) -> StudyPreset:
    """Look up a preset.

    Args:
        name: a key of ``STUDIES``: "cpu", "cpu2", "probe", "probe2", "gpu" or "smoke".

    Raises:
        InputError: the name is unknown; the valid ones are listed.
    """
    if name not in STUDIES:
        raise InputError(f"unknown study preset {name!r}: choose from {', '.join(STUDIES)}")
    return STUDIES[name]
