"""Rows of tensors taken and summed, always in the same order, with any number of derivatives.

Torch's own derivative of taking rows adds to them in whatever order threads come. Here taking and
summing are each other's derivatives, and every sum runs over sorted rows. Nothing waits for the
device or has a shape that depends on values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clebsch.graph import AtomGraph
from clebsch.kernels.gpu import segments
from clebsch.kernels.gpu.operators import operators
from clebsch.kernels.operators import save_inputs
from clebsch.kernels.species import by_species


def rows(table: Tensor, index: Tensor) -> Tensor:
    """See ``reference.rows``."""
    return _taken(table, index, None, None)


def from_senders(nodes: Tensor, graph: AtomGraph) -> Tensor:
    """See ``reference.from_senders``."""
    return _taken(nodes, graph.senders, graph.sender_order, graph.sender_ptr)


def from_receivers(nodes: Tensor, graph: AtomGraph) -> Tensor:
    """See ``reference.from_receivers``."""
    return _taken(nodes, graph.receivers, None, graph.row_ptr)


def to_senders(values: Tensor, graph: AtomGraph) -> Tensor:
    """See ``reference.to_senders``."""
    return _summed(values, graph.senders, graph.sender_order, graph.sender_ptr)


def segment_sum(values: Tensor, row_ptr: Tensor) -> Tensor:
    """See ``reference.segment_sum``."""
    return _summed(values, None, None, row_ptr)


def rows_of_blocks(table: Tensor, kinds: Tensor, block_ptr: Tensor) -> Tensor:
    """``table[kinds]`` for the kinds of blocks, which are sorted; see ``segments.blocks``."""
    return _taken(table, kinds, None, block_ptr)


def rearranged(values: Tensor, index: Tensor, back: Tensor) -> Tensor:
    """Rows of ``values`` in other places: ``out[i] = values[index[i]]``, 0 where that is negative.

    Args:
        values: [R, ...].
        index: [R'] int64, every row at most once.
        back: [R] int64, the place where each row went, negative where it is left out.

    Returns:
        [R', ...].
    """
    out: Tensor = torch.ops.clebsch_gpu.rearranged(values, index, back)
    return out


def _taken(table: Tensor, index: Tensor, order: Tensor | None, ptr: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.clebsch_gpu.take_rows(table, index, order, ptr)
    return out


def _summed(values: Tensor, index: Tensor | None, order: Tensor | None, ptr: Tensor) -> Tensor:
    out: Tensor = torch.ops.clebsch_gpu.sum_rows(values, index, order, ptr)
    return out


# --- operators: each of E rows is of one of S; order sorts them by it, ptr tells where S begin ---


def _take(table: Tensor, index: Tensor, order: Tensor | None, ptr: Tensor | None) -> Tensor:
    return table.index_select(0, index)


def _take_fake(table: Tensor, index: Tensor, *others: Tensor | None) -> Tensor:
    return table.new_empty((index.shape[0], *table.shape[1:]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.n_rows = inputs[0].shape[0]
    save_inputs(ctx, (None, *inputs[1:]), 0)


def _take_backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    _, index, order, ptr = ctx.saved_tensors
    if ptr is None:
        order, ptr = by_species(index, ctx.n_rows)
    return _summed(cotangent, index, order, ptr), None, None, None


def _sum(values: Tensor, index: Tensor | None, order: Tensor | None, ptr: Tensor) -> Tensor:
    held = None if order is None else order.contiguous()
    return segments.segment_sum(values.contiguous(), ptr.contiguous(), held)


def _sum_fake(values: Tensor, index: Tensor | None, order: Tensor | None, ptr: Tensor) -> Tensor:
    return values.new_empty((ptr.shape[0] - 1, *values.shape[1:]))


def _sum_backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    _, index, order, ptr = ctx.saved_tensors
    if index is None:
        number = torch.arange(ctx.n_rows, device=ptr.device)
        index = torch.searchsorted(ptr, number, right=True) - 1
    return _taken(cotangent, index, order, ptr), None, None, None


def _rearrange(values: Tensor, index: Tensor, back: Tensor) -> Tensor:
    if not len(values):
        return values.new_zeros((len(index), *values.shape[1:]))
    missing = (index < 0).reshape(-1, *[1] * (values.dim() - 1))
    return values.index_select(0, index.clamp(min=0)).masked_fill_(missing, 0)


def _rearrange_backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    _, index, back = ctx.saved_tensors
    return rearranged(cotangent, back, index), None, None


operators.define(
    "take_rows(Tensor table, Tensor index, Tensor? order, Tensor? ptr) -> Tensor",
    _take,
    _take_fake,
)
operators.define(
    "sum_rows(Tensor values, Tensor? index, Tensor? order, Tensor ptr) -> Tensor",
    _sum,
    _sum_fake,
)
operators.define(
    "rearranged(Tensor values, Tensor index, Tensor back) -> Tensor", _rearrange, _take_fake
)
operators.register_autograd("take_rows", _setup, _take_backward)
operators.register_autograd("sum_rows", _setup, _sum_backward)
operators.register_autograd("rearranged", _setup, _rearrange_backward)
