"""The GPU backend's operators; they take tensors of CPUs too, for Triton's interpreter."""

from __future__ import annotations

from clebsch.kernels.operators import Operators

_operators = Operators("clebsch_gpu", "triton", ("CUDA", "CPU"))
define, differentiable, last = _operators.define, _operators.differentiable, _operators.last
