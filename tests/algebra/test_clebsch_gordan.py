"""Clebsch-Gordan coefficients are exact, equivariant and carry the signs of e3nn 0.4.4."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from clebsch.algebra import clebsch_gordan, random_rotation, spherical_harmonics, wigner_d

L_MAX = 6
TRIPLES = [
    (l1, l2, l3)
    for l1 in range(L_MAX + 1)
    for l2 in range(L_MAX + 1)
    for l3 in range(abs(l1 - l2), min(l1 + l2, L_MAX) + 1)
]
SORTED = [triple for triple in TRIPLES if tuple(sorted(triple)) == triple]

# Where e3nn from 0.5 on differs in sign from 0.4.4, up to l = 5.
FLIPPED = {(1, 2, 2), (1, 3, 3), (1, 4, 4), (1, 5, 5), (4, 4, 5), (5, 5, 5)}


def test_products_transform_as_the_third_irrep():
    rotation = random_rotation(torch.Generator().manual_seed(1))
    matrices = [wigner_d(degree, rotation).numpy() for degree in range(L_MAX + 1)]
    for l1, l2, l3 in TRIPLES:
        table = clebsch_gordan(l1, l2, l3)
        rotated = np.einsum(
            "ijk,ia,jb,kc->abc", table, matrices[l1], matrices[l2], matrices[l3], optimize=True
        )
        np.testing.assert_allclose(rotated, table, atol=1e-13)


def test_products_of_harmonics_of_one_direction_are_harmonics():
    # Ties the tables to the harmonics without the Wigner matrices, which are built from them.
    direction = torch.tensor([[0.3, -0.7, 0.5]], dtype=torch.float64)
    harmonics = spherical_harmonics(direction, 8)[0].numpy()
    y = [harmonics[degree**2 : (degree + 1) ** 2] for degree in range(9)]
    for l1, l2, l3 in [(1, 1, 2), (1, 2, 1), (2, 2, 2), (2, 3, 3), (3, 3, 4), (4, 4, 8), (5, 7, 6)]:
        coupled = np.einsum("ijk,i,j->k", clebsch_gordan(l1, l2, l3), y[l1], y[l2])
        scale = coupled @ y[l3] / (y[l3] @ y[l3])
        assert (scale if (l1 + l2 + l3) % 2 == 0 else 0.0) == pytest.approx(scale, abs=1e-14)
        np.testing.assert_allclose(coupled, scale * y[l3], atol=1e-13)
    for l1, l2, l3 in [(1, 1, 1), (2, 2, 3), (3, 4, 4)]:
        coupled = np.einsum("ijk,i,j->k", clebsch_gordan(l1, l2, l3), y[l1], y[l2])
        np.testing.assert_allclose(coupled, 0.0, atol=1e-13)


def test_couplings_to_all_irreps_are_an_orthogonal_change_of_basis():
    for l1 in range(L_MAX + 1):
        for l2 in range(L_MAX + 1):
            columns = [
                np.sqrt(2 * l3 + 1) * clebsch_gordan(l1, l2, l3).reshape(-1, 2 * l3 + 1)
                for l3 in range(abs(l1 - l2), l1 + l2 + 1)
            ]
            matrix = np.concatenate(columns, axis=1)
            np.testing.assert_allclose(matrix.T @ matrix, np.eye(len(matrix)), atol=1e-14)


@pytest.mark.parametrize("triple", [(8, 8, 8), (7, 8, 8), (3, 6, 8), (8, 8, 16)])
def test_high_degrees_keep_full_accuracy(triple):
    dim = 2 * triple[2] + 1
    table = clebsch_gordan(*triple).reshape(-1, dim)
    np.testing.assert_allclose(table.T @ table * dim, np.eye(dim), atol=1e-14)


def test_signs_follow_the_rule():
    for triple in SORTED:
        l1, l2, l3 = triple
        table = clebsch_gordan(*triple)
        if sum(triple) % 2 == 0:
            assert table[l1, l2, l3] > 0
        else:
            assert table[l1, l2, l3] == 0
            assert table.ravel()[np.flatnonzero(table)[0]] > 0


def test_other_orders_permute_the_axes_with_the_sign_of_the_permutation():
    for triple in [(1, 1, 1), (1, 2, 2), (1, 2, 3), (2, 3, 4), (2, 2, 4), (3, 3, 5)]:
        table = clebsch_gordan(*triple)
        for axes in permutations(range(3)):
            parity = round(np.linalg.det(np.eye(3)[list(axes)]))
            sign = 1 if parity > 0 else (-1) ** sum(triple)
            permuted = clebsch_gordan(*(triple[axis] for axis in axes))
            np.testing.assert_array_equal(permuted, sign * table.transpose(axes))


def test_small_tables_are_the_dot_and_cross_product():
    np.testing.assert_allclose(clebsch_gordan(1, 1, 0)[..., 0], np.eye(3) / np.sqrt(3), atol=1e-15)
    cross = np.einsum("ijk,i,j->k", clebsch_gordan(1, 1, 1), [1, 0, 0], [0, 1, 0])
    np.testing.assert_allclose(cross, [0, 0, 1 / np.sqrt(6)], atol=1e-15)


def test_equal_to_e3nn_up_to_the_signs_that_changed_after_0_4_4(o3):
    for triple in TRIPLES:
        table = clebsch_gordan(*triple)
        oracle = o3.wigner_3j(*triple, dtype=torch.float64).numpy()
        if max(triple) <= 5:
            sign = -1 if tuple(sorted(triple)) in FLIPPED else 1
        else:
            sign = np.sign(np.sum(oracle * table))
        np.testing.assert_allclose(sign * oracle, table, atol=1e-13)


@pytest.mark.parametrize("triple", [(1, 1, 3), (3, 1, 1), (0, 1, 2), (-1, 1, 1)])
def test_degrees_that_do_not_couple_are_refused(triple):
    with pytest.raises(ValueError, match="do not couple"):
        clebsch_gordan(*triple)


def test_tables_are_shared_and_read_only():
    assert clebsch_gordan(1, 2, 3) is clebsch_gordan(1, 2, 3)
    with pytest.raises(ValueError, match="read-only"):
        clebsch_gordan(1, 2, 3)[0, 0, 0] = 1.0
