"""Bessel functions with their envelope as a torch operator on GPUs: each order the derivative of
the one before, by kernels of one form."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from clebsch.kernels.gpu import bessel_code as code
from clebsch.kernels.gpu import machine
from clebsch.kernels.gpu.operators import operators
from clebsch.kernels.operators import save_inputs

#: Numbers that a program makes: edges times functions.
AT_A_TIME = 128


def bessel_basis(lengths: Tensor, cutoff: float, n_basis: int, exponent: int) -> Tensor:
    """See ``reference.bessel_basis``."""
    out: Tensor = torch.ops.clebsch_gpu.bessel(lengths, cutoff, n_basis, exponent, 0)
    return out


def _bessel(lengths: Tensor, cutoff: float, n_basis: int, exponent: int, order: int) -> Tensor:
    """The derivative of this order, [E, n_basis]."""
    out = _like(lengths, cutoff, n_basis, exponent, order)
    n_edges = lengths.shape[0]
    if n_edges:
        filled = triton.next_power_of_2(n_basis)
        block = max(1, AT_A_TIME // filled)
        held = (lengths.contiguous(), out, n_edges)
        sizes = {"N_BASIS": n_basis, "FILLED": filled, "BLOCK": block}
        machine.launch(_kernel(cutoff, exponent, order), (-(-n_edges // block),), held, **sizes)
    return out


def _like(lengths: Tensor, cutoff: float, n_basis: int, exponent: int, order: int) -> Tensor:
    return lengths.new_empty((lengths.shape[0], n_basis))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    lengths, *ctx.function = inputs
    save_inputs(ctx, (lengths,), 0)


def _backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    *function, order = ctx.function
    slopes = torch.ops.clebsch_gpu.bessel(*ctx.saved_tensors, *function, order + 1)
    return (cotangent * slopes).sum(1), None, None, None, None


operators.define(
    "bessel(Tensor lengths, float cutoff, int n_basis, int exponent, int order) -> Tensor",
    _bessel,
    _like,
)
operators.register_autograd("bessel", _setup, _backward)


@lru_cache(maxsize=64)
def _kernel(cutoff: float, exponent: int, order: int) -> Any:
    return machine.kernel("bessel", code.write_basis(cutoff, exponent, order))
