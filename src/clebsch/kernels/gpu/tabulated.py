"""The convolution with tabulated path weights as a torch operator on GPUs, for inference.

Path weights are read out of the table where they are used, and never stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clebsch.graph import AtomGraph
from clebsch.kernels.gpu import convolution_code as code
from clebsch.kernels.gpu import machine
from clebsch.kernels.gpu.convolution import Call
from clebsch.kernels.gpu.operators import define, differentiable, last
from clebsch.kernels.operators import needed, remember
from clebsch.kernels.plan import ConvolutionPlan, convolution_plan_of


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
        plan.key,
        places,
        table,
        harmonics,
        nodes,
        graph.row_ptr,
        graph.senders,
        graph.receivers,
        graph.sender_ptr,
        graph.sender_order,
    )
    return out


def _convolve(
    plan: str, places: Tensor, table: Tensor, harmonics: Tensor, nodes: Tensor, *graph: Tensor
) -> Tensor:
    call = Call(plan, nodes, graph)
    out = call.of_atoms(call.plan.out_dim)
    call.by_receiver("convolve", _forward(plan), places, table, harmonics, nodes, out)
    return out


def _convolve_fake(
    plan: str, places: Tensor, table: Tensor, harmonics: Tensor, nodes: Tensor, *graph: Tensor
) -> Tensor:
    return nodes.new_empty((nodes.shape[0], convolution_plan_of(plan).out_dim, nodes.shape[2]))


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
        call.by_receiver(name, _edge_gradients(plan, radial, harmonic), *given)
    d_nodes = nodes.new_empty(0)
    if node:
        d_nodes = call.of_atoms(call.plan.node_irreps.dim)
        inputs = (places, table, harmonics, cotangent)
        call.by_sender("convolve_node_gradient", _node_gradient(plan), *inputs, d_nodes)
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
    return tuple(
        tensor.new_empty(tensor.shape if want else (0,))
        for tensor, want in zip((places, harmonics, nodes), wanted, strict=True)
    )


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


_GRAPH = "Tensor row_ptr, Tensor senders, Tensor receivers, Tensor sender_ptr, Tensor sender_order"
_INPUTS = "Tensor places, Tensor table, Tensor harmonics, Tensor nodes"
define(f"convolve_table(str plan, {_INPUTS}, {_GRAPH}) -> Tensor", _convolve, _convolve_fake)
define(
    f"convolve_table_gradients(str plan, bool[] wanted, {_INPUTS}, Tensor cotangent, {_GRAPH}) "
    "-> (Tensor, Tensor, Tensor)",
    _gradients,
    _gradients_fake,
)
differentiable("convolve_table", _setup, _backward)
last("convolve_table_gradients")


@lru_cache(maxsize=256)
def _forward(plan: str) -> Any:
    return machine.kernel("convolve", code.write_forward(convolution_plan_of(plan), True))


@lru_cache(maxsize=256)
def _edge_gradients(plan: str, radial: bool, harmonics: bool) -> Any:
    wanted = code.Wanted(radial, harmonics)
    source = code.write_gradients(convolution_plan_of(plan), wanted, True)
    return machine.kernel("convolve_gradients", source)


@lru_cache(maxsize=256)
def _node_gradient(plan: str) -> Any:
    source = code.write_node_gradient(convolution_plan_of(plan), True)
    return machine.kernel("convolve_node_gradient", source)
