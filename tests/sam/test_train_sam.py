"""Training the tiny SAM, at a size of seconds: the losses, the schedule, and a run that is stopped and goes on."""

import csv
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from smml.errors import InputError
from smml.sam import TinyConfig, build_tiny, load_sam, read_tiny, save_tiny
from smml.sam.slices import DARKEST
from smml.sam.training import train
from smml.sam.training.config import SAMTraining, learning_rate
from smml.sam.training.prompts import mask_box
from smml.sam.training.scenes import anatomy_scenes, shape_scenes
from smml.sam.training.train import build_pools, mask_losses, train_sam

SMALL = TinyConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2, channels=16, decoder_mlp=16)
SETTINGS = SAMTraining(steps=4, subjects=1, slices=6, shapes=8, batch_size=2, checkpoint_every=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Operations of microseconds: on a busy machine threads wait for each other a thousand times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pools():
    """Shapes in place of lesions: simulated subjects would take most of the time."""
    random = np.random.default_rng(0)
    options = {"size": SMALL.image_size, "pixels": 4 * SMALL.grid, "random": random}
    return {
        "lesions": list(shape_scenes(6, **options)),
        "anatomy": list(anatomy_scenes(90, 0, 4, spacing=6.0, **options)),
        "shapes": list(shape_scenes(12, **options)),
    }


@pytest.fixture
def quick(pools, monkeypatch):
    monkeypatch.setattr(train, "build_pools", lambda *_, **__: pools)


@pytest.fixture(scope="module")
def trained(pools, tmp_path_factory):
    """A finished run. Read it, never write into it."""
    folder = tmp_path_factory.mktemp("sam") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "build_pools", lambda *_, **__: pools)
        patch.setattr(train, "provenance", lambda _: {"versions": {}, "commit": "abc", "hardware": "an abacus"})
        run(folder)
    return folder


@pytest.fixture
def finished(trained, quick, tmp_path):
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "run")


def run(folder, settings=SETTINGS, **options):
    return train_sam(folder, settings, SMALL, progress=False, **options)


def stop_at(monkeypatch, step: int) -> None:
    """The next training is interrupted before it has done this step."""
    whole, calls = train._step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(train, "_step", interrupted)


def rows(folder):
    with open(folder / "log.csv", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


# --------------------------------------------------------------------------------------------------------------- a run


def test_a_run_writes_weights_that_load_and_a_log(trained):
    path = trained / "sam.safetensors"
    assert sorted(os.listdir(trained)) == ["checkpoint.pt", "config.json", "log.csv", "sam.safetensors"]
    sam, facts = read_tiny(path)
    assert facts["commit"] == "abc"
    assert facts["training"]["steps"] == 4
    assert facts["training"]["data_seed"] == 90
    assert facts["hardware"] == "an abacus"
    assert "started from" not in facts
    assert load_sam(path).answers_three
    assert load_sam(path).image_encoder.img_size == 32
    torch.manual_seed(SETTINGS.seed)
    start = build_tiny(SMALL).state_dict()
    changed = [name for name, value in sam.state_dict().items() if not torch.equal(value, start[name].half().float())]
    assert any(name.startswith("image_encoder") for name in changed)
    assert any(name.startswith("mask_decoder") for name in changed)
    assert SAMTraining.from_dict(json.loads((trained / "config.json").read_text(encoding="utf-8"))) == SETTINGS
    assert list(rows(trained)[0]) == list(train.COLUMNS)
    assert [row["step"] for row in rows(trained)] == ["0", "1", "2", "3"]
    assert all(math.isfinite(float(value)) for row in rows(trained) for value in row.values())


def test_a_run_that_was_stopped_and_resumed_equals_the_whole_one(trained, quick, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        # After the checkpoint of step 2 and in the middle of the schedule.
        stop_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "sam.safetensors").exists()
    # Other random numbers were drawn in between, as in another process.
    torch.rand(7)
    resumed = run(tmp_path / "stopped", resume=True)
    a, b = (read_tiny(path)[0].state_dict() for path in (trained / resumed.name, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    # The weights above are rounded to half precision; these, and the optimiser's, are not.
    a, b = (torch.load(path / "checkpoint.pt", weights_only=True) for path in (trained, resumed.parent))
    assert all(torch.equal(a["weights"][name], b["weights"][name]) for name in a["weights"])
    assert a["optimiser"]["param_groups"] == b["optimiser"]["param_groups"]
    for index, state in a["optimiser"]["state"].items():
        assert all(torch.equal(value, b["optimiser"]["state"][index][name]) for name, value in state.items())
    assert a["step"] == b["step"] == 4


def test_the_log_of_a_run_that_was_killed_and_resumed_has_each_step_once(trained, quick, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped")
    # The checkpoint is that of two steps; the row of the third is there already, and that of another half.
    assert [row["step"] for row in rows(tmp_path / "stopped")] == ["0", "1", "2"]
    with open(tmp_path / "stopped" / "log.csv", "a", encoding="utf-8") as stream:
        stream.write("3,0.5,")
    run(tmp_path / "stopped", resume=True)
    whole, resumed = ([row | {"seconds": ""} for row in rows(folder)] for folder in (trained, tmp_path / "stopped"))
    assert resumed == whole


def test_a_checkpoint_holds_plain_values_only(trained):
    """Anything else, such as a number of numpy's in the optimiser, cannot be read back with weights_only."""
    content = torch.load(trained / "checkpoint.pt", weights_only=True)
    (group,) = content["optimiser"]["param_groups"]
    assert type(group["lr"]) is float
    # Not the rate of the warm-up, which was a plain number even when the others were not.
    assert group["lr"] < SETTINGS.learning_rate


def test_a_resumed_run_may_be_longer(finished):
    before = rows(finished)
    run(finished, replace(SETTINGS, steps=6), resume=True)
    assert [row["step"] for row in rows(finished)] == ["0", "1", "2", "3", "4", "5"]
    assert rows(finished)[:4] == before
    assert torch.load(finished / "checkpoint.pt", weights_only=True)["step"] == 6


def test_a_run_goes_on_from_other_weights_and_says_so(trained, quick, tmp_path, monkeypatch):
    begun = []
    whole = train._step

    def step(sam, *arguments):
        if not begun:
            begun.append({name: value.clone() for name, value in sam.state_dict().items()})
            assert sam.training
            assert all(value.requires_grad for value in sam.parameters())
        return whole(sam, *arguments)

    monkeypatch.setattr(train, "_step", step)
    start = trained / "sam.safetensors"
    # The size is that of the weights, whatever the default.
    path = train_sam(tmp_path / "on", replace(SETTINGS, weights=str(start)), progress=False)
    before, (after, facts) = read_tiny(start)[0].state_dict(), read_tiny(path)
    assert all(torch.equal(value, before[name]) for name, value in begun[0].items())
    assert any(not torch.equal(value, before[name]) for name, value in after.state_dict().items())
    assert facts["started from"]["commit"] == "abc"
    assert facts["started from"]["training"]["steps"] == 4
    assert facts["training"]["weights"] == str(start)


def test_weights_to_start_from_must_be_there_and_fit(trained, quick, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.safetensors: no such weights to start from; give tiny or"):
        train_sam(tmp_path / "run", replace(SETTINGS, weights=str(tmp_path / "nowhere.safetensors")), progress=False)
    with pytest.raises(InputError, match=r"sam\.safetensors: a tiny SAM of size .* was asked for"):
        train_sam(
            tmp_path / "run", replace(SETTINGS, weights=str(trained / "sam.safetensors")), TinyConfig(), progress=False
        )
    assert not (tmp_path / "run").exists()


def test_weights_to_start_from_are_known_by_their_content_when_a_run_goes_on(trained, quick, tmp_path, monkeypatch):
    start = Path(shutil.copyfile(trained / "sam.safetensors", tmp_path / "start.safetensors"))
    stop_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train_sam(tmp_path / "run", replace(SETTINGS, weights=str(start)), progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(train, "build_pools", lambda *_, **__: pytest.fail("it went on"))
    start.rename(tmp_path / "moved.safetensors")
    moved = replace(SETTINGS, weights=str(tmp_path / "moved.safetensors"))
    with pytest.raises(pytest.fail.Exception, match="it went on"):
        train_sam(tmp_path / "run", moved, resume=True, progress=False)
    save_tiny(build_tiny(SMALL), start, SMALL, {"training": "none"})
    with pytest.raises(InputError, match=r"other settings \(started_from\)"):
        train_sam(tmp_path / "run", replace(SETTINGS, weights=str(start)), resume=True, progress=False)


def test_a_run_in_bf16_trains_weights_in_float32(quick, tmp_path):
    folder = tmp_path / "run"
    run(folder, replace(SETTINGS, precision="bf16"))
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert {value.dtype for value in content["weights"].values()} == {torch.float32}
    exact = run(tmp_path / "exact")
    a, b = (read_tiny(path)[0].state_dict() for path in (folder / "sam.safetensors", exact))
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_a_finished_run_resumed_does_nothing(finished, monkeypatch):
    before = read_tiny(finished / "sam.safetensors")[0].state_dict()
    stop_at(monkeypatch, 1)
    after = read_tiny(run(finished, resume=True))[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_existing_run_is_not_overwritten(finished):
    before = (finished / "checkpoint.pt").read_bytes()
    with pytest.raises(InputError, match=r"holds a run; continue it with --resume or choose another folder"):
        run(finished)
    assert (finished / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "size", "named"),
    [
        ({"seed": 1}, SMALL, r"\(seed\)"),
        ({"learning_rate": 2e-3, "batch_size": 3}, SMALL, r"\(batch_size, learning_rate\)"),
        (
            {},
            TinyConfig(image_size=32, patch_size=8, width=32, depth=1, heads=2, channels=16, decoder_mlp=16),
            "size of the model",
        ),
    ],
)
def test_a_run_of_other_settings_is_not_continued(finished, changes, size, named):
    before = (finished / "checkpoint.pt").read_bytes()
    with pytest.raises(InputError, match=rf"checkpoint\.pt: belongs to a run with other settings .*{named}"):
        train_sam(finished, SAMTraining(**{**vars(SETTINGS), **changes}), size, resume=True, progress=False)
    assert (finished / "checkpoint.pt").read_bytes() == before


def _cut(path):
    path.write_bytes(path.read_bytes()[:-500])


def _without_optimiser(path):
    content = torch.load(path, weights_only=True)
    del content["optimiser"]
    torch.save(content, path)


def _other_weights(path):
    content = torch.load(path, weights_only=True)
    content["weights"]["image_encoder.pos_embed"] = torch.zeros(3)
    torch.save(content, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "or damaged; start anew elsewhere"),
        (lambda path: path.write_bytes(b""), "or damaged; start anew elsewhere"),
        (lambda path: torch.save([1, 2], path), "not a checkpoint of smml train-sam"),
        (_without_optimiser, "do not fit this version .*'optimiser'"),
        (_other_weights, "do not fit this version"),
    ],
    ids=["truncated", "empty", "a list", "no optimiser", "other weights"],
)
def test_a_damaged_checkpoint_is_refused_and_left_alone(finished, damage, message):
    damage(finished / "checkpoint.pt")
    before = (finished / "checkpoint.pt").read_bytes()
    with pytest.raises(InputError, match=rf"checkpoint\.pt: .*{message}"):
        run(finished, resume=True)
    assert (finished / "checkpoint.pt").read_bytes() == before


def test_a_folder_that_cannot_be_written_costs_no_training(quick, tmp_path, monkeypatch):
    stop_at(monkeypatch, 1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be made"):
        run(tmp_path / "file" / "run")


# -------------------------------------------------------------------------------------------------- what it learns from


def test_pools_hold_scenes_of_every_kind_at_two_spacings(monkeypatch, pools):
    asked = []

    def lesion_scenes(seed, index, count, *, spacing, **_):
        asked.append((seed, index, spacing))
        return pools["lesions"][:count]

    def anatomy(seed, index, count, *, spacing, **_):
        return pools["anatomy"][:count]

    monkeypatch.setattr(train, "lesion_scenes", lesion_scenes)
    monkeypatch.setattr(train, "anatomy_scenes", anatomy)
    built = build_pools(SAMTraining(subjects=6, slices=2, shapes=5, data_seed=93), SMALL, progress=False)
    assert asked == [(93, i, 3.0) for i in range(6)] + [(93, 6, 2.0)]
    assert {kind: len(scenes) for kind, scenes in built.items()} == {"lesions": 14, "anatomy": 2, "shapes": 5}


def test_subjects_that_are_all_healthy_are_refused(monkeypatch, pools):
    monkeypatch.setattr(train, "lesion_scenes", lambda *_, **__: [])
    monkeypatch.setattr(train, "anatomy_scenes", lambda *_, **__: pools["anatomy"])
    with pytest.raises(InputError, match="all healthy; use more"):
        build_pools(SAMTraining(subjects=1, shapes=1), SMALL, progress=False)


def test_prompts_and_targets_are_of_the_same_object():
    random = np.random.default_rng(0)
    size, pixels = 144, 72
    for scene in shape_scenes(40, size=size, pixels=pixels, random=random):
        item = train._draw_prompts(scene, random)
        voxel = pixels / max(scene.shape)
        targets = zip(item.boxes, item.points, item.labels, item.targets, item.areas, strict=True)
        for box, points, labels, target, area in targets:
            # From SAM's pixel centres (x, y) to mask pixels (row, column).
            columns, rows = ((points + 0.5) * (pixels / size)).floor().long().clamp(0, pixels - 1).T
            # A pixel of the mask is larger than a voxel here and there: what lies beside it counts.
            highest = torch.nn.functional.max_pool2d(target[None], 3, 1, 1)[0][rows, columns]
            lowest = -torch.nn.functional.max_pool2d(-target[None], 3, 1, 1)[0][rows, columns]
            assert bool((highest[labels == 1] > 0).all())
            assert bool((lowest[labels == 0] < 1).all())
            assert set(labels.tolist()) <= {1, 0, -1}
            left, top, right, bottom = ((box + 0.5) * (pixels / size)).tolist()
            assert float(area) == pytest.approx(max(8.0, (right - left) * (bottom - top)), rel=1e-4)
            exact = mask_box((target > 0.3).numpy())
            jitter = max(0.1 * max(exact[2] - exact[0], exact[3] - exact[1]), voxel)
            assert (top, left, bottom, right) == pytest.approx(exact, abs=jitter + 1.5)


def test_brightness_changes_but_black_stays_black(pools):
    random = np.random.default_rng(0)
    grey = pools["anatomy"][0].grey
    seen = [train._recolour(grey, random) for _ in range(20)]
    for value in seen:
        assert not bool(value[grey == 0].any())
        assert 0 <= float(value.min()) < float(value.max()) <= 255
    assert len({round(float(value.mean()), 3) for value in seen}) == 20


def test_a_quarter_of_slices_is_shown_from_black_to_the_highest_intensity():
    random = np.random.default_rng(0)
    grey = torch.full((8, 8), DARKEST)
    grey[:, 4:] = 255
    seen = [train._recolour(grey, random) for _ in range(400)]
    # The darkest tissue comes out near black; otherwise it stays well above.
    plain = [value for value in seen if float(value[:, :4].mean()) < 0.07 * 255]
    assert 0.2 < len(plain) / len(seen) < 0.3
    assert min(float(value[:, 4:].mean()) for value in plain) < 0.5 * 255


def test_batches_are_drawn_by_kind_whatever_the_size_of_the_pools(pools):
    drawn = []

    class Pool(list):
        def __init__(self, kind, scenes):
            super().__init__(scenes)
            self.kind = kind

        def __getitem__(self, index):
            drawn.append(self.kind)
            return super().__getitem__(index)

    train._draw_batch({kind: Pool(kind, scenes) for kind, scenes in pools.items()}, 200, np.random.default_rng(0))
    for kind, share in train.SHARES.items():
        assert drawn.count(kind) / 200 == pytest.approx(share, abs=0.08)
    # Without one kind the others share its part.
    drawn.clear()
    train._draw_batch({**pools, "lesions": [], "shapes": Pool("shapes", pools["shapes"])}, 40, np.random.default_rng(0))
    assert 20 < len(drawn) < 40


def test_steps_on_one_batch_lower_its_loss(pools):
    torch.manual_seed(0)
    sam = build_tiny(SMALL)
    optimiser = torch.optim.AdamW(sam.parameters(), lr=3e-3)
    batch = train._draw_batch(pools, 2, np.random.default_rng(0))
    reports = [train._step(sam, optimiser, batch, np.random.default_rng(0)) for _ in range(15)]
    assert reports[-1]["loss"] < 0.9 * reports[0]["loss"]
    assert set(reports[0]) == {"loss", "bce", "dice", "iou", "box_iou", "best_of_three"}


def test_of_the_three_masks_only_the_best_one_learns(pools, monkeypatch):
    torch.manual_seed(0)
    sam = build_tiny(SMALL)
    optimiser = torch.optim.SGD(sam.parameters(), lr=0.0)
    targets = []

    def losses(logits, target, areas):
        """The second of the three is always the best."""
        targets.append(target.view(-1, 4, *target.shape[1:]))
        error = logits.mean(dim=(1, 2)).square() + torch.tensor([5.0, 1.0, 0.0, 1.0]).repeat(len(logits) // 4)
        return error, torch.zeros_like(error), torch.zeros_like(error)

    monkeypatch.setattr(train, "mask_losses", losses)
    monkeypatch.setattr(train, "_IOU_WEIGHT", 0.0)
    train._step(sam, optimiser, train._draw_batch(pools, 2, np.random.default_rng(0)), np.random.default_rng(0))
    learns = [
        any(p.grad is not None and bool(p.grad.any()) for p in mlp.parameters())
        for mlp in sam.mask_decoder.output_hypernetworks_mlps
    ]
    assert learns == [True, False, True, False]
    # All four answer the same prompt.
    assert all(torch.equal(of[:, :1].expand_as(of), of) for of in targets)


# -------------------------------------------------------------------------------------------------- losses and schedule


def test_losses_of_a_mask_by_hand():
    # Probabilities 1/2, 1/2, 3/4, 1/4.
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), -math.log(3)]]], dtype=torch.float64)
    targets = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]], dtype=torch.float64)
    bce, dice, iou = mask_losses(logits, targets, torch.tensor([2.0], dtype=torch.float64))
    assert bce.tolist() == pytest.approx([(2 * math.log(2) + 2 * math.log(4 / 3)) / 2])
    # Overlap 5/4, squares 9/8 and 2, and 1 added to both sides of the ratio.
    assert dice.tolist() == pytest.approx([1 - 3.5 / 4.125])
    # Exactly 0 is outside: one of the two wanted pixels is found.
    assert iou.tolist() == [0.5]


def test_losses_agree_with_float64_and_do_not_mix_masks():
    random = np.random.default_rng(0)
    logits, targets, areas = random.normal(0, 4, (5, 8, 8)), random.random((5, 8, 8)), random.uniform(8, 60, 5)
    inside = 1 / (1 + np.exp(-logits))
    bce = -(targets * np.log(inside) + (1 - targets) * np.log(1 - inside)).sum((1, 2)) / areas
    dice = 1 - (2 * (inside * targets).sum((1, 2)) + 1) / ((inside**2 + targets**2).sum((1, 2)) + 1)
    found, wanted = logits > 0, targets > 0.5
    iou = (found & wanted).sum((1, 2)) / (found | wanted).sum((1, 2))
    for kind in (torch.float32, torch.float64):
        ours = mask_losses(*(torch.from_numpy(values).to(kind) for values in (logits, targets, areas)))
        for value, expected in zip(ours, (bce, dice, iou), strict=True):
            np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5)


def test_losses_of_extreme_logits_and_empty_masks_are_finite():
    logits = torch.tensor([-200.0, 200.0, -200.0]).view(3, 1, 1).repeat(1, 4, 4).requires_grad_()
    targets = torch.stack([torch.ones(4, 4), torch.zeros(4, 4), torch.zeros(4, 4)])
    bce, dice, iou = mask_losses(logits, targets, torch.full((3,), 8.0))
    (bce + dice).sum().backward()
    assert bool(torch.isfinite(logits.grad).all())
    assert bce.tolist() == pytest.approx([400, 400, 0])
    assert dice.tolist() == pytest.approx([16 / 17, 16 / 17, 0])
    assert iou.tolist() == [0, 0, 0]
    assert not iou.requires_grad


def test_the_gradient_of_the_losses(pools):
    logits = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(2, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: mask_losses(x, targets, torch.tensor([3.0, 5.0], dtype=torch.float64))[:2], logits
    )


@pytest.mark.parametrize(("steps", "warm"), [(2000, 100), (200, 20), (4, 1)])
def test_the_rate_rises_and_falls(steps, warm):
    settings = SAMTraining(steps=steps)
    rates = [learning_rate(settings, step) for step in range(steps)]
    assert {type(rate) for rate in rates} == {float}
    assert rates[:warm] == pytest.approx([1e-3 * (step + 1) / warm for step in range(warm)])
    assert rates[warm - 1] == max(rates) == pytest.approx(1e-3)
    falling = rates[warm:]
    assert falling == sorted(falling, reverse=True)
    assert learning_rate(settings, warm + (steps - warm) // 2) == pytest.approx(
        0.505e-3, rel=0.02 if steps > 9 else 0.5
    )
    assert learning_rate(settings, steps) == pytest.approx(1e-5)
