"""The CPU backend: the heavy operations through Numba's compiled loops, differentiable twice.

Values and derivatives equal those of ``clebsch.kernels.reference`` to rounding. Path weights are
the only per-edge tensor with channels; no message is ever stored. Third derivatives do not exist
here: asking for them raises torch's own error.
"""

from __future__ import annotations

from clebsch.kernels.cpu.convolution import convolve, convolve_radial
from clebsch.kernels.cpu.product import contract

__all__ = ["contract", "convolve", "convolve_radial"]
