"""Freed memory is kept where the C library can, unless somebody said otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, torch
import clebsch.kernels.cpu
def faults(n):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(40)  # blocks that small ones keep apart join in time
print(faults(5))
"""


def page_faults(**environment: str) -> int:
    """Of filling 40 MB five times that were used before, in a process of its own."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    command = [sys.executable, "-c", _FAULTS]
    output = subprocess.check_output(command, env={**inherited, **environment}, text=True)
    return int(output.split()[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an allocator of another library")
def test_large_blocks_are_kept_for_the_next() -> None:
    pytest.importorskip("llvmlite")
    assert page_faults() < 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an allocator of another library")
@pytest.mark.parametrize(
    "setting", [{"CLEBSCH_KEEP_MEMORY": "0"}, {"MALLOC_MMAP_THRESHOLD_": "1000000"}]
)
def test_who_wants_them_returned_is_obeyed(setting: dict[str, str]) -> None:
    pytest.importorskip("llvmlite")
    assert page_faults(**setting) > 10_000
