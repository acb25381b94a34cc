"""Runs jobs in one process or in several that form a group; the tests of training over ranks talk to it.

As a program it imports everything once and then, for each line of JSON on stdin, forks the processes of a job and
answers with their exit statuses. That is what ``torchrun`` does, but for seconds of imports in each process. Given a
job as its argument it runs that one in this process; so ``torchrun`` itself can start it.
"""

import dataclasses
import json
import os
import signal
import socket
import sys

import torch
import torch._dynamo  # what an optimiser imports at its first step, which takes seconds

from smml.cohort import predict_cohort
from smml.data import find_cases
from smml.data.labels import REGIONS
from smml.evaluation import evaluate, write_report
from smml.inference import Predictor
from smml.models import SMML, StudentConfig, presets
from smml.ranks import start_ranks
from smml.training import TrainingConfig, train
from smml.training.step import take_step

NARROW = StudentConfig((2, 2, 4, 4, 8), token_width=12, heads=3, mlp_width=24, token_grid=2, refinement_widths=(2, 4))
PRESET = "tiny"


def train_job(cohort: str, output: str, config: dict, die: dict | None = None, dropout: float = 0.0) -> None:
    """Train; ``die`` is {rank: rows after which it is killed}. Leaves every rank's rows in ``rows-<rank>.json``."""
    presets.PRESETS[PRESET] = dataclasses.replace(NARROW, dropout=dropout)
    rank, rows = os.environ.get("RANK", "0"), []

    def on_step(row: dict) -> None:
        rows.append(row)
        if die and row["step"] + 1 == die.get(rank):
            os.kill(os.getpid(), signal.SIGKILL)

    train(cohort, output, TrainingConfig(**config), resume=True, progress=False, on_step=on_step)
    with open(f"{output}/rows-{rank}.json", "w", encoding="utf-8") as stream:
        json.dump(rows, stream)


def steps_job(output: str, steps: int, config: dict) -> None:
    """Steps on made-up batches in float64; rank r leaves its rows, gradients and weights in ``steps-<r>.pt``."""
    torch.manual_seed(0)
    model = SMML(NARROW, refine=True).double().train()
    with torch.no_grad():  # an untrained refinement changes nothing, and has nothing to teach
        for network in model.refinements:
            network.head.weight.normal_()
    config = TrainingConfig(**config)
    optimiser = torch.optim.Adam(model.parameters(), weight_decay=1e-4, amsgrad=True)
    with start_ranks() as ranks:
        rows, gradients = [], []
        for step in range(steps):
            own = ranks.share(range(config.batch_size))
            batch = {name: tensor[own.start : own.stop] for name, tensor in made_batch(step).items()}
            rows.append(take_step(model, optimiser, [batch], config, step, ranks))
            gradients.append({name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()})
        content = {"rows": rows, "gradients": gradients, "weights": model.state_dict()}
        torch.save(content, f"{output}/steps-{ranks.rank}.pt")


def evaluate_job(cohort: str, output: str, die: dict | None = None) -> None:
    """Score a cohort; ``die`` is {rank: number of its case at which it is killed}."""
    torch.manual_seed(0)
    predictor = Predictor(SMML(NARROW), (6.0, 6.0, 6.0), window=32)
    encode, seen = predictor.encode, []

    def watched(case):
        seen.append(case.id)
        if die and len(seen) == die.get(os.environ.get("RANK", "0")):
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(case)

    predictor.encode = watched
    with start_ranks() as ranks:
        scores = evaluate(predictor, find_cases(cohort), ["flair", "t1ce+t1"], keep=output, ranks=ranks, progress=False)
    if ranks.first:
        write_report(scores, output, "made up")


def cohort_job(cohort: str, output: str) -> None:
    """Segment a cohort."""
    torch.manual_seed(0)
    predictor = Predictor(SMML(NARROW), (12.0, 12.0, 12.0), window=32)
    with start_ranks() as ranks:
        rows = predict_cohort(predictor, cohort, output, ranks=ranks, progress=False)
    assert [bool(row.reason) for row in rows] == [False, True, False]


def made_batch(step: int) -> dict[str, torch.Tensor]:
    """Three samples in float64, none with T1 and none with all the rest; who has what changes places with the step."""
    generator = torch.Generator().manual_seed(step)
    label = torch.zeros(3, 32, 32, 32, dtype=torch.uint8)
    label[0, 4:20, 8:24, 8:24], label[0, 8:16, 12:20, 12:20] = 2, 1
    label[1, 4:14, 10:26, 6:20] = 3
    image = torch.randn(3, 4, 32, 32, 32, generator=generator, dtype=torch.float64) + label[:, None]
    priors = torch.rand(3, 2, 4, len(REGIONS), 32, 32, 32, generator=generator, dtype=torch.float64)
    available = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1]], dtype=torch.bool)
    first, second = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]], [[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    masks = torch.tensor([first, second], dtype=torch.bool).transpose(0, 1)
    batch = {"image": image, "label": label, "masks": masks, "available": available, "priors": priors}
    return {name: tensor.roll(step, dims=0) for name, tensor in batch.items()}


JOBS = {"train": train_job, "steps": steps_job, "evaluate": evaluate_job, "cohort": cohort_job}


def serve() -> None:
    """Jobs from stdin, exit statuses to stdout; what a process has to say of its end goes to ``errors``-<rank>."""
    for line in sys.stdin:
        order = json.loads(line)
        count, children = order["count"], []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(count):
            child = os.fork()
            if child == 0:
                status = 1
                os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # Gloo of PyTorch 2.10 greets on stdout
                try:
                    if count > 1:
                        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
                        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    options = order["options"] | order.get("of_rank", {}).get(str(rank), {})
                    JOBS[order["job"]](**options)
                    status = 0
                except Exception as error:
                    with open(f"{order['errors']}-{rank}", "w", encoding="utf-8") as stream:
                        stream.write(f"{type(error).__name__}: {error}")
                finally:
                    os._exit(status)
            children.append(child)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        job = json.loads(sys.argv[1])
        JOBS[job["job"]](**job["options"])
    else:
        serve()
