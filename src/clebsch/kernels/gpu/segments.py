"""Sums of consecutive rows, always in the same order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from clebsch.kernels.gpu import machine

#: Columns that a thread takes.
PER_THREAD = 4


@triton.jit
def _sum_rows(values, row_ptr, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    segment = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    total = tl.zeros((BLOCK,), out.dtype.element_ty)
    for row in range(tl.load(row_ptr + segment), tl.load(row_ptr + segment + 1)):
        total += tl.load(values + row * WIDTH + column, mask=inside, other=0.0)
    tl.store(out + segment * WIDTH + column, total, mask=inside)


def segment_sum(values: Tensor, row_ptr: Tensor) -> Tensor:
    """``out[i] = values[row_ptr[i]:row_ptr[i + 1]].sum(0)``.

    Args:
        values: [R, ...], contiguous.
        row_ptr: [S + 1] int64, up to R or less.

    Returns:
        [S, ...].
    """
    out = values.new_empty((row_ptr.shape[0] - 1, *values.shape[1:]))
    width = values[0].numel() if len(values) else 0
    if out.numel():
        block = machine.block_of_channels(width, PER_THREAD)
        grid = (len(out), triton.cdiv(width, block))
        machine.launch(_sum_rows, grid, (values, row_ptr, out), WIDTH=width, BLOCK=block)
    return out
