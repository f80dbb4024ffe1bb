"""Timing a call and measuring the memory it takes.

Standard library alone: the peers' scripts, which run in environments without Clebsch, load this
very file, so that both sides of a comparison are measured by the same code.
"""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Calls that are not counted, at most: they compile, fill caches, and let TorchScript specialise.
WARMUPS = 3


@dataclass(frozen=True)
class Accelerator:
    """What measuring needs of a device that works behind the processor's back.

    Attributes:
        synchronize: waits until the device has done all that it was told.
        reset_peak: lets ``peak_bytes`` begin anew.
        held_bytes: its memory that tensors take now.
        peak_bytes: the most that they took since ``reset_peak``.
    """

    synchronize: Callable[[], object]
    reset_peak: Callable[[], object]
    held_bytes: Callable[[], int]
    peak_bytes: Callable[[], int]


def accelerator(torch: Any, device: str) -> Accelerator | None:
    """What ``measure`` needs of a device; None for the processor.

    Args:
        torch: the module, which this file does not import.
        device: "cpu", "cuda" or "cuda:1".
    """
    if torch.device(device).type != "cuda":
        return None
    cuda = torch.cuda
    return Accelerator(
        synchronize=lambda: cuda.synchronize(device),
        reset_peak=lambda: cuda.reset_peak_memory_stats(device),
        held_bytes=lambda: cuda.memory_allocated(device),
        peak_bytes=lambda: cuda.max_memory_allocated(device),
    )


def measure(
    call: Callable[[], object],
    min_calls: int = 5,
    min_seconds: float = 2.0,
    max_seconds: float = 20.0,
    device: Accelerator | None = None,
) -> dict[str, Any]:
    """Time a call again and again, after calls that are not counted.

    Timed calls end when there are ``min_calls`` and ``min_seconds``, or ``max_seconds``, and calls
    before them end after ``max_seconds`` too: a call that takes longer than that is made twice.
    A call on a device ends when the device is done.

    Returns:
        seconds: of each timed call. cpu_per_wall: processor time of all threads over their sum,
        which shows threads that nobody asked for. baseline_mib: memory of the process before the
        first call. peak_mib: its highest since then, warm-ups included. Both None where /proc
        does not tell. device_baseline_mib, device_peak_mib: the same of the device's memory, as
        far as torch allots it; None without a device.
    """

    def finished() -> None:
        call()
        if device is not None:
            device.synchronize()

    release_memory()
    reset_peak()
    baseline = memory_mib("VmRSS")
    device_baseline = None
    if device is not None:
        device.synchronize()
        device.reset_peak()
        device_baseline = device.held_bytes() / 2**20
    begun = time.perf_counter()
    for _ in range(WARMUPS):
        finished()
        if time.perf_counter() - begun >= max_seconds:
            break
    seconds: list[float] = []
    spent = 0.0
    cpu = time.process_time()
    while spent < max_seconds and (len(seconds) < min_calls or spent < min_seconds):
        begun = time.perf_counter()
        finished()
        seconds.append(time.perf_counter() - begun)
        spent += seconds[-1]
    return {
        "seconds": seconds,
        "cpu_per_wall": (time.process_time() - cpu) / spent if spent else None,
        "baseline_mib": baseline,
        "peak_mib": memory_mib("VmHWM"),
        "device_baseline_mib": device_baseline,
        "device_peak_mib": None if device is None else device.peak_bytes() / 2**20,
    }


def memory_mib(entry: str) -> float | None:
    """An entry of /proc/self/status in MiB (VmRSS: now, VmHWM: highest), or None without one."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{entry}:\s+(\d+) kB", status, re.MULTILINE)
    return None if found is None else int(found[1]) / 1024


def release_memory() -> None:
    """Give freed memory back to the system, where the C library can.

    What building the model left behind would otherwise count as held before the first call, and
    the calls would seem to need less than they do.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library
        return


def reset_peak() -> None:
    """Let VmHWM begin anew, where Linux allows it: building a model may take more than using it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def limit_memory(device: str) -> None:
    """Let this process have what memory is free now and no more.

    An allocation beyond that fails in this process; without the limit the system would choose
    what to kill. Does nothing where /proc does not tell how much there is, nor for other devices
    than "cpu", whose drivers take more address space than there is memory.
    """
    if not device.startswith("cpu"):
        return
    try:
        free = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return
    found = re.search(r"^MemAvailable:\s+(\d+) kB", free, re.MULTILINE)
    if found is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(found[1]), hard))
