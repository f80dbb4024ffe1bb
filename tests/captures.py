"""What stands in for CUDA graphs on a CPU, and gradients that are taken with it."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import clebsch
from clebsch.graph import AtomGraph
from clebsch.replay import Captures


class InPlace:
    """Captures functions of a CPU: their tensors are written over when they are replayed.

    Captures share memory: replaying one also destroys the results of all later ones, which may lie
    where it has temporary tensors.

    Attributes:
        captures: how many there have been.
        live: those whose results somebody still holds.
    """

    def __init__(self) -> None:
        self.captures = 0
        self.live: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self._results: list[list[weakref.ref[Tensor]]] = []

    def capture(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], object]]:
        held = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, function())
        self.captures += 1
        tensors = [x for x in pytree.tree_leaves(held) if isinstance(x, Tensor)]
        for tensor in tensors:
            tensor.fill_(0)
        self.live.update(tensors[:1])
        self._results.append([weakref.ref(tensor) for tensor in tensors])
        later = len(self._results)

        def replay() -> None:
            for reference in itertools.chain(*self._results[later:]):
                tensor = reference()
                if tensor is not None and tensor.is_floating_point():
                    tensor.fill_(math.nan)
            now = [x for x in pytree.tree_leaves(function()) if isinstance(x, Tensor)]
            for tensor, value in zip(tensors, now, strict=True):
                tensor.copy_(value)

        return held, replay


def capture_with(monkeypatch: pytest.MonkeyPatch, capturer: Any) -> None:
    monkeypatch.setattr("clebsch.repeats.RECORD_AFTER", 0)
    monkeypatch.setattr("clebsch.replay.CAPTURE_AT", 1)
    monkeypatch.setattr("clebsch.repeats.captures_of", lambda device: Captures(capturer))


def gradients(tested: clebsch.Potential, graphs: list[AtomGraph]) -> list[Tensor]:
    """Of a loss on all of some batches, evaluated before the first is differentiated."""
    loss = torch.zeros((), dtype=torch.float64)
    for graph in graphs:
        prediction = tested(graph, ("energy", "forces", "virial"), differentiable=True)
        for name in ("energy", "forces", "virial"):
            loss = loss + getattr(prediction, name).square().sum()
    return list(torch.autograd.grad(loss, list(tested.parameters()), materialize_grads=True))
