"""The CPU backend: the heavy operations through Numba's compiled loops, differentiable twice.

Values and derivatives equal those of ``clebsch.kernels.reference`` to rounding. Path weights are
the only per-edge tensor with channels; no message is ever stored. Third derivatives do not exist
here: asking for them raises torch's own error.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from clebsch.graph import AtomGraph
from clebsch.kernels import numba_loops as loops
from clebsch.kernels import reference
from clebsch.kernels.plan import ContractionPlan, ConvolutionPlan

name = "numba"

#: Below this many inner-loop iterations a call is not worth dividing among threads.
_SMALLEST_SHARE = 200_000


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


def contract(
    plan: ContractionPlan, atomic_basis: Tensor, weights: Tensor, species: Tensor
) -> Tensor:
    """See ``reference.contract``; a product basis of order 4 is evaluated there."""
    if plan.correlation > 3:
        return reference.contract(plan, atomic_basis, weights, species)
    table = _folding_table(plan, weights.dtype)
    padded = torch.cat([atomic_basis, torch.ones_like(atomic_basis[:, :1])], dim=1)
    return _Polynomial.apply(plan, species, table @ weights, padded)


# --- dividing work -------------------------------------------------------------------------------


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _divide(
    work: Callable[[int, int], None], n_rows: int, cost: int, ptr: np.ndarray | None
) -> None:
    """Call ``work(start, stop)`` over all rows, on as many threads as torch uses.

    Rows are divided evenly, or so that ``ptr`` (a row pointer) grows evenly.
    """
    n_threads = min(torch.get_num_threads(), cost // _SMALLEST_SHARE, n_rows)
    if n_threads < 2:
        work(0, n_rows)
        return
    if ptr is None:
        bounds = np.linspace(0, n_rows, n_threads + 1).astype(int)
    else:
        bounds = np.searchsorted(ptr, np.linspace(0, ptr[-1], n_threads + 1))
        bounds[0], bounds[-1] = 0, n_rows
    key = (os.getpid(), n_threads)  # a pool does not survive a fork
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(n_threads - 1, thread_name_prefix="clebsch")
    others = [_pools[key].submit(work, int(a), int(b)) for a, b in itertools.pairwise(bounds[1:])]
    work(int(bounds[0]), int(bounds[1]))
    for other in others:
        other.result()


# --- the convolution -----------------------------------------------------------------------------


class _Tables(NamedTuple):
    """A convolution plan as arrays; see ``numba_loops``. Sources are (path, node component)."""

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
    arrays = [np.array(values, dtype=np.int64) for values in integer]
    arrays.append(np.array(table_value, dtype=_numpy_dtype(dtype)))
    return _Tables(*arrays)


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
        arrays = _arrays(weights, harmonics, nodes, out)
        _divide(
            lambda start, stop: loops.convolve(
                start, stop, self.row_ptr, self.senders, *self.tables, *arrays
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
        arrays = _arrays(weights, harmonics, nodes, cotangent, d_weights, d_harmonics)
        _divide(
            lambda start, stop: loops.convolve_edge_gradients(
                start, stop, self.row_ptr, self.senders, *self.tables, *arrays
            ),
            self.n_atoms,
            2 * self.cost,
            self.row_ptr,
        )

    def nodes(self, weights: Tensor, harmonics: Tensor, cotangent: Tensor, d_nodes: Tensor) -> None:
        """Add the derivative with respect to node features."""
        arrays = _arrays(weights, harmonics, cotangent, d_nodes)
        _divide(
            lambda start, stop: loops.convolve_node_gradient(
                start,
                stop,
                self.sender_ptr,
                self.sender_order,
                self.receivers,
                *self.tables,
                *arrays,
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
            d_weights, d_harmonics = _zeros_like(weights), _zeros_like(harmonics)
            geometry.edges(weights, harmonics, nodes, cotangent, d_weights, d_harmonics)
        if needs[2]:
            d_nodes = _zeros_like(nodes)
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
        d_inputs = [_zeros_like(tensor) for tensor in inputs]
        d_cotangent = _zeros_like(cotangent)
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
                unread[replaced] = _zeros_like(direction)
                targets[replaced] = unread[replaced]
                geometry.nodes(weights, harmonics, cotangent, d_inputs[2])
            geometry.edges(weights, harmonics, nodes, cotangent, targets[0], targets[1])
        return (None, None, *d_inputs, d_cotangent)


# --- the product basis ---------------------------------------------------------------------------


class _Terms(NamedTuple):
    """Distinct (message component, monomial) pairs; lower orders are padded with component Q."""

    component: np.ndarray
    first: np.ndarray
    second: np.ndarray
    third: np.ndarray


@lru_cache(maxsize=64)
def _terms(plan: ContractionPlan) -> tuple[_Terms, np.ndarray]:
    """The terms, and [n_terms, n_couplings]: how couplings weigh each term."""
    index: dict[tuple[int, ...], int] = {}
    entries: list[tuple[int, int, float]] = []
    start = 0
    for target, per_order, rows in zip(plan.targets, plan.bases, plan.weight_slices, strict=True):
        for basis, row in zip(per_order, rows, strict=True):
            padding = (plan.irreps.dim,) * (3 - basis.order)
            for coupling, component, monomial, value in zip(*basis.terms, strict=True):
                factors = sorted(int(q) for q in basis.monomials[monomial])
                term = (start + int(component), *factors, *padding)
                entries.append((index.setdefault(term, len(index)), row.start + coupling, value))
        start += target.dim
    table = np.zeros((len(index), plan.n_couplings))
    for term_index, coupling, value in entries:
        table[term_index, coupling] += value
    columns = np.array(list(index), dtype=np.int64).reshape(-1, 4).T
    return _Terms(*(np.ascontiguousarray(column) for column in columns)), table


@lru_cache(maxsize=64)
def _folding_table(plan: ContractionPlan, dtype: torch.dtype) -> Tensor:
    return torch.tensor(_terms(plan)[1], dtype=dtype)


class _Polynomial(Function):
    @staticmethod
    def forward(
        ctx: Any, plan: ContractionPlan, species: Tensor, coefficients: Tensor, basis: Tensor
    ) -> Tensor:
        ctx.terms = _terms(plan)[0]
        ctx.species = species
        ctx.save_for_backward(coefficients, basis)
        out = basis.new_zeros((basis.shape[0], plan.targets.dim, basis.shape[2]))
        arrays = _arrays(coefficients, basis, out)
        kinds = species.numpy()
        _divide(
            lambda start, stop: loops.polynomial(start, stop, kinds, *ctx.terms, *arrays),
            basis.shape[0],
            4 * len(ctx.terms.component) * out[:, 0].numel(),
            None,
        )
        return out

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[2:]
        gradients = _PolynomialGradients.apply(
            ctx.terms, ctx.species, needs, *ctx.saved_tensors, cotangent
        )
        return (None, None, *gradients)


class _PolynomialGradients(Function):
    """Both first derivatives of ``cotangent . polynomial``."""

    @staticmethod
    def forward(
        ctx: Any,
        terms: _Terms,
        species: Tensor,
        needs: tuple[bool, bool],
        coefficients: Tensor,
        basis: Tensor,
        cotangent: Tensor,
    ) -> tuple[Tensor | None, ...]:
        ctx.terms, ctx.species = terms, species
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(coefficients, basis, cotangent)
        d_coefficients, d_basis = None, None
        if needs[0]:
            d_coefficients = _zeros_like(coefficients)
            _coefficient_gradient(terms, species, basis, cotangent, d_coefficients)
        if needs[1]:
            d_basis = _zeros_like(basis)
            _basis_gradient(terms, species, coefficients, basis, cotangent, d_basis)
        return d_coefficients, d_basis

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, coefficient_direction: Tensor | None, basis_direction: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        terms, species = ctx.terms, ctx.species
        coefficients, basis, cotangent = ctx.saved_tensors
        d_coefficients, d_basis = _zeros_like(coefficients), _zeros_like(basis)
        d_cotangent = _zeros_like(cotangent)
        kinds = species.numpy()
        cost = 8 * len(terms.component) * cotangent[:, 0].numel()
        if coefficient_direction is not None:
            arrays = _arrays(coefficient_direction, basis, d_cotangent)
            _divide(
                lambda start, stop: loops.polynomial(start, stop, kinds, *terms, *arrays),
                len(kinds),
                cost,
                None,
            )
            _basis_gradient(terms, species, coefficient_direction, basis, cotangent, d_basis)
        if basis_direction is not None:
            given = _arrays(coefficients, basis, cotangent, basis_direction, d_basis, d_cotangent)
            _, second = loops.polynomial_gradients(basis.shape[2])
            _divide(
                lambda start, stop: second(start, stop, kinds, *terms, *given),
                len(kinds),
                2 * cost,
                None,
            )
            order = torch.argsort(species, stable=True).numpy()
            needed = _arrays(basis, cotangent, basis_direction, d_coefficients)
            _divide(
                lambda start, stop: loops.polynomial_second_coefficients(
                    start, stop, kinds, order, *terms, *needed
                ),
                len(terms.component),
                cost,
                None,
            )
        return None, None, None, d_coefficients, d_basis, d_cotangent


def _coefficient_gradient(
    terms: _Terms, species: Tensor, basis: Tensor, cotangent: Tensor, d_coefficients: Tensor
) -> None:
    kinds, order = species.numpy(), torch.argsort(species, stable=True).numpy()
    arrays = _arrays(basis, cotangent, d_coefficients)
    _divide(
        lambda start, stop: loops.polynomial_coefficient_gradient(
            start, stop, kinds, order, *terms, *arrays
        ),
        len(terms.component),
        4 * len(terms.component) * cotangent[:, 0].numel(),
        None,
    )


def _basis_gradient(
    terms: _Terms,
    species: Tensor,
    coefficients: Tensor,
    basis: Tensor,
    cotangent: Tensor,
    d_basis: Tensor,
) -> None:
    kinds = species.numpy()
    arrays = _arrays(coefficients, basis, cotangent, d_basis)
    gradient, _ = loops.polynomial_gradients(basis.shape[2])
    _divide(
        lambda start, stop: gradient(start, stop, kinds, *terms, *arrays),
        len(kinds),
        6 * len(terms.component) * cotangent[:, 0].numel(),
        None,
    )


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _zeros_like(tensor: Tensor) -> Tensor:
    """Contiguous zeros, so that kernels write into them and not into a copy."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _numpy_dtype(dtype: torch.dtype) -> type:
    return {torch.float32: np.float32, torch.float64: np.float64}[dtype]
