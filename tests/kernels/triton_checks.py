"""What tests of the GPU backend share: small structures, and the comparison with the reference.

On a machine without a GPU Triton interprets kernels (``tests/conftest.py``), one operation after
the other, so that structures and plans are small here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", minversion="3.5", reason="the GPU backend needs Triton 3.5")

from clebsch.algebra import spherical_irreps
from clebsch.graph import AtomGraph
from clebsch.kernels import gpu, reference
from clebsch.kernels.gpu import product
from clebsch.kernels.plan import ConvolutionPlan, convolution_plan
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


def product_inputs(
    plan: Any, species: Sequence[int], channels: int, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Basis, weights of three species, and the species of atoms."""
    return (
        randn(len(species), plan.irreps.dim, channels, **options),
        randn(3, plan.n_couplings, channels, **options),
        torch.tensor(species, dtype=torch.int64, device=DEVICE),
    )


def twice(out: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """A value, its first and its second derivatives."""
    first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    return [tensor.detach() for tensor in (out, *first, *second)]


def assert_as_reference(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """``function(backend, *inputs)`` and both derivatives are those of the reference."""
    assert_equal(*(twice(function(backend, *inputs), inputs) for backend in (gpu, reference)))


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Tensors equal those of the reference to rounding."""
    for place, (here, there) in enumerate(zip(found, expected, strict=True)):
        assert here.dtype == there.dtype
        largest = there.abs().max() if there.numel() else 0.0
        difference = (here - there).abs()
        assert (difference <= TOLERANCE[here.dtype] * largest).all(), (place, difference.max())


def clear_kernels() -> None:
    """Forget which kernels have been written."""
    for module in (gpu.convolution, product):
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()
