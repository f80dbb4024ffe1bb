"""Linear maps between features, each within one irrep; some depend on the species.

All weights start as standard normals and are divided by the square root of their fan-in when they
are used, so that features keep unit variance and one learning rate fits all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clebsch.algebra import Irreps
from clebsch.nn.kernel_module import KernelModule


class IrrepsLinear(KernelModule):
    """A linear map over channels, one matrix for each irrep, for each of its input blocks.

    ``out[n, m, k] = scale sum_(p, k') in[n, (m, p), k'] W[(p, k'), k] / sqrt(P K)``: the input has
    P copies of each irrep ("paths", as a convolution returns them), components before copies.

    Args:
        irreps: of the input.
        channels: K, of input and output.
        copies: of each input irrep; 1 if None.
        irreps_out: of the output, each of them in the input; an irrep that occurs several times
            has a matrix each time. As the input if None.
        scale: of the output.
    """

    def __init__(
        self,
        irreps: Irreps,
        channels: int,
        copies: tuple[int, ...] | None = None,
        irreps_out: Irreps | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.irreps = irreps_out or irreps
        self.scale = scale
        copies = copies or (1,) * len(irreps)
        self.select = _BlockSelection(irreps, copies, self.irreps)
        self.copies = tuple(copies[irreps.index(irrep)] for irrep in self.irreps)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(n_copies * channels, channels)) for n_copies in self.copies
        )

    def forward(self, features: Tensor) -> Tensor:
        """Args: features [N, sum of copies x (2l + 1), K]. Returns: [N, irreps.dim, K]."""
        weight = _concatenated([w * (self.scale / math.sqrt(len(w))) for w in self.weights], dim=0)
        dims = [irrep.dim for irrep in self.irreps]
        return self.kernels.linear(self.select(features), weight[None], None, dims, self.copies)


class SpeciesLinear(KernelModule):
    """A linear map over channels with one matrix for each species and irrep (self-connections).

    Irreps of the input that the output lacks are dropped; irreps of the output that the input
    lacks are zero. With one species the map is the same for all atoms.
    """

    def __init__(
        self, irreps_in: Irreps, irreps_out: Irreps, n_species: int, channels: int
    ) -> None:
        super().__init__()
        self.irreps_out = irreps_out
        self.copies = [int(irrep in irreps_in) for irrep in irreps_out]
        shared = Irreps(irrep for irrep in irreps_out if irrep in irreps_in)
        self.select = _BlockSelection(irreps_in, (1,) * len(irreps_in), shared)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(n_species, channels, channels)) for _ in shared
        )

    def forward(self, features: Tensor, species: Tensor) -> Tensor:
        """Args: features [N, irreps_in.dim, K], species [N]. Returns: [N, irreps_out.dim, K]."""
        weight = _concatenated(list(self.weights), dim=1) / math.sqrt(features.shape[2])
        dims = [irrep.dim for irrep in self.irreps_out]
        known = species if len(weight) > 1 else None
        return self.kernels.linear(self.select(features), weight, known, dims, self.copies)


class ChannelMap(nn.Module):
    """A linear map between features of different numbers of channels, a matrix for each irrep.

    As ``IrrepsLinear``, but for the channels; irreps that the input lacks are zero in the output.

    Args:
        irreps: of the input.
        copies: of each input irrep.
        channels: of the input.
        irreps_out: of the output; one that occurs several times has a matrix each time.
        channels_out: of the output.
    """

    def __init__(
        self,
        irreps: Irreps,
        copies: tuple[int, ...],
        channels: int,
        irreps_out: Irreps,
        channels_out: int,
    ) -> None:
        super().__init__()
        self.irreps, self.irreps_out = irreps, irreps_out
        self.sizes = [irrep.dim * n for irrep, n in zip(irreps, copies, strict=True)]
        self.present = Irreps(irrep for irrep in irreps_out if irrep in irreps)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(copies[irreps.index(irrep)] * channels, channels_out))
            for irrep in self.present
        )
        self.channels_out = channels_out

    def forward(self, features: Tensor) -> Tensor:
        """Args: features [N, sum of copies x (2l + 1), K]. Returns: [N, irreps_out.dim, K']."""
        parts = features.split(self.sizes, dim=1)
        n_atoms = features.shape[0]  # of any number in recordings, where len() would fix it
        weights = iter(self.weights)
        made = []
        for irrep in self.irreps_out:
            if irrep not in self.irreps:
                made.append(features.new_zeros(n_atoms, irrep.dim, self.channels_out))
                continue
            weight = next(weights)
            rows = parts[self.irreps.index(irrep)].reshape(n_atoms, irrep.dim, len(weight))
            made.append(rows @ (weight / math.sqrt(len(weight))))
        return torch.cat(made, dim=1)


class _BlockSelection:
    """Selects the blocks of features that a map uses, in its order; the whole is not copied."""

    def __init__(self, irreps: Irreps, copies: tuple[int, ...], chosen: Irreps) -> None:
        self.sizes = [irrep.dim * n for irrep, n in zip(irreps, copies, strict=True)]
        self.blocks = [irreps.index(irrep) for irrep in chosen]

    def __call__(self, features: Tensor) -> Tensor:
        if self.blocks == list(range(len(self.sizes))):
            return features
        parts = features.split(self.sizes, dim=1)
        return _concatenated([parts[block] for block in self.blocks], dim=1)


def _concatenated(parts: Sequence[Tensor], dim: int) -> Tensor:
    """The parts as one tensor; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)
