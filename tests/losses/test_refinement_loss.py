"""L_refine against a loop in float64, and who gets the gradient of each of its terms."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from smml.losses import refinement_loss
from smml_kernels import dice_ce_loss

SHAPE = (2, 4, 3, 4, 2)


def case(requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    refined, student = (2 * torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    target = torch.randint(0, 4, (2, 3, 4, 2), generator=generator)
    return refined.requires_grad_(requires_grad), student.requires_grad_(requires_grad), target


def probabilities(logits):
    e = np.exp(logits.detach().numpy())
    return e / e.sum(axis=1, keepdims=True)


def divergence_by_hand(teacher, learner):
    p, q = probabilities(teacher), probabilities(learner)
    total = 0.0
    for b, x, y, z in np.ndindex(2, 3, 4, 2):
        for k in range(4):
            total += p[b, k, x, y, z] * math.log(p[b, k, x, y, z] / q[b, k, x, y, z])
    return total / (2 * 3 * 4 * 2)


def segmentation_by_hand(logits, target, minimum):
    p, y = probabilities(logits), np.eye(4)[target.numpy()].transpose(0, 4, 1, 2, 3)
    ce = 0.0
    for b in range(2):
        for k in range(4):
            weight = max(minimum, 1 - y[b, k].mean())
            ce -= weight * (y[b, k] * np.log(np.clip(p[b, k], 0.005, 1))).sum() / target.numel()
    dice = [2 * (p[:, k] * y[:, k]).sum() / (p[:, k].sum() + y[:, k].sum() + 1e-7) for k in range(4)]
    return ce + 1 - np.mean(dice)


@pytest.mark.parametrize("minimum", [0.0, 0.05])
def test_the_terms_are_those_of_the_equations(minimum):
    refined, student, target = case()
    terms = refinement_loss(refined, student, target, min_class_weight=minimum)
    assert terms.divergence.item() == pytest.approx(divergence_by_hand(refined, student), rel=1e-12)
    assert terms.segmentation.item() == pytest.approx(segmentation_by_hand(refined, target, minimum), rel=1e-12)


def test_each_gradient_goes_to_its_learner_alone():
    refined, student, target = case(requires_grad=True)
    terms = refinement_loss(refined, student, target)
    grads = torch.autograd.grad(terms.divergence, (refined, student), allow_unused=True)
    assert tuple(grad is not None and bool(grad.abs().sum() > 0) for grad in grads) == (False, True)
    refined, student, target = case(requires_grad=True)
    refinement_loss(refined, student, target).segmentation.backward()
    assert student.grad is None
    assert float(refined.grad.abs().sum()) > 0


def test_the_gradients_are_right():
    refined, student, target = case(requires_grad=True)
    assert gradcheck(lambda s: refinement_loss(refined.detach(), s, target).divergence, [student])
    # The teacher's gradient is stopped, so only the supervised part may move the refined logits.
    terms = refinement_loss(refined, student, target, min_class_weight=0.05)
    (grad,) = torch.autograd.grad(terms.segmentation + terms.divergence, refined)
    (expected,) = torch.autograd.grad(dice_ce_loss(refined, target, min_class_weight=0.05), refined)
    assert torch.equal(grad, expected)


def test_equal_predictions_have_nothing_to_teach():
    refined, _, target = case(requires_grad=True)
    student = refined.detach().clone().requires_grad_()
    divergence = refinement_loss(refined, student, target).divergence
    assert divergence.item() == pytest.approx(0, abs=1e-15)
    divergence.backward()
    assert float(student.grad.abs().max()) < 1e-15


def test_certain_predictions_stay_finite():
    refined, student, target = case()
    student = (1e4 * student.float()).requires_grad_()
    terms = refinement_loss(1e4 * refined.float(), student, target)
    terms.divergence.backward()
    assert bool((terms.segmentation + terms.divergence).isfinite())
    assert bool(student.grad.isfinite().all())


def test_half_precision_is_computed_in_float32():
    refined, student, target = case()
    with torch.autocast("cpu", torch.bfloat16):
        low = refinement_loss(refined.bfloat16(), student.bfloat16(), target)
    high = refinement_loss(refined.bfloat16().float(), student.bfloat16().float(), target)
    assert low.divergence.dtype == torch.float32
    assert low.divergence.item() == pytest.approx(high.divergence.item(), rel=1e-6)


def test_what_does_not_fit_is_named():
    refined, student, target = case()
    with pytest.raises(ValueError, match="one shape"):
        refinement_loss(refined, student[:, :3], target)
