"""The benchmarks: nothing wrong is timed, floors are counted right, and a number never travels without its origin."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
import torch

from smml_kernels import reference
from smml_kernels.benchmarks import __main__ as command_line
from smml_kernels.benchmarks import check, floors, machine, memory, public, report, runner, targets, timing
from smml_kernels.benchmarks.cases import ALL, ONE, SUBSETS, Case, cpu_cases, cuda_cases, make_inputs, sets_beyond
from smml_kernels.benchmarks.contestants import COMPILED, EAGER, OURS, PUBLIC, Contestant, call, contestants, gradients

CPU = torch.device("cpu")
CEILINGS = {"copy_bytes_per_s": 1e9, "float64": 1e10, "float32": 2e10}
SMALL = {
    "relation_loss": Case("relation_loss", (40, 6), torch.float64),
    "masked_fusion": Case("masked_fusion", (2, 3, 4, 5, 3), torch.float64, masks=SUBSETS),
    "exchange_loss": Case("exchange_loss", (2, 4, 5, 4, 3), torch.float64),
    "dice_ce_loss": Case("dice_ce_loss", (2, 4, 5, 4, 3), torch.float64, target_dtype=torch.int64),
}


# ------------------------------------------------------------------------------------------------------ formulations


@pytest.mark.parametrize("operation", SMALL)
def test_every_formulation_computes_the_same_values_and_gradients(operation):
    case = SMALL[operation]
    field = contestants(case, CPU)
    assert {c.name for c in field} >= {PUBLIC, EAGER, OURS}
    for inputs in make_inputs(case, CPU, seed=1):
        exact = call(case, next(c for c in field if c.name == EAGER), inputs)
        expected = gradients(exact, inputs)
        for contestant in field:
            outputs = call(case, contestant, inputs)
            torch.testing.assert_close(outputs, exact, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(gradients(outputs, inputs), expected, rtol=1e-8, atol=1e-12)


def test_float16_is_judged_with_a_scaled_loss_as_in_training():
    """Gradients of a mean over many voxels lie below float16's smallest numbers; on a GPU that looked like a fault."""
    case = Case("dice_ce_loss", (1, 4, 64, 64, 64), torch.float16)
    inputs = make_inputs(case, CPU, seed=3)
    (ours,) = (each for each in contestants(case, CPU) if each.name == OURS)
    assert check.accuracy(case, ours, inputs, check.truth(case, inputs)).passed


def test_public_formulations_take_half_precision():
    for operation in ("exchange_loss", "dice_ce_loss"):
        case = Case(operation, (1, 4, 8, 8, 8), torch.bfloat16)
        inputs = make_inputs(case, CPU, seed=2)
        worst = check.accuracy(
            case, Contestant(PUBLIC, "", getattr(public, operation)), inputs, check.truth(case, inputs)
        )
        assert worst.passed, worst


def test_inputs_are_random_repeatable_and_of_every_set():
    case = Case("masked_fusion", (1, 2, 3, 3, 3), masks=ALL)
    first, second = make_inputs(case, CPU, seed=3, sets=2)
    assert not torch.equal(first.leaves[0], second.leaves[0])
    assert torch.equal(make_inputs(case, CPU, seed=3)[0].leaves[0], first.leaves[0])
    assert not torch.equal(make_inputs(case, CPU, seed=4)[0].leaves[0], first.leaves[0])
    subsets = make_inputs(Case("masked_fusion", (1, 2, 3, 3, 3), masks=SUBSETS), CPU, seed=3)
    assert len({tuple(inputs.constants[0][0].tolist()) for inputs in subsets}) == 15
    assert all(inputs.leaves[0] is subsets[0].leaves[0] for inputs in subsets), "one copy of the maps for 15 masks"


def test_small_inputs_rotate_until_a_cache_is_left_behind():
    small = Case("relation_loss", (4096, 128))
    assert sets_beyond(0, small) == 1
    assert sets_beyond(60_000_000, small) * 2 * 4096 * 128 * 4 >= 2 * 60_000_000
    assert sets_beyond(60_000_000, Case("relation_loss", (262144, 128))) == 1


def test_case_names_are_unique_and_cover_every_operation():
    for cases in (cpu_cases(), cpu_cases(True), cuda_cases(), cuda_cases(True)):
        assert len({case.name for case in cases}) == len(cases)
        assert {case.operation for case in cases} == set(SMALL)
    assert {case.name for case in cuda_cases(True)} <= {case.name for case in cuda_cases()}
    forms = {case.shape: case.form for case in cuda_cases() if case.operation == "relation_loss"}
    assert forms[1024, 512] == "direct"
    assert forms[4096, 128] == "linear"


# ------------------------------------------------------------------------------------------------------------ floors


def test_floors_by_hand():
    maps = (1, 8, 128, 128, 128)
    everything = 4 * 8 * 128**3 * 4  # E: four float32 maps
    assert everything == 268_435_456
    for present in (1.0, 8 / 15, 0.25):
        fusion = floors.masked_fusion(maps, modalities=4, out_channels=8, present=present, itemsize=4)
        assert fusion.bytes("forward") == pytest.approx((2 * present + 0.25) * everything)
        assert fusion.bytes("backward") == pytest.approx((2 * present + 1.5) * everything)
    logits = 4 * 128**3 * 4  # one float32 map of four classes
    for label, exchange, dice in ((1, 6.125, 3.125), (8, 7.0, 4.0)):
        assert floors.exchange_loss((1, 4, 128, 128, 128), 4, label).bytes("both") == exchange * logits
        assert floors.dice_ce_loss((1, 4, 128, 128, 128), 4, label).bytes("both") == dice * logits
    linear = floors.relation_loss(1000, 10, 4)
    assert (linear.flops("both"), linear.bytes("both")) == (34 * 1000 * 100, 40 * 1000 * 10)
    direct = floors.relation_loss(1000, 10, 4, form="direct")
    assert (direct.flops("both"), direct.bytes("both")) == (12 * 1000**2 * 10, 24 * 1000 * 10)
    with pytest.raises(ValueError, match="unknown form"):
        floors.relation_loss(2, 2, 4, form="other")


def test_a_floor_in_seconds_is_the_larger_term():
    floor = floors.Floor(100, 200, 1000, 2000, matrix=True)
    assert floor.seconds("both", bandwidth=100, matrix_rate=100) == 30
    assert floor.seconds("both", bandwidth=1, matrix_rate=1000) == 300
    assert floor.seconds("both", bandwidth=1, matrix_rate=None) is None
    assert floors.Floor(100, 200, 1e9, 1e9).seconds("forward", 10, None) == 10


def test_the_floor_of_a_case_follows_its_presence_and_dtype():
    full = Case("masked_fusion", (1, 8, 4, 4, 4), masks=ALL).floor().bytes("forward")
    one = Case("masked_fusion", (1, 8, 4, 4, 4), masks=ONE).floor().bytes("forward")
    assert one / full == pytest.approx(0.75 / 2.25)
    half = Case("masked_fusion", (1, 8, 4, 4, 4), torch.bfloat16, masks=ALL).floor().bytes("forward")
    assert half == full / 2
    assert Case("relation_loss", (9, 2)).matrix_rate == "float64"
    assert Case("relation_loss", (9, 2), precision="high").matrix_rate == "tf32"


# ------------------------------------------------------------------------------------------------- right before fast


def _rows(function, case=None):
    case = case or Case("dice_ce_loss", (1, 3, 4, 4, 4))
    field = [Contestant(EAGER, "", getattr(reference, case.operation)), Contestant(OURS, "made up", function)]
    return runner.measure(case, CPU, CEILINGS, runner.Options(budget=0.0), field)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, y: 1.1 * reference.dice_ce_loss(x, y),
        lambda x, y: reference.dice_ce_loss(x, y).detach() + 0.0 * x.sum(),  # right value, no gradient
        lambda x, y: reference.dice_ce_loss(x, y) * float("nan"),
        lambda x, y: reference.dice_ce_loss(x, y)[None],
    ],
    ids=["value", "gradient", "nan", "shape"],
)
def test_a_wrong_formulation_is_not_timed(wrong):
    eager, ours = _rows(wrong)
    assert eager["status"] == "ok"
    assert eager["eager"]["both"]["p50"] > 0
    # Another shape cannot take the gradient of the output at all, and fails before it is compared.
    assert ours["status"] in ("refused", "failed")
    assert ours["reason"]
    assert ours["eager"] is ours["graph"] is ours["peak_bytes"] is None
    run = {"provenance": machine.provenance(CPU, "x", 0), "ceilings": CEILINGS, "rows": [eager, ours], "notes": []}
    text = report.markdown(run | {"targets": []})
    assert ours["reason"] in text


def test_a_formulation_that_raises_stops_no_other():
    def missing(x, y):
        raise NotImplementedError("not here yet")

    eager, ours = _rows(missing)
    assert (eager["status"], ours["status"]) == ("ok", "failed")
    assert ours["reason"] == "does not run: NotImplementedError: not here yet"


def test_nothing_is_started_after_the_deadline():
    case = Case("exchange_loss", (1, 2, 3, 3, 3))
    rows = runner.measure(case, CPU, CEILINGS, runner.Options(deadline=0.0))
    assert {row["status"] for row in rows} == {"skipped"}


def test_relative_error():
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert check.relative_error(exact + torch.tensor([0.0, 0.5]), exact) == pytest.approx(0.1)
    assert check.relative_error(torch.zeros(2), torch.zeros(2).double()) == 0.0
    for bad, truth in ((torch.ones(2), torch.zeros(2).double()), (exact * float("nan"), exact), (exact[:1], exact)):
        assert check.relative_error(bad, truth) == float("inf")


def test_the_matmul_precision_is_restored():
    before = torch.get_float32_matmul_precision()
    seen = []

    def look(f1, f2):
        seen.append(torch.get_float32_matmul_precision())
        return reference.relation_loss(f1, f2)

    _rows(look, Case("relation_loss", (8, 3), precision="high"))
    assert set(seen) == {"high"}
    assert torch.get_float32_matmul_precision() == before


# ----------------------------------------------------------------------------------------------- times and memory


def test_quantiles():
    found = timing.quantiles([5.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    assert (found.p20, found.p50, found.p80, found.samples) == (2.0, 3.5, 5.0, 6)


def test_memory_counts_what_is_stored_and_not_what_is_returned():
    x = torch.randn(1 << 18, requires_grad=True)  # 1 MiB
    inputs = make_inputs(Case("dice_ce_loss", (1, 2, 2, 2, 2)), CPU, 0)[0]
    inputs = type(inputs)((x,), (), (torch.ones(1 << 18),))
    nothing = memory.peak_extra_bytes(lambda i: (i.leaves[0] * 2.0,), inputs, CPU)
    two_maps = memory.peak_extra_bytes(lambda i: ((i.leaves[0].exp() * i.leaves[0].sin()),), inputs, CPU)
    assert nothing < 1 << 12
    assert 2 << 20 <= two_maps <= 5 << 20, "two stored, and the products of the backward"


# ------------------------------------------------------------------------------------------------------------ targets


def _row(contestant, operation, seconds=None, *, graph=None, status="ok", reason="", **more):
    row = {
        "contestant": contestant, "operation": operation, "case": f"{operation} {more.get('shape')}",
        "dtype": "float32", "presence": "", "status": status, "reason": reason,
        "errors": {"result": 1e-7, "gradient": 1e-7},
        "eager": None if seconds is None else {"both": {"p50": seconds}},
        "graph": None if graph is None else {"both": {"p50": graph}}, "peak_bytes": 10, "input_bytes": 100,
        "floor_seconds": {"both": 1e-3}, "bound_by": "copy bandwidth", "share_of_ceiling": None,
    }  # fmt: skip
    return row | more


def test_targets_met_not_met_and_not_measured():
    shape = {"shape": [8192, 128]}
    for ours, status in ((0.019, targets.MET), (0.021, targets.NOT_MET)):
        rows = [_row(PUBLIC, "relation_loss", 1.0, **shape), _row(OURS, "relation_loss", ours, **shape)]
        assert targets.targets(rows, "cpu")[0].status == status
    alone = [_row(OURS, "relation_loss", 0.01, **shape)]
    assert targets.targets(alone, "cpu")[0].status == targets.NOT_MEASURED
    for device in ("cpu", "cuda"):
        assert {target.status for target in targets.targets([], device)} == {targets.NOT_MEASURED}


def test_a_target_is_not_met_by_what_is_refused_and_not_measured_where_there_is_no_kernel():
    shape = {"shape": [262144, 128]}
    cases = (("refused", "refused: wrong", targets.NOT_MET), ("skipped", "budget", targets.NOT_MEASURED),
             ("failed", "does not run: OutOfMemoryError", targets.NOT_MET),
             ("failed", "does not run: NotImplementedError: none", targets.NOT_MEASURED))  # fmt: skip
    for status, reason, expected in cases:
        rows = [_row(OURS, "relation_loss", status=status, reason=reason, errors=None, **shape)]
        found = next(t for t in targets.targets(rows, "cuda") if t.goal.endswith("(262144, 128) runs"))
        assert (found.status, found.found) == (expected, reason)


def test_ratios_are_of_one_kind_of_time():
    slow, fast = _row(PUBLIC, "dice_ce_loss", 8.0, graph=6.0), _row(OURS, "dice_ce_loss", 2.0, graph=1.0)
    assert targets.ratio(slow, fast) == (6.0, "graph")
    assert targets.ratio(slow | {"graph": None}, fast) == (4.0, "eager")
    assert targets.ratio(slow | {"eager": None, "graph": None}, fast) is None
    assert targets.ratio(None, fast) is None


def test_floor_share_memory_and_error_targets():
    def found(word, **more):
        rows = [_row(EAGER, "dice_ce_loss", 1e-2, shape=[1]), _row(OURS, "dice_ce_loss", 1.25e-3, shape=[1], **more)]
        return next(t for t in targets.targets(rows, "cuda") if word in t.goal and "dice" in t.goal + t.found)

    assert found("copy bandwidth", share_of_ceiling=0.8).status == targets.MET
    assert found("copy bandwidth", share_of_ceiling=0.6).status == targets.NOT_MET
    assert found("peak memory", share_of_ceiling=1.0).status == targets.MET
    assert found("peak memory", share_of_ceiling=1.0, peak_bytes=50).status == targets.NOT_MET
    assert found("6 x tidy eager", share_of_ceiling=1.0).status == targets.MET
    assert found("errors", share_of_ceiling=1.0).status == targets.MET
    off = {"result": 1e-7, "gradient": 1e-6}
    assert found("errors", share_of_ceiling=1.0, errors=off).status == targets.NOT_MET
    full = {"shape": [1, 8, 128, 128, 128], "presence": "4 of 4"}
    for seconds, status in ((1.5e-3, targets.MET), (1.7e-3, targets.NOT_MET)):
        rows = [_row(OURS, "masked_fusion", 1.0, graph=seconds, **full)]
        near = next(t for t in targets.targets(rows, "cuda") if "1.6 x its floor" in t.goal)
        assert near.status == status


# ------------------------------------------------------------------------------------------------------ a whole run


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """A run of two operations at tiny sizes, through the command line's own function; (folder, exit code)."""
    pytest.importorskip("plotly")  # a machine that is there for its GPU may lack it
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        tiny = [Case("relation_loss", (32, 4)), Case("dice_ce_loss", (1, 3, 4, 4, 4))]
        patch.setattr(command_line, "cpu_cases", lambda quick: tiny)
        ceilings = machine.ceilings
        patch.setattr(machine, "ceilings", lambda device, quick: ceilings(device, True))
        # A browser takes seconds to start and is not everywhere; without one the run goes on and says so.
        patch.setattr("plotly.graph_objects.Figure.write_image", _no_browser)
        code = command_line.main(["--quick", "--device", "cpu", "--seed", "5", "--output", str(folder)])
    return folder, code


def _no_browser(*_, **__):
    raise RuntimeError("no browser")


def test_a_run_writes_numbers_with_their_origin(tiny_run):
    folder, code = tiny_run
    assert code == 0
    run = json.loads((folder / "cpu.json").read_text())
    made = run["provenance"]
    assert made["command"].startswith("python -m smml_kernels.benchmarks --quick")
    assert made["seed"] == 5
    assert made["commit"]
    assert made["date"].startswith("20")
    assert made["versions"]["torch"] == torch.__version__
    assert made["hardware"]["cpu"]
    assert made["hardware"]["threads"] == torch.get_num_threads()
    assert set(run["ceilings"]) == {"copy_bytes_per_s", "float64", "float32"}
    assert min(run["ceilings"].values()) > 0
    assert {row["contestant"] for row in run["rows"]} == {PUBLIC, EAGER, OURS}
    for row in run["rows"]:
        assert row["status"] == "ok"
        for phase in ("forward", "backward", "both"):
            q = row["eager"][phase]
            assert 0 < q["p20"] <= q["p50"] <= q["p80"]
            assert q["samples"] >= 3
        assert max(row["errors"].values()) < row["tolerance"]
        assert row["share_of_ceiling"] > 0


def test_a_run_writes_a_table_and_a_roofline_without_a_browser(tiny_run):
    folder, _ = tiny_run
    text = (folder / "cpu.md").read_text()
    assert "## relation_loss" in text
    goals = text.split("## Goals")[1].split("##")[0]
    assert re.search(rf"On {re.escape(machine.cpu_name())} \((AVX|DEFAULT|NEON|SVE|Z)\w*; threads: \d+\)", goals), goals
    assert "| tidy eager |" in text
    assert "not measured" in text
    assert "No PNG of the roofline: no browser" in text
    tables = text.split("## relation_loss")[1]
    assert {line.count("|") for line in tables.splitlines() if line.startswith("|")} == {11}
    page = (folder / "cpu-roofline.html").read_text()
    assert "Forward and backward against the measured roof" in page
    assert "<script src=" not in page, "the page must not need a network"
    assert not list(folder.glob("*.partial"))


def test_a_busy_machine_is_named():
    assert machine.disturbance({"load_before": 0.1}) == []
    assert "load average 2.5" in machine.disturbance({"load_before": 2.5})[0]


def test_cuda_without_a_gpu_is_one_clear_sentence(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert command_line.main(["--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


class _Process:
    """A stand-in for the process of one operation: it writes rows, and is then stopped, or fails, or ends well."""

    def __init__(self, ends: dict[tuple[str, str], int | str]):
        self.started, self.ends = [], ends

    def run(self, command, timeout=None):
        turn, operation = (command[command.index(word) + 1] for word in ("--turn", "--ops"))
        self.started.append((turn, operation))
        contestant = EAGER if turn == "eager" else COMPILED
        row = _row(contestant, operation, 1.0, case=f"{operation} first of all")
        Path(command[command.index("--rows-only") + 1]).write_text(json.dumps([row]) + "\n")
        end = self.ends.get((turn, operation), 0)
        if end == "hangs":
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, end)


def _apart(monkeypatch, ends, *words):
    """(order of the processes, rows after each, notes) of a run that measures each operation in its own process."""
    process, notes = _Process(ends), []
    monkeypatch.setattr(command_line.subprocess, "run", process.run)
    asked = command_line._parser().parse_args(["--quick", *words])
    rows = list(command_line._measure_apart(asked, CEILINGS, time.monotonic(), notes))
    return process.started, rows, notes


def test_whatever_is_compiled_comes_after_everything_else(monkeypatch):
    order, rows, notes = _apart(monkeypatch, {})
    assert order == [(turn, operation) for turn in ("eager", "compiled") for operation in SMALL]
    assert [len(found) for found in rows] == list(range(1, 9))
    assert [(row["operation"], row["contestant"]) for row in rows[-1][:2]] == [
        ("relation_loss", EAGER), ("relation_loss", COMPILED)
    ], "what belongs to one case stands together"  # fmt: skip
    assert notes == []
    assert len(_apart(monkeypatch, {}, "--no-compile")[0]) == 4


def test_a_process_that_is_stopped_leaves_its_rows_and_the_name_of_what_was_running(monkeypatch):
    first = next(case.name for case in cuda_cases(True) if case.operation == "exchange_loss")
    ends = {("eager", "exchange_loss"): "hangs", ("eager", "dice_ce_loss"): 3}
    order, rows, notes = _apart(monkeypatch, ends, "--budget", "1000")
    assert len(order) == len(rows[-1]) == 8, "the others are measured, and its own rows are kept"
    assert notes[0].startswith(f"exchange_loss, eager: its process was stopped for taking too long at {first};")
    assert notes[1].startswith("dice_ce_loss, eager: its process ended with exit code 3 at dice_ce_loss")


def test_nothing_is_compiled_when_the_budget_is_spent(monkeypatch):
    order, _, notes = _apart(monkeypatch, {}, "--budget", "5")
    assert {turn for turn, _ in order} == {"eager"}
    assert notes == [f"{name}, compiled: not started, as the time budget is spent." for name in SMALL]


def test_the_package_stands_alone():
    for file in (machine.ROOT / "smml_kernels").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) smml\b", file.read_text(), re.MULTILINE), file
