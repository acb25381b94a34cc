"""The simulated cohort: reproducible to the byte, honest about what it is, and frozen on its image statistics."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from smml.data.labels import BRATS_2015, BRATS_2023
from smml.data.layouts import LAYOUTS, find_cases
from smml.data.reading import read_case
from smml.data.simulation.cohort import simulate_cohort
from smml.data.simulation.signal import SEQUENCES, TISSUES
from smml.data.simulation.subject import Subject, simulate_subject, subject_kind
from smml.errors import InputError
from smml.modalities import MODALITIES

SEED = 20
QUIET = {"spacing": 6, "seed": SEED, "progress": False, "workers": 1}
VOXEL_ML = 27 / 1000  # at 3 mm


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def assert_same_subject(first: Subject, second: Subject) -> None:
    assert first.kind == second.kind
    np.testing.assert_array_equal(first.labels, second.labels)
    for name in MODALITIES:
        np.testing.assert_array_equal(first.volumes[name], second.volumes[name])


# ---------------------------------------------------------------- same seed, same bytes


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Path:
    """Four cases, written by this process. Read it only."""
    root = tmp_path_factory.mktemp("four") / "cohort"
    simulate_cohort(root, 4, **QUIET)
    return root


def test_same_seed_gives_same_bytes_in_every_file_whatever_the_number_of_processes(tmp_path, four):
    simulate_cohort(tmp_path / "again", 4, **QUIET | {"workers": 2})
    assert files(tmp_path / "again") == files(four)


def test_a_subject_does_not_depend_on_how_many_there_are(tmp_path, four):
    simulate_cohort(tmp_path / "two", 2, **QUIET)
    small, large = files(tmp_path / "two"), files(four)
    assert len(small) == 2 * 5 + 1
    assert all(large[name] == content for name, content in small.items())


def test_a_subject_does_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    subjects = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            subjects.append(simulate_subject(SEED, 0, spacing=6))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert_same_subject(*subjects)


def test_simulating_leaves_the_global_random_state_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    simulate_subject(SEED, 1, spacing=6)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_seeds_and_other_indices_are_other_subjects():
    subjects = [simulate_subject(seed, index, spacing=6) for seed, index in ((0, 0), (0, 1), (1, 0))]
    flair = [subject.volumes["flair"] for subject in subjects]
    assert not any(np.array_equal(a, b) for i, a in enumerate(flair) for b in flair[:i])


def test_another_spacing_shows_the_same_subject(subjects):
    fine = max(subjects, key=lambda subject: int((subject.labels > 0).sum()))
    coarse = simulate_subject(SEED, subjects.index(fine), spacing=4)
    assert coarse.kind == fine.kind
    index = np.stack(np.meshgrid(*map(np.arange, fine.labels.shape), indexing="ij"), -1)
    points = index @ fine.affine[:3, :3].T + fine.affine[:3, 3]
    nearest = np.rint((points - coarse.affine[:3, 3]) / 4).astype(int)
    nearest = tuple(np.clip(nearest, 0, np.array(coarse.labels.shape) - 1).reshape(-1, 3).T)

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        return 2 * (a & b).sum() / (a.sum() + b.sum())

    def resample(volume: np.ndarray) -> np.ndarray:
        return volume[nearest].reshape(fine.labels.shape)

    assert overlap(resample(coarse.labels) > 0, fine.labels > 0) > 0.8
    assert overlap(resample(coarse.volumes["t1"]) > 0, fine.volumes["t1"] > 0) > 0.95
    brain = (fine.volumes["t1"] > 0) & (resample(coarse.volumes["t1"]) > 0)
    for name, floor in (("flair", 0.8), ("t2", 0.8), ("t1ce", 0.6)):
        assert np.corrcoef(resample(coarse.volumes[name])[brain], fine.volumes[name][brain])[0, 1] > floor


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cohort_round_trips_through_every_layout(tmp_path, layout):
    (written,) = simulate_cohort(tmp_path / layout, 1, **QUIET, layout=layout)
    subject = simulate_subject(SEED, 0, spacing=6)
    (found,) = find_cases(tmp_path / layout)
    assert found == written
    assert found.layout == layout
    case = read_case(found)
    assert case.orientation == ("L", "P", "S")  # as BraTS stores its images
    assert case.spacing == pytest.approx((6, 6, 6))
    assert case.modalities == MODALITIES
    # The same voxel is at the same place in mm as the simulator says, with X and Y counted the other way.
    last = np.array(subject.labels.shape) - 1
    corner = subject.affine @ [last[0], last[1], 0, 1]
    np.testing.assert_allclose(case.affine[:, 3], corner, atol=1e-4)
    np.testing.assert_allclose(case.affine[:3, :3], np.diag([-6, -6, 6]), atol=1e-5)
    for name in MODALITIES:
        np.testing.assert_array_equal(case.volumes[name][::-1, ::-1], subject.volumes[name])
    labels = subject.labels if layout == "brats2015" else np.array([0, 1, 2, 1, 3])[subject.labels]
    np.testing.assert_array_equal(case.label[::-1, ::-1], labels)


def test_the_folder_says_that_it_is_simulated_and_how(four):
    notice = json.loads((four / "simulated.json").read_text(encoding="utf-8"))
    assert notice["simulated"] is True
    assert "Not patient data" in notice["what"]
    assert "Louis Collins" in notice["anatomy"]
    assert (notice["spacing_mm"], notice["seed"], notice["layout"]) == (6, SEED, "brats2021")


def test_a_complete_cohort_is_not_written_again(four):
    before = {path: path.stat().st_mtime_ns for path in four.rglob("*.nii.gz")}
    assert [case.id for case in simulate_cohort(four, 4, **QUIET)] == [case.id for case in find_cases(four)]
    assert {path: path.stat().st_mtime_ns for path in four.rglob("*.nii.gz")} == before


def test_asking_for_fewer_cases_gives_the_first_ones(four):
    assert [case.id for case in simulate_cohort(four, 2, **QUIET)] == ["BraTS2021_00000", "BraTS2021_00001"]


def test_an_interrupted_cohort_is_completed(tmp_path, four):
    root = tmp_path / "cohort"
    shutil.copytree(four, root)
    shutil.rmtree(root / "BraTS2021_00003")
    # A case that was begun has no label yet: it is written last.
    half = root / "BraTS2021_00001"
    for name in ("seg", "t2"):
        (half / f"BraTS2021_00001_{name}.nii.gz").unlink()
    (half / ".BraTS2021_00001_t2.nii.gz.x8f3.nii.gz").write_bytes(b"half")
    cases = simulate_cohort(root, 4, **QUIET)
    assert len(cases) == 4
    visible = {name: content for name, content in files(root).items() if "/." not in name}
    assert visible == files(four)


def test_the_lock_of_a_killed_simulation_goes_with_the_next(tmp_path, four, monkeypatch):
    root = shutil.copytree(four, tmp_path / "cohort")
    (root / ".lock").touch()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    simulate_cohort(root, 4, **QUIET)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before  # a complete one is only read
    monkeypatch.setattr("smml.data.simulation.cohort._write_subject", lambda *_: None)
    simulate_cohort(root, 5, **QUIET)
    assert not (root / ".lock").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 21}, "seed=20 instead of 21"),
        ({"spacing": 5}, "spacing_mm=6 instead of 5"),
        ({"layout": "msd"}, "layout='brats2021' instead of 'msd'"),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_kept(four, change, said):
    before = sorted(files(four))
    with pytest.raises(InputError, match=said) as error:
        simulate_cohort(four, 4, **QUIET | change)
    assert str(four) in str(error.value)
    assert sorted(files(four)) == before


@pytest.mark.parametrize("kind", ["other files", "a file", "no json", "another json"])
def test_a_place_that_is_not_a_simulated_cohort_is_refused_and_kept(tmp_path, kind):
    root = tmp_path / "data"
    if kind == "a file":
        root.write_text("kept")
    else:
        root.mkdir()
        name, text = {
            "other files": ("notes.txt", "kept"),
            "no json": ("simulated.json", "{"),
            "another json": ("simulated.json", "[]"),
        }[kind]
        (root / name).write_text(text)
    before = files(tmp_path)
    with pytest.raises(InputError) as error:
        simulate_cohort(root, 1, **QUIET)
    assert str(root) in str(error.value)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cases": 0}, "cases must be at least 1"),
        ({"spacing": 0.4}, "between 0.5 and 6 mm"),
        ({"spacing": 6.1}, "between 0.5 and 6 mm"),
        ({"spacing": float("nan")}, "between 0.5 and 6 mm"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"layout": "brats2016"}, "brats2015, brats2018, brats2020, brats2021, brats2023, msd"),
        ({"device": "cuda:77"}, "try 'cpu'"),
        ({"device": "quantum"}, "try 'cpu'"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_written(tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        simulate_cohort(tmp_path / "cohort", **{"cases": 1, **QUIET, **change})
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- image statistics, frozen


@pytest.fixture(scope="module")
def subjects() -> list[Subject]:
    """A cohort of 20 at 3 mm, the spacing of the default cohort."""
    return [simulate_subject(SEED, index) for index in range(20)]


def contrast(subject: Subject, modality: str, label: int) -> float:
    """Median of a compartment over the median of the healthy brain."""
    volume = subject.volumes[modality]
    return float(np.median(volume[subject.labels == label]) / np.median(volume[healthy(subject)]))


def healthy(subject: Subject) -> np.ndarray:
    return (subject.volumes["t1"] > 0) & (subject.labels == 0)


def test_images_are_skull_stripped_whole_numbers_on_one_grid(subjects):
    for subject in subjects:
        brain = subject.volumes["t1"] > 0
        for volume in subject.volumes.values():
            assert volume.dtype == np.float32
            assert volume.shape == subject.labels.shape == (56, 68, 60)
            np.testing.assert_array_equal(volume > 0, brain)
            np.testing.assert_array_equal(volume, np.rint(volume))
        assert not subject.labels[~brain].any()


def test_brains_have_the_size_of_brains(subjects):
    """Brain with cerebellum, stem and CSF: 1.4 to 2.4 litres in a template that is larger than most heads."""
    litres = np.array([(subject.volumes["t1"] > 0).sum() * VOXEL_ML / 1000 for subject in subjects])
    assert litres.min() > 1.4
    assert litres.max() < 2.4
    assert litres.mean() == pytest.approx(1.92, abs=0.08)


def test_the_field_of_view_holds_the_brain(subjects):
    """The largest brains touch its border with a few voxels (two in a thousand at most), none is cut."""
    for subject in subjects:
        brain = subject.volumes["t1"] > 0
        assert brain[1:-1, 1:-1, 1:-1].sum() > 0.997 * brain.sum()


def test_tumours_have_the_volumes_of_brats(subjects):
    sick = [subject for subject in subjects if subject.kind != "healthy"]
    whole = np.array([(subject.labels > 0).sum() * VOXEL_ML for subject in sick])
    core = np.array([np.isin(subject.labels, (1, 3, 4)).sum() * VOXEL_ML for subject in sick])
    assert whole.min() > 5
    assert whole.max() < 260
    assert 50 < np.median(whole) < 120
    share = core / whole
    assert share.min() > 0.1
    assert share.max() < 0.9


def test_enhancing_tumour_is_in_most_and_not_in_all(subjects):
    sick = [subject for subject in subjects if subject.kind != "healthy"]
    enhancing = np.mean([(subject.labels == 4).any() for subject in sick])
    assert 0.6 < enhancing < 1
    necrotic = np.mean([(subject.labels == 1).any() for subject in sick])
    assert 0.4 < necrotic < 1
    assert [subject_kind(SEED, index) for index in range(len(subjects))] == [subject.kind for subject in subjects]
    kinds = {subject.kind for subject in subjects}
    assert kinds == {"ring", "solid", "low-grade", "healthy"}
    assert all((subject.labels == 0).all() == (subject.kind == "healthy") for subject in subjects)


# Modality, label (2 ED, 4 ET), band for every subject, median over the cohort: measured, then frozen, because
# weights and figures were made with them.
CONTRASTS = {
    "ET lights up after contrast": ("t1ce", 4, (1.6, 2.8), 2.16),
    "ET hides on T1": ("t1", 4, (0.8, 1.3), 1.05),
    "ED lights up on FLAIR": ("flair", 2, (1.2, 1.8), 1.42),
    "ED lights up on T2": ("t2", 2, (1.05, 1.45), 1.23),
    "ED hides on T1": ("t1", 2, (0.9, 1.2), 1.04),
    "ED does not take up contrast": ("t1ce", 2, (0.9, 1.25), 1.04),
}


@pytest.mark.parametrize(("modality", "label", "band", "middle"), CONTRASTS.values(), ids=CONTRASTS)
def test_each_sequence_shows_what_it_shows_in_patients(subjects, modality, label, band, middle):
    enough = [subject for subject in subjects if (subject.labels == label).sum() > 30]
    values = np.array([contrast(subject, modality, label) for subject in enough])
    assert len(values) >= 10
    assert values.min() > band[0]
    assert values.max() < band[1]
    assert np.median(values) == pytest.approx(middle, abs=0.06)


def test_enhancing_tumour_is_separable_from_oedema_with_t1ce_only(subjects):
    """The gap between ET and ED in units of their spread, averaged over the cohort, is what a network can use."""
    gaps = {name: [] for name in MODALITIES}
    for subject in subjects:
        rim, wet = subject.labels == 4, subject.labels == 2
        if rim.sum() > 100:
            for name in MODALITIES:
                a, b = subject.volumes[name][rim], subject.volumes[name][wet]
                gaps[name].append(abs(a.mean() - b.mean()) / np.sqrt((a.var() + b.var()) / 2))
    means = {name: float(np.mean(values)) for name, values in gaps.items()}
    assert means["t1ce"] > 3
    assert max(means[name] for name in ("flair", "t1", "t2")) < 1.2


def test_csf_is_brightest_on_t2_and_darkest_on_flair(subjects):
    signal = {name: {key: SEQUENCES[name].signal(tissue) for key, tissue in TISSUES.items()} for name in SEQUENCES}
    assert min(signal["flair"], key=signal["flair"].get) == "csf"
    assert max(signal["t2"], key=signal["t2"].get) == "csf"
    assert signal["t1"]["white"] > signal["t1"]["grey"] > signal["t1"]["csf"]
    assert signal["t2"]["grey"] > signal["t2"]["white"]
    for subject in subjects:
        normal = healthy(subject)
        t2, flair = subject.volumes["t2"][normal], subject.volumes["flair"][normal]
        fluid = t2 > np.percentile(t2, 97)
        assert np.median(flair[fluid]) < 0.75 * np.median(flair)


def test_labels_have_the_five_classes_of_2015_and_merge_into_four(subjects):
    found = set(np.unique(np.concatenate([np.unique(subject.labels) for subject in subjects])).tolist())
    assert found == {0, 1, 2, 3, 4}
    merged = np.array([0, 1, 2, 1, 3], np.uint8)
    for subject in subjects:
        for region in ("WT", "TC", "ET"):
            np.testing.assert_array_equal(
                BRATS_2015.region(subject.labels, region), BRATS_2023.region(merged[subject.labels], region)
            )
