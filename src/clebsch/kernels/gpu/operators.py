"""The GPU backend's operators; they take tensors of CPUs too, for Triton's interpreter."""

from __future__ import annotations

from clebsch.kernels.operators import Operators

operators = Operators("clebsch_gpu", "triton", ("CUDA", "CPU"))
