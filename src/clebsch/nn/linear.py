"""Linear maps between features: within one irrep, and with weights that depend on the species.

All weights start as standard normals and are divided by the square root of their fan-in when they
are used, so that features keep unit variance and one learning rate fits all of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clebsch.algebra import Irreps


class IrrepsLinear(nn.Module):
    """A linear map over channels, one matrix for each irrep, for each of its input blocks.

    ``out[n, m, k] = sum_(p, k') in[n, (m, p), k'] W[(p, k'), k] / sqrt(P K)``: the input has P
    copies of each irrep ("paths", as a convolution returns them) with components before copies.
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
        dims = [irrep.dim for irrep in self.irreps]
        sizes = [dim * copies for dim, copies in zip(dims, self.copies, strict=True)]
        outputs = []
        for block, dim, weight in zip(
            features.split(sizes, dim=1), dims, self.weights, strict=True
        ):
            rows = block.reshape(-1, len(weight))  # one matrix product, not one per atom
            mapped = rows @ (weight / math.sqrt(len(weight)))
            outputs.append(mapped.view(-1, dim, self.channels))
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
        blocks = features.index_select(0, order).split([ir.dim for ir in self.irreps_in], dim=1)
        outputs = []
        for irrep in self.irreps_out:
            if irrep not in self.shared:
                outputs.append(features.new_zeros((n_atoms, irrep.dim, channels)))
                continue
            weights = (self.weights[self.shared.index(irrep)] / math.sqrt(channels)).unbind(0)
            grouped = blocks[self.irreps_in.index(irrep)].reshape(-1, channels)
            parts = grouped.split([count * irrep.dim for count in counts])
            mapped = torch.cat([part @ weight for part, weight in zip(parts, weights, strict=True)])
            outputs.append(mapped.view(-1, irrep.dim, channels))
        return torch.cat(outputs, dim=1).index_select(0, torch.argsort(order))
