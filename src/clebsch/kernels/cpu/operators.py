"""Registering operators with torch: their schema, their kernels, their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("clebsch", "FRAGMENT")


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define ``clebsch::name``: what computes it on CPUs, and what tells its results' shapes."""
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, kernel, "CPU")
    torch.library.register_fake(f"clebsch::{name}", fake, lib=_library)


def differentiable(name: str, setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Register the derivative of ``clebsch::name``."""
    torch.library.register_autograd(f"clebsch::{name}", backward, setup_context=setup, lib=_library)


def last(name: str) -> None:
    """Refuse to differentiate ``clebsch::name``: torch alone would warn and leave the term out."""

    def refuse(ctx: Any, *cotangents: Any) -> None:
        raise NotImplementedError(
            f"clebsch::{name} has no derivative: the llvm backend has first and second "
            "derivatives; use_backend('reference') has all"
        )

    torch.library.register_autograd(f"clebsch::{name}", refuse, lib=_library)


def remember(ctx: Any, inputs: tuple[Any, ...], n_settings: int) -> None:
    """Keep what a backward pass needs: the first ``n_settings`` inputs are no tensors."""
    ctx.settings = inputs[:n_settings]
    ctx.tensor_inputs = [i for i, value in enumerate(inputs) if isinstance(value, torch.Tensor)]
    ctx.save_for_backward(*inputs[n_settings:])


def needed(ctx: Any, index: int) -> bool:
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
