"""Changed appearances: the same for the same numbers, the background and the order of tissues kept."""

import numpy as np
import pytest
import torch

from smml.data.appearance import vary_appearance
from smml.data.dataset import CohortDataset
from smml.data.preprocessing import PREPROCESSINGS

PATCH = 32


def patch(seed: int = 0) -> torch.Tensor:
    """Four sequences of z-scores, tissues in blocks, a background of 0."""
    random = np.random.default_rng(seed)
    levels = random.normal(size=(4, 4, 4, 4)).repeat(6, 1).repeat(6, 2).repeat(6, 3)
    image = torch.from_numpy(levels + 0.05 * random.normal(size=levels.shape)).float()
    image[:, :5], image[3] = 0, 0
    return image


@pytest.mark.parametrize("strength", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(8))
def test_the_background_stays_0_and_everything_stays_finite(strength, seed):
    image = patch(seed)
    before = image.clone()
    varied = vary_appearance(image, strength, np.random.default_rng(seed))
    assert torch.equal(image, before)  # the prepared case is kept for the next sample
    assert type(varied) is torch.Tensor
    assert varied.dtype == torch.float32
    assert bool(varied.isfinite().all())
    assert torch.equal(varied == 0, image == 0)


def test_the_same_numbers_give_the_same_patch_and_others_another():
    image = patch()
    first, second, other = (vary_appearance(image, 1.0, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_strength_0_is_nothing_and_more_is_more():
    image = patch()
    assert torch.equal(vary_appearance(image, 0.0, np.random.default_rng(0)), image)
    changes = [
        np.mean([float((vary_appearance(image, s, np.random.default_rng(i)) - image).abs().mean()) for i in range(8)])
        for s in (0.2, 1.0, 3.0)
    ]
    assert changes[0] < changes[1] / 2 < changes[2] / 2


def test_brighter_tissue_stays_brighter():
    """No inversion: bright and dark halves keep their order under every change."""
    image = torch.zeros(4, 24, 24, 24)
    image[:, 2:22, 2:22, 2:12], image[:, 2:22, 2:22, 12:22] = -0.7, 0.7
    for seed in range(20):
        varied = vary_appearance(image + 0.05 * image.sign() * torch.rand(1), 1.0, np.random.default_rng(seed))
        assert bool((varied[:, 4:20, 4:20, 14:20].mean((1, 2, 3)) > varied[:, 4:20, 4:20, 4:10].mean((1, 2, 3))).all())


def test_sequences_change_by_themselves():
    image = patch()[:1].repeat(4, 1, 1, 1)
    varied = vary_appearance(image, 2.0, np.random.default_rng(0))
    assert not torch.equal(varied[0], varied[1])


def test_strength_moves_neither_the_patch_nor_its_masks(small_cohort):
    plain, varied = (CohortDataset(small_cohort, patch=PATCH, seed=5, appearance=s) for s in (0.0, 1.0))
    changed = 0
    for i in range(6):
        first, second = plain[i], varied[i]
        for name in ("label", "masks", "available"):
            assert torch.equal(first[name], second[name])
        assert torch.equal(first["image"] == 0, second["image"] == 0)
        changed += not torch.equal(first["image"], second["image"])
        assert torch.equal(second["image"], varied[i]["image"])
    assert changed


@pytest.mark.parametrize("version", PREPROCESSINGS)
def test_turning_a_patch_leaves_no_dark_edge(small_cohort, version):
    """A brain of one intensity has it up to its edge, however the patch lies: only then training sees what use sees."""
    dataset = CohortDataset(small_cohort, patch=PATCH, seed=5, preprocessing=version, tumour_share=0.0)
    for number in range(len(dataset.cases)):
        prepared, _ = dataset._prepared(number)
        prepared.image[:] = torch.where(prepared.brain, 3.0, 0.0)
    for i in range(12):
        image = dataset[i]["image"]
        for channel in image:
            values = channel[channel != 0]
            assert float(values.max() - values.min()) < 1e-4
