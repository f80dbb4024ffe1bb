"""Dividing a kernel's rows among threads, and the memory that each thread works in."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import torch
from torch import Tensor

from clebsch.kernels.cpu.machine import Kernel

#: Below this many multiply-adds a call is not worth dividing among threads.
SMALLEST_SHARE = 10_000_000

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_local = threading.local()

# Nor does the pool of OpenMP, in which torch runs its own operations: once the parent has used
# several threads, a forked child (multiprocessing's default on Linux before Python 3.14) waits for
# ever for those that it does not have. One thread asks for no others. It is one in any child, for
# whether the parent's pool exists cannot be told.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def shares(n_rows: int, cost: int, ptr: Tensor | None = None) -> list[tuple[int, int]]:
    """Ranges of rows, one for each thread: no more than torch uses, and than are worth it.

    Args:
        n_rows: rows to divide.
        cost: multiply-adds of all of them.
        ptr: [n_rows + 1] int64 row pointer; rows are divided so that it grows evenly.
    """
    n_threads = min(torch.get_num_threads(), cost // SMALLEST_SHARE, n_rows)
    if n_threads < 2:
        return [(0, n_rows)]
    if ptr is None:
        bounds = np.linspace(0, n_rows, n_threads + 1).astype(int)
    else:
        rows = ptr.numpy()
        bounds = np.searchsorted(rows, np.linspace(0, rows[-1], n_threads + 1))
        bounds[0], bounds[-1] = 0, n_rows
    return [(int(a), int(b)) for a, b in itertools.pairwise(bounds)]


def run(work: Callable[[int, int, int], None], ranges: list[tuple[int, int]]) -> None:
    """Call ``work(part, start, stop)`` for every range, each in a thread of its own.

    Whatever is raised, Ctrl-C included, is raised when no thread works any more: they write to
    memory that belongs to the caller, who is free to give it back then.
    """
    if len(ranges) == 1:
        work(0, *ranges[0])
        return
    key = (os.getpid(), len(ranges))  # a pool does not survive a fork
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(len(ranges) - 1, thread_name_prefix="clebsch")
    others = [_pools[key].submit(work, part, *ranges[part]) for part in range(1, len(ranges))]
    raised: BaseException | None = None
    try:
        work(0, *ranges[0])
    except BaseException as error:
        raised = error
    while not all(other.done() for other in others):
        try:
            wait(others)
        except KeyboardInterrupt as error:
            raised = error
    if raised is not None:
        raise raised
    for other in others:
        other.result()


def launch(
    kernel: Kernel,
    dtype: torch.dtype,
    ranges: list[tuple[int, int]],
    tensors: Callable[[int], Sequence[Tensor]],
    *integers: int,
) -> None:
    """Run a compiled kernel on every range.

    Args:
        kernel: takes addresses, scratch memory, start and stop of its range, and ``integers``.
        dtype: of its scratch memory.
        ranges: see ``shares``.
        tensors: contiguous ones, whose addresses a part takes.
        integers: the same for all parts.
    """

    def work(part: int, start: int, stop: int) -> None:
        held = tensors(part)
        addresses = [tensor.data_ptr() for tensor in held]
        kernel.run(*addresses, scratch(kernel.work, dtype), start, stop, *integers)

    run(work, ranges)


def scratch(size: int, dtype: torch.dtype) -> int:
    """The address of this thread's scratch memory, kept between calls."""
    needed = size * dtype.itemsize
    buffer = getattr(_local, "buffer", None)
    if buffer is None or buffer.numel() < needed:
        buffer = _local.buffer = torch.zeros(needed, dtype=torch.uint8)
    address: int = buffer.data_ptr()
    return address


def copies(tensor: Tensor, n_parts: int) -> list[Tensor]:
    """One tensor of zeros for each part; the first is ``tensor`` itself."""
    return [tensor, *(torch.zeros_like(tensor) for _ in range(n_parts - 1))]


def gather(parts: list[Tensor]) -> None:
    """Add what the other parts hold to the first, always in the same order."""
    for part in parts[1:]:
        parts[0] += part
