"""Couplings of products of the one-particle basis: the tables of MACE's product basis.

An order-nu coupling is a tensor C[M, q1..q_nu] such that

    B_M = sum over q of C[M, q1..q_nu] A[q1] ... A[q_nu]

transforms as the target irrep (MACE paper, equation 10 and appendix A.3); q runs over the
components of the irreps of A. There are two tables.

*Reduced*: all slots hold the same A, so only the part of C that is symmetric in its slots
matters: B_M is a homogeneous polynomial in A, stored by its monomials. Couplings of different
multisets of input irreps are independent, and so the basis is built one multiset at a time: an
orthonormal basis of the symmetric power of each irrep that occurs (found by Gram-Schmidt in a
fixed order), coupled across the different irreps by Clebsch-Gordan coefficients.
The couplings are orthonormal in

    <B, B'> = sum over monomials of (multiplicities' factorials) coefficient coefficient'
            = nu! sum over q of C[q] C'[q],

for each M: with independent standard normal A the part of B_M of full order nu (what is left when
no two factors are contracted with each other) has unit variance. Products of different irreps have
unit variance as they stand; where irreps repeat the contracted parts add to it: at order 2 the
variance is still 1, beside a mean for scalars, at order 3 and l_max 3 it is 1 to 4.5.

*Full*: one coupling for every way to append factors one by one, needed where slots hold different
features. With shared slots it is redundant. Each coupling has sum over q of C[M, q]^2 = 1.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations_with_replacement, permutations, product
from math import comb, factorial, prod
from typing import NamedTuple

import numpy as np

from clebsch.algebra.coupling import clebsch_gordan
from clebsch.algebra.irreps import Irrep, Irreps

# Coefficients are of order one: residuals of dependent couplings are below the first,
# coefficients that vanish by symmetry below the second.
_DEPENDENT = 1e-8
_ZERO = 1e-12


class Terms(NamedTuple):
    """The non-zero coefficients of a coupling basis: parallel arrays [n_terms], read-only.

    Sorted by coupling, then component, then monomial.
    """

    coupling: np.ndarray
    """int64, eta: 0 .. n_couplings-1."""
    component: np.ndarray
    """int64, M: 0 .. 2L."""
    monomial: np.ndarray
    """int64, row of ``CouplingBasis.monomials``."""
    coefficient: np.ndarray
    """float64, of the monomial: the orders in which its factors can stand are counted in."""


@dataclass(frozen=True, eq=False)
class CouplingBasis:
    """All couplings of one order to one target irrep, sparse.

        B[eta, M] = sum over terms (eta, M, monomial, c) of c * prod over s of A_s[monomial[s]]

    where slot s holds A_s; with ``symmetric`` all slots hold the same A.
    """

    irreps: Irreps
    """Of the one-particle basis A."""
    order: int
    target: Irrep
    symmetric: bool
    """Whether couplings are symmetric in their slots (the reduced table)."""
    l_tuples: tuple[tuple[int, ...], ...]
    """The degrees that each coupling multiplies, in slot order (ascending if symmetric)."""
    monomials: np.ndarray
    """[n_monomials, order] int64 component indices that occur, in lexicographic order; each row
    is sorted if symmetric."""
    terms: Terms

    @property
    def n_couplings(self) -> int:
        """Number of couplings; 0 where symmetry allows none."""
        return len(self.l_tuples)

    @property
    def n_monomials(self) -> int:
        """Number of different products of components that occur."""
        return len(self.monomials)

    @property
    def n_component_terms(self) -> int:
        """Number of different (component, monomial) pairs: terms left once weights are folded."""
        return len(np.unique(self.terms.component * max(self.n_monomials, 1) + self.terms.monomial))

    def dense(self) -> np.ndarray:
        """The tensor C, [n_couplings, 2L+1, Q, ..., Q] float64 with ``order`` axes of Q."""
        shape = (self.n_couplings, self.target.dim) + (self.irreps.dim,) * self.order
        tensor = np.zeros(shape)
        for eta, component, row, coefficient in zip(*self.terms, strict=True):
            factors = tuple(self.monomials[row])
            orders = set(permutations(factors)) if self.symmetric else {factors}
            for slots in orders:
                tensor[(eta, component, *slots)] = coefficient / len(orders)
        return tensor


@lru_cache(maxsize=256)
def coupling_basis(
    irreps_in: Irreps, order: int, target: Irrep, *, reduced: bool = True
) -> CouplingBasis:
    """The couplings of ``order`` factors of A to ``target``.

    Args:
        irreps_in: irreps of A.
        order: number of factors nu, 1 or more.
        target: irrep (L, p) of the result.
        reduced: linearly independent symmetric couplings, blocks of input irreps in lexicographic
            order; otherwise the full table, built as e3nn-based MACE builds its own (append
            a factor, then its irrep, then the intermediate; sort by intermediate after every
            step) with all intermediates of both parities at every order.

    Returns:
        The basis, the same on every machine up to rounding, and read-only.

    Raises:
        ValueError: ``order`` is less than 1.
    """
    if order < 1:
        raise ValueError(f"the order of a coupling is 1 or more, not {order}")
    build = _reduced_blocks if reduced else _sequential_blocks
    blocks = build(irreps_in, order, target)
    return _assemble(irreps_in, order, target, reduced, blocks)


class _Block(NamedTuple):
    """Couplings that share their input irreps: dense over the monomials of the block."""

    l_tuple: tuple[int, ...]
    monomials: np.ndarray  # [n, order] component indices
    couplings: np.ndarray  # [k, 2L+1, n]


def _assemble(
    irreps: Irreps, order: int, target: Irrep, symmetric: bool, blocks: list[_Block]
) -> CouplingBasis:
    """Number couplings and monomials through all blocks and drop what is zero."""
    l_tuples: list[tuple[int, ...]] = []
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for block in blocks:
        eta, component, column = np.nonzero(np.abs(block.couplings) > _ZERO)
        coefficient = block.couplings[eta, component, column]
        parts.append((eta + len(l_tuples), component, block.monomials[column], coefficient))
        l_tuples += [block.l_tuple] * len(block.couplings)
    parts.append((*np.zeros((2, 0), np.int64), np.zeros((0, order), np.int64), np.zeros(0)))
    etas, components, factors, coefficients = (
        np.concatenate(arrays) for arrays in zip(*parts, strict=True)
    )
    monomials, rows = np.unique(factors, axis=0, return_inverse=True)
    rows = rows.reshape(-1)
    ascending = np.lexsort((rows, components, etas))
    terms = Terms(
        *(array[ascending] for array in (etas, components, rows, coefficients)),
    )
    for array in (monomials, *terms):
        array.flags.writeable = False
    return CouplingBasis(irreps, order, target, symmetric, tuple(l_tuples), monomials, terms)


# --- the reduced table ---------------------------------------------------------------------------


def _reduced_blocks(irreps: Irreps, order: int, target: Irrep) -> list[_Block]:
    """One block for every multiset of input irreps that reaches the target."""
    blocks = []
    for positions in combinations_with_replacement(range(len(irreps)), order):
        if prod(irreps[position].parity for position in positions) != target.parity:
            continue
        counts = sorted(Counter(positions).items())
        couplings = couple_powers(
            tuple((irreps[position].l, power) for position, power in counts), target.l
        )
        if len(couplings) == 0:
            continue
        factors = [
            combinations_with_replacement(
                range(irreps.slices[position].start, irreps.slices[position].stop), power
            )
            for position, power in counts
        ]
        monomials = np.array([sum(parts, ()) for parts in product(*factors)], dtype=np.int64)
        degrees = tuple(irreps[position].l for position in positions)
        blocks.append(_Block(degrees, monomials, couplings))
    return blocks


@cache
def couple_powers(powers: tuple[tuple[int, int], ...], target: int) -> np.ndarray:
    """Couple symmetric powers of different irreps, given as (degree, power), to degree ``target``.

    Orthonormal bases of the powers, coupled in sequence through every intermediate, give an
    orthonormal basis of their product.

    Returns:
        [k, 2 target + 1, n_monomials], shared: not to be written to. Monomials are those of the
        powers (sorted tuples of component indices, in lexicographic order), the last power's
        fastest.
    """
    reach = sum(degree * power for degree, power in powers)  # of the factors still to come
    states = [(0, np.ones((1, 1)))]  # intermediate degree, [component, monomial]
    for step, (degree, power) in enumerate(powers):
        reach -= degree * power
        last = step == len(powers) - 1
        coupled = []
        for left, left_polynomials in states:
            for right in range(degree * power + 1):
                outs = [
                    out
                    for out in range(abs(left - right), left + right + 1)
                    if (out == target if last else out <= target + reach)
                ]
                if not outs:
                    continue
                for right_polynomials in _symmetric_power(degree, power, right):
                    for out in outs:
                        table = clebsch_gordan(left, right, out) * np.sqrt(2 * out + 1)
                        result = np.einsum(
                            "ijm,ia,jb->mab",
                            table,
                            left_polynomials,
                            right_polynomials,
                            optimize=True,
                        )
                        coupled.append((out, result.reshape(2 * out + 1, -1)))
        states = coupled
    n_monomials = prod(comb(2 * degree + power, power) for degree, power in powers)
    if not states:
        return np.zeros((0, 2 * target + 1, n_monomials))
    return np.stack([polynomials for _, polynomials in states])


@cache
def _symmetric_power(degree: int, power: int, target: int) -> np.ndarray:
    """Orthonormal polynomials of degree ``power`` in one irrep that transform as ``target``.

    One factor is appended to every basis polynomial of the power below, through every
    intermediate in ascending order; what depends on those already found is dropped
    (Gram-Schmidt). By Schur's lemma scalar products are the same for all components.

    Returns:
        [k, 2 target + 1, n_monomials], k possibly 0; monomials are the sorted tuples of component
        indices, in lexicographic order.
    """
    dim = 2 * degree + 1
    monomials = list(combinations_with_replacement(range(dim), power))
    if power == 1:
        return np.eye(dim)[None] if target == degree else np.zeros((0, 2 * target + 1, dim))
    row = {monomial: index for index, monomial in enumerate(monomials)}
    lower = combinations_with_replacement(range(dim), power - 1)
    raised = np.array([[row[tuple(sorted((*low, m)))] for m in range(dim)] for low in lower])
    weights = np.array([_factorials(monomial) for monomial in monomials])
    found: list[np.ndarray] = []
    for left in range(abs(target - degree), target + degree + 1):
        if left > degree * (power - 1):
            break
        table = clebsch_gordan(left, degree, target) * np.sqrt(2 * target + 1)
        for polynomials in _symmetric_power(degree, power - 1, left):
            sums = np.zeros((len(monomials), 2 * target + 1))
            np.add.at(sums, raised, np.einsum("jmM,jn->nmM", table, polynomials))
            candidate = sums.T
            for _ in range(2):  # twice: orthogonal to rounding
                for other in found:
                    overlap = np.sum(weights * other * candidate) / (2 * target + 1)
                    candidate = candidate - overlap * other
            norm = np.sqrt(np.sum(weights * candidate**2) / (2 * target + 1))
            if norm > _DEPENDENT:
                found.append(candidate / norm)
    return np.array(found).reshape(-1, 2 * target + 1, len(monomials))


def _factorials(monomial: tuple[int, ...]) -> int:
    """Product of the factorials of the multiplicities in a monomial."""
    return prod(factorial(count) for count in Counter(monomial).values())


# --- the full table ------------------------------------------------------------------------------


class _Sequential(NamedTuple):
    """One sequential coupling: the irrep reached and its tensor over the components multiplied."""

    irrep: Irrep
    positions: tuple[int, ...]  # of the irrep in each slot
    tensor: np.ndarray  # [2l+1, 2l_1+1, ..., 2l_nu+1]


def _sequential_blocks(irreps: Irreps, order: int, target: Irrep) -> list[_Block]:
    """One block for every sequential coupling that ends in the target."""
    states = [
        _Sequential(irrep, (position,), np.eye(irrep.dim)) for position, irrep in enumerate(irreps)
    ]
    for step in range(2, order + 1):
        states = [
            _append(state, position, irrep, out)
            for state in sorted(states, key=lambda state: state.irrep)
            for position, irrep in enumerate(irreps)
            for out in state.irrep * irrep
            if step < order or out == target
        ]
    blocks = []
    for state in states:
        if state.irrep != target:
            continue
        ranges = [range(irreps.slices[p].start, irreps.slices[p].stop) for p in state.positions]
        monomials = np.array(list(product(*ranges)), dtype=np.int64)
        degrees = tuple(irreps[position].l for position in state.positions)
        blocks.append(_Block(degrees, monomials, state.tensor.reshape(1, target.dim, -1)))
    return blocks


def _append(state: _Sequential, position: int, irrep: Irrep, out: Irrep) -> _Sequential:
    """Couple one more factor, of the irrep at ``position``, to ``out``."""
    table = clebsch_gordan(out.l, state.irrep.l, irrep.l) * np.sqrt(out.dim)
    tensor = np.einsum("ojb,j...->o...b", table, state.tensor)
    return _Sequential(out, (*state.positions, position), tensor)
