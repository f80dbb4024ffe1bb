"""Convolutions and products of the GPU backend are the reference's, to second derivatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_checks import (
    DEVICE,
    DTYPES,
    EMPTY,
    PAIR,
    SMALL,
    SOME,
    assert_as_reference,
    assert_equal,
    clear_kernels,
    inputs_of,
    line_of_atoms,
    product_inputs,
    randn,
)

from clebsch.algebra import Irreps, all_irreps, spherical_irreps
from clebsch.graph import AtomGraph
from clebsch.kernels import gpu, reference
from clebsch.kernels.gpu import convolution_code, machine, polynomial_code, product, radial
from clebsch.kernels.gpu.convolution_walk import parts_by_output
from clebsch.kernels.plan import ConvolutionPlan, contraction_plan, convolution_plan
from clebsch.kernels.polynomial import parts, polynomial
from clebsch.rounding import allow_tf32


def of_sizes(*channels: int) -> pytest.MarkDecorator:
    """Numbers of channels, all in float64; the last, which needs most masks, in float32 too.

    Both precisions run the same text, so that one shape shows whether constants follow.
    """
    cases = [*((count, torch.float64) for count in channels), (channels[-1], torch.float32)]
    return pytest.mark.parametrize(("channels", "dtype"), cases, ids=str)


# --- convolution ---


@of_sizes(1, 5, 130)
def test_convolutions_of_any_number_of_channels(channels: int, dtype: torch.dtype) -> None:
    """One, not a power of two, more than a program takes."""
    assert_as_reference(
        lambda backend, *inputs: backend.convolve(SMALL, *inputs, SOME),
        inputs_of(SMALL, SOME, channels, dtype=dtype),
    )


@pytest.mark.parametrize("graph", list(EMPTY))
def test_convolutions_without_edges_are_zero(graph: str) -> None:
    assert_as_reference(
        lambda backend, *inputs: backend.convolve(SMALL, *inputs, EMPTY[graph]),
        inputs_of(SMALL, EMPTY[graph], 3),
    )


def test_convolutions_of_strided_tensors() -> None:
    assert_as_reference(
        lambda backend, *inputs: backend.convolve(SMALL, *inputs, SOME),
        inputs_of(SMALL, SOME, 3, strided=True),
    )


@pytest.mark.parametrize("summed", [False, True], ids=["apart", "summed"])
def test_convolutions_of_both_parities(summed: bool) -> None:
    """And a node irrep ("4e") that no path starts from: its derivative is zero."""
    nodes = Irreps.parse("0e+0o+1o+1e+4e")
    plan = convolution_plan(nodes, spherical_irreps(1), all_irreps(1), summed)
    assert_as_reference(
        lambda backend, *inputs: backend.convolve(plan, *inputs, PAIR), inputs_of(plan, PAIR, 2)
    )


@pytest.mark.parametrize("summed", [False, True], ids=["apart", "summed"])
def test_convolutions_in_several_parts(summed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part adds to the derivative by harmonics; summed paths must not be torn apart."""
    plan = convolution_plan(
        spherical_irreps(1), spherical_irreps(1), Irreps.parse("0e+1o+2e"), summed
    )
    monkeypatch.setattr(convolution_code, "ROWS", dict.fromkeys(convolution_code.ROWS, 2))
    n_parts = len(parts_by_output(plan, 2))
    assert n_parts == (3 if summed else 4)
    clear_kernels()
    assert_as_reference(
        lambda backend, *inputs: backend.convolve(plan, *inputs, PAIR), inputs_of(plan, PAIR, 3)
    )
    clear_kernels()


def radial_inputs(
    graph: AtomGraph, width: int, channels: int, **options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden layer, last weight, harmonics and nodes."""
    _, harmonics, nodes = inputs_of(SMALL, graph, channels, **options)
    hidden = randn(graph.n_edges, width, **options)
    return hidden, randn(width, SMALL.n_paths, channels, **options), harmonics, nodes


def assert_evaluated_as_reference(
    plan: ConvolutionPlan, inputs: Sequence[Tensor], graph: AtomGraph
) -> None:
    """Values and first derivatives of an evaluation, by all but the last layer's weight.

    Path weights are stored, all or of half of the edges at a time, or made inside the convolution.
    """
    moving, last_weight = (inputs[0], *inputs[2:]), inputs[1]
    half = (graph.n_edges + 1) // 2 * last_weight[0].nbytes
    results = []
    for backend, most, fused in (
        (reference, 0, "never"),
        (gpu, 2**30, "never"),
        (gpu, half, "never"),
        (gpu, -1, "always"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(radial, "MOST_STORED", most)
            patch.setattr(radial, "FUSED", fused)
            out = backend.convolve_radial(plan, *inputs, graph)
            results.append([out, *torch.autograd.grad(out.square().sum(), moving)])
    for found in results[1:]:
        assert_equal(found, results[0])


@DTYPES
@pytest.mark.parametrize(("width", "channels"), [(5, 3), (17, 33)], ids=str)
def test_evaluations_with_the_last_radial_layer(
    width: int, channels: int, dtype: torch.dtype
) -> None:
    """Widths and channels that fill no block, and channels of two blocks."""
    inputs = radial_inputs(SOME, width, channels, dtype=dtype)
    assert_evaluated_as_reference(SMALL, inputs, SOME)


@pytest.mark.parametrize(
    ("dtype", "allowed", "expected"),
    [
        (torch.float32, True, "tf32"),
        (torch.float32, False, "ieee"),
        (torch.float64, True, "ieee"),
    ],
)
def test_the_layer_rounds_where_all_products_do(
    dtype: torch.dtype, allowed: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    honest = machine.launch

    def noted(*arguments: Any, **constants: Any) -> None:
        asked.append(constants.get("PRECISION"))
        honest(*arguments, **constants)

    monkeypatch.setattr(machine, "launch", noted)
    monkeypatch.setattr(radial, "MOST_STORED", -1)
    monkeypatch.setattr(radial, "FUSED", "always")
    inputs = [one.requires_grad_() for one in radial_inputs(SOME, 5, 3, dtype=dtype)]
    with allow_tf32(allowed):
        out = gpu.convolve_radial(SMALL, *inputs, SOME)
        torch.autograd.grad(out.sum(), [inputs[0], inputs[3]])
    assert asked
    assert set(asked) == {expected}


@pytest.mark.parametrize(
    ("dtype", "allowed", "stored"),
    [(torch.float32, True, []), (torch.float32, False, [3, 1]), (torch.float64, True, [3, 1])],
)
def test_evaluations_store_path_weights_of_blocks_of_edges_unless_tensor_cores_make_them(
    dtype: torch.dtype, allowed: bool, stored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = radial_inputs(SOME, 5, 3, dtype=dtype)
    sizes = store(monkeypatch, 3, inputs)
    with allow_tf32(allowed):
        out = gpu.convolve_radial(SMALL, *inputs, SOME)
        assert sizes == stored
        torch.autograd.grad(out.sum(), [inputs[0], inputs[3]])
    assert sizes == 2 * stored


def test_evaluations_of_more_neighbours_than_a_block_takes() -> None:
    """18 atoms within reach of each other: 17 edges of each sender and receiver, in two blocks."""
    graph = line_of_atoms(*(0.1 * place for place in range(18)))
    assert graph.n_edges == 18 * 17
    assert_evaluated_as_reference(SMALL, radial_inputs(graph, 2, 2), graph)


@pytest.mark.parametrize("graph", list(EMPTY))
def test_evaluations_with_the_last_radial_layer_without_edges(graph: str) -> None:
    assert_evaluated_as_reference(SMALL, radial_inputs(EMPTY[graph], 3, 3), EMPTY[graph])


def test_evaluations_of_strided_tensors() -> None:
    assert_evaluated_as_reference(SMALL, radial_inputs(SOME, 3, 3, strided=True), SOME)


def test_evaluations_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part adds to the derivatives by hidden layer and harmonics."""
    monkeypatch.setattr(convolution_code, "ROWS", dict.fromkeys(convolution_code.ROWS, 2))
    clear_kernels()
    assert_evaluated_as_reference(SMALL, radial_inputs(PAIR, 3, 2), PAIR)
    clear_kernels()


#: Edges whose path weights are stored at once: all of the four, or three.
AT_ONCE = pytest.mark.parametrize("at_once", [4, 3])


def store(monkeypatch: pytest.MonkeyPatch, at_once: int, inputs: Sequence[Tensor]) -> list[int]:
    """Store path weights of so many edges at once; of how many they were, call by call."""
    _, last_weight, *_ = inputs
    most = at_once * last_weight[0].numel() * last_weight.element_size()
    monkeypatch.setattr(radial, "MOST_STORED", most)
    stored, honest = [], radial._path_weights

    def noted(hidden: Tensor, last_weight: Tensor) -> Tensor:
        stored.append(len(hidden))
        return honest(hidden, last_weight)

    monkeypatch.setattr(radial, "_path_weights", noted)
    return stored


@DTYPES
@AT_ONCE
def test_trainings_with_the_last_radial_layer(
    at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Second derivatives, and those by the layer's weight, block by block."""
    inputs = radial_inputs(SOME, 5, 3, dtype=dtype)
    stored = store(monkeypatch, at_once, inputs)
    assert_as_reference(
        lambda backend, *inputs: backend.convolve_radial(SMALL, *inputs, SOME), inputs
    )
    assert set(stored) == {4: {4}, 3: {3, 1}}[at_once]


@AT_ONCE
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("direction", range(4))
def test_second_derivatives_one_by_one(
    direction: int, place: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one input, of the first derivative by one: what is not asked for is not mixed in."""
    inputs = radial_inputs(SOME, 3, 2)
    store(monkeypatch, at_once, inputs)
    found = []
    for backend in (gpu, reference):
        out = backend.convolve_radial(SMALL, *inputs, SOME).square().sum()
        (first,) = torch.autograd.grad(out, inputs[direction], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), inputs[place]))
    assert_equal(*found)


@pytest.mark.parametrize("graph", list(EMPTY))
def test_trainings_with_the_last_radial_layer_without_edges(graph: str) -> None:
    assert_as_reference(
        lambda backend, *inputs: backend.convolve_radial(SMALL, *inputs, EMPTY[graph]),
        radial_inputs(EMPTY[graph], 3, 3),
    )


@AT_ONCE
def test_a_gradient_by_the_last_layer_alone(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = radial_inputs(SOME, 3, 2)
    store(monkeypatch, at_once, inputs)
    here, there = (
        torch.autograd.grad(backend.convolve_radial(SMALL, *inputs, SOME).square().sum(), inputs[1])
        for backend in (gpu, reference)
    )
    assert_equal(here, there)


@of_sizes(3, 130)
def test_convolutions_with_tables(channels: int, dtype: torch.dtype) -> None:
    """To first derivatives; a place may be that of a knot."""
    _, harmonics, nodes = inputs_of(SMALL, SOME, channels, dtype=dtype)
    places = torch.linspace(0, 2.9, SOME.n_edges, dtype=dtype, device=DEVICE).requires_grad_()
    table = randn(4, 2, SMALL.n_paths, channels, dtype=dtype).detach()
    inputs = (places, harmonics, nodes)
    results = []
    for backend in (gpu, reference):
        out = backend.convolve_table(SMALL, places, table, harmonics, nodes, SOME)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    assert_equal(*results)


def test_tables_are_constants_and_have_one_derivative() -> None:
    _, harmonics, nodes = inputs_of(SMALL, PAIR, 2)
    places = torch.tensor([0.5, 1.5], dtype=torch.float64, device=DEVICE).requires_grad_()
    table = randn(3, 2, SMALL.n_paths, 2)
    out = gpu.convolve_table(SMALL, places, table, harmonics, nodes, PAIR)
    with pytest.raises(NotImplementedError, match="constants"):
        out.sum().backward()
    out = gpu.convolve_table(SMALL, places, table.detach(), harmonics, nodes, PAIR)
    slopes = torch.autograd.grad(out.sum(), places, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="no derivative"):
        slopes.sum().backward()


@pytest.mark.parametrize("fixed", [0, 1, 2], ids=["path weights", "harmonics", "nodes"])
def test_convolutions_with_an_input_that_needs_no_gradient(fixed: int) -> None:
    """Nodes of the first layer are such: an embedding of species, which no position moves."""
    inputs = list(inputs_of(SMALL, SOME, 3))
    inputs[fixed] = inputs[fixed].detach()

    def function(backend: Any, *moving: Tensor) -> Tensor:
        given = [*moving[:fixed], inputs[fixed], *moving[fixed:]]
        out: Tensor = backend.convolve(SMALL, *given, SOME)
        return out

    assert_as_reference(function, [*inputs[:fixed], *inputs[fixed + 1 :]])


# --- product basis ---


@of_sizes(1, 5, 33)
def test_products_of_any_number_of_channels(channels: int, dtype: torch.dtype) -> None:
    plan = contraction_plan(spherical_irreps(1), spherical_irreps(0), 3)
    basis, weights, species = product_inputs(plan, (2, 0, 2), channels, dtype=dtype)
    assert_as_reference(
        lambda backend, a, w: backend.contract(plan, a, w, species), (basis, weights)
    )


@pytest.mark.parametrize("species", [(), (1,), (2, 0, 2, 0)], ids="{} atoms".format)
@pytest.mark.parametrize("correlation", [1, 2, 4])
def test_products_of_any_order(correlation: int, species: tuple[int, ...]) -> None:
    """Of three species one is absent, or more."""
    plan = contraction_plan(spherical_irreps(1), spherical_irreps(1), correlation)
    basis, weights, kinds = product_inputs(plan, species, 2, strided=True)
    assert_as_reference(lambda backend, a, w: backend.contract(plan, a, w, kinds), (basis, weights))


@pytest.mark.parametrize(
    ("correlation", "dtype"),
    [*((order, torch.float64) for order in (1, 2, 3)), (3, torch.float32)],
    ids=str,
)
def test_products_of_distinct_slots(correlation: int, dtype: torch.dtype) -> None:
    plan = contraction_plan(spherical_irreps(1), spherical_irreps(1), correlation, reduced=False)
    basis, weights, species = product_inputs(plan, (2, 0), 2, dtype=dtype)
    slots = [basis.detach().roll(slot).requires_grad_() for slot in range(correlation)]
    assert_as_reference(
        lambda backend, w, *slots: backend.contract_slots(plan, slots, w, species),
        (weights, *slots),
    )


def test_products_in_several_parts_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts add to the same rows; derivatives by coefficients are summed over blocks of atoms."""
    monkeypatch.setattr(polynomial_code, "PART", 4)
    monkeypatch.setattr(polynomial_code, "WEIGHTED_PART", 3)
    monkeypatch.setattr(product, "atoms_of_block", lambda n_atoms, channels: 2)
    clear_kernels()
    plan = contraction_plan(spherical_irreps(1), spherical_irreps(1), 2)
    basis, weights, species = product_inputs(plan, (0, 2, 2, 0, 2, 2, 2), 2)
    assert_as_reference(
        lambda backend, a, w: backend.contract(plan, a, w, species), (basis, weights)
    )
    clear_kernels()


def test_parts_that_only_trainings_need_are_kernels_of_their_own() -> None:
    plan = contraction_plan(spherical_irreps(1), spherical_irreps(1), 2)
    found = polynomial(f"{plan.key}|1")
    n_parts = len(parts(found.terms, 2))
    n_terms = Counter(output for output, _ in found.terms)
    assert n_parts > len(n_terms)
    together = polynomial_code.kernels_of(found, 2, apart=False)
    assert [output for output, _ in together] == sorted(n_terms)
    assert sum(len(roots) for _, roots in together) == n_parts
    apart = polynomial_code.kernels_of(found, 2, apart=True)
    assert [len(roots) for _, roots in apart] == [1] * n_parts
    assert {output for output, _ in apart} == set(n_terms)


@pytest.mark.parametrize("fixed", [0, 1], ids=["basis", "weights"])
def test_products_with_an_input_that_needs_no_gradient(fixed: int) -> None:
    plan = contraction_plan(spherical_irreps(1), spherical_irreps(0), 3)
    *inputs, species = product_inputs(plan, (2, 0, 2), 2)
    still = inputs.pop(fixed).detach()
    assert_as_reference(
        lambda backend, moving: backend.contract(
            plan, *((still, moving) if fixed == 0 else (moving, still)), species
        ),
        inputs,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize("counts", [(3, 0, 4), (0, 0, 1), (0, 0, 0), (2, 2, 2)], ids=str)
def test_blocks_hold_every_atom_once_and_atoms_of_one_species(
    counts: tuple[int, ...], size: int
) -> None:
    species = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    ptr = torch.tensor([0, *counts]).cumsum(0)
    bounds, block_ptr = product.blocks(ptr, sum(counts), size)
    assert bounds[0] == 0
    assert bounds[-1] == sum(counts)
    sizes = bounds.diff()
    assert ((sizes >= 0) & (sizes <= size)).all()
    for block, (begin, n_atoms) in enumerate(zip(bounds.tolist(), sizes.tolist(), strict=False)):
        kinds = species[begin : begin + n_atoms].unique()
        assert len(kinds) == (n_atoms > 0)
        for kind in kinds.tolist():
            assert block_ptr[kind] <= block < block_ptr[kind + 1]


def test_large_systems_have_large_blocks_and_small_ones_many() -> None:
    assert product.atoms_of_block(27, 256) == product.FEWEST_ATOMS
    assert product.atoms_of_block(1000, 128) == product.FEWEST_ATOMS
    assert product.atoms_of_block(100_000, 128) == product.MOST_ATOMS
