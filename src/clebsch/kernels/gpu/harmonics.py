"""Spherical harmonics as torch operators on GPUs, one kernel for each derivative."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clebsch.kernels.gpu import harmonics_code as code
from clebsch.kernels.gpu import machine
from clebsch.kernels.gpu.operators import operators
from clebsch.kernels.unary_operators import define_unary, like


def spherical_harmonics(vectors: Tensor, l_max: int) -> Tensor:
    """See ``clebsch.algebra.spherical_harmonics``, of normalised vectors [E, 3]."""
    out: Tensor = torch.ops.clebsch_gpu.harmonics(l_max, vectors)
    return out


def _harmonics(l_max: int, vectors: Tensor) -> Tensor:
    out = vectors.new_empty(_shape(l_max, vectors))
    _run("harmonics", l_max, vectors, out)
    return out


def _gradient(l_max: int, vectors: Tensor, cotangent: Tensor) -> Tensor:
    """The derivative of ``cotangent . harmonics``."""
    d_vectors = like(vectors)
    _run("harmonics_gradient", l_max, vectors, cotangent, d_vectors)
    return d_vectors


def _second(
    l_max: int, vectors: Tensor, cotangent: Tensor, t_vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """Derivatives of ``t_vectors . (derivative)`` by vectors and cotangent."""
    results = like(vectors), like(cotangent)
    _run("harmonics_second", l_max, vectors, cotangent, t_vectors, *results)
    return results


def _shape(l_max: int, vectors: Tensor) -> tuple[int, int]:
    return vectors.shape[0], (l_max + 1) ** 2


define_unary(
    operators,
    "harmonics",
    (_harmonics, _gradient, _second),
    _shape,
    settings=("int l_max",),
)

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
