"""The product basis as autograd functions, closed under two derivatives."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from clebsch.kernels import reference
from clebsch.kernels.cpu import loops
from clebsch.kernels.cpu.threads import arrays, divide, zeros_like
from clebsch.kernels.plan import ContractionPlan


def contract(
    plan: ContractionPlan, atomic_basis: Tensor, weights: Tensor, species: Tensor
) -> Tensor:
    """See ``reference.contract``; a product basis of order 4 is evaluated there."""
    if plan.correlation > 3:
        return reference.contract(plan, atomic_basis, weights, species)
    table = _folding_table(plan, weights.dtype)
    padded = torch.cat([atomic_basis, torch.ones_like(atomic_basis[:, :1])], dim=1)
    return _Polynomial.apply(plan, species, table @ weights, padded)


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
        passed = arrays(coefficients, basis, out)
        kinds = species.numpy()
        divide(
            lambda start, stop: loops.polynomial(start, stop, kinds, *ctx.terms, *passed),
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
            d_coefficients = zeros_like(coefficients)
            _coefficient_gradient(terms, species, basis, cotangent, d_coefficients)
        if needs[1]:
            d_basis = zeros_like(basis)
            _basis_gradient(terms, species, coefficients, basis, cotangent, d_basis)
        return d_coefficients, d_basis

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, coefficient_direction: Tensor | None, basis_direction: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        terms, species = ctx.terms, ctx.species
        coefficients, basis, cotangent = ctx.saved_tensors
        d_coefficients, d_basis = zeros_like(coefficients), zeros_like(basis)
        d_cotangent = zeros_like(cotangent)
        kinds = species.numpy()
        cost = 8 * len(terms.component) * cotangent[:, 0].numel()
        if coefficient_direction is not None:
            passed = arrays(coefficient_direction, basis, d_cotangent)
            divide(
                lambda start, stop: loops.polynomial(start, stop, kinds, *terms, *passed),
                len(kinds),
                cost,
                None,
            )
            _basis_gradient(terms, species, coefficient_direction, basis, cotangent, d_basis)
        if basis_direction is not None:
            given = arrays(coefficients, basis, cotangent, basis_direction, d_basis, d_cotangent)
            _, second = loops.polynomial_gradients(basis.shape[2])
            divide(
                lambda start, stop: second(start, stop, kinds, *terms, *given),
                len(kinds),
                2 * cost,
                None,
            )
            order = torch.argsort(species, stable=True).numpy()
            needed = arrays(basis, cotangent, basis_direction, d_coefficients)
            divide(
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
    passed = arrays(basis, cotangent, d_coefficients)
    divide(
        lambda start, stop: loops.polynomial_coefficient_gradient(
            start, stop, kinds, order, *terms, *passed
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
    passed = arrays(coefficients, basis, cotangent, d_basis)
    gradient, _ = loops.polynomial_gradients(basis.shape[2])
    divide(
        lambda start, stop: gradient(start, stop, kinds, *terms, *passed),
        len(kinds),
        6 * len(terms.component) * cotangent[:, 0].numel(),
        None,
    )
