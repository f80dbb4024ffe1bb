"""The convolution as torch operators, with first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from clebsch.graph import AtomGraph
from clebsch.kernels.convolution_operators import define_convolution
from clebsch.kernels.cpu import machine, threads
from clebsch.kernels.cpu.convolution_code import write_forward, write_gradients, write_second
from clebsch.kernels.cpu.convolution_spec import BLOCK, TABLE, ConvolutionSpec, Wanted, turned
from clebsch.kernels.cpu.operators import operators
from clebsch.kernels.plan import ConvolutionPlan, convolution_plan_of


def convolve(
    plan: ConvolutionPlan, path_weights: Tensor, harmonics: Tensor, nodes: Tensor, graph: AtomGraph
) -> Tensor:
    """See ``reference.convolve``."""
    return _call_operator(plan, path_weights, None, harmonics, nodes, graph)


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
    return _call_operator(plan, hidden, packed, harmonics, nodes, graph)


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
    return _call_operator(plan, places, packed, harmonics, nodes, graph)


def _call_operator(
    plan: ConvolutionPlan,
    radial: Tensor,
    weight: Tensor | None,
    harmonics: Tensor,
    nodes: Tensor,
    graph: AtomGraph,
) -> Tensor:
    edges = (graph.row_ptr, graph.senders, graph.receivers)
    out: Tensor = torch.ops.clebsch.convolve(
        plan.key, radial, weight, harmonics, nodes, _turned(weight), *edges
    )
    return out


def _filled(hidden: int, bits: int) -> int:
    """The width of hidden layers, filled up to whole vectors."""
    wide = machine.wide(bits)
    return -(-hidden // wide) * wide


def _turned(weight: Tensor | None) -> Tensor | None:
    """Packed weights for the derivative by the hidden layer, a constant.

    None where path weights come out of something else.
    """
    return None if weight is None or weight.ndim == 5 else turned(weight.detach())


# --- operators: the radial argument is path weights [E, P, K], or hidden [E, F] with weights
# [chunk, P, F, channel], or places [E] with a table [n_knots, chunk, P, 2, channel]


def _convolve(
    plan: str,
    radial: Tensor,
    weight: Tensor | None,
    harmonics: Tensor,
    nodes: Tensor,
    weight_t: Tensor | None,
    *graph: Tensor,
) -> Tensor:
    call = _Call(plan, radial, weight, harmonics, nodes, graph)
    out = nodes.new_zeros((nodes.shape[0], call.spec.plan.out_dim, nodes.shape[2]))
    kernel = _kernel(call.spec, "convolve", None, False)
    given = (call.radial, call.weight, call.harmonics, call.nodes, out)
    call.run(kernel, lambda part: given)
    return out


def _gradients(
    plan: str,
    wanted: Sequence[bool],
    radial: Tensor,
    weight: Tensor | None,
    harmonics: Tensor,
    nodes: Tensor,
    cotangent: Tensor,
    weight_t: Tensor | None,
    *graph: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives by radial, weight, harmonics and nodes; empty where not wanted."""
    if radial.ndim == 1 and wanted[1]:
        raise NotImplementedError("tabulated path weights are constants")
    call = _Call(plan, radial, weight, harmonics, nodes, graph)
    kernel = _kernel(call.spec, "convolve_gradients", _wanted(wanted), False)
    derivatives = _Derivatives(call, wanted)
    held = cotangent.contiguous()
    turned = call.radial if weight_t is None else weight_t
    given = (call.radial, call.weight, turned, call.harmonics, call.nodes, held)
    call.run(kernel, lambda part: (*given, *derivatives.of_part(part)))
    return derivatives.gathered(harmonics)


def _second(
    plan: str,
    wanted: Sequence[bool],
    radial: Tensor,
    weight: Tensor | None,
    harmonics: Tensor,
    nodes: Tensor,
    cotangent: Tensor,
    t_radial: Tensor | None,
    t_weight: Tensor | None,
    t_harmonics: Tensor | None,
    t_nodes: Tensor | None,
    weight_t: Tensor | None,
    *graph: Tensor,
) -> tuple[Tensor, ...]:
    """Derivatives of the sum over inputs of ``direction . (first derivative)``.

    By radial, weight, harmonics and nodes, empty where not wanted, and by cotangent.
    """
    if radial.ndim == 1:
        raise NotImplementedError("tabulated path weights have no second derivative")
    call = _Call(plan, radial, weight, harmonics, nodes, graph)
    kernel = _kernel(call.spec, "convolve_second", _wanted(wanted), t_nodes is not None)
    derivatives = _Derivatives(call, wanted)
    d_cotangent = torch.zeros(cotangent.shape, dtype=cotangent.dtype)
    moving = torch.zeros_like(call.radial) if t_radial is None else t_radial.contiguous()
    turning = torch.zeros_like(harmonics) if t_harmonics is None else t_harmonics
    held = (
        (call.radial, moving, call.weight),
        (call.radial if weight_t is None else weight_t,),
        (call.harmonics, call.across(turning), call.nodes),
        (call.nodes if t_nodes is None else t_nodes.contiguous(), cotangent.contiguous()),
    )
    given = tuple(tensor for group in held for tensor in group)
    call.run(kernel, lambda part: (*given, *derivatives.of_part(part), d_cotangent))
    results = (*derivatives.gathered(harmonics), d_cotangent)
    if t_weight is None:
        return results
    # The convolution is linear in the last radial weight.
    inputs = (radial, t_weight, harmonics, nodes)
    others = [wanted[0], False, *wanted[2:]]
    first = _gradients(plan, others, *inputs, cotangent, _turned(t_weight), *graph)
    value = _convolve(plan, *inputs, None, *graph)
    pairs = zip(results, (*first, value), strict=True)
    return tuple(total + term if term.numel() else total for total, term in pairs)


define_convolution(
    operators,
    "convolve",
    (_convolve, _gradients, _second),
    inputs=("Tensor radial", "Tensor? weight", "Tensor harmonics", "Tensor nodes"),
    fixed=("Tensor? weight_t", "Tensor row_ptr", "Tensor senders", "Tensor receivers"),
)


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
        graph: Sequence[Tensor],
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
