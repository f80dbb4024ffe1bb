"""The product of edge tensors with environments as torch operators, with any number of derivatives.

The product is bilinear, so that its derivatives are the same two kernels again: one that couples
tensors with environments, for one or two pairs of them, and one that gives both derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clebsch.graph import AtomGraph
from clebsch.kernels.cpu import machine, threads
from clebsch.kernels.cpu.edge_product_code import EdgeProductSpec, write_forward, write_gradients
from clebsch.kernels.cpu.operators import operators
from clebsch.kernels.operators import is_needed, setup_gradients, setup_values, where_wanted
from clebsch.kernels.plan import ConvolutionPlan, convolution_plan_of


def edge_product(
    plan: ConvolutionPlan, tensors: Tensor, environment: Tensor, graph: AtomGraph
) -> Tensor:
    """See ``reference.edge_product``."""
    out: Tensor = torch.ops.clebsch.edge_product(
        plan.key, tensors, environment, None, None, graph.row_ptr
    )
    return out


# --- operators ---


def _product(
    plan: str,
    tensors: Tensor,
    environment: Tensor,
    more_tensors: Tensor | None,
    more_environment: Tensor | None,
    row_ptr: Tensor,
) -> Tensor:
    """The product of one pair, or the sum of those of two."""
    spec = _spec(plan, tensors.shape[2], tensors.dtype.itemsize * 8)
    out = _product_fake(plan, tensors)
    pairs = [tensors, environment]
    if more_tensors is not None and more_environment is not None:
        pairs += [more_tensors, more_environment]
    held = [row_ptr.contiguous(), *(tensor.contiguous() for tensor in pairs), out]
    _run(_forward_kernel(spec, len(pairs) // 2), spec, len(tensors), held)
    return out


def _product_fake(plan: str, tensors: Tensor, *others: Tensor | None) -> Tensor:
    out_dim = convolution_plan_of(plan).out_dim
    return tensors.new_empty((tensors.shape[0], out_dim, tensors.shape[2]))


def _gradients(
    plan: str,
    wanted: Sequence[bool],
    tensors: Tensor,
    environment: Tensor,
    cotangent: Tensor,
    row_ptr: Tensor,
) -> tuple[Tensor, Tensor]:
    """Derivatives by tensors and environment; empty where not wanted."""
    spec = _spec(plan, tensors.shape[2], tensors.dtype.itemsize * 8)
    d_tensors, d_environment = _gradients_fake(plan, wanted, tensors, environment)
    if not spec.all_take_part:
        d_tensors.zero_()
    d_environment.zero_()
    inputs = [tensor.contiguous() for tensor in (row_ptr, tensors, environment, cotangent)]
    held = [*inputs, d_tensors, d_environment]
    _run(_gradients_kernel(spec, tuple(wanted)), spec, len(tensors), held)
    return d_tensors, d_environment


def _gradients_fake(
    plan: str, wanted: Sequence[bool], tensors: Tensor, environment: Tensor, *others: Tensor
) -> tuple[Tensor, Tensor]:
    first, second = (
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        if want
        else tensor.new_empty(0)
        for tensor, want in zip((tensors, environment), wanted, strict=True)
    )
    return first, second


def _run(
    kernel: machine.Kernel, spec: EdgeProductSpec, n_edges: int, held: Sequence[Tensor]
) -> None:
    row_ptr = held[0]
    if n_edges:
        cost = n_edges * spec.n_entries * spec.channels
        ranges = threads.shares(len(row_ptr) - 1, cost, row_ptr)
        threads.launch(kernel, held[-1].dtype, ranges, lambda part: held)


def _product_backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, row_ptr = ctx.saved_tensors
    results: list[Tensor | None] = []
    for first in (0, 2):
        wanted = [is_needed(ctx, 1 + first), is_needed(ctx, 2 + first)]
        gradients: Sequence[Tensor] = ()
        if any(wanted):
            gradients = torch.ops.clebsch.edge_product_gradients(
                *ctx.settings, wanted, *inputs[first : first + 2], cotangent, row_ptr
            )
        results += where_wanted(gradients, wanted)
    return (None, *results, None)


def _gradients_backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
    """Of ``t_tensors . d_tensors + t_environment . d_environment``, linear in all that it holds."""
    plan, returned = ctx.settings
    tensors, environment, cotangent, row_ptr = ctx.saved_tensors
    t_tensors, t_environment = where_wanted(directions, returned)
    wanted = [
        t_environment is not None and is_needed(ctx, 2),
        t_tensors is not None and is_needed(ctx, 3),
    ]
    gradients: Sequence[Tensor] = ()
    if any(wanted):
        gradients = torch.ops.clebsch.edge_product_gradients(
            plan,
            wanted,
            tensors if t_tensors is None else t_tensors,
            environment if t_environment is None else t_environment,
            cotangent,
            row_ptr,
        )
    d_cotangent = None
    pairs: list[Tensor | None] = []
    pairs += [] if t_tensors is None else [t_tensors, environment]
    pairs += [] if t_environment is None else [tensors, t_environment]
    if pairs and is_needed(ctx, 4):
        pairs += [None] * (4 - len(pairs))
        d_cotangent = torch.ops.clebsch.edge_product(plan, *pairs, row_ptr)
    return (None, None, *where_wanted(gradients, wanted), d_cotangent, None)


operators.define(
    "edge_product(str plan, Tensor tensors, Tensor environment, Tensor? more_tensors, "
    "Tensor? more_environment, Tensor row_ptr) -> Tensor",
    _product,
    _product_fake,
)
operators.define(
    "edge_product_gradients(str plan, bool[] wanted, Tensor tensors, Tensor environment, "
    "Tensor cotangent, Tensor row_ptr) -> (Tensor, Tensor)",
    _gradients,
    _gradients_fake,
)
operators.register_autograd("edge_product", setup_values, _product_backward)
operators.register_autograd("edge_product_gradients", setup_gradients, _gradients_backward)


@lru_cache(maxsize=256)
def _spec(plan: str, channels: int, bits: int) -> EdgeProductSpec:
    return EdgeProductSpec(channels, bits, convolution_plan_of(plan))


@lru_cache(maxsize=256)
def _forward_kernel(spec: EdgeProductSpec, n_terms: int) -> machine.Kernel:
    name, key = "edge_product", f"{spec.key}|{n_terms}"
    return machine.kernel(name, 3 + 2 * n_terms, 2, key, lambda: write_forward(spec, n_terms, name))


@lru_cache(maxsize=256)
def _gradients_kernel(spec: EdgeProductSpec, wanted: tuple[bool, ...]) -> machine.Kernel:
    name, key = "edge_product_gradients", f"{spec.key}|{wanted}"
    return machine.kernel(name, 7, 2, key, lambda: write_gradients(spec, wanted, name))
