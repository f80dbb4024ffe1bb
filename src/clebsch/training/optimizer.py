"""Optimiser, learning-rate schedule and averaged weights, each with a state that can be saved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clebsch.potential import Potential
from clebsch.training.adam import Adam
from clebsch.training.config import TrainingConfig
from clebsch.training.muon import Muon


def trained_parameters(potential: Potential, *others: Potential) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name.

    Those of ``others`` that the potential does not have in common with them are named after them,
    ``other.NAME``.
    """
    found = {name: p for name, p in potential.named_parameters() if p.requires_grad}
    for other in others:
        known = {id(p) for p in found.values()}
        own = other.named_parameters()
        found |= {f"other.{n}": p for n, p in own if p.requires_grad and id(p) not in known}
    return found


def make_optimizer(
    potential: Potential, config: TrainingConfig, *others: Potential
) -> torch.optim.Optimizer:
    """Adam, AMSGrad, AdamW or Muon, with weight decay on ``model.decayed_parameters()`` alone.

    beta 0.9 and 0.999, epsilon 1e-8, and a decay that is part of the gradient but with AdamW (MACE
    paper, A.5.1). Weights of an element do not decay in batches that lack it, where the paper's
    would. Muon has the linear maps, which it does not decay, and leaves the rest to AMSGrad.
    """
    models = [one.model for one in (potential, *others)]
    decayed = {id(p) for model in models for p in model.decayed_parameters()}
    parameters = list(trained_parameters(potential, *others).values())
    maps: list[nn.Parameter] = []
    if config.optimizer == "muon":
        mapped = {id(p): p for model in models for p in model.linear_maps() if p.requires_grad}
        maps = list(mapped.values())
        parameters = [p for p in parameters if id(p) not in mapped]
    groups = [
        {"params": [p for p in parameters if id(p) in decayed], "decay": config.weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "muon":
        return Muon(maps, groups, lr=config.lr)
    amsgrad, decoupled = config.optimizer == "amsgrad", config.optimizer == "adamw"
    return Adam(groups, lr=config.lr, amsgrad=amsgrad, decoupled=decoupled)


class Schedule:
    """The learning rate as a function of the step and of the progress through the budget.

    Attributes:
        factor: what the plateau rule has multiplied the rate by so far.
        lowest: the lowest loss that it has seen, or None.
        waited: evaluations since then.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.factor = 1.0
        self.lowest: float | None = None
        self.waited = 0

    def lr(self, step: int, progress: float) -> float:
        """The rate of a step.

        Args:
            step: from 0.
            progress: part of the budget of epochs or minutes that is spent, 0 to 1.
        """
        config = self.config
        rate = config.lr * self.factor
        if config.warmup_steps:
            rate *= min(1.0, (step + 1) / config.warmup_steps)
        spent = min(max(progress, 0.0), 1.0)
        if config.schedule == "cosine":
            spent = 0.5 * (1 - math.cos(math.pi * spent))
        if config.schedule in ("cosine", "linear"):
            rate *= 1 - (1 - config.final_lr) * spent
        return rate

    def observe(self, loss: float) -> None:
        """Take note of a validation loss; a plateau lowers the rate.

        One that is not finite is no better than any other.
        """
        if self.config.schedule != "plateau":
            return
        if math.isfinite(loss) and (self.lowest is None or loss < self.lowest):
            self.lowest, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > self.config.plateau_patience:
            self.factor *= self.config.plateau_factor
            self.waited = 0


class MovingAverage:
    """The exponential moving average of parameters, with which models are judged and kept.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that random initial weights are
    forgotten at once.

    Attributes:
        parameters: those that are averaged, by name.
        average: their averages, of the same shapes and dtypes.
        updates: how many there were.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.average = copied(parameters)
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = [self.parameters[name] for name in self.average]
        torch._foreach_lerp_(list(self.average.values()), now, 1 - decay)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that later changes do not reach."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@contextmanager
def swapped_in(values: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Other values in place of the parameters while the context lasts."""
    kept = copied(parameters)
    assign(values, parameters)
    try:
        yield
    finally:
        assign(kept, parameters)


@torch.no_grad()
def assign(values: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Copy values into parameters of the same names."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
