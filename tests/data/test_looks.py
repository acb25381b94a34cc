"""The looks of the simulator: reproducible, one subject in every look and at every spacing, and like patients."""

import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from smml.data.layouts import find_cases
from smml.data.reading import read_case
from smml.data.simulation.cohort import simulate_cohort
from smml.data.simulation.draws import STREAMS, Draws
from smml.data.simulation.fields import Grid
from smml.data.simulation.head import draw_shape, look_at
from smml.data.simulation.imaging import LOOKS, _add_noise
from smml.data.simulation.lattice import Window, noise, resample, slice_matrix, whole
from smml.data.simulation.lesion import KINDS, Growth, mass_effect
from smml.data.simulation.subject import Subject, simulate_anatomy, simulate_subject, subject_kind
from smml.errors import InputError
from smml.modalities import MODALITIES

SEED = 20
QUIET = {"spacing": 6, "seed": SEED, "progress": False, "workers": 1}
STATISTICS = Path(__file__).resolve().parents[2] / "results" / "simulator-statistics"


@functools.lru_cache
def subject(index: int, look: str, spacing: float = 4.0) -> Subject:
    return simulate_subject(SEED, index, spacing=spacing, look=look)


def indices(count: int, *kinds: str) -> list[int]:
    """The first subjects of these kinds."""
    found = [index for index in range(60) if subject_kind(SEED, index) in kinds]
    assert len(found) >= count
    return found[:count]


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------- same seed, same bytes


@pytest.mark.parametrize("look", LOOKS)
def test_same_seed_gives_same_bytes_and_a_subject_does_not_depend_on_how_many_there_are(tmp_path, look):
    simulate_cohort(tmp_path / "two", 2, **QUIET | {"look": look})
    simulate_cohort(tmp_path / "one", 1, **QUIET | {"look": look})
    many, few = files(tmp_path / "two"), files(tmp_path / "one")
    assert len(few) == 5 + 1
    assert all(many[name] == content for name, content in few.items())


@pytest.mark.parametrize("look", LOOKS)
def test_a_subject_does_not_depend_on_the_number_of_threads_nor_on_global_random_numbers(look):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        again = simulate_subject(SEED, 3, spacing=6, look=look)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    first = simulate_subject(SEED, 3, spacing=6, look=look)
    np.testing.assert_array_equal(again.labels, first.labels)
    for name in MODALITIES:
        np.testing.assert_array_equal(again.volumes[name], first.volumes[name])


def test_streams_of_a_subject_and_of_its_neighbours_differ():
    numbers = {Draws(seed, index, stream).between(0, 1) for seed in (0, 1) for index in (0, 1) for stream in STREAMS}
    assert len(numbers) == 4 * len(STREAMS)


# ---------------------------------------------------------------- one subject in every look, at every spacing


@pytest.mark.parametrize("index", range(6))
def test_labels_do_not_depend_on_the_look(index):
    typical, varied = (subject(index, look) for look in LOOKS)
    assert typical.kind == varied.kind == subject_kind(SEED, index)
    np.testing.assert_array_equal(typical.labels, varied.labels)
    # A share of the heads is imaged as with "typical", but for the white matter deep in them.
    plain = Draws(SEED, index, "look").chance(LOOKS["varied"].plain)
    alike = Draws(SEED, index, "deep white").between(*LOOKS["varied"].deep_white) <= 0
    for name in MODALITIES:
        assert np.array_equal(typical.volumes[name], varied.volumes[name]) == (plain and alike)


def test_a_share_of_varied_heads_is_imaged_as_typical_ones():
    plain = [Draws(SEED, index, "look").chance(LOOKS["varied"].plain) for index in range(600)]
    assert 0.35 < np.mean(plain) < 0.45
    # The first six, which the test above looks at, are of both kinds.
    assert set(plain[:6]) == {False, True}
    assert LOOKS["typical"].plain == 0


def test_deep_white_matter_is_brighter_on_flair_and_t2_and_nothing_else_is(monkeypatch):
    (index,) = indices(1, "healthy")
    (_, parts), before = simulate_anatomy(SEED, index, spacing=4), subject(index, "typical")
    monkeypatch.setitem(LOOKS, "typical", replace(LOOKS["typical"], deep_white=(1.0, 1.0)))
    after = simulate_subject(SEED, index, spacing=4)
    np.testing.assert_array_equal(after.labels, before.labels)
    brain = before.volumes["t1"] > 0
    depth = ndimage.distance_transform_edt(brain, sampling=4.0)
    white = parts["white"] > 0.9
    deep, shallow = white & (depth > 30), brain & (depth < 8)

    def lift(name: str) -> np.ndarray:
        """In standard deviations of the brain."""
        was, now = (each.volumes[name].astype(float) for each in (before, after))
        return (now - was) / was[brain].std()

    assert lift("flair")[deep].mean() > 0.5
    assert 0.1 < lift("t2")[deep].mean() < lift("flair")[deep].mean()
    assert -0.4 < lift("t1")[deep].mean() <= 0.05
    other = brain & (depth > 20) & (parts["white"] < 0.02)
    assert np.abs(lift("flair")[other]).mean() < 0.3 * lift("flair")[deep].mean()
    for name in MODALITIES:
        assert np.abs(lift(name)[shallow]).mean() < 0.05
    # Alike on both sides: the subject's x axis points to the right.
    left, right = np.array_split(np.where(deep, lift("flair"), np.nan), 2)
    assert np.nanmean(left) == pytest.approx(np.nanmean(right), rel=0.3)


def test_another_spacing_shows_the_same_images_with_other_voxels():
    (index,) = indices(1, "ring")
    fine, coarse = subject(index, "typical", 2.0), subject(index, "typical", 4.0)

    def pool(volume: np.ndarray) -> np.ndarray:
        x, y, z = volume.shape
        return volume.astype(float).reshape(x // 2, 2, y // 2, 2, z // 2, 2).mean((1, 3, 5))

    assert pool(fine.labels).shape == coarse.labels.shape
    brain = (pool(fine.volumes["t1"] > 0) == 1) & (coarse.volumes["t1"] > 0)
    assert brain.sum() > 0.8 * (coarse.volumes["t1"] > 0).sum()
    for name in MODALITIES:
        assert np.corrcoef(pool(fine.volumes[name])[brain], coarse.volumes[name][brain])[0, 1] > 0.8
    a, b = pool(fine.labels > 0) > 0.5, coarse.labels > 0
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.8


def test_noise_and_slices_lie_at_places_in_mm_whatever_the_window():
    full = whole(Grid(3.0, torch.device("cpu")))
    part = Window(full.grid, (10, 20, 5), (12, 9, 14))
    fields = [noise(window, 9.0, torch.Generator().manual_seed(3))[0] for window in (full, part)]
    torch.testing.assert_close(fields[0][part.inside(full)], fields[1])
    assert float(fields[0].std()) == pytest.approx(1, abs=0.1)
    ramp = full.axes()[0].view(1, -1, 1, 1).expand(1, *full.shape)
    torch.testing.assert_close(resample(ramp, full, part)[0, :, 0, 0], part.axes()[0])
    # A thick slice is the mean over its thickness, and slices do not move with the window.
    places = full.axes()[2]
    matrix, cut = slice_matrix(places, 7.0, 0.3), slice_matrix(places[10:40], 7.0, 0.3)
    torch.testing.assert_close(matrix.sum(1), torch.ones(len(places)))
    torch.testing.assert_close((matrix @ places)[14:36], (cut @ places[10:40])[4:26])
    torch.testing.assert_close((matrix @ places)[8:-8], places[8:-8], atol=0.4, rtol=0)


def test_noise_is_that_of_a_magnitude_image():
    window = whole(Grid(4.0, torch.device("cpu")))
    ratios = []
    for index in range(12):
        streams = Draws(SEED, index, "image"), Draws(SEED, index, "grain")
        # Without a signal Rician noise is Rayleigh's, whose mean is 1.9131 times its standard deviation, less where it
        # is not everywhere alike.
        magnitude = _add_noise(torch.zeros(window.shape), 1.0, window, None, LOOKS["typical"], *streams)
        ratios.append(float(magnitude.mean() / magnitude.std()))
    assert max(ratios) == pytest.approx(math.sqrt(math.pi / (4 - math.pi)), rel=0.02)


# ---------------------------------------------------------------- what subjects are


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_tumour_pushes_tissue_away_from_it_in_mirrored_heads_too(mirrored):
    coarse = whole(Grid(3.0, torch.device("cpu")))
    shapes = (draw_shape(Draws(SEED, index, "shape"), coarse) for index in range(20))
    shape = next(s for s in shapes if bool(s.points[0, 40].mean() < s.points[0, 10].mean()) is mirrored)
    places = torch.stack(torch.meshgrid(*coarse.axes(), indexing="ij"))
    middle = torch.tensor([35.0, -20.0, 20.0])
    core = (places - middle.view(3, 1, 1, 1)).norm(dim=0) < 15
    push = mass_effect(Growth(core.float(), middle[None]), coarse, 8.0)
    pushed = look_at(shape, coarse, push).points
    # What is beside the core now, towards the midline and above it, lay nearer to the core's middle before.
    for place in ([11.0, -20.0, 20.0], [35.0, -20.0, 44.0], [35.0, -47.0, 20.0]):
        at = tuple(int((axis - p).abs().argmin()) for axis, p in zip(coarse.axes(), place, strict=True))
        here, moved = places[:, *at], push[:, *at]
        was = places.flatten(1)[:, (shape.points - pushed[:, *at].view(3, 1, 1, 1)).flatten(1).norm(dim=0).argmin()]
        assert moved.norm() > 3
        assert (was - middle).norm() < (here - middle).norm() - 1
        torch.testing.assert_close(here - was, moved, atol=3.0, rtol=0)  # to the nearest voxel


@pytest.mark.parametrize("look", LOOKS)
def test_nothing_floats_outside_the_head(look):
    for index in range(12):
        seen = subject(index, look).volumes["t1"] > 0
        pieces, _ = ndimage.label(seen, np.ones((3, 3, 3)))
        sizes = np.sort(np.bincount(pieces.ravel())[1:])[::-1] * 0.064
        assert sizes[1:].sum() < 5.0  # ml


def test_far_outside_the_atlas_everything_is_far_away():
    coarse = whole(Grid(3.0, torch.device("cpu")))
    shape = draw_shape(Draws(SEED, 0, "shape"), coarse)
    low = shape.points.clone()
    low[2] -= 60.0
    maps = look_at(replace(shape, points=low), coarse).maps
    below = low[2] < -110
    assert below.any()
    assert (maps["depth"][below] < -20).all()
    for name in ("artery", "vein", "sinus", "surface vein", "ventricle"):
        assert (maps[name][below] > 20).all()


@pytest.mark.parametrize("look", LOOKS)
def test_every_sequence_is_there_in_the_whole_brain_and_labels_are_inside_it(look):
    for index in range(8):
        case = subject(index, look)
        seen = case.volumes["t1"] > 0
        for volume in case.volumes.values():
            assert volume.dtype == np.float32
            assert np.isfinite(volume).all()
            np.testing.assert_array_equal(volume > 0, seen)
            np.testing.assert_array_equal(volume, np.rint(volume))
            assert len(np.unique(volume[seen])) > 50
        assert not case.labels[~seen].any()
        assert 0.7 < seen.sum() * 0.064 / 1000 < 2.1


def test_a_fifth_is_healthy_and_three_tenths_do_not_enhance():
    kinds = [subject_kind(SEED, index) for index in range(600)]
    for kind, share in KINDS.items():
        assert kinds.count(kind) / 600 == pytest.approx(share, abs=0.05)
    assert KINDS["healthy"] == pytest.approx(0.20)
    assert KINDS["low-grade"] == pytest.approx(0.30)


def test_labels_are_what_the_kind_says():
    for index in indices(3, "healthy"):
        assert not subject(index, "typical").labels.any()
    for index in indices(4, "low-grade"):
        labels = subject(index, "typical").labels
        assert (labels == 3).any()
        assert not (labels == 4).any()
    for index in indices(6, "ring", "solid"):
        assert (subject(index, "typical").labels == 4).any()


def test_tumours_have_the_volumes_of_brats():
    labels = [subject(index, "typical").labels for index in indices(14, "ring", "solid", "low-grade")]
    whole_ml = np.array([(label > 0).sum() * 0.064 for label in labels])
    core_ml = np.array([np.isin(label, (1, 3, 4)).sum() * 0.064 for label in labels])
    assert whole_ml.min() > 0.5
    assert whole_ml.max() < 360
    assert 25 < np.median(whole_ml) < 130
    assert (core_ml <= whole_ml).all()
    assert 0.2 < np.median(core_ml / whole_ml) < 0.7


@pytest.mark.parametrize("look", LOOKS)
def test_enhancing_tumour_is_brighter_on_t1ce_than_on_t1(look):
    for index in indices(8, "ring", "solid"):
        case = subject(index, look)
        rim = case.labels == 4
        if rim.sum() < 12:
            continue
        standing = {}
        for name in ("t1", "t1ce"):
            volume = case.volumes[name]
            brain = volume[volume > 0]
            standing[name] = (volume[rim].mean() - brain.mean()) / brain.std()
        assert standing["t1ce"] > standing["t1"] + 0.2


# ---------------------------------------------------------------- like patients, as the committed report says


@pytest.mark.parametrize("look", LOOKS)
def test_the_report_is_of_the_look_as_it_is(look):
    report = json.loads((STATISTICS / f"{look}.json").read_text(encoding="utf-8"))
    assert f"look '{look}', version {LOOKS[look].version}" in report["what"]
    assert report["rows"]["brain, litres"]["n"] >= 60


def ranges() -> list[dict]:
    return json.loads((STATISTICS / "patients.json").read_text(encoding="utf-8"))["rows"]


@pytest.mark.parametrize("row", ranges(), ids=lambda row: row["name"])
def test_typical_lies_where_patients_lie_and_varied_covers_their_range(row):
    typical, varied = (
        json.loads((STATISTICS / f"{look}.json").read_text(encoding="utf-8"))["rows"][row["name"]] for look in LOOKS
    )
    assert row["low"] <= typical["median"] <= row["high"]
    assert varied["p5"] <= row["low"]
    assert varied["p95"] >= row["high"]


# ---------------------------------------------------------------- folders


def test_a_cohort_has_ids_of_its_own_and_says_its_look(tmp_path):
    (case,) = simulate_cohort(tmp_path / "c", 1, **QUIET)
    assert (case.id, case.layout) == ("Simulated_00000", "simulated")
    assert find_cases(tmp_path / "c") == [case]
    expected = simulate_subject(SEED, 0, spacing=6, look="typical")
    read = read_case(case)
    for name in MODALITIES:
        np.testing.assert_array_equal(read.volumes[name][::-1, ::-1], expected.volumes[name])
    notice = json.loads((tmp_path / "c" / "simulated.json").read_text(encoding="utf-8"))
    assert (notice["look"], notice["look_version"]) == ("typical", LOOKS["typical"].version)
    with pytest.raises(InputError, match="look='typical' instead of 'varied'"):
        simulate_cohort(tmp_path / "c", 1, **QUIET | {"look": "varied"})


def test_an_unknown_look_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="choose from typical, varied"):
        simulate_cohort(tmp_path / "c", 1, **QUIET | {"look": "real"})
    assert not (tmp_path / "c").exists()


# ---------------------------------------------------------------- the head without a tumour


def test_anatomy_is_the_subjects_own_head_and_what_its_images_show():
    healthy, ill = indices(1, "healthy")[0], indices(1, "ring")[0]
    images, tissues = simulate_anatomy(SEED, healthy, spacing=4.0)
    for name, volume in subject(healthy, "typical").volumes.items():
        assert np.array_equal(images[name], volume)
    images, tissues = simulate_anatomy(SEED, ill, spacing=4.0)
    assert not np.array_equal(images["flair"], subject(ill, "typical").volumes["flair"])
    assert set(tissues) == {"white", "grey", "csf", "brain"}
    for fraction in tissues.values():
        assert not fraction[images["t1"] == 0].any()
        assert 0 <= fraction.min() < 0.5 < fraction.max() <= 1
    parts = tissues["white"] + tissues["grey"] + tissues["csf"]
    assert (parts <= tissues["brain"] + 1e-4).all()
    assert parts.sum() > 0.9 * tissues["brain"].sum()
    # White matter is brighter than grey on T1, CSF darkest.
    mean = {name: images["t1"][tissues[name] > 0.8].mean() for name in ("white", "grey", "csf")}
    assert mean["white"] > mean["grey"] > mean["csf"]
