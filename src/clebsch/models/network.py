"""What every architecture offers to the rest of the package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn

from clebsch.graph import AtomGraph
from clebsch.models.section import RadialBasisConfig
from clebsch.nn.kernel_module import KernelModule
from clebsch.nn.linear import ChannelMap, IrrepsLinear, SpeciesLinear
from clebsch.nn.radial import (
    BernsteinBasis,
    BesselBasis,
    ChebyshevBasis,
    GaussianBasis,
    PolynomialEnvelope,
    RadialBasis,
    SmoothEnvelope,
)


class Network(KernelModule, ABC):
    """From edge vectors to one energy per atom and layer, before scale and references.

    Attributes:
        avg_num_neighbors: <n> of the training set, by which sums over neighbours are divided.
    """

    avg_num_neighbors: float

    @property
    @abstractmethod
    def hops(self) -> int:
        """How many edges away an atom's energy may depend on others."""

    @abstractmethod
    def forward(self, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """Args: vectors [E, 3], Angstrom, in the network's dtype. Returns: [N, layers read]."""

    @abstractmethod
    def tabulate(self, spacing: float) -> None:
        """Replace radial networks by tables that are faster and cannot be trained.

        Args:
            spacing: Angstrom between the distances of the tables.
        """

    def linear_maps(self) -> Iterator[nn.Parameter]:
        """Weights [..., inputs, outputs] of linear maps between features.

        Those of radial networks are not among them: they are functions of one number, which an
        optimiser for matrices makes rough.

        Yields:
            a parameter.
        """
        for module in self.modules():
            if isinstance(module, IrrepsLinear | SpeciesLinear | ChannelMap):
                yield from module.weights

    @abstractmethod
    def readout_parameters(self) -> Iterator[nn.Parameter]:
        """The weights that make energies of features."""

    @abstractmethod
    def decayed_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that the architecture's published recipe applies weight decay to."""


def radial_basis(
    config: RadialBasisConfig, cutoff: float, with_envelope: bool = True
) -> RadialBasis:
    """The radial basis of a configuration, which ends at ``cutoff`` (Angstrom)."""
    cut = envelope(config, cutoff) if with_envelope else None
    if config.basis == "bernstein":
        return BernsteinBasis(config.n_basis, cut)
    if config.basis == "gaussian":
        return GaussianBasis(cutoff, config.n_basis, cut)
    if config.basis == "chebyshev":
        return ChebyshevBasis(config.n_basis, cut)
    return BesselBasis(cutoff, config.n_basis, cut, config.trainable)


def envelope(config: RadialBasisConfig, cutoff: float) -> PolynomialEnvelope | SmoothEnvelope:
    """The envelope of a configuration, which ends at ``cutoff`` (Angstrom)."""
    if config.envelope == "smooth":
        return SmoothEnvelope(cutoff)
    return PolynomialEnvelope(cutoff, config.envelope_exponent)
