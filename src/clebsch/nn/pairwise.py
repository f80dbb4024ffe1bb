"""Fixed radial functions of linear ACE: polynomials of a distance that each pair of species scales.

Nothing here is learned; what a potential learns stands in its linear coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ase.data import atomic_numbers, covalent_radii
from torch import Tensor

from clebsch.graph import AtomGraph
from clebsch.nn.float64 import Float64Module
from clebsch.nn.radial import PolynomialEnvelope


class PairPolynomials(Float64Module):
    """R_n(r; z_i, z_j) = sqrt(2n + 1) P_n(x) f(r), n = 0..n_basis-1, P_n Legendre polynomials.

    x maps the distances from 0 to the cut-off onto 1 to -1, linearly in

        y(r) = 1 / (1 + 10/13 s^4 / (1 + s^2)),  s = r / r_0,

    the Agnesi transform of Witt et al. (J. Chem. Phys. 159, 164101, 2023) with p = 2 and q = 4. It
    is steepest at s = 1: r_0, the sum of the pair's covalent radii, is where the functions resolve
    most; within it, where no atoms are, they hardly change. f is a polynomial envelope, whose value
    and first two derivatives vanish at the cut-off.

    Args:
        species: element symbols.
        cutoff: Angstrom.
        n_basis: number of functions.
        envelope_exponent: p of the envelope.
    """

    scales: Tensor

    def __init__(
        self, species: Sequence[str], cutoff: float, n_basis: int, envelope_exponent: int
    ) -> None:
        super().__init__()
        self.n_basis = n_basis
        self.cutoff = cutoff
        self.envelope = PolynomialEnvelope(cutoff, envelope_exponent)
        numbers = [atomic_numbers[symbol] for symbol in species]
        radii = torch.tensor([float(covalent_radii[z]) for z in numbers], dtype=torch.float64)
        self.register_buffer("scales", radii[:, None] + radii, persistent=False)

    def forward(self, lengths: Tensor, graph: AtomGraph) -> Tensor:
        """Args: lengths [E], Angstrom. Returns: [E, n_basis], in the dtype of ``lengths``."""
        species = graph.species
        scales = self.scales[species[graph.receivers], species[graph.senders]].to(lengths.dtype)
        end = _agnesi(self.cutoff / scales)
        x = (2 * _agnesi(lengths / scales) - 1 - end) / (1 - end)
        envelope = self.envelope(lengths)
        before, current = torch.zeros_like(envelope), envelope
        values = []
        for n in range(self.n_basis):
            values.append((2 * n + 1) ** 0.5 * current)
            following = ((2 * n + 1) * x * current - n * before) / (n + 1)  # Bonnet's recursion
            before, current = current, following
        return torch.stack(values, dim=1)


def _agnesi(s: Tensor) -> Tensor:
    """y of ``PairPolynomials``; the factor makes its second derivative vanish at s = 1."""
    square = s.square()
    return 1 / (1 + 10 / 13 * square.square() / (1 + square))
