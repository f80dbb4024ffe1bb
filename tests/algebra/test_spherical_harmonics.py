"""Spherical harmonics are e3nn's, and smooth everywhere but at the zero vector."""

from __future__ import annotations

from math import sqrt

import pytest
import torch

from clebsch.algebra import spherical_harmonics
from clebsch.algebra.spherical import _recurrence


def random_vectors(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, 3, generator=generator, dtype=dtype)


def test_first_degrees_are_as_documented():
    vectors = random_vectors(20)
    x, y, z = (vectors / vectors.norm(dim=-1, keepdim=True)).unbind(-1)
    documented = [
        torch.ones_like(x),
        *(sqrt(3) * component for component in (x, y, z)),
        sqrt(15) * x * z,
        sqrt(15) * x * y,
        sqrt(5) * (y**2 - (x**2 + z**2) / 2),
        sqrt(15) * y * z,
        sqrt(15) / 2 * (z**2 - x**2),
    ]
    harmonics = spherical_harmonics(vectors, 2)
    torch.testing.assert_close(harmonics, torch.stack(documented, -1), atol=1e-14, rtol=0)


def test_equal_to_e3nn(o3):
    vectors = random_vectors(50)
    oracle = o3.spherical_harmonics(list(range(9)), vectors, True, normalization="component")
    torch.testing.assert_close(spherical_harmonics(vectors, 8), oracle, atol=1e-12, rtol=1e-12)


def test_each_degree_has_component_normalisation():
    harmonics = spherical_harmonics(random_vectors(10), 10)
    for degree in range(11):
        square = harmonics[:, degree**2 : (degree + 1) ** 2].square().sum(-1)
        torch.testing.assert_close(
            square, torch.full_like(square, 2 * degree + 1), atol=1e-12, rtol=0
        )


def test_derivatives_are_right_to_second_order():
    vectors = random_vectors(3).requires_grad_()

    def function(v: torch.Tensor) -> torch.Tensor:
        return spherical_harmonics(v, 4)

    assert torch.autograd.gradcheck(function, vectors)
    assert torch.autograd.gradgradcheck(function, vectors)


def test_nothing_happens_at_the_poles():
    axes = torch.cat([torch.eye(3), -torch.eye(3)]).to(torch.float64).requires_grad_()

    def function(v: torch.Tensor) -> torch.Tensor:
        return spherical_harmonics(v, 6)

    assert torch.autograd.gradcheck(function, axes)
    assert torch.autograd.gradgradcheck(function, axes)
    weights = torch.linspace(-1, 1, 49, dtype=torch.float64)
    derivative = axes
    value = (function(axes) @ weights).sum()
    for _ in range(4):
        (derivative,) = torch.autograd.grad(value, axes, create_graph=True)
        assert derivative.isfinite().all()
        value = derivative.square().sum()


def test_float32_is_accurate_to_its_rounding():
    vectors = random_vectors(200)
    single = spherical_harmonics(vectors.float(), 8)
    assert single.dtype == torch.float32
    exact = spherical_harmonics(vectors.float().double(), 8)
    torch.testing.assert_close(single.double(), exact, atol=2e-5, rtol=0)


def test_any_leading_dimensions_and_layout():
    vectors = random_vectors(2, 5, 4)
    flat = spherical_harmonics(vectors.reshape(-1, 3), 3)
    batched = spherical_harmonics(vectors, 3)
    assert batched.is_contiguous()
    torch.testing.assert_close(batched, flat.reshape(2, 5, 4, 16), atol=0, rtol=0)
    torch.testing.assert_close(spherical_harmonics(vectors[0, 0, 0], 3), batched[0, 0, 0])
    strided = vectors.transpose(0, 2)
    torch.testing.assert_close(spherical_harmonics(strided, 3), batched.transpose(0, 2))


@pytest.mark.parametrize("l_max", [0, 1, 3])
def test_no_vectors_give_no_harmonics_and_no_gradient(l_max):
    vectors = torch.zeros(0, 3, requires_grad=True)
    harmonics = spherical_harmonics(vectors, l_max)
    assert harmonics.shape == (0, (l_max + 1) ** 2)
    if l_max:
        (gradient,) = torch.autograd.grad(harmonics.sum(), vectors)
        assert gradient.shape == (0, 3)


def test_a_first_call_in_inference_mode_does_not_spoil_later_training():
    _recurrence.cache_clear()
    vectors = random_vectors(4)
    with torch.inference_mode():
        spherical_harmonics(vectors, 3)
    vectors.requires_grad_()
    (gradient,) = torch.autograd.grad(spherical_harmonics(vectors, 3)[:, 5].sum(), vectors)
    assert gradient.isfinite().all()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"must be \[\.\.\., 3\]"):
        spherical_harmonics(torch.zeros(3, 2), 1)
    with pytest.raises(ValueError, match="l_max"):
        spherical_harmonics(torch.ones(3), -1)
