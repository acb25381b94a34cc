"""Train the tiny SAM, class-agnostically, on simulated scenes: ``smml train-sam``.

Every step shows eight slices. Each gets three prompts for objects drawn at random: a jittered box; a jittered box with
points inside and outside; and a box by its corners alone (the others are also given filled, as a rough mask) or points
alone. The loss of a mask is binary cross-entropy, summed and divided by the area of the object's box so that small
objects count, plus soft Dice; the IoU head learns the IoU that the mask has. Slices are rendered once and kept in
memory; brightness, contrast and noise are drawn anew each time.

Every prompt is answered by SAM's mask for clear prompts and by its three masks for ambiguous ones, of which only the
best one learns, as in SAM's own training: a box does not say whether the rim or the core inside it is meant.
"""

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from smml.devices import find_device
from smml.errors import InputError
from smml.failures import is_out_of_memory
from smml.files import replacing, write_text
from smml.locks import claimed
from smml.runs import CONFIG, LOG, TrainingLog, file_digest, provenance
from smml.sam.calls import embed, predict_on_square
from smml.sam.load import WEIGHTS, read_tiny, save_tiny
from smml.sam.slices import DARKEST, SquareFit
from smml.sam.tiny import TinyConfig, build_tiny
from smml.sam.torchvision_gap import Sam
from smml.sam.training.config import SAMTraining, learning_rate
from smml.sam.training.prompts import draw_points, jittered_box
from smml.sam.training.scenes import Scene, anatomy_scenes, lesion_scenes, shape_scenes
from smml.tensors import disk_errors

COLUMNS = ("step", "loss", "bce", "dice", "iou", "box_iou", "best_of_three", "learning_rate", "seconds")

# How often a slice of each kind is drawn, whatever the size of the pools.
SHARES = {"lesions": 0.7, "anatomy": 0.1, "shapes": 0.2}
_POINTS = 4  # the most in a prompt
# Dice asks for overlap, which is what masks are judged by; where a border is uncertain, cross-entropy alone draws it
# too tight. With equal weights a threshold below one half had the higher IoU.
_BCE_WEIGHT = 0.25
_IOU_WEIGHT = 0.1


def train_sam(
    output: str | os.PathLike,
    settings: SAMTraining | None = None,
    size: TinyConfig | None = None,
    *,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train a tiny SAM.

    Args:
        output: folder of the run: ``checkpoint.pt`` while it trains, ``sam.safetensors`` at the end, ``log.csv`` with a
            row a step, and ``config.json`` with the settings, for ``smml train-sam --config``.
        settings: see :class:`SAMTraining`.
        size: of the model; with ``settings.weights`` theirs.
        resume: go on from the folder's checkpoint; the settings must be the same but for the steps.
        progress: show a progress bar.

    Returns:
        The path of the weights, for ``load_sam``.

    Raises:
        InputError: the folder holds a run and ``resume`` was not said, or one of other settings; another process trains
            into it, or it cannot be written; the weights to start from are missing, damaged or of another size.
    """
    output = Path(output)
    with claimed(output):
        return _train(output, settings or SAMTraining(), size, resume, progress)


def _train(output: Path, settings: SAMTraining, size: TinyConfig | None, resume: bool, progress: bool) -> Path:
    """What :func:`train_sam` does, alone in the folder."""
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise InputError(f"{output}: holds a run; continue it with --resume or choose another folder")
    device = find_device(settings.device)
    torch.manual_seed(settings.seed)
    sam, size, start = _start(settings, size)
    started_from = _digest(settings)  # once: the file may go while this trains
    sam.to(device)
    optimiser = torch.optim.AdamW(sam.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    first, seconds = 0, 0.0
    if resume and checkpoint.exists():
        first, seconds = _resume(checkpoint, settings, size, sam, optimiser, started_from)
    pools = build_pools(settings, size, progress=progress)
    # Before the first step, so that a folder that cannot be written costs no training.
    _save(checkpoint, settings, size, sam, optimiser, first, seconds, started_from)
    write_text(output / CONFIG, json.dumps(settings.to_dict(), indent=2) + "\n")
    started = time.monotonic() - seconds
    log = TrainingLog(output / LOG, COLUMNS, resume_at=first)
    bar = tqdm(initial=first, total=settings.steps, desc="training", disable=not progress, mininterval=5)
    with contextlib.closing(log), bar:
        for step in range(first, settings.steps):
            # Every step has its own stream of random numbers, so a resumed run draws what the whole one would have.
            random = np.random.default_rng([settings.seed, step])
            rate = learning_rate(settings, step)
            for group in optimiser.param_groups:
                group["lr"] = rate
            batch = _draw_batch(pools, settings.batch_size, random)
            row = _step(sam, optimiser, batch, random, settings.precision)
            seconds = time.monotonic() - started
            log.write(row | {"step": step, "learning_rate": rate, "seconds": seconds})
            bar.set_postfix(loss=f"{row['loss']:.2f}", iou=f"{row['iou']:.2f}")
            bar.update()
            done = step + 1
            if done % settings.checkpoint_every == 0 or done == settings.steps:
                log.sync()
                _save(checkpoint, settings, size, sam, optimiser, done, seconds, started_from)
    made = {"multimask": True, "training": settings.to_dict() | {"seconds": round(seconds)}}
    made |= provenance(device)
    weights = output / "sam.safetensors"
    save_tiny(sam, weights, size, made | start)
    return weights


def _start(settings: SAMTraining, size: TinyConfig | None) -> tuple[Sam, TinyConfig, dict]:
    """The model before the first step, its size, and where its weights came from."""
    if settings.weights is None:
        size = size or TinyConfig()
        return build_tiny(size), size, {}
    path = _weights_path(settings.weights)
    if not path.is_file():
        raise InputError(f"{path}: no such weights to start from; give tiny or a .safetensors file of a tiny SAM")
    sam, facts = read_tiny(path)
    found = TinyConfig.from_dict(facts["size"])
    if size not in (None, found):
        raise InputError(f"{path}: a tiny SAM of size {found.to_dict()}, but {size.to_dict()} was asked for")
    made = {name: facts[name] for name in ("training", "commit", "hardware", "started from") if name in facts}
    # Not requires_grad=False and evaluation mode, as for inference.
    return sam.train().requires_grad_(), found, {"started from": made}


def _weights_path(weights: str) -> Path:
    return WEIGHTS / "sam-tiny.safetensors" if weights == "tiny" else Path(weights)


def _digest(settings: SAMTraining) -> str:
    """Of the weights to start from; empty without any."""
    return "" if settings.weights is None else file_digest(_weights_path(settings.weights))


def build_pools(settings: SAMTraining, size: TinyConfig, *, progress: bool = True) -> dict[str, list[Scene]]:
    """All scenes of a training, by kind; the same for the same seed.

    At the default settings some 6000 slices in about 300 MB.
    """
    random = np.random.default_rng([settings.data_seed, 7])
    edge, pixels = size.image_size, 4 * size.grid
    fine, healthy = settings.fine, settings.healthy
    pools: dict[str, list[Scene]] = {"lesions": [], "anatomy": [], "shapes": []}
    bar = tqdm(total=settings.subjects + fine + healthy, desc="simulating", disable=not progress, mininterval=5)
    with bar:
        for index in range(settings.subjects + fine):
            spacing = 3.0 if index < settings.subjects else 2.0
            pools["lesions"] += lesion_scenes(
                settings.data_seed, index, settings.slices, spacing=spacing, size=edge, pixels=pixels, random=random
            )
            bar.update()
        for index in range(healthy):
            spacing = 2.0 if index % 4 == 3 else 3.0
            pools["anatomy"] += anatomy_scenes(
                settings.data_seed, index, settings.slices, spacing=spacing, size=edge, pixels=pixels, random=random
            )
            bar.update()
    backgrounds = [scene.grey.numpy() / 255.0 for scene in pools["anatomy"][:: max(1, len(pools["anatomy"]) // 200)]]
    pools["shapes"] += shape_scenes(settings.shapes, size=edge, pixels=pixels, random=random, backgrounds=backgrounds)
    if not pools["lesions"]:
        raise InputError(f"data_seed {settings.data_seed}: its {settings.subjects} subjects are all healthy; use more")
    return pools


@dataclass(frozen=True)
class _Prompted:
    """One slice with its prompts for three objects, on SAM's square."""

    grey: torch.Tensor
    boxes: torch.Tensor  # [3, 4]
    points: torch.Tensor  # [3, P, 2]
    labels: torch.Tensor  # [3, P]
    targets: torch.Tensor  # [3, m, m] in [0, 1]
    areas: torch.Tensor  # [3] of the boxes, in mask pixels


def _draw_batch(pools: dict[str, list[Scene]], batch: int, random: np.random.Generator) -> list[_Prompted]:
    kinds = [kind for kind in SHARES if pools[kind]]
    shares = np.array([SHARES[kind] for kind in kinds])
    drawn = []
    for kind in random.choice(len(kinds), batch, p=shares / shares.sum()):
        pool = pools[kinds[kind]]
        drawn.append(_draw_prompts(pool[random.integers(len(pool))], random))
    return drawn


def _draw_prompts(scene: Scene, random: np.random.Generator) -> _Prompted:
    size = max(scene.grey.shape)
    fit = SquareFit(scene.shape, size)
    chosen = random.integers(len(scene.masks), size=3)
    boxes, points, labels = [], [], []
    for object_ in chosen:
        mask = scene.masks[object_].numpy()
        boxes.append(jittered_box(mask, random))
        inside = int(random.integers(1, _POINTS))
        outside = int(random.integers(0, _POINTS - inside + 1))
        place, label = draw_points(mask, inside, outside, random)
        missing = _POINTS - inside - outside
        points.append(np.concatenate([place, np.zeros((missing, 2), np.float32)]))
        labels.append(np.concatenate([label, np.full(missing, -1, np.int64)]))
    targets = scene.targets[chosen].float() / 255
    square = fit.boxes(torch.from_numpy(np.stack(boxes)))
    sides = (square[:, 2:] - square[:, :2]) * (targets.shape[-1] / size)
    return _Prompted(
        grey=_recolour(scene.grey, random),
        boxes=square,
        points=fit.points(torch.from_numpy(np.stack(points))),
        labels=torch.from_numpy(np.stack(labels)),
        targets=targets,
        areas=sides.prod(dim=1).clamp(min=8.0),
    )


def _recolour(grey: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Another brightness, contrast and noise of [h, w]; black stays black.

    A tenth is shown as a negative, and a quarter as who calls SAM directly often shows it: from 0 to the highest
    intensity, so that the darkest tissue is as black as the background and a bright vessel darkens the rest.
    """
    value = grey.float() / 255
    kind = random.random()
    if kind < 0.1:
        value = 1.2 - value
    elif kind < 0.35:
        darkest = DARKEST / 255
        value = (value - darkest) / (1 - darkest) * random.uniform(0.4, 1.0)
    value = value.clamp(min=0) ** float(np.exp(random.uniform(-0.3, 0.3)))
    value = value * random.uniform(0.8, 1.15) + random.uniform(-0.05, 0.05)
    if random.random() < 0.3:
        noise = random.standard_normal(tuple(grey.shape), dtype=np.float32) * random.uniform(0, 0.05)
        value = value + torch.from_numpy(noise)
    return torch.where(grey > 0, value.clamp(0, 1) * 255, 0.0)


def _step(
    sam: Sam,
    optimiser: torch.optim.Optimizer,
    batch: list[_Prompted],
    random: np.random.Generator,
    precision: str = "float32",
) -> dict[str, float]:
    """One optimiser step; returns the mean losses and IoU."""
    device = sam.device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with autocast:
        embeddings = embed(sam, torch.stack([sam.preprocess(item.grey.to(device)[None]) for item in batch]))
    boxes, points, labels, targets, areas = (
        torch.stack([getattr(item, name) for item in batch]).to(device)
        for name in ("boxes", "points", "labels", "targets", "areas")
    )
    # The third: a box by its corners alone, as SAM's own predictor gives it, or points.
    third = (boxes[:, 2], None, None) if random.random() < 0.4 else (None, points[:, 2], labels[:, 2])
    prompts = [(boxes[:, 0], None, None), (boxes[:, 1], points[:, 1], labels[:, 1]), third]
    total, report = torch.zeros((), device=device), {"bce": 0.0, "dice": 0.0, "iou": 0.0}
    for number, prompt in enumerate(prompts):
        with autocast:
            logits, quality = predict_on_square(sam, embeddings, *prompt, rough_mask=number < 2)
        logits, quality = logits.float(), quality.float()
        bce, dice, measured = mask_losses(
            logits.flatten(0, 1),
            targets[:, number].repeat_interleave(logits.shape[1], dim=0),
            areas[:, number].repeat_interleave(logits.shape[1]),
        )
        bce, dice, measured = (value.view(quality.shape) for value in (bce, dice, measured))
        # Of the three masks for ambiguous prompts only the best one learns, so that they come to differ.
        error = _BCE_WEIGHT * bce + dice
        chosen = error[:, 0] + error[:, 1:].amin(dim=1)
        total = total + (chosen + _IOU_WEIGHT * (quality - measured).square().sum(dim=1)).mean() / len(prompts)
        for name, value in (("bce", bce), ("dice", dice), ("iou", measured)):
            report[name] += float(value[:, 0].detach().mean()) / len(prompts)
        if number == 0:
            report["box_iou"] = float(measured[:, 0].mean())
            report["best_of_three"] = float(measured[:, 1:].amax(dim=1).mean())
    optimiser.zero_grad(set_to_none=True)
    total.backward()
    nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
    optimiser.step()
    return {"loss": float(total.detach())} | report


def mask_losses(
    logits: torch.Tensor, targets: torch.Tensor, areas: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses of masks [S, m, m] against soft targets of the same shape.

    Args:
        logits: of the masks.
        targets: share of each pixel that is inside, in [0, 1].
        areas: [S], pixels of the object's box.

    Returns:
        Cross-entropy summed over the mask and divided by ``areas``, soft Dice loss, and the IoU of the thresholded
        masks (without gradient), [S] each.
    """
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=(1, 2)) / areas
    inside = logits.sigmoid()
    overlap = (inside * targets).sum(dim=(1, 2))
    dice = 1 - (2 * overlap + 1) / (inside.square().sum(dim=(1, 2)) + targets.square().sum(dim=(1, 2)) + 1)
    found, wanted = logits.detach() > 0, targets > 0.5
    union = (found | wanted).sum(dim=(1, 2)).clamp(min=1)
    return bce, dice, (found & wanted).sum(dim=(1, 2)) / union


def _save(
    path: Path,
    settings: SAMTraining,
    size: TinyConfig,
    sam: Sam,
    optimiser,
    step: int,
    seconds: float,
    started_from: str,
) -> None:
    with replacing(path) as temporary, disk_errors():
        content = {
            "settings": settings.to_dict(),
            "size": size.to_dict(),
            "weights": sam.state_dict(),
            "optimiser": optimiser.state_dict(),
            "started_from": started_from,
            "step": step,
            "seconds": seconds,
        }
        torch.save(content, temporary)


def _resume(
    path: Path, settings: SAMTraining, size: TinyConfig, sam: Sam, optimiser, started_from: str
) -> tuple[int, float]:
    """Fill model and optimiser; returns the steps and seconds done."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        stored, stored_size = dict(content["settings"]), content["size"]
    # What a damaged file provokes in the unpickler is not enumerable.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{path}: not a checkpoint of smml train-sam, or damaged; start anew elsewhere") from error
    free = {"steps", "checkpoint_every", "device"}
    wanted = settings.to_dict()
    if "started_from" in content:
        # The weights that it started from by their content: the file may have moved.
        free |= {"weights"}
        stored["started_from"], wanted["started_from"] = content["started_from"], started_from
    names = sorted((wanted.keys() | stored.keys()) - free, key=str)
    odd = [str(name) for name in names if stored.get(name) != wanted.get(name)]
    if odd or stored_size != size.to_dict():
        raise InputError(
            f"{path}: belongs to a run with other settings ({', '.join(odd) or 'size of the model'}); use those, or "
            "choose another folder"
        )
    try:
        sam.load_state_dict(content["weights"])
        optimiser.load_state_dict(content["optimiser"])
        return int(content["step"]), float(content["seconds"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: its weights do not fit this version ({str(error).splitlines()[0]}); start anew elsewhere"
        ) from error
