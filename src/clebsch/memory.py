"""Main memory: keeping freed memory for reuse, and recognising that memory ran out."""

from __future__ import annotations

import ctypes
import os

import torch

#: Set to 0, it leaves the C library's allocator as it is.
KEEP_MEMORY = "CLEBSCH_KEEP_MEMORY"
#: Settings of glibc (mallopt's M_TRIM_THRESHOLD and M_MMAP_MAX) and what a user sets them with.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_SET_BY_USER = ("MALLOC_", "GLIBC_TUNABLES")

#: How torch words a failed allocation on the CPU, where it raises a plain RuntimeError.
_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that an allocation failed, on the CPU or on a GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _WORDS)


def keep_freed_memory() -> None:
    """Have glibc keep large blocks that were freed, for the next that is asked for.

    By default it returns them to the system, and every evaluation of a large structure then waits
    for hundreds of thousands of page faults: up to a third of its time. The process stays at its
    peak of memory instead.

    Nothing happens with another C library, where ``CLEBSCH_KEEP_MEMORY`` is 0, and where the
    environment has settings of its own for the allocator.
    """
    if os.environ.get(KEEP_MEMORY) == "0" or any(n.startswith(_SET_BY_USER) for n in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)  # never
