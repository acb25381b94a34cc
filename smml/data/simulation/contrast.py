"""How bright each tissue is in each sequence: signal equations, and for training what lies far beyond them.

Conventional spin echo: S = PD (1 - exp(-TR/T1)) exp(-TE/T2). With an inversion pulse TI before it (FLAIR, and many T1
protocols): S = PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2). Contrast agent shortens T1 where the blood-brain
barrier leaks or where there is none: in enhancing tumour, vessels, dura and choroid plexus.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from smml.data.simulation.draws import Draws
from smml.modalities import MODALITIES

TISSUES = (
    "white", "grey", "deep", "csf", "gliosis", "ED", "NET", "ET", "NCR", "blood", "calcium core", "calcium",
    "artery", "vein", "vessel", "sinus", "dura", "plexus", "outside",
)  # fmt: skip


@dataclass(frozen=True)
class Contrast:
    """Levels of one sequence.

    Attributes:
        level: by tissue, in standard deviations from the mean of a normal brain's tissue.
        mean, deviation: the mean and that deviation, in arbitrary units of signal.
    """

    level: dict[str, float]
    mean: float
    deviation: float


class Tissue(NamedTuple):
    """Relaxation times in ms and proton density relative to water."""

    t1: float
    t2: float
    pd: float


@dataclass(frozen=True)
class Protocol:
    """Repetition, echo and inversion time of one sequence in ms; without an inversion ``ti`` is None."""

    tr: float
    te: float
    ti: float | None = None

    def signal(self, tissue: Tissue) -> float:
        """Signal of a tissue, relative to water at full recovery."""
        decay = tissue.pd * math.exp(-self.te / tissue.t2)
        if self.ti is None:
            return decay * (1 - math.exp(-self.tr / tissue.t1))
        return decay * abs(1 - 2 * math.exp(-self.ti / tissue.t1) + math.exp(-self.tr / tissue.t1))


# Share of white matter, grey matter and CSF in a normal brain.
_SHARES = {"white": 0.38, "grey": 0.46, "csf": 0.16}


def draw_contrasts(draws: Draws, *, freedom: float) -> dict[str, Contrast]:
    """Draw a subject's tissues and protocols and image the one with the other.

    Args:
        draws: the stream "contrast".
        freedom: 0 keeps to the signal equations; with 1 each tissue in each sequence also has a level of its own, in
            a range far wider than physics. What remains a rule: oedema is brighter than white matter on FLAIR and T2,
            and enhancing tumour stands out more on T1ce than on T1.
    """
    tissues, enhanced = draw_tissues(draws)
    contrasts = {}
    for name in MODALITIES:
        protocol = draw_protocol(draws, name)
        shown = tissues | enhanced if name == "t1ce" else tissues
        levels = {key: protocol.signal(tissue) for key, tissue in shown.items()}
        mean = sum(share * levels[key] for key, share in _SHARES.items())
        deviation = math.sqrt(sum(share * (levels[key] - mean) ** 2 for key, share in _SHARES.items()))
        # A protocol without contrast between tissues does not exist: its lesions would be brighter than any.
        deviation = max(deviation, 0.09 * mean)
        levels = {key: (value - mean) / deviation for key, value in levels.items()}
        contrasts[name] = Contrast(levels, mean, deviation)
    _set_free(contrasts, draws, freedom)
    return contrasts


def draw_tissues(draws: Draws) -> tuple[dict[str, Tissue], dict[str, Tissue]]:
    """A subject's tissues by name (``TISSUES``), and those that contrast agent reaches once more, after it.

    Args:
        draws: the stream "contrast", or :class:`~smml.data.simulation.draws.Middle` for the typical subject.
    """

    def about(value: float, share: float = 0.05) -> float:
        return value * math.exp(draws.normal(share))

    between = draws.between
    wet = between(0, 1)
    tissues = {
        "white": Tissue(about(830), about(80), 0.70),
        "grey": Tissue(about(1330), about(103), about(0.81, 0.02)),
        "csf": Tissue(about(4000, 0.04), about(1500), 1.0),
    }
    deep = between(0.3, 0.9)
    t1, t2, pd = (w + deep * (g - w) for w, g in zip(tissues["white"], tissues["grey"], strict=True))
    tissues["deep"] = Tissue(t1, t2 * between(0.82, 1.0), pd)
    tissues["gliosis"] = Tissue(between(1100, 1600), between(150, 280), 0.87)
    tissues["ED"] = Tissue(1550 + 650 * wet + draws.normal(100), 180 + 100 * wet + draws.normal(10), 0.89 + 0.05 * wet)
    tissues["NET"] = Tissue(between(1500, 2200), between(150, 250), between(0.84, 0.94))
    tissues["ET"] = Tissue(between(1650, 2250), between(160, 265), between(0.84, 0.90))
    kind = draws.choice({"necrosis": 0.55, "cyst": 0.25, "thick": 0.20})
    tissues["NCR"] = {
        "necrosis": Tissue(between(2150, 3150), between(180, 380), between(0.86, 0.95)),
        "cyst": Tissue(between(2900, 3900), between(300, 1200), between(0.95, 1.0)),
        "thick": Tissue(between(1700, 2300), between(140, 260), between(0.84, 0.92)),
    }[kind]
    tissues["blood"] = {
        "fresh": Tissue(between(1200, 1800), between(35, 70), 0.85),
        "old": Tissue(between(350, 800), between(60, 200), 0.9),
    }[draws.choice({"fresh": 0.4, "old": 0.6})]
    tissues["calcium"] = Tissue(between(900, 1500), between(25, 60), between(0.3, 0.6))
    tissues["calcium core"] = tissues["calcium"]
    for name in ("artery", "vein", "vessel", "sinus"):
        # Flowing blood loses signal in spin echoes.
        tissues[name] = Tissue(between(1200, 1800), between(60, 160), between(0.35, 0.95))
    tissues["dura"] = Tissue(between(900, 1400), between(40, 90), between(0.6, 0.8))
    tissues["plexus"] = Tissue(between(1400, 2500), between(90, 180), 0.85)
    tissues["outside"] = Tissue(between(800, 3500), between(50, 160), between(0.3, 0.8))

    def leak(name: str, low: float, high: float) -> Tissue:
        t1, t2, pd = tissues[name]
        return Tissue(1 / (1 / t1 + between(low, high)), t2, max(pd, 0.8))

    # Relaxation rates added, 1/ms. T1 of 700 ms stands out little, of 200 ms more than anything.
    enhanced = {
        "ET": leak("ET", 0.00045, 0.00105) if draws.chance(0.85) else leak("ET", 0.0010, 0.0024),
        "artery": leak("artery", 0.0018, 0.0070),
        "vein": leak("vein", 0.0018, 0.0070),
        "vessel": leak("vessel", 0.0018, 0.0060),
        "sinus": leak("sinus", 0.0025, 0.0090),
        "dura": leak("dura", 0.0010, 0.0040),
        "plexus": leak("plexus", 0.0008, 0.0045),
        "grey": tissues["grey"]._replace(t1=1 / (1 / tissues["grey"].t1 + between(0.0, 0.00006))),
        "NCR": leak("NCR", 0.0, 0.00006) if draws.chance(0.8) else leak("NCR", 0.0, 0.0003),
    }
    return tissues, enhanced


def draw_protocol(draws: Draws, name: str) -> Protocol:
    """The protocol of one sequence.

    Args:
        draws: as for :func:`draw_tissues`.
        name: one of ``MODALITIES``.
    """
    if name == "flair":
        tr, te = draws.between(8000, 11000), draws.between(95, 140)
        # Near the null of CSF.
        return Protocol(tr, te, 4000 * math.log(2 / (1 + math.exp(-tr / 4000))) * draws.between(0.93, 1.04))
    if name == "t2":
        return Protocol(draws.between(3500, 6500), draws.between(80, 115))
    if draws.chance(0.4):
        return Protocol(draws.between(1800, 2300), draws.between(2.5, 5), draws.between(850, 1050))
    return Protocol(draws.between(420, 720), draws.between(8, 15))


# Standard deviation of what freedom adds to a tissue's level.
_FREEDOM = {
    "white": 0.25, "grey": 0.25, "csf": 0.45, "deep": 0.3, "gliosis": 0.8, "ED": 0.5, "NET": 0.6, "ET": 0.5,
    "NCR": 0.8, "blood": 1.0, "calcium": 0.8, "calcium core": 0.8, "outside": 1.3,
}  # fmt: skip

# Where freedom puts vessels and coverings on T1ce: least and most above grey matter.
_VASCULAR = (
    ("artery", 0.5, 18.0), ("vein", 0.5, 18.0), ("vessel", 0.5, 18.0), ("sinus", 1.0, 20.0), ("dura", 0.2, 12.0),
    ("plexus", 0.2, 12.0),
)  # fmt: skip


def _set_free(contrasts: dict[str, Contrast], draws: Draws, freedom: float) -> None:
    """Move the levels at random, then restore the rules; in place."""
    before_after = ("t1", "t1ce")
    shared = {key: draws.normal(0.7 * width) for key, width in _FREEDOM.items()}
    for name in MODALITIES:
        level = contrasts[name].level
        for key in TISSUES:
            width = _FREEDOM.get(key, 0.7)
            move = draws.normal(width)
            if name in before_after and key in shared:
                # T1 and T1ce show the same tissue; only a part of the move is their own.
                move = shared[key] + 0.4 * move
            level[key] += freedom * move
    flair, after, before, t2 = (contrasts[name].level for name in ("flair", "t1ce", "t1", "t2"))
    rank = draws.between(0, 1)
    for level, least in ((flair, 0.7), (t2, 0.4)):
        level["ED"] = max(level["ED"], max(level["white"], level["grey"] - 0.3) + least)
        level["gliosis"] = max(level["gliosis"], level["white"] + 0.3)
    if freedom > 0:
        # Dark cysts and bright clots, and scars as bright as a tumour.
        if draws.chance(0.5):
            flair["NCR"] += freedom * (draws.between(-3.0, 11.0) - flair["NCR"])
        if draws.chance(0.4):
            flair["gliosis"] += freedom * draws.between(0.0, 7.0)
        # Faint ones and bright ones, more evenly than relaxation gives.
        lift = draws.between(0.3, 2.4) if rank < 0.75 else draws.between(2.0, 4.5)
        after["ET"] += freedom * 0.6 * (max(after["white"], after["grey"]) + lift - after["ET"])
        # Vessels and coverings brighter than any tumour, in a few heads all of them faint.
        most = 0.25 if draws.chance(0.12) else 1.0
        for key, low, high in _VASCULAR:
            after[key] += freedom * 0.8 * (after["grey"] + draws.between(low, most * high) - after[key])
    gain = contrasts["t1"].deviation / contrasts["t1"].mean * contrasts["t1ce"].mean / contrasts["t1ce"].deviation
    same = after["white"] + min(1.0, gain) * (before["ET"] - before["white"])
    after["ET"] = max(after["ET"], same + 0.7, max(after["white"], after["grey"]) + 0.25)
