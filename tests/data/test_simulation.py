"""The simulated cohort: reproducible to the byte, in the files of any data set, and honest about what it is.

What subjects look like is in ``test_looks.py``.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from smml.data.labels import BRATS_2015, BRATS_2023
from smml.data.layouts import LAYOUTS, find_cases
from smml.data.reading import read_case
from smml.data.simulation import cohort
from smml.data.simulation.cohort import simulate_cohort
from smml.data.simulation.contrast import draw_protocol, draw_tissues
from smml.data.simulation.draws import Middle
from smml.data.simulation.subject import Subject, simulate_anatomy, simulate_subject
from smml.errors import InputError
from smml.modalities import MODALITIES

SEED = 27
QUIET = {"spacing": 6, "seed": SEED, "progress": False, "workers": 1}


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def subjects() -> list[Subject]:
    """A ring, a low-grade tumour, a ring and a healthy head."""
    return [simulate_subject(SEED, index, spacing=6) for index in range(4)]


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


def test_other_seeds_and_other_indices_are_other_subjects(subjects):
    different = [*subjects[:2], simulate_subject(SEED + 1, 0, spacing=6)]
    flair = [subject.volumes["flair"] for subject in different]
    assert not any(np.array_equal(a, b) for i, a in enumerate(flair) for b in flair[:i])


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cohort_round_trips_through_every_layout(tmp_path, monkeypatch, subjects, layout):
    subject = subjects[0]
    monkeypatch.setattr(cohort, "simulate_subject", lambda *_, **__: subject)
    (written,) = simulate_cohort(tmp_path / layout, 1, **QUIET, layout=layout)
    (found,) = find_cases(tmp_path / layout, layout)
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
    assert (notice["spacing_mm"], notice["seed"], notice["layout"]) == (6, SEED, "simulated")


def test_a_complete_cohort_is_not_written_again(four):
    before = {path: path.stat().st_mtime_ns for path in four.rglob("*.nii.gz")}
    assert [case.id for case in simulate_cohort(four, 4, **QUIET)] == [case.id for case in find_cases(four)]
    assert {path: path.stat().st_mtime_ns for path in four.rglob("*.nii.gz")} == before


def test_asking_for_fewer_cases_gives_the_first_ones(four):
    assert [case.id for case in simulate_cohort(four, 2, **QUIET)] == ["Simulated_00000", "Simulated_00001"]


def test_ids_begin_where_they_are_told_and_nothing_else_of_a_subject_changes(tmp_path, four):
    later = simulate_cohort(tmp_path, 2, **QUIET, first_id=98)
    assert [case.id for case in later] == ["Simulated_00098", "Simulated_00099"]
    for case, same in zip(later, simulate_cohort(four, 2, **QUIET), strict=True):
        for name, image in case.images.items():
            assert image.path.read_bytes() == same.images[name].path.read_bytes()
        assert case.label.read_bytes() == same.label.read_bytes()
    assert simulate_cohort(tmp_path, 2, **QUIET, first_id=98) == later, "they were complete"
    with pytest.raises(InputError, match="first_id=98 instead of 0"):
        simulate_cohort(tmp_path, 2, **QUIET)
    with pytest.raises(InputError, match="five digits: first_id must lie between 0 and 99998, found 99999"):
        simulate_cohort(tmp_path / "other", 2, **QUIET, first_id=99_999)


def test_an_interrupted_cohort_is_completed(tmp_path, four):
    root = tmp_path / "cohort"
    shutil.copytree(four, root)
    shutil.rmtree(root / "Simulated_00003")
    # A case that was begun has no label yet: it is written last.
    half = root / "Simulated_00001"
    for name in ("seg", "t2"):
        (half / f"Simulated_00001_{name}.nii.gz").unlink()
    (half / ".Simulated_00001_t2.nii.gz.x8f3.nii.gz").write_bytes(b"half")
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
        ({"seed": 21}, "seed=27 instead of 21"),
        ({"spacing": 5}, "spacing_mm=6 instead of 5"),
        ({"layout": "msd"}, "layout='simulated' instead of 'msd'"),
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
        ({"layout": "brats2016"}, "brats2015, brats2018, brats2019, brats2020, brats2021, fets2022, "),
        ({"device": "cuda:77"}, "try 'cpu'"),
        ({"device": "quantum"}, "try 'cpu'"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_written(tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        simulate_cohort(tmp_path / "cohort", **{"cases": 1, **QUIET, **change})
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- what they show


def test_the_field_of_view_holds_the_brain(subjects):
    for subject in subjects:
        brain = subject.volumes["t1"] > 0
        assert brain[1:-1, 1:-1, 1:-1].sum() > 0.99 * brain.sum()


def test_the_typical_tissues_have_the_contrasts_of_their_sequences():
    """From the middle of every range that is drawn from, through the signal equations."""
    tissues, enhanced = draw_tissues(Middle())
    levels = {name: {key: draw_protocol(Middle(), name).signal(t) for key, t in tissues.items()} for name in MODALITIES}
    normal = ("white", "grey", "csf")
    assert levels["flair"]["csf"] < 0.1 * levels["flair"]["white"] < levels["flair"]["ED"]
    assert max(levels["t2"], key=levels["t2"].get) == "csf"
    assert sorted(normal, key=levels["t1"].get) == ["csf", "grey", "white"]
    assert levels["t2"]["grey"] > levels["t2"]["white"]
    for name in ("flair", "t2"):
        assert levels[name]["ED"] > levels[name]["grey"]
    # Before contrast agent enhancing tumour is as dark as oedema, after it brighter than anything normal.
    assert levels["t1"]["ET"] == pytest.approx(levels["t1"]["ED"], rel=0.1)
    after = draw_protocol(Middle(), "t1ce").signal(enhanced["ET"])
    assert after > 1.2 * max(levels["t1ce"][key] for key in normal)


def test_fluid_is_darkest_on_flair_and_brightest_on_t2():
    images, tissues = simulate_anatomy(SEED, 0, spacing=6)
    shown = {
        name: {key: float(np.median(images[name][tissues[key] > 0.8])) for key in ("white", "grey", "csf")}
        for name in ("flair", "t2")
    }
    assert min(shown["flair"], key=shown["flair"].get) == "csf"
    assert max(shown["t2"], key=shown["t2"].get) == "csf"


def test_labels_have_the_five_classes_of_2015_and_merge_into_four(subjects):
    found = set(np.unique(np.concatenate([np.unique(subject.labels) for subject in subjects])).tolist())
    assert found == {0, 1, 2, 3, 4}
    merged = np.array([0, 1, 2, 1, 3], np.uint8)
    for subject in subjects:
        for region in ("WT", "TC", "ET"):
            np.testing.assert_array_equal(
                BRATS_2015.region(subject.labels, region), BRATS_2023.region(merged[subject.labels], region)
            )
