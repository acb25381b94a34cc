"""How fast a step and an inference are on a CPU, beside another tree of this project and the method's official network.

    python scripts/measure_speed.py --before FOLDER --official FOLDER

``--before`` is a checkout of an older commit; ``--official`` holds ``smml.py`` and ``layers.py`` of
github.com/banbooliang/SMML, fetched apart. What is compared runs in processes of its own that take turns, so that a
machine that slows down slows all of them down; of each the median counts. On a busy machine nothing here means much.

Writes results/speed/speed.json and speed.md: steps by preset, patch and precision, the parts of an inference, what a
user waits for (a new subset in the viewer, a SAM prior, a compiled training), what kind of work fills a step, and how
fast this machine multiplies and copies.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "results" / "speed"
# The subsets that have so many sequences: FLAIR first, as a patient would have them.
PRESENT = {1: [1, 0, 0, 0], 2: [1, 1, 0, 0], 3: [1, 1, 0, 1], 4: [1, 1, 1, 1]}
WORDS = ("float32", "bf16")
GROUPS = ("steps", "parts", "waits", "compile", "official")
CONVOLUTIONS = ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::slow_conv3d_forward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="checkout of an older commit of this project")
    parser.add_argument("--official", type=Path, help="folder with the official smml.py and layers.py")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=GROUPS, nargs="*")
    parser.add_argument("--words", choices=WORDS, nargs="*", default=WORDS, help="of the official network's rows")
    parser.add_argument("--output", type=Path, default=HOME)
    parser.add_argument("--serve", nargs=4, metavar=("WHAT", "PRESET", "EDGE", "PRECISION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*arguments.serve, arguments.threads)
        return
    wanted = arguments.only or GROUPS
    from smml.files import write_text

    path = arguments.output / "speed.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    trees = {"now": ROOT} | ({"before": arguments.before.resolve()} if arguments.before else {})
    settings = arguments.threads, arguments.repeats
    if "steps" in wanted:
        found["steps"] = [
            row("step", preset, patch, {name: (tree, word) for name, (tree, word) in contestants.items()}, *settings)
            for preset in ("tiny", "small")
            for patch in (32, 48)
            for contestants in [
                {f"{name} {word}": (tree, word) for name, tree in trees.items() for word in ("float32", "bf16")}
            ]
        ]
        found["work"] = [work(preset, 48, word, arguments.threads) for preset in ("tiny", "small") for word in WORDS]
        found["floors"] = floors(arguments.threads)
    if "parts" in wanted:
        found["parts"] = [
            row(what, "paper", 64, {f"{name} {word}": (tree, word) for name, tree in trees.items()}, *settings)
            for what in ("encode 4", "fuse 4", "fuse 1")
            for word in WORDS
        ]
    if "waits" in wanted:
        contestants = {f"{name} float32": (tree, "float32") for name, tree in trees.items()}
        found["waits"] = [
            row(what, who, 96, contestants, *settings)
            for what, who in (("new subset", "small"), ("prior", "tiny SAM"), ("priors", "tiny SAM"))
        ]
    if "compile" in wanted:
        found["compile"] = [compiled("tiny", 32, word, arguments.threads) for word in WORDS]
    if "official" in wanted and arguments.official:
        official = arguments.official.resolve()
        fresh = [
            row(
                what,
                "paper",
                128,
                {f"now {word}": (ROOT, word)}
                | {f"official {word}": (official, word), f"official {word}, memory kept": (official, word)},
                *settings,
            )
            for word in arguments.words
            for what in ("segment 4", "segment 3", "segment 2", "segment 1")
        ]
        if "float32" in arguments.words:
            # Fifteen passes of the official network are two minutes, and they vary little.
            contestants = {"now float32": (ROOT, "float32"), "official float32": (official, "float32")}
            fresh.append(row("subsets", "paper", 128, contestants, arguments.threads, 2))
        replaced = [(each["what"], *each["seconds"]) for each in fresh]
        kept = [each for each in found.get("official", []) if (each["what"], *each["seconds"]) not in replaced]
        found["official"] = kept + fresh
    arguments.output.mkdir(parents=True, exist_ok=True)
    made = provenance(arguments)
    # Rows that were kept keep their contestant.
    made["official"] = made["official"] or found.get("made by", {}).get("official")
    found["made by"] = made
    write_text(path, json.dumps(found, indent=1) + "\n")
    write_text(arguments.output / "speed.md", table(found))
    print(table(found))


def row(
    what: str, preset: str, edge: int, contestants: dict[str, tuple[Path, str]], threads: int, repeats: int
) -> dict:
    """Median seconds of each contestant, all of them taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    with contextlib.ExitStack() as stack:
        go = {
            name: stack.enter_context(
                server(
                    [__file__, "--threads", str(threads), "--serve", what, preset, str(edge), word],
                    tree,
                    "memory kept" in name,
                )
            )
            for name, (tree, word) in contestants.items()
        }
        for _ in range(repeats):
            for name, once in go.items():
                seconds[name].append(float(once()))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(what, preset, edge, {name: round(median, 3) for name, median in medians.items()}, flush=True)
    return {"what": what, "preset": preset, "edge": edge, "commit": commit(ROOT), "seconds": medians, "all": seconds}


@contextlib.contextmanager
def server(words: list[str], tree: Path, kept: bool = False) -> Iterator[Callable[[], str]]:
    """A process of ``tree`` that says "ready", does its work at every call, and answers with a line.

    ``words``: a script and its arguments. ``kept``: it keeps the memory that it frees, as ours does by itself
    (:func:`smml.devices.keep_freed_memory`).
    """
    environment = {name: word for name, word in os.environ.items() if not name.startswith("MALLOC_")}
    environment |= {"PYTHONPATH": str(tree)}
    if kept:
        environment |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, *words], env=environment, cwd=tree, **pipes) as process:

        def once() -> str:
            process.stdin.write("go\n")
            process.stdin.flush()
            return process.stdout.readline()

        if process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{tree}: {' '.join(words)} cannot be run, see above")
        yield once
        process.stdin.close()


def serve(what: str, preset: str, edge: str, precision: str, threads: int) -> None:
    """Prepare one piece of work, then do it once for every line that comes in."""
    # The script's own folder would come first: another smml than that of the tree must not.
    sys.path = [folder for folder in sys.path if Path(folder or ".").resolve() != ROOT / "scripts"]
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    work = prepare(what, preset, int(edge), precision)
    for _ in range(1 if what == "subsets" else 2):
        work()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        work()
        print(time.perf_counter() - began, flush=True)


def prepare(what: str, preset: str, edge: int, precision: str) -> Callable[[], object]:
    """The work itself.

    "step"; of one student "encode K", "fuse K", "segment K" (K sequences) or "subsets"; "new subset" of a volume that
    is encoded; SAM's "prior" of one sequence from its slices, or the "priors" of three regions for all four.
    """
    import torch

    if what == "new subset":
        return new_subset(preset, edge)
    if what in ("prior", "priors"):
        return sam_prior(edge, every=what == "priors")

    name, _, number = what.partition(" ")
    x = torch.randn(2 if name == "step" else 1, 4, edge, edge, edge)
    if name == "step":
        return step(preset, edge, precision, x)

    def quick(function: Callable[[], object]) -> Callable[[], object]:
        def go() -> object:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                return function()

        return go

    masks = {k: torch.tensor([flags], dtype=torch.bool) for k, flags in PRESENT.items()}
    every = torch.tensor([[n >> m & 1 for m in range(4)] for n in range(1, 16)], dtype=torch.bool)
    if (Path.cwd() / "smml.py").exists():  # the official network
        import smml

        model = smml.Model(num_cls=4).eval()
        if name == "subsets":
            return quick(lambda: [model(x, row[None]) for row in every])
        return quick(lambda: model(x, masks[int(number)]))
    from smml import devices
    from smml.models import Student

    if hasattr(devices, "keep_freed_memory"):
        devices.keep_freed_memory()
    student = Student(preset).eval()
    if name == "subsets":
        return quick(lambda: one_by_one(student, student.share(student.encode(x, masks[4])), every))
    mask = masks[int(number)]
    if name == "encode":
        return quick(lambda: student.encode(x, mask))
    if name == "fuse":
        encoding = quick(lambda: student.encode(x, mask))()
        return quick(lambda: student.fuse(encoding, mask))
    return quick(lambda: student(x, mask))


def new_subset(preset: str, edge: int) -> Callable[[], object]:
    """What the viewer's worker does for a subset that it has not seen, in windows of 64 voxels."""
    import numpy as np

    from smml import Predictor
    from smml.data.case import Case
    from smml.models import SMML

    predictor = Predictor(SMML(preset), None, window=64)
    random = np.random.default_rng(0)
    volumes = {name: random.uniform(1, 100, (edge,) * 3).astype(np.float32) for name in ("flair", "t1ce", "t1", "t2")}
    case = Case("noise", volumes, None, np.diag([2.0, 2.0, 2.0, 1.0]), "brats2021")
    encoding = predictor.encode(case)
    turns = itertools.cycle(("FLAIR+T1ce", "FLAIR+T1ce+T2"))
    return lambda: predictor.segment(encoding, next(turns))


def sam_prior(edge: int, *, every: bool) -> Callable[[], object]:
    """The tiny SAM, untrained, on a ball of noise with nested balls as its prompts; nothing is kept between calls."""
    import torch

    from smml.sam import SAMPrior, build_tiny

    grid = torch.stack(torch.meshgrid(*[torch.arange(float(edge))] * 3, indexing="ij"))
    brain = (grid - (edge - 1) / 2).square().sum(dim=0) < (0.46 * edge) ** 2
    image = torch.randn(1, 4, *brain.shape) * brain
    distance = (grid - edge / 2).square().sum(dim=0).sqrt()
    labels = sum((distance < radius).long() for radius in (24, 16, 12))
    probabilities = torch.nn.functional.one_hot(torch.tensor([0, 2, 1, 3])[labels], 4).movedim(-1, 0)[None].float()
    sam = build_tiny().eval().requires_grad_(False)
    mask = torch.tensor([[True] * 4 if every else [True, False, False, False]])
    return lambda: SAMPrior(sam, planes=["axial"])(image, probabilities, mask)


def compiled(preset: str, edge: int, precision: str, threads: int) -> dict:
    """Seconds of a step as it is and with ``--compile``, and how long the compiled one takes to start."""
    import torch

    from smml.devices import keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    x = torch.randn(2, 4, edge, edge, edge)
    plain = step(preset, edge, precision, x)
    quick = step(preset, edge, precision, x, compile=True)
    began = time.perf_counter()
    quick()
    first = time.perf_counter() - began
    times: dict[str, list[float]] = {"plain": [], "compiled": []}
    plain()
    quick()
    for _ in range(10):
        for name, once in (("plain", plain), ("compiled", quick)):
            began = time.perf_counter()
            once()
            times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print("compile", preset, edge, precision, medians, round(first, 1), flush=True)
    return {"preset": preset, "edge": edge, "precision": precision, "first step": first, **medians}


def one_by_one(student, shares, subsets) -> None:
    """Every subset, one after the other, as the predictor does with volumes of this size."""
    for subset in subsets:
        student.segment(shares, subset[None])


def step(preset: str, edge: int, precision: str, x, *, compile: bool = False) -> Callable[[], object]:
    """One optimiser step of both branches on a batch of two, with the default losses at full weight."""
    import torch

    from smml.models import SMML
    from smml.ranks import Ranks
    from smml.training import TrainingConfig
    from smml.training.step import take_step

    model = SMML(preset).train()
    # What the trainer of either tree takes.
    fused = {"fused": True} if "fused=True" in (Path.cwd() / "smml" / "training" / "trainer.py").read_text() else {}
    optimiser = torch.optim.Adam(model.parameters(), 1e-4, weight_decay=1e-4, amsgrad=True, **fused)
    config = TrainingConfig(preset=preset, patch=edge, precision=precision, steps=1000, compile=compile)
    if compile:
        from smml.training.step import accelerate

        accelerate(model, config)
    masks = torch.tensor([[[1, 1, 0, 1], [1, 0, 0, 0]], [[0, 1, 1, 0], [1, 1, 1, 1]]], dtype=torch.bool)
    batch = {
        "image": x,
        "label": torch.randint(0, 4, (2, edge, edge, edge), dtype=torch.uint8),
        "masks": masks,
        "available": torch.ones(2, 4, dtype=torch.bool),
    }
    return lambda: take_step(model, optimiser, [batch], config, 500, Ranks())


def work(preset: str, edge: int, precision: str, threads: int) -> dict:
    """Share of each kind of work in a step, by the profiler: one thread, so that no time is counted twice."""
    import torch

    os.chdir(ROOT)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    once = step(preset, edge, precision, torch.randn(2, 4, edge, edge, edge))
    once()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        once()
    torch.set_num_threads(threads)
    events = {event.key: event for event in profile.key_averages()}
    whole = sum(event.self_cpu_time_total for event in events.values())

    def share(*names: str, own: bool = False) -> float:
        kind = "self_cpu_time_total" if own else "cpu_time_total"
        return sum(getattr(events[name], kind) for name in names if name in events) / whole

    convolution = share(*CONVOLUTIONS, own=True)
    layers = share("_PreNormConvolution", "_PreNormConvolutionBackward", "_Convolution", "_ConvolutionBackward")
    return {
        "preset": preset,
        "edge": edge,
        "precision": precision,
        "convolution": convolution,
        "norm, activation and border": max(0.0, layers - convolution),
        "interpolation": share("_Double", "_DoubleBackward"),
        "optimiser": share("Optimizer.step#Adam.step"),
    }


def floors(threads: int) -> dict:
    """GFLOP/s of a matrix product and GB/s of a copy."""
    import torch

    torch.set_num_threads(threads)

    def best(function: Callable[[], object]) -> float:
        times = []
        for _ in range(8):
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
        return min(times)

    rates = {}
    for word, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(2048, 2048).to(dtype)
        rates[f"GFLOP/s {word}"] = 2 * 2048**3 / best(lambda a=a: a @ a) / 1e9
    source = torch.randn(2**26)
    target = torch.empty_like(source)
    rates["GB/s copied"] = 2 * source.numel() * 4 / best(lambda: target.copy_(source)) / 1e9
    return rates


def commit(folder: Path | None) -> str | None:
    """The commit of a checkout."""
    if folder is None:
        return None
    run = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    return run.stdout.strip() or None


def provenance(arguments: argparse.Namespace) -> dict:
    """Commits, versions and hardware."""
    return {
        "command": "python scripts/measure_speed.py --before FOLDER --official FOLDER",
        "commit": commit(ROOT),
        "before": commit(arguments.before),
        "official": "banbooliang/SMML d40154138dc0e7cc0ab7e7413ee4e51332b3ca8f" if arguments.official else None,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        **machine(),
    }


def machine() -> dict:
    """Versions and hardware."""
    import torch

    cpu = torch.cpu.get_capabilities().get("cpu_name") if hasattr(torch.cpu, "get_capabilities") else None
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": f"{cpu or platform.processor()}, {os.cpu_count()} cores",
    }


def table(found: dict) -> str:
    """The page."""
    made = found["made by"]
    lines = [
        "# Speed on a CPU",
        "",
        f"`{made['command']}`, {made['threads']} threads, medians of {made['repeats']} (of two for all 15 subsets), "
        f"contestants taking turns; {made['processor']}, torch {made['torch']}. Commit {made['commit']} (that of "
        f"each row is in speed.json), before: {made['before']}; official network: {made['official']}. "
        "Random volumes; nothing here depends on what they show.",
        "",
    ]
    if "steps" in found:
        lines += [
            "## A training step",
            "",
            "Two patches, both branches. Seconds, and how many times faster than before in float32.",
        ]
        lines += ["", *rows_of(found["steps"], "before float32")]
        lines += ["", "Share of each kind of work in a step, one thread:", ""]
        kinds = [key for key in found["work"][0] if key not in ("preset", "edge", "precision")]
        lines += [f"| step | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
        for each in found["work"]:
            cells = " | ".join(f"{100 * each[kind]:.0f} %" for kind in kinds)
            lines.append(f"| {each['preset']}, {each['edge']}³, {each['precision']} | {cells} |")
        rates = ", ".join(f"{value:.0f} {name}" for name, value in found["floors"].items())
        lines += ["", f"This machine at its best: {rates}.", ""]
    if "parts" in found:
        lines += ["## Parts of an inference", "", "One student of `paper`, 64³, by the number of sequences.", ""]
        lines += rows_of([r for r in found["parts"] if "now float32" in r["seconds"]], "before float32")
        lines += ["", *rows_of([r for r in found["parts"] if "now bf16" in r["seconds"]], "before bf16"), ""]
    if "waits" in found:
        lines += ["## What a user waits for", ""]
        lines += [
            "96³ voxels. A new subset of what is encoded (`small`, both branches, windows of 64); the tiny SAM's prior "
            "of one sequence, and those of all four, three regions each, nothing kept from before.",
            "",
        ]
        lines += [*rows_of(found["waits"], "before float32"), ""]
    if "compile" in found:
        lines += ["## `--compile`", "", "A training step, two patches. The first compiled step includes compiling.", ""]
        lines += ["| step | plain | compiled | first compiled step | pays after |", "|---" * 5 + "|"]
        for each in found["compile"]:
            gain = each["plain"] - each["compiled"]
            pays = f"{(each['first step'] - each['plain']) / gain:.0f} steps" if gain > 0 else "never"
            lines.append(
                f"| {each['preset']}, {each['edge']}³, {each['precision']} | {each['plain']:.3f} s | "
                f"{each['compiled']:.3f} s | {each['first step']:.0f} s | {pays} |"
            )
        lines.append("")
    if "official" in found:
        lines += ["## Beside the official network", ""]
        lines += ["One student of `paper` and the official network, 128³, evaluation, by the number of sequences."]
        lines += ["Ours keeps the memory that it frees; the official network as it is, and with that switched on."]
        lines += ["In brackets: how many times as fast as the official network as it is.", ""]
        single = [r for r in found["official"] if r["what"] != "subsets"]
        lines += rows_of([r for r in single if "now float32" in r["seconds"]], "official float32")
        lines += ["", "All 15 subsets: ours encodes once; the official network does it all for each.", ""]
        lines += rows_of([r for r in found["official"] if r["what"] == "subsets"], "official float32")
        lines += ["", *rows_of([r for r in single if "now bf16" in r["seconds"]], "official bf16"), ""]
    return "\n".join(lines).rstrip() + "\n"


def rows_of(rows: list[dict], against: str) -> list[str]:
    """A Markdown table: seconds of every contestant, and its ratio to one of them."""
    names = list(rows[0]["seconds"]) if rows else []
    lines = [f"| work | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for each in rows:
        base = each["seconds"].get(against)
        cells = [
            f"{seconds:.3f}" + (f" ({base / seconds:.2f}x)" if base and name != against else "")
            for name, seconds in each["seconds"].items()
        ]
        lines.append(f"| {each['what']}, `{each['preset']}`, {each['edge']}³ | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
