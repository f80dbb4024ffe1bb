"""Spherical harmonics as torch operators on GPUs, one kernel for each derivative."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clebsch.kernels.gpu import harmonics_code as code
from clebsch.kernels.gpu import machine
from clebsch.kernels.gpu.operators import define, differentiable, last
from clebsch.kernels.operators import remember


def spherical_harmonics(vectors: Tensor, l_max: int) -> Tensor:
    """See ``clebsch.algebra.spherical_harmonics``, of normalised vectors [E, 3]."""
    out: Tensor = torch.ops.clebsch_gpu.harmonics(vectors, l_max)
    return out


def _harmonics(vectors: Tensor, l_max: int) -> Tensor:
    out = _values(vectors, l_max)
    _run("harmonics", l_max, vectors, out)
    return out


def _gradient(vectors: Tensor, cotangent: Tensor, l_max: int) -> Tensor:
    """The derivative of ``cotangent . harmonics``."""
    d_vectors = _same(vectors)
    _run("harmonics_gradient", l_max, vectors, cotangent, d_vectors)
    return d_vectors


def _second(
    vectors: Tensor, cotangent: Tensor, t_vectors: Tensor, l_max: int
) -> tuple[Tensor, Tensor]:
    """Derivatives of ``t_vectors . (derivative)`` by vectors and cotangent."""
    results = _same(vectors), _values(vectors, l_max)
    _run("harmonics_second", l_max, vectors, cotangent, t_vectors, *results)
    return results


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.l_max = inputs
    remember(ctx, tuple(tensors), 0)


def _harmonics_backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
    gradient = torch.ops.clebsch_gpu.harmonics_gradient(*ctx.saved_tensors, cotangent, ctx.l_max)
    return gradient, None


def _gradient_backward(ctx: Any, t_vectors: Tensor) -> tuple[Tensor, Tensor, None]:
    inputs = (*ctx.saved_tensors, t_vectors)
    d_vectors, d_cotangent = torch.ops.clebsch_gpu.harmonics_second(*inputs, ctx.l_max)
    return d_vectors, d_cotangent, None


def _values(vectors: Tensor, l_max: int) -> Tensor:
    return vectors.new_empty((vectors.shape[0], (l_max + 1) ** 2))


def _same(vectors: Tensor) -> Tensor:
    return vectors.new_empty(vectors.shape)


define("harmonics(Tensor vectors, int l_max) -> Tensor", _harmonics, _values)
define(
    "harmonics_gradient(Tensor vectors, Tensor cotangent, int l_max) -> Tensor",
    _gradient,
    lambda vectors, cotangent, l_max: _same(vectors),
)
define(
    "harmonics_second(Tensor vectors, Tensor cotangent, Tensor t_vectors, int l_max) "
    "-> (Tensor, Tensor)",
    _second,
    lambda vectors, cotangent, t_vectors, l_max: (_same(vectors), _values(vectors, l_max)),
)
differentiable("harmonics", _setup, _harmonics_backward)
differentiable("harmonics_gradient", _setup, _gradient_backward)
last("harmonics_second")

_WRITERS: dict[str, Callable[[int], str]] = {
    "harmonics": code.write_values,
    "harmonics_gradient": code.write_gradient,
    "harmonics_second": code.write_second,
}


def _run(name: str, l_max: int, *tensors: Tensor) -> None:
    """Run a kernel; results among the tensors are contiguous."""
    held = tuple(tensor.contiguous() for tensor in tensors)
    n_edges = held[0].shape[0]
    if n_edges:
        grid = (-(-n_edges // machine.WARP),)
        machine.launch(_kernel(name, l_max), grid, (*held, n_edges), BLOCK=machine.WARP)


@lru_cache(maxsize=64)
def _kernel(name: str, l_max: int) -> Any:
    return machine.kernel(name, _WRITERS[name](l_max))
