"""What is left of a command that was killed, and of one whose disk is full.

    python scripts/try_faults.py interruptions --seed 1        # SIGKILL at random moments, then the same command again
    python scripts/try_faults.py full-disk                     # on a small file system that fills up; needs root

`interruptions` runs each command to its end once, on tiny simulated work. Then it starts it anew, kills its group of
processes at a random moment, starts it again as its help says (with --resume where it has one), and compares all files.
`full-disk` mounts a file system of 3 MB beside what already lies there, leaves so little room that the command does not
fit, and looks for what the command promises: one sentence, status 2, and nothing lost or half-written.

The commands run in forks of this process, in which everything is imported, so that moments lie in the work. A moment
is one of the command's processor time, which a busy machine does not change. Exit status 1 if anything is not as it
must be.
"""

import argparse
import contextlib
import csv
import json
import multiprocessing
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    # Before any library starts threads of its own, whose locks a fork could take along.
    os.environ["OMP_NUM_THREADS"] = "1"

import torch
from safetensors import safe_open
from tqdm import tqdm

# All that the commands import.
import smml.cli
import smml.data
import smml.evaluation
import smml.inference
import smml.sam.training.train
import smml.study
from smml.files import write_text
from smml.models import SMML
from smml.models.checkpoint import Checkpoint, save_checkpoint
from smml.runs import made_with

RESULTS = Path(__file__).resolve().parent.parent / "results" / "faults"
COHORT_SEED = 410
# What is measured anew each time is left out of comparisons.
TIMES = {"seconds", "prior_seconds"}
# A line of a progress bar ends in its rate.
BAR = re.compile(r"[\d?] ?(s/\w+|\w+/s)[\],]|: 0\w+ \[")
# Shares of what a command writes for which there is room on its disk.
ROOMS = (0.0, 0.3, 0.7)


@dataclass(frozen=True)
class Work:
    """A command on tiny work; it writes below its working directory.

    Attributes:
        words: the command line; "{inputs}" stands for the folder of :func:`prepare`.
        again: what is added to go on after an interruption.
        until: whether the folder holds what the disk is to hold before it is full; None: what ``old`` names.
        old: files that the command replaces.
    """

    words: str
    again: str = ""
    until: Callable[[Path], bool] | None = None
    old: tuple[str, ...] = ()
    title: str = field(default="")

    @property
    def name(self) -> str:
        return self.title or self.words.partition(" ")[0]


TRAIN = (
    "train {inputs}/data run --steps 8 --checkpoint-every 1 --batch-size 1 --spacing 6 --precision float32 --ema 0.9 "
    "--validate-every 2 --holdout 0.4 --threads 1"
)
WORKS = {
    work.name: work
    for work in (
        Work(
            "simulate cohort --cases 4 --spacing 6 --workers 1",
            until=lambda folder: any(folder.rglob("*seg.nii.gz")),
        ),
        Work(TRAIN, "--resume", lambda folder: (folder / "run/checkpoint.pt").exists()),
        Work(
            "train-sam sam --steps 150 --checkpoint-every 5 --subjects 1 --slices 2 --shapes 4 --batch-size 1 "
            "--threads 1",
            "--resume",
            lambda folder: (folder / "sam/checkpoint.pt").exists(),
        ),
        Work(
            "evaluate {inputs}/data --checkpoint {inputs}/weights.pt --output scores --window 32 --threads 1",
            until=lambda folder: len(rows(folder / "scores/scores.csv")) > 1,
        ),
        Work(
            "predict --case {inputs}/data/BraTS2021_00000 --checkpoint {inputs}/weights.pt --window 32 --threads 1 "
            "--output labels.nii.gz --probabilities shares.nii.gz",
            old=("labels.nii.gz", "shares.nii.gz"),
        ),
        Work(
            "calibrate {inputs}/complete --checkpoint {inputs}/weights.pt --output calibrated.safetensors --window 32 "
            "--threads 1",
            old=("calibrated.safetensors",),
        ),
        Work("compare a={inputs}/scores b={inputs}/scores --output table.md", old=("table.md",)),
        Work(
            "study study --preset smoke --arms pair --seeds 0 --workers 1",
            until=lambda folder: len(list(folder.rglob("*seg.nii.gz"))) == 4,
        ),
        Work(
            "study {inputs}/study --report --results report",
            old=("report/study.md", "report/scores.csv.gz"),
            title="study --report",
        ),
    )
}
LONG = ("evaluate", "predict", "train", "train-sam", "simulate")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", choices=("interruptions", "full-disk"))
    parser.add_argument("--tries", type=int, default=6, help="kills of each command")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: drawn")
    parser.add_argument("--jobs", type=int, default=2, help="commands whose interruptions are tried at a time")
    parser.add_argument("--commands", default="", help="only these, joined by commas; nothing is then committed")
    options = parser.parse_args()
    if options.faults == "full-disk" and os.geteuid():
        parser.error("full-disk mounts a small file system, which needs root; run it with sudo")
    only = options.commands.split(",") if options.commands else None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that whatever is open is closed
    made = made_with()  # now: there may be other commits when this ends
    torch.set_num_threads(1)  # sums are then made in one order
    # Of its own kind of lock all forks share one, and whoever is killed while a bar is drawn would keep it for ever.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0  # a thread too
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    with tempfile.TemporaryDirectory() as place:
        inputs = prepare(Path(place) / "inputs")
        if options.faults == "interruptions":
            print(f"seed {seed}", flush=True)
            heads = ["command", "moments", "resumed equal", "finished before, kept", "strays"]
            jobs = [(name, inputs, Path(place), options.tries, seed) for name in only or LONG]
            with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
                found = pool.starmap(interrupt, jobs, chunksize=1)
        else:
            heads = ["command", "fillings", "refused", "fitted", "lost", "half-written", "strays", "the last sentence"]
            found = [fill(work, inputs, Path(place)) for name, work in WORKS.items() if name in (only or WORKS)]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 2) + "---|"]
    table = "\n".join([*lines, *(f"| {' | '.join(map(str, cells))} |" for cells, _ in found)])
    faults = [fault for _, some in found for fault in some]
    print(table, *faults, sep="\n")
    if not only:
        write_text(RESULTS / f"{options.faults}.md", page(options.faults, seed, table, faults, made))
    return bool(faults)


def prepare(inputs: Path) -> Path:
    """What the commands work on: six simulated cases at 6 mm, of two sequences, one of four, an untrained model."""
    for case in smml.data.simulate_cohort(inputs / "data", 6, spacing=6, seed=COHORT_SEED, workers=1, progress=False):
        for name in ("t1ce", "t2"):
            case.images[name].path.unlink()
    smml.data.simulate_cohort(inputs / "complete", 1, spacing=6, seed=COHORT_SEED, workers=1, progress=False)
    torch.manual_seed(0)
    model = SMML("tiny")
    save_checkpoint(Checkpoint(model.config, model.state_dict(), (6.0,) * 3, patch=32), inputs / "weights.pt")
    return inputs


# ---------------------------------------------------------------- running a command


def start(words: str, inputs: Path, folder: Path) -> int:
    """Start a command in a folder, as the leader of a new group; its output goes to files beside the folder."""
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child:
        while os.getpgid(child) != child:
            time.sleep(0.001)
        return child
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(folder)
    sys.argv = ["smml", *words.format(inputs=inputs).split()]
    status = 1
    try:
        smml.cli.main()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0
    finally:
        sys.stdout.flush()
        os._exit(status)


def run(words: str, inputs: Path, folder: Path) -> tuple[int, float]:
    """Exit status of a command, and the seconds of processor time that it took."""
    child = start(words, inputs, folder)
    try:
        _, status, usage = os.wait4(child, 0)
    except BaseException:  # a disk that is in use could not be taken away
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def kill(words: str, inputs: Path, folder: Path, when: Callable[[int], bool]) -> bool:
    """Start a command and kill its group as soon as ``when`` says so of its process; False if it ended before."""
    child = start(words, inputs, folder)
    while not when(child):
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def spent(process: int) -> float:
    """Seconds of processor time of a process so far: this is how Linux numbers the clocks of others."""
    return time.clock_gettime(~process << 3 | 2)


# ---------------------------------------------------------------- looking at files


def tree(folder: Path) -> dict[str, object]:
    """What the files of a folder say, without times; a file that cannot be read as what its name says is "damaged"."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            try:
                found[str(path.relative_to(folder))] = content(path)
            # Whatever a parser makes of half a file.
            except Exception as error:
                found[str(path.relative_to(folder))] = f"damaged: {error!r}"
    return found


def content(path: Path) -> object:
    if path.suffix == ".csv":
        return [plain(row) for row in csv.DictReader(rows(path))]
    if path.suffix == ".json":
        return plain(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".pt":
        return plain(torch.load(path, weights_only=True))
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["smml"])
            return plain([facts, {name: file.get_tensor(name) for name in file.keys()}])  # noqa: SIM118
    return path.read_bytes()


def plain(value: object) -> object:
    """Tensors as their bits; no times."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items() if name not in TIMES}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        bits = value.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), bits
    return value


def rows(path: Path) -> list[str]:
    """The lines of a file; none if it is not there."""
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []


def strays(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob(".*")]


# ---------------------------------------------------------------- killed


def finished(name: str, folder: Path) -> list[str]:
    """What is done for good, in words that change if it is done again."""
    if name == "simulate":
        return [f"{path.name} {path.stat().st_ino}" for path in folder.rglob("*seg.nii.gz")]
    if name == "evaluate":
        return [""] * ((len(rows(folder / "scores" / "scores.csv")) - 1) // 9)  # three subsets, three regions
    for path in folder.rglob("checkpoint.pt"):
        done = torch.load(path, weights_only=True)["step"]
        return [row for row in rows(path.with_name("log.csv"))[1:] if int(row.partition(",")[0]) < done]
    return []


def interrupt(name: str, inputs: Path, place: Path, tries: int, seed: int) -> tuple[list, list[str]]:
    """The row of the table, and what is wrong."""
    work = WORKS[name]
    draw = random.Random(f"{seed} {work.name}")
    status, seconds = run(work.words, inputs, place / f"{work.name}-whole")
    whole, faults, kept, done, left = tree(place / f"{work.name}-whole"), [], 0, 0, 0
    if status:
        faults.append(f"{work.name}: ended with status {status} uninterrupted")
    equal = 0
    for number in range(tries):
        folder = place / f"{work.name}-{number}"
        while True:
            # Spread over the work: each moment from a part of its own.
            moment = (number + draw.random()) / tries * seconds
            if kill(work.words, inputs, folder, lambda child, moment=moment: spent(child) >= moment):
                break
            shutil.rmtree(folder)  # this time it was faster
        where = f"{work.name}, killed after {moment:.2f} of {seconds:.2f} s"
        faults += [f"{where}: {fault}" for fault in half_written(tree(folder), whole)]
        before = finished(work.name, folder)
        status, _ = run(f"{work.words} {work.again}", inputs, folder)
        after, said = finished(work.name, folder), Path(f"{folder}.err").read_text(encoding="utf-8")
        if work.name == "evaluate":
            again = before and f"{len(before)} cases done before" not in said
        else:
            again = [one for one in before if one not in after]
        done, kept = done + len(before), kept + (0 if again else len(before))
        found, hidden = tree(folder), strays(folder)
        odd = sorted(path for path in whole.keys() | found.keys() if whole.get(path) != found.get(path))
        equal, left = equal + (not odd and not status), left + bool(hidden)
        told = f"status {status} ({lines_of(said)[-1:]})" if status else ""
        for fault, what in (("", told), ("other", odd), ("stray", hidden), ("done again", again)):
            faults += [f"{where}: {fault} {what}"] if what else []
        print(f"{where}: {len(before)} done before; {odd or 'equal'}", flush=True)
        shutil.rmtree(folder)
    return [work.name, tries, equal, f"{kept} of {done}" if work.name != "predict" else "–", left], faults


def half_written(found: dict[str, object], whole: dict[str, object]) -> list[str]:
    """Files that are not what they will be: damaged ones, and images other than those at the end."""
    return [
        f"half-written {name}"
        for name, what in found.items()
        if (isinstance(what, str) and what.startswith("damaged"))
        or (name.endswith(".nii.gz") and what != whole.get(name))
    ]


# ---------------------------------------------------------------- full


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes; it goes again in any case."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    made = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if made.returncode:
        sys.exit(f"try_faults.py: mounting a small file system needs root ({made.stderr.strip()}); run it with sudo")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def fill(work: Work, inputs: Path, place: Path) -> tuple[list, list[str]]:
    """The row of the table, and what is wrong."""
    label = work.name.replace(" ", "")
    whole_folder, there = place / f"{label}-whole", place / f"{label}-there"
    if work.until is not None:
        kill(work.words, inputs, there, lambda _: work.until(there))
    status, _ = run(work.words, inputs, whole_folder)
    if work.name == "evaluate":
        shutil.copytree(whole_folder / "scores", inputs / "scores")
    if work.name == "study":
        shutil.copytree(whole_folder / "study", inputs / "study", ignore=shutil.ignore_patterns("runs", "report"))
    for name in ("notes.txt", *work.old):
        write_text(there / name, "kept\n")
    faults = [f"{work.name}: ended with status {status} with room"] if status else []
    whole, part = tree(whole_folder), tree(there)
    written = sum((whole_folder / name).stat().st_size for name, what in whole.items() if part.get(name) != what)
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in there.rglob("*"))
    counts, sentence = dict.fromkeys(("refused", "fitted", "lost", "half", "strays"), 0), ""
    for share in ROOMS:
        with small_disk(place / f"{label}-disk", used + max(3 * 2**20, written)) as disk:
            shutil.copytree(there, disk, dirs_exist_ok=True)
            for stray in strays(disk):
                (disk / stray).unlink()
            before = {str(p.relative_to(disk)): p.read_bytes() for p in disk.rglob("*") if p.is_file()}
            state = os.statvfs(disk)
            ballast = (state.f_bavail - -(-int(share * written) // state.f_frsize)) * state.f_frsize
            if ballast > 0:
                with open(place / f"{label}-disk" / "ballast", "wb") as stream:
                    os.posix_fallocate(stream.fileno(), 0, ballast)
            status, _ = run(f"{work.words} {work.again}", inputs, disk)
            said = lines_of(Path(f"{disk}.err").read_text(encoding="utf-8"))
            (disk / "ballast").unlink(missing_ok=True)
            found, hidden = tree(disk), strays(disk)
            ends = {name: "".join(rows(disk / name))[-1:] for name in found if name.endswith(".csv")}
            now = {name: (disk / name).read_bytes() if (disk / name).exists() else b"" for name in before}
        where = f"{work.name}, room for {share:.0%} of {written} bytes"
        # In bytes as it was or gone on behind; else it was written anew, and says what it said or will say at the end.
        anew = [name for name, old in before.items() if not now[name].startswith(old)]
        lost = [name for name in anew if found.get(name) not in (part.get(name), whole.get(name))]
        half = half_written({name: what for name, what in found.items() if name not in before}, whole)
        half += [f"half a row in {name}" for name, end in ends.items() if end not in ("", "\n")]
        one = status == 2 and len(said) == 1 and said[0].startswith("smml: ")
        if status == 0:
            fitted = all(found.get(name) == what for name, what in whole.items())
            faults += [] if fitted else [f"{where}: status 0, and not all is there"]
            counts["fitted"] += 1
        elif one:
            counts["refused"], sentence = counts["refused"] + 1, said[0]
        else:
            faults.append(f"{where}: status {status}, said {said}")
        for name, what in (("lost", lost), ("half", half), ("strays", hidden)):
            counts[name] += bool(what)
            faults += [f"{where}: {name} {what}"] if what else []
        print(f"{where}: status {status}, {said[-1:]}", flush=True)
    shutil.rmtree(there)
    return [work.name, len(ROOMS), *counts.values(), sentence.replace(str(place), "…")], faults


def lines_of(text: str) -> list[str]:
    """What a command said, without its progress bars and warnings."""
    lines = map(str.strip, re.split(r"[\r\n]", text))
    return [line for line in lines if line and not line.startswith("smml: warning: ") and not BAR.search(line)]


MEANS = {
    "interruptions": (
        "SIGKILL to the whole group of processes at random moments of a command's processor time, then the same "
        "command again (`--resume` where it has one), beside a run that nobody interrupted. Equal: the same files, and "
        "in them the same tensors to the bit, labels, scores and logs; left out are seconds (in `log.csv`, the "
        "checkpoints of `train-sam` and the facts of `sam.safetensors`), and checkpoints are compared by what they "
        "hold, as the archive has a temporary name inside. Finished before: cases that were simulated or scored, steps "
        "that were in a checkpoint; kept: not done again. `predict` has nothing to go on from."
    ),
    "full-disk": (
        "A file system of 3 MB (more where more lies there, or is written), with room for a part of what the command "
        "writes. Refused: exit status 2 and one sentence on stderr, warnings and progress bars apart. Fitted: the "
        "command needed no more and all of it is there. Lost: fillings after which a file that was there is neither "
        "as it was, nor gone on behind, nor what it is at the end. Half-written: under their final name; strays: "
        "hidden files."
    ),
}


def page(faults: str, seed: int, table: str, found: list[str], made: dict) -> str:
    """The committed result."""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    command = f"python scripts/try_faults.py {faults}" + (f" --seed {seed}" if faults == "interruptions" else "")
    faulty = "".join(f"- {fault}\n" for fault in found) or "Nothing was found.\n"
    return (
        f"# {faults.replace('-', ' ').capitalize()}\n\n{MEANS[faults]} Simulated cases, cohort seed {COHORT_SEED}.\n\n"
        f"{table}\n\n{faulty}\nMade by `{command}` at commit {made['commit'][:10]}, {versions}, CPU, "
        f"{os.cpu_count()} cores, {platform.machine()}, one thread.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
