"""The convolution with the last radial layer as a torch operator on GPUs.

Path weights [E, P, K] are stored for the time of a call, or made where they are used and never
stored. The layer's multiply-adds bind (``scripts/gpu_floors.py``), and where weights are made by
each kernel they are four times those of one product, where stored three times; so they are made
where storing them would take too much memory, in the forward pass and in first derivatives by edges
and nodes. A backward pass that is differentiated itself, or that wants the derivative by the
layer's weight, is a training's and stores them always.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clebsch.graph import AtomGraph
from clebsch.kernels.gpu.convolution import (
    GRAPH,
    Call,
    forward,
    gradients_like,
    out_like,
    read_gradients,
    walked,
)
from clebsch.kernels.gpu.operators import define, differentiable, last
from clebsch.kernels.operators import needed, remember
from clebsch.kernels.plan import ConvolutionPlan

#: Bytes of path weights that an evaluation stores at most.
MOST_STORED = 2**30


def convolve_radial(
    plan: ConvolutionPlan,
    hidden: Tensor,
    last_weight: Tensor,
    harmonics: Tensor,
    nodes: Tensor,
    graph: AtomGraph,
) -> Tensor:
    """See ``reference.convolve_radial``."""
    out: Tensor = torch.ops.clebsch_gpu.convolve_radial(
        plan.key, hidden, last_weight, harmonics, nodes, *walked(graph)
    )
    return out


def _convolve(
    plan: str, hidden: Tensor, last_weight: Tensor, harmonics: Tensor, nodes: Tensor, *graph: Tensor
) -> Tensor:
    if _are_stored(hidden, last_weight):
        weights = _path_weights(hidden, last_weight)
        stored: Tensor = torch.ops.clebsch_gpu.convolve(plan, weights, harmonics, nodes, *graph)
        return stored
    call = Call(plan, nodes, graph, hidden.shape[1])
    out = call.of_atoms(call.plan.out_dim)
    inputs = (hidden, last_weight, harmonics, nodes)
    call.by_receiver("convolve", forward(plan, "layer"), *inputs, out)
    return out


def _are_stored(hidden: Tensor, last_weight: Tensor) -> bool:
    n_weights = hidden.shape[0] * last_weight.shape[1] * last_weight.shape[2]
    return n_weights * hidden.element_size() <= MOST_STORED


def _path_weights(hidden: Tensor, last_weight: Tensor) -> Tensor:
    return (hidden @ last_weight.flatten(1)).unflatten(1, last_weight.shape[1:])


def _stored_gradients(
    plan: str,
    wanted: Sequence[bool],
    inputs: Sequence[Tensor],
    cotangent: Tensor,
    graph: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives by path weights, which are made and stored, by harmonics and by nodes."""
    hidden, last_weight, harmonics, nodes = inputs
    given = (_path_weights(hidden, last_weight), harmonics, nodes, cotangent)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.clebsch_gpu.convolve_gradients(
        plan, wanted, *given, *graph
    )
    return found


def _by_hidden(d_weights: Tensor, last_weight: Tensor) -> Tensor:
    return d_weights.flatten(1) @ last_weight.flatten(1).T


def _convolve_fake(
    plan: str, hidden: Tensor, last_weight: Tensor, harmonics: Tensor, nodes: Tensor, *graph: Tensor
) -> Tensor:
    return out_like(plan, nodes)


def _gradients(
    plan: str,
    wanted: Sequence[bool],
    hidden: Tensor,
    last_weight: Tensor,
    harmonics: Tensor,
    nodes: Tensor,
    cotangent: Tensor,
    *graph: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives by the hidden layer, harmonics and nodes; empty where not wanted."""
    inputs = (hidden, last_weight, harmonics, nodes)
    if _are_stored(hidden, last_weight):
        d_weights, d_harmonics, d_nodes = _stored_gradients(plan, wanted, inputs, cotangent, graph)
        d_hidden = _by_hidden(d_weights, last_weight) if wanted[0] else d_weights
        return d_hidden, d_harmonics, d_nodes
    call = Call(plan, nodes, graph, hidden.shape[1])
    return read_gradients(call, plan, "layer", wanted, *inputs, cotangent)


def _gradients_fake(
    plan: str,
    wanted: Sequence[bool],
    hidden: Tensor,
    last_weight: Tensor,
    harmonics: Tensor,
    nodes: Tensor,
    *rest: Tensor,
) -> tuple[Tensor, ...]:
    return gradients_like((hidden, harmonics, nodes), wanted)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    remember(ctx, inputs, 1)


def _backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    of_hidden, of_last, *others = (needed(ctx, index) for index in range(1, 5))
    inputs, graph = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
    (plan,) = ctx.settings
    d_last = None
    if of_last or torch.is_grad_enabled():
        hidden, last_weight = inputs[:2]
        wanted = [of_hidden or of_last, *others]
        d_weights, *rest = _stored_gradients(plan, wanted, inputs, cotangent, graph)
        d_hidden = _by_hidden(d_weights, last_weight) if of_hidden else None
        if of_last:
            d_last = (hidden.T @ d_weights.flatten(1)).unflatten(1, last_weight.shape[1:])
    else:
        d_hidden, *rest = torch.ops.clebsch_gpu.convolve_radial_gradients(
            plan, [of_hidden, *others], *inputs, cotangent, *graph
        )
    kept = [
        d if want else None for d, want in zip((d_hidden, *rest), (of_hidden, *others), strict=True)
    ]
    return (None, kept[0], d_last, *kept[1:], *(None for _ in graph))


_INPUTS = "Tensor hidden, Tensor last_weight, Tensor harmonics, Tensor nodes"
define(f"convolve_radial(str plan, {_INPUTS}, {GRAPH}) -> Tensor", _convolve, _convolve_fake)
define(
    f"convolve_radial_gradients(str plan, bool[] wanted, {_INPUTS}, Tensor cotangent, {GRAPH}) "
    "-> (Tensor, Tensor, Tensor)",
    _gradients,
    _gradients_fake,
)
differentiable("convolve_radial", _setup, _backward)
last("convolve_radial_gradients")
