"""MACE: higher-order equivariant message passing (Batatia et al., NeurIPS 2022, arXiv 2206.07697).

Equation numbers are the paper's. Irreps are those of spherical harmonics throughout: parity (-1)^l.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from clebsch.algebra import Irreps, spherical_irreps
from clebsch.graph import AtomGraph
from clebsch.kernels.backend import Kernels
from clebsch.kernels.dispatch import load_backend
from clebsch.kernels.plan import convolution_plan
from clebsch.models.config import MACEConfig
from clebsch.models.network import Network
from clebsch.nn.linear import IrrepsLinear, SpeciesLinear
from clebsch.nn.product import ProductBasis
from clebsch.nn.radial import (
    BesselBasis,
    EdgeGeometry,
    PolynomialEnvelope,
    RadialNetwork,
    RadialTable,
)
from clebsch.nn.readout import LinearReadout, MLPReadout


class AtomicBasis(nn.Module):
    """The one-particle basis A: equation 8, its linear map over paths and channels, 1 / <n>."""

    def __init__(
        self,
        node_irreps: Irreps,
        config: MACEConfig,
        avg_num_neighbors: float,
    ) -> None:
        super().__init__()
        harmonics = spherical_irreps(config.l_max)
        self.plan = convolution_plan(node_irreps, harmonics, harmonics)
        self.linear_up = IrrepsLinear(node_irreps, config.channels)
        self.radial: RadialNetwork | RadialTable = RadialNetwork(
            config.radial.n_basis, config.radial.hidden, self.plan.n_paths, config.channels
        )
        self.linear = IrrepsLinear(
            self.plan.out_irreps,
            config.channels,
            self.plan.paths_per_out,
            scale=1 / avg_num_neighbors,
        )

    def forward(self, nodes: Tensor, edges: EdgeGeometry, graph: AtomGraph) -> Tensor:
        """Args: nodes [N, H, K]. Returns: A, [N, Q, K]."""
        summed = self.radial.convolve(self.plan, edges, self.linear_up(nodes), graph)
        return self.linear(summed)


class MACELayer(nn.Module):
    """One layer: one-particle basis, product basis, update (equations 8 to 12)."""

    def __init__(
        self,
        node_irreps: Irreps,
        message_irreps: Irreps,
        config: MACEConfig,
        n_species: int,
        avg_num_neighbors: float,
        residual: bool,
    ) -> None:
        super().__init__()
        channels = config.channels
        self.atomic_basis = AtomicBasis(node_irreps, config, avg_num_neighbors)
        irreps = self.atomic_basis.plan.out_irreps
        self.product = ProductBasis(
            irreps,
            message_irreps,
            config.correlation,
            n_species,
            channels,
            config.couplings == "reduced",
        )
        self.linear = IrrepsLinear(message_irreps, channels)
        self.residual = residual
        self.species_linear = SpeciesLinear(
            node_irreps if residual else irreps,
            message_irreps if residual else irreps,
            n_species,
            channels,
        )

    def forward(self, nodes: Tensor, edges: EdgeGeometry, graph: AtomGraph) -> Tensor:
        """Args: nodes [N, H, K]. Returns: [N, O, K]."""
        atomic_basis = self.atomic_basis(nodes, edges, graph)
        if not self.residual:
            atomic_basis = self.species_linear(atomic_basis, graph.species)
        update = self.linear(self.product(atomic_basis, graph.species))
        if self.residual:
            update = update + self.species_linear(nodes, graph.species)
        return update


class MACE(Network):
    """The network: from edge vectors to one energy per atom and layer."""

    def __init__(self, config: MACEConfig, n_species: int, avg_num_neighbors: float) -> None:
        super().__init__()
        self.config = config
        self.kernels: Kernels = load_backend("reference")
        self.avg_num_neighbors = avg_num_neighbors
        self.embedding = nn.Parameter(torch.randn(n_species, config.channels))
        envelope = PolynomialEnvelope(config.cutoff, config.radial.envelope_exponent)
        self.radial_basis = BesselBasis(config.cutoff, config.radial.n_basis, envelope)
        layers: list[MACELayer] = []
        readouts: list[LinearReadout | MLPReadout] = []
        node_irreps = spherical_irreps(0)
        for t in range(config.layers):
            last = t == config.layers - 1
            messages = spherical_irreps(0 if last else config.message_l)
            residual = t > 0 or config.first_layer == "residual"
            layer = MACELayer(node_irreps, messages, config, n_species, avg_num_neighbors, residual)
            layers.append(layer)
            readout = (
                MLPReadout(config.channels, config.readout_hidden)
                if last
                else LinearReadout(config.channels)
            )
            readouts.append(readout)
            node_irreps = messages
        self.layers = nn.ModuleList(layers)
        self.readouts = nn.ModuleList(readouts)

    def forward(self, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """The readouts of equation 13, before scale and references.

        Args:
            vectors: [E, 3] edge vectors, Angstrom, in the network's dtype.
            graph: the graph.

        Returns:
            [N, T]: each layer's energy of each atom.
        """
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        harmonics = self.kernels.spherical_harmonics(vectors, self.config.l_max)
        edges = EdgeGeometry(lengths, self.radial_basis(lengths), harmonics)
        nodes = self.embedding[graph.species][:, None, :]  # h^0_(k 0 0), [N, 1, K]
        energies = []
        for layer, readout in zip(self.layers, self.readouts, strict=True):
            nodes = layer(nodes, edges, graph)
            energies.append(readout(nodes[:, 0]))
        return torch.stack(energies, dim=1)

    def tabulate(self, spacing: float) -> None:
        """Replace radial networks by tables; see ``RadialTable``."""
        for layer in self.layers:
            assert isinstance(layer, MACELayer)
            radial = layer.atomic_basis.radial
            if isinstance(radial, RadialNetwork):
                cutoff = self.config.cutoff
                layer.atomic_basis.radial = RadialTable(radial, self.radial_basis, cutoff, spacing)

    def decayed_parameters(self) -> Iterator[nn.Parameter]:
        """What the paper's recipe decays: the weights of equations 10 and 11 (appendix A.5.1)."""
        for layer in self.layers:
            assert isinstance(layer, MACELayer)
            yield from layer.atomic_basis.linear.parameters()
            yield layer.product.weights
