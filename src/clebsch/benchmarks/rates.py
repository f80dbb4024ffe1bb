"""Rates in multiply-adds a second: of this machine's matrix product, and of each kernel."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from clebsch.benchmarks.structures import system_of_size
from clebsch.benchmarks.timing import measure
from clebsch.errors import ConfigError
from clebsch.factory import assemble
from clebsch.graph import AtomGraph
from clebsch.kernels import cpu
from clebsch.models.config import MessagePassingConfig, ModelConfig
from clebsch.models.message_passing import AtomicBasis, Layer
from clebsch.nn.path_weights import RadialNetwork
from clebsch.nn.product import ProductBasis
from clebsch.training.shares import threads as torch_threads

#: Rows and columns of the matrices.
SIZE = 2048


@dataclass(frozen=True)
class KernelRate:
    """One kernel in one shape.

    Attributes:
        kernel: its name, and which derivative.
        shape: what it ran on, for tables.
        multiply_adds: useful ones of a call.
        seconds: median of a call.
    """

    kernel: str
    shape: str
    multiply_adds: int
    seconds: float

    @property
    def rate(self) -> float:
        """Multiply-adds a second."""
        return self.multiply_adds / self.seconds


def gemm_rate(dtype: torch.dtype, threads: int, size: int = SIZE) -> float:
    """Multiply-adds a second of a large matrix product: what everything else is held against.

    Args:
        dtype: of the matrices.
        threads: of the CPU.
        size: rows and columns.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype)
    with torch_threads(threads):
        timed = measure(lambda: torch.mm(left, right, out=out), min_seconds=0.5, max_seconds=5.0)
    return size**3 / statistics.median(timed["seconds"])


def kernel_rates(
    config: ModelConfig, n_atoms: int, dtype: torch.dtype, threads: int
) -> list[KernelRate]:
    """The rate of MACE's convolutions and products, forward and derivatives, on silicon.

    Useful multiply-adds of a convolution are E K times the sum over paths of (2 l2 + 1)(2 l3 + 2),
    and of its radial layer E F P K; of a product 2 N K times its terms. First derivatives count
    three times the convolution and twice the layer, or twice the product (three times with those
    by coefficients); second derivatives six times and four times, or four times. Path weights that
    are made again for derivatives do not count.

    Args:
        config: whose layers are run.
        n_atoms: of the silicon crystal.
        dtype: of features and weights.
        threads: of the CPU.

    Raises:
        ConfigError: no supercell is near that size, or the model does not pass messages.
    """
    if not isinstance(config, MessagePassingConfig):
        raise ConfigError(f"rates of kernels are measured for message passing, not {config.name}")
    system = system_of_size(n_atoms, None)
    potential = assemble(config, list(system.species), dtype=dtype)
    graph = potential.graph(system.frames)
    rates = []
    with torch_threads(threads):
        layers = [module for module in potential.model.modules() if isinstance(module, Layer)]
        for number, layer in enumerate(layers):
            shape = f"layer {number + 1}, {graph.n_atoms} atoms"
            if isinstance(layer.atomic_basis.radial, RadialNetwork):
                rates += _convolution_rates(layer.atomic_basis, graph, dtype, shape)
            if layer.product is not None and len(layer.atomic_basis.linears) == 1:
                rates += _product_rates(layer.product, graph, dtype, shape)
    return rates


def _convolution_rates(
    basis: AtomicBasis, graph: AtomGraph, dtype: torch.dtype, shape: str
) -> list[KernelRate]:
    plan, radial = basis.plan, basis.radial
    assert isinstance(radial, RadialNetwork)
    width, n_paths, channels = radial.last.shape
    hidden = torch.randn(graph.n_edges, width, dtype=dtype)
    harmonics = torch.randn(graph.n_edges, plan.harmonic_irreps.dim, dtype=dtype)
    nodes = torch.randn(graph.n_atoms, plan.node_irreps.dim, channels, dtype=dtype)

    def function(x: Tensor, w: Tensor, y: Tensor, h: Tensor) -> Tensor:
        return cpu.convolve_radial(plan, x, w, y, h, graph)

    useful = (
        graph.n_edges
        * channels
        * sum(
            plan.node_irreps[path.node].dim * (plan.out_irreps[path.out].dim + 1)
            for path in plan.paths
        )
    )
    layer = graph.n_edges * width * n_paths * channels
    counts = (useful + layer, 3 * useful + 2 * layer, 6 * useful + 4 * layer)
    inputs = (hidden, radial.last.detach(), harmonics, nodes)
    return _rates("convolution", shape, function, inputs, (0, 2, 3), counts)


def _product_rates(
    product: ProductBasis, graph: AtomGraph, dtype: torch.dtype, shape: str
) -> list[KernelRate]:
    plan = product.plan
    channels = product.weights.shape[2]
    basis = torch.randn(graph.n_atoms, plan.irreps.dim, channels, dtype=dtype)

    def function(a: Tensor, w: Tensor) -> Tensor:
        return cpu.contract(plan, a, w, graph.species)

    terms = sum(basis.n_component_terms for row in plan.bases for basis in row)
    useful = 2 * terms * graph.n_atoms * channels
    counts = (useful, 3 * useful, 4 * useful)
    inputs = (basis, product.weights.detach())
    return _rates("product", shape, function, inputs, (0,), counts)


def _rates(
    kernel: str,
    shape: str,
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    moving: Sequence[int],
    counts: Sequence[int],
) -> list[KernelRate]:
    """Forward, all first derivatives, and second ones along directions of the moving inputs."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    cotangent = torch.randn(out.shape, dtype=out.dtype).requires_grad_()
    first = torch.autograd.grad(out, leaves, cotangent, create_graph=True)
    chosen = [first[i] for i in moving]
    directions = [torch.randn(d.shape, dtype=d.dtype) for d in chosen]

    def forward() -> None:
        with torch.no_grad():
            function(*inputs)

    def gradients() -> None:
        torch.autograd.grad(out, leaves, cotangent, retain_graph=True)

    def second() -> None:
        torch.autograd.grad(chosen, [*leaves, cotangent], directions, retain_graph=True)

    names = ("forward", "first derivatives", "second derivatives")
    rates = []
    for name, call, count in zip(names, (forward, gradients, second), counts, strict=True):
        timed = measure(call, min_seconds=0.3, max_seconds=5.0)
        median = statistics.median(timed["seconds"])
        rates.append(KernelRate(f"{kernel}, {name}", shape, count, median))
    return rates


def rates_table(rates: Sequence[KernelRate], gemm: float) -> Table:
    """Rates beside that of the matrix product (multiply-adds a second)."""
    table = Table("kernel", "shape", "ms", "G multiply-adds/s", "of GEMM")
    for one in rates:
        numbers = (f"{1e3 * one.seconds:.2f}", f"{one.rate / 1e9:.1f}", f"{one.rate / gemm:.0%}")
        table.add_row(one.kernel, one.shape, *numbers)
    return table
