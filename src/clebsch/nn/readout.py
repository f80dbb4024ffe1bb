"""Readouts: from the invariant part of node features to energies (equation 13)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clebsch.kernels.reference import silu


class LinearReadout(nn.Module):
    """A linear map from scalars to an energy, which keeps a layer's body order."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels))

    def forward(self, scalars: Tensor) -> Tensor:
        """Args: scalars [N, K]. Returns: [N]."""
        return scalars @ (self.weight / math.sqrt(len(self.weight)))


class MLPReadout(nn.Module):
    """K -> hidden -> SiLU -> 1 without biases: zero for an atom whose features are zero."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(channels, hidden))
        self.outer = nn.Parameter(torch.randn(hidden))

    def forward(self, scalars: Tensor) -> Tensor:
        """Args: scalars [N, K]. Returns: [N]."""
        hidden = scalars @ (self.inner / math.sqrt(len(self.inner)))
        return silu(hidden) @ (self.outer / math.sqrt(len(self.outer)))


class TwoLinearReadout(nn.Module):
    """K -> hidden -> 1, linear as a whole (NequIP): its shape changes how it is trained."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(channels, hidden))
        self.outer = nn.Parameter(torch.randn(hidden))

    def forward(self, scalars: Tensor) -> Tensor:
        """Args: scalars [N, K]. Returns: [N]."""
        inner = scalars @ (self.inner / math.sqrt(len(self.inner)))
        return inner @ (self.outer / math.sqrt(len(self.outer)))


class BiasedMLPReadout(nn.Module):
    """K -> hidden -> SiLU -> hidden -> SiLU -> 1; the second and third map have biases."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(channels, hidden))
        self.middle = nn.Parameter(torch.randn(hidden, hidden))
        self.middle_bias = nn.Parameter(torch.zeros(hidden))
        self.outer = nn.Parameter(torch.randn(hidden))
        self.outer_bias = nn.Parameter(torch.zeros(()))

    def forward(self, scalars: Tensor) -> Tensor:
        """Args: scalars [N, K]. Returns: [N]."""
        hidden = silu(scalars @ (self.inner / math.sqrt(len(self.inner))))
        hidden = silu(hidden @ (self.middle / math.sqrt(len(self.middle))) + self.middle_bias)
        return hidden @ (self.outer / math.sqrt(len(self.outer))) + self.outer_bias
