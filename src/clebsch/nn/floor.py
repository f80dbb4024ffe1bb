"""Energies of atoms far below any in training: a floor under what a network makes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from clebsch.graph import AtomGraph
from clebsch.nn.float64 import Float64Module
from clebsch.nn.hold import held

#: How far below the lowest energy of training the floor begins to be felt, and how much further
#: down it is, eV.
BEGIN, WIDTH = 0.5, 0.5
#: A depth that is not known.
UNKNOWN = -1.0


class EnergyFloor(Float64Module):
    """No atom is bound much more strongly than any of its element in training.

    Where atoms are as they never were in training a network may find energies without end, and
    dynamics and relaxations fall for them. An atom's energy e, relative to its reference, that is
    below b becomes

        b - w x / (1 + x^4)^(1/4),  x = (b - e) / w,  b = -(depth + 0.5 eV),  w = 0.5 eV,

    which is above -(depth + 1 eV), so that no structure has less energy than its references less as
    much for every atom. It differs from e in the fifth order of x, and above b not at all.

    Attributes:
        depths: [S] float64: how far below its reference the energy of an atom came in training, eV;
            0 if never; ``UNKNOWN`` where that is not known, and there is no floor then.
    """

    depths: Tensor

    def __init__(self, n_species: int) -> None:
        super().__init__()
        unknown = torch.full((n_species,), UNKNOWN, dtype=torch.float64)
        self.register_buffer("depths", unknown)

    def forward(self, energies: Tensor, graph: AtomGraph) -> Tensor:
        """What is to be added to the energies of atoms relative to their references, [N], eV."""
        depths = self.depths[graph.species]
        held_energies = held(energies, -(depths + BEGIN), WIDTH)
        return torch.where(depths >= 0, held_energies - energies, 0.0)
