"""The GPU backend gives what the reference gives, to second derivatives.

On a machine without a GPU Triton interprets kernels (``tests/conftest.py``), one operation after
the other, so that structures and plans are small here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="the GPU backend needs Triton: pip install triton")

from ase import Atoms

from builders import potential
from clebsch.algebra import Irreps, all_irreps, spherical_irreps
from clebsch.graph import AtomGraph
from clebsch.kernels import dispatch, gpu, reference
from clebsch.kernels.gpu import convolution_code, polynomial_code, product
from clebsch.kernels.plan import ConvolutionPlan, contraction_plan, convolution_plan
from clebsch.neighbors import neighbor_graph

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

#: Largest difference to the reference by the largest value: sums of some dozens of terms.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)

SMALL = convolution_plan(spherical_irreps(1), spherical_irreps(1), spherical_irreps(1))


def line_of_atoms(*places: float) -> AtomGraph:
    """Atoms about a line; those within 2 Angstrom are neighbours."""
    positions = torch.zeros(len(places), 3, dtype=torch.float64)
    positions[:, 0] = torch.tensor(places, dtype=torch.float64)
    positions[:, 1:] = 0.2 * torch.sin(torch.arange(2.0 * len(places))).reshape(-1, 2)
    cell, pbc = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.bool)
    species = torch.zeros(len(places), dtype=torch.int64)
    return neighbor_graph(positions, cell, pbc, species, 2.0).to(DEVICE)


#: Receivers of 0, 1 and 2 edges, and senders in another order.
SOME = line_of_atoms(9, 2.5, 0, 1.2)
PAIR = line_of_atoms(0, 1)
EMPTY = {
    "no edges": line_of_atoms(0, 9),
    "one atom": line_of_atoms(0),
    "no atoms": line_of_atoms(),
}


def randn(*shape: int, dtype: torch.dtype = torch.float64, strided: bool = False) -> Tensor:
    """A tensor that requires gradients; where strided, a view that is not contiguous."""
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    if strided:
        wide = torch.randn(*shape[:-1], 2 * shape[-1], dtype=dtype, generator=generator)
        return wide.to(DEVICE)[..., ::2].requires_grad_()
    return torch.randn(*shape, dtype=dtype, generator=generator).to(DEVICE).requires_grad_()


def inputs_of(
    plan: ConvolutionPlan, graph: AtomGraph, channels: int, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Path weights, harmonics and nodes."""
    return (
        randn(graph.n_edges, plan.n_paths, channels, **options),
        randn(graph.n_edges, plan.harmonic_irreps.dim, **options),
        randn(graph.n_atoms, plan.node_irreps.dim, channels, **options),
    )


def twice(out: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """A value, its first and its second derivatives."""
    first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    return [tensor.detach() for tensor in (out, *first, *second)]


def assert_as_reference(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """``function(backend, *inputs)`` and both derivatives are those of the reference."""
    found, expected = (twice(function(backend, *inputs), inputs) for backend in (gpu, reference))
    for place, (here, there) in enumerate(zip(found, expected, strict=True)):
        assert here.dtype == inputs[0].dtype
        largest = there.abs().max() if there.numel() else 0.0
        difference = (here - there).abs()
        assert (difference <= TOLERANCE[here.dtype] * largest).all(), (place, difference.max())


# --- convolution ---


@DTYPES
@pytest.mark.parametrize("channels", [1, 5, 130], ids="{} channels".format)
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
    n_parts = len(convolution_code.parts_by_output(plan, 2))
    assert n_parts == (3 if summed else 4)
    clear_kernels()
    assert_as_reference(
        lambda backend, *inputs: backend.convolve(plan, *inputs, PAIR), inputs_of(plan, PAIR, 3)
    )
    clear_kernels()


def clear_kernels() -> None:
    """Forget which kernels have been written."""
    for module in (gpu.convolution, product):
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()


@DTYPES
def test_convolutions_with_the_last_radial_layer(dtype: torch.dtype) -> None:
    _, harmonics, nodes = inputs_of(SMALL, SOME, 3, dtype=dtype)
    hidden = randn(SOME.n_edges, 5, dtype=dtype)
    last = randn(5, SMALL.n_paths, 3, dtype=dtype)
    assert_as_reference(
        lambda backend, *inputs: backend.convolve_radial(SMALL, *inputs, SOME),
        (hidden, last, harmonics, nodes),
    )


def test_convolutions_with_tables() -> None:
    _, harmonics, nodes = inputs_of(SMALL, SOME, 3)
    places = torch.linspace(0.1, 2.9, SOME.n_edges, dtype=torch.float64, device=DEVICE)
    table = randn(4, 2, SMALL.n_paths, 3).detach()
    assert_as_reference(
        lambda backend, *inputs: backend.convolve_table(
            SMALL, *inputs[:1], table, *inputs[1:], SOME
        ),
        (places.requires_grad_(), harmonics, nodes),
    )


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


def product_inputs(
    plan: Any, species: Sequence[int], channels: int, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Basis, weights of three species, and the species of atoms."""
    return (
        randn(len(species), plan.irreps.dim, channels, **options),
        randn(3, plan.n_couplings, channels, **options),
        torch.tensor(species, dtype=torch.int64, device=DEVICE),
    )


@DTYPES
@pytest.mark.parametrize("channels", [1, 5, 33], ids="{} channels".format)
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


@DTYPES
@pytest.mark.parametrize("correlation", [1, 2, 3])
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


# --- what torch expects of operators ---

CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_static",
)


class Calls(TorchDispatchMode):
    """Notes every call of an operator of this backend, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "clebsch_gpu":
            self.seen.append((func._opname, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["convolve", "polynomial"])
def test_operators_are_what_torch_expects(kind: str) -> None:
    """Schema, aliasing, autograd's registration, shapes without data, tracing."""
    plan = contraction_plan(spherical_irreps(1), spherical_irreps(0), 2)
    basis, weights, species = product_inputs(plan, (2, 0), 2)
    scalars = convolution_plan(spherical_irreps(0), spherical_irreps(1), spherical_irreps(1))
    inputs = inputs_of(scalars, PAIR, 2)
    with Calls() as found:
        if kind == "convolve":
            twice(gpu.convolve(scalars, *inputs, PAIR), inputs)
        else:
            twice(gpu.contract(plan, basis, weights, species), (basis, weights))
    samples = dict(found.seen)
    assert set(samples) == {kind, f"{kind}_gradients", f"{kind}_second"}
    for name, args in samples.items():
        thrice = name.endswith("_second")
        copied = [
            a.detach().clone().requires_grad_(a.is_floating_point() and not thrice)
            if isinstance(a, Tensor)
            else a
            for a in args
        ]
        torch.library.opcheck(getattr(torch.ops.clebsch_gpu, name), copied, test_utils=CHECKS)


def test_derivatives_not_asked_for_are_left_out() -> None:
    inputs = inputs_of(SMALL, PAIR, 2)
    for asked in range(3):
        with Calls() as found:
            torch.autograd.grad(gpu.convolve(SMALL, *inputs, PAIR).sum(), inputs[asked])
        (flags,) = (args[1] for name, args in found.seen if name == "convolve_gradients")
        assert flags == [place == asked for place in range(3)]


def test_third_derivatives_are_refused_not_wrong() -> None:
    inputs = inputs_of(SMALL, PAIR, 2)
    out = gpu.convolve(SMALL, *inputs, PAIR)
    first = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), inputs[0], create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="the triton backend has first and second"):
        torch.autograd.grad(second.square().sum(), inputs[0])


# --- the backend as a whole ---


@DTYPES
def test_a_potential_gives_what_it_gives_with_the_reference(dtype: torch.dtype) -> None:
    """Energies, forces and the gradient of a loss on forces."""
    tested = potential("mace three layers with ZBL", backend="reference", dtype=dtype).to(DEVICE)
    graph = tested.graph(Atoms("OCH", [[0, 0, 0], [1.2, 0, 0.1], [1.7, 0.9, 0]]))
    answers = []
    for name in ("triton", "reference"):
        tested._install(dispatch.load_backend(name))
        assert tested.backend == name
        answers.append(tested._backend_answers(graph))
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    for here, there in zip(*answers, strict=True):
        assert (here - there).abs().max() <= tolerance * (1e-6 + there.abs().max())
