"""Polynomials in the features of atoms as torch operators, whatever computes them.

A backend gives three kernels: values, first derivatives of ``cotangent . values``, and derivatives
of ``t_variables . (derivative by variables)``. How torch derives one from the other is the same for
all, and stands here. The polynomial is linear in its coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from clebsch.kernels.operators import DerivativeKernels, Operators, is_needed, save_inputs
from clebsch.kernels.polynomial import polynomial


def define_product_basis(
    operators: Operators, kernels: DerivativeKernels, fixed: Sequence[str]
) -> None:
    """Define the product basis, a polynomial of ``clebsch.kernels.polynomial``, by its key.

    Args:
        operators: of the backend.
        kernels: as in ``define_polynomial``.
        fixed: likewise.
    """
    define_polynomial(
        operators,
        ("polynomial", "polynomial_gradients", "polynomial_second"),
        kernels,
        lambda key, variables: (variables.shape[0], polynomial(key).n_outputs, variables.shape[2]),
        settings=("str plan",),
        fixed=fixed,
    )


def define_polynomial(
    operators: Operators,
    names: tuple[str, str, str],
    kernels: DerivativeKernels,
    shape: Callable[..., Sequence[int]],
    *,
    settings: Sequence[str] = (),
    fixed: Sequence[str],
) -> None:
    """Define a polynomial's operators and their derivatives.

    Arguments of the operators, and of the kernels, in this order::

        values   settings, coefficients, variables, fixed
        first    settings, weighted, coefficients, variables, cotangent, fixed
        second   settings, weighted, coefficients, variables, cotangent, t_variables, fixed

    Values are [N, ...]. First derivatives are by coefficients (empty unless ``weighted``) and
    variables, second ones by coefficients likewise, variables and cotangent.

    Args:
        operators: of the backend.
        names: of the three.
        kernels: what computes them.
        shape: of the values, out of settings and variables.
        settings: what the operators take that is no tensor, as a schema has it.
        fixed: names of tensors that there is no derivative by.
    """
    value, first, second = names
    n_settings, n_fixed = len(settings), len(fixed)

    def schema(name: str, *own: str) -> str:
        return f"{name}({', '.join((*own, *(f'Tensor {one}' for one in fixed)))})"

    def value_fake(*inputs: Any) -> Tensor:
        variables: Tensor = inputs[n_settings + 1]
        return variables.new_empty(shape(*inputs[:n_settings], variables))

    def first_fake(*inputs: Any) -> tuple[Tensor, Tensor]:
        weighted, coefficients, variables = inputs[n_settings : n_settings + 3]
        d_coefficients = coefficients.new_empty(coefficients.shape if weighted else (0,))
        return d_coefficients, variables.new_empty(variables.shape)

    def second_fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        cotangent = inputs[n_settings + 3]
        return (*first_fake(*inputs), cotangent.new_empty(cotangent.shape))

    def value_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save_inputs(ctx, inputs, n_settings)

    def value_backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        coefficients, variables, *rest = ctx.saved_tensors
        weighted = is_needed(ctx, n_settings)
        d_coefficients, d_variables = operators.call(
            first, *ctx.settings, weighted, coefficients, variables, cotangent, *rest
        )
        results = (d_coefficients if weighted else None, d_variables)
        return (*[None] * n_settings, *results, *[None] * n_fixed)

    def first_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        save_inputs(ctx, inputs, n_settings + 1)

    def first_backward(
        ctx: Any, t_coefficients: Tensor | None, t_variables: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *given, returned = ctx.settings
        coefficients, variables, cotangent, *rest = ctx.saved_tensors
        weighted = is_needed(ctx, n_settings + 1)
        d_coefficients = d_variables = d_cotangent = None
        if t_variables is not None:
            held = (coefficients, variables, cotangent, t_variables)
            d_coefficients, d_variables, d_cotangent = operators.call(
                second, *given, weighted, *held, *rest
            )
        if t_coefficients is not None and returned:
            _, more = operators.call(
                first, *given, False, t_coefficients, variables, cotangent, *rest
            )
            across = operators.call(value, *given, t_coefficients, variables, *rest)
            d_variables = more if d_variables is None else d_variables + more
            d_cotangent = across if d_cotangent is None else d_cotangent + across
        results = (d_coefficients if weighted else None, d_variables, d_cotangent)
        return (*[None] * (n_settings + 1), *results, *[None] * n_fixed)

    inputs = ("Tensor coefficients", "Tensor variables")
    weighted = (*settings, "bool weighted", *inputs, "Tensor cotangent")
    operators.define(f"{schema(value, *settings, *inputs)} -> Tensor", kernels[0], value_fake)
    operators.define(f"{schema(first, *weighted)} -> (Tensor, Tensor)", kernels[1], first_fake)
    operators.define(
        f"{schema(second, *weighted, 'Tensor t_variables')} -> (Tensor, Tensor, Tensor)",
        kernels[2],
        second_fake,
    )
    operators.register_autograd(value, value_setup, value_backward)
    operators.register_autograd(first, first_setup, first_backward)
    operators.refuse_derivative(second)
