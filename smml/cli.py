"""The command ``smml``: simulate, train, train-sam, evaluate, calibrate, intervals, compare, study, predict, info.

Imports of heavy modules happen inside the commands, so that ``smml --help`` answers at once.
"""

import io
import os
import sys
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from smml.config_command import configured
from smml.errors import InputError, LostProcess, TrainingDiverged, one_line
from smml.failures import explain
from smml.launcher import own_place

app = typer.Typer(
    name="smml",
    help="Brain-tumour segmentation from whatever MRI sequences a patient has. For research and teaching; not a "
    "medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_FAULT = (
    "this is a fault of smml, not of what it was given: please report it as an issue of the repository that smml comes "
    "from, with the command, the lines above and those of `smml info`"
)

_format_warning = warnings.formatwarning

DeviceOption = Annotated[str, typer.Option(help="torch device, for example cpu or cuda.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to PyTorch.")]
ReadAsOption = Annotated[
    str | None,
    typer.Option(
        "--layout", help="Read the names as this data set's; needed where two with other label values share names."
    ),
]
DecisionOption = Annotated[
    str,
    typer.Option(
        help="How labels are made: own (the checkpoint's rule), argmax, or expected-dice, which calls more where the "
        "model hesitates and leaves out small parts that it is not sure of."
    ),
]
CheckpointOption = Annotated[str, typer.Option(help="Run folder, checkpoint file or name of shipped weights.")]
RefineOption = Annotated[
    bool | None,
    typer.Option("--refine/--no-refine", help="Refine with SAM's priors; by default if the checkpoint can."),
]


def main() -> None:
    """Entry point: bad input and limits of the machine end in one sentence on stderr and exit status 2.

    A traceback is left for faults of the program alone, with what to do about them.
    """
    warnings.formatwarning = _warning_line
    for stream in (sys.stdout, sys.stderr):
        # A sign that a terminal's encoding lacks must not cost what was computed.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _refuse_empty(sys.argv[1:])
        app()
    except TrainingDiverged as error:
        sys.stderr.write(f"smml: {error}\n")
        sys.exit(1)
    except LostProcess as error:
        sys.stderr.write(f"smml: {error}\n")
        # The launcher ends this process anyhow, and what is left of the group could make a tidy end wait for the dead.
        sys.stderr.flush()
        os._exit(1)
    except SystemExit as stop:
        if stop.code == 130:  # typer's answer to Ctrl-C
            sys.stderr.write("smml: interrupted; finished files are whole, and nothing half-written is left\n")
        raise
    except Exception as error:
        said = explain(error)
        if said is None:
            traceback.print_exc()
            sys.stderr.write(f"smml: {_who()}{_FAULT}\n")
            sys.exit(1)
        sys.stderr.write(f"smml: {_who()}{said}\n")
        sys.exit(2)


# Options whose own check of an empty value lists the names that they take, and those that empty says something to.
_KNOW_EMPTY = ("--modalities", "--layout", "--published", "--arms", "--seeds", "--refinement", "--validation")


def _refuse_empty(words: list[str]) -> None:
    """An empty word is no absent one: it comes from a variable of the shell that is not set, or misspelt."""
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.partition("=")
        if not word:
            name = before if before.startswith("--") and "=" not in before else "an argument"
        elif option.startswith("--") and equals and not value:
            name = option
        else:
            continue
        if name not in _KNOW_EMPTY:
            raise InputError(
                f"{name}: expected a value, found an empty one; give it, or leave it out (was a variable of the shell "
                "not set?)"
            )


def _warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """What the package warns of as a sentence; a warning of another keeps its place in the code."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        return f"smml: warning: {one_line(str(message))}\n"
    return _format_warning(message, category, filename, lineno, line)


def _print_version(wanted: bool) -> None:
    if wanted:
        import smml

        typer.echo(f"smml {smml.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and end.")
    ] = False,
) -> None:
    """What belongs to no command; the help of the whole is that of ``app``."""


@app.command()
def simulate(
    output: Annotated[Path, typer.Argument(help="Folder to make or to complete.")],
    cases: Annotated[int, typer.Option(help="How many subjects.")] = 24,
    spacing: Annotated[float, typer.Option(help="Voxel edge in mm.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Cohort seed; other seeds share no subject.")] = 0,
    layout: Annotated[str, typer.Option(help="Data set whose file names and label values are used.")] = "simulated",
    look: Annotated[str, typer.Option(help="typical (protocols as they are) or varied (for training).")] = "typical",
    first_id: Annotated[int, typer.Option(help="Number in the first case's id.")] = 0,
    device: DeviceOption = "cpu",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 uses all cores.")] = 0,
) -> None:
    """Write a simulated cohort: real anatomy, grown tumours, four sequences. Not patient data."""
    from smml.data import simulate_cohort

    made = simulate_cohort(
        output, cases, spacing=spacing, seed=seed, layout=layout, look=look, first_id=first_id, device=device,
        workers=workers or None,
    )  # fmt: skip
    typer.echo(f"{len(made)} simulated cases in {output} ({layout}, look {look}, {spacing:g} mm, seed {seed})")


def _train(
    data: Annotated[Path, typer.Argument(help="Folder of labelled cases, any supported layout.")],
    output: Annotated[Path, typer.Argument(help="Folder of the run.")],
    options: dict[str, Any],
    weights: Annotated[str, typer.Option(help="Start from a checkpoint's weights instead of random ones.")] = "",
    threads: ThreadsOption = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was interrupted.")] = False,
    layout: ReadAsOption = None,
) -> None:
    """Train two students under different modality masks that teach each other; with torchrun, over many processes."""
    from smml.data import find_cases
    from smml.training import TrainingConfig
    from smml.training import train as run
    from smml.training.config import RUN_FACTS

    _use_threads(threads)
    weights = weights or options.get("weights") or ""
    config = TrainingConfig.from_dict({name: value for name, value in options.items() if name not in RUN_FACTS})
    cases = data if layout is None else find_cases(data, layout)
    result = run(cases, output, config, weights=weights or None, resume=resume)
    if _speaks():
        typer.echo(_how_it_ended(result, config))


def _training_options() -> tuple[type, frozenset[str]]:
    from smml.training.config import RUN_FACTS, TrainingConfig

    return TrainingConfig, RUN_FACTS


@app.command(cls=configured(_train, _training_options), help=_train.__doc__)
def train() -> None:
    """Listed by its help alone: its options are looked up when it is called."""


@app.command()
def evaluate(
    data: Annotated[Path, typer.Argument(help="Folder of cases; those without a segmentation are left out.")],
    checkpoint: CheckpointOption = "small",
    output: Annotated[Path, typer.Option(help="Folder for scores.csv, table.md and table.html.")] = Path("evaluation"),
    cases: Annotated[int, typer.Option(min=0, help="Only the first N labelled cases; 0 takes all.")] = 0,
    window: Annotated[int, typer.Option(min=0, help="Edge of the sliding window; 0 takes the checkpoint's.")] = 0,
    refine: RefineOption = None,
    penalty: Annotated[
        bool, typer.Option("--penalty", help="HD95 of 373.13 mm where one region is empty, instead of leaving it out.")
    ] = False,
    lesion_wise: Annotated[
        str | None,
        typer.Option(help="Also score lesion by lesion, by the rules of 2023 or 2026; the year must be named."),
    ] = None,
    precision: Annotated[str, typer.Option(help="float32, or bf16 for autocast of the networks.")] = "float32",
    decision: DecisionOption = "own",
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Do not score: time the subsets of the first case, or the mean of --cases."),
    ] = False,
    layout: ReadAsOption = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 0,
) -> None:
    """Score a model on the 15 modality subsets: Dice, HD95 and NSD of WT, TC and ET.

    The rows of each case are in scores.csv as soon as it is done; the same command goes on behind them.
    """
    import math

    from smml import evaluation
    from smml.data import find_cases
    from smml.evaluation.lesions import check_rules
    from smml.evaluation.metrics import CHALLENGE_PENALTY
    from smml.evaluation.report import check_report, on_screen
    from smml.locks import claimed
    from smml.ranks import start_ranks

    if lesion_wise is not None:
        check_rules(lesion_wise)
    _use_threads(threads)
    if profile:
        predictor = _predictor(checkpoint, device, window, refine=False, precision=precision)
        _print_profile(predictor, find_cases(data, layout)[: cases or 1])
        return
    with start_ranks(device) as ranks:
        # Before the model, which takes longer to load, and long before the scores: what forbids them is told at once.
        check_report(output)
        found = _labelled(data, cases, layout)
        predictor = _predictor(checkpoint, str(ranks.device), window, refine, precision, decision)
        ranks.agree({"cases": [case.id for case in found], "checkpoint": checkpoint})
        one_empty = CHALLENGE_PENALTY if penalty else math.nan
        scores = evaluation.evaluate(
            predictor,
            found,
            one_empty=one_empty,
            lesion_wise=lesion_wise,
            keep=output,
            ranks=ranks,
            progress=ranks.first,
        )
    if not ranks.first:
        return
    simulated = " (simulated)" if (data / "simulated.json").exists() else ""
    # First on screen: a disk that takes no more must not cost the sight of what took hours.
    typer.echo(f"{on_screen(scores)}\n\n{scores.protocol}")
    with claimed(output):
        csv, markdown, html = evaluation.write_report(scores, output, f"{checkpoint} on {data.name}{simulated}")
    typer.echo(f"scores in {csv}, tables in {markdown}, and to look at in {html}")


@app.command()
def calibrate(
    data: Annotated[Path, typer.Argument(help="Folder of cases; those without a segmentation are left out.")],
    checkpoint: CheckpointOption = "small",
    output: Annotated[
        Path | None,
        typer.Option(help="Fit temperatures, and write the weights with them here: .safetensors. Without: measure."),
    ] = None,
    cases: Annotated[int, typer.Option(min=0, help="Only the first N labelled cases; 0 takes all.")] = 0,
    window: Annotated[int, typer.Option(min=0, help="Edge of the sliding window; 0 takes the checkpoint's.")] = 0,
    layout: ReadAsOption = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 0,
) -> None:
    """Expected calibration error by region and number of sequences; with --output, fit temperatures first.

    Fit on cases that the model was not trained on, and measure on others whether the error falls: what is fitted is the
    likelihood. Labels are not changed by temperatures.
    """
    from smml import evaluation
    from smml.models.checkpoint import load_checkpoint, save_checkpoint

    _use_threads(threads)
    source = load_checkpoint(checkpoint)
    if output is not None:
        _check_calibrated(output, checkpoint)
    found = _labelled(data, cases, layout)
    # Temperatures are of the students, so SAM need not be there.
    predictor = _predictor(checkpoint, device, window, refine=False)
    if output is None:
        before, after = evaluation.measure_calibration(predictor, found)
        temperatures = predictor.temperatures or (1.0,) * len(before.errors())
        where = f"every voxel of the brain, {len(found)} cases"
    else:
        fitted = evaluation.fit_temperatures(predictor, found)
        before, after, temperatures = fitted.before, fitted.after, fitted.temperatures
        where = f"a sample of the brains' voxels, the same {len(found)} cases that the temperatures were fitted on"
    typer.echo(f"expected calibration error in per cent, {where}\n")
    typer.echo(evaluation.format_calibration(before, after, temperatures))
    if output is not None:
        save_checkpoint(replace(source, temperatures=temperatures), output)
        typer.echo(f"\nweights with their temperatures in {output}; measure them on other cases")
    elif predictor.temperatures is None:
        typer.echo(f"\n{checkpoint} has no temperatures; fit some on other cases with --output")


@app.command()
def intervals(
    scores: Annotated[Path, typer.Argument(help="Folder that smml evaluate wrote for this checkpoint.")],
    checkpoint: CheckpointOption = "small",
    output: Annotated[
        Path | None,
        typer.Option(help="Fit to these scores, and write the weights with it here: .safetensors. Without: measure."),
    ] = None,
) -> None:
    """Intervals of volumes, and which scan is worth most next, from scores; with --output, fit them.

    Fit on scores of cases that the model was not trained on, at least 39 with all sequences and better 200; measure on
    scores of others whether 90 % of the true volumes lie in their intervals. smml predict then prints both.
    """
    from smml import evaluation
    from smml.evaluation.kept import check_made_by
    from smml.inference import Predictor
    from smml.models.checkpoint import load_checkpoint, save_checkpoint

    source = load_checkpoint(checkpoint)
    if output is not None:
        _check_calibrated(output, checkpoint)
    check_made_by(scores, Predictor.from_checkpoint(checkpoint).facts())
    found = evaluation.Scores.read(scores)
    if output is None:
        if source.intervals is None or source.gains is None:
            raise InputError(
                f"{checkpoint}: has no intervals to measure; fit some with --output to the scores of other cases"
            )
        fitted, gains, where = source.intervals, source.gains, "these cases"
    else:
        fitted, gains = evaluation.fit_intervals(found), evaluation.fit_gains(found)
        where = f"the same {fitted.cases} cases that the intervals were fitted on"
    typer.echo(f"true volumes that lie in their 90 % interval, and its median length, {where}\n")
    typer.echo(evaluation.format_intervals(evaluation.measure_intervals(found, fitted)))
    typer.echo(f"\nwhether the sequence that is named next raises the mean Dice most, {where}\n")
    typer.echo(evaluation.format_next_scan(evaluation.measure_next_scan(found, gains)))
    if output is not None:
        typer.echo(f"\nwhat a further sequence brings to the mean Dice, and by region, {gains.cases} cases\n")
        typer.echo(evaluation.format_gains(gains))
        save_checkpoint(replace(source, intervals=fitted, gains=gains), output)
        typer.echo(f"\nweights with their intervals in {output}; measure them on the scores of other cases")


@app.command()
def compare(
    results: Annotated[
        list[str],
        typer.Argument(
            help="NAME=FILE or NAME=FOLDER, or the path alone; first: base. Files of smml evaluate, MiMoSe, nnU-Net "
            "(summary.json) and brats-evaluation; behind the last two what was given, as in nnunet=summary.json@all."
        ),
    ],
    published: Annotated[
        str | None,
        typer.Option(help="Add published means of brats2015, brats2018, brats2020 or brats2023; for results on these."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Also write the tables to this file: a page if it ends in .html, otherwise Markdown."),
    ] = None,
) -> None:
    """Place results side by side: Dice and HD95 over the subsets, differences with 95 % intervals."""
    from smml import evaluation
    from smml.files import check_target, write_text

    if output is not None:
        check_target(output)
    table = evaluation.compare(evaluation.read_named_results(results))
    reference = None if published is None else evaluation.published(published, table.pairs)
    text = evaluation.format_comparison(table, reference)
    typer.echo(text)
    if output is not None:
        as_page = output.suffix.lower() in (".html", ".htm")
        write_text(output, evaluation.comparison_page(table, reference) if as_page else text + "\n")


@app.command()
def study(
    output: Annotated[Path, typer.Argument(help="Folder of the study, made or completed.")],
    preset: Annotated[str, typer.Option(help="Sizes: cpu, cpu2 (two cores), probe, probe2, gpu or smoke.")] = "cpu",
    arms: Annotated[str | None, typer.Option(help="Only these arms, such as pair,both; default: the preset's.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Only these of the preset's seeds, such as 0,2.")] = None,
    report: Annotated[bool, typer.Option("--report", help="Train nothing; write the report of what is there.")] = False,
    results: Annotated[
        Path | None,
        typer.Option(help="Folder of the report; default: OUTPUT/report. The trainings of one that is there count."),
    ] = None,
    patients: Annotated[
        Path | None, typer.Option(help="Labelled cases on which every training is scored too; no name is kept.")
    ] = None,
    device: DeviceOption = "cpu",
    workers: Annotated[int, typer.Option(min=0, help="Trainings side by side; 0: one a core, on a GPU one.")] = 0,
) -> None:
    """Train and score the arms of the ablation study, from where it was left, and report differences with intervals."""
    from smml.study import read_study, run_study, write_study
    from smml.study.report import check_report_folder

    results = results or output / "report"
    check_report_folder(results, output)
    if not report:
        chosen = [_whole_number("seeds", seed) for seed in seeds.split(",")] if seeds is not None else None
        import torch

        workers = workers or (torch.get_num_threads() if device == "cpu" else 1)
        names = arms.split(",") if arms is not None else None
        # It goes on from what was committed of it, in another folder and on another machine.
        run_study(
            output, preset, arms=names, seeds=chosen, device=device, workers=workers, patients=patients, report=results
        )
    found = read_study(output, results)
    path = write_study(found, results, f"Ablation study `{found.settings['preset']}`, simulated cases")
    typer.echo(path.read_text(encoding="utf-8"))
    typer.echo(f"written to {path}")


@app.command()
def predict(
    output: Annotated[
        Path, typer.Option(help="Segmentation to write: .nii.gz, .nii or .mha; for a cohort a folder, made if needed.")
    ],
    cohort: Annotated[
        Path | None,
        typer.Argument(help="Folder of cases, also of several data sets; all are segmented. Instead of --case."),
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option(help="Case folder, or image files; repeat it for several files.")
    ] = None,
    modalities: Annotated[
        str | None, typer.Option(help="Which to use, such as flair,t2; default: all there are.")
    ] = None,
    checkpoint: CheckpointOption = "small",
    refine: RefineOption = None,
    probabilities: Annotated[
        Path | None,
        typer.Option(
            help="Also write the class probabilities, a 4D NIfTI; for a cohort name a folder. Volumes in the order "
            "background, NCR/NET, ED, ET (BraTS 2015: background, NCR, ED, NET, ET), whatever the label values; the "
            "header's descrip names each with its label value."
        ),
    ] = None,
    align: Annotated[
        str | None,
        typer.Option(help="Sequence to whose grid the others are resampled, such as t1ce; for several grids."),
    ] = None,
    register: Annotated[
        bool,
        typer.Option("--register", help="With --align: first find how the head moved; writes OUTPUT_*.tfm."),
    ] = False,
    layout: Annotated[
        str | None,
        typer.Option(help="Data set whose label values are written; for a cohort, whose names are read too."),
    ] = None,
    output_layout: Annotated[
        str, typer.Option(help="For a cohort: own (names and label values of each data set) or bids (a derivative).")
    ] = "own",
    workers: Annotated[
        int, typer.Option(min=0, help="For a cohort: processes of one thread each; 0: one a core; 1: this one alone.")
    ] = 1,
    window: Annotated[int, typer.Option(min=0, help="Edge of the sliding window; 0 takes the checkpoint's.")] = 0,
    decision: DecisionOption = "own",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 0,
) -> None:
    """Segment one case, or each of a folder, from the named modalities; only their files are read.

    Labels come out in the grid, orientation and label values of the input; with --align in those of the sequence named.
    A cohort also gets cases.csv and cases.html: volumes, sequences used, warnings, why a case was left out (exit status
    1), and a slice of each. The same command again goes on; with torchrun, over many processes.
    """
    from smml.data import REGIONS, AlignedCase, align_case, find_case, read_case
    from smml.data.layouts import warn_of_release
    from smml.modalities import MODALITIES, parse_subset, subset_name

    if (cohort is None) == (not case):
        raise InputError(
            "predict: expected a folder of cases, as in smml predict COHORT --output FOLDER, or one case, as in smml "
            f"predict --case CASE --output FILE; found {'neither' if cohort is None else 'both'}"
        )
    _use_threads(threads)
    wanted = None if modalities is None else parse_subset(modalities)
    if register and align is None:
        raise InputError("--register: expected --align too, with the sequence to register to, such as --align t1ce")
    if cohort is not None:
        _predict_cohort(
            cohort,
            output,
            checkpoint,
            device,
            window,
            refine,
            decision,
            modalities=wanted,
            align=align,
            register=register,
            layout=layout,
            output_layout=output_layout,
            probabilities=probabilities,
            workers=workers or os.cpu_count() or 1,
        )
        return
    if output_layout != "own" or workers != 1:
        raise InputError(
            f"--{'workers' if workers != 1 else 'output-layout'}: is for a cohort; leave it out with --case"
        )
    assert case  # one of both is given
    # Before the model, which takes longer to load: whoever mistyped a path is told at once.
    files = find_case(case if len(case) > 1 else case[0], label=False)
    if layout is None:
        warn_of_release([files])
    _check_outputs(files, output, probabilities, Path(case[0]) if len(case) == 1 and Path(case[0]).is_dir() else None)
    if align is None:
        loaded = read_case(files, wanted, label=False)
    else:
        loaded = align_case(files, align, wanted, register=register, label=False)
    predictor = _predictor(checkpoint, device, window, refine, decision=decision)
    if layout is not None:
        loaded = replace(loaded, layout=layout)
    result = predictor.predict(loaded)
    predictor.save(result, output, probabilities=probabilities)
    if isinstance(loaded, AlignedCase):
        transforms = loaded.save_transforms(output)
        for each in loaded.alignments.values():
            typer.echo(str(each))
        if transforms:
            typer.echo(f"transforms in {', '.join(map(str, transforms))}")
    volumes = ", ".join(f"{region} {result.volume(region)}" for region in REGIONS)
    typer.echo(f"{output}: segmented {files.id} from {subset_name(result.subset)}: {volumes}")
    if predictor.gains is not None and len(result.subset) < len(MODALITIES):
        typer.echo(f"a further scan, as it helped held-out cases: {predictor.next_scan(result.subset)}")


def _predict_cohort(
    cohort: Path,
    output: Path,
    checkpoint: str,
    device: str,
    window: int,
    refine: bool | None,
    decision: str,
    *,
    layout: str | None,
    **options: Any,
) -> None:
    """Segment a folder of cases with the options of ``predict_cohort``; exit status 1 if one of them could not be."""
    from smml.cohort import predict_cohort
    from smml.cohort.places import PAGE, plan_places
    from smml.cohort.rows import ROWS
    from smml.data import find_cases
    from smml.data.layouts import warn_of_release
    from smml.ranks import start_ranks

    with start_ranks(device) as ranks:
        # Before the model, which takes longer to load: whoever mistyped a path is told at once.
        found = find_cases(cohort, layout, mixed=True, labels=False)
        if layout is None and ranks.first:
            warn_of_release(found)
        plan_places(found, output, options["output_layout"], options["probabilities"])
        predictor = _predictor(checkpoint, str(ranks.device), window, refine, decision=decision)
        ranks.agree({"cases": [case.id for case in found], "checkpoint": checkpoint})
        title = f"{cohort.name}, segmented by {checkpoint}"
        rows = predict_cohort(predictor, found, output, ranks=ranks, title=title, **options)
    failed, warned = [row for row in rows if row.reason], [row for row in rows if row.warnings]
    _say(
        f"{len(rows) - len(failed)} of {len(rows)} cases segmented in {output}; table in {output / ROWS}, and to look "
        f"at in {output / PAGE}"
    )
    if warned:
        _say(f"{len(warned)} with a warning ({', '.join(row.case for row in warned[:5])}): see the table")
    if failed:
        _say("\n".join([f"{len(failed)} could not be segmented:", *(f"{row.case}: {row.reason}" for row in failed)]))
        raise typer.Exit(1)


def _train_sam(
    output: Annotated[Path, typer.Argument(help="Folder of the run.")],
    options: dict[str, Any],
    threads: ThreadsOption = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was interrupted.")] = False,
) -> None:
    """Train the tiny SAM on simulated lesions, anatomy and shapes."""
    from smml.sam.training.train import SAMTraining
    from smml.sam.training.train import train_sam as run

    _use_threads(threads)
    settings = SAMTraining(**options)
    path = run(output, settings, resume=resume)
    typer.echo(f"trained {settings.steps} steps; weights in {path}, measure them with scripts/measure_sam.py")


def _sam_options() -> tuple[type, frozenset[str]]:
    from smml.sam.training.train import SAMTraining

    return SAMTraining, frozenset()


@app.command("train-sam", cls=configured(_train_sam, _sam_options), help=_train_sam.__doc__)
def train_sam() -> None:
    """Listed by its help alone: its options are looked up when it is called."""


@app.command()
def info(
    what: Annotated[
        Path | None, typer.Argument(help="Also describe a folder of cases, or a checkpoint and what was fitted to it.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only look whether every case of the folder can be used: labels, headers.")
    ] = False,
    layout: ReadAsOption = None,
) -> None:
    """Versions, device, which kernels are active, shipped weights and, on wish, a cohort or a checkpoint."""
    from smml.info import check_cohort, describe

    if not check:
        typer.echo(describe(what, layout))
        return
    if what is None:
        raise InputError("--check: name the folder of cases to look at, as in smml info --check FOLDER")
    cohort, problems = check_cohort(what, layout)
    typer.echo("\n".join([cohort, *problems.values()]))
    if problems:
        raise InputError(f"{what}: {len(problems)} of its cases cannot be used ({', '.join(list(problems)[:5])})")
    typer.echo("every label, and the header and length of every image, is as it must be")


def _how_it_ended(result, config) -> str:
    """How far a training came, why no further, where it is, and which validation was the best."""
    from smml.training.trainer import BEST, LOG

    far = f"trained {result.steps} steps"
    if result.stopped_early:
        far = (
            f"stopped early after {result.steps} of {config.steps} steps: {config.patience} validations in a row "
            "without a new best (patience)"
        )
    losses = f"losses in {result.checkpoint.with_name(LOG)}"
    if result.best is None:
        return f"{far}; checkpoint in {result.checkpoint}, {losses}"
    return (
        f"{far}; best validation: Dice {result.best.dice:.3f} at step {result.best.step}; checkpoint in "
        f"{result.checkpoint}, the best in {result.checkpoint.with_name(BEST)}, {losses}"
    )


def _whole_number(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"{option}: expected whole numbers joined by commas, found {text!r}") from error


def _labelled(data: Path, most: int, layout: str | None = None) -> list:
    """The first ``most`` cases of a folder that have a segmentation, 0 for all; says how many have none."""
    from smml.data import find_cases

    everyone = find_cases(data, layout)
    found = [case for case in everyone if case.label is not None]
    if not found:
        raise InputError(
            f"{data}: none of its {len(everyone)} cases has a segmentation to compare with; name a folder of "
            "labelled cases"
        )
    if len(found) < len(everyone):
        unlabelled = len(everyone) - len(found)
        _say(f"{data}: {unlabelled} of {len(everyone)} cases left out, because they have no segmentation")
    return found[:most] if most else found


def _check_calibrated(output: Path, checkpoint: str) -> None:
    """Refuse a place for weights with what is fitted to them before the fit, which takes long."""
    from smml.files import check_target
    from smml.models.checkpoint import find_checkpoint

    if output.suffix != ".safetensors":
        raise InputError(
            f"--output {output}: expected a name ending in .safetensors: a run that went on from its .pt file would "
            "outgrow what was fitted; rename it"
        )
    if output.exists() and output.samefile(find_checkpoint(checkpoint)):
        raise InputError(f"--output {output}: is the checkpoint itself; choose another name")
    if output.is_dir():
        raise InputError(f"--output {output}: Is a directory; choose another name")
    check_target(output)


def _check_outputs(files, output: Path, probabilities: Path | None, folder: Path | None) -> None:
    """Names that cannot be written, that are one another's, or under which a file of the case would be lost.

    So are those that the next run would take for a part of the case, looked for in ``folder``.
    """
    from smml.data.layouts import role_of_output, split_suffix
    from smml.files import check_target

    def same(one: Path, other: Path) -> bool:
        # The second where a file system does not tell upper from lower case.
        return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))

    sources = files.paths
    named: list[tuple[str, Path, tuple[str, ...]]] = [("--output", output, (".nii.gz", ".nii", ".mha"))]
    if probabilities is not None:
        named.append(("--probabilities", probabilities, (".nii.gz", ".nii")))
    for option, path, suffixes in named:
        if split_suffix(path)[1] not in suffixes:
            raise InputError(f"{option} {path}: expected a name ending in {' or '.join(suffixes)}; rename it")
        if any(same(path, source) for source in sources):
            raise InputError(f"{option} {path}: is a file of case {files.id}, which would be lost; choose another name")
        if role := role_of_output(path, files, folder):
            raise InputError(
                f"{option} {path}: there, this name stands for {role} of a case, and the next run would take the "
                f"answer for that; choose another name, such as {path.with_name('answer' + split_suffix(path)[1])}, or "
                "another folder"
            )
        check_target(path)
    if probabilities is not None and same(output, probabilities):
        raise InputError(f"--probabilities {probabilities}: is the file of --output too; name two files")


def _who() -> str:
    """Which process of several is talking."""
    try:
        place = own_place()
    except InputError:  # which is what is being said, if the command needs to know it
        return ""
    return f"process {place.rank} of {place.count}: " if place.count > 1 else ""


def _say(text: str) -> None:
    """What several processes would say alike, once."""
    if _speaks():
        typer.echo(text)


def _speaks() -> bool:
    """Whether this is the process, of one or several, that talks."""
    return own_place().rank == 0


def _use_threads(threads: int) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


def _print_profile(predictor, found) -> None:
    import torch

    from smml.data import read_case
    from smml.evaluation.profile import format_profile, profile

    profiles = [profile(predictor, read_case(files)) for files in found]
    threads = f", {torch.get_num_threads()} threads" if predictor.device.type == "cpu" else ""
    typer.echo(format_profile(profiles) + f"\n\n{predictor.precision} on {predictor.device}{threads}")


def _predictor(
    checkpoint: str,
    device: str,
    window: int,
    refine: bool | None,
    precision: str = "float32",
    decision: str = "own",
):
    from smml.devices import find_device
    from smml.inference import Predictor
    from smml.models.presets import Precision

    find_device(device)
    return Predictor.from_checkpoint(
        checkpoint,
        device=device,
        refine=refine,
        window=window or None,
        precision=cast(Precision, precision),  # the predictor checks it
        decision=decision,
    )


if __name__ == "__main__":
    main()
