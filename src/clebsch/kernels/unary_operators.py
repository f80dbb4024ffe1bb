"""Functions of one tensor as torch operators, whatever computes them.

A backend gives three kernels: values, the derivative of ``cotangent . values``, and derivatives of
``t_x . (that derivative)`` by x and the cotangent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from clebsch.kernels.operators import DerivativeKernels, Operators, save_inputs


def define_unary(
    operators: Operators,
    name: str,
    kernels: DerivativeKernels,
    shape: Callable[..., Sequence[int]],
    settings: Sequence[str] = (),
) -> None:
    """Define a function's operators and their derivatives: name, name_gradient, name_second.

    Arguments of the operators, and of the kernels, in this order::

        values   settings, x
        first    settings, x, cotangent
        second   settings, x, cotangent, t_x

    Args:
        operators: of the backend.
        name: of the function.
        kernels: what computes them.
        shape: of the values, out of settings and x.
        settings: what the operators take that is no tensor, as a schema has it.
    """
    first, second, none = f"{name}_gradient", f"{name}_second", [None] * len(settings)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save_inputs(ctx, inputs, len(settings))

    def value_backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        return *none, operators.call(first, *ctx.settings, *ctx.saved_tensors, cotangent)

    def first_backward(ctx: Any, t_x: Tensor) -> tuple[Any, ...]:
        return *none, *operators.call(second, *ctx.settings, *ctx.saved_tensors, t_x)

    def value_fake(*inputs: Any) -> Tensor:
        out: Tensor = inputs[-1].new_empty(shape(*inputs))
        return out

    def first_fake(*inputs: Any) -> Tensor:
        return like(inputs[-2])

    def second_fake(*inputs: Any) -> tuple[Tensor, Tensor]:
        return like(inputs[-3]), like(inputs[-2])

    def schema(operator: str, *tensors: str) -> str:
        return f"{operator}({', '.join((*settings, *(f'Tensor {one}' for one in tensors)))})"

    operators.define(f"{schema(name, 'x')} -> Tensor", kernels[0], value_fake)
    operators.define(f"{schema(first, 'x', 'cotangent')} -> Tensor", kernels[1], first_fake)
    operators.define(
        f"{schema(second, 'x', 'cotangent', 't_x')} -> (Tensor, Tensor)", kernels[2], second_fake
    )
    operators.register_autograd(name, setup, value_backward)
    operators.register_autograd(first, setup, first_backward)
    operators.refuse_derivative(second)


def like(x: Tensor) -> Tensor:
    """Room for a result of the shape of ``x``, contiguous."""
    return x.new_empty(x.shape)
