"""The closed list of heavy operations: what each computes, in plain torch.

Everything heavy in the models is one of the functions below. Each is multilinear or polynomial in
its tensors and differentiable any number of times; each runs on any device and dtype. Their
signatures never mention a tensor of size [edges x channels x components], but for ``edge_product``,
whose features live on edges: the references here may hold one for a moment, a compiled backend has
no need to.

Shapes: E edges, N atoms, K channels, P paths, H node components, S harmonic components, C output
components, Q components of the one-particle basis, O components of the messages.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from clebsch.algebra import CouplingBasis, spherical_harmonics
from clebsch.graph import AtomGraph
from clebsch.kernels.plan import ContractionPlan, ConvolutionPlan
from clebsch.kernels.tree import PolynomialForest, PolynomialTree

__all__ = [
    "bessel_basis",
    "contract",
    "contract_slots",
    "convolve",
    "convolve_radial",
    "convolve_table",
    "edge_product",
    "from_receivers",
    "from_senders",
    "linear",
    "rows",
    "segment_sum",
    "silu",
    "spherical_harmonics",
    "to_senders",
    "tree_polynomial",
]

#: Makes SiLU keep the second moment of a standard normal input: 1 / sqrt(E[silu(x)^2]).
SILU_GAIN = 1.6765324703310907


def silu(x: Tensor) -> Tensor:
    """x sigma(x), times the factor that keeps the second moment of a standard normal input."""
    return SILU_GAIN * torch.nn.functional.silu(x)


def bessel_basis(lengths: Tensor, cutoff: float, n_basis: int, exponent: int) -> Tensor:
    """Spherical Bessel functions times a polynomial envelope, as most models have them.

    b_n(r) = sqrt(2 / r_c) sin(n pi r / r_c) / r times ``polynomial_envelope(r / r_c)``
    (Gasteiger et al. 2020, equations 7 and 8).

    Args:
        lengths: [E], positive, Angstrom.
        cutoff: r_c, Angstrom.
        n_basis: n is 1 to this.
        exponent: of the envelope.

    Returns:
        [E, n_basis], Angstrom^-3/2; zero beyond the cut-off.
    """
    values = bessel_functions(lengths, cutoff, n_basis)
    return values * polynomial_envelope(lengths / cutoff, exponent)[:, None]


def bessel_functions(
    lengths: Tensor, cutoff: float, n_basis: int, frequencies: Tensor | None = None
) -> Tensor:
    """sqrt(2 / r_c) sin(w_n r / r_c) / r, [E, n_basis], of frequencies w; n pi if None."""
    if frequencies is None:
        order = torch.arange(1, n_basis + 1, dtype=lengths.dtype, device=lengths.device)
        frequencies = math.pi * order
    scaled = math.sqrt(2 / cutoff) / lengths
    return torch.sin(lengths[:, None] * (frequencies / cutoff)) * scaled[:, None]


def polynomial_envelope(t: Tensor, p: int | Tensor) -> Tensor:
    """The polynomial cut-off of exponent p at t, the distance in units of the cut-off."""
    envelope = 1 - t**p * ((p + 1) * (p + 2) / 2 - t * (p * (p + 2) - t * (p * (p + 1) / 2)))
    return torch.where(t < 1, envelope, torch.zeros_like(envelope))


def linear(
    features: Tensor,
    weight: Tensor,
    species: Tensor | None,
    dims: Sequence[int],
    copies: Sequence[int],
) -> Tensor:
    """Linear maps over copies and channels, one matrix for each irrep and, if given, species.

    ``out[n, m, k] = sum_(p, k') features[n, (m, p), k'] W[species[n], (p, k'), k]``: features hold
    P copies of each irrep ("paths", as a convolution returns them), components before copies.

    Args:
        features: [N, sum of dims x copies, K].
        weight: [n_species, sum of copies x K, K], irrep after irrep.
        species: [N] int64; None where n_species is 1.
        dims: components of each irrep.
        copies: of each irrep; 0 leaves zeros in the output.

    Returns:
        [N, sum of dims, K].
    """
    channels = features.shape[2]
    if species is None:
        groups = [features]
    else:
        order = torch.argsort(species, stable=True)
        counts = torch.bincount(species, minlength=len(weight)).tolist()
        groups = list(features.index_select(0, order).split(counts))
    sizes = [dim * n for dim, n in zip(dims, copies, strict=True)]
    parts = []
    for group, matrices in zip(groups, weight.unbind(0), strict=True):
        blocks = []
        for block, dim, matrix in zip(
            group.split(sizes, dim=1),
            dims,
            matrices.split([n * channels for n in copies]),
            strict=True,
        ):
            rows = block.reshape(len(group) * dim, len(matrix))  # one product, not one per atom
            blocks.append((rows @ matrix).view(len(group), dim, channels))
        parts.append(torch.cat(blocks, dim=1))
    out = torch.cat(parts)
    return out if species is None else out.index_select(0, torch.argsort(order))


def segment_sum(values: Tensor, row_ptr: Tensor) -> Tensor:
    """Sum consecutive rows: ``out[i] = values[row_ptr[i]:row_ptr[i + 1]].sum(0)``.

    Args:
        values: [E, ...].
        row_ptr: [N + 1] int64.

    Returns:
        [N, ...].
    """
    n_rows = row_ptr.shape[0] - 1
    rows = torch.repeat_interleave(
        torch.arange(n_rows, device=row_ptr.device), row_ptr.diff(), output_size=values.shape[0]
    )
    out = values.new_zeros((n_rows, *values.shape[1:]))
    return out.index_add(0, rows, values)


def rows(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]``: rows of a table of parameters, [R, ...] by index [E] int64."""
    return table.index_select(0, index)


def from_senders(nodes: Tensor, graph: AtomGraph) -> Tensor:
    """What each edge's sender has: nodes [N, ...] give [E, ...]."""
    return nodes.index_select(0, graph.senders)


def from_receivers(nodes: Tensor, graph: AtomGraph) -> Tensor:
    """What each edge's receiver has: nodes [N, ...] give [E, ...]."""
    return nodes.index_select(0, graph.receivers)


def to_senders(values: Tensor, graph: AtomGraph) -> Tensor:
    """The sum over the edges that each atom sends along: values [E, ...] give [N, ...]."""
    return segment_sum(values.index_select(0, graph.sender_order), graph.sender_ptr)


def convolve(
    plan: ConvolutionPlan,
    path_weights: Tensor,
    harmonics: Tensor,
    nodes: Tensor,
    graph: AtomGraph,
) -> Tensor:
    """Equivariant convolution: the sum over neighbours of equation 8, one output block per path.

    ``out[i, (m3, p), k] = sum_j path_weights[ij, p, k] sum_(m1 m2) C_p[m1, m2, m3]
    harmonics[ij, m1] nodes[j, m2, k]``

    Args:
        plan: the paths and their coefficients.
        path_weights: [E, P, K].
        harmonics: [E, S].
        nodes: [N, H, K].
        graph: edges sorted by receiver.

    Returns:
        [N, C, K] in the order of ``plan.out_blocks``.
    """
    slots = _padded_slots(graph)
    return _convolve_padded(
        plan,
        _pad(path_weights, slots).permute(2, 0, 1, 3),
        _pad(harmonics, slots),
        nodes,
        _senders(graph, slots),
    )


def convolve_radial(
    plan: ConvolutionPlan,
    hidden: Tensor,
    last_weight: Tensor,
    harmonics: Tensor,
    nodes: Tensor,
    graph: AtomGraph,
) -> Tensor:
    """``convolve`` with the last radial layer inside: path weights are ``hidden @ last_weight``.

    Args:
        plan: the paths and their coefficients.
        hidden: [E, F], the radial network's last hidden layer.
        last_weight: [F, P, K].
        harmonics: [E, S].
        nodes: [N, H, K].
        graph: edges sorted by receiver.

    Returns:
        [N, C, K] in the order of ``plan.out_blocks``.
    """
    slots = _padded_slots(graph)
    padded = _pad(hidden, slots)
    path_weights = padded.flatten(0, 1) @ last_weight.permute(1, 0, 2)  # [P, N most, K]
    return _convolve_padded(
        plan,
        path_weights.unflatten(1, slots.shape),
        _pad(harmonics, slots),
        nodes,
        _senders(graph, slots),
    )


def convolve_table(
    plan: ConvolutionPlan,
    places: Tensor,
    table: Tensor,
    harmonics: Tensor,
    nodes: Tensor,
    graph: AtomGraph,
) -> Tensor:
    """``convolve`` with path weights out of a table: cubic Hermite splines of the distance.

    Args:
        plan: the paths and their coefficients.
        places: [E], distances in units of the table's spacing, from 0 to less than n_knots - 1.
        table: [n_knots, 2, P, K], values and slopes (per interval) of all path weights.
        harmonics: [E, S].
        nodes: [N, H, K].
        graph: edges sorted by receiver.

    Returns:
        [N, C, K] in the order of ``plan.out_blocks``.
    """
    interval = places.detach().to(torch.int64)
    t = (places - interval)[:, None, None]
    basis = ((1 + 2 * t) * (1 - t) ** 2, t * (1 - t) ** 2, t**2 * (3 - 2 * t), t**2 * (t - 1))
    corners = (*table[interval].unbind(1), *table[interval + 1].unbind(1))
    path_weights = sum(b * corner for b, corner in zip(basis, corners, strict=True))
    assert isinstance(path_weights, Tensor)
    return convolve(plan, path_weights, harmonics, nodes, graph)


def edge_product(
    plan: ConvolutionPlan, tensors: Tensor, environment: Tensor, graph: AtomGraph
) -> Tensor:
    """Tensors of edges times the environment of their receiver, channel by channel (Allegro).

    ``out[ij, (m3, p), k] = sum_(m1 m2) C_p[m1, m2, m3] environment[i, m1, k] tensors[ij, m2, k]``

    Args:
        plan: the paths and their coefficients; its node irreps are those of the tensors, its
            harmonics those of the environment.
        tensors: [E, H, K].
        environment: [N, S, K].
        graph: edges sorted by receiver.

    Returns:
        [E, C, K] in the order of ``plan.out_blocks``.
    """
    return product_around(plan, tensors, from_receivers(environment, graph))


def product_around(plan: ConvolutionPlan, tensors: Tensor, around: Tensor) -> Tensor:
    """``edge_product`` with the environment of each edge's receiver, [E, S, K]."""
    shaped = around.split([irrep.dim for irrep in plan.harmonic_irreps], dim=1)
    parts = tensors.split([irrep.dim for irrep in plan.node_irreps], dim=1)
    products: list[list[Tensor]] = [[] for _ in plan.out_irreps]
    for index, path in enumerate(plan.paths):
        outer = shaped[path.harmonic][:, :, None] * parts[path.node][:, None]  # [E, m1, m2, K]
        table = _table(plan, index, tensors).flatten(0, 1)  # [(m1 m2), m3]
        products[path.out].append(table.t() @ outer.flatten(1, 2))
    return _concatenated(plan, products)


def contract(
    plan: ContractionPlan, atomic_basis: Tensor, weights: Tensor, species: Tensor
) -> Tensor:
    """The product basis and its linear expansion: equations 10 and 11 in one polynomial.

    ``out[n, (L M), k] = sum_(nu, eta) weights[species[n], eta, k] sum_(q1..q_nu) C_eta[M, q1..q_nu]
    A[n, q1, k] ... A[n, q_nu, k]``, evaluated as in the paper's appendix A.3.3: couplings and
    weights are contracted first, which leaves one polynomial per species and channel.

    Args:
        plan: the couplings.
        atomic_basis: [N, Q, K], the one-particle basis A.
        weights: [n_species, n_couplings, K].
        species: [N] int64.

    Returns:
        [N, O, K].
    """
    n_channels = atomic_basis.shape[2]
    order = torch.argsort(species, stable=True)
    counts = torch.bincount(species, minlength=weights.shape[0]).tolist()
    basis = atomic_basis.index_select(0, order).permute(2, 1, 0)  # [K, Q, N]
    polynomial = _polynomial(plan, atomic_basis.dtype, str(atomic_basis.device))
    monomials = _monomials(basis, polynomial)  # [K, F, N]
    outputs = []
    for table, rows, dim in zip(
        polynomial.tables, plan.weight_slices, (t.dim for t in plan.targets), strict=True
    ):
        used = weights[:, rows[0].start : rows[-1].stop]
        coefficients = (used.transpose(1, 2) @ table).unflatten(-1, (dim * plan.irreps.dim, -1))
        inner = torch.cat(
            [
                coefficient @ part
                for coefficient, part in zip(
                    coefficients, monomials.split(counts, dim=2), strict=True
                )
            ],
            dim=2,
        )  # [K, (2L + 1) Q, N]
        inner = inner.view(n_channels, dim, plan.irreps.dim, -1)
        outputs.append((inner * basis[:, None]).sum(2))
    out = torch.cat(outputs, dim=1).permute(2, 1, 0)
    return out.index_select(0, torch.argsort(order))


def contract_slots(
    plan: ContractionPlan, slots: tuple[Tensor, ...], weights: Tensor, species: Tensor
) -> Tensor:
    """``contract`` with a different one-particle basis in each factor (PACE).

    The couplings must be the unreduced table (``contraction_plan(..., reduced=False)``): with
    distinct factors all of them are independent.

    Args:
        plan: the couplings.
        slots: one [N, Q, K] tensor for each factor, as many as the correlation order.
        weights: [n_species, n_couplings, K].
        species: [N] int64.

    Returns:
        [N, O, K].
    """
    n_atoms, _, n_channels = slots[0].shape
    per_atom = weights.index_select(0, species)
    outputs = []
    for per_order, rows in zip(plan.bases, plan.weight_slices, strict=True):
        total = slots[0].new_zeros((n_atoms, per_order[0].target.dim, n_channels))
        for basis, row in zip(per_order, rows, strict=True):
            terms = [torch.tensor(array, device=total.device) for array in basis.terms]
            coupling, component, monomial, coefficient = terms
            factors = torch.tensor(basis.monomials, device=total.device)[monomial]
            product = coefficient.to(total.dtype)[:, None] * per_atom[:, row][:, coupling]
            for slot, indices in zip(slots, factors.T, strict=False):
                product = product * slot[:, indices]
            total = total.index_add(1, component, product)
        outputs.append(total)
    return torch.cat(outputs, dim=1)


def tree_polynomial(
    forest: PolynomialForest, variables: Tensor, coefficients: Tensor, species: Tensor
) -> Tensor:
    """Sparse polynomials in all channels and components of A together: linear ACE's energies.

    ``out[n] = sum_t coefficients[t] w_node(t)[n] variables[n, factor(t)]`` over the terms of the
    tree of the atom's species, with w its nodes.

    Args:
        forest: the monomials of each species.
        variables: [N, V].
        coefficients: [n_terms], of all species.
        species: [N] int64.

    Returns:
        [N].
    """
    order = torch.argsort(species, stable=True)
    counts = torch.bincount(species, minlength=len(forest.trees)).tolist()
    own = coefficients.split([tree.n_terms for tree in forest.trees])
    groups = variables.index_select(0, order).split(counts)
    out = torch.cat(
        [_terms(tree, a) @ c for tree, a, c in zip(forest.trees, groups, own, strict=True)]
    )
    return out.index_select(0, torch.argsort(order))


def _terms(tree: PolynomialTree, variables: Tensor) -> Tensor:
    """[N, n_terms] of variables [N, V]."""
    device = variables.device
    factors = torch.tensor(tree.node_factors, device=device)
    parents = torch.tensor(tree.parents, device=device)
    nodes = torch.ones_like(variables[:, :1])
    for first, last in itertools.pairwise(tree.levels[1:].tolist()):
        level = slice(first, last)
        below = nodes.index_select(1, parents[level])
        nodes = torch.cat([nodes, below * variables.index_select(1, factors[level])], dim=1)
    terms = nodes.index_select(1, torch.tensor(tree.term_nodes, device=device))
    return terms * variables.index_select(1, torch.tensor(tree.term_factors, device=device))


# --- the convolution: neighbours padded to a rectangle, so that sums are matrix products ---


def _padded_slots(graph: AtomGraph) -> Tensor:
    """[N, most neighbours] int64: each receiver's edges, and E where it has no more."""
    counts = graph.row_ptr.diff()
    most = int(counts.max()) if graph.n_edges else 0
    column = torch.arange(most, device=counts.device)
    slots = graph.row_ptr[:-1, None] + column
    return torch.where(column < counts[:, None], slots, graph.n_edges)


def _pad(values: Tensor, slots: Tensor) -> Tensor:
    """[N, most neighbours, ...]: edge values by receiver, zero where there is no edge."""
    padded = torch.cat([values, values.new_zeros((1, *values.shape[1:]))])
    return padded.index_select(0, slots.flatten()).unflatten(0, slots.shape)


def _senders(graph: AtomGraph, slots: Tensor) -> Tensor:
    """[N, most neighbours] int64: who sends along each slot (atom 0 where there is no edge)."""
    return torch.cat([graph.senders, graph.senders.new_zeros(1)])[slots]


def _convolve_padded(
    plan: ConvolutionPlan, path_weights: Tensor, harmonics: Tensor, nodes: Tensor, senders: Tensor
) -> Tensor:
    """``convolve`` on padded edges: path_weights [P, N, most, K], harmonics [N, most, S]."""
    n_atoms, most = senders.shape
    # Whole tensors are split once: every slice would cost a tensor of zeros in the backward pass.
    sent = [
        part.index_select(0, senders.flatten()).unflatten(0, (n_atoms, most))
        for part in nodes.split([irrep.dim for irrep in plan.node_irreps], dim=1)
    ]
    shaped = harmonics.split([irrep.dim for irrep in plan.harmonic_irreps], dim=2)
    weights = path_weights.unbind(0)
    products: list[list[Tensor]] = [[] for _ in plan.out_irreps]
    for index, path in enumerate(plan.paths):
        coupled = shaped[path.harmonic] @ _table(plan, index, nodes).flatten(1)
        weighted = weights[index][:, :, None, :] * sent[path.node]
        rows = most * plan.node_irreps[path.node].dim
        products[path.out].append(
            coupled.view(n_atoms, rows, plan.out_irreps[path.out].dim).transpose(1, 2)
            @ weighted.flatten(1, 2)
        )
    return _concatenated(plan, products)


def _concatenated(plan: ConvolutionPlan, products: list[list[Tensor]]) -> Tensor:
    """The output of a convolution from what its paths give, for each output irrep."""
    if plan.summed:
        return torch.cat([torch.stack(block).sum(0) for block in products], dim=1)
    return torch.cat([torch.stack(block, dim=2).flatten(1, 2) for block in products], dim=1)


def _table(plan: ConvolutionPlan, path: int, like: Tensor) -> Tensor:
    """Coefficients of one path, [harmonic m, node m, out m], in the dtype and place of ``like``."""
    return _cached_table(plan, path, like.dtype, str(like.device))


@lru_cache(maxsize=4096)
@torch.inference_mode(False)
def _cached_table(plan: ConvolutionPlan, path: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.tensor(plan.coefficients(plan.paths[path]), dtype=dtype, device=device)


# --- the product basis: one polynomial per target, species and channel ---


@dataclass(frozen=True, eq=False)
class _Polynomial:
    """A contraction plan as a polynomial: every monomial is one of F lower ones times one A_q.

    Attributes:
        degrees: for each degree from 1 to correlation - 1, (rows of the degree below, index q):
            the monomials of that degree as products.
        tables: for each target, [its couplings, (2L + 1) Q F].
    """

    degrees: tuple[tuple[Tensor, Tensor], ...]
    tables: tuple[Tensor, ...]


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _polynomial(plan: ContractionPlan, dtype: torch.dtype, device: str) -> _Polynomial:
    needed: list[dict[tuple[int, ...], int]] = [{} for _ in range(plan.correlation)]
    needed[0][()] = 0
    for per_target in plan.bases:
        for basis in per_target:
            for monomial in _sorted_monomials(basis):
                for length in range(1, basis.order):
                    needed[length].setdefault(monomial[:length], len(needed[length]))
    starts = np.cumsum([0, *(len(level) for level in needed)])
    degrees = []
    for below, level in itertools.pairwise(needed):
        parents = [below[monomial[:-1]] for monomial in level]
        lasts = [monomial[-1] for monomial in level]
        degrees.append((torch.tensor(parents, device=device), torch.tensor(lasts, device=device)))
    tables = []
    for target, per_target in zip(plan.targets, plan.bases, strict=True):
        n_couplings = sum(basis.n_couplings for basis in per_target)
        table = np.zeros((n_couplings, target.dim, plan.irreps.dim, starts[-1]))
        row = 0
        for basis in per_target:
            level, start = needed[basis.order - 1], starts[basis.order - 1]
            monomials = _sorted_monomials(basis)
            lower = np.array([start + level[monomial[:-1]] for monomial in monomials], dtype=int)
            last = np.array([monomial[-1] for monomial in monomials], dtype=int)
            coupling, component, index, coefficient = basis.terms
            np.add.at(table, (row + coupling, component, last[index], lower[index]), coefficient)
            row += basis.n_couplings
        tables.append(torch.tensor(table.reshape(n_couplings, -1), dtype=dtype, device=device))
    return _Polynomial(tuple(degrees), tuple(tables))


def _sorted_monomials(basis: CouplingBasis) -> list[tuple[int, ...]]:
    """The monomials of a basis for slots that hold the same A: the order of factors is nothing."""
    return [tuple(monomial) for monomial in np.sort(basis.monomials, axis=1).tolist()]


def _monomials(basis: Tensor, polynomial: _Polynomial) -> Tensor:
    """[K, F, N]: all lower monomials of the one-particle basis [K, Q, N], the constant first."""
    levels = [torch.ones_like(basis[:, :1])]
    for parents, lasts in polynomial.degrees:
        levels.append(levels[-1][:, parents] * basis[:, lasts])
    return torch.cat(levels, dim=1)
