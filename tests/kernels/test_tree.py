"""Polynomials from tables: the tree holds the monomials, backends agree, derivatives are right."""

from __future__ import annotations

from itertools import combinations_with_replacement
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from clebsch.kernels import cpu, reference
from clebsch.kernels.cpu import machine
from clebsch.kernels.cpu.threads import SMALLEST_SHARE
from clebsch.kernels.tree import PolynomialForest, polynomial_tree
from clebsch.processor import torch_threads

BACKENDS = pytest.mark.parametrize("backend", [reference, cpu], ids=["reference", "llvm"])
N_VARIABLES = 5


def monomials(highest: int, n_variables: int = N_VARIABLES, every: int = 1) -> np.ndarray:
    """Every (or every second, ...) monomial up to an order, in an order of no meaning."""
    rows = [
        [-1] * (highest - order) + list(factors)
        for order in range(1, highest + 1)
        for factors in combinations_with_replacement(range(n_variables), order)
    ]
    shuffled = np.random.default_rng(0).permutation(np.array(rows, dtype=np.int64))
    return shuffled[::every]


def randn(*shape: int, dtype: torch.dtype = torch.float64, strided: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(*shape, dtype=dtype, generator=generator)
    if strided:
        values = values.repeat_interleave(2, dim=-1)[..., ::2]
    return values.requires_grad_()


def forest(highest: int, n_variables: int = N_VARIABLES) -> PolynomialForest:
    """Three species, each with monomials of its own; the second has first powers alone."""
    rows = [monomials(highest, n_variables), monomials(1, n_variables)]
    rows.append(monomials(highest, n_variables, every=3))
    return PolynomialForest(tuple(polynomial_tree(row, n_variables)[0] for row in rows))


@BACKENDS
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("highest", [1, 2, 3, 4])
def test_a_polynomial_is_the_sum_of_its_monomials(
    backend: ModuleType, highest: int, every: int
) -> None:
    rows = [monomials(order, every=every) for order in (highest, 2, 1)]
    trees, orders = zip(*(polynomial_tree(row, N_VARIABLES) for row in rows), strict=True)
    tested = PolynomialForest(trees)
    species = torch.tensor([2, 0, 2, 0])
    variables, coefficients = randn(4, N_VARIABLES), randn(tested.n_terms)
    own = np.split(coefficients.detach().numpy(), np.cumsum([tree.n_terms for tree in trees])[:-1])
    expected = []
    for atom, kind in zip(variables.detach().numpy(), species.tolist(), strict=True):
        values = np.append(atom, 1.0)[rows[kind]].prod(1)
        expected.append(values[orders[kind]] @ own[kind])
    found = backend.tree_polynomial(tested, variables, coefficients, species)
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-12)


def test_nodes_follow_their_parents_and_terms_are_sorted_by_node() -> None:
    tree, order = polynomial_tree(monomials(4, every=3), N_VARIABLES)
    assert sorted(order.tolist()) == list(range(tree.n_terms))
    assert (tree.parents[1:] < np.arange(1, tree.n_nodes)).all()
    assert tree.term_ptr[-1] == tree.n_terms
    assert (np.diff(tree.term_ptr) >= 0).all()
    assert tree.levels[-1] == tree.n_nodes


def function(backend: ModuleType, tested: PolynomialForest, species: Tensor):  # type: ignore[no-untyped-def]
    return lambda variables, coefficients: backend.tree_polynomial(
        tested, variables, coefficients, species
    )


@BACKENDS
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("species", [(), (1,), (2, 0, 2, 0)], ids=len)
@pytest.mark.parametrize("highest", [1, 2, 3, 4])
def test_derivatives(
    backend: ModuleType, highest: int, species: tuple[int, ...], strided: bool
) -> None:
    """Of three species one is absent, or more."""
    trees = forest(highest, 3)
    kinds = torch.tensor(species, dtype=torch.int64)
    inputs = (randn(len(species), 3, strided=strided), randn(trees.n_terms, strided=strided))
    tested = function(backend, trees, kinds)
    assert gradcheck(tested, inputs, fast_mode=True)
    assert gradgradcheck(tested, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_llvm_equals_the_reference_at_full_size(dtype: torch.dtype, threads: int) -> None:
    """More atoms than lanes, and enough terms that work is divided among threads."""
    trees = forest(3, 60)
    n_atoms = 403
    assert n_atoms % machine.wide(64) != 0
    species = torch.arange(n_atoms) % 3 // 2 * 2
    n_terms = torch.tensor([tree.n_terms for tree in trees.trees])
    assert 2 * n_terms[species].sum() > 2 * SMALLEST_SHARE
    inputs = (randn(n_atoms, 60, dtype=dtype), randn(trees.n_terms, dtype=dtype))

    def everything(backend: ModuleType) -> list[Tensor]:
        out = function(backend, trees, species)(*inputs)
        first = torch.autograd.grad(out.square().sum() / 1e4, inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() / 1e6 for g in first), inputs)
        return [out, *first, *second]

    with torch_threads(threads):
        results = everything(cpu)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    for found, expected in zip(results, everything(reference), strict=True):
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_forces_compute_no_derivative_by_coefficients() -> None:
    from operator_calls import Calls

    from builders import ethanol, potential

    tested = potential("ace", backend="llvm")
    assert tested.model.coefficients.requires_grad
    with Calls("clebsch") as forces:
        tested(tested.graph(ethanol()), ("energy", "forces"))
    assert [args[0] for args in forces.of("tree_gradients")] == [False]
    with Calls("clebsch") as training:
        prediction = tested(tested.graph(ethanol()), ("energy", "forces"), differentiable=True)
        (prediction.forces.square().sum() + prediction.energy.sum()).backward()
    assert any(args[0] for args in training.of("tree_gradients"))
    assert any(args[0] for args in training.of("tree_second"))
