"""Freed memory is kept where the C library can, unless somebody said otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_KEPT = """
import torch
import clebsch.kernels.cpu
from clebsch.benchmarks.timing import memory_mib
before = memory_mib("VmRSS")
torch.ones(25_000_000)
print(memory_mib("VmRSS") - before)
"""

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not os.path.exists("/proc/self/status"),
    reason="an allocator of another library",
)


def kept(**environment: str) -> float:
    """MiB that a process keeps of 95 that it has used and freed."""
    pytest.importorskip("llvmlite")
    names = ("MALLOC_", "GLIBC_TUNABLES")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(names)}
    command = [sys.executable, "-c", _KEPT]
    return float(subprocess.check_output(command, env={**inherited, **environment}, text=True))


def test_large_blocks_are_kept_for_the_next() -> None:
    assert kept() > 90


@pytest.mark.parametrize(
    "setting",
    [
        {"CLEBSCH_KEEP_MEMORY": "0"},
        {"MALLOC_TOP_PAD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000"},
    ],
)
def test_who_wants_them_returned_is_obeyed(setting: dict[str, str]) -> None:
    assert kept(**setting) < 10
