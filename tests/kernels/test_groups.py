"""Over a process group the per-voxel losses are those of the whole batch, and so are their gradients."""

import itertools
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from triton_checks import HAS_TRITON, error

import smml_kernels

# Samples of rank 0 and of rank 1: unequal, and each rank lacks a class that the other has.
SHARES = (2, 1)


LACKING = "dice_ce where one rank has no sample"


def without_background(y):
    """Which samples have no voxel of class 0: the last one alone, so nothing is left to rank 0."""
    return (y != 0).flatten(1).all(1)


def calls(group=None):
    """Every call that is tested, by name: (x1, x2, target, implementation) -> list of losses."""
    return {
        "dice_ce logits": lambda x1, x2, y, i: [
            smml_kernels.dice_ce_loss(x1, y, min_class_weight=0.05, group=group, implementation=i)
        ],
        "dice_ce probabilities": lambda x1, x2, y, i: [
            smml_kernels.dice_ce_loss(x1.softmax(1), y, from_logits=False, group=group, implementation=i)
        ],
        LACKING: lambda x1, x2, y, i: [
            smml_kernels.dice_ce_loss(
                x1[without_background(y)], y[without_background(y)], group=group, implementation=i
            )
        ],
        **{
            f"exchange {gate}": lambda x1, x2, y, i, gate=gate: list(
                smml_kernels.exchange_loss(x1, x2, y, gate=gate, group=group, implementation=i)
            )
            for gate in smml_kernels.GATES
        },
    }


def batch():
    generator = torch.Generator().manual_seed(7)
    x1, x2 = (2 * torch.randn(sum(SHARES), 4, 5, 4, 3, generator=generator) for _ in range(2))
    y = torch.randint(0, 3, (sum(SHARES), 5, 4, 3), generator=generator)
    y[-1][y[-1] == 0] = 3
    return x1, x2, y


def measure(call, x1, x2, y, implementation):
    leaves = [x.clone().requires_grad_() for x in (x1, x2)]
    losses = call(*leaves, y, implementation)
    total = sum(scale * loss for scale, loss in zip((1.0, -3.0), losses, strict=False))
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    return [loss.detach() for loss in losses], [g for g in gradients if g is not None]


def work(rank: int, store: str, implementation: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(SHARES))
    start = sum(SHARES[:rank])
    mine = [t[start : start + SHARES[rank]] for t in batch()]
    found = {name: measure(call, *mine, implementation) for name, call in calls(dist.group.WORLD).items()}
    torch.save(found, f"{out}{rank}")
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="gloo adds up on the CPU, the kernels would run on a GPU")
@pytest.mark.skipif(sys.platform != "linux", reason="processes that meet through a file")
@pytest.mark.parametrize("implementation", ["torch", *(["triton"] if HAS_TRITON else [])])
def test_two_ranks_are_one_batch(tmp_path, implementation):
    mp.spawn(work, (str(tmp_path / "store"), implementation, str(tmp_path / "rank")), nprocs=len(SHARES))
    ranks = [torch.load(tmp_path / f"rank{rank}") for rank in range(len(SHARES))]
    for name, call in calls().items():
        losses, gradients = measure(call, *batch(), "torch")
        for rank in ranks:
            for one, whole in zip(rank[name][0], losses, strict=True):
                assert error(one, whole) < 1e-6, f"{name}: every rank has the loss of the whole batch"
        for parts, whole in zip(zip(*(rank[name][1] for rank in ranks), strict=True), gradients, strict=True):
            assert error(torch.cat(parts), whole) < 1e-6, f"{name}: the gradients of the ranks are its parts"


def test_the_mean_of_the_ranks_own_losses_would_be_another_number():
    """Or the test above would prove nothing."""
    shares = list(itertools.accumulate(SHARES))[:-1]
    for name, call in calls().items():
        if name == LACKING:  # no rank could compute it alone
            continue
        whole = measure(call, *batch(), "torch")[0]
        own = [
            measure(call, *part, "torch")[0] for part in zip(*(t.tensor_split(shares) for t in batch()), strict=True)
        ]
        for loss, parts in zip(whole, zip(*own, strict=True), strict=True):
            assert error(sum(parts) / len(parts), loss) > 1e-3, name


def test_what_is_not_a_group_is_refused():
    if not HAS_TRITON:
        pytest.skip("Triton is not installed")
    from smml_kernels.common import launch

    assert launch.group_name(None) == ""
    with pytest.raises(TypeError, match=r"ProcessGroup, found str"):
        launch.group_name("world")
