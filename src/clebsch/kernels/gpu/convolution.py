"""The convolution as torch operators on GPUs, with first and second derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clebsch.graph import AtomGraph
from clebsch.kernels.convolution_operators import define_convolution
from clebsch.kernels.gpu import convolution_code as code
from clebsch.kernels.gpu import machine
from clebsch.kernels.gpu.convolution_walk import (
    Radial,
    outputs_of,
    parts_by_node,
    parts_by_output,
    sent_by,
)
from clebsch.kernels.gpu.operators import operators
from clebsch.kernels.gpu.tuning import Setting
from clebsch.kernels.plan import ConvolutionPlan, convolution_plan_of
from clebsch.rounding import tf32_is_allowed

#: Channels that a thread takes: what belongs to all channels of an edge is computed once for them.
PER_THREAD = {
    "convolve": 4,
    "convolve_gradients": 2,
    "convolve_node_gradient": 2,
    "convolve_second": 2,
    "convolve_second_node": 2,
}

#: Kernels that neither sum over channels nor read what they write: more warps, with fewer channels
#: for each thread, leave every bit as it is, and the GPU at hand says how many are fastest.
FREE = ("convolve", "convolve_node_gradient", "convolve_second_node")
MOST_WARPS = 4

#: Warps of a program that makes path weights, and its channels, at most: a value of 16 edges is
#: then 2 registers of a thread; with 4 warps they spilled.
WARPS, MOST_CHANNELS = 8, 32


def convolve(
    plan: ConvolutionPlan, path_weights: Tensor, harmonics: Tensor, nodes: Tensor, graph: AtomGraph
) -> Tensor:
    """See ``reference.convolve``."""
    out: Tensor = torch.ops.clebsch_gpu.convolve(
        plan.key, path_weights, harmonics, nodes, *graph_tensors(graph)
    )
    return out


#: What operators take of a graph, as a schema has it.
GRAPH = (
    "Tensor row_ptr",
    "Tensor senders",
    "Tensor receivers",
    "Tensor sender_ptr",
    "Tensor sender_order",
)


def graph_tensors(graph: AtomGraph) -> tuple[Tensor, ...]:
    """The tensors of ``GRAPH``."""
    ends = (graph.row_ptr, graph.senders, graph.receivers)
    return (*ends, graph.sender_ptr, graph.sender_order)


def rounds_to_tf32(dtype: torch.dtype) -> bool:
    """Whether factors of matrix products of that type are rounded."""
    return tf32_is_allowed() and dtype == torch.float32


# --- operators ---


def _convolve(
    plan: str, path_weights: Tensor, harmonics: Tensor, nodes: Tensor, *graph: Tensor
) -> Tensor:
    call = Call(plan, nodes, graph)
    out = call.of_receivers()
    call.by_receiver("convolve", forward(plan), path_weights, harmonics, nodes, out)
    return out


def _gradients(
    plan: str,
    wanted: Sequence[bool],
    path_weights: Tensor,
    harmonics: Tensor,
    nodes: Tensor,
    cotangent: Tensor,
    *graph: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives by path weights, harmonics and nodes; empty where not wanted."""
    call, name = Call(plan, nodes, graph), "convolve_gradients"
    radial, harmonic, node = wanted
    d_weights = path_weights.new_empty(path_weights.shape if radial else (0,))
    sums = call.sums(name, harmonics, harmonic)
    if radial or harmonic:
        given = (path_weights, harmonics, nodes, cotangent, d_weights, sums, call.n_edges)
        call.by_receiver(name, edge_gradients(plan, radial, harmonic), *given)
    inputs = (path_weights, harmonics, cotangent)
    d_nodes = call.of_senders("convolve_node_gradient", node_gradient(plan), node, *inputs)
    return d_weights, sums.sum(0) if harmonic else sums, d_nodes


def _second(
    plan: str,
    wanted: Sequence[bool],
    path_weights: Tensor,
    harmonics: Tensor,
    nodes: Tensor,
    cotangent: Tensor,
    t_weights: Tensor | None,
    t_harmonics: Tensor | None,
    t_nodes: Tensor | None,
    *graph: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of ``t_weights . d_weights + t_harmonics . d_harmonics + t_nodes . d_nodes``."""
    call, name = Call(plan, nodes, graph), "convolve_second"
    radial, harmonic, node = wanted
    d_weights = path_weights.new_empty(path_weights.shape if radial else (0,))
    sums = call.sums(name, harmonics, harmonic)
    d_cotangent = call.of_receivers()
    moving = torch.zeros_like(path_weights) if t_weights is None else t_weights
    turning = torch.zeros_like(harmonics) if t_harmonics is None else t_harmonics
    call.by_receiver(
        name,
        _edge_second(plan, radial, harmonic, t_nodes is not None),
        *(path_weights, harmonics, nodes, cotangent),
        *(moving, turning, nodes if t_nodes is None else t_nodes),
        *(d_weights, sums, d_cotangent, call.n_edges),
    )
    inputs = (path_weights, harmonics, cotangent, moving, turning)
    d_nodes = call.of_senders("convolve_second_node", _second_node(plan), node, *inputs)
    return d_weights, sums.sum(0) if harmonic else sums, d_nodes, d_cotangent


define_convolution(
    operators,
    "convolve",
    (_convolve, _gradients, _second),
    inputs=("Tensor path_weights", "Tensor harmonics", "Tensor nodes"),
    fixed=GRAPH,
)


# --- calls ---


class Call:
    """A call of the convolution, or of a derivative: its sizes, and the launch of its kernels.

    Args:
        plan: key of the plan.
        nodes: [N, H, K].
        graph: as in ``graph_tensors``.
        width: F, where kernels make path weights of the last hidden layer, [E, F].
    """

    def __init__(self, plan: str, nodes: Tensor, graph: Sequence[Tensor], width: int = 0) -> None:
        self.width = width
        self.plan, self.nodes, self.graph = convolution_plan_of(plan), nodes, graph
        self.n_atoms, _, self.channels = nodes.shape
        self.n_edges = graph[1].shape[0]

    def of_receivers(self) -> Tensor:
        """Room for a result [N, C, K]; zeros where kernels leave some of it as it is."""
        return self._room(self.plan.out_dim, _writes_all(self.plan.key, False))

    def _room(self, rows: int, is_written: bool) -> Tensor:
        shape = (self.n_atoms, rows, self.channels)
        if is_written and self.n_edges:
            return self.nodes.new_empty(shape)
        return self.nodes.new_zeros(shape)

    def by_receiver(self, name: str, kernel: Any, *arguments: Tensor | int) -> None:
        """Run a kernel that sums over the edges of receivers, or computes something of each."""
        row_ptr, senders = self.graph[:2]
        n_parts = len(parts_by_output(self.plan, code.ROWS[name]))
        self._launch(name, kernel, n_parts, (row_ptr, senders, *arguments))

    def of_senders(self, name: str, kernel: Any, wanted: bool, *inputs: Tensor) -> Tensor:
        """The derivative by nodes, by a kernel that sums over senders' edges; empty if unwanted."""
        if not wanted:
            return self.nodes.new_empty(0)
        d_nodes = self._room(self.plan.node_irreps.dim, _writes_all(self.plan.key, True))
        _, _, receivers, sender_ptr, sender_order = self.graph
        arguments = (sender_ptr, sender_order, receivers, *inputs, d_nodes)
        self._launch(name, kernel, len(parts_by_node(self.plan)), arguments)
        return d_nodes

    def _launch(
        self, name: str, kernel: Any, n_parts: int, arguments: tuple[Tensor | int, ...]
    ) -> None:
        if self.n_edges == 0:
            return
        held = tuple(a.contiguous() if isinstance(a, Tensor) else a for a in arguments)
        grid = (self.n_atoms, self.n_blocks(name), n_parts)
        sizes: dict[str, int | str] = {"CHANNELS": self.channels, "BLOCK": self._block(name)}
        if self.width:
            filled = machine.filled(self.width)
            sizes |= {"WIDTH": self.width, "FILLED": filled, "EDGES": machine.LEAST_OF_DOT}
            sizes["PRECISION"] = "tf32" if rounds_to_tf32(self.nodes.dtype) else "ieee"
        machine.launch(kernel, grid, held, self.settings(name), **sizes)

    def settings(self, name: str) -> tuple[Setting, ...]:
        """What a kernel may be launched with, the default first."""
        if self.width:
            return (Setting(WARPS), Setting(WARPS, n_stages=1))
        most = min(MOST_WARPS, self._block(name) // machine.WARP) if name in FREE else 1
        return tuple(Setting(warps) for warps in (1, 2, 4) if warps <= most)

    def n_blocks(self, name: str) -> int:
        """Blocks of channels."""
        return -(-self.channels // self._block(name))

    def _block(self, name: str) -> int:
        if self.width:
            return min(MOST_CHANNELS, machine.filled(self.channels))
        return machine.block_of_channels(self.channels, PER_THREAD[name])

    def sums(self, name: str, like: Tensor, wanted: bool) -> Tensor:
        """Zeros for what each part and block of channels adds to ``like``; empty if not wanted."""
        n_parts = len(parts_by_output(self.plan, code.ROWS[name]))
        return like.new_zeros((n_parts * self.n_blocks(name), *like.shape) if wanted else (0,))


@lru_cache(maxsize=256)
def _writes_all(plan: str, nodes: bool) -> bool:
    """Whether every component of the senders' features, or of the output, is on a path."""
    found = convolution_plan_of(plan)
    paths = range(found.n_paths)
    if nodes:
        return len(sent_by(found, paths)) == found.node_irreps.dim
    return len(outputs_of(found, paths)) == found.out_dim


def read_gradients(
    call: Call, plan: str, source: Radial, wanted: Sequence[bool], *inputs: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First derivatives where path weights are read out of something by what each edge has.

    Args:
        call: as it is launched.
        plan: its key.
        source: of path weights.
        wanted: which of the derivatives by the first four inputs; never that by the second.
        inputs: what edges have, what it is read out of, harmonics, nodes, cotangent.

    Returns:
        The derivatives, empty where not wanted.
    """
    name, (radial, _, harmonic, node) = "convolve_gradients", wanted
    of_edges, read, harmonics, _, cotangent = inputs
    by_edge, by_harmonic = call.sums(name, of_edges, radial), call.sums(name, harmonics, harmonic)
    if radial or harmonic:
        kernel = edge_gradients(plan, radial, harmonic, source)
        call.by_receiver(name, kernel, *inputs, by_edge, by_harmonic, call.n_edges)
    given = (of_edges, read, harmonics, cotangent)
    kernel = node_gradient(plan, source)
    d_nodes = call.of_senders("convolve_node_gradient", kernel, node, *given)
    d_edges = by_edge.sum(0) if radial else by_edge
    d_harmonics = by_harmonic.sum(0) if harmonic else by_harmonic
    return d_edges, read.new_empty(0), d_harmonics, d_nodes


# --- kernels ---


@lru_cache(maxsize=256)
def forward(plan: str, source: Radial = "given") -> Any:
    """The convolution's kernel, for path weights that are given, in a table, or made."""
    return machine.kernel("convolve", code.write_forward(convolution_plan_of(plan), source))


@lru_cache(maxsize=256)
def edge_gradients(plan: str, radial: bool, harmonics: bool, source: Radial = "given") -> Any:
    """Its first derivatives by what belongs to edges, likewise."""
    wanted = code.Wanted(radial, harmonics)
    text = code.write_gradients(convolution_plan_of(plan), wanted, source)
    return machine.kernel("convolve_gradients", text)


@lru_cache(maxsize=256)
def node_gradient(plan: str, source: Radial = "given") -> Any:
    """Its first derivative by nodes, likewise."""
    text = code.write_node_gradient(convolution_plan_of(plan), source)
    return machine.kernel("convolve_node_gradient", text)


@lru_cache(maxsize=256)
def _edge_second(plan: str, radial: bool, harmonics: bool, moving_nodes: bool) -> Any:
    wanted = code.Wanted(radial, harmonics)
    source = code.write_second(convolution_plan_of(plan), wanted, moving_nodes)
    return machine.kernel("convolve_second", source)


@lru_cache(maxsize=256)
def _second_node(plan: str) -> Any:
    source = code.write_second_node(convolution_plan_of(plan))
    return machine.kernel("convolve_second_node", source)
