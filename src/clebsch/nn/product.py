"""The product basis: messages of higher body order from the one-particle basis."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clebsch.kernels.plan import ContractionPlan
from clebsch.nn.kernel_module import KernelModule


class ProductBasis(KernelModule):
    """Equations 10 and 11: all products of A up to ``correlation``, linearly expanded.

    All factors are the same A, or each is a different one (PACE), which needs the unreduced
    couplings. The weights depend on the species of the receiving atom, or, with one species given,
    are the same for all. Each order's weights start as standard normals divided by its number of
    couplings.
    """

    def __init__(self, plan: ContractionPlan, n_species: int, channels: int) -> None:
        super().__init__()
        self.plan = plan
        weights = torch.randn(n_species, self.plan.n_couplings, channels)
        for rows in self.plan.weight_slices:
            for row in rows:
                weights[:, row] /= max(1, row.stop - row.start)
        self.weights = nn.Parameter(weights)

    def forward(self, slots: tuple[Tensor, ...], species: Tensor) -> Tensor:
        """Messages [N, O, K].

        Args:
            slots: A of each factor, or the one A of all factors; [N, Q, K].
            species: [N].
        """
        if len(self.weights) == 1:
            species = torch.zeros_like(species)
        if len(slots) == 1:
            return self.kernels.contract(self.plan, slots[0], self.weights, species)
        return self.kernels.contract_slots(self.plan, slots, self.weights, species)
