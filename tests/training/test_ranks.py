"""Several processes train as one process with the whole batch would, whatever a process's samples lack."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ranks_server
import torch

import smml
from smml.data import find_cases
from smml.errors import InputError
from smml.models.checkpoint import load_checkpoint
from smml.ranks import Ranks, start_ranks
from smml.sam import TinyConfig, build_tiny, save_tiny
from smml.training import TrainingConfig
from smml.training.objective import TERMS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(smml.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
# Three samples on two processes: one of them holds two, the other one.
CONFIG = TrainingConfig(
    steps=4, batch_size=3, patch=32, consistency_start=0.25, consistency_ramp=0.25, checkpoint_every=2, seed=3,
    precision="float32",
)  # fmt: skip

Job = Callable[..., None]


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Iterator[Job]:
    """``job(name, processes, ends=exit statuses, of_rank=..., **options)``; returns what each had to say of its end."""
    errors = tmp_path_factory.mktemp("errors") / "rank"
    command = [sys.executable, ranks_server.__file__]
    with subprocess.Popen(command, env=ENVIRONMENT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:

        def run(name: str, count: int, ends: list[int] | None = None, of_rank: dict | None = None, **options):
            for old in errors.parent.iterdir():
                old.unlink()
            order = {"job": name, "count": count, "options": options, "of_rank": of_rank or {}, "errors": str(errors)}
            server.stdin.write(json.dumps(order) + "\n")
            server.stdin.flush()
            statuses = json.loads(server.stdout.readline())
            said = {path.name: path.read_text(encoding="utf-8") for path in errors.parent.iterdir()}
            assert statuses == (ends or [0] * count), said
            return [said.get(f"rank-{rank}", "") for rank in range(count)]

        yield run
        server.stdin.close()
        server.wait(timeout=60)


@pytest.fixture(scope="module")
def cohort(small_cohort, tmp_path_factory) -> Path:
    """Three cases, one without T1ce and one without FLAIR and T2."""
    folder = Path(shutil.copytree(small_cohort, tmp_path_factory.mktemp("cohorts") / "uneven"))
    cases = [case.label.parent for case in find_cases(folder)]
    for case, name in ((cases[0], "t1ce"), (cases[1], "flair"), (cases[1], "t2")):
        next(case.glob(f"*_{name}.nii.gz")).unlink()
    return folder


@pytest.fixture(scope="module")
def sam_file(tmp_path_factory) -> str:
    size = TinyConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2, channels=16, decoder_mlp=16)
    path = tmp_path_factory.mktemp("sam") / "random.safetensors"
    torch.manual_seed(0)
    save_tiny(build_tiny(size), path, size, {"training": "none"})
    return str(path)


@pytest.fixture(scope="module")
def trained(job, cohort, sam_file, tmp_path_factory) -> dict[int, Path]:
    """Runs with refinement in their second half, by one process and by two. Read them only."""
    folder = tmp_path_factory.mktemp("trained")
    config = CONFIG.to_dict() | {"refinement": sam_file}
    for count in (1, 2):
        job("train", count, cohort=str(cohort), output=str(folder / str(count)), config=config)
    return {count: folder / str(count) for count in (1, 2)}


def rows(run: Path, rank: int = 0) -> list[dict[str, float]]:
    """The rows that a rank saw, in full precision and without times."""
    table = json.loads((run / f"rows-{rank}.json").read_text(encoding="utf-8"))
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in table]


def assert_same_bits(run: Path, other: Path) -> None:
    """Weights, optimiser and log."""
    one, two = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (run, other))
    leaves = [torch.utils._pytree.tree_flatten_with_path(content)[0] for content in (one, two)]
    assert len(leaves[0]) == len(leaves[1])
    for (path, a), (_, b) in zip(*leaves, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, path
    tables = []
    for folder in (run, other):
        with open(folder / "log.csv", newline="", encoding="utf-8") as stream:
            tables.append([row[:-2] for row in csv.reader(stream)])
    assert tables[0] == tables[1]


# ---------------------------------------------------------------- the same as one process


def test_five_steps_of_two_processes_are_those_of_one_with_the_whole_batch(job, tmp_path):
    """In float64: float32 hides errors below 1e-6, and Adam makes steps out of the noise where a gradient is 0."""
    config = CONFIG.to_dict() | {"steps": 6, "consistency_start": 0.0, "consistency_ramp": 0.2, "gradient_clip": 10}
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        job("steps", count, output=str(tmp_path / str(count)), steps=5, config=config)
    one = torch.load(tmp_path / "1" / "steps-0.pt")
    assert all(row[name] > 0 for row in one["rows"][1:] for name in TERMS)
    assert all(row["gradient_norm"] > 10 for row in one["rows"]), "clipping is under test"
    for rank in (0, 1):
        found = torch.load(tmp_path / "2" / f"steps-{rank}.pt")
        for step, (row, expected) in enumerate(zip(found["rows"], one["rows"], strict=True)):
            for name in (*TERMS, "total", "gradient_norm"):
                assert row[name] == pytest.approx(expected[name], rel=1e-9), (step, name)
        for step, (own, whole) in enumerate(zip(found["gradients"], one["gradients"], strict=True)):
            idle = {name for name, gradient in whole.items() if gradient is None}
            assert {name for name, gradient in own.items() if gradient is None} == idle, step
            assert any("encoders.2" in name for name in idle), "nobody has T1"
            assert not any("encoders.3.stages" in name or "encoders.0.stages" in name for name in idle)
        for name, weight in one["weights"].items():
            torch.testing.assert_close(found["weights"][name], weight, rtol=0, atol=1e-9, msg=name)


def test_a_run_over_two_processes_has_the_samples_and_the_log_of_one(trained):
    """Cases, sampler, priors and files; in float32, whose rounding Adam amplifies from step to step."""
    one, two = rows(trained[1]), rows(trained[2])
    assert rows(trained[2], rank=1) == two
    assert len(one) == len(two) == CONFIG.steps
    for row, expected in zip(two, one, strict=True):
        for name in (*TERMS, "total", "learning_rate"):
            early = row["step"] < 2
            assert row[name] == pytest.approx(expected[name], rel=1e-5 if early else 1e-2, abs=1e-5), (row, name)
    assert two[2]["refine_1"] > 0
    with open(trained[2] / "log.csv", newline="", encoding="utf-8") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["0", "1", "2", "3"]
    own = {"rows-0.json", "rows-1.json"}
    assert {path.name for path in trained[2].iterdir()} - own == {path.name for path in trained[1].iterdir()} - own
    checkpoint = load_checkpoint(trained[2])
    assert checkpoint.step == CONFIG.steps


def test_priors_are_shared_out_and_are_those_of_one_process(trained):
    names = sorted(path.name for path in (trained[1] / "priors").glob("*.npz"))
    assert names == sorted(path.name for path in (trained[2] / "priors").glob("*.npz"))
    for name in names:
        with np.load(trained[1] / "priors" / name) as one, np.load(trained[2] / "priors" / name) as two:
            assert np.array_equal(one["masks"], two["masks"])


def test_a_run_is_resumed_by_another_number_of_processes(job, cohort, tmp_path):
    options = {"cohort": str(cohort), "output": str(tmp_path / "run"), "config": CONFIG.to_dict()}
    job("train", 2, ends=[-signal.SIGKILL, -signal.SIGKILL], die={"0": 3, "1": 3}, **options)
    job("train", 3, **options)
    assert [row["step"] for row in rows(tmp_path / "run", rank=2)] == [2, 3]
    assert load_checkpoint(tmp_path / "run").step == CONFIG.steps


@pytest.mark.parametrize("counts", [(1, 1), (2, 1), (1, 2)])
def test_an_evaluation_that_was_killed_goes_on_in_any_number_of_processes(job, cohort, tmp_path, counts):
    job("evaluate", 1, cohort=str(cohort), output=str(tmp_path / "whole"))
    options = {"cohort": str(cohort), "output": str(tmp_path / "run")}
    killed, resumed = counts
    # While it encodes the third case, which of two processes is the second of the first.
    job("evaluate", killed, ends=[-signal.SIGKILL, 1][:killed], die={"0": 4 - killed}, **options)
    whole, part = ((tmp_path / name / "scores.csv").read_bytes() for name in ("whole", "run"))
    assert whole.startswith(part)
    assert len({line.split(b",")[0] for line in part.splitlines()[1:]}) == 2
    job("evaluate", resumed, **options)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "run")]
    assert files[0] == files[1]
    assert sorted(files[0]) == ["evaluation.json", "scores.csv", "table.html", "table.md"]


def test_two_processes_answer_for_a_cohort_what_one_does(job, small_cohort, tmp_path):
    folder = Path(shutil.copytree(small_cohort, tmp_path / "damaged"))
    find_cases(folder)[1].images["t1"].path.write_bytes(b"damaged")
    for count in (1, 2):
        job("cohort", count, cohort=str(folder), output=str(tmp_path / str(count)))
    files = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.suffix in (".gz", ".png")}
        for folder in (tmp_path / "1", tmp_path / "2")
    ]
    assert files[0] == files[1]
    assert len(files[0]) == 4
    tables = []
    for count in "12":
        with open(tmp_path / count / "cases.csv", newline="", encoding="utf-8") as stream:
            tables.append([row | {"seconds": ""} for row in csv.DictReader(stream)])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 3


# ---------------------------------------------------------------- ends that nobody wished for


def torchrun(**options) -> subprocess.CompletedProcess:
    job = json.dumps({"job": "train", "options": options})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, ranks_server.__file__, job], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def test_killed_under_torchrun_and_resumed_equals_undisturbed_to_the_bit(cohort, tmp_path):
    """With micro-batches, bfloat16, averaged weights, and dropout that goes on where it stopped."""
    config = CONFIG.to_dict() | {"steps": 3, "batch_size": 4, "accumulate": 2, "precision": "bf16", "ema": 0.9}
    options = {"cohort": str(cohort), "config": config, "dropout": 0.1}
    undisturbed = torchrun(output=str(tmp_path / "undisturbed"), **options)
    assert undisturbed.returncode == 0, undisturbed.stderr
    killed = torchrun(output=str(tmp_path / "killed"), die={"1": 3}, **options)
    assert killed.returncode != 0
    assert "process 0 of 2 stops: process 1 of 2 ended before the work was done" in killed.stderr, killed.stderr
    assert "--resume" in killed.stderr
    assert load_checkpoint(tmp_path / "killed").step == 2
    resumed = torchrun(output=str(tmp_path / "killed"), **options)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_bits(tmp_path / "killed", tmp_path / "undisturbed")


def test_a_process_that_cannot_go_on_says_why_and_the_others_say_who_is_gone(job, cohort, tmp_path):
    options = {"cohort": str(cohort), "output": str(tmp_path / "run"), "config": CONFIG.to_dict()}
    said = job("train", 2, ends=[1, 1], of_rank={"1": {"cohort": str(tmp_path / "elsewhere")}}, **options)
    assert said[0].startswith("LostProcess: process 0 of 2 stops: process 1 of 2 ended")
    assert said[1].startswith("InputError")
    assert "elsewhere" in said[1]


def test_processes_with_other_options_are_refused_and_the_option_is_named(job, cohort, tmp_path):
    other = {"config": CONFIG.to_dict() | {"learning_rate": 5e-4}}
    options = {"cohort": str(cohort), "output": str(tmp_path / "run"), "config": CONFIG.to_dict()}
    for said in job("train", 2, ends=[1, 1], of_rank={"1": other}, **options):
        assert "process 1 of the run has learning_rate 0.0005, process 0 has 0.001" in said
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_batch_smaller_than_the_number_of_processes_is_refused(job, cohort, tmp_path):
    config = CONFIG.to_dict() | {"batch_size": 1}
    for said in job("train", 2, ends=[1, 1], cohort=str(cohort), output=str(tmp_path / "run"), config=config):
        assert "a batch of 1 cannot be shared out over 2 processes: raise batch_size" in said
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- who does what


def test_shares_are_neighbours_that_differ_by_one_sample_at_most():
    for count in (1, 2, 3, 5):
        shares = [Ranks(rank, count).share(range(10, 17)) for rank in range(count)]
        assert [i for share in shares for i in share] == list(range(10, 17))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(InputError, match="a batch of 2 cannot be shared out over 3"):
        Ranks(0, 3).share(range(2))


def test_work_is_dealt_out_in_turn():
    assert [list(Ranks(rank, 3).deal(7)) for rank in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]


def test_without_torchrun_there_is_one_process_and_nothing_to_add_up(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    parameter = torch.nn.Parameter(torch.ones(2))
    with start_ranks() as ranks:
        ranks.add_gradients([parameter])
        ranks.wait()
        assert (ranks.rank, ranks.count, ranks.group, ranks.gather("a")) == (0, 1, None, ["a"])
    assert parameter.grad is None
