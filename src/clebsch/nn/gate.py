"""The gate: a nonlinearity that keeps equivariance."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from clebsch.algebra import SCALAR, Irreps
from clebsch.nn.kernel_module import KernelModule

#: Makes tanh keep the second moment of a standard normal input: 1 / sqrt(E[tanh(x)^2]).
TANH_GAIN = 1.592537419722831


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent, times what keeps the second moment of a standard normal input."""
    return TANH_GAIN * torch.tanh(x)


def gates(irreps: Irreps) -> Irreps:
    """The scalars that gate features of these irreps: one for every irrep that is no scalar."""
    return Irreps(SCALAR for irrep in irreps if irrep.l > 0)


class Gate(KernelModule):
    """Scalars through a nonlinearity, everything else times a scalar that went through it.

    Even scalars have SiLU or tanh, odd ones tanh (which is odd, as they are); features of higher
    degree are multiplied by the same nonlinearity of even scalars made for that (NequIP, Batzner et
    al. 2022, equation 6; Weiler et al. 2018). With ``silu_sigmoid`` the logistic function makes
    gates, and SiLU scalars.
    """

    def __init__(self, irreps: Irreps, activation: Literal["silu", "tanh", "silu_sigmoid"]) -> None:
        super().__init__()
        self.irreps = irreps
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        """Args: features [N, irreps.dim + gates, K]. Returns: [N, irreps.dim, K]."""
        activate = tanh if self.activation == "tanh" else self.kernels.silu
        opening = torch.sigmoid if self.activation == "silu_sigmoid" else activate
        *blocks, scalars = features.split(
            [*(irrep.dim for irrep in self.irreps), len(gates(self.irreps))], dim=1
        )
        gate = iter(opening(scalars).split(1, dim=1)) if scalars.shape[1] else iter(())
        parts = []
        for irrep, block in zip(self.irreps, blocks, strict=True):
            if irrep.l:
                parts.append(block * next(gate))
            else:
                parts.append(activate(block) if irrep == SCALAR else tanh(block))
        return torch.cat(parts, dim=1)
