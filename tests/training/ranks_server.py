"""Runs jobs in one process or in several that form a group; the tests of training over ranks talk to it.

As a program it imports everything once and then, for each line of JSON on stdin, forks the processes of a job and
answers with their exit statuses. That is what ``torchrun`` does, but for seconds of imports in each process.
"""

import dataclasses
import json
import os
import signal
import socket
import sys

import torch
import torch._dynamo  # what an optimiser imports at its first step, which takes seconds

from smml.data.labels import REGIONS
from smml.models import SMML, StudentConfig, presets
from smml.parallel import Ranks, start_ranks
from smml.training import TrainingConfig, train
from smml.training.objective import objective

NARROW = StudentConfig((2, 2, 4, 4, 8), token_width=12, heads=3, mlp_width=24, token_grid=2)


def train_job(cohort: str, output: str, config: dict, die: dict | None = None, dropout: float = 0.0) -> None:
    """Train; ``die`` is {rank: rows after which it is killed}. Leaves every rank's rows in ``rows-<rank>.json``."""
    presets.PRESETS["tiny"] = dataclasses.replace(NARROW, dropout=dropout)
    rank, rows = os.environ.get("RANK", "0"), []

    def on_step(row: dict) -> None:
        rows.append(row)
        if die and row["step"] + 1 == die.get(rank):
            os.kill(os.getpid(), signal.SIGKILL)

    train(cohort, output, TrainingConfig(**config), resume=True, progress=False, on_step=on_step)
    with open(f"{output}/rows-{rank}.json", "w", encoding="utf-8") as stream:
        json.dump(rows, stream)


def losses_job(output: str) -> None:
    """Loss terms and summed gradients of one batch in float64; rank r leaves them in ``losses-<r>.pt``."""
    with start_ranks() as ranks:
        torch.save(losses(ranks), f"{output}/losses-{ranks.rank}.pt")


def losses(ranks: Ranks) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor | None]]:
    """Of three samples in float64: every term, and the gradient of every parameter.

    No sample has all sequences, and none has T1: FLAIR is in the first two samples alone, T2 in the last alone.
    """
    generator = torch.Generator().manual_seed(3)
    target = torch.zeros(3, 32, 32, 32, dtype=torch.uint8)
    target[0, 4:20, 8:24, 8:24], target[0, 8:16, 12:20, 12:20] = 2, 1
    target[1, 4:14, 10:26, 6:20] = 3
    image = torch.randn(3, 4, 32, 32, 32, generator=generator, dtype=torch.float64) + target[:, None]
    priors = torch.rand(2, 3, 4, len(REGIONS), 32, 32, 32, generator=generator, dtype=torch.float64)
    available = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1]], dtype=torch.bool)
    masks = torch.tensor(
        [[[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]], [[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]], dtype=torch.bool
    )
    torch.manual_seed(0)
    model = SMML(NARROW, refine=True).double().train()
    with torch.no_grad():  # an untrained refinement changes nothing, and has nothing to teach
        for network in model.refinements:
            network.head.weight.normal_()
    own = ranks.share(range(3))
    mine = slice(own.start, own.stop)
    output = model(image[mine], masks[:, mine], available[mine], priors[:, mine])
    config = TrainingConfig(steps=10, consistency_start=0.0)
    loss = objective(output, target[mine], masks[:, mine], available[mine], config, 9, ranks.group)
    loss.total.backward()
    ranks.add_gradients(model.parameters())
    return {"total": loss.total.detach(), **loss.terms}, {name: p.grad for name, p in model.named_parameters()}


def serve() -> None:
    """Jobs from stdin, exit statuses to stdout."""
    torch.set_num_threads(1)

    jobs = {"train": train_job, "losses": losses_job}
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
                try:
                    if count > 1:
                        os.environ |= {
                            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count),
                            "RANK": str(rank), "LOCAL_RANK": str(rank),
                        }  # fmt: skip
                    jobs[order["job"]](**order["options"])
                    status = 0
                except Exception as error:
                    if order.get("errors"):
                        with open(f"{order['errors']}-{rank}", "w", encoding="utf-8") as stream:
                            stream.write(f"{type(error).__name__}: {error}")
                    else:
                        import traceback

                        traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            children.append(child)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


if __name__ == "__main__":
    serve()
