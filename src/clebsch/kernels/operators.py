"""Registering operators with torch: their schema, their kernels, their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

#: What computes values, first and second derivatives.
DerivativeKernels = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]

_kernels: dict[Any, Callable[..., Any]] = {}


def kernel_of(operator: Any) -> Callable[..., Any]:
    """What computes one of our operators, where nothing is differentiated; others as they are.

    On its way to the kernel torch takes longer than the kernel itself on a small molecule.
    """
    return _kernels.get(operator, operator)


class Operators:
    """The operators of one backend.

    Args:
        namespace: where ``torch.ops`` has them.
        backend: whose they are.
        devices: torch's names of those whose tensors they take.
    """

    def __init__(self, namespace: str, backend: str, devices: Sequence[str]) -> None:
        self._namespace, self._backend, self._devices = namespace, backend, tuple(devices)
        self._library = torch.library.Library(namespace, "FRAGMENT")

    def define(self, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
        """Define an operator: what computes it, and what tells its results' shapes."""
        name = schema.partition("(")[0]
        self._library.define(schema)
        for device in self._devices:
            self._library.impl(name, kernel, device)
        _kernels[getattr(getattr(torch.ops, self._namespace), name).default] = kernel
        torch.library.register_fake(self._full(name), fake, lib=self._library)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call an operator."""
        return getattr(getattr(torch.ops, self._namespace), name)(*arguments)

    def register_autograd(
        self, name: str, setup: Callable[..., None], backward: Callable[..., Any]
    ) -> None:
        """Register the derivative of an operator."""
        torch.library.register_autograd(
            self._full(name), backward, setup_context=setup, lib=self._library
        )

    def refuse_derivative(self, name: str) -> None:
        """Refuse to differentiate an operator: torch alone would warn and leave the term out."""

        def refuse(ctx: Any, *cotangents: Any) -> None:
            raise NotImplementedError(
                f"{self._full(name)} has no derivative: the {self._backend} backend has first and "
                "second derivatives; use_backend('reference') has all"
            )

        torch.library.register_autograd(self._full(name), refuse, lib=self._library)

    def _full(self, name: str) -> str:
        return f"{self._namespace}::{name}"


def save_inputs(ctx: Any, inputs: tuple[Any, ...], n_settings: int) -> None:
    """Save an operator's inputs for its backward pass; the first ``n_settings`` are no tensors."""
    ctx.settings = inputs[:n_settings]
    ctx.tensor_inputs = [i for i, value in enumerate(inputs) if isinstance(value, torch.Tensor)]
    ctx.save_for_backward(*inputs[n_settings:])


def setup_values(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """The setup of an operator that takes a plan first, and then tensors."""
    save_inputs(ctx, inputs, 1)


def setup_gradients(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """The setup of its derivative, which takes second what is wanted.

    Cotangents of derivatives that nobody uses are None then, not zeros.
    """
    ctx.set_materialize_grads(False)
    save_inputs(ctx, inputs, 2)


def where_wanted(values: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
    """The values that are wanted, and None for the others."""
    return [values[place] if want else None for place, want in enumerate(wanted)]


def is_needed(ctx: Any, index: int) -> bool:
    """Whether the backward pass that runs now asks for the derivative by an input.

    ``needs_input_grad`` alone says whether the input requires gradients: forces would cost the
    derivatives by all weights.
    """
    if not ctx.needs_input_grad[index]:
        return False
    node = ctx.next_functions[ctx.tensor_inputs.index(index)][0]
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except (AttributeError, RuntimeError):  # not this torch, or a leaf that is asked for
        return True
