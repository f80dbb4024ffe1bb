"""Rates of this machine's matrix product and copies, and of each kernel beside them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from clebsch.benchmarks.structures import system_of_size
from clebsch.benchmarks.timing import measure
from clebsch.errors import ConfigError
from clebsch.factory import assemble
from clebsch.graph import AtomGraph
from clebsch.kernels.backend import Kernels
from clebsch.kernels.cuda_timing import milliseconds
from clebsch.kernels.dispatch import best_backend
from clebsch.models.config import MessagePassingConfig, ModelConfig
from clebsch.models.message_passing import AtomicBasis, Layer
from clebsch.nn.path_weights import RadialNetwork
from clebsch.nn.product import ProductBasis
from clebsch.processor import torch_threads

#: Rows and columns of the matrices on the processor and on a device.
SIZE, DEVICE_SIZE = 2048, 8192
#: Bytes that are copied.
COPIED = 2**28


@dataclass(frozen=True)
class KernelRate:
    """One kernel in one shape.

    Attributes:
        kernel: its name, and which derivative.
        shape: what it ran on, for tables.
        multiply_adds: useful ones of a call.
        n_bytes: of what a call is given and what it returns, each once: the least it can move.
        seconds: median of a call.
    """

    kernel: str
    shape: str
    multiply_adds: int
    n_bytes: int
    seconds: float

    @property
    def rate(self) -> float:
        """Multiply-adds a second."""
        return self.multiply_adds / self.seconds


def _median(call: Callable[[], object], device: str, min_seconds: float) -> float:
    """Median time of a call, s; on a GPU, of what it launches."""
    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            return milliseconds(call) / 1e3
    timed = measure(call, min_seconds=min_seconds, max_seconds=5.0)
    return statistics.median(timed["seconds"])


def copy_rate(threads: int, device: str = "cpu", n_bytes: int = COPIED) -> float:
    """Bytes a second, read and written, of a large copy within the memory of a device.

    Args:
        threads: of the CPU.
        device: where.
        n_bytes: how many are copied.
    """
    source = torch.ones(n_bytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    with torch_threads(threads):
        return 2 * n_bytes / _median(lambda: target.copy_(source), device, 0.5)


def gemm_rate(
    dtype: torch.dtype, threads: int, device: str = "cpu", size: int | None = None
) -> float:
    """Multiply-adds a second of a large matrix product: what everything else is held against.

    Args:
        dtype: of the matrices.
        threads: of the CPU.
        device: where.
        size: rows and columns; enough to keep the device busy if None.
    """
    size = size or (SIZE if torch.device(device).type == "cpu" else DEVICE_SIZE)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    out = torch.empty_like(left)
    with torch_threads(threads):
        return size**3 / _median(lambda: torch.mm(left, right, out=out), device, 0.5)


def machine_rates(dtype: torch.dtype, threads: int, device: str) -> dict[str, float]:
    """What everything else is held against, by the names that results have them under."""
    return {
        "gemm_multiply_adds_per_second": gemm_rate(dtype, threads, device),
        "copy_bytes_per_second": copy_rate(threads, device),
    }


def kernel_rates(
    config: ModelConfig, n_atoms: int, dtype: torch.dtype, threads: int, device: str = "cpu"
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
        device: where; its fastest backend is measured.

    Raises:
        ConfigError: no supercell is near that size, or the model does not pass messages.
    """
    if not isinstance(config, MessagePassingConfig):
        raise ConfigError(f"rates of kernels are measured for message passing, not {config.name}")
    system = system_of_size(n_atoms, None)
    potential = assemble(config, list(system.species), dtype=dtype).to(device)
    kernels = best_backend(potential.device)
    graph = potential.graph(system.frames)
    rates = []
    with torch_threads(threads):
        layers = [module for module in potential.model.modules() if isinstance(module, Layer)]
        for number, layer in enumerate(layers):
            shape = f"layer {number + 1}, {graph.n_atoms} atoms"
            if isinstance(layer.atomic_basis.radial, RadialNetwork):
                rates += _convolution_rates(kernels, layer.atomic_basis, graph, dtype, shape)
            if layer.product is not None and len(layer.atomic_basis.linears) == 1:
                rates += _product_rates(kernels, layer.product, graph, dtype, shape)
    return rates


def _convolution_rates(
    kernels: Kernels, basis: AtomicBasis, graph: AtomGraph, dtype: torch.dtype, shape: str
) -> list[KernelRate]:
    plan, radial = basis.plan, basis.radial
    assert isinstance(radial, RadialNetwork)
    width, n_paths, channels = radial.last.shape
    kind: dict[str, Any] = {"dtype": dtype, "device": radial.last.device}
    hidden = torch.randn(graph.n_edges, width, **kind)
    harmonics = torch.randn(graph.n_edges, plan.harmonic_irreps.dim, **kind)
    nodes = torch.randn(graph.n_atoms, plan.node_irreps.dim, channels, **kind)

    def function(x: Tensor, w: Tensor, y: Tensor, h: Tensor) -> Tensor:
        return kernels.convolve_radial(plan, x, w, y, h, graph)

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
    kernels: Kernels, product: ProductBasis, graph: AtomGraph, dtype: torch.dtype, shape: str
) -> list[KernelRate]:
    plan = product.plan
    channels = product.weights.shape[2]
    basis = torch.randn(graph.n_atoms, plan.irreps.dim, channels, dtype=dtype)
    basis = basis.to(product.weights.device)

    def function(a: Tensor, w: Tensor) -> Tensor:
        return kernels.contract(plan, a, w, graph.species)

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
    cotangent = torch.randn_like(out).requires_grad_()
    first = torch.autograd.grad(out, leaves, cotangent, create_graph=True)
    chosen = [first[i] for i in moving]
    directions = [torch.randn_like(d) for d in chosen]

    def forward() -> Sequence[Tensor]:
        with torch.no_grad():
            return (function(*inputs),)

    def gradients() -> Sequence[Tensor]:
        return torch.autograd.grad(out, leaves, cotangent, retain_graph=True)

    def second() -> Sequence[Tensor]:
        return torch.autograd.grad(chosen, [*leaves, cotangent], directions, retain_graph=True)

    calls = {
        "forward": (forward, inputs),
        "first derivatives": (gradients, (*inputs, cotangent)),
        "second derivatives": (second, (*inputs, cotangent, *directions)),
    }
    device = str(out.device)
    return [
        KernelRate(
            f"{kernel}, {name}",
            shape,
            multiply_adds=count,
            n_bytes=sum(tensor.nbytes for tensor in (*given, *call())),
            seconds=_median(call, device, 0.3),
        )
        for (name, (call, given)), count in zip(calls.items(), counts, strict=True)
    ]


def rates_table(rates: Sequence[KernelRate], gemm: float, copy: float) -> Table:
    """Rates beside the matrix product's (multiply-adds a second) and the copy's (bytes a second).

    The larger of both fractions is how near a kernel comes to what the machine can do.
    """
    table = Table("kernel", "shape", "ms", "G multiply-adds/s", "of GEMM", "of copy")
    for one in rates:
        moved = one.n_bytes / one.seconds / copy
        numbers = (f"{1e3 * one.seconds:.2f}", f"{one.rate / 1e9:.1f}", f"{one.rate / gemm:.0%}")
        table.add_row(one.kernel, one.shape, *numbers, f"{moved:.0%}")
    return table
