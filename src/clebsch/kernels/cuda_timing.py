"""The time that a GPU takes for launched work, without the time that launching it takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

#: Cycles, some ten milliseconds, that the GPU waits: meanwhile all that is timed is queued.
HEAD_START = 20_000_000
#: Calls that are timed, of which the median counts, after one that compiles.
TIMES = 7


def milliseconds(function: Callable[[], object]) -> float:
    """The median time of the work that a function launches on the current stream.

    Args:
        function: launches some hundred kernels at most, or the queue would be full.
    """
    function()
    torch.cuda._sleep(HEAD_START)
    pairs = []
    for _ in range(TIMES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        pairs.append((start, end))
    torch.cuda.current_stream().synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs)
