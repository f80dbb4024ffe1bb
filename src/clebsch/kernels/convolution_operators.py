"""Convolutions as torch operators, whatever computes them.

A backend gives three kernels: values, first derivatives of ``cotangent . values``, and derivatives
of the sum over inputs of ``direction . (first derivative)``. How torch derives one from the other
is the same for all, and stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from clebsch.kernels.operators import (
    Operators,
    is_needed,
    setup_gradients,
    setup_values,
    where_wanted,
)
from clebsch.kernels.plan import convolution_plan_of


def define_convolution(
    operators: Operators,
    name: str,
    kernels: Sequence[Callable[..., Any]],
    inputs: Sequence[str],
    fixed: Sequence[str],
) -> None:
    """Define a convolution's operators and their derivatives: name, name_gradients, name_second.

    Arguments of the operators, and of the kernels, in this order::

        values   plan, inputs, fixed
        first    plan, wanted, inputs, cotangent, fixed
        second   plan, wanted, inputs, cotangent, directions, fixed

    Values are [N, C, K]. First derivatives are by inputs, empty where not ``wanted``; second ones
    by inputs, likewise, and by the cotangent. A direction is None where its derivative is not used.

    Args:
        operators: of the backend.
        name: of the convolution.
        kernels: what computes them; without second derivatives the third is left out.
        inputs: as a schema has them, the nodes [N, H, K] last.
        fixed: likewise, tensors that there is no derivative by: the graph and what goes with it.
    """
    first, second = f"{name}_gradients", f"{name}_second"
    n_inputs, n_fixed = len(inputs), len(fixed)
    directions = [f"Tensor? t_{one.split()[-1]}" for one in inputs]

    def define(
        operator: str, own: Sequence[str], n_results: int, kernel: Callable[..., Any], fake: Any
    ) -> None:
        results = ", ".join(["Tensor"] * n_results)
        arguments = ", ".join(("str plan", *own, *fixed))
        given = f"({results})" if n_results > 1 else results
        operators.define(f"{operator}({arguments}) -> {given}", kernel, fake)

    def value_fake(plan: str, *tensors: Tensor) -> Tensor:
        nodes = tensors[n_inputs - 1]
        return nodes.new_empty((nodes.shape[0], convolution_plan_of(plan).out_dim, nodes.shape[2]))

    def first_fake(plan: str, wanted: Sequence[bool], *tensors: Tensor | None) -> tuple[Any, ...]:
        sources, nodes = tensors[:n_inputs], tensors[n_inputs - 1]
        assert nodes is not None
        return tuple(
            nodes.new_empty(source.shape if want and source is not None else (0,))
            for source, want in zip(sources, wanted, strict=True)
        )

    def second_fake(plan: str, wanted: Sequence[bool], *tensors: Tensor | None) -> tuple[Any, ...]:
        cotangent = tensors[n_inputs]
        assert cotangent is not None
        return (*first_fake(plan, wanted, *tensors), cotangent.new_empty(cotangent.shape))

    def value_backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [is_needed(ctx, 1 + place) for place in range(n_inputs)]
        saved = ctx.saved_tensors
        gradients = operators.call(
            first, *ctx.settings, wanted, *saved[:n_inputs], cotangent, *saved[n_inputs:]
        )
        return (None, *where_wanted(gradients, wanted), *[None] * n_fixed)

    def first_backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        plan, returned = ctx.settings
        wanted = [is_needed(ctx, 2 + place) for place in range(n_inputs)]
        saved, moving = ctx.saved_tensors, where_wanted(cotangents, returned)
        results: list[Tensor | None] = [None] * (n_inputs + 1)
        if any(direction is not None for direction in moving):
            derivatives = operators.call(
                second, plan, wanted, *saved[: n_inputs + 1], *moving, *saved[n_inputs + 1 :]
            )
            results = where_wanted(derivatives, [*wanted, True])
        return (None, None, *results, *[None] * n_fixed)

    with_cotangent = ("bool[] wanted", *inputs, "Tensor cotangent")
    define(name, inputs, 1, kernels[0], value_fake)
    define(first, with_cotangent, n_inputs, kernels[1], first_fake)
    operators.register_autograd(name, setup_values, value_backward)
    if len(kernels) == 2:
        operators.refuse_derivative(first)
        return
    define(second, (*with_cotangent, *directions), n_inputs + 1, kernels[2], second_fake)
    operators.register_autograd(first, setup_gradients, first_backward)
    operators.refuse_derivative(second)
