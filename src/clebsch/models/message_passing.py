"""Equivariant message passing between atoms: MACE, NequIP, BOTNet, PACE and what lies between.

Equation numbers are those of MACE (Batatia et al., NeurIPS 2022, arXiv 2206.07697); the pages of
``docs/models`` say which blocks and settings make which published model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from clebsch.algebra import Irreps, all_irreps, spherical_irreps
from clebsch.errors import ConfigError
from clebsch.graph import AtomGraph
from clebsch.kernels.plan import ConvolutionPlan, contraction_plan, convolution_plan
from clebsch.models.config import MessagePassingConfig, ReadoutConfig
from clebsch.models.network import Network, envelope, radial_basis
from clebsch.nn.density import NeighborDensity
from clebsch.nn.gate import Gate, gates
from clebsch.nn.gated_basis import GatedAtomicBasis
from clebsch.nn.linear import IrrepsLinear, SpeciesLinear
from clebsch.nn.path_weights import (
    EdgeScalars,
    ElementLinear,
    PairAmplitudes,
    PairWeights,
    RadialNetwork,
    RadialTable,
)
from clebsch.nn.product import ProductBasis
from clebsch.nn.radial import EdgeGeometry, HardEnvelope
from clebsch.nn.readout import BiasedMLPReadout, LinearReadout, MLPReadout, TwoLinearReadout
from clebsch.nn.transform import DistanceTransform


class AtomicBasis(nn.Module):
    """The one-particle basis A: equation 8, its linear map over paths and channels, 1 / <n>.

    Args:
        node_irreps: of the senders' features.
        wanted: irreps of A; one that occurs several times is made several times.
        config: of the model.
        n_species: elements.
        avg_num_neighbors: <n>.
        first: whether this is the first layer.
    """

    def __init__(
        self,
        node_irreps: Irreps,
        wanted: Irreps,
        config: MessagePassingConfig,
        n_species: int,
        avg_num_neighbors: float,
        first: bool,
    ) -> None:
        super().__init__()
        interaction, channels = config.interaction, config.channels
        self.plan = convolution_plan(
            node_irreps,
            spherical_irreps(config.l_max),
            Irreps(dict.fromkeys(wanted)),
            summed=interaction.paths == "summed",
        )
        # Where path weights know the sender's element, its embedding would say nothing more.
        self.sends_ones = first and config.radial.weights == "pair"
        self.linear_up: nn.Module = nn.Identity()
        if interaction.linear_up and not self.sends_ones:
            self.linear_up = IrrepsLinear(node_irreps, channels)
        self.attention: EdgeScalars | None = None
        if interaction.attention is not None:
            self.attention = EdgeScalars(channels, interaction.attention)
        self.radial = _path_weights(config, self.plan, n_species, first)
        self.density: NeighborDensity | None = None
        if interaction.normalization == "density":
            self.density = NeighborDensity(config.radial.n_basis)
        scale = {"neighbors": 1 / avg_num_neighbors, "sqrt_neighbors": avg_num_neighbors**-0.5}.get(
            interaction.normalization, 1.0
        )
        self.linears = nn.ModuleList(
            IrrepsLinear(self.plan.out_irreps, channels, self.plan.copies, wanted, scale)
            for _ in range(config.product.n_slots if config.product else 1)
        )

    def forward(self, nodes: Tensor, edges: EdgeGeometry, graph: AtomGraph) -> tuple[Tensor, ...]:
        """Args: nodes [N, H, K]. Returns: A of each slot, [N, Q, K]."""
        sent = torch.ones_like(nodes) if self.sends_ones else self.linear_up(nodes)
        known = edges if self.attention is None else self.attention(nodes, edges, graph)
        summed = self.radial.convolve(self.plan, known, sent, graph)
        if self.density is not None:
            summed = summed / (1 + self.density(edges, graph))[:, None, None]
        return tuple(linear(summed) for linear in self.linears)


class Layer(nn.Module):
    """One layer: one-particle basis, product basis, update (equations 8 to 12).

    Attributes:
        irreps: of the features that it makes.
    """

    def __init__(
        self,
        node_irreps: Irreps,
        message_irreps: Irreps,
        config: MessagePassingConfig,
        n_species: int,
        avg_num_neighbors: float,
        first: bool,
    ) -> None:
        super().__init__()
        channels, update, product = config.channels, config.update, config.product
        self.residual = (update.first_layer if first else update.later_layers) == "residual"
        harmonics = spherical_irreps(config.l_max)
        coupled = all_irreps(config.l_max) if config.parity == "full" else harmonics
        basis_irreps = convolution_plan(node_irreps, harmonics, coupled).out_irreps
        plan = None
        if product is None:
            self.irreps = Irreps(irrep for irrep in message_irreps if irrep in basis_irreps)
        else:
            reduced = product.couplings == "reduced" and product.slots == "shared"
            plan = contraction_plan(basis_irreps, message_irreps, product.correlation, reduced)
            self.irreps = plan.targets
        updated = self.irreps
        if update.gate != "none":
            updated = Irreps([*self.irreps, *gates(self.irreps)])
        if product is None:  # then the sum over neighbours is the message
            basis_irreps = updated if self.residual else self.irreps
        self.atomic_basis: AtomicBasis | GatedAtomicBasis
        if config.interaction.gated is None:
            self.atomic_basis = AtomicBasis(
                node_irreps, basis_irreps, config, n_species, avg_num_neighbors, first
            )
        else:
            self.atomic_basis = _gated_basis(node_irreps, basis_irreps, config, n_species, first)
        self.product: ProductBasis | None = None
        if product is not None and plan is not None:
            n_tables = n_species if product.weights == "species" else 1
            self.product = ProductBasis(plan, n_tables, channels)
            self.linear = IrrepsLinear(self.irreps, channels, irreps_out=updated)
        self.species_linear: SpeciesLinear | None = None
        if not self.residual:
            mapped = basis_irreps if product is not None else updated
            self.species_linear = SpeciesLinear(basis_irreps, mapped, n_species, channels)
        elif update.self_connection != "none":
            n_maps = n_species if update.self_connection == "species" else 1
            self.species_linear = SpeciesLinear(node_irreps, updated, n_maps, channels)
        self.gate = nn.Identity() if update.gate == "none" else Gate(self.irreps, update.gate)

    def forward(self, nodes: Tensor, edges: EdgeGeometry, graph: AtomGraph) -> Tensor:
        """Args: nodes [N, H, K]. Returns: [N, O, K]."""
        slots = self.atomic_basis(nodes, edges, graph)
        if self.species_linear is not None and not self.residual:
            slots = tuple(self.species_linear(slot, graph.species) for slot in slots)
        if self.product is None:
            (message,) = slots
        else:
            message = self.linear(self.product(slots, graph.species))
        if self.species_linear is not None and self.residual:
            message = message + self.species_linear(nodes, graph.species)
        out: Tensor = self.gate(message)
        return out


class MessagePassing(Network):
    """The network: from edge vectors to one energy per atom and layer that is read."""

    def __init__(
        self, config: MessagePassingConfig, numbers: Sequence[int], avg_num_neighbors: float
    ) -> None:
        super().__init__()
        n_species = len(numbers)
        self.config = config
        self.avg_num_neighbors = avg_num_neighbors
        radial, channels = config.radial, config.channels
        self.embedding = nn.Parameter(torch.randn(n_species, channels))
        ends = radial.envelope_of == "basis"
        self.radial_basis = radial_basis(radial, config.cutoff, with_envelope=ends)
        self.envelope: nn.Module | None = None if ends else envelope(radial, config.cutoff)
        if ends and (config.interaction.gated or config.interaction.attention):
            # Path weights know more than the basis: beyond it they are not zero by themselves.
            self.envelope = HardEnvelope(config.cutoff)
        self.transform: DistanceTransform | None = None
        if radial.transform != "none":
            self.transform = DistanceTransform(radial.transform, numbers)
        self.amplitudes: PairAmplitudes | None = None
        if radial.weights == "pair":
            self.amplitudes = PairAmplitudes(
                radial.n_basis, radial.hidden, config.l_max, n_species, channels
            )
        layers: list[Layer] = []
        readouts: list[nn.Module] = []
        node_irreps = spherical_irreps(0)
        for t in range(config.layers):
            last = t == config.layers - 1
            only_scalars = last and config.update.last_layer == "scalars"
            messages = spherical_irreps(0) if only_scalars else config.messages
            layer = Layer(node_irreps, messages, config, n_species, avg_num_neighbors, t == 0)
            layers.append(layer)
            if last or config.readout.layers == "every":
                readouts.append(_readout(config.readout, channels, last))
            node_irreps = layer.irreps
        self.layers = nn.ModuleList(layers)
        self.readouts = nn.ModuleList(readouts)

    @property
    def hops(self) -> int:
        """Every layer hears of atoms one edge further away."""
        return len(self.layers)

    def forward(self, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """The readouts of equation 13, before scale and references.

        Args:
            vectors: [E, 3] edge vectors, Angstrom, in the network's dtype.
            graph: the graph.

        Returns:
            [N, readouts]: each layer's energy of each atom.
        """
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        harmonics = self.kernels.spherical_harmonics(vectors, self.config.l_max)
        transformed = None if self.transform is None else self.transform(lengths, graph)
        basis = self.radial_basis(lengths, transformed)
        amplitudes = None if self.amplitudes is None else self.amplitudes(basis, graph)
        ending = None if self.envelope is None else self.envelope(lengths)
        edges = EdgeGeometry(lengths, basis, harmonics, amplitudes, ending)
        nodes = self.kernels.rows(self.embedding, graph.species)[:, None]  # h^0_(k 0 0), [N, 1, K]
        scalars = []
        for layer in self.layers:
            nodes = layer(nodes, edges, graph)
            scalars.append(nodes[:, 0])
        read = scalars[-len(self.readouts) :]
        energies = [readout(x) for readout, x in zip(self.readouts, read, strict=True)]
        return torch.stack(energies, dim=1)

    def tabulate(self, spacing: float) -> None:
        """Replace radial networks by tables; see ``RadialTable``."""
        if self.config.radial.weights != "mlp":
            raise ConfigError(
                f"path weights of radial.weights={self.config.radial.weights} depend on elements "
                "and cannot be tabulated yet; those of radial.weights=mlp can"
            )
        interaction = self.config.interaction
        for setting, is_used in (
            ("radial.transform", self.transform is not None),
            ("interaction.gated", interaction.gated is not None),
            ("interaction.attention", interaction.attention is not None),
        ):
            if is_used:
                raise ConfigError(
                    f"path weights with {setting} depend on elements and cannot be tabulated yet"
                )
        for layer in self.layers:
            assert isinstance(layer, Layer)
            radial = layer.atomic_basis.radial
            assert isinstance(radial, RadialNetwork)
            layer.atomic_basis.radial = RadialTable(
                radial, self.radial_basis, self.config.cutoff, spacing, self.envelope
            )

    def readout_parameters(self) -> Iterator[nn.Parameter]:
        """The weights that make energies of features."""
        return self.readouts.parameters()

    def decayed_parameters(self) -> Iterator[nn.Parameter]:
        """What MACE's recipe decays: the weights of equations 10 and 11 (appendix A.5.1)."""
        for layer in self.layers:
            assert isinstance(layer, Layer)
            yield from layer.atomic_basis.linears.parameters()
            if layer.product is not None:
                yield layer.product.weights


def _gated_basis(
    node_irreps: Irreps,
    wanted: Irreps,
    config: MessagePassingConfig,
    n_species: int,
    first: bool,
) -> GatedAtomicBasis:
    gated, radial = config.interaction.gated, config.radial
    assert gated is not None
    return GatedAtomicBasis(
        convolution_plan(node_irreps, spherical_irreps(config.l_max), wanted),
        wanted,
        radial.n_basis,
        radial.hidden,
        gated.density_hidden,
        gated.embedding,
        n_species,
        config.channels,
        (gated.first_channels if first else gated.channels) or config.channels,
    )


def _path_weights(
    config: MessagePassingConfig, plan: ConvolutionPlan, n_species: int, first: bool
) -> RadialNetwork | RadialTable | ElementLinear | PairWeights:
    radial, channels = config.radial, config.channels
    if radial.weights == "element_linear":
        return ElementLinear(radial.n_basis, n_species, plan.n_paths, channels)
    if radial.weights == "pair":
        return PairWeights(radial.n_basis, radial.hidden, plan, n_species, channels, first)
    n_inputs = radial.n_basis + 2 * (config.interaction.attention or 0)
    return RadialNetwork(n_inputs, radial.hidden, plan.n_paths, channels)


def _readout(config: ReadoutConfig, channels: int, last: bool) -> nn.Module:
    kind = config.last if last else config.inner
    if kind == "linear":
        return LinearReadout(channels)
    if kind == "biased_mlp":
        return BiasedMLPReadout(channels, config.hidden)
    two = MLPReadout if kind == "mlp" else TwoLinearReadout
    return two(channels, config.hidden)
