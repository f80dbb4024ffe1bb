"""Dividing a kernel's rows among threads, and passing tensors to it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

#: Below this many inner-loop iterations a call is not worth dividing among threads.
SMALLEST_SHARE = 200_000

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def divide(
    work: Callable[[int, int], None], n_rows: int, cost: int, ptr: np.ndarray | None
) -> None:
    """Call ``work(start, stop)`` over all rows, on as many threads as torch uses.

    Rows are divided evenly, or so that ``ptr`` (a row pointer) grows evenly.
    """
    n_threads = min(torch.get_num_threads(), cost // SMALLEST_SHARE, n_rows)
    if n_threads < 2:
        work(0, n_rows)
        return
    if ptr is None:
        bounds = np.linspace(0, n_rows, n_threads + 1).astype(int)
    else:
        bounds = np.searchsorted(ptr, np.linspace(0, ptr[-1], n_threads + 1))
        bounds[0], bounds[-1] = 0, n_rows
    key = (os.getpid(), n_threads)  # a pool does not survive a fork
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(n_threads - 1, thread_name_prefix="clebsch")
    others = [_pools[key].submit(work, int(a), int(b)) for a, b in itertools.pairwise(bounds[1:])]
    work(int(bounds[0]), int(bounds[1]))
    for other in others:
        other.result()


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    """Tensors as contiguous arrays, sharing their memory where they are contiguous already."""
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def zeros_like(tensor: Tensor) -> Tensor:
    """Contiguous zeros, so that kernels write into them and not into a copy."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def numpy_dtype(dtype: torch.dtype) -> type:
    """The array type of a floating-point tensor type."""
    return {torch.float32: np.float32, torch.float64: np.float64}[dtype]
