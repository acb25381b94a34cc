"""The exponential moving average of the weights, which predicts better than the weights of any one step."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class AverageWeights:
    """An average of a model's weights over its recent steps.

        average <- d average + (1 - d) weights,    d = min(decay, (1 + t) / (10 + t)) after step t = 1, 2, ...

    The smaller d of the first steps lets the average forget the random start. What is not trained is not averaged: it
    would be the same number and yet not the same bits, as -0 comes out of the average as 0.

    Args:
        model: whose weights are averaged; the average starts as a copy of them.
        decay: between 0 and 1; about 1 / (1 - decay) steps are averaged over.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, steps_done: int) -> None:
        """Take in the weights after step number ``steps_done`` (1, 2, ...)."""
        decay = min(self.decay, (1 + steps_done) / (10 + steps_done))
        fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        for name, tensor in model.state_dict().items():
            if name not in fixed:
                self.weights[name].lerp_(tensor, 1 - decay)

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Go on from a checkpoint's average."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])

    @contextlib.contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Within the context the model has the averaged weights; afterwards its own again."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(own)
