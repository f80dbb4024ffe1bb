"""The convolution as torch operators, with first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clebsch.graph import AtomGraph
from clebsch.kernels.cpu import machine, threads
from clebsch.kernels.cpu.convolution_code import write_forward, write_gradients, write_second
from clebsch.kernels.cpu.convolution_spec import BLOCK, TABLE, ConvolutionSpec, Wanted, turned
from clebsch.kernels.cpu.operators import define, differentiable, last
from clebsch.kernels.operators import kept, needed, remember_gradients, remember_plan
from clebsch.kernels.plan import ConvolutionPlan, convolution_plan_of


def convolve(
    plan: ConvolutionPlan, path_weights: Tensor, harmonics: Tensor, nodes: Tensor, graph: AtomGraph
) -> Tensor:
    """See ``reference.convolve``."""
    out: Tensor = torch.ops.clebsch.convolve(
        plan.key,
        path_weights,
        None,
        harmonics,
        nodes,
        graph.row_ptr,
        graph.senders,
        graph.receivers,
    )
    return out


def convolve_radial(
    plan: ConvolutionPlan,
    hidden: Tensor,
    last_weight: Tensor,
    harmonics: Tensor,
    nodes: Tensor,
    graph: AtomGraph,
) -> Tensor:
    """See ``reference.convolve_radial``."""
    bits = nodes.dtype.itemsize * 8
    spec = _spec(plan.key, nodes.shape[2], _filled(hidden.shape[1], bits), bits)
    missing = spec.hidden - hidden.shape[1]
    if missing:
        hidden = torch.nn.functional.pad(hidden, (0, missing))
        last_weight = torch.nn.functional.pad(last_weight, (0, 0, 0, 0, 0, missing))
    shaped = last_weight.unflatten(2, (spec.n_chunks, spec.chunk))
    packed = shaped.permute(2, 1, 0, 3).contiguous()  # [chunk, P, F, channel]
    out: Tensor = torch.ops.clebsch.convolve(
        plan.key, hidden, packed, harmonics, nodes, graph.row_ptr, graph.senders, graph.receivers
    )
    return out


def convolve_table(
    plan: ConvolutionPlan,
    places: Tensor,
    table: Tensor,
    harmonics: Tensor,
    nodes: Tensor,
    graph: AtomGraph,
) -> Tensor:
    """See ``reference.convolve_table``; the table is a constant, and there is one derivative."""
    spec = _spec(plan.key, nodes.shape[2], TABLE, nodes.dtype.itemsize * 8)
    shaped = table.unflatten(3, (spec.n_chunks, spec.chunk))
    packed = shaped.permute(0, 3, 2, 1, 4).contiguous()  # [n_knots, chunk, P, 2, channel]
    out: Tensor = torch.ops.clebsch.convolve(
        plan.key, places, packed, harmonics, nodes, graph.row_ptr, graph.senders, graph.receivers
    )
    return out


def _filled(hidden: int, bits: int) -> int:
    """The width of hidden layers, filled up to whole vectors."""
    wide = machine.wide(bits)
    return -(-hidden // wide) * wide


# --- operators: the radial argument is path weights [E, P, K], or hidden [E, F] with weights
# [chunk, P, F, channel], or places [E] with a table [n_knots, chunk, P, 2, channel]


def _convolve(
    plan: str,
    radial: Tensor,
    weight: Tensor | None,
    harmonics: Tensor,
    nodes: Tensor,
    row_ptr: Tensor,
    senders: Tensor,
    receivers: Tensor,
) -> Tensor:
    call = _Call(plan, radial, weight, harmonics, nodes, (row_ptr, senders, receivers))
    out = nodes.new_zeros((nodes.shape[0], call.spec.plan.out_dim, nodes.shape[2]))
    kernel = _kernel(call.spec, "convolve", None, False)
    given = (call.radial, call.weight, call.harmonics, call.nodes, out)
    call.run(kernel, lambda part: given)
    return out


def _convolve_fake(
    plan: str,
    radial: Tensor,
    weight: Tensor | None,
    harmonics: Tensor,
    nodes: Tensor,
    *graph: Tensor,
) -> Tensor:
    return nodes.new_empty((nodes.shape[0], convolution_plan_of(plan).out_dim, nodes.shape[2]))


def _gradients(
    plan: str,
    wanted: Sequence[bool],
    radial: Tensor,
    weight: Tensor | None,
    harmonics: Tensor,
    nodes: Tensor,
    cotangent: Tensor,
    weight_t: Tensor | None,
    row_ptr: Tensor,
    senders: Tensor,
    receivers: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives by radial, weight, harmonics and nodes; empty where not wanted."""
    if radial.ndim == 1 and wanted[1]:
        raise NotImplementedError("tabulated path weights are constants")
    call = _Call(plan, radial, weight, harmonics, nodes, (row_ptr, senders, receivers))
    kernel = _kernel(call.spec, "convolve_gradients", _wanted(wanted), False)
    derivatives = _Derivatives(call, wanted)
    held = cotangent.contiguous()
    turned = call.radial if weight_t is None else weight_t
    given = (call.radial, call.weight, turned, call.harmonics, call.nodes, held)
    call.run(kernel, lambda part: (*given, *derivatives.of_part(part)))
    return derivatives.gathered(harmonics)


def _gradients_fake(
    plan: str,
    wanted: Sequence[bool],
    radial: Tensor,
    weight: Tensor | None,
    harmonics: Tensor,
    nodes: Tensor,
    cotangent: Tensor,
    *fixed: Tensor | None,
) -> tuple[Tensor, ...]:
    sources = (radial, weight, harmonics, nodes)
    return tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        if want and tensor is not None
        else nodes.new_empty(0)
        for tensor, want in zip(sources, wanted, strict=True)
    )


def _second(
    plan: str,
    wanted: Sequence[bool],
    radial: Tensor,
    weight: Tensor | None,
    harmonics: Tensor,
    nodes: Tensor,
    cotangent: Tensor,
    t_radial: Tensor,
    t_harmonics: Tensor,
    t_nodes: Tensor | None,
    weight_t: Tensor | None,
    row_ptr: Tensor,
    senders: Tensor,
    receivers: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of ``t_radial . d_radial + t_harmonics . d_harmonics + t_nodes . d_nodes``."""
    if radial.ndim == 1:
        raise NotImplementedError("tabulated path weights have no second derivative")
    call = _Call(plan, radial, weight, harmonics, nodes, (row_ptr, senders, receivers))
    kernel = _kernel(call.spec, "convolve_second", _wanted(wanted), t_nodes is not None)
    derivatives = _Derivatives(call, wanted)
    d_cotangent = torch.zeros(cotangent.shape, dtype=cotangent.dtype)
    held = (
        (call.radial, t_radial.contiguous(), call.weight),
        (call.radial if weight_t is None else weight_t,),
        (call.harmonics, call.across(t_harmonics), call.nodes),
        (call.nodes if t_nodes is None else t_nodes.contiguous(), cotangent.contiguous()),
    )
    given = tuple(tensor for group in held for tensor in group)
    call.run(kernel, lambda part: (*given, *derivatives.of_part(part), d_cotangent))
    return (*derivatives.gathered(harmonics), d_cotangent)


def _second_fake(
    plan: str,
    wanted: Sequence[bool],
    radial: Tensor,
    weight: Tensor | None,
    harmonics: Tensor,
    nodes: Tensor,
    cotangent: Tensor,
    *rest: Tensor | None,
) -> tuple[Tensor, ...]:
    first = _gradients_fake(plan, wanted, radial, weight, harmonics, nodes, cotangent)
    return (*first, torch.empty_like(cotangent, memory_format=torch.contiguous_format))


def _convolve_backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    wanted = [needed(ctx, index) for index in range(1, 5)]
    *inputs, row_ptr, senders, receivers = ctx.saved_tensors
    weight_t = _turned(inputs[1])
    gradients = torch.ops.clebsch.convolve_gradients(
        *ctx.settings, wanted, *inputs, cotangent, weight_t, row_ptr, senders, receivers
    )
    return (None, *kept(gradients, wanted), None, None, None)


def _gradients_backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
    plan, returned = ctx.settings
    wanted = [needed(ctx, index) for index in range(2, 6)]
    radial, weight, harmonics, nodes, cotangent, weight_t, *graph = ctx.saved_tensors
    t_radial, t_weight, t_harmonics, t_nodes = kept(directions, returned)
    results: list[Tensor | None] = [None] * 5
    if t_radial is not None or t_harmonics is not None or t_nodes is not None:
        second = torch.ops.clebsch.convolve_second(
            plan,
            wanted,
            radial,
            weight,
            harmonics,
            nodes,
            cotangent,
            torch.zeros_like(radial) if t_radial is None else t_radial,
            torch.zeros_like(harmonics) if t_harmonics is None else t_harmonics,
            t_nodes,
            weight_t,
            *graph,
        )
        results = kept(second, [*wanted, True])
    if t_weight is not None:  # the convolution is linear in the last radial weight
        wanted[1] = False
        more = torch.ops.clebsch.convolve_gradients(
            plan,
            wanted,
            radial,
            t_weight,
            harmonics,
            nodes,
            cotangent,
            _turned(t_weight),
            *graph,
        )
        across = torch.ops.clebsch.convolve(plan, radial, t_weight, harmonics, nodes, *graph)
        for place, term in enumerate((*more, across)):
            if place == 4 or wanted[place]:
                held = results[place]
                results[place] = term if held is None else held + term
    return (None, None, *results, None, None, None, None)


def _turned(weight: Tensor | None) -> Tensor | None:
    """Packed weights for the derivative by the hidden layer, a constant.

    None where path weights come out of something else.
    """
    return None if weight is None or weight.ndim == 5 else turned(weight.detach())


_GRAPH = "Tensor row_ptr, Tensor senders, Tensor receivers"
_INPUTS = "Tensor radial, Tensor? weight, Tensor harmonics, Tensor nodes"
define(f"convolve(str plan, {_INPUTS}, {_GRAPH}) -> Tensor", _convolve, _convolve_fake)
define(
    f"convolve_gradients(str plan, bool[] wanted, {_INPUTS}, Tensor cotangent, "
    f"Tensor? weight_t, {_GRAPH}) -> (Tensor, Tensor, Tensor, Tensor)",
    _gradients,
    _gradients_fake,
)
define(
    f"convolve_second(str plan, bool[] wanted, {_INPUTS}, Tensor cotangent, Tensor t_radial, "
    f"Tensor t_harmonics, Tensor? t_nodes, Tensor? weight_t, {_GRAPH}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _second,
    _second_fake,
)
differentiable("convolve", remember_plan, _convolve_backward)
differentiable("convolve_gradients", remember_gradients, _gradients_backward)
last("convolve_second")


# --- calls ---


class _Call:
    """The inputs of a call as the kernels want them, and how its receivers are divided."""

    def __init__(
        self,
        plan: str,
        radial: Tensor,
        weight: Tensor | None,
        harmonics: Tensor,
        nodes: Tensor,
        graph: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        bits = nodes.dtype.itemsize * 8
        hidden = (TABLE, radial.shape[-1], 0)[radial.ndim - 1]
        self.spec = _spec(plan, nodes.shape[2], hidden, bits)
        self.n_edges, self.n_atoms = radial.shape[0], nodes.shape[0]
        self.radial, self.nodes = radial.contiguous(), nodes.contiguous()
        self.weight = self.radial if weight is None else weight.contiguous()
        self.harmonics = self.across(harmonics)
        self.graph = graph
        per_edge = len(self.spec.plan.entries) + max(hidden, 4) * self.spec.plan.n_paths
        self.cost = self.n_edges * per_edge * nodes.shape[2]
        self.shares = threads.shares(self.n_atoms, self.cost, graph[0])

    def across(self, harmonics: Tensor) -> Tensor:
        """Harmonics as [S, E + BLOCK]."""
        out = harmonics.new_zeros((harmonics.shape[1], self.n_edges + BLOCK))
        out[:, : self.n_edges] = harmonics.t()
        return out

    def run(self, kernel: machine.Kernel, tensors: Callable[[int], Sequence[Tensor]]) -> None:
        """Run a kernel on every share; ``tensors(part)`` follow the graph's."""
        if self.n_edges == 0:
            return
        graph = [tensor.contiguous() for tensor in self.graph]
        dtype = self.nodes.dtype
        threads.launch(
            kernel, dtype, self.shares, lambda part: (*graph, *tensors(part)), self.n_edges
        )


class _Derivatives:
    """The results of a call: shared where rows belong to receivers, else one for each share."""

    def __init__(self, call: _Call, wanted: Sequence[bool]) -> None:
        self.wanted = list(wanted)
        spec, n_parts = call.spec, len(call.shares)
        dtype = call.nodes.dtype
        unused = call.nodes.new_empty(0)
        self.radial = torch.zeros(call.radial.shape, dtype=dtype)
        self.harmonics = torch.zeros((call.n_edges, spec.n_harmonics), dtype=dtype)
        self.weights = self.nodes = [unused] * n_parts
        if wanted[1]:
            self.weights = threads.copies(torch.zeros(call.weight.shape, dtype=dtype), n_parts)
        if wanted[3]:
            self.nodes = threads.copies(torch.zeros(call.nodes.shape, dtype=dtype), n_parts)

    def of_part(self, part: int) -> tuple[Tensor, ...]:
        """d_radial, d_weight, d_harmonics, d_nodes of a share."""
        return self.radial, self.weights[part], self.harmonics, self.nodes[part]

    def gathered(self, harmonics: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Derivatives of the shapes of what they belong to; empty where not wanted."""
        threads.gather(self.weights if self.wanted[1] else [])
        threads.gather(self.nodes if self.wanted[3] else [])
        d_harmonics = self.harmonics
        if d_harmonics.shape[1] != harmonics.shape[1]:
            d_harmonics = d_harmonics[:, : harmonics.shape[1]].contiguous()
        results = (self.radial, self.weights[0], d_harmonics, self.nodes[0])
        first, second, third, fourth = (
            result if want else harmonics.new_empty(0)
            for result, want in zip(results, self.wanted, strict=True)
        )
        return first, second, third, fourth


@lru_cache(maxsize=256)
def _spec(plan: str, channels: int, hidden: int, bits: int) -> ConvolutionSpec:
    return ConvolutionSpec(channels, bits, convolution_plan_of(plan), hidden)


def _wanted(wanted: Sequence[bool]) -> Wanted:
    radial, weight, harmonics, nodes = wanted
    return Wanted(radial=radial, weight=weight, nodes=nodes, harmonics=harmonics)


@lru_cache(maxsize=1024)
def _kernel(
    spec: ConvolutionSpec, kind: str, wanted: Wanted | None, moving_nodes: bool
) -> machine.Kernel:
    if kind == "convolve":
        return machine.kernel(kind, 9, 3, spec.key, lambda: write_forward(spec, kind))
    assert wanted is not None
    if kind == "convolve_gradients":
        return machine.kernel(
            kind, 14, 3, f"{spec.key}|{wanted}", lambda: write_gradients(spec, wanted, kind)
        )
    return machine.kernel(
        kind,
        18,
        3,
        f"{spec.key}|{wanted}|{moving_nodes}",
        lambda: write_second(spec, wanted, moving_nodes, kind),
    )
