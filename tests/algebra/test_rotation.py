"""Wigner matrices represent O(3) and say how harmonics turn."""

from __future__ import annotations

import pytest
import torch

from clebsch.algebra import (
    Irrep,
    Irreps,
    irrep_matrix,
    irreps_matrix,
    random_rotation,
    spherical_harmonics,
    wigner_d,
)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_random_rotations_are_proper_and_reproducible(generator):
    rotation = random_rotation(generator)
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(rotation @ rotation.T, eye, atol=1e-14, rtol=0)
    assert torch.linalg.det(rotation).item() == pytest.approx(1.0)
    again = random_rotation(torch.Generator().manual_seed(7))
    assert torch.equal(rotation, again)
    assert not torch.equal(rotation, random_rotation(generator))


def test_random_rotations_are_uniform(generator):
    # Over SO(3) the mean of R x R vanishes except for <R_ij R_ij> = 1/3.
    rotations = torch.stack([random_rotation(generator) for _ in range(4000)]).reshape(-1, 9)
    moments = rotations.T @ rotations / len(rotations)
    target = torch.eye(9, dtype=torch.float64) / 3
    torch.testing.assert_close(moments, target, atol=0.04, rtol=0)


@pytest.mark.parametrize("sign", [1, -1])
def test_harmonics_of_turned_vectors_are_turned_harmonics(generator, sign):
    matrix = sign * random_rotation(generator)
    vectors = torch.randn(10, 3, dtype=torch.float64, generator=generator)
    before, after = spherical_harmonics(vectors, 8), spherical_harmonics(vectors @ matrix.T, 8)
    for degree in range(9):
        part = slice(degree**2, (degree + 1) ** 2)
        turned = before[:, part] @ wigner_d(degree, matrix).T
        torch.testing.assert_close(turned, after[:, part], atol=1e-12, rtol=0)


def test_matrices_of_products_are_products_of_matrices(generator):
    first, second = -random_rotation(generator), random_rotation(generator)
    for irrep in Irreps.parse("0e+0o+1o+1e+3o+3e+6e+6o"):
        product = irrep_matrix(irrep, first) @ irrep_matrix(irrep, second)
        torch.testing.assert_close(product, irrep_matrix(irrep, first @ second), atol=1e-13, rtol=0)
        eye = torch.eye(irrep.dim, dtype=torch.float64)
        inverse = irrep_matrix(irrep, first) @ irrep_matrix(irrep, first.T)
        torch.testing.assert_close(inverse, eye, atol=1e-13, rtol=0)


def test_inversion_gives_the_parity():
    inversion = -torch.eye(3)
    for irrep in Irreps.parse("0e+0o+1o+1e+2e+2o"):
        expected = irrep.parity * torch.eye(irrep.dim, dtype=torch.float64)
        torch.testing.assert_close(irrep_matrix(irrep, inversion), expected)


def test_irreps_turn_in_blocks(generator):
    irreps = Irreps.parse("0e+1o+2o")
    matrix = -random_rotation(generator)
    blocks = irreps_matrix(irreps, matrix)
    assert blocks.shape == (9, 9)
    torch.testing.assert_close(blocks[1:4, 1:4], matrix)
    torch.testing.assert_close(blocks[4:, 4:], irrep_matrix(Irrep(2, -1), matrix))
    assert blocks[:4, 4:].abs().max() == 0


def test_matrices_that_are_not_orthogonal_are_refused():
    with pytest.raises(ValueError, match="not orthogonal"):
        wigner_d(1, 2 * torch.eye(3))
    with pytest.raises(ValueError, match=r"\[3, 3\]"):
        wigner_d(1, torch.eye(2))
    with pytest.raises(ValueError, match="degree"):
        wigner_d(-1, torch.eye(3))
