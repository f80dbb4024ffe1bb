"""TF32: matrix products in float32 that round their factors, as NVIDIA's tensor cores can.

A factor then keeps 11 bits of 24, sums stay float32. Torch has one switch for all its products,
``torch.set_float32_matmul_precision``, and kernels of ours that multiply matrices obey it as well.
It changes nothing on CPUs, nor in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def tf32_is_allowed() -> bool:
    """Whether products on GPUs may be TF32 now."""
    return torch.get_float32_matmul_precision() != "highest"


@contextmanager
def allow_tf32(allowed: bool) -> Iterator[None]:
    """Allow TF32, or rule it out, while the context lasts."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
