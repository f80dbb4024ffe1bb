"""Atoms by their species."""

from __future__ import annotations

import torch
from torch import Tensor


def by_species(species: Tensor, n_species: int) -> tuple[Tensor, Tensor]:
    """Atoms in the order of their species, and where each species begins, [n_species + 1]."""
    kinds, order = torch.sort(species, stable=True)
    bounds = torch.arange(n_species + 1, device=species.device)
    return order, torch.searchsorted(kinds, bounds)
