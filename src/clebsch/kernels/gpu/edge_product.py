"""The product of edge tensors with environments on GPUs: that of the reference, in one order."""

from __future__ import annotations

from torch import Tensor

from clebsch.graph import AtomGraph
from clebsch.kernels.gpu.rows import from_receivers
from clebsch.kernels.plan import ConvolutionPlan
from clebsch.kernels.reference import product_around


def edge_product(
    plan: ConvolutionPlan, tensors: Tensor, environment: Tensor, graph: AtomGraph
) -> Tensor:
    """See ``reference.edge_product``."""
    return product_around(plan, tensors, from_receivers(environment, graph))
