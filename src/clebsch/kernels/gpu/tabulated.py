"""The convolution with tabulated path weights as a torch operator on GPUs, for inference.

Path weights are read out of the table where they are used, and never stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clebsch.graph import AtomGraph
from clebsch.kernels.convolution_operators import define_convolution
from clebsch.kernels.gpu.convolution import GRAPH, Call, forward, graph_tensors, read_gradients
from clebsch.kernels.gpu.operators import operators
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
        plan.key, places, table, harmonics, nodes, *graph_tensors(graph)
    )
    return out


def _convolve(
    plan: str, places: Tensor, table: Tensor, harmonics: Tensor, nodes: Tensor, *graph: Tensor
) -> Tensor:
    call = Call(plan, nodes, graph)
    out = call.of_receivers()
    call.by_receiver("convolve", forward(plan, "table"), places, table, harmonics, nodes, out)
    return out


def _gradients(
    plan: str,
    wanted: Sequence[bool],
    places: Tensor,
    table: Tensor,
    harmonics: Tensor,
    nodes: Tensor,
    cotangent: Tensor,
    *graph: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives by places, harmonics and nodes; empty where not wanted, as by the table."""
    if wanted[1]:
        raise NotImplementedError("tabulated path weights are constants")
    inputs = (places, table, harmonics, nodes, cotangent)
    return read_gradients(Call(plan, nodes, graph), plan, "table", wanted, *inputs)


define_convolution(
    operators,
    "convolve_table",
    (_convolve, _gradients),
    inputs=("Tensor places", "Tensor table", "Tensor harmonics", "Tensor nodes"),
    fixed=GRAPH,
)
