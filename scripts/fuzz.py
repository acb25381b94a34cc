"""``make fuzz``: the property tests with random examples, round after round, until the time is over.

    python scripts/fuzz.py --minutes 20            # all of them; a seed is drawn and printed
    python scripts/fuzz.py --seed 7 tests/data     # these, from this seed on

Each round has a seed of its own and takes the files in another order. The first failing round ends it, with the command
that repeats the failure: the same seed draws the same examples in a test by itself.
"""

import argparse
import random
import re
import secrets
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROFILE = ["-m", "hypothesis", "--hypothesis-profile=fuzz"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=[ROOT / "tests"], help="folders or files of tests")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, help="of the first round; default: drawn at random")
    parser.add_argument("--rounds", type=int, help="stop after so many; default: when the time is over")
    options = parser.parse_args(arguments)
    files = property_tests(options.paths)
    if not files:
        parser.error(f"no property tests in {', '.join(map(str, options.paths))}")
    first = secrets.randbelow(10**9) if options.seed is None else options.seed
    end = time.monotonic() + 60 * options.minutes
    print(f"{len(files)} files with property tests, {options.minutes:g} minutes, first seed {first}", flush=True)

    seed, tests, examples = first, 0, 0
    while time.monotonic() < end and (options.rounds is None or seed < first + options.rounds):
        status, text = one_round(files, seed, end - time.monotonic())
        ran, tried = tally(text)
        tests, examples = tests + ran, examples + tried
        if status not in ("passed", "out of time"):
            print(text)
            print(f"seed {seed}: {status}. To repeat it:")
            for name in re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, re.MULTILINE) or map(str, files):
                print("  " + shlex.join(["python", "-m", "pytest", *PROFILE, f"--hypothesis-seed={seed}", name]))
            return 1
        print(f"seed {seed}: {status}, {ran} tests, {tried} examples", flush=True)
        seed += 1
    print(f"seeds {first} to {seed - 1}: {tests} tests, {examples} examples, nothing found")
    return 0


def property_tests(paths: list[Path]) -> list[Path]:
    """The files that let Hypothesis draw examples."""
    files = (file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("test_*.py"))))
    return [file for file in files if re.search(r"^\s*@given\b", file.read_text(encoding="utf-8"), re.MULTILINE)]


def one_round(files: list[Path], seed: int, seconds: float) -> tuple[str, str]:
    """What became of one round, in words, and what pytest printed."""
    order = random.Random(seed).sample(files, len(files))
    options = ["-q", "-x", "-p", "no:cacheprovider", "--hypothesis-show-statistics", f"--hypothesis-seed={seed}"]
    command = [sys.executable, "-m", "pytest", *PROFILE, *options, *map(str, order)]
    run = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=_hear_interrupts
    )
    try:
        text, _ = run.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # As by hand: pytest ends the test that is running and still sums up.
        run.send_signal(signal.SIGINT)
        text, _ = run.communicate()
        # A failure that was found before counts.
        return ("failed" if re.search(r"^(FAILED|ERROR) ", text, re.MULTILINE) else "out of time"), text
    except KeyboardInterrupt:
        run.wait()
        raise
    return {0: "passed", 1: "failed"}.get(run.returncode, f"pytest ended with status {run.returncode}"), text


def _hear_interrupts() -> None:
    """In a new process: what a shell starts in its background ignores Ctrl-C, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def tally(text: str) -> tuple[int, int]:
    """Tests that drew examples, and the examples of all of them."""
    tests = len(re.findall(r"^\S+\.py::.*:$", text, re.MULTILINE))
    counts = re.findall(r"(\d+) passing,? .*?(\d+) failing,? .*?(\d+) invalid", text)
    return tests, sum(int(number) for row in counts for number in row)


if __name__ == "__main__":
    sys.exit(main())
