"""Traffic counts what eager operations read and write, and nothing else."""

import torch

from smml_kernels.benchmarks import public
from smml_kernels.benchmarks.traffic import Traffic

N = 1000


def moved(run) -> float:
    """Maps of N float32 numbers that a call reads and writes."""
    with Traffic() as traffic:
        run()
    return traffic.total / (4 * N)


def test_an_operation_reads_its_inputs_and_writes_its_result():
    x, y = torch.ones(2, N)
    assert moved(lambda: x * 2) == 2
    assert moved(lambda: x + y) == 3
    assert moved(lambda: (x * y, x * y)) == 6
    assert moved(lambda: x.sum()) == 1 + 1 / N


def test_what_changes_in_place_is_read_and_written():
    x = torch.ones(N)
    assert moved(lambda: x.mul_(2)) == 2


def test_a_view_moves_nothing_and_an_expanded_tensor_is_stored_once():
    x = torch.ones(N)
    assert moved(lambda: x.view(10, 100).transpose(0, 1).detach()) == 0
    assert moved(lambda: torch.empty(N)) == 0
    row = torch.ones(10, 1).expand(10, N)
    assert moved(lambda: row.contiguous()) == 10 + 10 / N


def test_the_backward_pass_counts():
    x = torch.ones(N, requires_grad=True)
    # exp 2, sum 1; the gradient reads the result of exp, beside one number, and is written.
    assert round(moved(lambda: x.exp().sum().backward())) == 2 + 1 + 2


def test_by_name():
    x = torch.ones(N)
    with Traffic() as traffic:
        _ = x * 2 * 3 + 1
    assert dict(traffic.calls) == {"mul": 2, "add": 1}
    assert traffic.bytes == {"mul": 4 * 4 * N, "add": 2 * 4 * N}


def test_the_n_by_n_loss_moves_what_its_kernel_file_says():
    f1, f2 = (torch.randn(512, 32, requires_grad=True) for _ in range(2))
    with Traffic() as traffic:
        public.relation_loss(f1, f2).backward()
    assert round(traffic.total / (4 * 512**2)) == 69
