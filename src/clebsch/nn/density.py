"""A learned density of neighbours, by which sums over neighbours are divided."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clebsch.graph import AtomGraph
from clebsch.nn.kernel_module import KernelModule
from clebsch.nn.radial import EdgeGeometry


class NeighborDensity(KernelModule):
    """rho_i = sum over neighbours of tanh((w . R(r_ij))^2), with the radial basis R.

    (The density blocks of mace-torch.) Where the radial basis has no envelope the terms are
    multiplied by it instead.
    """

    def __init__(self, n_basis: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_basis))

    def forward(self, edges: EdgeGeometry, graph: AtomGraph) -> Tensor:
        """Returns: [N]."""
        projected = edges.basis @ (self.weight / math.sqrt(len(self.weight)))
        terms = torch.tanh(projected.square())
        if edges.envelope is not None:
            terms = terms * edges.envelope
        return self.kernels.segment_sum(terms, graph.row_ptr)
