"""From the network's output to energies in eV: references, scale, mean energy, repulsive prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import ase.data
import torch
from torch import Tensor

from clebsch.graph import AtomGraph
from clebsch.kernels.reference import polynomial_envelope
from clebsch.nn.float64 import Float64Module
from clebsch.nn.kernel_module import KernelModule
from clebsch.nn.radial import PolynomialEnvelope

#: Coulomb constant e^2 / (4 pi eps0), eV Angstrom (CODATA 2018).
COULOMB = 14.399645478425668
#: Bohr radius, Angstrom (CODATA 2018).
BOHR = 0.529177210903
#: Coefficients and exponents of the universal screening function.
_ZBL = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))

MeanEnergyForm = Literal["none", "constant", "density"]


class EnergyHead(Float64Module, KernelModule):
    """Site energies in float64: reference + mean energy + scale x network.

    The mean interaction energy of the training set enters in one of three forms: not at all; as a
    constant per atom (the published MACE, where a lone atom then does not give its reference); or
    times a smooth function of the neighbour density, 1 - exp(-rho^2), that is 0 for a lone atom
    and within 1e-4 of 1 for atoms with four near neighbours. rho sums a polynomial envelope over
    neighbours.
    """

    references: Tensor
    scale: Tensor
    mean_energy: Tensor

    def __init__(
        self,
        references: Sequence[float],
        scale: float,
        mean_energy: float,
        form: MeanEnergyForm,
        cutoff: float,
    ) -> None:
        super().__init__()
        self.form = form
        self.envelope = PolynomialEnvelope(cutoff, 5)
        self.register_constants(
            stored=True, references=references, scale=scale, mean_energy=mean_energy
        )

    def forward(self, layer_energies: Tensor, lengths: Tensor, graph: AtomGraph) -> Tensor:
        """Equation 13 in eV.

        Args:
            layer_energies: [N, T], the network's readouts, in its own dtype and unit.
            lengths: [E] float64, Angstrom.
            graph: the graph.

        Returns:
            [N, 1 + T] float64: the reference and mean energy, then each layer's energy.
        """
        offset = self.references[graph.species]
        if self.form == "constant":
            offset = offset + self.mean_energy
        elif self.form == "density":
            density = self.kernels.segment_sum(self.envelope(lengths), graph.row_ptr)
            offset = offset - self.mean_energy * torch.expm1(-(density**2))
        return torch.cat([offset[:, None], self.scale * layer_energies.to(torch.float64)], dim=1)


def zbl_energy(lengths: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """The universal screened nuclear repulsion of Ziegler, Biersack and Littmark (1985), eV.

    k Z_1 Z_2 / r phi(r / a), a = 0.46850 Angstrom / (Z_1^0.23 + Z_2^0.23), elementwise of
    distances in Angstrom and nuclear charges in units of e.
    """
    reduced = lengths * (z1**0.23 + z2**0.23) / (0.88534 * BOHR)
    phi = sum(c * torch.exp(-exponent * reduced) for c, exponent in _ZBL)
    return COULOMB * z1 * z2 / lengths * phi


class ZBLRepulsion(Float64Module, KernelModule):
    """The ZBL repulsion (``zbl_energy``) times an envelope.

    The polynomial envelope (p = 6) ends at the sum of the covalent radii, where it would meet real
    bonds, or at the cut-off if that is shorter. Half of each pair's energy goes to each atom. It is
    in eV and never scaled by the network's scale.
    """

    numbers: Tensor
    radii: Tensor

    def __init__(self, numbers: Sequence[int], cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        radii = [float(ase.data.covalent_radii[z]) for z in numbers]
        self.register_constants(stored=False, numbers=[float(z) for z in numbers], radii=radii)

    def forward(self, lengths: Tensor, graph: AtomGraph) -> Tensor:
        """Args: lengths [E] float64, Angstrom. Returns: [N] float64, eV."""
        first, second = graph.species[graph.senders], graph.species[graph.receivers]
        z1, z2 = self.numbers[first], self.numbers[second]
        reach = (self.radii[first] + self.radii[second]).clamp(max=self.cutoff)
        energy = 0.5 * zbl_energy(lengths, z1, z2) * polynomial_envelope(lengths / reach, 6)
        return self.kernels.segment_sum(energy, graph.row_ptr)


class StoredZBLRepulsion(Float64Module, KernelModule):
    """The ZBL repulsion of mace-torch, with the constants of a model of it, times a scale.

    E_ij = s k Z_i Z_j / r phi(r / a), a = a_0 0.529 Angstrom / (Z_i^b + Z_j^b), times a polynomial
    envelope that ends at the sum of the covalent radii; beyond the cut-off there are no pairs. Half
    of each pair's energy goes to each atom. The scale s is the network's, which multiplies the
    repulsion too in mace-torch.
    """

    coefficients: Tensor
    screening: Tensor
    radii: Tensor
    scale: Tensor
    exponents: Tensor
    numbers: Tensor

    def __init__(self, numbers: Sequence[int], cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        radii = [float(ase.data.covalent_radii[z]) for z in numbers]
        self.register_constants(
            stored=True,
            coefficients=[0.1818, 0.5099, 0.2802, 0.02817],
            screening=[0.4543, 0.300, 6.0],  # a_0, b, exponent of the envelope
            radii=radii,
            scale=1.0,
        )
        self.register_constants(
            stored=False,
            exponents=[3.2, 0.9423, 0.4028, 0.2016],
            numbers=[float(z) for z in numbers],
        )

    def forward(self, lengths: Tensor, graph: AtomGraph) -> Tensor:
        """Args: lengths [E] float64, Angstrom. Returns: [N] float64, eV."""
        first, second = graph.species[graph.senders], graph.species[graph.receivers]
        z1, z2 = self.numbers[first], self.numbers[second]
        prefactor, power, exponent = self.screening.unbind()
        reduced = lengths * (z1**power + z2**power) / (prefactor * 0.529)
        phi = (self.coefficients * torch.exp(-self.exponents * reduced[:, None])).sum(1)
        t = lengths / (self.radii[first] + self.radii[second])
        energy = 0.5 * 14.3996 * self.scale * z1 * z2 / lengths * phi
        energy = energy * polynomial_envelope(t, exponent) * (lengths < self.cutoff)
        return self.kernels.segment_sum(energy, graph.row_ptr)
