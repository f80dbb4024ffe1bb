"""Sparse polynomials that are read from tables as torch operators, to second derivatives."""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clebsch.kernels.cpu import machine, threads
from clebsch.kernels.cpu.linear import by_species
from clebsch.kernels.cpu.operators import define, differentiable, last
from clebsch.kernels.cpu.tree_code import TABLES, write_forward, write_gradients, write_second
from clebsch.kernels.operators import needed, remember
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
    weighted: bool, coefficients: Tensor, variables: Tensor, *rest: Tensor
) -> tuple[Tensor, Tensor]:
    """Derivatives by coefficients (empty where not ``weighted``) and variables."""
    *tables, cotangent = rest
    call = _Call(coefficients, variables, *tables)
    d_coefficients = call.coefficient_gradient(weighted)
    d_variables = torch.empty(variables.shape, dtype=variables.dtype)
    given = (cotangent.contiguous(),)
    call.run("tree_gradients", weighted, 2, 2, (given, d_coefficients), d_variables)
    return d_coefficients, d_variables


def _second(
    weighted: bool, coefficients: Tensor, variables: Tensor, *rest: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of ``t_variables . d_variables`` by coefficients, variables and cotangent."""
    *tables, cotangent, t_variables = rest
    call = _Call(coefficients, variables, *tables)
    d_coefficients = call.coefficient_gradient(weighted)
    d_variables = torch.empty(variables.shape, dtype=variables.dtype)
    d_cotangent = torch.empty(cotangent.shape, dtype=cotangent.dtype)
    given = (cotangent.contiguous(), t_variables.contiguous())
    outputs = (d_variables, d_cotangent)
    call.run("tree_second", weighted, 3, 4, (given, d_coefficients), *outputs)
    return d_coefficients, d_variables, d_cotangent


def _gradients_fake(
    weighted: bool, coefficients: Tensor, variables: Tensor, *rest: Tensor
) -> tuple[Tensor, Tensor]:
    d_coefficients = coefficients.new_empty(coefficients.shape if weighted else (0,))
    return d_coefficients, variables.new_empty(variables.shape)


def _second_fake(
    weighted: bool, coefficients: Tensor, variables: Tensor, *rest: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    first = _gradients_fake(weighted, coefficients, variables)
    return (*first, variables.new_empty(variables.shape[:1]))


def _polynomial_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    remember(ctx, inputs, 0)


def _polynomial_backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    weighted = needed(ctx, 0)
    d_coefficients, d_variables = torch.ops.clebsch.tree_gradients(
        weighted, *ctx.saved_tensors, cotangent
    )
    return d_coefficients if weighted else None, d_variables, *[None] * 7


def _gradients_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    remember(ctx, inputs, 1)


def _gradients_backward(
    ctx: Any, t_coefficients: Tensor | None, t_variables: Tensor | None
) -> tuple[Tensor | None, ...]:
    (returned,) = ctx.settings
    coefficients, *rest, cotangent = ctx.saved_tensors  # rest: variables and tables
    weighted = needed(ctx, 1)
    d_coefficients = d_variables = d_cotangent = None
    if t_variables is not None:
        d_coefficients, d_variables, d_cotangent = torch.ops.clebsch.tree_second(
            weighted, coefficients, *rest, cotangent, t_variables
        )
    if t_coefficients is not None and returned:  # the polynomial is linear in coefficients
        _, more = torch.ops.clebsch.tree_gradients(False, t_coefficients, *rest, cotangent)
        across = torch.ops.clebsch.tree_polynomial(t_coefficients, *rest)
        d_variables = more if d_variables is None else d_variables + more
        d_cotangent = across if d_cotangent is None else d_cotangent + across
    return None, d_coefficients if weighted else None, d_variables, *[None] * 7, d_cotangent


_INPUTS = (
    "Tensor coefficients, Tensor variables, Tensor order, Tensor ptr, Tensor node_ptr, "
    "Tensor parents, Tensor node_factors, Tensor term_ptr, Tensor term_factors"
)
define(
    f"tree_polynomial({_INPUTS}) -> Tensor",
    _polynomial,
    lambda coefficients, variables, *tables: variables.new_empty(variables.shape[:1]),
)
define(
    f"tree_gradients(bool weighted, {_INPUTS}, Tensor cotangent) -> (Tensor, Tensor)",
    _gradients,
    _gradients_fake,
)
define(
    f"tree_second(bool weighted, {_INPUTS}, Tensor cotangent, Tensor t_variables) "
    "-> (Tensor, Tensor, Tensor)",
    _second,
    _second_fake,
)
differentiable("tree_polynomial", _polynomial_setup, _polynomial_backward)
differentiable("tree_gradients", _gradients_setup, _gradients_backward)
last("tree_second")


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
