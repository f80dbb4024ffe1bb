"""The GPU backend: convolution, product basis and harmonics in Triton's language, for one plan.

``source`` is what kernels are written with, the modules that end in ``_code`` write them,
``machine`` has Triton take them and launches them as ``tuning`` found fastest, and the modules that
are imported here hold the operators that torch sees, with first and second derivatives (tabulated
path weights: with first ones). Values and derivatives equal those of ``clebsch.kernels.reference``
to rounding, and have the same bits in every run: ``rows`` takes and sums rows without atomics.
Linear maps and products on edges are made of it and of torch's matrix products in ``linear_maps``
and ``edge_product``. Nothing waits for the device, so that evaluations can be captured as CUDA
graphs, except while ``tuning`` times launches at first use. Linear ACE's polynomial alone is the
reference's, which does wait and adds with atomics. With ``TRITON_INTERPRET=1`` kernels are
interpreted on the CPU: slow, and meant for tests.
"""

from __future__ import annotations

from clebsch.kernels.gpu import machine
from clebsch.kernels.gpu.activation import silu
from clebsch.kernels.gpu.bessel import bessel_basis
from clebsch.kernels.gpu.convolution import convolve
from clebsch.kernels.gpu.edge_product import edge_product
from clebsch.kernels.gpu.harmonics import spherical_harmonics
from clebsch.kernels.gpu.linear_maps import linear
from clebsch.kernels.gpu.product import contract, contract_slots
from clebsch.kernels.gpu.radial import convolve_radial
from clebsch.kernels.gpu.rows import from_receivers, from_senders, rows, segment_sum, to_senders
from clebsch.kernels.gpu.tabulated import convolve_table
from clebsch.kernels.reference import tree_polynomial

__all__ = [
    "bessel_basis",
    "contract",
    "contract_slots",
    "convolve",
    "convolve_radial",
    "convolve_table",
    "edge_product",
    "from_receivers",
    "from_senders",
    "linear",
    "rows",
    "segment_sum",
    "silu",
    "spherical_harmonics",
    "to_senders",
    "tree_polynomial",
]

machine.check()
