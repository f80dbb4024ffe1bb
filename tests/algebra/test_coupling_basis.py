"""The product basis: all couplings that symmetry allows, equivariant, orthonormal, reproducible."""

from __future__ import annotations

from itertools import permutations
from math import factorial

import numpy as np
import pytest
import torch

from clebsch.algebra import (
    CouplingBasis,
    Irrep,
    Irreps,
    coupling_basis,
    irrep_matrix,
    irreps_matrix,
    random_rotation,
    spherical_irreps,
)
from clebsch.algebra import symmetric as module

MACE = spherical_irreps(3)
BOTH_PARITIES = Irreps.parse("0e+1o+1e+2e+2o")


FINGERPRINT = {
    (1, 0): 0.84147098480790,
    (1, 1): -0.06346028334059,
    (1, 2): -0.58762120036300,
    (1, 3): -3.57514551077906,
    (2, 0): 0.48018303748960,
    (2, 1): 1.20348139712163,
    (2, 2): -1.95063551028088,
    (2, 3): -1.60722352668392,
    (3, 0): 0.04955483618574,
    (3, 1): 4.09645212658750,
    (3, 2): -0.61765601485195,
    (3, 3): 4.02208398322848,
    (4, 0): 0.08424827397991,
    (4, 1): 5.87503343597059,
    (4, 2): 3.28066497565197,
    (4, 3): -3.46890753537602,
}


def natural(degree: int) -> Irrep:
    return Irrep(degree, (-1) ** degree)


def evaluate(basis: CouplingBasis, slots: np.ndarray) -> np.ndarray:
    """B [samples, n_couplings, 2L+1] from the terms, for slots [order, samples, Q]."""
    eta, component, monomial, coefficient = basis.terms
    products = np.ones((slots.shape[1], basis.n_monomials))
    for slot, column in zip(slots, basis.monomials.T, strict=True):
        products *= slot[:, column]
    result = np.zeros((slots.shape[1], basis.n_couplings, basis.target.dim))
    np.add.at(result, (slice(None), eta, component), coefficient * products[:, monomial])
    return result


def shared(features: np.ndarray, order: int) -> np.ndarray:
    return np.broadcast_to(features, (order, *features.shape))


def multiplicity(irreps: Irreps, order: int, target: Irrep) -> int:
    """How often the symmetric power holds the target, by characters of O(3) alone."""
    angle = (np.arange(400) + 0.5) * np.pi / 400

    def character(irrep: Irrep, sign: int, multiple: int) -> np.ndarray:
        m = np.arange(-irrep.l, irrep.l + 1)[:, None]
        turned = np.cos(m * multiple * angle).sum(0)
        return turned * (irrep.parity if sign**multiple < 0 else 1)

    total = 0.0
    for sign in (1, -1):
        powers = [
            sum(character(irrep, sign, multiple) for irrep in irreps)
            for multiple in range(1, order + 1)
        ]
        symmetric = [np.ones_like(angle)]  # Newton's identities
        for n in range(1, order + 1):
            symmetric.append(sum(powers[k - 1] * symmetric[n - k] for k in range(1, n + 1)) / n)
        integrand = symmetric[order] * character(target, sign, 1) * (1 - np.cos(angle))
        total += integrand.mean() / 2
    assert total == pytest.approx(round(total), abs=1e-9)
    return round(total)


@pytest.mark.parametrize(
    ("order", "counts"),
    [(1, (1, 1, 1, 1)), (2, (4, 3, 5, 3)), (3, (8, 12, 14, 15)), (4, (23, 31, 46, 44))],
)
def test_reduced_couplings_are_as_many_as_symmetry_allows(order, counts):
    for degree, count in enumerate(counts):
        assert coupling_basis(MACE, order, natural(degree)).n_couplings == count
        assert multiplicity(MACE, order, natural(degree)) == count


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("target", ["0e", "0o", "1e", "1o", "2o"])
def test_counts_hold_for_irreps_of_both_parities(order, target):
    target = Irrep.parse(target)
    basis = coupling_basis(BOTH_PARITIES, order, target)
    assert basis.n_couplings == multiplicity(BOTH_PARITIES, order, target)


@pytest.mark.parametrize(
    ("order", "counts"), [(1, (1, 1, 1, 1)), (2, (4, 6, 7, 6)), (3, (23, 51, 65, 65))]
)
def test_the_full_table_has_the_published_number_of_couplings(order, counts):
    for degree, count in enumerate(counts):
        basis = coupling_basis(MACE, order, natural(degree), reduced=False)
        assert basis.n_couplings == count


def test_the_reduced_basis_is_as_sparse_as_its_space_allows():
    # Pairs (M, monomial) do not depend on the choice of basis: 887 up to order 3 and L = 2.
    pairs = [
        [coupling_basis(MACE, order, natural(degree)).n_component_terms for order in (1, 2, 3)]
        for degree in (0, 1, 2)
    ]
    assert pairs == [[1, 16, 77], [3, 35, 278], [5, 74, 398]]
    monomials = [coupling_basis(MACE, 3, natural(degree)).n_monomials for degree in (0, 1, 2)]
    assert monomials == [77, 278, 348]


@pytest.mark.parametrize("irreps", [MACE, BOTH_PARITIES], ids=str)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_reduced_couplings_turn_with_their_target(irreps, order):
    generator = torch.Generator().manual_seed(order)
    matrix = -random_rotation(generator)
    features = np.random.default_rng(order).normal(size=(3, irreps.dim))
    turned = features @ irreps_matrix(irreps, matrix).numpy().T
    for target in (natural(0), natural(1), natural(2), natural(3), Irrep(1, 1)):
        basis = coupling_basis(irreps, order, target)
        before = evaluate(basis, shared(features, order))
        after = evaluate(basis, shared(turned, order))
        expected = before @ irrep_matrix(target, matrix).numpy().T
        np.testing.assert_allclose(after, expected, atol=1e-11)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_full_couplings_turn_with_their_target_when_slots_differ(order):
    irreps = MACE if order < 4 else spherical_irreps(2)
    matrix = -random_rotation(torch.Generator().manual_seed(order))
    slots = np.random.default_rng(order).normal(size=(order, 2, irreps.dim))
    turned = slots @ irreps_matrix(irreps, matrix).numpy().T
    for degree in range(3):
        basis = coupling_basis(irreps, order, natural(degree), reduced=False)
        assert not basis.symmetric
        expected = evaluate(basis, slots) @ irrep_matrix(natural(degree), matrix).numpy().T
        np.testing.assert_allclose(evaluate(basis, turned), expected, atol=1e-11)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("degree", [0, 1, 2])
def test_reduced_couplings_are_orthonormal(order, degree):
    basis = coupling_basis(MACE, order, natural(degree))
    dense = basis.dense().reshape(basis.n_couplings, 2 * degree + 1, -1)
    gram = factorial(order) * np.einsum("pmx,qnx->pqmn", dense, dense)
    identity = np.einsum("pq,mn->pqmn", np.eye(basis.n_couplings), np.eye(2 * degree + 1))
    np.testing.assert_allclose(gram, identity, atol=1e-13)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_order_four_is_orthonormal_in_its_monomials(degree):
    basis = coupling_basis(MACE, 4, natural(degree))
    eta, component, monomial, coefficient = basis.terms
    matrix = np.zeros((basis.n_couplings * basis.target.dim, basis.n_monomials))
    matrix[eta * basis.target.dim + component, monomial] = coefficient
    weights = [module._factorials(tuple(row)) for row in basis.monomials.tolist()]
    np.testing.assert_allclose(matrix * weights @ matrix.T, np.eye(len(matrix)), atol=1e-13)


def test_full_couplings_are_orthonormal():
    for degree in (0, 1):
        basis = coupling_basis(MACE, 3, natural(degree), reduced=False)
        dense = basis.dense().reshape(basis.n_couplings, 2 * degree + 1, -1)
        gram = np.einsum("pmx,qmx->pq", dense, dense)
        np.testing.assert_allclose(gram, (2 * degree + 1) * np.eye(len(gram)), atol=1e-12)


def test_features_of_normal_inputs_are_of_order_one():
    features = np.random.default_rng(0).normal(size=(20000, MACE.dim))
    for degree in (0, 1, 2):
        for order in (2, 3):
            values = evaluate(coupling_basis(MACE, order, natural(degree)), shared(features, order))
            variance = values.var(axis=0)
            assert variance.min() > 0.9
            assert variance.max() < 5.0  # A_0 |A_3|^2 / sqrt(14): 1 + 7/2
            if order == 2:
                np.testing.assert_allclose(variance.mean(-1), 1.0, atol=0.08)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_reduced_and_symmetrised_full_couplings_span_the_same_functions(order, degree):
    full = coupling_basis(MACE, order, natural(degree), reduced=False)
    reduced = coupling_basis(MACE, order, natural(degree))
    features = np.random.default_rng(degree).normal(size=(40, MACE.dim))
    # Functions are compared by their values on more samples than there are couplings.
    full_values = evaluate(full, shared(features, order)).transpose(1, 0, 2)
    reduced_values = evaluate(reduced, shared(features, order)).transpose(1, 0, 2)
    full_values = full_values.reshape(full.n_couplings, -1)
    reduced_values = reduced_values.reshape(reduced.n_couplings, -1)
    together = np.concatenate([full_values, reduced_values])
    assert np.linalg.matrix_rank(full_values, tol=1e-8) == reduced.n_couplings
    assert np.linalg.matrix_rank(reduced_values, tol=1e-8) == reduced.n_couplings
    assert np.linalg.matrix_rank(together, tol=1e-8) == reduced.n_couplings


def test_dense_tensors_are_the_symmetric_form_of_the_terms():
    basis = coupling_basis(spherical_irreps(2), 3, natural(1))
    dense = basis.dense()
    for axes in permutations(range(3)):
        np.testing.assert_array_equal(dense, dense.transpose(0, 1, *(2 + axis for axis in axes)))
    features = np.random.default_rng(0).normal(size=(2, 9))
    contracted = np.einsum("emijk,si,sj,sk->sem", dense, features, features, features)
    np.testing.assert_allclose(contracted, evaluate(basis, shared(features, 3)), atol=1e-13)


def test_full_couplings_keep_their_slots_in_order():
    basis = coupling_basis(Irreps.parse("1o"), 3, Irrep(0, -1), reduced=False)
    slots = np.random.default_rng(0).normal(size=(3, 1, 3))
    triple = np.dot(np.cross(slots[0, 0], slots[1, 0]), slots[2, 0]) / np.sqrt(6)
    assert evaluate(basis, slots).ravel() == pytest.approx([triple])
    assert coupling_basis(Irreps.parse("1o"), 3, Irrep(0, -1)).n_couplings == 0


def test_couplings_know_what_they_multiply():
    basis = coupling_basis(MACE, 2, natural(1))
    assert basis.l_tuples == ((0, 1), (1, 2), (2, 3))
    for eta, degrees in enumerate(basis.l_tuples):
        rows = basis.terms.monomial[basis.terms.coupling == eta]
        owners = np.sqrt(basis.monomials[rows]).astype(int)  # component q is of degree floor(sqrt)
        assert {tuple(owner) for owner in owners.tolist()} == {degrees}
    assert (np.diff(basis.monomials, axis=1) >= 0).all()
    full = coupling_basis(MACE, 2, natural(1), reduced=False)
    assert full.l_tuples == ((0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2))


def test_small_couplings_are_the_known_polynomials():
    vector = Irreps.parse("1o")
    square = coupling_basis(vector, 2, natural(0))
    np.testing.assert_array_equal(square.monomials, [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_allclose(np.abs(square.terms.coefficient), 1 / np.sqrt(6), atol=1e-15)
    cube = coupling_basis(Irreps.parse("0e"), 3, natural(0))
    np.testing.assert_allclose(cube.terms.coefficient, [1 / np.sqrt(6)])


def test_the_basis_is_the_same_on_every_machine_and_every_time():
    # Saved weights mean nothing without the basis that they belong to: these values must not
    # change. Each is a weighted sum of all couplings and components at one fixed A.
    features = np.cos(np.arange(16.0))[None]
    values = {}
    for order in (1, 2, 3, 4):
        for degree in (0, 1, 2, 3):
            result = evaluate(coupling_basis(MACE, order, natural(degree)), shared(features, order))
            weights = np.sin(1.0 + np.arange(result.size)).reshape(result.shape)
            values[order, degree] = float((weights * result).sum())
    assert values == pytest.approx(FINGERPRINT, abs=1e-11)
    first = coupling_basis(MACE, 3, natural(2))
    for cached in (coupling_basis, module.couple_powers, module._symmetric_power):
        cached.cache_clear()
    second = coupling_basis(MACE, 3, natural(2))
    assert second is not first
    for one, other in zip(first.terms, second.terms, strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_coupling_is_an_empty_basis():
    basis = coupling_basis(Irreps.parse("0e"), 2, natural(1))
    assert basis.n_couplings == basis.n_monomials == basis.n_component_terms == 0
    assert basis.dense().shape == (0, 3, 1, 1)
    full = coupling_basis(Irreps.parse("0e"), 2, natural(1), reduced=False)
    assert full.monomials.shape == (0, 2)


def test_tables_are_read_only_and_orders_start_at_one():
    with pytest.raises(ValueError, match="read-only"):
        coupling_basis(MACE, 2, natural(0)).terms.coefficient[0] = 1.0
    with pytest.raises(ValueError, match="1 or more"):
        coupling_basis(MACE, 0, natural(0))
