"""The invariants of linear ACE: products of the one-particle basis over all channels, coupled.

The one-particle basis has a channel for every label (z, n, l): species of the neighbour, radial
function, degree. A basis function of order nu belongs to a multiset of nu labels,

    B = sum over m_1..m_nu of C[m_1..m_nu] A[z_1 n_1 l_1 m_1] ... A[z_nu n_nu l_nu m_nu],

with C an invariant coupling (l_1 + ... + l_nu is even: O(3)). Labels that occur more than once make
only the part of C matter that is symmetric in them, so equal labels are grouped: symmetric powers
of each, coupled across different labels (``couple_powers``). Functions of different multisets have
no monomial in common; those of one multiset are orthonormal as ``clebsch.algebra.symmetric`` says.
The functions are therefore linearly independent as polynomials in A.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, product

import numpy as np

from clebsch.algebra.symmetric import couple_powers

# Coefficients that vanish by symmetry are rounding; degrees are sums of a few numbers.
_ZERO = 1e-12
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class ClusterBasis:
    """Invariant polynomials in the variables A, sparse.

        B[p] = sum over entries (p, t, c) of c * prod over s of A[monomials[t, s]]

    Variables are numbered label by label, the components m = -l..l of each together.
    """

    labels: np.ndarray
    """[n_labels, 3] int64: z, n, l, by ascending degree."""
    orders: np.ndarray
    """[n_functions] int64: nu of each function."""
    degrees: np.ndarray
    """[n_functions] float64: total degree of each function."""
    monomials: np.ndarray
    """[n_monomials, highest order] int64: variables, ascending, after as many -1 as are missing."""
    functions: np.ndarray
    """[n_entries] int64, ascending."""
    rows: np.ndarray
    """[n_entries] int64: rows of ``monomials``."""
    coefficients: np.ndarray
    """[n_entries] float64."""

    @property
    def n_functions(self) -> int:
        """Number of basis functions."""
        return len(self.orders)

    @property
    def offsets(self) -> np.ndarray:
        """[n_labels + 1] int64: the first variable of each label."""
        return np.concatenate([[0], np.cumsum(2 * self.labels[:, 2] + 1)])

    @property
    def n_variables(self) -> int:
        """Number of components of all labels."""
        return int((2 * self.labels[:, 2] + 1).sum())

    def up_to(self, max_degrees: Sequence[float]) -> np.ndarray:
        """Ascending numbers of the functions whose degree is within the limit of their order."""
        limits = np.array(max_degrees)[self.orders - 1]
        return np.flatnonzero(self.degrees <= limits + _ROUNDING)

    def subset(self, functions: np.ndarray) -> ClusterBasis:
        """Some of the functions (ascending numbers), of the same variables."""
        entries = np.isin(self.functions, functions)
        return replace(
            self,
            orders=self.orders[functions],
            degrees=self.degrees[functions],
            functions=np.searchsorted(functions, self.functions[entries]),
            rows=self.rows[entries],
            coefficients=self.coefficients[entries],
        )


def cluster_basis(
    n_species: int,
    max_degrees: Sequence[float],
    l_weight: float,
    species_degrees: Sequence[float] | None = None,
    max_n: Sequence[float] | None = None,
) -> ClusterBasis:
    """All functions of order 1, 2, ... whose total degree is at most the limit of their order.

    The degree of a label is n + ``l_weight`` l + ``species_degrees[z]`` with n = 0, 1, ...; a
    function's is the sum over its labels.

    Args:
        n_species: number of values of z.
        max_degrees: for each order.
        l_weight: positive.
        species_degrees: not negative; zeros if None.
        max_n: for each order, the highest n of its labels; as the degree allows if None.
    """
    extra = np.zeros(n_species) if species_degrees is None else np.array(species_degrees)
    if l_weight <= 0:
        raise ValueError(f"the weight of l in the degree is positive, not {l_weight}")
    if extra.shape != (n_species,) or (extra < 0).any():
        raise ValueError(f"{n_species} species have as many degrees >= 0, not {extra.tolist()}")
    candidates, degree = _labels(max(max_degrees), l_weight, extra)
    groups: dict[tuple[tuple[int, int], ...], list[tuple[int, ...]]] = defaultdict(list)
    highest_n = [np.inf] * len(max_degrees) if max_n is None else max_n
    for order, (limit, n) in enumerate(zip(max_degrees, highest_n, strict=True), start=1):
        allowed = np.flatnonzero(candidates[:, 1] <= n)
        for picked in _multisets(degree[allowed].tolist(), order, limit + _ROUNDING):
            chosen = allowed[list(picked)].tolist()
            counts = Counter(chosen)
            l_of = {label: int(candidates[label, 2]) for label in counts}
            if sum(l_of[label] for label in chosen) % 2 == 0:
                pattern = tuple((l_of[label], power) for label, power in counts.items())
                groups[pattern].append(tuple(counts))
    groups = {p: found for p, found in groups.items() if len(couple_powers(p, 0))}
    used = sorted({label for found in groups.values() for labels in found for label in labels})
    renumbered = np.zeros(len(candidates), dtype=np.int64)
    renumbered[used] = np.arange(len(used))
    groups = {
        pattern: [tuple(renumbered[list(labels)].tolist()) for labels in found]
        for pattern, found in groups.items()
    }
    return _assembled(candidates[used], degree[used], groups, len(max_degrees))


def _labels(limit: float, l_weight: float, extra: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[n, 3] all labels up to a degree and [n] their degrees; by ascending degree, then l, n, z."""
    highest_n = int(limit + _ROUNDING)
    found = sorted(
        (n + l_weight * degree + float(extra[z]), degree, n, z)
        for n in range(highest_n + 1)
        for degree in range(int((limit - n) / l_weight + _ROUNDING) + 1)
        for z in range(len(extra))
    )
    kept = [label for label in found if label[0] <= limit + _ROUNDING]
    labels = np.array([(z, n, degree) for _, degree, n, z in kept], dtype=np.int64)
    return labels.reshape(-1, 3), np.array([degree for degree, *_ in kept])


def _multisets(degrees: Sequence[float], order: int, limit: float) -> Iterator[tuple[int, ...]]:
    """Ascending tuples of labels whose degrees add up to no more than the limit."""

    def extend(chosen: tuple[int, ...], first: int, left: float) -> Iterator[tuple[int, ...]]:
        missing = order - len(chosen)
        if not missing:
            yield chosen
            return
        for label in range(first, len(degrees)):
            if degrees[label] * missing > left:  # degrees ascend
                break
            yield from extend((*chosen, label), label, left - degrees[label])

    return extend((), 0, limit)


def _assembled(
    labels: np.ndarray,
    degree: np.ndarray,
    groups: dict[tuple[tuple[int, int], ...], list[tuple[int, ...]]],
    highest_order: int,
) -> ClusterBasis:
    """Number functions and monomials through all groups of multisets of one pattern."""
    offsets = np.concatenate([[0], np.cumsum(2 * labels[:, 2] + 1)])
    orders, degrees, monomials, functions, rows, coefficients = ([] for _ in range(6))
    n_functions = n_monomials = 0
    for pattern, found in groups.items():
        chosen = np.array(found, dtype=np.int64)  # [multiset, distinct label]
        powers = np.array([power for _, power in pattern])
        table = couple_powers(pattern, 0)[:, 0]  # [coupling, monomial]
        slots, components = _local_monomials(pattern)
        kept = np.abs(table).max(axis=0) > _ZERO
        table, slots, components = table[:, kept], slots[kept], components[kept]
        n_sets, order = len(chosen), int(powers.sum())
        variables = offsets[chosen[:, slots]] + components  # [multiset, monomial, factor]
        padded = np.full((n_sets * len(slots), highest_order), -1, dtype=np.int64)
        padded[:, highest_order - order :] = np.sort(variables, axis=2).reshape(-1, order)
        monomials.append(padded)
        coupling, column = np.nonzero(np.abs(table) > _ZERO)
        sets = np.arange(n_sets)[:, None]
        functions.append((n_functions + sets * len(table) + coupling).ravel())
        rows.append((n_monomials + sets * len(slots) + column).ravel())
        coefficients.append(np.tile(table[coupling, column], n_sets))
        orders.append(np.full(n_sets * len(table), order))
        degrees.append(np.repeat(degree[chosen] @ powers, len(table)))
        n_functions += n_sets * len(table)
        n_monomials += len(padded)
    return ClusterBasis(
        labels,
        np.concatenate(orders),
        np.concatenate(degrees),
        np.concatenate(monomials),
        np.concatenate(functions),
        np.concatenate(rows),
        np.concatenate(coefficients),
    )


def _local_monomials(pattern: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
    """[n_monomials, order] each: which label of the multiset, and which of its components."""
    factors = [
        [
            tuple((slot, component) for component in components)
            for components in combinations_with_replacement(range(2 * degree + 1), power)
        ]
        for slot, (degree, power) in enumerate(pattern)
    ]
    pairs = np.array([sum(parts, ()) for parts in product(*factors)], dtype=np.int64)
    return pairs[..., 0], pairs[..., 1]
