"""The convolution with the last radial layer as torch operators on GPUs, twice differentiable.

Path weights [E, P, K] of a whole structure are the largest tensors there would be. Where they fit
into ``MOST_STORED`` bytes they are stored for the time of a call; the layer's multiply-adds bind
(``scripts/gpu_floors.py``), and of those storing takes the fewest. Where they do not fit, they are
stored for one block of edges after the other. Evaluations that may round factors to tf32 have the
forward pass and first derivatives by edges and nodes make them inside their kernels instead, for
each of these anew: tensor cores multiply then, and nothing is stored. In full precision a warp
would read shared memory three times as long as it multiplies (docs/performance.md, GPU: floors).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from clebsch.graph import AtomGraph
from clebsch.kernels.convolution_operators import define_convolution
from clebsch.kernels.gpu.convolution import (
    GRAPH,
    Call,
    forward,
    graph_tensors,
    read_gradients,
    rounds_to_tf32,
)
from clebsch.kernels.gpu.operators import operators
from clebsch.kernels.plan import ConvolutionPlan

#: Bytes of path weights that are stored at once, at most.
MOST_STORED = 3 * 2**29
#: A block has a multiple of so many edges: what is read of it begins at a cache line.
ALIGNED = 16
#: When evaluations make path weights inside the convolution, if not all can be stored.
FUSED: Literal["always", "tf32", "never"] = "tf32"


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
        plan.key, hidden, last_weight, harmonics, nodes, *graph_tensors(graph)
    )
    return out


# --- operators ---


def _convolve(
    plan: str, hidden: Tensor, last_weight: Tensor, harmonics: Tensor, nodes: Tensor, *graph: Tensor
) -> Tensor:
    if _is_fused(hidden, last_weight):
        call = Call(plan, nodes, graph, hidden.shape[1])
        out = call.of_receivers()
        inputs = (hidden, last_weight, harmonics, nodes)
        call.by_receiver("convolve", forward(plan, "layer"), *inputs, out)
        return out
    total: Tensor | None = None
    for edges, part in _blocks(hidden, last_weight, graph, by_sender=False):
        given = (_path_weights(hidden[edges], last_weight), harmonics[edges], nodes)
        some: Tensor = torch.ops.clebsch_gpu.convolve(plan, *given, *part)
        total = some if total is None else total.add_(some)
    assert total is not None
    return total


def _gradients(
    plan: str,
    wanted: Sequence[bool],
    hidden: Tensor,
    last_weight: Tensor,
    harmonics: Tensor,
    nodes: Tensor,
    cotangent: Tensor,
    *graph: Tensor,
) -> tuple[Tensor, ...]:
    """Derivatives by hidden layer, last weight, harmonics and nodes; empty where not wanted."""
    inputs = (hidden, last_weight, harmonics, nodes)
    of_hidden, of_last, *others = wanted
    if not of_last and _is_fused(hidden, last_weight):
        call = Call(plan, nodes, graph, hidden.shape[1])
        return read_gradients(call, plan, "layer", wanted, *inputs, cotangent)

    def of_blocks() -> Iterator[tuple[Tensor, ...]]:
        for edges, part in _blocks(hidden, last_weight, graph, by_sender=others[1]):
            some = hidden[edges]
            given = (_path_weights(some, last_weight), harmonics[edges], nodes, cotangent)
            d_weights, *rest = torch.ops.clebsch_gpu.convolve_gradients(
                plan, [of_hidden or of_last, *others], *given, *part
            )
            yield *_of_layer(wanted, d_weights, some, last_weight), *rest

    return _summed(of_blocks())


def _second(
    plan: str,
    wanted: Sequence[bool],
    hidden: Tensor,
    last_weight: Tensor,
    harmonics: Tensor,
    nodes: Tensor,
    cotangent: Tensor,
    t_hidden: Tensor | None,
    t_last: Tensor | None,
    t_harmonics: Tensor | None,
    t_nodes: Tensor | None,
    *graph: Tensor,
) -> tuple[Tensor, ...]:
    """Derivatives of the sum over inputs of ``direction . (first derivative)``.

    By hidden layer, last weight, harmonics and nodes, empty where not wanted, and by cotangent.
    Path weights move with hidden layer and last weight; the first derivative by them moves the
    derivatives by those two with their directions.
    """
    of_hidden, of_last, *others = wanted

    def of_blocks() -> Iterator[tuple[Tensor, ...]]:
        for edges, part in _blocks(hidden, last_weight, graph, by_sender=True):
            some = hidden[edges]
            t_some = None if t_hidden is None else t_hidden[edges]
            moving = None if t_some is None else _path_weights(t_some, last_weight)
            if t_last is not None:
                by_last = _path_weights(some, t_last)
                moving = by_last if moving is None else moving + by_last
            given = (_path_weights(some, last_weight), harmonics[edges], nodes, cotangent)
            turning = None if t_harmonics is None else t_harmonics[edges]
            d_weights, *rest = torch.ops.clebsch_gpu.convolve_second(
                plan, [of_hidden or of_last, *others], *given, moving, turning, t_nodes, *part
            )
            of_layer = _of_layer(wanted, d_weights, some, last_weight)
            if (of_hidden and t_last is not None) or (of_last and t_some is not None):
                (first, *_) = torch.ops.clebsch_gpu.convolve_gradients(
                    plan, [True, False, False], *given, *part
                )
                more = _of_layer(wanted, first, t_some, t_last)
                of_layer = [a + b if b.numel() else a for a, b in zip(of_layer, more, strict=True)]
            yield *of_layer, *rest

    return _summed(of_blocks())


define_convolution(
    operators,
    "convolve_radial",
    (_convolve, _gradients, _second),
    inputs=("Tensor hidden", "Tensor last_weight", "Tensor harmonics", "Tensor nodes"),
    fixed=GRAPH,
)


# --- path weights of some edges, and derivatives by them ---


def _edges_of_block(last_weight: Tensor) -> int:
    """Edges whose path weights are stored at once, at most."""
    most = MOST_STORED // (last_weight[0].numel() * last_weight.element_size())
    return max(1, most // ALIGNED * ALIGNED or most)


def _is_fused(hidden: Tensor, last_weight: Tensor) -> bool:
    """Whether path weights are made inside the convolution: too many to be stored at once."""
    chosen = FUSED == "always" or (FUSED == "tf32" and rounds_to_tf32(hidden.dtype))
    return chosen and hidden.shape[0] > _edges_of_block(last_weight)


def _path_weights(hidden: Tensor, last_weight: Tensor) -> Tensor:
    return (hidden @ last_weight.flatten(1)).unflatten(1, last_weight.shape[1:])


def _blocks(
    hidden: Tensor, last_weight: Tensor, graph: Sequence[Tensor], by_sender: bool
) -> Iterator[tuple[slice, Sequence[Tensor]]]:
    """Edges whose path weights are stored at once, and the graph that they alone would make.

    Their order by senders, which takes a sort, is that of the whole unless it is asked for. A
    receiver's edges may lie in two blocks. Nothing here waits for the device.
    """
    n_edges, most = hidden.shape[0], _edges_of_block(last_weight)
    if n_edges <= most:
        yield slice(None), graph
        return
    row_ptr, senders, receivers, *ordered = graph
    atoms = torch.arange(len(ordered[0]), device=senders.device)
    for start in range(0, n_edges, most):
        edges = slice(start, min(start + most, n_edges))
        some = senders[edges]
        if by_sender:
            of_atoms, order = some.sort(stable=True)
            ordered = [torch.searchsorted(of_atoms, atoms), order]
        ends = row_ptr.clamp(edges.start, edges.stop) - edges.start
        yield edges, (ends, some, receivers[edges], *ordered)


def _of_layer(
    wanted: Sequence[bool], d_weights: Tensor, hidden: Tensor | None, last_weight: Tensor | None
) -> list[Tensor]:
    """Derivatives by both factors of path weights; empty where not wanted, or the other is None."""
    of_hidden, of_last, *_ = wanted
    by_hidden = by_last = d_weights.new_empty(0)
    if of_hidden and last_weight is not None:
        by_hidden = d_weights.flatten(1) @ last_weight.flatten(1).T
    if of_last and hidden is not None:
        by_last = (hidden.T @ d_weights.flatten(1)).unflatten(1, d_weights.shape[1:])
    return [by_hidden, by_last]


def _summed(blocks: Iterator[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Derivatives of all edges together.

    Args:
        blocks: of each, those by hidden layer, last weight and harmonics, and any number of others.
            Hidden layer and harmonics have rows for edges, everything else is summed.
    """
    by_hidden, by_harmonics, sums = [], [], None
    for d_hidden, d_last, d_harmonics, *others in blocks:
        by_hidden.append(d_hidden)
        by_harmonics.append(d_harmonics)
        here = [d_last, *others]
        sums = here if sums is None else [a.add_(b) for a, b in zip(sums, here, strict=True)]
    d_hidden, d_harmonics = (
        rows[0] if len(rows) == 1 else torch.cat(rows) for rows in (by_hidden, by_harmonics)
    )
    assert sums is not None
    return d_hidden, sums[0], d_harmonics, *sums[1:]
