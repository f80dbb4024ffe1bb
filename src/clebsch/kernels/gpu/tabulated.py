"""The convolution with tabulated path weights as a torch operator on GPUs, for inference.

Path weights are read out of the table where they are used, and never stored.
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
    edge_gradients,
    forward,
    gradients_like,
    node_gradient,
    out_like,
    walked,
)
from clebsch.kernels.gpu.operators import define, differentiable, last
from clebsch.kernels.operators import needed, remember
from clebsch.kernels.plan import ConvolutionPlan


def convolve_table(
    plan: ConvolutionPlan,
    places: Tensor,
    table: Tensor,
    harmonics: Tensor,
    nodes: Tensor,
    graph: AtomGraph,
) -> Tensor:
    """See ``reference.convolve_table``; the table is a constant, and there is one derivative."""
    out: Tensor = torch.ops.clebsch_gpu.convolve_table(
        plan.key, places, table, harmonics, nodes, *walked(graph)
    )
    return out


def _convolve(
    plan: str, places: Tensor, table: Tensor, harmonics: Tensor, nodes: Tensor, *graph: Tensor
) -> Tensor:
    call = Call(plan, nodes, graph)
    out = call.of_atoms(call.plan.out_dim)
    call.by_receiver("convolve", forward(plan, "table"), places, table, harmonics, nodes, out)
    return out


def _convolve_fake(
    plan: str, places: Tensor, table: Tensor, harmonics: Tensor, nodes: Tensor, *graph: Tensor
) -> Tensor:
    return out_like(plan, nodes)


def _gradients(
    plan: str,
    wanted: Sequence[bool],
    places: Tensor,
    table: Tensor,
    harmonics: Tensor,
    nodes: Tensor,
    cotangent: Tensor,
    *graph: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives by places, harmonics and nodes; empty where not wanted."""
    call, name = Call(plan, nodes, graph), "convolve_gradients"
    radial, harmonic, node = wanted
    by_place, by_harmonic = call.sums(name, places, radial), call.sums(name, harmonics, harmonic)
    if radial or harmonic:
        given = (places, table, harmonics, nodes, cotangent, by_place, by_harmonic, call.n_edges)
        call.by_receiver(name, edge_gradients(plan, radial, harmonic, "table"), *given)
    inputs = (places, table, harmonics, cotangent)
    d_nodes = call.of_senders("convolve_node_gradient", node_gradient(plan, "table"), node, *inputs)
    d_places = by_place.sum(0) if radial else by_place
    return d_places, by_harmonic.sum(0) if harmonic else by_harmonic, d_nodes


def _gradients_fake(
    plan: str,
    wanted: Sequence[bool],
    places: Tensor,
    table: Tensor,
    harmonics: Tensor,
    nodes: Tensor,
    *rest: Tensor,
) -> tuple[Tensor, ...]:
    return gradients_like((places, harmonics, nodes), wanted)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    remember(ctx, inputs, 1)


def _backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    if needed(ctx, 2):
        raise NotImplementedError("tabulated path weights are constants")
    wanted = [needed(ctx, index) for index in (1, 3, 4)]
    inputs, graph = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
    gradients = torch.ops.clebsch_gpu.convolve_table_gradients(
        *ctx.settings, wanted, *inputs, cotangent, *graph
    )
    places, harmonics, nodes = (
        gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)
    )
    return (None, places, None, harmonics, nodes, *(None for _ in graph))


_INPUTS = "Tensor places, Tensor table, Tensor harmonics, Tensor nodes"
define(f"convolve_table(str plan, {_INPUTS}, {GRAPH}) -> Tensor", _convolve, _convolve_fake)
define(
    f"convolve_table_gradients(str plan, bool[] wanted, {_INPUTS}, Tensor cotangent, {GRAPH}) "
    "-> (Tensor, Tensor, Tensor)",
    _gradients,
    _gradients_fake,
)
differentiable("convolve_table", _setup, _backward)
last("convolve_table_gradients")
