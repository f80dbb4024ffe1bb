"""Operators of the GPU backend: harmonics, what torch expects, and a potential of all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ase import Atoms
from operator_calls import Calls
from torch import Tensor
from triton_checks import (
    DEVICE,
    DTYPES,
    PAIR,
    SMALL,
    assert_as_reference,
    inputs_of,
    product_inputs,
    randn,
    twice,
)

from builders import potential
from clebsch.agreement import answers
from clebsch.algebra import spherical_irreps
from clebsch.kernels import dispatch, gpu, reference
from clebsch.kernels.gpu import activation
from clebsch.kernels.plan import contraction_plan, convolution_plan

CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_static",
)


@pytest.mark.parametrize(
    ("n_edges", "l_max", "dtype"),
    [
        *((n_edges, l_max, torch.float64) for n_edges in (0, 1, 33) for l_max in (1, 4)),
        (33, 4, torch.float32),
    ],
    ids=str,
)
def test_harmonics_are_those_of_the_reference(n_edges: int, l_max: int, dtype: torch.dtype) -> None:
    """As many edges as a program takes and one more; strided, as vectors of any origin may be.

    Each component is weighted otherwise, for the sum of squares of a degree has no slope.
    """
    vectors = randn(n_edges, 3, dtype=dtype, strided=True)
    weights = torch.linspace(-1, 1, (l_max + 1) ** 2, dtype=dtype, device=DEVICE)
    assert_as_reference(
        lambda backend, vectors: weights * backend.spherical_harmonics(vectors, l_max), (vectors,)
    )


def test_harmonics_of_degree_zero_have_no_slope() -> None:
    vectors = randn(2, 3)
    out, *derivatives = twice(gpu.spherical_harmonics(vectors, 0), (vectors,))
    assert (out == 1).all()
    assert all((derivative == 0).all() for derivative in derivatives)


@pytest.mark.parametrize(
    ("n_edges", "n_basis", "exponent", "dtype"),
    [
        (0, 8, 5, torch.float64),
        (1, 8, 5, torch.float64),
        (17, 8, 2, torch.float64),
        (33, 5, 1, torch.float64),
        (33, 5, 6, torch.float32),
    ],
    ids=str,
)
def test_bessel_functions_are_those_of_the_reference(
    n_edges: int, n_basis: int, exponent: int, dtype: torch.dtype
) -> None:
    """Short distances, long ones and some beyond the cut-off; numbers that fill no block."""
    places = torch.linspace(0.4, 4.4, 2 * n_edges, dtype=dtype, device=DEVICE)
    lengths = places[::2].requires_grad_()
    weights = torch.linspace(-1, 1, n_basis, dtype=dtype, device=DEVICE)
    assert_as_reference(
        lambda backend, lengths: weights * backend.bessel_basis(lengths, 4.2, n_basis, exponent),
        (lengths,),
    )
    assert not gpu.bessel_basis(lengths, 4.2, n_basis, exponent)[lengths >= 4.2].any()


def test_bessel_functions_have_derivatives_of_any_order() -> None:
    lengths = torch.tensor([0.9, 2.5, 4.1], dtype=torch.float64, device=DEVICE).requires_grad_()
    found = []
    for backend in (gpu, reference):
        value = backend.bessel_basis(lengths, 4.2, 3, 5).sum()
        for _ in range(4):
            (slope,) = torch.autograd.grad(value, lengths, create_graph=True)
            value = slope.sum()
        found.append(slope.detach())
    torch.testing.assert_close(*found, rtol=1e-10, atol=0)


@pytest.mark.parametrize("shape", [(0, 3), (1,), (3, 5)], ids=str)
@DTYPES
def test_silu_is_that_of_the_reference(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several programs, the last one not full, and of strided numbers."""
    monkeypatch.setattr(activation, "AT_A_TIME", 4)
    x = randn(*shape, dtype=dtype, strided=True)
    assert_as_reference(lambda backend, x: backend.silu(x), (x,))


def test_silu_far_from_zero_is_zero_or_linear() -> None:
    for dtype, far in ((torch.float32, 200.0), (torch.float64, 1500.0)):
        x = torch.tensor([-far, far], dtype=dtype, device=DEVICE).requires_grad_()
        out, slope, bend = twice(gpu.silu(x), (x,))[:3]
        expected = reference.SILU_GAIN * torch.tensor([0, far], dtype=dtype, device=DEVICE)
        torch.testing.assert_close(out, expected)
        assert slope.isfinite().all()
        assert bend.isfinite().all()


def calls(kind: str) -> dict[str, tuple[Any, ...]]:
    """The operators of a kind, with arguments as the public functions give them."""
    scalars = convolution_plan(spherical_irreps(0), spherical_irreps(1), spherical_irreps(1))
    weights, harmonics, nodes = inputs_of(scalars, PAIR, 2)
    with Calls("clebsch_gpu") as found:
        if kind == "convolve":
            inputs: tuple[Tensor, ...] = (weights, harmonics, nodes)
            twice(gpu.convolve(scalars, *inputs, PAIR), inputs)
        elif kind == "convolve_table":
            places = torch.tensor([0.5, 1.5], dtype=torch.float64, device=DEVICE).requires_grad_()
            table = randn(3, 2, scalars.n_paths, 2).detach()
            gpu.convolve_table(scalars, places, table, harmonics, nodes, PAIR).sum().backward()
        elif kind == "convolve_radial":
            inputs = (randn(2, 3), randn(3, scalars.n_paths, 2), harmonics, nodes)
            twice(gpu.convolve_radial(scalars, *inputs, PAIR), inputs)
        elif kind == "polynomial":
            plan = contraction_plan(spherical_irreps(1), spherical_irreps(0), 2)
            *inputs, species = product_inputs(plan, (2, 0), 2)
            twice(gpu.contract(plan, *inputs, species), inputs)
        elif kind == "silu":
            inputs = (randn(2, 3),)
            twice(gpu.silu(*inputs), inputs)
        elif kind == "bessel":
            inputs = (torch.tensor([1.0, 3.0], dtype=torch.float64, device=DEVICE),)
            gpu.bessel_basis(inputs[0].requires_grad_(), 4.0, 3, 5)
        else:
            inputs = (randn(3, 3),)
            twice(gpu.spherical_harmonics(*inputs, 2), inputs)
    return dict(found.seen)


@pytest.mark.parametrize(
    ("kind", "n_operators", "constants"),
    [
        ("convolve", 3, ()),
        ("convolve_table", 2, (2,)),
        ("convolve_radial", 3, ()),
        ("polynomial", 3, ()),
        ("harmonics", 3, ()),
        ("bessel", 1, ()),
        ("silu", 3, ()),
    ],
)
def test_operators_are_what_torch_expects(
    kind: str, n_operators: int, constants: tuple[int, ...]
) -> None:
    """Schema, aliasing, autograd's registration, shapes without data, tracing."""
    samples = calls(kind)
    assert len(samples) == n_operators
    for name, args in samples.items():
        is_last = name.endswith(("_second", "_table_gradients"))
        copied = [
            a.detach()
            .clone()
            .requires_grad_(a.is_floating_point() and not is_last and place not in constants)
            if isinstance(a, Tensor)
            else a
            for place, a in enumerate(args)
        ]
        torch.library.opcheck(getattr(torch.ops.clebsch_gpu, name), copied, test_utils=CHECKS)


def test_derivatives_not_asked_for_are_left_out() -> None:
    inputs = inputs_of(SMALL, PAIR, 2)
    for asked in range(3):
        with Calls("clebsch_gpu") as found:
            torch.autograd.grad(gpu.convolve(SMALL, *inputs, PAIR).sum(), inputs[asked])
        (flags,) = (args[1] for name, args in found.seen if name == "convolve_gradients")
        assert flags == [place == asked for place in range(3)]


def test_what_the_last_radial_layer_is_asked_for() -> None:
    """The derivative by its weight costs a product, and makes path weights be stored."""
    _, harmonics, nodes = inputs_of(SMALL, PAIR, 2)
    inputs = (randn(2, 3), randn(3, SMALL.n_paths, 2), harmonics, nodes)
    for asked in range(4):
        with Calls("clebsch_gpu") as found:
            out = gpu.convolve_radial(SMALL, *inputs, PAIR).sum()
            torch.autograd.grad(out, inputs[asked], create_graph=True)
        assert [seen for seen, _ in found.seen] == ["convolve_radial", "convolve_radial_gradients"]
        assert found.seen[1][1][1] == [place == asked for place in range(4)]


def test_third_derivatives_are_refused_not_wrong() -> None:
    inputs = inputs_of(SMALL, PAIR, 2)
    out = gpu.convolve(SMALL, *inputs, PAIR)
    first = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), inputs[0], create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="the triton backend has first and second"):
        torch.autograd.grad(second.square().sum(), inputs[0])


@DTYPES
def test_a_potential_gives_what_it_gives_with_the_reference(dtype: torch.dtype) -> None:
    """Energies, forces and the gradient of a loss on forces."""
    tested = potential("mace three layers with ZBL", backend="reference", dtype=dtype).to(DEVICE)
    graph = tested.graph(Atoms("OCH", [[0, 0, 0], [1.2, 0, 0.1], [1.7, 0.9, 0]]))
    found = []
    for name in ("triton", "reference"):
        tested.compute_with(dispatch.load_backend(name))
        assert tested.backend == name
        found.append(answers(tested, graph))
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    for here, there in zip(*found, strict=True):
        assert (here - there).abs().max() <= tolerance * (1e-6 + there.abs().max())
