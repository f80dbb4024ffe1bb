"""The convolution as autograd functions, closed under two derivatives."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from clebsch.graph import AtomGraph
from clebsch.kernels.cpu import loops
from clebsch.kernels.cpu.threads import arrays, divide, numpy_dtype, zeros_like
from clebsch.kernels.plan import ConvolutionPlan


def convolve(
    plan: ConvolutionPlan, path_weights: Tensor, harmonics: Tensor, nodes: Tensor, graph: AtomGraph
) -> Tensor:
    """See ``reference.convolve``."""
    return _Convolve.apply(plan, graph, path_weights, harmonics, nodes)


def convolve_radial(
    plan: ConvolutionPlan,
    hidden: Tensor,
    last_weight: Tensor,
    harmonics: Tensor,
    nodes: Tensor,
    graph: AtomGraph,
) -> Tensor:
    """See ``reference.convolve_radial``."""
    path_weights = (hidden @ last_weight.flatten(1)).unflatten(1, last_weight.shape[1:])
    return convolve(plan, path_weights, harmonics, nodes, graph)


class _Tables(NamedTuple):
    """A convolution plan as arrays; see ``loops``. Sources are (path, node component)."""

    source_ptr: np.ndarray
    source_path: np.ndarray
    source_node: np.ndarray
    entry_out: np.ndarray
    table_ptr: np.ndarray
    table_harmonic: np.ndarray
    table_value: np.ndarray


@lru_cache(maxsize=256)
def _tables(plan: ConvolutionPlan, dtype: torch.dtype) -> _Tables:
    sources: list[tuple[int, int]] = []
    source_ptr, entry_out, table_ptr = [0], [], [0]
    table_harmonic: list[int] = []
    table_value: list[float] = []
    rank = [0] * len(plan.out_irreps)
    for index, path in enumerate(plan.paths):
        coefficients = plan.coefficients(path)
        block, copies = plan.out_blocks[path.out], plan.paths_per_out[path.out]
        for m_node in range(coefficients.shape[1]):
            sources.append((index, plan.node_irreps.slices[path.node].start + m_node))
            for m_out in range(coefficients.shape[2]):
                harmonic = np.flatnonzero(np.abs(coefficients[:, m_node, m_out]) > 1e-14)
                if len(harmonic) == 0:
                    continue
                entry_out.append(block.start + m_out * copies + rank[path.out])
                start = plan.harmonic_irreps.slices[path.harmonic].start
                table_harmonic.extend((start + harmonic).tolist())
                table_value.extend(coefficients[harmonic, m_node, m_out].tolist())
                table_ptr.append(len(table_value))
            source_ptr.append(len(entry_out))
        rank[path.out] += 1
    integer = [source_ptr, *zip(*sources, strict=True), entry_out, table_ptr, table_harmonic]
    columns = [np.array(values, dtype=np.int64) for values in integer]
    columns.append(np.array(table_value, dtype=numpy_dtype(dtype)))
    return _Tables(*columns)


class _Geometry:
    """A graph's edges as arrays, and the three kernels on them."""

    def __init__(self, plan: ConvolutionPlan, graph: AtomGraph, dtype: torch.dtype, channels: int):
        self.plan = plan
        self.row_ptr = graph.row_ptr.numpy()
        self.senders = graph.senders.numpy()
        self.receivers = graph.receivers.numpy()
        self.sender_ptr = graph.sender_ptr.numpy()
        self.sender_order = graph.sender_order.numpy()
        self.tables = _tables(plan, dtype)
        self.cost = graph.n_edges * len(self.tables.entry_out) * channels
        self.n_atoms = graph.n_atoms

    def out(self, weights: Tensor, harmonics: Tensor, nodes: Tensor, out: Tensor) -> None:
        """Add the convolution to ``out``."""
        passed = arrays(weights, harmonics, nodes, out)
        divide(
            lambda start, stop: loops.convolve(
                start, stop, self.row_ptr, self.senders, *self.tables, *passed
            ),
            self.n_atoms,
            self.cost,
            self.row_ptr,
        )

    def edges(
        self,
        weights: Tensor,
        harmonics: Tensor,
        nodes: Tensor,
        cotangent: Tensor,
        d_weights: Tensor,
        d_harmonics: Tensor,
    ) -> None:
        """Add the derivatives with respect to path weights and harmonics."""
        passed = arrays(weights, harmonics, nodes, cotangent, d_weights, d_harmonics)
        divide(
            lambda start, stop: loops.convolve_edge_gradients(
                start, stop, self.row_ptr, self.senders, *self.tables, *passed
            ),
            self.n_atoms,
            2 * self.cost,
            self.row_ptr,
        )

    def nodes(self, weights: Tensor, harmonics: Tensor, cotangent: Tensor, d_nodes: Tensor) -> None:
        """Add the derivative with respect to node features."""
        passed = arrays(weights, harmonics, cotangent, d_nodes)
        divide(
            lambda start, stop: loops.convolve_node_gradient(
                start,
                stop,
                self.sender_ptr,
                self.sender_order,
                self.receivers,
                *self.tables,
                *passed,
            ),
            self.n_atoms,
            self.cost,
            self.sender_ptr,
        )


class _Convolve(Function):
    @staticmethod
    def forward(
        ctx: Any,
        plan: ConvolutionPlan,
        graph: AtomGraph,
        weights: Tensor,
        harmonics: Tensor,
        nodes: Tensor,
    ) -> Tensor:
        ctx.geometry = _Geometry(plan, graph, nodes.dtype, nodes.shape[2])
        ctx.save_for_backward(weights, harmonics, nodes)
        out = nodes.new_zeros((nodes.shape[0], plan.out_dim, nodes.shape[2]))
        ctx.geometry.out(weights, harmonics, nodes, out)
        return out

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[2:]
        gradients = _ConvolveGradients.apply(ctx.geometry, needs, *ctx.saved_tensors, cotangent)
        return (None, None, *gradients)


class _ConvolveGradients(Function):
    """All three first derivatives of ``cotangent . convolve``."""

    @staticmethod
    def forward(
        ctx: Any,
        geometry: _Geometry,
        needs: tuple[bool, bool, bool],
        weights: Tensor,
        harmonics: Tensor,
        nodes: Tensor,
        cotangent: Tensor,
    ) -> tuple[Tensor | None, ...]:
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weights, harmonics, nodes, cotangent)
        d_weights, d_harmonics, d_nodes = None, None, None
        if needs[0] or needs[1]:
            d_weights, d_harmonics = zeros_like(weights), zeros_like(harmonics)
            geometry.edges(weights, harmonics, nodes, cotangent, d_weights, d_harmonics)
        if needs[2]:
            d_nodes = zeros_like(nodes)
            geometry.nodes(weights, harmonics, cotangent, d_nodes)
        return d_weights, d_harmonics, d_nodes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        """Derivatives of the sum of directions times gradients.

        That sum is the convolution with one argument replaced by its direction, three times over.
        """
        inputs = ctx.saved_tensors[:3]
        cotangent = ctx.saved_tensors[3]
        geometry = ctx.geometry
        d_inputs = [zeros_like(tensor) for tensor in inputs]
        d_cotangent = zeros_like(cotangent)
        unread = [torch.empty(0)] * 2
        for replaced, direction in enumerate(directions):
            if direction is None:
                continue
            arguments = list(inputs)
            arguments[replaced] = direction
            weights, harmonics, nodes = arguments
            geometry.out(weights, harmonics, nodes, d_cotangent)
            targets = list(d_inputs)
            if replaced < 2:
                # The derivative with respect to what was replaced is computed along, and unused.
                unread[replaced] = zeros_like(direction)
                targets[replaced] = unread[replaced]
                geometry.nodes(weights, harmonics, cotangent, d_inputs[2])
            geometry.edges(weights, harmonics, nodes, cotangent, targets[0], targets[1])
        return (None, None, *d_inputs, d_cotangent)
