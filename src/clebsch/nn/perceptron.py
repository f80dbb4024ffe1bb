"""Perceptrons on scalars, without biases: they map zero to zero."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from clebsch.nn.kernel_module import KernelModule


class Perceptron(KernelModule):
    """Matrices with a nonlinearity between them.

    Weights start as standard normals and are divided by the square root of their fan-in when they
    are used, so that unit variance stays unit variance.

    Args:
        widths: of input, hidden layers and output.
        nonlinearity: between matrices: SiLU, or none.
        first_fan_in: what the squares of the inputs add up to; their number if None.
    """

    def __init__(
        self,
        widths: Sequence[int],
        nonlinearity: Literal["silu", "none"],
        first_fan_in: float | None = None,
    ) -> None:
        super().__init__()
        self.nonlinearity = nonlinearity
        self.fan_ins = [float(width) for width in widths[:-1]]
        if first_fan_in is not None:
            self.fan_ins[0] = first_fan_in
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(fan_in, fan_out))
            for fan_in, fan_out in itertools.pairwise(widths)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Args: inputs [E, first width]. Returns: [E, last width]."""
        hidden = inputs
        for place, (weight, fan_in) in enumerate(zip(self.weights, self.fan_ins, strict=True)):
            if place and self.nonlinearity == "silu":
                hidden = self.kernels.silu(hidden)
            hidden = hidden @ (weight / math.sqrt(fan_in))
        return hidden
