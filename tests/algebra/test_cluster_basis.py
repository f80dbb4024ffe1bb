"""Linear ACE's invariants: invariant, independent, complete, of the order they claim."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch

from clebsch.algebra import irrep_matrix, random_rotation
from clebsch.algebra.cluster import ClusterBasis, cluster_basis
from clebsch.algebra.irreps import Irrep

CASES = {
    # three different vectors fit into degree 4: their triple product is no invariant of O(3)
    "two species, order 3": (2, (4.0, 4.0, 4.0), 1.0),
    "one species, order 4": (1, (3.0, 4.0, 4.0, 4.0), 1.0),
    "one species, l counts more": (1, (5.0, 5.0, 5.0), 1.5),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[int, tuple[float, ...], float]:
    return CASES[request.param]


def evaluate(basis: ClusterBasis, variables: np.ndarray) -> np.ndarray:
    """[N, n_functions] of variables [N, V]."""
    padded = np.concatenate([variables, np.ones((len(variables), 1))], axis=1)
    products = padded[:, basis.monomials].prod(axis=2)
    out = np.zeros((len(variables), basis.n_functions))
    np.add.at(out.T, basis.functions, (basis.coefficients * products[:, basis.rows]).T)
    return out


def random_variables(basis: ClusterBasis, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, basis.n_variables))


@pytest.mark.parametrize("inversion", [1, -1])
def test_functions_are_invariant(
    case: tuple[int, tuple[float, ...], float], inversion: int
) -> None:
    basis = cluster_basis(*case)
    variables = random_variables(basis, 5)
    rotation = inversion * random_rotation(torch.Generator().manual_seed(1))
    turned = np.empty_like(variables)
    for (_, _, degree), start, stop in zip(
        basis.labels, basis.offsets[:-1], basis.offsets[1:], strict=True
    ):
        matrix = irrep_matrix(Irrep(int(degree), (-1) ** int(degree)), rotation)
        turned[:, start:stop] = variables[:, start:stop] @ matrix.numpy().T
    assert not np.allclose(turned, variables)
    np.testing.assert_allclose(
        evaluate(basis, turned), evaluate(basis, variables), rtol=1e-10, atol=1e-10
    )


def test_functions_are_linearly_independent(case: tuple[int, tuple[float, ...], float]) -> None:
    basis = cluster_basis(*case)
    values = evaluate(basis, random_variables(basis, 3 * basis.n_functions))
    values /= np.linalg.norm(values, axis=0)
    assert np.linalg.matrix_rank(values, tol=1e-9) == basis.n_functions


def invariants_by_characters(degrees: list[int]) -> float:
    """How many invariants there are in a product of symmetric powers, averaging over rotations.

    The character of degree l at an angle is sum over m of exp(i m angle); that of a symmetric power
    follows from Newton's identities. Molien's integral over the rotation group, by the trapezoid
    rule, which is exact for trigonometric polynomials.
    """
    angles = 2 * np.pi * np.arange(256) / 256
    total = np.ones(256)
    for degree in set(degrees):
        powers = degrees.count(degree)  # here labels are equal where degrees are
        sums = [
            np.cos(np.outer(k * angles, np.arange(-degree, degree + 1))).sum(1)
            for k in range(powers + 1)
        ]
        complete = [np.ones(256)]
        for n in range(1, powers + 1):
            complete.append(sum(sums[k] * complete[n - k] for k in range(1, n + 1)) / n)
        total = total * complete[powers]
    return float(np.mean(total * (1 - np.cos(angles))))


def test_as_many_functions_as_characters_count() -> None:
    """One channel of each degree: multisets of degrees of even sum, by Molien's integral."""
    limits = (6.0, 6.0, 6.0, 6.0)
    basis = cluster_basis(1, limits, 1.0)
    lone = np.flatnonzero(basis.labels[:, 1] == 0)  # n = 0 alone
    kept = set(lone.tolist())
    label_of = np.repeat(np.arange(len(basis.labels)), 2 * basis.labels[:, 2] + 1)
    rows_of = np.split(basis.rows, np.unique(basis.functions, return_index=True)[1][1:])
    for order in range(1, 5):
        found = 0
        for function, rows in enumerate(rows_of):
            monomial = basis.monomials[rows[0]]
            labels = label_of[monomial[monomial >= 0]].tolist()
            found += basis.orders[function] == order and set(labels) <= kept
        expected = sum(
            round(invariants_by_characters(list(degrees)))
            for degrees in combinations_with_replacement(range(7), order)
            if sum(degrees) <= 6 and sum(degrees) % 2 == 0
        )
        assert found == expected > 0


def test_every_order_stays_below_its_own_degree(
    case: tuple[int, tuple[float, ...], float],
) -> None:
    n_species, limits, _ = case
    basis = cluster_basis(*case)
    for order, limit in enumerate(limits, start=1):
        mine = basis.orders == order
        assert mine.any()
        assert basis.degrees[mine].max() <= limit + 1e-9
    assert (basis.orders == 1).sum() == n_species * (int(limits[0]) + 1)


def test_monomials_have_as_many_factors_as_the_order_says() -> None:
    basis = cluster_basis(2, (4.0, 4.0, 3.0), 1.0)
    factors = (basis.monomials[basis.rows] >= 0).sum(1)
    np.testing.assert_array_equal(factors, basis.orders[basis.functions])
    assert (np.diff(basis.monomials, axis=1) >= 0).all()
    assert len(np.unique(basis.monomials, axis=0)) == len(basis.monomials)


def test_a_weight_of_l_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        cluster_basis(1, (2.0,), 0.0)
