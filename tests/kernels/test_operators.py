"""What torch expects of an operator, what calculus does of a derivative, at every odd shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from operator_calls import Calls
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from builders import ethanol, potential
from clebsch.algebra import Irreps, all_irreps, spherical_irreps
from clebsch.graph import AtomGraph
from clebsch.kernels import cpu, reference
from clebsch.kernels.cpu import emit
from clebsch.kernels.plan import contraction_plan, convolution_plan
from clebsch.kernels.tree import PolynomialForest, polynomial_tree
from clebsch.neighbors import neighbor_graph
from clebsch.processor import torch_threads

CONVOLUTION = convolution_plan(spherical_irreps(1), spherical_irreps(1), spherical_irreps(1))
PRODUCT = contraction_plan(spherical_irreps(1), spherical_irreps(1), 3)
#: Both parities, and an irrep of the tensors ("4e") that no path starts from.
EDGE_PRODUCT = convolution_plan(
    Irreps.parse("0e+0o+1o+1e+4e"), spherical_irreps(1), Irreps.parse("0e+1o+1e")
)
#: x, y, x y and x^2 y.
TREE, _ = polynomial_tree(np.array([[-1, -1, 0], [-1, -1, 1], [-1, 0, 1], [0, 0, 1]]), 2)
FOREST = PolynomialForest((TREE,) * 3)
#: No multiple of any vector's lanes.
HIDDEN = 5


def line_of_atoms(*places: float) -> AtomGraph:
    """Atoms about a line; those within 2 Angstrom are neighbours."""
    positions = torch.zeros(len(places), 3, dtype=torch.float64)
    positions[:, 0] = torch.tensor(places, dtype=torch.float64)
    positions[:, 1:] = 0.2 * torch.sin(torch.arange(2.0 * len(places))).reshape(-1, 2)
    cell, pbc = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.bool)
    return neighbor_graph(positions, cell, pbc, torch.zeros(len(places), dtype=torch.int64), 2.0)


GRAPHS = {
    "some atoms without edges": line_of_atoms(-9, 0, 1.5, 9, 2.5, 18, 1, 27),
    "no edges": line_of_atoms(0, 9),
    "one atom": line_of_atoms(0),
    "no atoms": line_of_atoms(),
}
#: More edges than a block of the kernels, and receivers that lie across two blocks.
LARGE = line_of_atoms(*(0.3 * i for i in range(9)))


def randn(*shape: int, dtype: torch.dtype = torch.float64, strided: bool = False) -> Tensor:
    """A tensor that requires gradients; where strided, a view that is not contiguous."""
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    if strided:
        wide = torch.randn(*shape[:-1], 2 * shape[-1], dtype=dtype, generator=generator)
        return wide[..., ::2].requires_grad_()
    return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()


def convolution_inputs(graph: AtomGraph, channels: int, **options: Any) -> tuple[Tensor, ...]:
    """hidden, last weight, harmonics, nodes."""
    return (
        randn(graph.n_edges, HIDDEN, **options),
        randn(HIDDEN, CONVOLUTION.n_paths, channels, **options),
        randn(graph.n_edges, 4, **options),
        randn(graph.n_atoms, 4, channels, **options),
    )


def edge_product_inputs(graph: AtomGraph, channels: int, **options: Any) -> tuple[Tensor, Tensor]:
    """tensors, environment."""
    return (
        randn(graph.n_edges, EDGE_PRODUCT.node_irreps.dim, channels, **options),
        randn(graph.n_atoms, 4, channels, **options),
    )


def test_the_graphs_are_what_they_are_called() -> None:
    n_neighbors = GRAPHS["some atoms without edges"].row_ptr.diff()
    assert (n_neighbors == 0).tolist() == [True, False, False, True, False, True, False, True]
    assert GRAPHS["no edges"].n_edges == GRAPHS["one atom"].n_edges == 0
    assert GRAPHS["no atoms"].n_atoms == 0
    assert LARGE.n_edges > 48


# --- opcheck ---

OPERATORS = (
    "convolve",
    "convolve_gradients",
    "convolve_second",
    "edge_product",
    "edge_product_gradients",
    "polynomial",
    "polynomial_gradients",
    "polynomial_second",
    "linear",
    "linear_weight",
    "silu",
    "silu_gradient",
    "silu_second",
    "harmonics",
    "harmonics_gradient",
    "harmonics_second",
    "tree_polynomial",
    "tree_gradients",
    "tree_second",
)


#: Even their shapes come from the kernel's plan, which is for one number of channels.
FOR_FIXED_CHANNELS = ("polynomial", "polynomial_gradients", "linear", "linear_weight")
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def twice(out: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """First and second derivatives."""
    first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
    return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), inputs)]


@lru_cache(maxsize=2)
def calls(dtype: torch.dtype) -> Calls:
    """Calls as the public functions make them, with and without what is optional."""
    graph, channels = GRAPHS["some atoms without edges"], 3
    species = torch.tensor([2, 0, 2])
    hidden, last, harmonics, nodes = convolution_inputs(graph, channels, dtype=dtype)
    weights = randn(graph.n_edges, CONVOLUTION.n_paths, channels, dtype=dtype)
    basis, coupling = (
        randn(3, 4, channels, dtype=dtype),
        randn(3, PRODUCT.n_couplings, channels, dtype=dtype),
    )
    features, matrix = randn(3, 8, channels, dtype=dtype), randn(3, 9, 3, dtype=dtype)
    x, vectors = randn(7, dtype=dtype), randn(7, 3, dtype=dtype)
    values, terms = randn(3, 2, dtype=dtype), randn(FOREST.n_terms, dtype=dtype)
    with Calls("clebsch") as found:
        twice(cpu.convolve(CONVOLUTION, weights, harmonics, nodes, graph), (weights, harmonics))
        inputs = (hidden, last, harmonics, nodes)
        twice(cpu.convolve_radial(CONVOLUTION, *inputs, graph), inputs)
        pair = edge_product_inputs(graph, channels, dtype=dtype)
        twice(cpu.edge_product(EDGE_PRODUCT, *pair, graph), pair)
        twice(cpu.edge_product(EDGE_PRODUCT, pair[0], pair[1].detach(), graph), pair[:1])
        twice(cpu.contract(PRODUCT, basis, coupling, species), (basis, coupling))
        twice(cpu.contract(PRODUCT, basis, coupling.detach(), species), (basis,))
        twice(cpu.linear(features[:, :5], matrix, species, (1, 3), (2, 1)), (features, matrix))
        twice(cpu.linear(features[:, :5], matrix[:1], None, (1, 3), (2, 1)), (features, matrix))
        twice(cpu.silu(x), (x,))
        twice(cpu.spherical_harmonics(vectors, 2), (vectors,))
        twice(cpu.tree_polynomial(FOREST, values, terms, species), (values, terms))
        twice(cpu.tree_polynomial(FOREST, values, terms.detach(), species), (values,))
    return found


def test_every_operator_is_in_the_list() -> None:
    names = (name.split(".")[0] for name in torch._C._dispatch_get_all_op_names())
    ours = {name.removeprefix("clebsch::") for name in names if name.startswith("clebsch::")}
    assert ours == set(OPERATORS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_what_torch_expects(name: str, dtype: torch.dtype) -> None:
    """Schema, aliasing, autograd's registration, shapes without data, tracing with any sizes."""
    samples: dict[str, tuple[Any, ...]] = {}
    for args in calls(dtype).of(name):
        kinds = [type(a).__name__ if isinstance(a, Tensor) or a is None else a for a in args]
        samples.setdefault(str(kinds), args)
    assert samples
    sizes = "static" if name in FOR_FIXED_CHANNELS else "dynamic"
    checks = (*CHECKS, f"test_aot_dispatch_{sizes}")
    thrice = name.endswith("_second")
    for args in samples.values():
        inputs = [
            a.detach().clone().requires_grad_(a.is_floating_point() and not thrice)
            if isinstance(a, Tensor)
            else a
            for a in args
        ]
        torch.library.opcheck(getattr(torch.ops.clebsch, name), inputs, test_utils=checks)


# --- derivatives ---


def check(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    """First and second derivatives against differences.

    Fast mode: along random directions of all inputs at once.
    """
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


STRIDED = pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])


@STRIDED
@pytest.mark.parametrize("graph", list(GRAPHS))
def test_radial_convolution_derivatives(graph: str, strided: bool) -> None:
    check(
        lambda *inputs: cpu.convolve_radial(CONVOLUTION, *inputs, GRAPHS[graph]),
        convolution_inputs(GRAPHS[graph], 3, strided=strided),
    )


@pytest.mark.parametrize("summed", [False, True], ids=["apart", "summed"])
def test_convolution_derivatives_of_both_parities(summed: bool) -> None:
    plan = convolution_plan(all_irreps(1), spherical_irreps(1), all_irreps(1), summed)
    check(
        lambda *inputs: cpu.convolve(plan, *inputs, LARGE),
        (randn(LARGE.n_edges, plan.n_paths, 3), randn(LARGE.n_edges, 4), randn(9, 8, 3)),
    )


def test_long_code_is_divided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Into blocks that LLVM compiles in time; the numbers stay what they are."""
    monkeypatch.setattr(emit, "LONG_BLOCK", 50)
    monkeypatch.setenv("CLEBSCH_CACHE", str(tmp_path))
    plan = convolution_plan(spherical_irreps(1), spherical_irreps(2), spherical_irreps(2))
    inputs = (randn(LARGE.n_edges, plan.n_paths, 5), randn(LARGE.n_edges, 9), randn(9, 4, 5))
    derivatives = [
        twice(backend.convolve(plan, *inputs, LARGE), inputs) for backend in (cpu, reference)
    ]
    for here, there in zip(*derivatives, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-10, atol=1e-10)


def test_convolution_derivatives_across_blocks_of_edges() -> None:
    check(
        lambda *inputs: cpu.convolve_radial(CONVOLUTION, *inputs, LARGE),
        convolution_inputs(LARGE, 3),
    )
    check(
        lambda *inputs: cpu.convolve(CONVOLUTION, *inputs, LARGE),
        (randn(LARGE.n_edges, CONVOLUTION.n_paths, 3), *convolution_inputs(LARGE, 3)[2:]),
    )


@STRIDED
@pytest.mark.parametrize("graph", [*GRAPHS, "large"])
def test_edge_product_is_the_reference_and_its_derivatives(graph: str, strided: bool) -> None:
    edges = GRAPHS.get(graph, LARGE)
    inputs = edge_product_inputs(edges, 3, strided=strided)

    def function(*inputs: Tensor) -> Tensor:
        return cpu.edge_product(EDGE_PRODUCT, *inputs, edges)

    expected = reference.edge_product(EDGE_PRODUCT, *inputs, edges)
    torch.testing.assert_close(function(*inputs), expected, rtol=0, atol=1e-12)
    check(function, inputs)


@pytest.mark.parametrize(
    ("channels", "dtype"),
    [
        *((channels, torch.float64) for channels in (1, 5, 16, 64)),
        *((channels, torch.float32) for channels in (5, 16, 64)),
    ],
    ids=str,
)
def test_edge_products_of_any_number_of_channels(channels: int, dtype: torch.dtype) -> None:
    """Third derivatives too: the product is linear in each of its factors."""
    inputs = edge_product_inputs(LARGE, channels, dtype=dtype)
    results = []
    for backend in (cpu, reference):
        out = backend.edge_product(EDGE_PRODUCT, *inputs, LARGE)
        first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        inner = sum(g.square().sum() for g in first)
        second = torch.autograd.grad(inner, inputs, create_graph=True)
        third = torch.autograd.grad(sum((g**3).sum() for g in second), inputs)
        results.append([out, *first, *second, *third])
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    for place, (found, known) in enumerate(zip(*results, strict=True)):
        assert (found - known).abs().max() <= tolerance * known.abs().max(), place


def test_edge_products_on_several_threads_have_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = edge_product_inputs(LARGE, 16)
    results = []
    for share in (10**9, 1):
        monkeypatch.setattr("clebsch.kernels.cpu.threads.SMALLEST_SHARE", share)
        with torch_threads(2):
            out = cpu.edge_product(EDGE_PRODUCT, *inputs, LARGE)
            results.append([out, *twice(out, inputs)])
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@STRIDED
@pytest.mark.parametrize("species", [(), (1,), (2, 0, 2, 0)], ids=len)
@pytest.mark.parametrize("correlation", [1, 2, 3, 4])
def test_product_derivatives(correlation: int, species: tuple[int, ...], strided: bool) -> None:
    """Of three species one is absent, or more."""
    plan = contraction_plan(spherical_irreps(1), spherical_irreps(1), correlation)
    kinds = torch.tensor(species, dtype=torch.int64)
    check(
        lambda basis, weights: cpu.contract(plan, basis, weights, kinds),
        (
            randn(len(species), 4, 3, strided=strided),
            randn(3, plan.n_couplings, 3, strided=strided),
        ),
    )


@pytest.mark.parametrize("correlation", [1, 2, 3])
def test_distinct_slots_are_the_reference_and_their_derivatives(correlation: int) -> None:
    plan = contraction_plan(spherical_irreps(1), spherical_irreps(1), correlation, reduced=False)
    species = torch.tensor([2, 0, 2])
    slots = tuple(
        randn(3, 4, 3).detach().roll(slot).requires_grad_() for slot in range(correlation)
    )
    weights = randn(3, plan.n_couplings, 3)

    def function(weights: Tensor, *slots: Tensor) -> Tensor:
        return cpu.contract_slots(plan, slots, weights, species)

    expected = reference.contract_slots(plan, slots, weights, species)
    torch.testing.assert_close(function(weights, *slots), expected, rtol=0, atol=1e-12)
    check(function, (weights, *slots))


#: (components, copies) of irreps, and the species of atoms, of which there are three kinds.
COPIES = {"one each": (1, 1), "several": (2, 1), "none of one": (0, 2), "none of the last": (1, 0)}
KINDS = {"without species": None, "a species absent": (2, 0, 2), "no atoms": (), "one atom": (1,)}


@STRIDED
@pytest.mark.parametrize("copies", list(COPIES))
@pytest.mark.parametrize("kinds", list(KINDS))
def test_linear_is_the_reference_and_its_derivatives(
    copies: str, kinds: str, strided: bool
) -> None:
    species = KINDS[kinds]
    dims, counts = (1, 3), COPIES[copies]
    n_rows = sum(dim * count for dim, count in zip(dims, counts, strict=True))
    n_atoms = 3 if species is None else len(species)
    index = None if species is None else torch.tensor(species, dtype=torch.int64)
    inputs = (
        randn(n_atoms, n_rows, 3, strided=strided),
        randn(1 if species is None else 3, sum(counts) * 3, 3, strided=strided),
    )

    def function(features: Tensor, weight: Tensor) -> Tensor:
        return cpu.linear(features, weight, index, dims, counts)

    expected = reference.linear(*inputs, index, dims, counts)
    torch.testing.assert_close(function(*inputs), expected, rtol=0, atol=1e-13)
    check(function, inputs)


@pytest.mark.parametrize("n_atoms", [63, 64, 65, 200])
def test_linear_maps_of_more_atoms_than_are_taken_at_once(n_atoms: int) -> None:
    """The derivative by weights is summed over blocks of atoms of each species."""
    species = torch.arange(n_atoms) % 5 // 4 * 2  # four fifths of one, one fifth of another
    results = []
    for index, n_species in ((None, 1), (species, 3)):
        for backend in (cpu, reference):
            inputs = (randn(n_atoms, 5, 16), randn(n_species, 48, 16))
            out = backend.linear(*inputs, index, (1, 3), (2, 1))
            results.append([out, *twice(out, inputs)])
    for found, known in zip(results[0] + results[2], results[1] + results[3], strict=True):
        assert (found - known).abs().max() <= 1e-12 * known.abs().max()


@STRIDED
@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (7, 5)], ids=str)
def test_silu_derivatives(shape: tuple[int, int], strided: bool) -> None:
    x = randn(*shape, strided=strided)
    torch.testing.assert_close(cpu.silu(x), reference.silu(x), rtol=1e-13, atol=1e-14)
    check(cpu.silu, (x,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_silu_far_from_zero(dtype: torch.dtype) -> None:
    """Where exp overflows the answer is x or 0, and so are its derivatives."""
    x = torch.tensor([-1e4, -800, -100, -20, 0, 20, 100, 800, 1e4], dtype=dtype).requires_grad_()
    y = x.detach().clone().requires_grad_()
    found = [cpu.silu(x), *twice(cpu.silu(x), (x,))]
    expected = [reference.silu(y), *twice(reference.silu(y), (y,))]
    for here, there in zip(found, expected, strict=True):
        rtol = 1e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(here, there, rtol=rtol, atol=1e-30 + rtol * 1e-3)


# --- any number of channels ---


def full_derivatives(backend: Any, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Convolution, linear map and product, one after the other; value and both derivatives."""
    hidden, last, harmonics, nodes, matrix, weights = inputs
    species = torch.arange(LARGE.n_atoms) % 2 * 2
    convolved = backend.convolve_radial(CONVOLUTION, hidden, last, harmonics, nodes, LARGE)
    basis = backend.linear(convolved, matrix, species, (1, 3), CONVOLUTION.paths_per_out)
    basis = basis / (1 + basis.detach().abs().max())
    out = backend.contract(PRODUCT, basis, weights, species)
    first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
    return [out, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), inputs)]


@pytest.mark.parametrize(
    ("channels", "dtype"),
    [
        *((channels, torch.float64) for channels in (1, 5, 10, 16, 32, 64)),
        *((channels, torch.float32) for channels in (5, 16, 64)),
    ],
    ids=str,
)
def test_any_number_of_channels_gives_what_the_reference_gives(
    channels: int, dtype: torch.dtype
) -> None:
    inputs = (
        *convolution_inputs(LARGE, channels, dtype=dtype),
        randn(3, sum(CONVOLUTION.paths_per_out) * channels, channels, dtype=dtype),
        randn(3, PRODUCT.n_couplings, channels, dtype=dtype),
    )
    expected = full_derivatives(reference, inputs)
    # Sums of some hundred terms of both signs, to second derivatives.
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    for place, (found, known) in enumerate(
        zip(full_derivatives(cpu, inputs), expected, strict=True)
    ):
        assert (found - known).abs().max() <= tolerance * known.abs().max(), place


@pytest.mark.parametrize("hidden", [1, 8, 13])
def test_any_width_of_the_hidden_layer_gives_what_the_reference_gives(hidden: int) -> None:
    _, _, harmonics, nodes = convolution_inputs(LARGE, 3)
    inputs = (
        randn(LARGE.n_edges, hidden),
        randn(hidden, CONVOLUTION.n_paths, 3),
        harmonics,
        nodes,
    )
    results = []
    for backend in (cpu, reference):
        out = backend.convolve_radial(CONVOLUTION, *inputs, LARGE)
        results.append([out, *twice(out, inputs)])
    for found, known in zip(*results, strict=True):
        assert (found - known).abs().max() <= 1e-12 * known.abs().max()


# --- nothing that is not asked for ---


def test_forces_do_not_compute_what_training_needs() -> None:
    """With weights that require gradients, as in validation between two epochs."""
    tested = potential(backend="llvm")
    assert all(parameter.requires_grad for parameter in tested.model.parameters())
    graph = tested.graph(ethanol())
    with Calls("clebsch") as forces:
        tested(graph, ("energy", "forces"))
    for _, (by_radial, by_weight, by_harmonics, _) in wanted(forces):
        assert not by_weight
        assert by_radial
        assert by_harmonics
    # The first layer's nodes are an embedding of species: no position moves them.
    assert [by_nodes for _, (*_, by_nodes) in wanted(forces)] == [True, False]
    assert [args[1] for args in forces.of("polynomial_gradients")] == [False, False]
    assert not forces.of("linear_weight")
    assert not any(name.endswith("_second") for name, _ in forces.seen)


def test_a_loss_computes_them() -> None:
    """So that the test above can fail."""
    tested = potential(backend="llvm")
    with Calls("clebsch") as training:
        prediction = tested(tested.graph(ethanol()), ("energy", "forces"), differentiable=True)
        (prediction.forces.square().sum() + prediction.energy.sum()).backward()
    assert any(by_weight for _, (_, by_weight, _, _) in wanted(training))
    assert any(args[1] for args in training.of("polynomial_gradients"))
    assert training.of("linear_weight")
    assert {name for name, _ in training.seen} >= {"convolve_second", "polynomial_second"}


def test_an_energy_computes_no_derivative() -> None:
    tested = potential(backend="llvm")
    with Calls("clebsch") as energy:
        tested(tested.graph(ethanol()), ("energy",))
    assert {name for name, _ in energy.seen} <= {
        "convolve",
        "polynomial",
        "linear",
        "silu",
        "harmonics",
    }


def wanted(found: Calls) -> list[tuple[str, list[bool]]]:
    """The flags of every call for the convolution's first derivatives."""
    return [(args[0], list(args[1])) for args in found.of("convolve_gradients")]


def test_derivatives_not_asked_for_are_left_out() -> None:
    graph = GRAPHS["some atoms without edges"]
    inputs = convolution_inputs(graph, 3)
    for asked, expected in ((0, [True, False, False, False]), (3, [False, False, False, True])):
        with Calls("clebsch") as found:
            out = cpu.convolve_radial(CONVOLUTION, *inputs, graph)
            torch.autograd.grad(out.sum(), inputs[asked])
        ((_, flags),) = wanted(found)
        assert flags == expected


def test_third_derivatives_are_refused_not_wrong() -> None:
    x = randn(5)
    first = torch.autograd.grad(cpu.silu(x).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError):
        torch.autograd.grad((x * second).sum(), x)
