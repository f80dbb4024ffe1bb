"""How kernels are launched: warps and stages, timed on the GPU at hand and remembered.

Only what leaves every bit of the results as it is may be chosen. With more warps, channels go to
more threads, each of which computes for a channel what another would have. Kernels that sum over
channels or multiply matrices keep their warps, since the order of such sums follows from where
numbers lie. Stages are about when memory is read. Blocks of channels stay as they are.

Kernels are timed on the arguments of a call, which they compute again and again: none that adds to
what is in memory may be timed. What was chosen is kept in the cache folder, one file for a GPU,
version of Triton, kernel, its constants, the types of its arguments and a class of sizes. A file
that is damaged or cannot be written costs the timing and nothing else. ``CLEBSCH_TUNE=0`` has
defaults taken, always; the interpreter, and CUDA graphs in the making, time nothing either.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from clebsch.files import atomic_write
from clebsch.kernels.cache import cache_folder
from clebsch.kernels.cuda_timing import milliseconds

#: Programs below which the launch takes the time, and nothing is timed.
FEWEST_PROGRAMS = 1024
#: Sizes are of one class within such a factor, as a power of 2.
OCTAVES = 2


@dataclass(frozen=True)
class Setting:
    """What a kernel is launched with.

    Attributes:
        n_warps: of a program.
        n_stages: reads from memory that are under way in a loop.
    """

    n_warps: int = 1
    n_stages: int = 3


Run = Callable[[Setting], object]

_chosen: dict[Any, Setting] = {}


def choose(
    function: Any,
    grid: Sequence[int],
    arguments: Sequence[Tensor | int],
    constants: dict[str, float | str],
    settings: tuple[Setting, ...],
    run: Run,
) -> Setting:
    """The fastest of some settings for a kernel: as remembered, or timed now.

    Args:
        function: the kernel.
        grid: how many programs.
        arguments: the first is a tensor on the GPU.
        constants: of the kernel.
        settings: the first is the default; others that fail are passed over.
        run: launches the kernel on these arguments, which must leave the same as doing it once.
    """
    programs = math.prod(grid)
    if len(settings) == 1 or programs < FEWEST_PROGRAMS or os.environ.get("CLEBSCH_TUNE") == "0":
        return settings[0]
    size = programs.bit_length() // OCTAVES
    types = tuple(str(a.dtype) if isinstance(a, Tensor) else "int" for a in arguments)
    device = arguments[0].device  # type: ignore[union-attr]
    key = (function.module, size, types, tuple(constants.items()), settings, device)
    if key not in _chosen:
        if torch.cuda.is_current_stream_capturing():  # nothing can be timed now
            return settings[0]
        gpu = torch.cuda.get_device_name(device)
        told = ("gpu", "triton", "kernel", "size", "types", "constants")
        known = (gpu, triton.__version__, function.module, size, types, constants)
        _chosen[key] = _stored(dict(zip(told, known, strict=True)), settings, run)
    return _chosen[key]


def _stored(key: dict[str, Any], settings: Sequence[Setting], run: Run) -> Setting:
    """The fastest setting out of the cache folder, or timed and written there."""
    text = json.dumps([key, [asdict(setting) for setting in settings]])
    try:
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        file = cache_folder() / f"tuned-{digest}.json"
    except RuntimeError:  # no home folder
        return _fastest(settings, run)[0]
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        found = Setting(**json.loads(file.read_bytes())["setting"])
        if found in settings:
            return found
    found, times = _fastest(settings, run)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {**key, "setting": asdict(found), "milliseconds": times}
        atomic_write(file, json.dumps(content, indent=1))
    return found


def _fastest(settings: Sequence[Setting], run: Run) -> tuple[Setting, dict[str, float]]:
    """The fastest setting, and the times of all that work."""
    times = {settings[0]: milliseconds(partial(run, settings[0]))}
    for setting in settings[1:]:
        with contextlib.suppress(Exception):  # too much shared memory, for one
            times[setting] = milliseconds(partial(run, setting))
    return min(times, key=times.__getitem__), {str(s): time for s, time in times.items()}
