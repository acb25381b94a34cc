"""Scenes that the tiny SAM learns from: image and objects stay together, and no evaluation's subject is among them."""

import numpy as np
import pytest
import torch

from smml import course
from smml.data.labels import BRATS_2015
from smml.data.simulation.subject import Subject
from smml.modalities import MODALITIES
from smml.sam import SquareFit
from smml.sam.training import scenes
from smml.sam.training.config import SAMTraining
from smml.sam.training.scenes import (
    HELD_OUT_SEED,
    SMALLEST_OBJECT,
    TRAINING_SEED,
    anatomy_scenes,
    draw_shape,
    lesion_scenes,
    make_scene,
    plain_grey,
    shape_scenes,
)

SIZE, PIXELS = 64, 32


def draw(kind, *arguments, seed=0, **options):
    return list(kind(*arguments, size=SIZE, pixels=PIXELS, random=np.random.default_rng(seed), **options))


@pytest.fixture(scope="module")
def anatomy():
    return draw(anatomy_scenes, TRAINING_SEED, 0, 12, spacing=6.0)


@pytest.fixture(scope="module")
def lesions():
    return draw(lesion_scenes, TRAINING_SEED, 0, 12, spacing=6.0)


@pytest.fixture(scope="module")
def shapes(anatomy):
    return draw(shape_scenes, 25, backgrounds=[scene.grey.numpy() / 255 for scene in anatomy])


def equal(a, b) -> bool:
    pairs = ((getattr(a, name), getattr(b, name)) for name in ("grey", "masks", "targets"))
    return a.shape == b.shape and a.names == b.names and all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("kind", ["lesions", "anatomy", "shapes"])
def test_a_scene_is_a_slice_with_some_objects(kind, request):
    drawn = request.getfixturevalue(kind)
    assert len(drawn) >= 10
    for scene in drawn:
        assert tuple(scene.grey.shape) == SquareFit(scene.shape, SIZE).inside
        assert scene.grey.dtype == scene.targets.dtype == torch.uint8
        assert 1 <= len(scene.masks) == len(scene.targets) == len(scene.names) <= 4
        assert tuple(scene.masks.shape[1:]) == scene.shape
        assert tuple(scene.targets.shape[1:]) == (PIXELS, PIXELS)
        assert int(scene.masks.sum(dim=(1, 2)).min()) >= SMALLEST_OBJECT
    # Both orientations, so that rows and columns cannot be mixed up unnoticed.
    assert {scene.shape[0] > scene.shape[1] for scene in drawn if scene.shape[0] != scene.shape[1]} == {True, False}


def test_objects_have_their_names(lesions, anatomy, shapes):
    for drawn, names in (
        (lesions, {"WT", "TC", "ET", "necrosis"}),
        (anatomy, {"white matter", "grey matter", "CSF", "brain"}),
        (shapes, {"shape"}),
    ):
        assert {name for scene in drawn for name in scene.names} <= names


@pytest.fixture
def marked(monkeypatch):
    """A subject in place of the simulated one: the brain is 1, the lesion 1000, both without any symmetry."""
    labels = np.zeros((24, 30, 18), np.uint8)
    labels[4:12, 5:19, 3:12] = 2
    labels[5:11, 6:12, 4:9] = 4
    brain = np.zeros(labels.shape, np.float32)
    brain[2:20, 3:29, 1:14] = 1
    volume = np.where(labels > 0, 1000, brain).astype(np.float32)
    subject = Subject(dict.fromkeys(MODALITIES, volume), labels, np.eye(4), "ring")
    monkeypatch.setattr(scenes, "simulate_subject", lambda *_, **__: subject)
    return subject


def test_image_and_objects_are_turned_together(marked):
    drawn = draw(lesion_scenes, 0, 0, 40, spacing=3.0)
    turned = set()
    for scene in drawn:
        fit = SquareFit(scene.shape, SIZE)
        for name, mask, target in zip(scene.names, scene.masks, scene.targets, strict=True):
            inside = fit.resize(mask[None].float())[0]
            assert int(scene.grey[inside > 0.99].min()) == 255
            back = fit.masks_to_slices(target[None, None].float() / 255)[0, 0] > 0.5
            assert float((back & mask).sum()) / float((back | mask).sum()) > 0.8
            if name == "WT":
                assert int(scene.grey[inside < 0.001].max()) <= 50
                rows, columns = mask.nonzero().float().mean(dim=0).tolist()
                turned.add((scene.shape, rows < scene.shape[0] / 2, columns < scene.shape[1] / 2))
    # Three axes, either way up; flips show where the lesion is not in the middle.
    assert {shape for shape, *_ in turned} >= {(24, 30), (30, 24), (24, 18), (18, 24), (30, 18), (18, 30)}
    assert len(turned) > 12


def test_lesion_slices_pass_through_what_their_sequence_shows(marked):
    drawn = draw(lesion_scenes, 0, 0, 60, spacing=3.0)
    assert len(drawn) == 60
    # A third of the sequences shows the core alone, which is a sixth of the lesion.
    assert 10 < sum("WT" not in scene.names for scene in drawn) < 30
    assert BRATS_2015.region(marked.labels, "TC").sum() < BRATS_2015.region(marked.labels, "WT").sum()


def test_lesion_scenes_hold_only_what_their_sequence_shows(marked):
    # Of T1, which shows none of the objects, no voxel can be looked at.
    marked.volumes["t1"] = np.full_like(marked.volumes["t1"], np.nan)
    # FLAIR and T2 without the inner part of the lesion are told from T1ce by their grey there.
    core = BRATS_2015.region(marked.labels, "TC")
    for name in ("flair", "t2"):
        marked.volumes[name] = np.where(core, 1, marked.volumes[name])
    seen = set()
    for scene in draw(lesion_scenes, 0, 0, 60, spacing=3.0):
        for name, mask in zip(scene.names, scene.masks, strict=True):
            inside = SquareFit(scene.shape, SIZE).resize(mask[None].float())[0] > 0.99
            seen.add((name, int(scene.grey[inside].float().median()) == 255))
            assert set(scene.names) <= {"WT"} or "WT" not in scene.names
    # The core is white in T1ce alone, and is no object of the others.
    assert seen >= {("WT", True), ("TC", True), ("ET", True)}
    assert not seen & {("TC", False), ("ET", False)}


def test_a_healthy_subject_has_no_lesion_scenes(marked, monkeypatch):
    healthy = Subject(marked.volumes, np.zeros_like(marked.labels), marked.affine, "healthy")
    monkeypatch.setattr(scenes, "simulate_subject", lambda *_, **__: healthy)
    assert draw(lesion_scenes, 0, 0, 5, spacing=3.0) == []


def test_the_background_stays_black(lesions, anatomy):
    for scene in lesions + anatomy:
        assert int(scene.grey.min()) == 0
        assert int(scene.grey.max()) > 100


def test_some_scenes_have_plain_greys():
    brain = np.zeros((24, 30), np.float32)
    brain[2:20, 3:29] = 100
    lesion = np.zeros(brain.shape, bool)
    lesion[5:12, 8:16] = True
    brain[lesion] = 1000
    random = np.random.default_rng(0)
    drawn = [make_scene(brain, (100.0, 1000.0), {"WT": lesion}, 30, 15, random) for _ in range(200)]
    # The brain round the lesion: a tenth of 255, or the darkest grey of smml/sam/slices.py.
    found = [int(scene.grey[15, 20]) for scene in drawn]
    assert set(found) == {26, 48}
    assert 0.2 < found.count(26) / len(found) < 0.4


def test_plain_greys_run_from_the_least_to_the_largest_intensity():
    slices = torch.tensor([[[-2.0, 0.0], [3.0, 8.0]], [[5.0, 5.0], [5.0, 5.0]]])
    assert plain_grey(slices)[0].tolist() == [[0.0, 51.0], [127.5, 255.0]]
    assert plain_grey(slices)[1].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_the_same_seeds_draw_the_same_scenes(marked, anatomy, shapes):
    # That a subject is the same each time is a test of the simulator.
    again, lesions = (draw(lesion_scenes, 0, 0, 3, spacing=3.0) for _ in range(2))
    assert all(equal(a, b) for a, b in zip(again, lesions, strict=True))
    again = draw(anatomy_scenes, TRAINING_SEED, 0, 3, spacing=6.0)
    assert all(equal(a, b) for a, b in zip(again, anatomy, strict=False))
    again = draw(shape_scenes, 5, backgrounds=[scene.grey.numpy() / 255 for scene in anatomy])
    assert all(equal(a, b) for a, b in zip(again, shapes, strict=False))
    other = draw(shape_scenes, 5, seed=1, backgrounds=[scene.grey.numpy() / 255 for scene in anatomy])
    assert not any(equal(a, b) for a, b in zip(other, shapes, strict=False))


def test_no_evaluation_uses_the_seed_of_the_training():
    assert SAMTraining().data_seed == TRAINING_SEED
    # The others are those of tests, scripts and documented evaluations.
    assert TRAINING_SEED not in {HELD_OUT_SEED, course.TRAINING_SEED, course.HELD_OUT_SEED, 1, 2, 3, 20, 27}


def test_objects_that_are_too_small_are_left_out():
    image = np.ones((20, 30), np.float32)
    small, large = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    small[:1, : SMALLEST_OBJECT - 1] = True
    large[:1, :SMALLEST_OBJECT] = True
    random = np.random.default_rng(0)
    assert make_scene(image, None, {"small": small}, SIZE, PIXELS, random) is None
    assert make_scene(image, None, {"small": small, "large, 1": large}, SIZE, PIXELS, random).names == ("large",)
    crowd = {f"large, {i}": large for i in range(9)}
    assert len(make_scene(image, None, crowd, SIZE, PIXELS, random).names) == 4


def test_shapes_are_of_many_sizes_and_in_the_slice():
    random = np.random.default_rng(0)
    areas = [int(draw_shape((40, 90), random).sum()) for _ in range(100)]
    assert min(areas) >= 1
    assert min(areas) < 30
    assert max(areas) > 400
