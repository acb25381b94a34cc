"""Training samples: a function of seed and index alone, image and label together, two masks of what the case has."""

import collections
import copy
import pickle
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from smml.data.case import Case
from smml.data.dataset import CohortDataset, draw_masks
from smml.data.layouts import find_cases
from smml.data.shared import SharedCases
from smml.data.simulation.cohort import simulate_cohort
from smml.data.writing import write_case
from smml.errors import InputError
from smml.modalities import MODALITIES, SUBSETS, mask_subset, subset_mask, subsets_of

PATCH = 32
ALL = torch.ones(4, dtype=torch.bool)


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name]), name


def sphere(shape=(40, 44, 38), centre=(22, 17, 20), radius=9.0) -> np.ndarray:
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return np.linalg.norm(grid - np.array(centre), axis=-1) < radius


def write_sphere(root: Path, label: np.ndarray | None = None, names=MODALITIES, number: int = 1) -> None:
    """A case whose images are bright exactly where its label is; tissue varies, or it would be background."""
    inside = sphere() if label is None else label > 0
    tissue = np.random.default_rng(number).uniform(100, 130, inside.shape)
    volumes = {name: np.where(inside, 1000, tissue).astype(np.float32) for name in names}
    write_case(Case(str(number), volumes, inside.astype(np.uint8), np.eye(4), "brats2021"), root)


# ---------------------------------------------------------------- reproducible


def test_samples_have_the_documented_shapes_and_types(small_cohort):
    sample = CohortDataset(small_cohort, patch=PATCH)[0]
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in sample.items()} == {
        "image": ((4, PATCH, PATCH, PATCH), torch.float32),
        "label": ((PATCH, PATCH, PATCH), torch.uint8),
        "masks": ((2, 4), torch.bool),
        "available": ((4,), torch.bool),
    }
    assert type(sample["image"]) is torch.Tensor  # no MONAI metadata that a loader would have to carry
    assert bool(sample["image"].isfinite().all())
    assert set(sample["label"].unique().tolist()) <= {0, 1, 2, 3}


def test_sample_i_depends_on_seed_and_i_alone(small_cohort):
    first, second = (CohortDataset(small_cohort, patch=PATCH, seed=5) for _ in range(2))
    forward = [first[i] for i in range(6)]
    torch.manual_seed(123)
    np.random.seed(123)  # the global state must not matter
    backward = [second[i] for i in reversed(range(6))][::-1]
    for a, b in zip(forward, backward, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_do_not_depend_on_the_number_of_loader_processes(small_cohort, workers):
    dataset = CohortDataset(small_cohort, patch=PATCH, seed=5, samples=6)
    loaded = list(DataLoader(dataset, batch_size=2, num_workers=workers))
    fresh = CohortDataset(small_cohort, patch=PATCH, seed=5, samples=6)
    for i in range(6):
        assert_same({name: tensor[i % 2] for name, tensor in loaded[i // 2].items()}, fresh[i])


def test_a_resumed_loader_continues_with_the_very_next_samples(small_cohort):
    dataset = CohortDataset(small_cohort, patch=PATCH, seed=5, samples=6)
    rest = next(iter(DataLoader(dataset, batch_size=2, sampler=range(4, 6))))
    assert_same({name: tensor[0] for name, tensor in rest.items()}, dataset[4])


def test_other_seeds_and_indices_give_other_samples(small_cohort):
    dataset, other = (CohortDataset(small_cohort, patch=PATCH, seed=seed) for seed in (5, 6))
    images = [dataset[0]["image"], dataset[1]["image"], other[0]["image"]]
    assert not any(torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])


def test_the_number_of_samples_is_what_was_asked_for(small_cohort):
    dataset = CohortDataset(small_cohort, patch=PATCH, samples=7)
    assert len(dataset) == 7
    for index in (7, -1):
        with pytest.raises(IndexError):
            dataset[index]


def test_a_dataset_travels_to_loader_processes_that_are_spawned(small_cohort):
    """macOS, Windows and Python 3.14 start loader processes by pickling the dataset."""
    dataset = CohortDataset(small_cohort, patch=PATCH, seed=5)
    expected = dataset[1]
    assert_same(pickle.loads(pickle.dumps(dataset))[1], expected)
    assert_same(copy.deepcopy(dataset)[1], expected)


def test_changing_a_sample_does_not_change_the_next_one(small_cohort):
    dataset = CohortDataset(small_cohort, patch=PATCH, augment=False)
    before = {name: tensor.clone() for name, tensor in dataset[0].items()}
    for tensor in dataset[0].values():
        tensor.fill_(1)
    assert_same(dataset[0], before)


# ---------------------------------------------------------------- masks


def test_the_two_masks_differ_and_are_made_of_what_is_available():
    random = np.random.default_rng(0)
    for available in map(subset_mask, SUBSETS):
        for _ in range(20):
            first, second = draw_masks(available, random)
            assert bool(first.any())
            assert bool(second.any())
            assert not bool((first & ~available).any())
            assert not bool((second & ~available).any())
            assert torch.equal(first, second) == (int(available.sum()) == 1)


def test_with_one_sequence_both_branches_get_it():
    masks = draw_masks(subset_mask("t1"), np.random.default_rng(0))
    assert masks.tolist() == [[False, False, True, False]] * 2


@pytest.mark.parametrize("available", ["all", "flair+t1ce+t2"])
def test_masks_are_uniform_over_the_subsets_in_either_branch_and_as_pairs(available):
    """Pearson's chi-square below its 99.9 % quantile; the seed is fixed, so this does not fail by chance."""
    random, draws = np.random.default_rng(7), 6000
    drawn = [draw_masks(subset_mask(available), random) for _ in range(draws)]
    choices = subsets_of(mask_subset(subset_mask(available)))
    n = len(choices)
    for branch in (0, 1):
        counts = collections.Counter(mask_subset(masks[branch]) for masks in drawn)
        assert set(counts) == set(choices)
        expected = draws / n
        chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
        assert chi_square < {15: 36.1, 7: 22.5}[n]
    pairs = collections.Counter(tuple(map(mask_subset, masks)) for masks in drawn)
    assert len(pairs) == n * (n - 1)  # every ordered pair comes up


def test_samples_carry_different_masks(small_cohort):
    dataset = CohortDataset(small_cohort, patch=PATCH)
    masks = torch.stack([dataset[i]["masks"] for i in range(20)])
    assert not any(torch.equal(a, b) for a, b in masks)
    assert len({tuple(mask.tolist()) for mask in masks.flatten(0, 1)}) > 8


# ---------------------------------------------------------------- patches and augmentation


def test_a_volume_smaller_than_the_patch_is_padded_with_background(small_cohort):
    """28 x 34 x 30 voxels in a patch of 48: all of the case is in it, and nothing else."""
    plain = CohortDataset(small_cohort, patch=48, augment=False, seed=1)
    image, label = plain[0]["image"], plain[0]["label"]
    assert image.shape == (4, 48, 48, 48)
    inside = (image != 0).any(dim=0)
    extent = inside.nonzero().amax(dim=0) - inside.nonzero().amin(dim=0)
    assert bool((extent < torch.tensor([28, 34, 30])).all())
    assert not bool(label[~inside].any())


@pytest.mark.parametrize("augment", [False, True])
def test_image_and_label_go_through_the_same_transforms(tmp_path, augment):
    write_sphere(tmp_path)
    dataset = CohortDataset(tmp_path, patch=PATCH, augment=augment, tumour_share=1.0, seed=2)
    places = set()
    for i in range(12):
        sample = dataset[i]
        label = sample["label"] > 0
        assert int(label.sum()) > 200
        for channel in sample["image"]:
            bright = channel > (channel.max() + channel[channel != 0].min()) / 2
            assert float((bright & label).sum() / (bright | label).sum()) > 0.8
        places.add(tuple(label.nonzero().double().mean(dim=0).round().tolist()))
    assert len(places) > 6  # the patches do move


def test_flips_go_either_way_on_each_axis(tmp_path):
    """A case without symmetry: small, middle and large cubes tell the axes and their directions."""
    label = np.zeros((32, 32, 32))
    label[4:8, 14:18, 14:18] = label[14:18, 8:11, 14:18] = label[14:18, 14:18, 3:5] = 1
    label[15:17, 15:17, 15:17] = 1
    write_sphere(tmp_path, label)
    seen = set()
    dataset = CohortDataset(tmp_path, patch=PATCH, tumour_share=0.0, seed=3)
    reference = torch.from_numpy(label).float()
    for i in range(40):
        found = dataset[i]["label"].float()
        best = max(
            ((x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)),
            key=lambda flips: correlation(reference.flip([axis for axis in range(3) if flips[axis]]), found),
        )
        seen.add(best)
    assert {flips[axis] for flips in seen for axis in range(3)} == {0, 1}
    for axis in range(3):
        assert {flips[axis] for flips in seen} == {0, 1}


def correlation(reference: torch.Tensor, found: torch.Tensor) -> float:
    """Best match over shifts: the largest value of the circular cross-correlation."""
    return float(torch.fft.ifftn(torch.fft.fftn(reference).conj() * torch.fft.fftn(found)).real.max())


def test_intensities_vary_by_modality_and_by_a_tenth_at_most_and_the_background_stays_0(tmp_path):
    write_sphere(tmp_path)
    plain = CohortDataset(tmp_path, patch=48, augment=False)[0]["image"].unique()
    background_free = plain[plain != 0]
    low, high = float(background_free.min()), float(background_free.max())
    changed = []
    for i in range(8):
        image = CohortDataset(tmp_path, patch=48, seed=4)[i]["image"]
        for channel in image:
            top = float(channel.max())
            # Turning averages: of what the coil's removal leaves uneven, the brightest voxel loses a little.
            assert abs(top - high) <= 0.1 * abs(high) + 0.1 + 0.02
            assert float(channel.min()) >= 1.1 * low - 0.1 - 1e-4
            changed.append(round(top, 4))
    assert len(set(changed)) > 25  # each modality of each sample varies on its own
    assert bool((image == 0).any())


def test_labels_stay_labels_through_augmentation(small_cohort):
    dataset = CohortDataset(small_cohort, patch=PATCH, tumour_share=1.0)
    stored = set()
    for case in dataset.cases:
        stored |= set(np.unique(nib.load(case.label).dataobj).astype(int).tolist())
    seen = set(torch.cat([dataset[i]["label"].unique() for i in range(10)]).tolist())
    assert seen <= {0, 1, 2, 3}
    assert len(seen) == len(stored)  # ET is 4 on disk and 3 in memory


def test_tumour_share_decides_how_often_a_patch_is_centred_on_tumour(tmp_path):
    write_sphere(tmp_path, sphere((90, 90, 90), (15, 15, 15), 6.0))
    shares = {}
    for share in (0.0, 1.0):
        dataset = CohortDataset(tmp_path, patch=PATCH, tumour_share=share, augment=False)
        shares[share] = np.mean([bool((dataset[i]["label"] > 0).any()) for i in range(12)])
    assert shares[1.0] == 1.0
    assert shares[0.0] < 0.6


def test_a_case_without_tumour_is_sampled_from_its_brain(tmp_path):
    write_sphere(tmp_path)
    healthy = np.zeros((40, 44, 38), np.uint8)
    volumes = {name: np.random.default_rng(0).integers(1, 99, healthy.shape).astype(np.float32) for name in MODALITIES}
    write_case(Case("2", volumes, healthy, np.eye(4), "brats2021"), tmp_path)
    (case,) = [case for case in find_cases(tmp_path) if case.id.endswith("2")]
    sample = CohortDataset([case], patch=PATCH, tumour_share=1.0)[0]
    assert not bool(sample["label"].any())
    assert bool(sample["image"].any())


def test_cases_are_resampled_to_the_asked_spacing(small_cohort):
    coarse = CohortDataset(small_cohort, patch=PATCH, spacing=(12.0,) * 3, augment=False)[0]
    inside = (coarse["image"] != 0).any(dim=0).nonzero()
    assert int((inside.amax(dim=0) - inside.amin(dim=0)).max()) < 17  # half of 34 voxels


# ---------------------------------------------------------------- unusual and unusable cohorts


def test_a_case_that_lacks_sequences_on_disk_trains(tmp_path, small_cohort):
    folder = tmp_path / "Simulated_00000"
    shutil.copytree(small_cohort / "Simulated_00000", folder)
    for name in ("flair", "t1"):
        (folder / f"Simulated_00000_{name}.nii.gz").unlink()
    dataset = CohortDataset(tmp_path, patch=PATCH)
    for i in range(5):
        sample = dataset[i]
        assert sample["available"].tolist() == [False, True, False, True]
        assert not bool((sample["masks"] & ~sample["available"]).any())
        assert not bool(sample["image"][[0, 2]].any())
        assert bool(sample["image"][[1, 3]].any())


def test_an_unlabelled_case_is_refused_and_named(tmp_path):
    write_sphere(tmp_path, number=1)
    write_sphere(tmp_path, number=2)
    (tmp_path / "BraTS2021_00002" / "BraTS2021_00002_seg.nii.gz").unlink()
    with pytest.raises(InputError, match=r"1 of 2 cases have no segmentation .*BraTS2021_00002"):
        CohortDataset(tmp_path, patch=PATCH)


def test_four_and_five_classes_are_not_mixed(small_cohort, small_cohort_2015):
    cases = [*find_cases(small_cohort), *find_cases(small_cohort_2015)]
    with pytest.raises(InputError, match="four and of five classes"):
        CohortDataset(cases, patch=PATCH)


def test_the_number_of_classes_follows_the_layout(small_cohort, small_cohort_2015):
    assert CohortDataset(small_cohort, patch=PATCH).num_classes == 4
    dataset = CohortDataset(small_cohort_2015, patch=PATCH, tumour_share=1.0)
    assert dataset.num_classes == 5
    assert int(max(dataset[i]["label"].max() for i in range(3))) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patch": 40}, "divisible by 16"),
        ({"patch": 16}, "at least 32"),
        ({"tumour_share": 1.5}, "between 0 and 1"),
        ({"tumour_share": -0.1}, "between 0 and 1"),
    ],
)
def test_options_out_of_range_are_refused(small_cohort, options, said):
    with pytest.raises(InputError, match=said):
        CohortDataset(small_cohort, **{"patch": PATCH, **options})


def test_no_cases_at_all_are_refused():
    with pytest.raises(InputError, match="no cases to train on"):
        CohortDataset([], patch=PATCH)


def test_a_cohort_of_four_class_layouts_may_be_mixed(tmp_path, small_cohort):
    simulate_cohort(tmp_path, 1, spacing=6, seed=3, layout="msd", workers=1, progress=False)
    dataset = CohortDataset([*find_cases(small_cohort), *find_cases(tmp_path)], patch=PATCH)
    assert dataset.num_classes == 4
    assert [dataset[i]["image"].shape[0] for i in range(3)] == [4] * 3


def test_cases_beyond_the_memory_limit_are_read_again_and_give_the_same_sample(small_cohort):
    kept = CohortDataset(small_cohort, patch=32, samples=6)
    read_again = CohortDataset(small_cohort, patch=32, samples=6, cache_bytes=0)
    for index in range(6):
        for name, tensor in kept[index].items():
            assert torch.equal(tensor, read_again[index][name])
    assert len(kept._kept) == len({int(np.random.default_rng([0, i]).integers(3)) for i in range(6)})
    assert not read_again._kept


class Counted(CohortDataset):
    """Tells with each sample how much the process that made it keeps by then."""

    def __getitem__(self, index):
        super().__getitem__(index)
        sizes = (entry[0].image.nbytes + entry[0].label.nbytes for entry in self._kept.values())
        return torch.tensor([len(self._kept), sum(sizes)])


def three_spheres(folder: Path) -> int:
    """Three cases; bytes that one of them takes, prepared."""
    for number in (1, 2, 3):
        write_sphere(folder, number=number)
    kept, size = Counted(folder, patch=PATCH, samples=12)[0].tolist()
    return size // kept


def test_processes_that_share_no_memory_have_equal_shares_of_its_limit(tmp_path):
    limit = int(2.9 * three_spheres(tmp_path))  # with the indices, two cases and not three; half of it, one
    kept = {}
    for workers in (0, 2):
        fresh = Counted(tmp_path, patch=PATCH, samples=12, cache_bytes=limit)
        kept[workers] = max(int(row[0, 0]) for row in DataLoader(fresh, num_workers=workers))
    assert kept == {0: 2, 2: 1}


class Noted(CohortDataset):
    """Notes each case that is prepared, by whichever process."""

    def _prepare(self, number):
        with open(self.cases[0].label.parent.parent / "notes", "a") as notes:
            notes.write(f"{number}\n")
        return super()._prepare(number)


@pytest.mark.skipif(SharedCases.of(1, 1) is None, reason="processes share memory if they are forked")
@pytest.mark.parametrize(("fits", "again"), [(4, False), (1.5, True)])
def test_the_processes_of_a_loader_prepare_what_fits_once_for_all_of_them(tmp_path, fits, again):
    limit = int(fits * three_spheres(tmp_path))
    dataset = Noted(tmp_path, patch=PATCH, samples=12, cache_bytes=limit, share=True)
    own = CohortDataset(tmp_path, patch=PATCH, samples=12)
    plain = list(DataLoader(own, num_workers=1, batch_size=None))
    numbers = {int(np.random.default_rng([0, i]).integers(3)) for i in range(12)}
    counts = []
    for _ in range(2):
        for index, sample in enumerate(DataLoader(dataset, num_workers=2, batch_size=None)):
            assert_same(sample, plain[index])
        counts.append(len((tmp_path / "notes").read_text().split()))
    assert len(numbers) == 3
    if again:
        assert counts[1] >= counts[0] + 2
    else:
        # Both may begin with the same one.
        assert counts[0] <= 6
        assert counts[1] == counts[0]


# ---------------------------------------------------------------- priors


class MarkedPriors:
    """Priors that are the label of the one case, times a number of their own for each branch, modality and region."""

    def __init__(self, inside: np.ndarray) -> None:
        self.inside = torch.from_numpy(inside.astype(np.float32))
        self.factors = torch.linspace(0.1, 1.0, 2 * 4 * 3).reshape(2, 4, 3)

    def draw(self, number, random):
        pair = torch.stack([subset_mask(("flair",)), subset_mask(("t1ce", "t2"))])
        return pair, self.factors[..., None, None, None] * self.inside


def test_image_label_and_prior_stay_together_through_cut_turn_and_flip(tmp_path):
    """A single marked voxel, off centre, is found in the same place of all three."""
    write_sphere(tmp_path)
    dataset = CohortDataset(tmp_path, patch=PATCH, tumour_share=1.0, augment=False)
    prepared, _ = dataset._prepared(0)
    marked = np.zeros(prepared.label.shape, bool)
    voxel = tuple(int(edge) // 2 + 3 for edge in marked.shape)
    marked[voxel] = True
    prepared.label[:] = torch.from_numpy(marked)
    prepared.image[:] = 1 + torch.from_numpy(marked).float()  # all of it brain
    priors = MarkedPriors(marked)
    places = set()
    for seed in range(12):
        whole = CohortDataset(tmp_path, patch=PATCH, tumour_share=0.0, augment=True, seed=seed, priors=priors)
        whole._kept[0] = (prepared, dataset._kept[0][1])
        sample = whole[0]
        assert sample["priors"].shape == (2, 4, 3, PATCH, PATCH, PATCH)
        assert sample["priors"].dtype == torch.float32
        prior = sample["priors"][1, 3, 2]
        if float(prior.max()) < 0.2:
            continue  # outside the patch
        place = np.unravel_index(int(prior.argmax()), prior.shape)
        places.add(tuple(map(int, place)))
        found = sample["label"].nonzero()
        # After a turn the nearest voxel may be the next one, or none.
        assert all(float((one - torch.tensor(place)).abs().max()) <= 1 for one in found)
        brightest = np.unravel_index(int(sample["image"][0].argmax()), prior.shape)
        assert tuple(brightest) == tuple(place)
        # Every branch, modality and region went the same way, and each kept its number.
        assert torch.allclose(sample["priors"], priors.factors[..., None, None, None] * prior, atol=1e-6)
    assert len(places) > 4


def test_masks_come_with_the_priors_and_the_patch_is_the_same_without_them(tmp_path):
    write_sphere(tmp_path)
    plain = CohortDataset(tmp_path, patch=PATCH, seed=3)
    shape = tuple(plain._prepared(0)[0].label.shape)
    with_priors = CohortDataset(tmp_path, patch=PATCH, seed=3, priors=MarkedPriors(np.ones(shape)))
    for index in range(3):
        one, two = plain[index], with_priors[index]
        assert torch.equal(one["label"], two["label"])
        assert [mask_subset(mask) for mask in two["masks"]] == [("flair",), ("t1ce", "t2")]
