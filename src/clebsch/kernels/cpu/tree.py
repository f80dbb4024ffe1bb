"""Sparse polynomials that are read from tables as torch operators, to second derivatives."""

from __future__ import annotations

import itertools
from functools import lru_cache

import torch
from torch import Tensor

from clebsch.kernels.cpu import machine, threads
from clebsch.kernels.cpu.operators import operators
from clebsch.kernels.cpu.tree_code import TABLES, write_forward, write_gradients, write_second
from clebsch.kernels.polynomial_operators import define_polynomial
from clebsch.kernels.species import by_species
from clebsch.kernels.tree import PolynomialForest


def tree_polynomial(
    forest: PolynomialForest, variables: Tensor, coefficients: Tensor, species: Tensor
) -> Tensor:
    """See ``reference.tree_polynomial``."""
    order, ptr = by_species(species, len(forest.trees))
    tables = [torch.from_numpy(array) for array in forest.tables]
    out: Tensor = torch.ops.clebsch.tree_polynomial(coefficients, variables, order, ptr, *tables)
    return out


# --- operators ---


def _polynomial(coefficients: Tensor, variables: Tensor, *tables: Tensor) -> Tensor:
    call = _Call(coefficients, variables, *tables)
    out = variables.new_empty(len(variables))
    call.run("tree_polynomial", False, 1, 1, None, out)
    return out


def _gradients(
    weighted: bool, coefficients: Tensor, variables: Tensor, cotangent: Tensor, *tables: Tensor
) -> tuple[Tensor, Tensor]:
    call = _Call(coefficients, variables, *tables)
    d_coefficients = call.coefficient_gradient(weighted)
    d_variables = torch.empty(variables.shape, dtype=variables.dtype)
    given = (cotangent.contiguous(),)
    call.run("tree_gradients", weighted, 2, 2, (given, d_coefficients), d_variables)
    return d_coefficients, d_variables


def _second(
    weighted: bool,
    coefficients: Tensor,
    variables: Tensor,
    cotangent: Tensor,
    t_variables: Tensor,
    *tables: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    call = _Call(coefficients, variables, *tables)
    d_coefficients = call.coefficient_gradient(weighted)
    d_variables = torch.empty(variables.shape, dtype=variables.dtype)
    d_cotangent = torch.empty(cotangent.shape, dtype=cotangent.dtype)
    given = (cotangent.contiguous(), t_variables.contiguous())
    outputs = (d_variables, d_cotangent)
    call.run("tree_second", weighted, 3, 4, (given, d_coefficients), *outputs)
    return d_coefficients, d_variables, d_cotangent


define_polynomial(
    operators,
    ("tree_polynomial", "tree_gradients", "tree_second"),
    (_polynomial, _gradients, _second),
    lambda variables: variables.shape[:1],
    fixed=("order", "ptr", "node_ptr", "parents", "node_factors", "term_ptr", "term_factors"),
)


# --- calls ---


class _Call:
    """The inputs of a call as the kernels want them, and how its atoms are divided."""

    def __init__(
        self, coefficients: Tensor, variables: Tensor, order: Tensor, ptr: Tensor, *tables: Tensor
    ) -> None:
        self.dtype = variables.dtype
        self.bits = self.dtype.itemsize * 8
        self.coefficients, self.variables = coefficients.contiguous(), variables.contiguous()
        node_ptr, *self.tables = tables
        self.order = order
        self.blocks = _blocks(ptr, node_ptr, machine.wide(self.bits))
        self.sizes = (max(self.blocks[:, 1].tolist(), default=0), variables.shape[1])
        costs = _costs(self.blocks, self.tables[2]) * machine.wide(self.bits)
        self.shares = threads.shares(len(self.blocks), int(costs[-1]), costs)

    def coefficient_gradient(self, weighted: bool) -> Tensor:
        """Zeros to add to; empty where the derivative is not wanted."""
        return torch.zeros(self.coefficients.shape if weighted else (0,), dtype=self.dtype)

    def run(
        self,
        name: str,
        weighted: bool,
        variable_rows: int,
        node_rows: int,
        given: tuple[tuple[Tensor, ...], Tensor] | None,
        *outputs: Tensor,
    ) -> None:
        """Run a kernel on every share.

        Args:
            name: of the kernel.
            weighted: whether it gives derivatives by coefficients.
            variable_rows, node_rows: scratch memory, in vectors per variable and per node.
            given: what follows the variables: tensors, and the derivative by coefficients, of
                which each share has a copy.
            outputs: what it writes.
        """
        n_nodes, n_variables = self.sizes
        size = (variable_rows * n_variables + node_rows * n_nodes) * machine.wide(self.bits)
        parts = len(self.shares)
        memory = [torch.empty(size, dtype=self.dtype) for _ in range(parts)]
        inputs, sums = ((), None) if given is None else given
        copies = [None] * parts if sums is None else threads.copies(sums, parts)
        shared = (self.blocks, self.order, *self.tables, self.coefficients, self.variables)

        def passed(part: int) -> tuple[Tensor, ...]:
            copy = copies[part]
            added = () if copy is None else (copy,)
            return (*shared, *inputs, *added, *outputs, memory[part])

        kernel = _kernel(name, self.bits, weighted)
        threads.launch(kernel, self.dtype, self.shares, passed, *self.sizes)
        if sums is not None and weighted:
            threads.gather([copy for copy in copies if copy is not None])


def _blocks(ptr: Tensor, node_ptr: Tensor, lanes: int) -> Tensor:
    """[n_blocks, 4] int64: a block's first node and number of nodes, its first place in the order
    and number of atoms."""
    starts, nodes = ptr.tolist(), node_ptr.tolist()
    found = [
        (nodes[kind], nodes[kind + 1] - nodes[kind], place, min(lanes, stop - place))
        for kind, (start, stop) in enumerate(itertools.pairwise(starts))
        for place in range(start, stop, lanes)
    ]
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 4)


def _costs(blocks: Tensor, term_ptr: Tensor) -> Tensor:
    """[n_blocks + 1] int64: multiply-adds of an atom, summed over the blocks before each."""
    first, count = blocks[:, 0], blocks[:, 1]
    terms = term_ptr[first + count] - term_ptr[first]
    return torch.cat([terms.new_zeros(1), (2 * terms).cumsum(0)])


@lru_cache(maxsize=32)
def _kernel(name: str, bits: int, weighted: bool) -> machine.Kernel:
    key = f"{bits}|{weighted}"
    n_tables = len(TABLES) + 2  # memory and work
    if name == "tree_polynomial":
        return machine.kernel(name, n_tables + 2, 4, key, lambda: write_forward(name, bits))
    if name == "tree_gradients":
        return machine.kernel(
            name, n_tables + 4, 4, key, lambda: write_gradients(name, bits, weighted)
        )
    return machine.kernel(name, n_tables + 6, 4, key, lambda: write_second(name, bits, weighted))
