"""Fingerprints of weights: equal for equal tensors, and for no others."""

import torch

from smml.tensors import tensors_fingerprint, weights_fingerprint


def test_the_fingerprint_tells_weights_apart():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    before = weights_fingerprint(module)
    assert weights_fingerprint(module) == before
    with torch.no_grad():
        module[0].bias[1] += 1e-6
    after = weights_fingerprint(module)
    module[1].running_mean[0] = 1
    assert len({before, after, weights_fingerprint(module)}) == 3


def test_a_name_a_shape_and_a_precision_count_too():
    values = torch.arange(6.0)
    kinds = [
        {"a": values},
        {"b": values},
        {"a": values.view(2, 3)},
        {"a": values.half()},
        {"a": values[:3], "b": values[3:]},
    ]
    assert len({tensors_fingerprint(tensors, "x") for tensors in kinds} | {tensors_fingerprint(kinds[0], "y")}) == 6
    assert tensors_fingerprint(dict(reversed(kinds[4].items())), "x") == tensors_fingerprint(kinds[4], "x")
