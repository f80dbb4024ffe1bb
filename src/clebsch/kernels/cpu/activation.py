"""The normalised SiLU as torch operators: each derivative is one pass over memory."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from clebsch.kernels.cpu import machine, threads
from clebsch.kernels.cpu.activation_code import write
from clebsch.kernels.cpu.operators import operators
from clebsch.kernels.unary_operators import define_unary, like


def silu(x: Tensor) -> Tensor:
    """See ``reference.silu``."""
    out: Tensor = torch.ops.clebsch.silu(x)
    return out


def _silu(x: Tensor) -> Tensor:
    return _run("silu", (x,), 1)[0]


def _gradient(x: Tensor, cotangent: Tensor) -> Tensor:
    """The derivative of ``cotangent . silu(x)``."""
    return _run("silu_gradient", (x, cotangent), 1)[0]


def _second(x: Tensor, cotangent: Tensor, t_x: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of ``t_x . (derivative)`` by x and cotangent."""
    d_x, d_cotangent = _run("silu_second", (x, cotangent, t_x), 2)
    return d_x, d_cotangent


define_unary(operators, "silu", (_silu, _gradient, _second), lambda x: x.shape)


def _run(name: str, inputs: tuple[Tensor, ...], n_out: int) -> list[Tensor]:
    held = [tensor.contiguous() for tensor in inputs]
    outputs = [like(held[0]) for _ in range(n_out)]
    kernel = _kernel(name, held[0].dtype.itemsize * 8)
    n = held[0].numel()
    ranges = threads.shares(n, 30 * n)
    threads.launch(kernel, held[0].dtype, ranges, lambda part: (*held, *outputs))
    return outputs


@lru_cache(maxsize=16)
def _kernel(name: str, bits: int) -> machine.Kernel:
    n_pointers = {"silu": 3, "silu_gradient": 4, "silu_second": 6}[name]
    return machine.kernel(name, n_pointers, 2, str(bits), lambda: write(name, bits))
