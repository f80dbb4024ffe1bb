"""Linear maps between features: within one irrep, and with weights that depend on the species.

All weights start as standard normals and are divided by the square root of their fan-in when they
are used, so that features keep unit variance and one learning rate fits all of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clebsch.algebra import Irreps

#: Makes SiLU keep the second moment of a standard normal input: 1 / sqrt(E[silu(x)^2]).
SILU_GAIN = 1.6765324703310907


class IrrepsLinear(nn.Module):
    """A linear map over channels, one matrix for each irrep, for each of its input blocks.

    ``out[n, m, k] = sum_(p, k') in[n, (m, p), k'] W[(p, k'), k] / sqrt(P K)``: the input has P
    copies of each irrep ("paths", as ``ops.convolve`` returns them) with components before copies.
    """

    def __init__(
        self, irreps: Irreps, channels: int, copies: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.irreps = irreps
        self.channels = channels
        self.copies = copies or (1,) * len(irreps)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(n_copies * channels, channels)) for n_copies in self.copies
        )

    def forward(self, features: Tensor) -> Tensor:
        """Args: features [N, sum of copies x (2l + 1), K]. Returns: [N, irreps.dim, K]."""
        outputs, start = [], 0
        for irrep, copies, weight in zip(self.irreps, self.copies, self.weights, strict=True):
            stop = start + irrep.dim * copies
            block = features[:, start:stop].unflatten(1, (irrep.dim, copies)).flatten(2)
            outputs.append(block @ (weight / math.sqrt(weight.shape[0])))
            start = stop
        return torch.cat(outputs, dim=1)


class SpeciesLinear(nn.Module):
    """A linear map over channels with one matrix for each species and irrep (self-connections).

    Irreps of the input that the output lacks are dropped; irreps of the output that the input
    lacks are zero.
    """

    def __init__(
        self, irreps_in: Irreps, irreps_out: Irreps, n_species: int, channels: int
    ) -> None:
        super().__init__()
        self.irreps_in = irreps_in
        self.irreps_out = irreps_out
        self.shared = tuple(irrep for irrep in irreps_out if irrep in irreps_in)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(n_species, channels, channels)) for _ in self.shared
        )

    def forward(self, features: Tensor, species: Tensor) -> Tensor:
        """Args: features [N, irreps_in.dim, K], species [N]. Returns: [N, irreps_out.dim, K]."""
        n_atoms, _, channels = features.shape
        order = torch.argsort(species, stable=True)
        n_species = self.weights[0].shape[0]
        counts = torch.bincount(species, minlength=n_species).tolist()
        grouped = features.index_select(0, order).split(counts)
        outputs = []
        for irrep in self.irreps_out:
            if irrep not in self.shared:
                outputs.append(features.new_zeros((n_atoms, irrep.dim, channels)))
                continue
            weight = self.weights[self.shared.index(irrep)] / math.sqrt(channels)
            block = self.irreps_in.slices[self.irreps_in.index(irrep)]
            outputs.append(
                torch.cat([part[:, block] @ weight[z] for z, part in enumerate(grouped)])
            )
        return torch.cat(outputs, dim=1).index_select(0, torch.argsort(order))
