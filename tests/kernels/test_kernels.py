"""Operations equal their definitions, backends the reference, to second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from clebsch.algebra import Irreps, all_irreps, spherical_irreps
from clebsch.graph import AtomGraph
from clebsch.kernels import cpu, reference
from clebsch.kernels.plan import ConvolutionPlan, contraction_plan, convolution_plan
from clebsch.neighbors import neighbor_graph
from clebsch.processor import torch_threads

BACKENDS = pytest.mark.parametrize("backend", [reference, cpu], ids=["reference", "llvm"])
CHANNELS = 3


def random_graph(n_atoms: int, seed: int = 0, spread: float = 3.0) -> AtomGraph:
    generator = torch.Generator().manual_seed(seed)
    return neighbor_graph(
        spread * torch.rand(n_atoms, 3, dtype=torch.float64, generator=generator),
        torch.eye(3, dtype=torch.float64) * 4,
        torch.tensor([True, False, False]),
        torch.arange(n_atoms) % 2,
        2.0,
    )


GRAPHS = {
    "random": random_graph(5),
    "one atom": random_graph(1),
    "no atoms": random_graph(0),
    "no edges": neighbor_graph(
        torch.tensor([[0.0, 0, 0], [9, 0, 0]], dtype=torch.float64),
        torch.zeros(3, 3, dtype=torch.float64),
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(2, dtype=torch.int64),
        2.0,
    ),
}


def randn(*shape: int, dtype: torch.dtype = torch.float64, strided: bool = False) -> Tensor:
    """A leaf tensor, or a strided view of one."""
    generator = torch.Generator().manual_seed(sum(shape))
    if strided:
        wide = torch.randn(*shape[:-1], 2 * shape[-1], dtype=dtype, generator=generator)
        return wide[..., ::2].requires_grad_()
    return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()


def convolution_inputs(
    graph: AtomGraph, message_l: int = 1, **options: object
) -> tuple[object, tuple[Tensor, Tensor, Tensor]]:
    plan = convolution_plan(spherical_irreps(message_l), spherical_irreps(2), spherical_irreps(2))
    return plan, inputs_of(plan, graph, **options)


def inputs_of(
    plan: ConvolutionPlan, graph: AtomGraph, **options: object
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        randn(graph.n_edges, plan.n_paths, CHANNELS, **options),  # type: ignore[arg-type]
        randn(graph.n_edges, 9, **options),  # type: ignore[arg-type]
        randn(graph.n_atoms, plan.node_irreps.dim, CHANNELS, **options),  # type: ignore[arg-type]
    )


@BACKENDS
@pytest.mark.parametrize("irreps", [spherical_irreps, all_irreps])
@pytest.mark.parametrize("summed", [False, True], ids=["apart", "summed"])
def test_convolution_is_the_sum_of_equation_8(
    backend: ModuleType, irreps: Callable[[int], Irreps], summed: bool
) -> None:
    graph = GRAPHS["random"]
    plan = convolution_plan(irreps(1), spherical_irreps(2), irreps(2), summed)
    weights, harmonics, nodes = inputs_of(plan, graph)
    expected = torch.zeros(graph.n_atoms, plan.out_dim, CHANNELS, dtype=torch.float64)
    rank = [0] * len(plan.out_irreps)
    for p, path in enumerate(plan.paths):
        table = torch.tensor(plan.coefficients(path))
        y = harmonics[:, plan.harmonic_irreps.slices[path.harmonic]]
        h = nodes[graph.senders][:, plan.node_irreps.slices[path.node]]
        messages = torch.einsum("ek,abc,ea,ebk->eck", weights[:, p], table, y, h)
        block, copies = plan.out_blocks[path.out], plan.copies[path.out]
        rows = torch.arange(block.start + rank[path.out], block.stop, copies)
        for e in range(graph.n_edges):
            expected[graph.receivers[e], rows] += messages[e]
        rank[path.out] += not summed
    found = backend.convolve(plan, weights, harmonics, nodes, graph)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@BACKENDS
def test_radial_convolution_is_convolution_of_the_last_layer(backend: ModuleType) -> None:
    graph = GRAPHS["random"]
    plan, (_, harmonics, nodes) = convolution_inputs(graph)
    hidden, last = randn(graph.n_edges, 6), randn(6, plan.n_paths, CHANNELS)
    weights = torch.einsum("ef,fpk->epk", hidden, last)
    torch.testing.assert_close(
        backend.convolve_radial(plan, hidden, last, harmonics, nodes, graph),
        reference.convolve(plan, weights, harmonics, nodes, graph),
        rtol=0,
        atol=1e-12,
    )


@BACKENDS
@pytest.mark.parametrize("message_l", [0, 1])
def test_tabulated_convolution_is_convolution_with_splines(
    backend: ModuleType, message_l: int
) -> None:
    """Splines through a cubic polynomial are that polynomial."""
    graph = GRAPHS["random"]
    plan, (_, harmonics, nodes) = convolution_inputs(graph, message_l)
    powers = randn(4, plan.n_paths, CHANNELS)

    def weights(x: Tensor) -> Tensor:
        return torch.einsum("en,npk->epk", (1 + x[:, None]) ** torch.arange(4), powers)

    knots = torch.arange(6.0, dtype=torch.float64)
    pair = torch.autograd.functional.jvp(weights, knots, torch.ones_like(knots))
    table = torch.stack(pair, dim=1).detach()
    places = (torch.rand(graph.n_edges, dtype=torch.float64) * 4.99).requires_grad_()

    def function(places: Tensor, harmonics: Tensor, nodes: Tensor) -> Tensor:
        return backend.convolve_table(plan, places, table, harmonics, nodes, graph)

    torch.testing.assert_close(
        function(places, harmonics, nodes),
        reference.convolve(plan, weights(places), harmonics, nodes, graph),
    )
    assert torch.autograd.gradcheck(function, (places, harmonics, nodes))


@BACKENDS
@pytest.mark.parametrize("l_max", [1, 3, 5])
def test_spherical_harmonics_derivatives(backend: ModuleType, l_max: int) -> None:
    vectors = randn(3, 3)

    def function(vectors: Tensor) -> Tensor:
        return backend.spherical_harmonics(vectors, l_max)

    torch.testing.assert_close(function(vectors), reference.spherical_harmonics(vectors, l_max))
    assert torch.autograd.gradcheck(function, vectors)
    assert torch.autograd.gradgradcheck(function, vectors)


@BACKENDS
@pytest.mark.parametrize("correlation", [1, 2, 3, 4])
@pytest.mark.parametrize("reduced", [True, False], ids=["reduced", "unreduced"])
def test_contraction_is_the_polynomial_of_equations_10_and_11(
    backend: ModuleType, correlation: int, reduced: bool
) -> None:
    irreps = spherical_irreps(1)
    plan = contraction_plan(irreps, spherical_irreps(1), correlation, reduced)
    basis, weights = randn(5, 4, CHANNELS), randn(2, plan.n_couplings, CHANNELS)
    species = torch.tensor([1, 0, 1, 1, 0])
    expected = torch.zeros(5, 4, CHANNELS, dtype=torch.float64)
    start = 0
    for target, per_order, rows in zip(plan.targets, plan.bases, plan.weight_slices, strict=True):
        for couplings, row in zip(per_order, rows, strict=True):
            product = torch.tensor(couplings.dense())
            product = product.expand(5, CHANNELS, *product.shape)
            for _ in range(couplings.order):  # contract the last slot with A
                factor = basis.transpose(1, 2)
                factor = factor.reshape(5, CHANNELS, *(1,) * (product.ndim - 3), 4)
                product = (product * factor).sum(-1)
            term = torch.einsum("nkem,nek->nmk", product, weights[species][:, row])
            expected[:, start : start + target.dim] += term
        start += target.dim
    found = backend.contract(plan, basis, weights, species)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_distinct_slots_with_equal_contents_are_the_shared_product() -> None:
    plan = contraction_plan(spherical_irreps(2), spherical_irreps(1), 3, reduced=False)
    basis, weights = randn(4, 9, CHANNELS), randn(2, plan.n_couplings, CHANNELS)
    species = torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(
        reference.contract_slots(plan, (basis, basis, basis), weights, species),
        reference.contract(plan, basis, weights, species),
        rtol=1e-9,
        atol=1e-9,
    )


def test_edge_product_summed_over_edges_is_a_convolution() -> None:
    """Where all receivers have one environment, and edges carry what their sender would."""
    graph = GRAPHS["random"]
    plan, (weights, harmonics, nodes) = convolution_inputs(graph)
    alike = harmonics[:1].expand(graph.n_edges, -1)
    environment = harmonics[:1, :, None].expand(graph.n_atoms, -1, CHANNELS)
    product = reference.edge_product(plan, nodes[graph.senders], environment, graph)
    torch.testing.assert_close(
        reference.segment_sum(product, graph.row_ptr),
        reference.convolve(plan, torch.ones_like(weights), alike, nodes, graph),
        rtol=0,
        atol=1e-12,
    )


def test_an_edge_is_coupled_with_the_environment_of_its_receiver() -> None:
    graph = GRAPHS["random"]
    plan = convolution_plan(spherical_irreps(0), spherical_irreps(1), spherical_irreps(1))
    environment = randn(graph.n_atoms, 4, CHANNELS)
    ones = torch.ones(graph.n_edges, 1, CHANNELS, dtype=torch.float64)
    product = reference.edge_product(plan, ones, environment, graph)
    torch.testing.assert_close(product, environment[graph.receivers])


@BACKENDS
@pytest.mark.parametrize("graph", list(GRAPHS))
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
def test_convolution_derivatives(backend: ModuleType, graph: str, strided: bool) -> None:
    plan, inputs = convolution_inputs(GRAPHS[graph], strided=strided)

    def function(*tensors: Tensor) -> Tensor:
        return backend.convolve(plan, *tensors, GRAPHS[graph])

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@BACKENDS
@pytest.mark.parametrize("n_atoms", [0, 1, 3])
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
def test_contraction_derivatives(backend: ModuleType, n_atoms: int, strided: bool) -> None:
    plan = contraction_plan(spherical_irreps(1), spherical_irreps(1), 3)
    species = torch.arange(n_atoms) % 2
    inputs = (
        randn(n_atoms, 4, CHANNELS, strided=strided),
        randn(2, plan.n_couplings, CHANNELS, strided=strided),
    )

    def function(basis: Tensor, weights: Tensor) -> Tensor:
        return backend.contract(plan, basis, weights, species)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 2])
def test_llvm_equals_the_reference_at_full_size(dtype: torch.dtype, threads: int) -> None:
    """Large enough that work is divided among threads."""
    graph = random_graph(24, spread=4.0)
    convolution = convolution_plan(spherical_irreps(2), spherical_irreps(3), spherical_irreps(3))
    product = contraction_plan(spherical_irreps(3), spherical_irreps(2), 3)
    inputs = (
        randn(graph.n_edges, convolution.n_paths, 32, dtype=dtype),
        randn(graph.n_edges, 16, dtype=dtype),
        randn(graph.n_atoms, 9, 32, dtype=dtype),
        randn(2, product.n_couplings, 32, dtype=dtype),
    )

    def everything(backend: ModuleType) -> list[Tensor]:
        convolved = backend.convolve(convolution, *inputs[:3], graph)
        basis = convolved[:, :16] / 10
        out = backend.contract(product, basis, inputs[3], graph.species)
        first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() / 1e6 for g in first), inputs)
        return [out, *first, *second]

    with torch_threads(threads):
        results = everything(cpu)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-13
    for found, expected in zip(results, everything(reference), strict=True):
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_paths_are_those_of_the_paper() -> None:
    """Natural parity, l_max 3: 4 paths from scalars, 10 with L = 1, 17 with L = 2 (models.md)."""
    counts = [
        convolution_plan(spherical_irreps(degree), spherical_irreps(3), spherical_irreps(3)).n_paths
        for degree in (0, 1, 2)
    ]
    assert counts == [4, 10, 17]


def test_a_convolution_keeps_unit_variance() -> None:
    plan = convolution_plan(spherical_irreps(2), spherical_irreps(3), spherical_irreps(3))
    assert isinstance(plan.out_irreps, Irreps)
    for path in plan.paths:
        out = plan.out_irreps[path.out]
        np.testing.assert_allclose((plan.coefficients(path) ** 2).sum(), out.dim)
