"""The product basis: messages of higher body order from the one-particle basis."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clebsch.algebra import Irreps
from clebsch.kernels.backend import Kernels
from clebsch.kernels.dispatch import load_backend
from clebsch.kernels.plan import contraction_plan


class ProductBasis(nn.Module):
    """Equations 10 and 11: all symmetric products of A up to ``correlation``, linearly expanded.

    The weights depend on the species of the receiving atom. Each order's weights start as standard
    normals divided by its number of couplings.
    """

    def __init__(
        self,
        irreps: Irreps,
        targets: Irreps,
        correlation: int,
        n_species: int,
        channels: int,
        reduced: bool,
    ) -> None:
        super().__init__()
        self.kernels: Kernels = load_backend("reference")
        self.plan = contraction_plan(irreps, targets, correlation, reduced)
        weights = torch.randn(n_species, self.plan.n_couplings, channels)
        for rows in self.plan.weight_slices:
            for row in rows:
                weights[:, row] /= max(1, row.stop - row.start)
        self.weights = nn.Parameter(weights)

    def forward(self, atomic_basis: Tensor, species: Tensor) -> Tensor:
        """Args: atomic_basis [N, Q, K], species [N]. Returns: messages [N, O, K]."""
        return self.kernels.contract(self.plan, atomic_basis, self.weights, species)
