"""Make docs/subsets.png, the picture at the top of the README: one simulated case, its sequences, five subsets.

    python scripts/make_readme_picture.py

Needs Chrome or Chromium, which plotly's PNG export drives.
"""

import tempfile
from pathlib import Path

import numpy as np

from smml import figures
from smml.data import Case, read_case, simulate_cohort
from smml.evaluation import dice
from smml.inference import Predictor
from smml.modalities import DISPLAY_NAMES, subset_name

TARGET = Path(__file__).resolve().parent.parent / "docs" / "subsets.png"
SUBSETS = ("t1", "flair", "t1ce", "flair+t1ce", "all")


def share_of_oedema(case: Case) -> float:
    """Of the tumour, where it enhances, else 0: with much of it a slice shows all classes."""
    _, core, oedema, enhancing = np.bincount(np.ravel(case.label), minlength=4)
    return oedema / (core + oedema + enhancing) if enhancing else 0.0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        # Finer than the weights' 2 mm: the case is resampled to them and the result back to its own grid.
        files = simulate_cohort(folder, 16, spacing=1.5, seed=3, workers=1)
        case = max(map(read_case, files), key=share_of_oedema)
    predictor = Predictor.from_checkpoint("small")
    encoding = predictor.encode(case)
    truth = figures.to_canonical(case.label, case.affine)
    z = figures.widest_slice(truth)
    volumes = {name: figures.to_canonical(volume, case.affine) for name, volume in case.volumes.items()}
    pictures = {DISPLAY_NAMES[name]: figures.axial_picture(volume, z) for name, volume in volumes.items()}
    pictures["truth"] = figures.axial_picture(volumes["flair"], z, truth, case.scheme)
    for subset in SUBSETS:
        labels = predictor.segment(encoding, subset).labels
        scores = [dice(case.scheme.region(labels, r), case.scheme.region(case.label, r)) for r in ("WT", "ET")]
        name = "all four" if subset == "all" else subset_name(subset)
        title = f"from {name}<br><sup>Dice WT {scores[0]:.2f}, ET {scores[1]:.2f}</sup>"
        seen = figures.to_canonical(labels, case.affine)
        pictures[title] = figures.axial_picture(volumes["flair"], z, seen, case.scheme)
    figures.use_theme()
    figure = figures.add_class_legend(figures.panels(pictures, columns=5, size=220), case.scheme)
    TARGET.parent.mkdir(exist_ok=True)
    figure.write_image(TARGET, scale=1.0)
    print(TARGET, TARGET.stat().st_size // 1000, "kB")


if __name__ == "__main__":
    main()
