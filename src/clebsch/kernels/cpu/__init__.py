"""The CPU backend: the heavy operations as machine code written for one plan, through LLVM.

``machine`` compiles, ``emit`` is the language that kernels are written in, the modules that end in
``_code`` write them, and those that are imported here hold the operators that torch sees, with
first and second derivatives. Values and derivatives equal those of ``clebsch.kernels.reference`` to
rounding. Third derivatives do not exist here, but for what is linear in each of its factors: asking
for them raises an error.
"""

from __future__ import annotations

from clebsch.kernels.cpu import machine
from clebsch.kernels.cpu.activation import silu
from clebsch.kernels.cpu.convolution import convolve, convolve_radial, convolve_table
from clebsch.kernels.cpu.edge_product import edge_product
from clebsch.kernels.cpu.harmonics import spherical_harmonics
from clebsch.kernels.cpu.linear import linear
from clebsch.kernels.cpu.product import contract, contract_slots
from clebsch.kernels.cpu.tree import tree_polynomial
from clebsch.kernels.reference import (
    bessel_basis,
    from_receivers,
    from_senders,
    rows,
    segment_sum,
    to_senders,
)
from clebsch.memory import keep_freed_memory

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
keep_freed_memory()
