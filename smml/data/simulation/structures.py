"""What fills a voxel: normal tissue, vessels and coverings, traces of age, and the tumour's compartments."""

import math

import torch

from smml.data.simulation.draws import Draws
from smml.data.simulation.fields import CENTRE
from smml.data.simulation.head import Head
from smml.data.simulation.lattice import Window, blur, noise
from smml.data.simulation.lesion import Lesion


def fill(head: Head, lesion: Lesion | None, window: Window, age: float, draws: Draws) -> dict[str, torch.Tensor]:
    """Fractions by tissue, float32 [X, Y, Z] each; they add up to one everywhere, "outside" beyond the brain.

    Args:
        head: on ``window``, mass effect included.
        lesion: the tumour's compartments, or None for a healthy subject.
        window: the subject's window.
        age: 0 (young) to 1 (old).
        draws: the stream "head".
    """
    brain, white, grey, csf = head.brain, head.white, head.grey, head.csf
    random = draws.generator
    patches = noise(window, 14.0, random, 4)
    wide = noise(window, 32.0, random, 2)
    tumour, oedema = _tumour_parts(lesion, window, head, draws, patches[3])
    taken = sum(tumour.values(), torch.zeros_like(brain)).clamp(0, 1)
    cavity, gliosis = _traces_of_age(head, window, age, draws)
    spared = 1 - (taken + oedema).clamp(0, 1)

    parts = dict(tumour)
    parts["ED"] = oedema * (1 - taken)
    left = (1 - taken - parts["ED"]).clamp(0, 1)
    structures = _coverings(head, window, draws, patches, wide)
    structures["calcium"] = _calcium(head, window, draws) * spared
    inner = {"vessel", "artery", "vein", "plexus", "calcium"}
    for name, amount in structures.items():
        parts[name] = amount.clamp(0, 1) * (left if name in inner else left * spared)
        left = (left - parts[name]).clamp(0, 1)
    parts["gliosis"] = (gliosis * (white + 0.6 * grey)).clamp(0, 1) * left
    left = left - parts["gliosis"]
    hole = cavity * left
    left = left - hole
    deep = head.maps["deep"] * (grey + 0.25 * white).clamp(0, 1)
    share = grey / (grey + white).clamp_min(1e-3)
    parts["deep"] = deep * left
    parts["grey"] = (grey - deep * share).clamp(0, 1) * left
    parts["white"] = (white - deep * (1 - share)).clamp(0, 1) * left
    parts["csf"] = csf * left + hole
    total = sum(parts.values(), torch.zeros_like(brain)).clamp_min(1e-3)
    parts = {name: part * brain / total for name, part in parts.items()}
    # Vessels and dura go on beyond the mask, where stripping may leave them.
    beyond = 1 - brain
    for name in ("artery", "sinus", "dura"):
        parts[name] = parts[name] + beyond * structures[name].clamp(0, 1)
        beyond = beyond * (1 - structures[name].clamp(0, 1))
    parts["outside"] = beyond
    return parts


def _tube(distance: torch.Tensor, radius: float, spacing: float) -> torch.Tensor:
    """How much of a voxel a vessel of ``radius`` mm fills at a distance from its middle."""
    # The coarse map's distance never reaches 0.
    wide = math.sqrt(radius**2 + (0.4 * spacing) ** 2)
    return torch.exp(-0.5 * (0.9 * (distance - 0.4).clamp_min(0) / wide) ** 2) * (radius / wide) ** 2


def _coverings(
    head: Head, window: Window, draws: Draws, patches: torch.Tensor, wide: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Vessels, sinuses, dura and choroid plexus."""
    maps, csf, grey = head.maps, head.csf, head.grey
    x, y, z = head.points
    depth, spacing = maps["depth"], window.spacing
    patch, patch2, strands, _ = patches
    loose = (0.3 + grey + csf).clamp(0, 1)
    # Every stretch of a vessel is there or not.
    present = torch.sigmoid(4 * (wide[0] + draws.between(-0.3, 1.5)))
    present2 = torch.sigmoid(4 * (wide[1] + draws.between(-0.8, 1.2)))
    artery = _tube(maps["artery"], draws.between(0.5, 1.2), spacing) * present * loose
    vein = _tube(maps["vein"], draws.between(0.3, 0.7), spacing) * present2
    sinus = _tube(maps["sinus"], draws.between(0.9, 2.3), spacing)
    vessel = _tube(maps["surface vein"], draws.between(0.35, 0.85), spacing) * present2
    # Where two smooth fields are zero at once, there is a curve: small vessels, mostly between the gyri.
    for length, thickness in ((17.0, draws.between(0.2, 0.55)), (30.0, draws.between(0.2, 0.6))):
        first, second = noise(window, length, draws.generator, 2)
        away = 0.55 * length * (first**2 + second**2).sqrt()
        vessel = torch.maximum(vessel, _tube(away, thickness, spacing) * (0.12 + grey + csf).clamp(0, 1))

    reach = draws.between(-0.2, 1.4)
    rim = torch.sigmoid((reach - depth.clamp_min(0)) / 0.6)
    dura = rim * torch.sigmoid((patch + draws.between(-2.0, 0.8)) / 0.25) * draws.between(0.2, 1.0)
    sulci = csf * torch.sigmoid((patch2 - draws.between(1.2, 2.8)) / 0.3) * draws.between(0.05, 0.4) * (depth < 18)
    thin = draws.between(0.4, 1.0)
    sheet = math.sqrt(thin**2 + (0.3 * spacing) ** 2)
    falx = torch.exp(-0.5 * (x / sheet) ** 2) * thin / sheet * (csf + 0.25).clamp(0, 1) * (maps["ventricle"] > 9)
    falx = falx * torch.sigmoid(3 * (strands + draws.between(-0.8, 1.2))) * draws.between(0.1, 0.9) * (z > -4)
    ridge = -2.0 - 0.42 * x.abs() + 0.35 * (y + 44).clamp(-60, 0) + 2.0 * patch
    tent = torch.exp(-0.5 * ((z - ridge) / (sheet + 0.4)) ** 2) * (y < -38) * (csf + 0.4 * grey + 0.1).clamp(0, 1)
    tent = tent * torch.sigmoid(3 * (patch2 + draws.between(-0.6, 1.2))) * draws.between(0.1, 0.9)
    dura = torch.maximum(torch.maximum(dura, sulci), torch.maximum(falx, tent))
    inside = csf * torch.sigmoid((2.0 - maps["ventricle"]) / 0.7)
    grown = torch.sigmoid((strands + draws.between(1.0, 2.6) * maps["plexus"] - draws.between(1.1, 2.0)) / 0.2)
    plexus = inside * grown * draws.between(0.4, 1.0)
    return {
        "artery": artery,
        "vein": vein,
        "sinus": sinus,
        "vessel": vessel,
        "dura": dura,
        "plexus": plexus,
    }


def _traces_of_age(head: Head, window: Window, age: float, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
    """Holes that CSF fills and scarred tissue round them: small infarcts, and hyperintensities of white matter."""
    random = draws.generator
    maps, white = head.maps, head.white
    spots = noise(window, draws.between(4.0, 9.0), random)[0]
    burden = age**1.5 * draws.between(0.0, 1.0)
    deep_white = torch.sigmoid((maps["depth"] - 9) / 2)
    gliosis = torch.sigmoid((spots - (3.0 - 1.7 * burden)) / 0.15) * white * deep_white * draws.between(0.4, 1.0)
    # Caps at the horns, a rim along the ventricles, wide in the old.
    edge = maps["ventricle"]
    rim = torch.sigmoid((draws.between(0.8, 2.4) + 4.5 * burden * (1 + 0.5 * spots) - edge) / 0.8)
    gliosis = torch.maximum(gliosis, rim * white * draws.between(0.4, 0.6 + 0.4 * burden))
    cavity = torch.zeros_like(white)
    count = int(draws.between(0, 1) < 0.5 * age + 0.08) * (1 + int(3 * age * draws.between(0, 1)))
    good = (white + head.maps["deep"] > 0.6) & (maps["depth"] > 6)
    for _ in range(count):
        size, scar = draws.log_between(1.6, 7.0), draws.between(0.5, 1.0)
        hole = draws.choice({"hole": 0.6, "scar": 0.4})
        stretch = [draws.between(0.6, 1.5) for _ in range(3)]
        # The first of some places in mm that lies in white matter or a nucleus: the same at any spacing.
        candidates = [
            [draws.between(c - r, c + r) for c, r in zip(CENTRE, (60, 75, 55), strict=True)] for _ in range(24)
        ]
        centre = next((place for place in candidates if _lies_in(good, window, place)), None)
        if centre is None:
            continue
        axes = [(a - c) / s for a, c, s in zip(window.axes(), centre, stretch, strict=True)]
        away = (axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2).sqrt() * (1 + 0.2 * spots)
        soft = 0.3 + 0.25 * window.spacing
        if hole == "hole":
            cavity = torch.maximum(cavity, torch.sigmoid((size - away) / soft))
        gliosis = torch.maximum(gliosis, scar * torch.sigmoid((size + 1.5 - away) / soft))
    return cavity, gliosis


def _lies_in(mask: torch.Tensor, window: Window, place: list[float]) -> bool:
    """Whether the voxel nearest to a place in mm is on the window and True."""
    index = [round((p - float(a[0])) / window.spacing) for p, a in zip(place, window.axes(), strict=True)]
    return all(0 <= i < n for i, n in zip(index, window.shape, strict=True)) and bool(mask[tuple(index)])


def _calcium(head: Head, window: Window, draws: Draws) -> torch.Tensor:
    """Calcified and bled spots: pineal gland, plexus, nuclei, some anywhere."""
    x, y, z = head.points
    soft = 0.3 + 0.25 * window.spacing
    size = draws.between(0.5, 3.5)
    pineal = ((x**2 + (y + 28) ** 2 + (z - 4) ** 2).sqrt() - size) / soft
    amount = torch.sigmoid(-pineal) * draws.chance(0.6)
    first, second = noise(window, 10.0, draws.generator, 2)
    plexus = head.maps["plexus"] * head.csf * torch.sigmoid((first - draws.between(0.8, 2.5)) / 0.2)
    nuclei = head.maps["deep"] * torch.sigmoid((second - draws.between(1.5, 4.0)) / 0.2)
    spots = torch.sigmoid((first * second - draws.between(4.5, 8.0)) / 0.3) * head.brain
    return torch.maximum(torch.maximum(amount, plexus), torch.maximum(nuclei, spots)) * draws.between(0.3, 1.0)


def _tumour_parts(
    lesion: Lesion | None, window: Window, head: Head, draws: Draws, patch: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Fractions of the core's compartments, and of oedema."""
    nothing = torch.zeros_like(head.brain)
    # Partial volume of a compartment's edge: of the voxel, and of an edge that is not sharp.
    soft = 0.35 + draws.between(0.0, 1.0) / window.spacing
    low, high = draws.between(0.45, 0.8), draws.between(0.9, 1.0)
    beyond, bleeds = draws.between(0.0, 0.22), draws.chance(0.18)
    extent, calcified = draws.between(1.1, 2.4), draws.chance(0.10)
    if lesion is None:
        return {}, nothing
    index = lesion.window.inside(window)
    csf, patch = head.csf[index], patch[index]
    one_hot = torch.stack([(lesion.labels == value).float() for value in (1, 2, 3, 4)])
    ncr, wet, net, et = blur(one_hot, soft)
    # The front fades outwards, and infiltration goes a little beyond what is labelled.
    share = low + (high - low) * torch.sigmoid(1.2 * patch + 6 * (lesion.density - 0.35))
    fringe = beyond * (lesion.density / 0.2).clamp(0, 1) * (1 - wet) * (1 - csf)
    core = {"NCR": ncr, "NET": net, "ET": et}
    if bleeds or calcified:
        fine = noise(lesion.window, 6.0, draws.generator)[0]
        spot = torch.sigmoid((0.7 * fine + patch - extent) / 0.2)
        core |= {("blood" if bleeds else "calcium core"): spot * (ncr + net + et)}
        for name in ("NCR", "NET", "ET"):
            core[name] = core[name] * (1 - spot)
    parts = {}
    for name, part in core.items():
        parts[name] = nothing.clone()
        parts[name][index] = part.clamp(0, 1)
    oedema = nothing.clone()
    oedema[index] = (share * wet + fringe).clamp(0, 1)
    return parts, oedema
