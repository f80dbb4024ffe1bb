"""The normalised SiLU as torch operators, whatever computes it.

A backend gives three kernels: values, the derivative of ``cotangent . silu(x)``, and derivatives of
``t_x . (that derivative)`` by x and the cotangent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clebsch.kernels.operators import Operators, remember
from clebsch.kernels.polynomial_operators import Three


def define_silu(operators: Operators, kernels: Three) -> None:
    """Define the operators ``silu``, ``silu_gradient`` and ``silu_second``."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, 0)

    def value_backward(ctx: Any, cotangent: Tensor) -> Tensor:
        out: Tensor = operators.call("silu_gradient", *ctx.saved_tensors, cotangent)
        return out

    def first_backward(ctx: Any, t_x: Tensor) -> tuple[Tensor, Tensor]:
        d_x, d_cotangent = operators.call("silu_second", *ctx.saved_tensors, t_x)
        return d_x, d_cotangent

    value, first, second = kernels
    operators.define("silu(Tensor x) -> Tensor", value, like)
    operators.define("silu_gradient(Tensor x, Tensor cotangent) -> Tensor", first, like)
    operators.define(
        "silu_second(Tensor x, Tensor cotangent, Tensor t_x) -> (Tensor, Tensor)",
        second,
        lambda x, cotangent, t_x: (like(x), like(x)),
    )
    operators.differentiable("silu", setup, value_backward)
    operators.differentiable("silu_gradient", setup, first_backward)
    operators.last("silu_second")


def like(x: Tensor, *others: Tensor) -> Tensor:
    """Room for a result of the shape of ``x``."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)
