"""Over a process group a loss is that of the whole batch, and so are its gradients."""

import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from triton_checks import HAS_TRITON, error

import smml_kernels
from smml_kernels import reference

# Samples and tokens of rank 0 and of rank 1: unequal, and each rank lacks a class that the other has.
SHARES = (2, 1)
TOKENS = (20, 13)
IMPLEMENTATIONS = ("torch", "triton") if HAS_TRITON else ("torch",)


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


def tokens():
    """Features of both branches, each with a zero row, and weights that add up to 1."""
    generator = torch.Generator().manual_seed(8)
    f1, f2 = (torch.randn(sum(TOKENS), 5, generator=generator) for _ in range(2))
    f1[3] = f2[25] = 0
    w = torch.rand(sum(TOKENS), generator=generator)
    return f1, f2, w / w.sum()


def measure_tokens(f1, f2, w, group=None):
    """relation_loss by (implementation, whether it is without weights): the loss and both gradients."""
    calls = {"torch": lambda a, b, w: reference.relation_loss(a, b, w, group=group)}
    if group is not None and HAS_TRITON:
        from smml_kernels.relation import op

        # "direct" is not possible over ranks: it becomes linear.
        calls["triton"] = lambda a, b, w: op.relation_loss(a, b, w, form="direct", group=group.group_name)
        calls["triton tf32"] = calls["triton"]
    results = {}
    for name, call in calls.items():
        torch.set_float32_matmul_precision("high" if "tf32" in name else "highest")
        for weight in (w, None):
            leaves = [f.detach().requires_grad_() for f in (f1, f2)]
            loss = call(*leaves, weight)
            results[name, weight is None] = loss.detach(), *torch.autograd.grad(-1.5 * loss, leaves)
    torch.set_float32_matmul_precision("highest")
    return results


def part(data, shares, rank, device="cpu"):
    """What a rank has of each tensor."""
    return [t.split(shares)[rank].to(device) for t in data]


def work(rank: int, store: str, out: str, backend: str) -> None:
    torch.set_num_threads(1)
    device = "cpu" if backend == "gloo" else f"cuda:{rank}"
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=len(SHARES))
    group = dist.group.WORLD
    found = {
        implementation: {
            name: measure(call, *part(batch(), SHARES, rank, device), implementation)
            for name, call in calls(group).items()
        }
        for implementation in IMPLEMENTATIONS
    }
    found["tokens"] = measure_tokens(*part(tokens(), TOKENS, rank, device), group)
    torch.save(found, f"{out}{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks found, by implementation, and of relation_loss: one pair of processes for all."""
    if torch.cuda.is_available() and torch.cuda.device_count() < len(SHARES):
        pytest.skip("NCCL wants a GPU for each rank: there is one GPU for two ranks")
    if sys.platform != "linux":
        pytest.skip("processes that meet through a file")
    folder = tmp_path_factory.mktemp("ranks")
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    mp.spawn(work, (str(folder / "store"), str(folder / "rank"), backend), nprocs=len(SHARES))
    return [torch.load(folder / f"rank{rank}", map_location="cpu") for rank in range(len(SHARES))]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_two_ranks_are_one_batch(ranks, implementation):
    for name, call in calls().items():
        losses, gradients = measure(call, *batch(), "torch")
        found = [rank[implementation][name] for rank in ranks]
        for rank in found:
            for one, whole in zip(rank[0], losses, strict=True):
                assert error(one, whole) < 1e-6, f"{name}: every rank has the loss of the whole batch"
        for parts, whole in zip(zip(*(rank[1] for rank in found), strict=True), gradients, strict=True):
            assert error(torch.cat(parts), whole) < 1e-6, f"{name}: the gradients of the ranks are its parts"


def test_the_tokens_of_two_ranks_are_one_batch(ranks):
    whole = measure_tokens(*tokens())
    for name, unweighted in ranks[0]["tokens"]:
        loss, *gradients = whole["torch", unweighted]
        found = [rank["tokens"][name, unweighted] for rank in ranks]
        for rank in found:
            assert error(rank[0], loss) < 1e-6, f"{name}: every rank has the loss of the whole batch"
        for branch, gradient in enumerate(gradients, 1):
            together = torch.cat([rank[branch] for rank in found])
            assert error(together, gradient) < 1e-6, f"{name}: the gradients of the ranks are its parts"
        alone = reference.relation_loss(*part(tokens(), TOKENS, 0))
        assert error(found[0][0], alone) > 1e-3, "or this test would prove nothing"


def test_the_mean_of_the_ranks_own_losses_would_be_another_number():
    """Or the test above would prove nothing."""
    for name, call in calls().items():
        if name == LACKING:  # no rank could compute it alone
            continue
        whole = measure(call, *batch(), "torch")[0]
        own = [measure(call, *part(batch(), SHARES, rank), "torch")[0] for rank in range(len(SHARES))]
        for loss, parts in zip(whole, zip(*own, strict=True), strict=True):
            assert error(sum(parts) / len(parts), loss) > 1e-3, name


def test_what_is_not_a_group_is_refused():
    if not HAS_TRITON:
        pytest.skip("Triton is not installed")
    from smml_kernels.common import launch

    assert launch.group_name(None) == ""
    with pytest.raises(TypeError, match=r"ProcessGroup, found str"):
        launch.group_name("world")
