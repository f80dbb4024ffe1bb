"""The product basis as torch operators on GPUs, with first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from clebsch.kernels.gpu import machine
from clebsch.kernels.gpu import polynomial_code as code
from clebsch.kernels.gpu.operators import operators
from clebsch.kernels.gpu.segments import blocks, segment_sum
from clebsch.kernels.plan import ContractionPlan
from clebsch.kernels.polynomial import coefficient_table, polynomial
from clebsch.kernels.polynomial_operators import define_product_basis
from clebsch.kernels.species import by_species

#: Atoms of a program, at most: the more, the less often coefficients are read.
MOST_ATOMS = 32
#: At least as many while there are atoms enough for this many programs.
FEWEST_ATOMS, PROGRAMS = 4, 1024


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
    coefficients = _table(key, weights.dtype, weights.device) @ weights  # [species, T, K]
    order, ptr = by_species(species, len(weights))
    n_atoms, _, channels = variables.shape
    bounds, block_ptr = blocks(ptr, n_atoms, atoms_of_block(n_atoms, channels))
    out: Tensor = torch.ops.clebsch_gpu.polynomial(
        key, coefficients, variables, species, order, bounds, block_ptr
    )
    return out


@lru_cache(maxsize=64)
def _table(key: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    # One that is made while an evaluation is recorded would be sent to the GPU in every replay.
    with torch.inference_mode(False), _disable_current_modes():
        return torch.from_numpy(coefficient_table(key, dtype.itemsize * 8)).to(device)


def atoms_of_block(n_atoms: int, channels: int) -> int:
    """Atoms of a program: few where there would be too few programs otherwise.

    A symbol where the number of atoms is one.
    """
    n_warps = -(-channels // machine.WARP)
    size: int = torch.sym_min(
        MOST_ATOMS, torch.sym_max(FEWEST_ATOMS, n_atoms * n_warps // PROGRAMS)
    )
    return size


# --- operators ---


def _polynomial(plan: str, coefficients: Tensor, variables: Tensor, *atoms: Tensor) -> Tensor:
    call = _Call(plan, coefficients, variables, atoms)
    out = call.of_atoms(call.polynomial.n_outputs)
    call.run(_forward(plan), out)
    return out


def _gradients(
    plan: str,
    weighted: bool,
    coefficients: Tensor,
    variables: Tensor,
    cotangent: Tensor,
    *atoms: Tensor,
) -> tuple[Tensor, Tensor]:
    call = _Call(plan, coefficients, variables, atoms)
    d_variables = call.of_atoms(call.polynomial.n_variables)
    sums = call.of_blocks(weighted)
    call.run(_first(plan, weighted), cotangent.contiguous(), d_variables, sums)
    return call.summed(sums, weighted), d_variables


def _second(
    plan: str,
    weighted: bool,
    coefficients: Tensor,
    variables: Tensor,
    cotangent: Tensor,
    t_variables: Tensor,
    *atoms: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    call = _Call(plan, coefficients, variables, atoms)
    d_variables = call.of_atoms(call.polynomial.n_variables)
    d_cotangent = call.of_atoms(call.polynomial.n_outputs)
    sums = call.of_blocks(weighted)
    given = (cotangent.contiguous(), t_variables.contiguous())
    call.run(_double(plan, weighted), *given, d_variables, sums, d_cotangent)
    return call.summed(sums, weighted), d_variables, d_cotangent


define_product_basis(
    operators, (_polynomial, _gradients, _second), ("species", "order", "bounds", "block_ptr")
)


# --- calls ---


class _Call:
    """The inputs of a call, contiguous, its results, and the launch of its kernel."""

    def __init__(
        self, plan: str, coefficients: Tensor, variables: Tensor, atoms: tuple[Tensor, ...]
    ) -> None:
        self.polynomial = polynomial(plan)
        self.coefficients, self.variables = coefficients.contiguous(), variables.contiguous()
        self.species, self.order, self.bounds, self.block_ptr = (a.contiguous() for a in atoms)
        self.channels = variables.shape[2]

    def of_atoms(self, rows: int) -> Tensor:
        """Zeros [N, rows, K] to add to."""
        return self.variables.new_zeros((len(self.variables), rows, self.channels))

    def of_blocks(self, weighted: bool) -> Tensor:
        """Room for derivatives by coefficients, [blocks of atoms, T, K]; empty if not wanted."""
        shape = (len(self.bounds) - 1, len(self.polynomial.terms), self.channels)
        return self.variables.new_empty(shape if weighted else (0,))

    def summed(self, sums: Tensor, weighted: bool) -> Tensor:
        """Derivatives by coefficients, [n_species, T, K], out of those of blocks."""
        return segment_sum(sums, self.block_ptr) if weighted else sums

    def run(self, kernels: Sequence[Any], *tensors: Tensor) -> None:
        """Run kernels in turn, for all blocks of atoms; ``tensors`` follow the inputs."""
        if not len(self.variables):
            return
        inputs = (self.order, self.bounds, self.species, self.coefficients, self.variables)
        grid = (len(self.bounds) - 1, -(-self.channels // machine.WARP))
        given = (*inputs, *tensors)
        sizes: dict[str, Any] = {"CHANNELS": self.channels, "BLOCK": machine.WARP}
        machine.compile_together(kernels, grid, given, **sizes)
        for kernel in kernels:
            machine.launch(kernel, grid, given, **sizes)


# --- kernels: for each output component that has terms, or for each part of it ---


@lru_cache(maxsize=64)
def _forward(plan: str) -> list[Any]:
    return _kernels(plan, "polynomial", code.write_forward, code.PART)


@lru_cache(maxsize=64)
def _first(plan: str, weighted: bool) -> list[Any]:
    write = partial(code.write_gradients, weighted=weighted)
    return _kernels(plan, "polynomial_gradients", write, _most(weighted), apart=weighted)


@lru_cache(maxsize=64)
def _double(plan: str, weighted: bool) -> list[Any]:
    write = partial(code.write_second, weighted=weighted)
    return _kernels(plan, "polynomial_second", write, _most(weighted), apart=True)


def _most(weighted: bool) -> int:
    """Terms of a part."""
    return code.WEIGHTED_PART if weighted else code.PART


def _kernels(
    plan: str, name: str, write: Callable[..., str], most: int, apart: bool = False
) -> list[Any]:
    found = polynomial(plan)
    return [
        machine.kernel(name, write(found, output, roots))
        for output, roots in code.kernels_of(found, most, apart)
    ]
