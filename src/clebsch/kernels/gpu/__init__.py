"""The GPU backend: convolution, product basis and harmonics in Triton's language, for one plan.

``source`` is what kernels are written with, ``convolution_code``, ``polynomial_code`` and
``harmonics_code`` write them, ``machine`` has Triton take them, ``convolution``, ``product`` and
``harmonics`` are the operators that torch sees, with first and second derivatives. Values and
derivatives equal those of ``clebsch.kernels.reference`` to rounding, and have the same bits in
every run. Everything else is the reference, which torch runs on the GPU. With
``TRITON_INTERPRET=1`` kernels are interpreted on the CPU: slow, and meant for tests.
"""

from __future__ import annotations

from clebsch.kernels.gpu import machine
from clebsch.kernels.gpu.convolution import convolve
from clebsch.kernels.gpu.harmonics import spherical_harmonics
from clebsch.kernels.gpu.product import contract, contract_slots
from clebsch.kernels.gpu.radial import convolve_radial
from clebsch.kernels.gpu.tabulated import convolve_table
from clebsch.kernels.reference import (
    edge_product,
    linear,
    silu,
    tree_polynomial,
)

__all__ = [
    "contract",
    "contract_slots",
    "convolve",
    "convolve_radial",
    "convolve_table",
    "edge_product",
    "linear",
    "silu",
    "spherical_harmonics",
    "tree_polynomial",
]

machine.check()
