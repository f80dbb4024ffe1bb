"""The normalised SiLU as torch operators on GPUs: each derivative is one kernel."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from clebsch.kernels.gpu import machine
from clebsch.kernels.gpu.operators import operators
from clebsch.kernels.gpu.tuning import Setting
from clebsch.kernels.reference import SILU_GAIN
from clebsch.kernels.unary_operators import define_unary, like

#: Numbers that a program takes, and its warps.
AT_A_TIME, WARPS = 1024, 4


@triton.jit
def _sigmoid(x):  # type: ignore[no-untyped-def]
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1.0 + small)


@triton.jit(do_not_specialize=["n"])
def _values(x, out, n, GAIN: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    at = tl.load(x + place, mask=inside, other=0.0)
    tl.store(out + place, GAIN * at * _sigmoid(at), mask=inside)


@triton.jit(do_not_specialize=["n"])
def _slopes(x, cotangent, d_x, n, GAIN: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    at = tl.load(x + place, mask=inside, other=0.0)
    g = tl.load(cotangent + place, mask=inside, other=0.0)
    s = _sigmoid(at)
    tl.store(d_x + place, GAIN * g * s * (1.0 + at * (1.0 - s)), mask=inside)


@triton.jit(do_not_specialize=["n"])
def _bends(  # type: ignore[no-untyped-def]
    x, cotangent, t_x, d_x, d_cotangent, n, GAIN: tl.constexpr, BLOCK: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    at = tl.load(x + place, mask=inside, other=0.0)
    g = tl.load(cotangent + place, mask=inside, other=0.0)
    t = tl.load(t_x + place, mask=inside, other=0.0)
    s = _sigmoid(at)
    bend = s * (1.0 - s) * (2.0 + at * (1.0 - 2.0 * s))
    tl.store(d_x + place, GAIN * t * g * bend, mask=inside)
    tl.store(d_cotangent + place, GAIN * t * s * (1.0 + at * (1.0 - s)), mask=inside)


def silu(x: Tensor) -> Tensor:
    """See ``reference.silu``."""
    out: Tensor = torch.ops.clebsch_gpu.silu(x)
    return out


def _silu(x: Tensor) -> Tensor:
    return _run(_values, (x,), 1)[0]


def _gradient(x: Tensor, cotangent: Tensor) -> Tensor:
    """The derivative of ``cotangent . silu(x)``."""
    return _run(_slopes, (x, cotangent), 1)[0]


def _second(x: Tensor, cotangent: Tensor, t_x: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of ``t_x . (derivative)`` by x and cotangent."""
    d_x, d_cotangent = _run(_bends, (x, cotangent, t_x), 2)
    return d_x, d_cotangent


define_unary(operators, "silu", (_silu, _gradient, _second), lambda x: x.shape)


def _run(kernel: Any, inputs: tuple[Tensor, ...], n_out: int) -> list[Tensor]:
    held = [tensor.contiguous() for tensor in inputs]
    outputs = [like(held[0]) for _ in range(n_out)]
    if n := held[0].numel():
        given: tuple[Tensor | int, ...] = (*held, *outputs, n)
        sizes = {"GAIN": SILU_GAIN, "BLOCK": AT_A_TIME}
        machine.launch(kernel, (-(-n // AT_A_TIME),), given, (Setting(WARPS),), **sizes)
    return outputs
