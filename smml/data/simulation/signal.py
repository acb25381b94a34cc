"""From tissue to the four sequences: spin-echo signal equations, then everything that a scanner adds.

Conventional spin echo: S = PD (1 - exp(-TR/T1)) exp(-TE/T2). FLAIR adds an inversion pulse TI before it:
S = PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2), which nulls CSF. Contrast agent shortens T1 where the blood-brain
barrier leaks (enhancing tumour) and in vessels, which is all that tells T1ce from T1.
"""

import math
from dataclasses import dataclass, replace

import torch

from smml.data.simulation.anatomy import Anatomy
from smml.data.simulation.fields import Grid, gaussian_blur, smooth_noise, uniform
from smml.data.simulation.tumour import Tumour


@dataclass(frozen=True)
class Tissue:
    """Relaxation times in ms and proton density relative to water."""

    t1: float
    t2: float
    pd: float


# At 1.5 to 3 T, literature values rounded. NET and ET differ little from oedema before contrast: that is what makes
# T1ce indispensable for ET, and FLAIR and T2 for ED.
TISSUES: dict[str, Tissue] = {
    "white": Tissue(830, 80, 0.70),
    "grey": Tissue(1330, 110, 0.82),
    "csf": Tissue(4000, 1500, 1.00),
    "NCR": Tissue(1900, 200, 0.95),
    "ED": Tissue(1500, 170, 0.90),
    "NET": Tissue(1550, 148, 0.91),
    "ET": Tissue(1450, 140, 0.89),
    "vessel": Tissue(1600, 120, 0.85),
}
T1_ENHANCED = {"ET": (300.0, 700.0), "vessel": (320.0, 500.0)}


@dataclass(frozen=True)
class Sequence:
    """One pulse sequence and the quality of its images.

    Attributes:
        tr, te, ti: repetition, echo and inversion time in ms (``ti`` None: no inversion).
        noise: standard deviation of the Rician noise, as a share of white matter's signal.
        bias: standard deviation of the log bias field.
        blur: standard deviation of the point spread, mm, in plane and across slices.
    """

    tr: float
    te: float
    ti: float | None
    noise: float
    bias: float
    blur: tuple[float, float]

    def signal(self, tissue: Tissue) -> float:
        """Signal of a tissue, relative to water at full recovery."""
        decay = tissue.pd * math.exp(-self.te / tissue.t2)
        if self.ti is None:
            return decay * (1 - math.exp(-self.tr / tissue.t1))
        return decay * abs(1 - 2 * math.exp(-self.ti / tissue.t1) + math.exp(-self.tr / tissue.t1))


SEQUENCES: dict[str, Sequence] = {
    "flair": Sequence(9000, 120, 2500, noise=0.040, bias=0.12, blur=(0.7, 1.6)),
    "t1ce": Sequence(600, 12, None, noise=0.035, bias=0.12, blur=(0.5, 0.6)),
    "t1": Sequence(600, 12, None, noise=0.050, bias=0.15, blur=(0.6, 1.2)),
    "t2": Sequence(4500, 95, None, noise=0.035, bias=0.12, blur=(0.6, 1.4)),
}


def render(anatomy: Anatomy, tumour: Tumour | None, grid: Grid, random: torch.Generator) -> dict[str, torch.Tensor]:
    """Image one subject with all four sequences.

    Args:
        anatomy: tissue fractions on ``grid``, mass effect included.
        tumour: compartments on ``grid``, or None for a healthy subject.
        grid: the subject's grid.
        random: CPU generator.

    Returns:
        By modality, float32 [X, Y, Z] of whole numbers: 0 outside the brain, at least 1 inside, arbitrary gain, as
        skull-stripped data sets store them (int16).
    """
    tissues = {name: _jitter(tissue, random) for name, tissue in TISSUES.items()}
    fractions = _fractions(anatomy, tumour, grid, random)
    texture_common = smooth_noise(grid, 7.0, random)[0]
    # Tumour tissue is uneven, in each sequence in its own way: without that, oedema and the parts of the core could be
    # told apart by their brightness on FLAIR and T2, which they cannot in patients.
    inside = torch.zeros(grid.shape, device=grid.device) if tumour is None else (tumour.labels > 0).float()
    inside = gaussian_blur(inside[None], (0.5, 0.5, 0.5))[0]
    uneven_common = smooth_noise(grid, 9.0, random)[0]
    images = {}
    for name, sequence in SEQUENCES.items():
        enhanced = {key: uniform(random, *bounds) for key, bounds in T1_ENHANCED.items()}
        signal = torch.zeros(grid.shape, device=grid.device)
        for tissue_name, fraction in fractions.items():
            tissue = tissues[tissue_name]
            if name == "t1ce" and tissue_name in enhanced:
                tissue = replace(tissue, t1=enhanced[tissue_name])
            signal = signal + fraction * sequence.signal(tissue)
        white = sequence.signal(tissues["white"])
        own = smooth_noise(grid, 5.0, random)[0]
        signal = signal * (1 + 0.025 * texture_common + 0.02 * own)
        uneven = 0.06 * uneven_common + 0.07 * smooth_noise(grid, 8.0, random)[0]
        signal = signal * torch.exp(inside * uneven)
        in_plane, through = (width / grid.spacing for width in sequence.blur)
        signal = gaussian_blur(signal[None], (in_plane, in_plane, through))[0]
        signal = signal * torch.exp(sequence.bias * uniform(random, 0.6, 1.2) * smooth_noise(grid, 110.0, random)[0])
        deviation = white * sequence.noise * uniform(random, 0.8, 1.25)
        real, imaginary = deviation * torch.randn(2, *grid.shape, generator=random).to(grid.device)
        signal = torch.sqrt((signal + real) ** 2 + imaginary**2)
        gain = uniform(random, 250, 900) / white
        images[name] = torch.where(anatomy.brain > 0, (gain * signal).round().clamp(1, 32000), 0.0)
    return images


def _jitter(tissue: Tissue, random: torch.Generator) -> Tissue:
    """One subject's tissue: relaxation times vary by a few per cent, never by more than 10 %; PD by 3 %."""
    factors = [1 + max(-limit, min(limit, limit / 2 * torch.randn((), generator=random).item())) for limit in _LIMITS]
    return Tissue(tissue.t1 * factors[0], tissue.t2 * factors[1], tissue.pd * factors[2])


_LIMITS = (0.10, 0.10, 0.03)


def _fractions(anatomy: Anatomy, tumour: Tumour | None, grid: Grid, random: torch.Generator) -> dict[str, torch.Tensor]:
    """Share of each tissue in each voxel; they add up to the brain mask."""
    normal = {"white": anatomy.white, "grey": anatomy.grey, "csf": anatomy.csf}
    # Where two smooth fields are zero at once, there is a curve: thin vessels, mostly between the gyri.
    first, second = smooth_noise(grid, 18.0, random, channels=2)
    width = 0.09
    vessel = torch.exp(-(first**2 + second**2) / (2 * width**2)) * (anatomy.grey + anatomy.csf).clamp(0, 1)
    # Small white-matter hyperintensities of ageing: oedema-like spots that are not tumour.
    spots, mix_noise = smooth_noise(grid, 6.0, random)[0], smooth_noise(grid, 12.0, random)[0]
    burden = uniform(random, 2.9, 4.2)
    ageing = 0.6 * ((spots - burden) / 0.4).clamp(0, 1) * anatomy.white

    parts = {}
    oedema = ageing
    if tumour is not None:
        soft = 0.35  # partial volume of a compartment's edge, voxels
        for name, value in (("NCR", 1), ("NET", 3), ("ET", 4)):
            parts[name] = gaussian_blur((tumour.labels == value).float()[None], (soft,) * 3)[0]
        wet = gaussian_blur((tumour.labels == 2).float()[None], (soft,) * 3)[0]
        low, high = uniform(random, 0.35, 0.55), uniform(random, 0.75, 0.9)
        share = (low + (high - low) * torch.sigmoid(1.2 * mix_noise + 5 * (tumour.density - 0.4))).clamp(0.35, 0.9)
        # Infiltration goes a little beyond what is labelled.
        fringe = 0.25 * (tumour.density / 0.2).clamp(0, 1) * (1 - wet) * (1 - anatomy.csf)
        oedema = torch.maximum(ageing, share * wet + fringe)
    taken = sum(parts.values(), torch.zeros_like(oedema)).clamp(0, 1)
    oedema = oedema * (1 - taken)
    vessel = vessel * (1 - taken - oedema).clamp(0, 1)
    rest = (1 - taken - oedema - vessel).clamp(0, 1)
    return {name: part * rest for name, part in normal.items()} | parts | {"ED": oedema, "vessel": vessel}
