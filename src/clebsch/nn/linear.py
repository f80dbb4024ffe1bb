"""Linear maps between features: within one irrep, and with weights that depend on the species.

All weights start as standard normals and are divided by the square root of their fan-in when they
are used, so that features keep unit variance and one learning rate fits all of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clebsch.algebra import Irreps
from clebsch.kernels.backend import Kernels
from clebsch.kernels.dispatch import load_backend


class IrrepsLinear(nn.Module):
    """A linear map over channels, one matrix for each irrep, for each of its input blocks.

    ``out[n, m, k] = scale sum_(p, k') in[n, (m, p), k'] W[(p, k'), k] / sqrt(P K)``: the input has
    P copies of each irrep ("paths", as a convolution returns them), components before copies.
    """

    def __init__(
        self,
        irreps: Irreps,
        channels: int,
        copies: tuple[int, ...] | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.kernels: Kernels = load_backend("reference")
        self.irreps = irreps
        self.scale = scale
        self.copies = copies or (1,) * len(irreps)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(n_copies * channels, channels)) for n_copies in self.copies
        )

    def forward(self, features: Tensor) -> Tensor:
        """Args: features [N, sum of copies x (2l + 1), K]. Returns: [N, irreps.dim, K]."""
        weight = torch.cat([w * (self.scale / math.sqrt(len(w))) for w in self.weights])
        dims = [irrep.dim for irrep in self.irreps]
        return self.kernels.linear(features, weight[None], None, dims, self.copies)


class SpeciesLinear(nn.Module):
    """A linear map over channels with one matrix for each species and irrep (self-connections).

    Irreps of the input that the output lacks are dropped; irreps of the output that the input
    lacks are zero.
    """

    def __init__(
        self, irreps_in: Irreps, irreps_out: Irreps, n_species: int, channels: int
    ) -> None:
        super().__init__()
        self.kernels: Kernels = load_backend("reference")
        self.irreps_in = irreps_in
        self.irreps_out = irreps_out
        self.shared = tuple(irrep for irrep in irreps_out if irrep in irreps_in)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(n_species, channels, channels)) for _ in self.shared
        )

    def forward(self, features: Tensor, species: Tensor) -> Tensor:
        """Args: features [N, irreps_in.dim, K], species [N]. Returns: [N, irreps_out.dim, K]."""
        channels = features.shape[2]
        if self.shared != tuple(self.irreps_in):
            blocks = features.split([irrep.dim for irrep in self.irreps_in], dim=1)
            features = torch.cat([blocks[self.irreps_in.index(ir)] for ir in self.shared], dim=1)
        weight = torch.cat(list(self.weights), dim=1) / math.sqrt(channels)
        dims = [irrep.dim for irrep in self.irreps_out]
        copies = [int(irrep in self.shared) for irrep in self.irreps_out]
        return self.kernels.linear(features, weight, species, dims, copies)
