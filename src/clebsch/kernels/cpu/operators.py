"""The CPU backend's operators."""

from __future__ import annotations

from clebsch.kernels.operators import Operators

_operators = Operators("clebsch", "llvm", ("CPU",))
define, differentiable, last = _operators.define, _operators.differentiable, _operators.last
