"""Spherical harmonics as torch operators: edges along memory, one pass for each derivative."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from clebsch.kernels.cpu import machine, threads
from clebsch.kernels.cpu.harmonics_code import write
from clebsch.kernels.cpu.operators import operators
from clebsch.kernels.unary_operators import define_unary


def spherical_harmonics(vectors: Tensor, l_max: int) -> Tensor:
    """See ``clebsch.algebra.spherical_harmonics``, of normalised vectors [E, 3]."""
    out: Tensor = torch.ops.clebsch.harmonics(l_max, vectors.t())
    return out.t()


def _harmonics(l_max: int, xyz: Tensor) -> Tensor:
    return _run("harmonics", l_max, (xyz,), ((l_max + 1) ** 2,))[0]


def _gradient(l_max: int, xyz: Tensor, cotangent: Tensor) -> Tensor:
    """The derivative of ``cotangent . harmonics``."""
    return _run("harmonics_gradient", l_max, (xyz, cotangent), (3,))[0]


def _second(l_max: int, xyz: Tensor, cotangent: Tensor, t_xyz: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of ``t_xyz . (derivative)`` by vectors and cotangent."""
    n_rows = (l_max + 1) ** 2
    d_xyz, d_cotangent = _run("harmonics_second", l_max, (xyz, cotangent, t_xyz), (3, n_rows))
    return d_xyz, d_cotangent


define_unary(
    operators,
    "harmonics",
    (_harmonics, _gradient, _second),
    lambda l_max, xyz: ((l_max + 1) ** 2, xyz.shape[1]),
    settings=("int l_max",),
)


def _run(
    name: str, l_max: int, inputs: tuple[Tensor, ...], n_rows: tuple[int, ...]
) -> list[Tensor]:
    held = [tensor.contiguous() for tensor in inputs]
    outputs = [held[0].new_empty((rows, held[0].shape[1])) for rows in n_rows]
    kernel = _kernel(name, l_max, held[0].dtype.itemsize * 8)
    n_edges = held[0].shape[1]
    ranges = threads.shares(n_edges, 10 * n_edges * (l_max + 1) ** 2)
    threads.launch(kernel, held[0].dtype, ranges, lambda part: (*held, *outputs), n_edges)
    return outputs


@lru_cache(maxsize=64)
def _kernel(name: str, l_max: int, bits: int) -> machine.Kernel:
    n_pointers = {"harmonics": 3, "harmonics_gradient": 4, "harmonics_second": 6}[name]
    return machine.kernel(name, n_pointers, 3, f"{l_max}|{bits}", lambda: write(name, l_max, bits))
