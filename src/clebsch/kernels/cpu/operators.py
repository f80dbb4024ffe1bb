"""The CPU backend's operators."""

from __future__ import annotations

from clebsch.kernels.operators import Operators

operators = Operators("clebsch", "llvm", ("CPU",))
