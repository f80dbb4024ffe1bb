"""What blocks that compute with a backend have in common."""

from __future__ import annotations

from torch import nn

from clebsch.kernels.backend import Kernels
from clebsch.kernels.dispatch import load_backend


class KernelModule(nn.Module):
    """A module that computes with a backend's kernels.

    Attributes:
        kernels: the reference's until others are installed (``Kernels.install``).
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Kernels = load_backend("reference")
