"""The product basis as torch operators, with first and second derivatives."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from clebsch.kernels.cpu import machine, threads
from clebsch.kernels.cpu.operators import operators
from clebsch.kernels.cpu.polynomial_code import (
    PolynomialSpec,
    write_forward,
    write_gradients,
    write_second,
)
from clebsch.kernels.plan import ContractionPlan
from clebsch.kernels.polynomial import coefficient_table, polynomial
from clebsch.kernels.polynomial_operators import define_product_basis
from clebsch.kernels.species import by_species


def contract(
    plan: ContractionPlan, atomic_basis: Tensor, weights: Tensor, species: Tensor
) -> Tensor:
    """See ``reference.contract``."""
    return _evaluate(f"{plan.key}|1", atomic_basis, weights, species)


def contract_slots(
    plan: ContractionPlan, slots: tuple[Tensor, ...], weights: Tensor, species: Tensor
) -> Tensor:
    """See ``reference.contract_slots``: a polynomial in the components of all slots."""
    return _evaluate(f"{plan.key}|{len(slots)}", torch.cat(slots, dim=1), weights, species)


def _evaluate(key: str, variables: Tensor, weights: Tensor, species: Tensor) -> Tensor:
    spec = _spec(key, variables.shape[2], variables.dtype.itemsize * 8)
    table = torch.from_numpy(coefficient_table(key, weights.dtype.itemsize * 8))
    by_term = (table @ weights).unflatten(2, (-1, spec.lanes))
    coefficients = by_term.transpose(1, 2).contiguous()  # [species, K / lanes, T, lane]
    order, ptr = by_species(species, len(weights))
    out: Tensor = torch.ops.clebsch.polynomial(key, coefficients, variables, order, ptr)
    return out


# --- operators ---


def _polynomial(
    plan: str, coefficients: Tensor, variables: Tensor, order: Tensor, ptr: Tensor
) -> Tensor:
    call = _Call(plan, coefficients, variables, order, ptr)
    out = variables.new_empty((len(variables), call.spec.n_outputs, call.spec.channels))
    call.run(_kernel(call.spec, "polynomial", False), out)
    return out


def _gradients(
    plan: str,
    weighted: bool,
    coefficients: Tensor,
    variables: Tensor,
    cotangent: Tensor,
    order: Tensor,
    ptr: Tensor,
) -> tuple[Tensor, Tensor]:
    call = _Call(plan, coefficients, variables, order, ptr)
    d_coefficients = call.coefficient_gradient(weighted)
    d_variables = torch.empty(variables.shape, dtype=variables.dtype)
    kernel = _kernel(call.spec, "polynomial_gradients", weighted)
    call.run(kernel, cotangent.contiguous(), d_coefficients, d_variables)
    return d_coefficients, d_variables


def _second(
    plan: str,
    weighted: bool,
    coefficients: Tensor,
    variables: Tensor,
    cotangent: Tensor,
    t_variables: Tensor,
    order: Tensor,
    ptr: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    call = _Call(plan, coefficients, variables, order, ptr)
    d_coefficients = call.coefficient_gradient(weighted)
    d_variables = torch.empty(variables.shape, dtype=variables.dtype)
    d_cotangent = torch.empty(cotangent.shape, dtype=cotangent.dtype)
    kernel = _kernel(call.spec, "polynomial_second", weighted)
    given = (cotangent.contiguous(), t_variables.contiguous())
    call.run(kernel, *given, d_coefficients, d_variables, d_cotangent)
    return d_coefficients, d_variables, d_cotangent


define_product_basis(operators, (_polynomial, _gradients, _second), ("order", "ptr"))


# --- calls ---


class _Call:
    """The inputs of a call as the kernels want them, and how its channels are divided."""

    def __init__(
        self, plan: str, coefficients: Tensor, variables: Tensor, order: Tensor, ptr: Tensor
    ) -> None:
        self.spec = _spec(plan, variables.shape[2], variables.dtype.itemsize * 8)
        self.coefficients, self.variables = coefficients.contiguous(), variables.contiguous()
        self.order, self.ptr = order, ptr
        cost = len(variables) * len(self.spec.terms) * self.spec.channels
        self.shares = threads.shares(self.spec.n_chunks, 2 * cost)

    def coefficient_gradient(self, weighted: bool) -> Tensor:
        """Zeros to add to; empty where the derivative is not wanted."""
        return torch.zeros(
            self.coefficients.shape if weighted else (0,), dtype=self.variables.dtype
        )

    def run(self, kernel: machine.Kernel, *tensors: Tensor) -> None:
        """Run a kernel on every share; ``tensors`` follow coefficients and variables."""
        passed = (self.order, self.ptr, self.coefficients, self.variables, *tensors)
        dtype, n_species = self.variables.dtype, self.coefficients.shape[0]
        threads.launch(kernel, dtype, self.shares, lambda part: passed, n_species)


@lru_cache(maxsize=64)
def _spec(key: str, channels: int, bits: int) -> PolynomialSpec:
    found = polynomial(key)
    name = f"{key}|{channels}|{bits}"
    return PolynomialSpec(channels, bits, name, found.terms, found.n_variables, found.n_outputs)


@lru_cache(maxsize=256)
def _kernel(spec: PolynomialSpec, kind: str, weighted: bool) -> machine.Kernel:
    key = f"{spec.key}|{weighted}"
    if kind == "polynomial":
        return machine.kernel(kind, 6, 3, key, lambda: write_forward(spec, kind))
    if kind == "polynomial_gradients":
        return machine.kernel(kind, 8, 3, key, lambda: write_gradients(spec, weighted, kind))
    return machine.kernel(kind, 10, 3, key, lambda: write_second(spec, weighted, kind))
