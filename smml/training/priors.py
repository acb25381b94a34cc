"""Priors of the training cases: made once from what the students say of each case, then read with every sample.

SAM is far too slow to run in each step. So when the refinement begins, every case is segmented under a few pairs of
masks by the students as they are at that moment, SAM is prompted with that, and the priors are kept in the run's
folder, in steps of 1/255 and cut to where they are not zero. While the refinement trains, a sample draws its two masks
from the pairs of its case, so that a branch's prior always comes from the very modalities that the branch sees.

The students that are asked never see a label here, and neither does SAM.
"""

import json
import os
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from tqdm.auto import tqdm

from smml.data.dataset import draw_masks
from smml.data.layouts import CaseFiles
from smml.data.reading import read_case
from smml.errors import InputError
from smml.files import replacing, write_text
from smml.inference import Predictor
from smml.ranks import Ranks
from smml.sam.prior import SAMPrior

_DONE = "priors.json"


class PriorFolder:
    """Priors on disk; what :func:`make_priors` wrote.

    Args:
        folder: of the priors.

    Raises:
        InputError: the folder holds no complete set.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        if not (self.folder / _DONE).is_file():
            raise InputError(
                f"{self.folder}: holds no complete set of priors; train into a new folder, or restore the run's"
            )

    def draw(self, number: int, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """One pair of masks of case ``number``, bool [2, M], and its priors, float32 [2, M, R, x, y, z] in [0, 1].

        Raises:
            InputError: the case's file is missing or damaged.
        """
        path = self.folder / _name(number)
        try:
            with np.load(path) as file:
                masks, box, shape = file["masks"], file["box"], file["shape"]
                pair = int(random.integers(len(masks)))
                values = file[f"values_{pair}"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: cannot be read ({error}); delete the run's folder and train again") from error
        volume = torch.zeros(*values.shape[:3], *shape.tolist())
        x, y, z = (slice(*edges) for edges in box)
        volume[..., x, y, z] = torch.from_numpy(values).float() / 255
        return torch.from_numpy(masks[pair]), volume


def make_priors(
    model,
    files: Sequence[CaseFiles],
    prior: SAMPrior,
    folder: str | os.PathLike,
    *,
    spacing: tuple[float, float, float],
    patch: int,
    pairs: int,
    seed: int,
    preprocessing: int | None = None,
    ranks: Ranks | None = None,
    progress: bool = True,
) -> PriorFolder:
    """Segment every case under a few pairs of masks and keep SAM's priors of what came out.

    Args:
        model: :class:`smml.models.SMML`; it is left in the mode in which it came.
        files: the training cases; their labels are not read.
        prior: makes the priors.
        folder: where they go; files of an interrupted attempt are written anew.
        spacing: of the prepared grid, mm.
        patch: edge of the training patch, for the size of the windows.
        pairs: of masks a case.
        seed: of the masks.
        preprocessing: version that the model is trained with; None is the newest.
        ranks: the processes that share out the cases, and where each computes; all of them must call, and see the
            folder.
        progress: show a progress bar.
    """
    folder, ranks = Path(folder), ranks or Ranks()
    began, was_training = time.perf_counter(), model.training
    folder.mkdir(parents=True, exist_ok=True)
    predictor = Predictor(model, spacing, patch=patch, device=ranks.device, preprocessing=preprocessing)
    try:
        for number in tqdm(ranks.deal(len(files)), desc="SAM priors", unit="case", disable=not progress):
            random = np.random.default_rng([seed, number, 2])
            _write(folder / _name(number), *_priors_of(files[number], predictor, prior, pairs, random))
    finally:
        model.train(was_training)
    ranks.wait()  # before rank 0 says that the set is complete
    facts = {"cases": len(files), "pairs": pairs, "seed": seed, "seconds": round(time.perf_counter() - began, 1)}
    if ranks.first:
        write_text(folder / _DONE, json.dumps(facts) + "\n")
    ranks.wait()
    return PriorFolder(folder)


def _priors_of(
    case: CaseFiles, predictor: Predictor, prior: SAMPrior, pairs: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Masks bool [pairs, 2, M] and priors uint8 [pairs, 2, M, R, x, y, z] of one case."""
    encoding = predictor.encode(read_case(case, label=False))
    image = encoding.prepared.image[None]
    masks, values = [], []
    for _ in range(pairs):
        pair = draw_masks(encoding.prepared.available, random)
        volumes = [
            prior(image, predictor.coarse(encoding, mask)[branch][None].cpu(), mask[None])[0]
            for branch, mask in enumerate(pair)
        ]
        masks.append(pair.numpy())
        values.append((torch.stack(volumes) * 255).round().to(torch.uint8).cpu().numpy())
    return np.stack(masks), np.stack(values)


def _write(path: Path, masks: np.ndarray, values: np.ndarray) -> None:
    """One case's file, cut to the box that holds every prior of it."""
    filled = cast(np.ndarray, values.any(axis=(0, 1, 2, 3)))
    places = [np.flatnonzero(filled.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    box = np.array([(p[0], p[-1] + 1) if len(p) else (0, 0) for p in places])
    inside = tuple(slice(*edges) for edges in box)
    pairs = {f"values_{pair}": one[(..., *inside)] for pair, one in enumerate(values)}
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, masks=masks, box=box, shape=np.array(values.shape[4:]), **pairs)


def _name(number: int) -> str:
    return f"case-{number:05d}.npz"
