"""Sums of consecutive rows, always in the same order, and rows cut into blocks of one kind."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from clebsch.kernels.gpu import machine

#: Numbers that a program reads at a time: rows times columns.
AT_A_TIME = 128
#: Rows of a segment that one program sums: of longer ones several make parts of the sum.
LONG = 256


@triton.jit
def _sum_rows(  # type: ignore[no-untyped-def]
    values,
    order,
    row_ptr,
    out,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ORDERED: tl.constexpr,
):
    segment = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    last = tl.load(row_ptr + segment + 1)
    total = tl.zeros((ROWS, BLOCK), out.dtype.element_ty)
    for start in range(tl.load(row_ptr + segment), last, ROWS):
        row = start + tl.arange(0, ROWS)
        there = row < last
        if ORDERED:
            row = tl.load(order + row, mask=there, other=0)
        place = values + row[:, None] * WIDTH + column[None, :]
        total += tl.load(place, mask=there[:, None] & inside[None, :], other=0.0)
    tl.store(out + segment * WIDTH + column, tl.sum(total, 0), mask=inside)


def segment_sum(values: Tensor, row_ptr: Tensor, order: Tensor | None = None) -> Tensor:
    """``out[i] = values[order[row_ptr[i]:row_ptr[i + 1]]].sum(0)``.

    Args:
        values: [R, ...], contiguous.
        row_ptr: [S + 1] int64, up to R or less.
        order: [R] int64; None for rows as they stand.

    Returns:
        [S, ...].
    """
    n_segments, n_rows = row_ptr.shape[0] - 1, len(values)
    if n_rows > LONG * n_segments:
        bounds, block_ptr = blocks(row_ptr, n_rows, LONG)
        values, row_ptr, order = _summed(values, bounds, order), block_ptr, None
    return _summed(values, row_ptr, order)


def _summed(values: Tensor, row_ptr: Tensor, order: Tensor | None) -> Tensor:
    """By one program for each segment."""
    shape = (row_ptr.shape[0] - 1, *values.shape[1:])
    if not (values.numel() and shape[0]):
        return values.new_zeros(shape)
    out, width = values.new_empty(shape), values[0].numel()
    block = min(AT_A_TIME, triton.next_power_of_2(width))
    grid = (shape[0], triton.cdiv(width, block))
    sizes = {"WIDTH": width, "ROWS": AT_A_TIME // block, "BLOCK": block}
    held = (values, values if order is None else order, row_ptr, out)
    machine.launch(_sum_rows, grid, held, **sizes, ORDERED=order is not None)
    return out


def blocks(ptr: Tensor, n_rows: int, size: int) -> tuple[Tensor, Tensor]:
    """Rows sorted by kind in blocks of one kind each.

    There are as many blocks as there could be for any kinds, so that sizes do not depend on values:
    the last ones may be empty.

    Args:
        ptr: [n_kinds + 1] int64, where each kind begins.
        n_rows: how many they are.
        size: rows of a block, at most.

    Returns:
        Where each block begins, [n_blocks + 1], and the first block of each kind, [n_kinds + 1],
        int64.
    """
    n_kinds = ptr.shape[0] - 1
    counts = torch.div(ptr.diff() + (size - 1), size, rounding_mode="floor")
    block_ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    number = torch.arange(n_rows // size + n_kinds + 1, device=ptr.device)
    kind = kinds_of_blocks(block_ptr, number)
    begin = ptr[kind] + (number - block_ptr[kind]) * size
    return torch.minimum(begin, ptr[kind + 1]), block_ptr


def kinds_of_blocks(block_ptr: Tensor, number: Tensor) -> Tensor:
    """The kind of each block; that of the last kind for blocks that are of none."""
    n_kinds = block_ptr.shape[0] - 1
    return torch.searchsorted(block_ptr, number, right=True).clamp(max=n_kinds) - 1
