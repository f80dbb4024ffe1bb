"""Spherical harmonics as torch operators: edges along memory, one pass for each derivative."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clebsch.kernels.cpu import machine, threads
from clebsch.kernels.cpu.harmonics_code import write
from clebsch.kernels.cpu.operators import define, differentiable, last
from clebsch.kernels.operators import remember


def spherical_harmonics(vectors: Tensor, l_max: int) -> Tensor:
    """See ``clebsch.algebra.spherical_harmonics``, of normalised vectors [E, 3]."""
    out: Tensor = torch.ops.clebsch.harmonics(vectors.t(), l_max)
    return out.t()


def _harmonics(xyz: Tensor, l_max: int) -> Tensor:
    return _run("harmonics", l_max, (xyz,), ((l_max + 1) ** 2,))[0]


def _gradient(xyz: Tensor, cotangent: Tensor, l_max: int) -> Tensor:
    """The derivative of ``cotangent . harmonics``."""
    return _run("harmonics_gradient", l_max, (xyz, cotangent), (3,))[0]


def _second(xyz: Tensor, cotangent: Tensor, t_xyz: Tensor, l_max: int) -> tuple[Tensor, Tensor]:
    """Derivatives of ``t_xyz . (derivative)`` by vectors and cotangent."""
    n_rows = (l_max + 1) ** 2
    d_xyz, d_cotangent = _run("harmonics_second", l_max, (xyz, cotangent, t_xyz), (3, n_rows))
    return d_xyz, d_cotangent


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.l_max = inputs
    remember(ctx, tuple(tensors), 0)


def _harmonics_backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
    return torch.ops.clebsch.harmonics_gradient(*ctx.saved_tensors, cotangent, ctx.l_max), None


def _gradient_backward(ctx: Any, t_xyz: Tensor) -> tuple[Tensor, Tensor, None]:
    d_xyz, d_cotangent = torch.ops.clebsch.harmonics_second(*ctx.saved_tensors, t_xyz, ctx.l_max)
    return d_xyz, d_cotangent, None


def _rows(xyz: Tensor, n_rows: int) -> Tensor:
    return xyz.new_empty((n_rows, xyz.shape[1]))


define(
    "harmonics(Tensor xyz, int l_max) -> Tensor",
    _harmonics,
    lambda xyz, l_max: _rows(xyz, (l_max + 1) ** 2),
)
define(
    "harmonics_gradient(Tensor xyz, Tensor cotangent, int l_max) -> Tensor",
    _gradient,
    lambda xyz, cotangent, l_max: _rows(xyz, 3),
)
define(
    "harmonics_second(Tensor xyz, Tensor cotangent, Tensor t_xyz, int l_max) -> (Tensor, Tensor)",
    _second,
    lambda xyz, cotangent, t_xyz, l_max: (_rows(xyz, 3), _rows(xyz, (l_max + 1) ** 2)),
)
differentiable("harmonics", _setup, _harmonics_backward)
differentiable("harmonics_gradient", _setup, _gradient_backward)
last("harmonics_second")


def _run(
    name: str, l_max: int, inputs: tuple[Tensor, ...], n_rows: tuple[int, ...]
) -> list[Tensor]:
    held = [tensor.contiguous() for tensor in inputs]
    outputs = [_rows(held[0], rows) for rows in n_rows]
    kernel = _kernel(name, l_max, held[0].dtype.itemsize * 8)
    n_edges = held[0].shape[1]
    ranges = threads.shares(n_edges, 10 * n_edges * (l_max + 1) ** 2)
    threads.launch(kernel, held[0].dtype, ranges, lambda part: (*held, *outputs), n_edges)
    return outputs


@lru_cache(maxsize=64)
def _kernel(name: str, l_max: int, bits: int) -> machine.Kernel:
    n_pointers = {"harmonics": 3, "harmonics_gradient": 4, "harmonics_second": 6}[name]
    return machine.kernel(name, n_pointers, 3, f"{l_max}|{bits}", lambda: write(name, l_max, bits))
