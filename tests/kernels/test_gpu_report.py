"""scripts/gpu_report.py, rehearsed without a GPU: whatever becomes of a step, the report says it and goes on."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from smml_kernels.benchmarks import machine

SCRIPT = machine.ROOT / "scripts" / "gpu_report.py"
CPU = torch.device("cpu")


@pytest.fixture
def script():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu_report", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_report"] = module  # dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_report"]


def program(script, name, text, limit="compiler"):
    return script.Step(name, [sys.executable, "-S", "-c", text], limit, f"{name}.log")


@pytest.fixture
def stop_when(monkeypatch):
    """Time is up when a file holds all of these words and another is there, however busy the machine is."""

    def prepare(script, file: Path, *words: str, there: Path | None = None) -> None:
        class Watched(subprocess.Popen):
            def wait(self, timeout=None):
                if timeout != script.LIMITS["tests"]:
                    return super().wait(timeout)
                while not (all(word in file.read_text() for word in words) and (there is None or there.exists())):
                    assert self.poll() is None, file.read_text()
                    time.sleep(0.05)
                raise subprocess.TimeoutExpired(self.args, timeout)

        monkeypatch.setattr(script.subprocess, "Popen", Watched)

    return prepare


def test_it_refuses_in_one_sentence_without_a_gpu(script, capsys, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    monkeypatch.setattr(sys, "argv", ["gpu_report.py"])
    assert script.main() == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no CUDA device" in error


def test_a_step_is_reported_whatever_becomes_of_it(script, tmp_path):
    programs = {
        "passed": "print('fine')",
        "failed": "raise SystemExit('broken')",
        "skipped": "import a_package_that_nobody_has",
        "skipped too": "raise SystemExit('python: No module named pytest')",
    }
    found = {name: script.run(program(script, name, text), tmp_path) for name, text in programs.items()}
    assert [o.status for o in found.values()] == ["passed", "failed", "skipped", "skipped"]
    assert found["failed"].words == "exit code 1: broken"
    text = script.summary(list(found.values()), machine.provenance(CPU, "make gpu-report", 0))
    assert all(f"| {name} |" in text for name in programs)


def ended(process: int) -> bool:
    """Whether a process is gone, or only waits to be asked how it ended."""
    try:
        state = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return True
    return state.rsplit(")", 1)[1].split()[0] in "ZX"


def test_a_step_that_hangs_is_stopped_with_what_it_started_and_its_last_words_are_kept(script, tmp_path, stop_when):
    text = (
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\n"
        "print('child', child.pid)\nprint('relation_loss (4096, 128)', flush=True)\nchild.wait()"
    )
    script.GRACE["tests"] = 0.2
    stop_when(script, tmp_path / "hangs.log", "relation_loss")
    outcome = script.run(program(script, "hangs", text, "tests"), tmp_path)
    assert (outcome.status, outcome.words) == ("failed", f"stopped after {script.LIMITS['tests']} s")
    assert outcome.running == ("relation_loss (4096, 128)",)
    child = int(re.match(r"child (\d+)", outcome.output).group(1))
    for _ in range(200):  # a killed process takes a moment to go, on a busy machine a long one
        if ended(child):
            break
        time.sleep(0.05)
    assert ended(child), "it must not go on"
    assert "- `relation_loss (4096, 128)`" in script.summary([outcome], machine.provenance(CPU, "x", 0))


@pytest.mark.parametrize("processes", [[], ["-p", "xdist", "-n", "1"]], ids=["one process", "xdist"])
def test_tests_that_are_stopped_name_what_failed_and_what_was_running(script, tmp_path, stop_when, processes):
    if processes:
        pytest.importorskip("xdist")
    hangs = tmp_path / "hangs"
    (tmp_path / "test_some.py").write_text(
        "import pathlib, time, pytest\n"
        "def test_passes(): pass\n"
        "@pytest.mark.parametrize('word', ['every other'])\n"
        "def test_fails(word): assert word == 'another'\n"
        f"def test_hangs(): pathlib.Path({str(hangs)!r}).touch(); time.sleep(600)\n"
        "def test_never_starts(): pass\n"
    )
    words = ["-v", "--tb=short", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path), *processes]
    bare = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    step = script.Step("tests", [sys.executable, "-m", "pytest", *words], "tests", "tests.log", bare)
    script.GRACE["tests"] = 300  # on a busy machine an interrupted pytest takes long to sum up
    stop_when(script, tmp_path / "tests.log", "test_passes", "FAILED", "test_hangs", there=hangs)
    outcome = script.run(step, tmp_path)
    assert [name.split("::")[1] for name in outcome.failed] == ["test_fails[every other]"]
    # With one process pytest prints a test's name without an end of line until it ends.
    assert outcome.running[0].endswith("::test_hangs")
    assert not any("test_passes" in name or "test_fails" in name for name in outcome.running)
    assert "assert 'every other' == 'another'" in outcome.output, "an interrupted pytest still sums up"


def test_names_of_tests_with_blanks_and_reasons_are_read(script):
    one = (
        "tests/kernels/test_fusion.py::test_strides[channels last] PASSED         [  3%]\n"
        "tests/kernels/test_fusion.py::test_strides[every other] FAILED           [  4%]\n"
        "tests/kernels/test_groups.py::test_two (gloo adds up on the CPU)\n"
        "tests/kernels/test_dispatch.py::test_old SKIPPED (no GPU [ here ])       [  5%]\n"
        "FAILED tests/kernels/test_fusion.py::test_strides[every other] - AssertionError\n"
    )
    failed, running = script.of_tests(one)
    assert failed == ("tests/kernels/test_fusion.py::test_strides[every other]",)
    assert running == ("tests/kernels/test_groups.py::test_two (gloo adds up on the CPU)",)
    several = (
        "tests/kernels/test_a.py::test_x[a b] \ntests/kernels/test_a.py::test_y \n"
        "[gw1] [  1%] ERROR tests/kernels/test_a.py::test_y \n"
        "[gw0] [100%] PASSED tests/kernels/test_a.py::test_x[a b] \n"
    )
    assert script.of_tests(several) == (("tests/kernels/test_a.py::test_y",), ())


def test_the_steps_fit_into_nine_minutes_and_timings_have_the_gpu_to_themselves(script, tmp_path):
    stages = script.stages(tmp_path, "some-gpu", (9, 0))
    names = [[step.name for step in stage] for stage in stages]
    assert names[:2] == [["kernel tests, compiled", "what the compiler made of the kernels"], ["benchmarks"]]
    assert [len(stage) for stage in stages[2:]] == [1, 1, 1, 1]
    longest = sum(max(script.LIMITS[step.limit] + script.GRACE[step.limit] for step in stage) for stage in stages)
    assert longest < 540 - 15, "and 15 s to start Python and to look at the machine"
    assert len({step.file for stage in stages for step in stage}) == 7
    (tests, compiler), (benchmarks,), *_ = stages
    assert "-v" in tests.command
    assert tests.command[tests.command.index("-n") + 1] == str(min(8, os.cpu_count()))
    assert "--quick" in compiler.command
    assert compiler.command[compiler.command.index("--capability") + 1] == "90"
    budget = float(benchmarks.command[benchmarks.command.index("--budget") + 1])
    from smml_kernels.benchmarks import __main__ as command_line

    asked = command_line._parser().parse_args(benchmarks.command[3:])
    assert (asked.device, asked.output) == ("cuda", tmp_path)
    assert budget + command_line._GRACE < script.LIMITS["benchmarks"]


def test_the_kernels_tests_are_run_without_what_is_not_installed(script):
    words = script._pytest_words(lambda name: None if name in ("nibabel", "xdist") else "found")
    assert "-n" not in words
    assert "--confcutdir=tests/kernels" in words


def test_the_report_grows_with_each_step_and_a_failure_stops_nothing(script, tmp_path, monkeypatch, capsys):
    report = tmp_path / "some-gpu-report.md"
    steps = [
        [program(script, "fails", "raise SystemExit('broken')")],
        [program(script, "looks", f"print(open({str(report)!r}).read())"), program(script, "beside", "print(1)")],
        [program(script, "training step, tiny, torch", "print(5)")],
    ]
    row = '{"preset": "tiny", "patch": 8, "kernels": "torch", "median_ms": 1, "fastest_ms": 1, "peak_mb": 1}'
    steps[2][0].command[-1] = f"print('warming up'); print({row!r})"
    prepare(script, steps, tmp_path, monkeypatch)
    assert script.main() == 1
    assert "| fails | failed |" in (tmp_path / "looks.log").read_text(), "written before the next step began"
    rows = re.findall(r"^\| (.+?) \| (passed|failed|skipped) \|", report.read_text(), re.MULTILINE)
    assert rows[0] == ("fails", "failed")
    assert set(rows[1:3]) == {("looks", "passed"), ("beside", "passed")}
    assert rows[3] == ("training step, tiny, torch", "passed")
    assert "| tiny | 8 | torch | 1.0 | 1.0 | 1 |" in report.read_text()


def test_the_report_names_each_step_that_fails_hangs_or_is_killed_and_keeps_the_rest(script, tmp_path, monkeypatch):
    texts = {
        "fails": "print('first line'); raise SystemExit('broken')",
        "is killed": "import os, signal; print('half a table', flush=True); os.kill(os.getpid(), signal.SIGKILL)",
        "breaks": "print('some numbers', flush=True); import os; os.abort()",
        "hangs": "import time; print('case 3 of 7', flush=True); time.sleep(600)",
        "passes": "print('all numbers')",
    }
    limits = {"hangs": "benchmarks"}
    steps = [[program(script, name, text, limits.get(name, "compiler"))] for name, text in texts.items()]

    class Hurried(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout == script.LIMITS["benchmarks"]:
                while "case 3" not in (tmp_path / "hangs.log").read_text():
                    time.sleep(0.05)
                raise subprocess.TimeoutExpired(self.args, timeout)
            return super().wait(timeout)

    monkeypatch.setattr(script.subprocess, "Popen", Hurried)
    prepare(script, steps, tmp_path, monkeypatch)
    assert script.main() == 1
    text = (tmp_path / "some-gpu-report.md").read_text()
    rows = dict(re.findall(r"^\| ([a-z ]+?) \| (?:passed|failed|skipped) \| \d+ \| (.*) \|$", text, re.MULTILINE))
    assert rows == {
        "fails": "exit code 1: broken",
        "is killed": "killed by SIGKILL: half a table",
        "breaks": "killed by SIGABRT: some numbers",
        "hangs": f"stopped after {script.LIMITS['benchmarks']} s",
        "passes": "",
    }
    assert "hangs, was running when it was stopped:\n\n- `" in text
    for name, words in (("fails", "first line"), ("is killed", "half a table"), ("passes", "all numbers")):
        assert words in (tmp_path / f"{name}.log").read_text(), "what it printed is kept"


def prepare(script, steps, folder, monkeypatch):
    """The script's main runs these steps and writes into the folder, as if there were a GPU."""
    monkeypatch.setattr(script, "why_not_here", lambda: "")
    monkeypatch.setattr(script, "stages", lambda output, stem, capability: steps)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    made = machine.provenance(CPU, "make gpu-report", 0)
    monkeypatch.setattr(machine, "slug", lambda device: "some-gpu")
    monkeypatch.setattr(machine, "provenance", lambda device, command, seed: made)
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", "--output", str(folder)])


@pytest.mark.parametrize("word", ["SIGINT", "SIGTERM"])
def test_whoever_stops_the_report_ends_its_steps_and_keeps_what_is_known(script, tmp_path, monkeypatch, word, capsys):
    child = (
        "import os, signal, time\n"
        "print('measuring', os.getpid(), flush=True)\n"
        f"os.kill({os.getpid()}, signal.{word})\n"
        "time.sleep(600)"
    )
    steps = [[program(script, "passes", "print(1)")], [program(script, "is running", child)]]
    steps.append([program(script, "never starts", "print(2)")])
    prepare(script, steps, tmp_path, monkeypatch)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert script.main() == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    text = (tmp_path / "some-gpu-report.md").read_text()
    assert "| passes | passed |" in text
    assert re.search(r"\| is running \| failed \| \d+ \| stopped together with this script; killed by SIGKILL", text)
    assert not (tmp_path / "never starts.log").exists()
    process = int((tmp_path / "is running.log").read_text().split()[1])
    assert ended(process), "it must not go on"
    assert "some-gpu-report.md" in capsys.readouterr().err


def test_a_training_step_needs_none_of_the_packages_that_read_cases():
    code = (
        "import importlib.machinery, importlib.util, sys\n"
        "absent = {'nibabel', 'monai', 'nilearn', 'pandas', 'plotly', 'scipy', 'SimpleITK', 'tqdm'}\n"
        "class Without(importlib.machinery.PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        return None if name.partition('.')[0] in absent else super().find_spec(name, path, target)\n"
        "sys.meta_path = [Without if f is importlib.machinery.PathFinder else f for f in sys.meta_path]\n"
        f"spec = importlib.util.spec_from_file_location('gpu_report', {str(SCRIPT)!r})\n"
        "script = sys.modules['gpu_report'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(script)\n"
        "script._TRAINING_STEPS, script._WARM_UP = 1, 0\n"
        "print(script.training_step('tiny', device='cpu', patch=32))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=machine.ROOT)
    assert done.returncode == 0, done.stderr
    assert "'preset': 'tiny', 'patch': 32" in done.stdout
