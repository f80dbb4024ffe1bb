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
    forward,
    gradients_like,
    out_like,
    read_gradients,
    walked,
)
from clebsch.kernels.gpu.operators import define, differentiable, last
from clebsch.kernels.operators import kept, needed, remember_plan
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
    out = call.of_receivers()
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
    inputs = (places, table, harmonics, nodes, cotangent)
    return read_gradients(Call(plan, nodes, graph), plan, "table", wanted, *inputs)


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


def _backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    if needed(ctx, 2):
        raise NotImplementedError("tabulated path weights are constants")
    wanted = [needed(ctx, index) for index in (1, 3, 4)]
    inputs, graph = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
    gradients = torch.ops.clebsch_gpu.convolve_table_gradients(
        *ctx.settings, wanted, *inputs, cotangent, *graph
    )
    places, harmonics, nodes = kept(gradients, wanted)
    return (None, places, None, harmonics, nodes, *(None for _ in graph))


_INPUTS = "Tensor places, Tensor table, Tensor harmonics, Tensor nodes"
define(f"convolve_table(str plan, {_INPUTS}, {GRAPH}) -> Tensor", _convolve, _convolve_fake)
define(
    f"convolve_table_gradients(str plan, bool[] wanted, {_INPUTS}, Tensor cotangent, {GRAPH}) "
    "-> (Tensor, Tensor, Tensor)",
    _gradients,
    _gradients_fake,
)
differentiable("convolve_table", remember_plan, _backward)
last("convolve_table_gradients")
