"""Training that is killed at any moment and resumed ends as if nothing had happened, bit for bit."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import smml
from smml.data import find_cases
from smml.errors import InputError
from smml.models import SMML, StudentConfig, presets
from smml.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from smml.runs import TrainingLog
from smml.sam import TinyConfig, build_tiny, save_tiny
from smml.training import TrainingConfig, TrainingResult, train, trainer
from smml.training.state import restore_random, resume_point, run_identity
from smml.training.trainer import COLUMNS

STEPS = 4
CONFIG = TrainingConfig(
    steps=STEPS, batch_size=1, patch=32, consistency_start=0.25, consistency_ramp=0.5, checkpoint_every=2, seed=3,
    precision="float32",
)  # fmt: skip

# The presets' architecture with few channels takes the place of "tiny": some forty steps are taken here.
NARROW = StudentConfig((2, 2, 4, 4, 8), token_width=12, heads=3, mlp_width=24, token_grid=2)

# Imports once, then forks a process a run. A job is a line of JSON: cohort, output, config, when to die, dropout of
# the students. "die" is the number of rows after which SIGKILL comes, "start" for before the first step, "write" for
# in the middle of writing the second checkpoint, "priors" for before those of the second case, "" for never. The answer
# is the exit status.
PROGRAM = """
import dataclasses, json, os, signal, sys
import torch
import torch._dynamo  # what an optimiser imports at its first step, which takes seconds
torch.set_num_threads(1)
from smml.models import presets
from smml.training import TrainingConfig, priors, train, trainer

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def run(cohort, output, config, die, dropout):
    presets.PRESETS["tiny"] = dataclasses.replace(presets.StudentConfig.from_dict(NARROW), dropout=dropout)

    def on_step(row):
        if die.isdigit() and row["step"] + 1 == int(die):
            kill()

    if die == "start":
        trainer.take_step = lambda *_: kill()
    if die == "write":
        save, calls = torch.save, []
        def half(content, path):
            calls.append(path)
            if len(calls) == 2:
                path.write_bytes(b"half a checkpoint")
                kill()
            save(content, path)
        torch.save = half
    if die == "priors":
        write, calls = priors._write, []
        def second(*content):
            calls.append(content)
            if len(calls) == 2:
                kill()
            write(*content)
        priors._write = second
    train(cohort, output, TrainingConfig(**config), resume=True, progress=False, on_step=on_step)

NARROW = json.loads(sys.stdin.readline())
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(**json.loads(line))
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Run = Callable[..., None]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Trains in a process of its own: ``run(cohort, output, config=..., die=..., dropout=...)``."""
    environment = os.environ | {"PYTHONPATH": str(Path(smml.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        server.stdin.write(json.dumps(NARROW.to_dict()) + "\n")

        def run(cohort: Path, output: Path, config: TrainingConfig = CONFIG, die: str = "", dropout: float = 0.0):
            job = {"cohort": str(cohort), "output": str(output), "config": config.to_dict()}
            server.stdin.write(json.dumps(job | {"die": die, "dropout": dropout}) + "\n")
            server.stdin.flush()
            assert server.stdout.readline().strip() == str(-signal.SIGKILL if die else 0)

        yield run
        server.stdin.close()
        server.wait(timeout=60)


@pytest.fixture(autouse=True)
def narrow_tiny(monkeypatch) -> None:
    """Runs of this process have the size of the others."""
    monkeypatch.setitem(presets.PRESETS, "tiny", NARROW)


def rows(output: Path) -> list[list[str]]:
    """The log without its two columns of seconds."""
    with open(output / "log.csv", newline="", encoding="utf-8") as stream:
        return [row[:-2] for row in csv.reader(stream)]


def flat(values, prefix: str = "") -> dict[str, object]:
    """Nested dictionaries and lists as one dictionary by path."""
    if isinstance(values, dict | list | tuple):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        return {path: leaf for key, value in items for path, leaf in flat(value, f"{prefix}/{key}").items()}
    return {prefix: values}


def assert_same_run(output: Path, reference: Path) -> None:
    """Weights, optimiser, random states and log are equal to the bit."""
    found, expected = (load_checkpoint(folder / "checkpoint.pt") for folder in (output, reference))
    assert found.step == expected.step == STEPS
    assert rows(output) == rows(reference)
    for name, one, two in (
        ("weights", found.weights, expected.weights),
        ("training", flat(found.training), flat(expected.training)),
    ):
        assert one.keys() == two.keys()
        differ = [
            key
            for key, value in two.items()
            if not (torch.equal(one[key], value) if isinstance(value, torch.Tensor) else one[key] == value)
        ]
        assert differ == [], f"{name} differ: {differ[:5]}"


pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL")


@pytest.fixture(scope="module")
def reference(run, small_cohort, tmp_path_factory) -> Path:
    """A run that nobody disturbed. Read it only."""
    output = tmp_path_factory.mktemp("runs") / "reference"
    run(small_cohort, output)
    return output


@pytest.fixture(scope="module")
def refined(run, small_cohort, tmp_path_factory) -> tuple[TrainingConfig, Path]:
    """An undisturbed run whose second half trains the refinement, with a SAM of random weights."""
    folder = tmp_path_factory.mktemp("runs")
    size = TinyConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2, channels=16, decoder_mlp=16)
    save_tiny(build_tiny(size), folder / "sam.safetensors", size, {"training": "none"})
    changes = {"refinement": str(folder / "sam.safetensors"), "checkpoint_every": 3}
    config = TrainingConfig(**CONFIG.to_dict() | changes)
    run(small_cohort, folder / "refined", config)
    return config, folder / "refined"


def test_a_run_leaves_a_checkpoint_its_options_and_a_row_a_step(reference):
    assert {path.name for path in reference.iterdir()} == {"checkpoint.pt", "config.json", "log.csv"}
    header, *table = rows(reference)
    assert header == list(COLUMNS[:-2])
    assert [row[0] for row in table] == [str(step) for step in range(STEPS)]
    options = json.loads((reference / "config.json").read_text(encoding="utf-8"))
    assert options["spacing_mm"] == pytest.approx([6, 6, 6])
    kept = TrainingConfig.from_dict({key: options[key] for key in CONFIG.to_dict()})
    assert kept == dataclasses.replace(CONFIG, preset="tiny")  # named, where the options leave it open
    assert load_checkpoint(reference).spacing == pytest.approx((6, 6, 6))


@pytest.mark.parametrize("die", ["start", "3", "write"])
def test_killed_and_resumed_equals_undisturbed(run, small_cohort, reference, tmp_path, die):
    """Before the first step, between two checkpoints, and in the middle of writing one."""
    output = tmp_path / "run"
    run(small_cohort, output, die=die)
    begun = {path.name for path in output.iterdir() if not path.name.startswith(".")}
    assert begun == {"config.json", "log.csv"} | ({"checkpoint.pt"} if die in ("3", "write") else set())
    if "checkpoint.pt" in begun:
        assert load_checkpoint(output).step == 2
    run(small_cohort, output)
    assert_same_run(output, reference)


def test_killed_again_and_again_equals_undisturbed_with_other_processes_and_checkpoints(
    run, small_cohort, reference, tmp_path
):
    """How often it saves and who loads the data are free to change from one attempt to the next."""
    output = tmp_path / "run"
    every = TrainingConfig(**CONFIG.to_dict() | {"checkpoint_every": 1})
    run(small_cohort, output, every, die="2")
    run(small_cohort, output, every, die="4")
    run(small_cohort, output, TrainingConfig(**CONFIG.to_dict() | {"workers": 1}))
    found, expected = load_checkpoint(output), load_checkpoint(reference)
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in expected.weights.items())
    assert rows(output) == rows(reference)


def test_killed_and_resumed_equals_undisturbed_with_dropout_as_well(run, small_cohort, tmp_path):
    """The paper preset has dropout; its draws must continue where the checkpoint stopped."""
    run(small_cohort, tmp_path / "undisturbed", dropout=0.1)
    run(small_cohort, tmp_path / "killed", die="3", dropout=0.1)
    run(small_cohort, tmp_path / "killed", dropout=0.1)
    assert_same_run(tmp_path / "killed", tmp_path / "undisturbed")


@pytest.mark.parametrize("die", ["priors", "4"])
def test_killed_and_resumed_equals_undisturbed_with_refinement(run, small_cohort, refined, tmp_path, die):
    """While priors are made, and between two checkpoints after that; the priors are those of the first attempt."""
    config, undisturbed = refined
    run(small_cohort, tmp_path / "killed", config, die=die)
    assert load_checkpoint(tmp_path / "killed").step == (2 if die == "priors" else 3)
    run(small_cohort, tmp_path / "killed", config)
    assert_same_run(tmp_path / "killed", undisturbed)


def test_a_run_whose_priors_are_gone_is_not_resumed(run, small_cohort, refined, tmp_path):
    config, _ = refined
    run(small_cohort, tmp_path / "killed", config, die="4")
    shutil.rmtree(tmp_path / "killed" / "priors")
    with pytest.raises(InputError, match="no complete set of priors"):
        train(small_cohort, tmp_path / "killed", config, resume=True, progress=False)


def test_resuming_a_finished_run_changes_nothing(small_cohort, reference, tmp_path):
    before = {name: (reference / name).read_bytes() for name in ("log.csv", "checkpoint.pt", "config.json")}
    seen = []
    result = train(small_cohort, reference, CONFIG, resume=True, progress=False, on_step=seen.append)
    assert result == TrainingResult(reference / "checkpoint.pt", STEPS, best=None, stopped_early=False)
    assert seen == []
    assert {name: (reference / name).read_bytes() for name in before} == before


def test_steps_keep_the_commit_that_made_them(small_cohort, tmp_path, monkeypatch):
    """A run that goes on after an update was not made by the update alone; a finished one not at all."""
    monkeypatch.setattr("smml.runs.commit", lambda: "first")

    def stop(row):
        if row["step"] + 1 == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_cohort, tmp_path / "run", CONFIG, progress=False, on_step=stop)
    for commit in ("second", "third"):
        monkeypatch.setattr("smml.runs.commit", lambda commit=commit: commit)
        train(small_cohort, tmp_path / "run", CONFIG, resume=True, progress=False)
        facts = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
        assert facts["commit"] == "first"
        assert [(part["step"], part["commit"]) for part in facts["resumed"]] == [(2, "second")]


def test_a_folder_with_a_run_is_refused_unless_it_is_to_be_resumed(small_cohort, reference):
    before = (reference / "checkpoint.pt").read_bytes(), (reference / "log.csv").read_bytes()
    with pytest.raises(InputError, match="holds a training run already; continue it with --resume") as error:
        train(small_cohort, reference, CONFIG, progress=False)
    assert str(reference) in str(error.value)
    assert ((reference / "checkpoint.pt").read_bytes(), (reference / "log.csv").read_bytes()) == before


def test_a_run_goes_on_with_options_that_came_after_it_and_as_it_was_prepared(reference, tmp_path):
    shutil.copytree(reference, tmp_path / "old")
    path = tmp_path / "old" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content["preprocessing"] = 2
    content["config"].pop("preprocessing"), content["config"].pop("appearance")
    torch.save(content, path)
    wanted = content["config"] | {"appearance": 0.0}
    assert resume_point(tmp_path / "old", wanted | {"preprocessing": 2}, True).step == STEPS
    with pytest.raises(InputError, match="preprocessing=2 instead of 3"):
        resume_point(tmp_path / "old", wanted | {"preprocessing": 3}, True)
    # From before there were versions: prepared as nothing is any more.
    content.pop("preprocessing")
    torch.save(content, path)
    with pytest.raises(InputError, match="prepared as in version 1"):
        resume_point(tmp_path / "old", wanted, True)


def stopped(folder: Path, cohort: Path, validation: Path, weights: Path) -> tuple[TrainingConfig, Path]:
    """A run's folder with a checkpoint of step 1, as of a training on a cohort, validated on another."""
    config = TrainingConfig(**CONFIG.to_dict() | {"validate_every": 1, "validation": str(validation)})
    identity = run_identity(find_cases(cohort), find_cases(validation), weights) | {"sam": None}
    model = SMML("tiny")
    training = {"optimiser": {}, "random": {}}
    stored = Checkpoint(
        model.config, model.state_dict(), (6.0, 6.0, 6.0), 32, 1, config.to_dict() | identity, training, preprocessing=2
    )
    save_checkpoint(stored, folder / "checkpoint.pt")
    return config, folder


def goes_on(run: tuple[TrainingConfig, Path], cohort: Path, validation: Path, weights: Path) -> bool:
    """Whether the run is resumed with these; InputError if not."""
    config = TrainingConfig(**run[0].to_dict() | {"validation": str(validation)})
    identity = run_identity(find_cases(cohort), find_cases(validation), weights) | {"sam": None}
    return resume_point(run[1], config.to_dict() | identity, True) is not None


def test_a_run_goes_on_when_what_it_works_on_has_moved_and_not_on_other_content(small_cohort, tmp_path, monkeypatch):
    """The validation folder, the cases and the weights to start from: under other names, and others under theirs."""
    train_on, held = (Path(shutil.copytree(small_cohort, tmp_path / name)) for name in ("train", "held"))
    weights = tmp_path / "start.pt"
    weights.write_bytes(bytes(range(256)) * 100)
    run = stopped(tmp_path / "run", train_on, held, weights)
    monkeypatch.chdir(tmp_path)
    assert goes_on(run, train_on, Path("held"), Path("start.pt"))
    held.rename(tmp_path / "elsewhere")
    train_on.rename(tmp_path / "moved")
    weights.rename(tmp_path / "moved.pt")
    assert goes_on(run, Path("moved"), Path("elsewhere"), Path("moved.pt"))

    changed = bytearray(Path("moved.pt").read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(InputError, match="content of the weights to start from="):
        goes_on(run, Path("moved"), Path("elsewhere"), weights)
    # The same ids and places with the files of another case.
    first, second = (case.label for case in find_cases("elsewhere")[:2])
    shutil.copyfile(second, first)
    with pytest.raises(InputError, match="content of the cases to validate on="):
        goes_on(run, Path("moved"), Path("elsewhere"), Path("moved.pt"))
    shutil.rmtree(first.parent)
    with pytest.raises(InputError, match=r"cases to validate on='3 cases.* instead of '2 cases"):
        goes_on(run, Path("moved"), Path("elsewhere"), Path("moved.pt"))


def test_a_checkpoint_older_than_the_digests_goes_on_with_the_same_names(small_cohort, tmp_path):
    weights = tmp_path / "start.pt"
    weights.write_bytes(b"weights")
    run = stopped(tmp_path / "run", small_cohort, small_cohort, weights)
    content = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    for name in ("cases_content", "validation_cases", "validation_content", "weights_content"):
        del content["config"][name]
    torch.save(content, tmp_path / "run" / "checkpoint.pt")
    assert goes_on(run, small_cohort, small_cohort, weights)
    with pytest.raises(InputError, match="weights="):
        goes_on(run, small_cohort, small_cohort, Path(shutil.copy(weights, tmp_path / "other.pt")))


@pytest.mark.parametrize(("stored", "index", "taken"), [(8, 0, 0), (8, 3, 3), (2, 5, 1), (1, 0, 0), (0, 0, None)])
def test_a_run_goes_on_with_another_number_of_gpus(monkeypatch, stored, index, taken):
    """Files of earlier versions hold the states of all GPUs of their machine; those of now that of one."""
    given = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: given.append((state, device)))
    states = {"cpu": torch.get_rng_state(), "cuda": [f"state {number}" for number in range(stored)]}
    restore_random(states, torch.device("cuda", index))
    assert given == ([] if taken is None else [(f"state {taken}", torch.device("cuda", index))])
    restore_random(states, torch.device("cpu"))
    assert len(given) <= 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 4}, "seed=3 instead of 4"),
        ({"steps": 9}, "steps=4 instead of 9"),
        ({"preprocessing": 2}, "preprocessing=3 instead of 2"),
        ({"preset": "small", "gate": "none"}, "gate='lower_ce' instead of 'none', preset='tiny' instead of 'small'"),
    ],
)
def test_resuming_with_other_options_is_refused_and_they_are_named(small_cohort, reference, change, said):
    config = TrainingConfig(**CONFIG.to_dict() | change)
    with pytest.raises(InputError, match=said):
        train(small_cohort, reference, config, resume=True, progress=False)


def test_weights_without_an_optimiser_cannot_be_resumed(small_cohort, reference, tmp_path):
    content = torch.load(reference / "checkpoint.pt", weights_only=True)
    torch.save(content | {"training": None}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="no optimiser"):
        train(small_cohort, tmp_path, CONFIG, resume=True, progress=False)


@pytest.mark.parametrize("gone", ["optimiser", "random"])
def test_a_checkpoint_that_lacks_part_of_the_training_is_not_resumed(small_cohort, reference, tmp_path, gone):
    content = torch.load(reference / "checkpoint.pt", weights_only=True)
    del content["training"][gone]
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=rf"incomplete \(KeyError\('{gone}'\)\), so it cannot be resumed"):
        train(small_cohort, tmp_path, CONFIG, resume=True, progress=False)


def test_a_damaged_checkpoint_is_not_resumed_and_not_overwritten(small_cohort, reference, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes((reference / "checkpoint.pt").read_bytes()[:-1000])
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"checkpoint\.pt"):
        train(small_cohort, tmp_path, CONFIG, resume=True, progress=False)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [({"device": "quantum"}, "try 'cpu'"), ({"device": "cuda:77"}, "try 'cpu'")],
)
def test_a_device_that_is_not_there_is_refused(small_cohort, tmp_path, options, said):
    config = TrainingConfig(**CONFIG.to_dict() | options)
    with pytest.raises(InputError, match=said):
        train(small_cohort, tmp_path / "run", config, progress=False)


def test_an_output_that_is_a_file_and_a_cohort_without_cases_are_refused(small_cohort, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="is a file"):
        train(small_cohort, tmp_path / "file", CONFIG, progress=False)
    with pytest.raises(InputError):
        train(tmp_path / "nothing", tmp_path / "run", CONFIG, progress=False)
    with pytest.raises(InputError, match="no cases"):
        train([], tmp_path / "run", CONFIG, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is full")
def test_a_log_on_a_full_disk_is_one_sentence_that_names_it(tmp_path):
    log = TrainingLog(tmp_path / "log.csv", ("step", "total"))
    log._stream.close()
    log._stream = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115 (closed below)
    for act in (lambda: log.write({"step": 0, "total": 1.0}), log.close):
        with pytest.raises(InputError, match=r"log\.csv: writing failed \(No space left on device\); free some space"):
            act()
    assert log._stream.closed


def test_a_log_on_a_full_disk_keeps_whole_rows_alone(tmp_path, files_of_at_most):
    path = tmp_path / "log.csv"
    log = TrainingLog(path, ("step", "total"))
    log.write({"step": 0, "total": 1.5})
    with files_of_at_most(path.stat().st_size + 3):
        with pytest.raises(InputError, match="writing failed"):
            log.write({"step": 1, "total": 1.25})
        with pytest.raises(InputError, match="writing failed"):
            log.close()
    assert path.read_text(encoding="utf-8") == "step,total\n0,1.5\n"


def test_the_log_drops_what_came_after_the_checkpoint_and_what_is_not_whole(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,total\n0,1.5\n1,1.25\n2,1.125\n3,1.0", encoding="utf-8")
    log = TrainingLog(path, ("step", "total"), resume_at=2)
    log.write({"step": 2, "total": 1.0625})
    log.close()
    assert path.read_text(encoding="utf-8") == "step,total\n0,1.5\n1,1.25\n2,1.0625\n"
    path.write_text("step,total\n0,1.5\n1", encoding="utf-8")
    TrainingLog(path, ("step", "total"), resume_at=2).close()
    assert path.read_text(encoding="utf-8") == "step,total\n0,1.5\n"


def test_a_fresh_run_starts_a_fresh_log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,total\n0,1.5\n", encoding="utf-8")
    TrainingLog(path, ("step", "total")).close()
    assert path.read_text(encoding="utf-8") == "step,total\n"


@pytest.mark.parametrize("fastest", ["bf16", "float32"])
def test_an_automatic_precision_is_decided_once_and_kept(small_cohort, tmp_path, monkeypatch, capsys, fastest):
    auto = TrainingConfig(**CONFIG.to_dict() | {"precision": "auto", "steps": 2, "checkpoint_every": 1})
    monkeypatch.setattr(trainer, "fastest_precision", lambda device: fastest)

    class Stopped(Exception):
        pass

    def stop(row):
        if row["step"] == 1:
            raise Stopped

    with pytest.raises(Stopped):
        train(small_cohort, tmp_path / "run", auto, on_step=stop)
    assert f"training in {fastest}" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["precision"] == fastest
    other = "float32" if fastest == "bf16" else "bf16"
    monkeypatch.setattr(trainer, "fastest_precision", lambda device: other)
    result = train(small_cohort, tmp_path / "run", auto, resume=True, progress=False)
    assert load_checkpoint(result.checkpoint).config["precision"] == fastest
    named = TrainingConfig(**auto.to_dict() | {"precision": other})
    with pytest.raises(InputError, match=f"precision='{fastest}' instead of '{other}'"):
        train(small_cohort, tmp_path / "run", named, resume=True, progress=False)
