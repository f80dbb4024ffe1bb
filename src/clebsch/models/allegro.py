"""Allegro: strictly local equivariant representations of edges (Musaelian, Batzner et al., Nature
Communications 14, 579, 2023).

Every ordered pair ij of a centre i and a neighbour j has latents x^ij (scalars) and tensors V^ij
(all irreps, K channels). They meet the other neighbours of the centre, and nothing else: an edge's
environment is that of its receiver, and no atom sees beyond the cut-off whatever the number of
layers. Equations are numbered as in docs/models/allegro.md. Latents of all edges come from
perceptrons without biases and end smoothly at the cut-off, where the envelope u multiplies them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from clebsch.algebra import SCALAR, Irrep, Irreps, spherical_irreps
from clebsch.errors import ClebschError
from clebsch.graph import AtomGraph
from clebsch.kernels.plan import convolution_plan
from clebsch.models.allegro_config import AllegroConfig
from clebsch.models.network import Network, envelope, radial_basis
from clebsch.nn.kernel_module import KernelModule
from clebsch.nn.linear import IrrepsLinear
from clebsch.nn.path_weights import pair_of_edge
from clebsch.nn.perceptron import Perceptron

#: Standard deviation of the last readout matrix's initial weights.
#:
#: An edge's neighbours are much alike, so that sums over them add up rather than cancel, and
#: products do so again: from weights of 1 energies would start ten times too large. On
#: acetylacetone (allegro_small, five epochs) the force RMSE of validation was 60.0 meV/Angstrom
#: with it, 60.8 without, after a first epoch of 201 and 289 (one run each).
READOUT_SCALE = 0.1


def edge_irreps(l_max: int, parity: str, layers: int) -> list[Irreps]:
    """Irreps of the tensors before each layer: what the energy can come from.

    The first are those of spherical harmonics. Later ones are products with harmonics (of
    parities that ``parity`` allows) out of which the remaining layers can still make a scalar.
    Scalars come first.

    Args:
        l_max: highest degree.
        parity: "natural" or "full".
        layers: products with harmonics.
    """
    harmonics = spherical_irreps(l_max)
    allowed = [Irrep(degree, sign) for degree in range(l_max + 1) for sign in (-1, 1)]
    if parity == "natural":
        allowed = list(harmonics)
    reached = [set(harmonics)]
    for _ in range(layers - 1):
        products = {p for irrep in reached[-1] for y in harmonics for p in irrep * y}
        reached.append(products & set(allowed))
    useful = {SCALAR}
    for irreps in reversed(reached):
        irreps &= {i for i in irreps if any(p in useful for y in harmonics for p in i * y)}
        useful = irreps
    return [
        Irreps(sorted(irreps, key=lambda irrep: (irrep != SCALAR, irrep))) for irreps in reached
    ]


class TwoBodyLatents(nn.Module):
    """Equation 1: latents of a pair from both elements and the distance."""

    def __init__(self, config: AllegroConfig, n_species: int) -> None:
        super().__init__()
        self.n_species = n_species
        radial = config.radial
        self.basis = radial_basis(radial, config.cutoff)
        self.envelope = envelope(radial, config.cutoff)
        # Of the first matrix's inputs two are 1 and the others 0, but for the radial basis.
        widths = [2 * n_species + radial.n_basis, *config.two_body_hidden, config.latent]
        self.perceptron = Perceptron(widths, "silu", first_fan_in=2.0)

    def forward(self, lengths: Tensor, graph: AtomGraph) -> tuple[Tensor, Tensor]:
        """Args: lengths [E], Angstrom. Returns: x [E, F] and the envelope u [E, 1]."""
        kinds = torch.arange(self.n_species, device=lengths.device)
        onehot = (graph.species[:, None] == kinds).to(lengths.dtype)
        ending = self.envelope(lengths)[:, None]
        inputs = [onehot[graph.receivers], onehot[graph.senders], self.basis(lengths)]
        return self.perceptron(torch.cat(inputs, dim=1)) * ending, ending


class HarmonicWeights(nn.Module):
    """One matrix from latents to a weight for each degree and channel."""

    def __init__(self, latent: int, l_max: int, channels: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(latent, (l_max + 1) * channels))
        self.degrees = l_max + 1

    def forward(self, latents: Tensor) -> Tensor:
        """Args: latents [E, F]. Returns: [E, l_max + 1, K]."""
        weight = self.weight * (self.scale / math.sqrt(len(self.weight)))
        return (latents @ weight).unflatten(1, (self.degrees, -1))


class AllegroLayer(KernelModule):
    """One layer: environment, products, latents, linear map of the tensors.

    Products that are scalars are made apart from the others: latents take them as they are.
    """

    def __init__(
        self, irreps: Irreps, targets: Irreps, config: AllegroConfig, avg_num_neighbors: float
    ) -> None:
        super().__init__()
        self.mixing = config.mixing
        harmonics = spherical_irreps(config.l_max)
        scale = 1 / math.sqrt(avg_num_neighbors)
        self.weights = HarmonicWeights(config.latent, config.l_max, config.channels, scale)
        self.summing = convolution_plan(spherical_irreps(0), harmonics, harmonics)
        self.to_scalars = convolution_plan(irreps, harmonics, Irreps([SCALAR]))
        n_scalars = self.to_scalars.n_paths
        self.perceptron = Perceptron(
            [config.latent + n_scalars * config.channels, *config.latent_hidden, config.latent],
            config.latent_nonlinearity,
        )
        self.tensor_maps: TensorMaps | None = None
        if targets:
            self.tensor_maps = TensorMaps(irreps, targets, n_scalars, config)

    def forward(
        self,
        latents: Tensor,
        tensors: Tensor,
        harmonics: Tensor,
        envelope: Tensor,
        graph: AtomGraph,
    ) -> tuple[Tensor, Tensor]:
        """Args: latents [E, F], tensors [E, H, K]. Returns: [E, F] and [E, O, K]."""
        ones = tensors.new_ones((graph.n_atoms, 1, tensors.shape[2]))
        weights = self.weights(latents)  # w_nl(x^ik)
        environment = self.kernels.convolve(self.summing, weights, harmonics, ones, graph)  # (3)
        scalars = self.kernels.edge_product(self.to_scalars, tensors, environment, graph)  # (4)
        inputs = torch.cat([latents, scalars.flatten(1)], dim=1)
        new = self.perceptron(inputs) * envelope  # (5)
        mixed = (latents + self.mixing * new) / math.sqrt(1 + self.mixing**2)  # (6)
        if self.tensor_maps is not None:
            tensors = self.tensor_maps(tensors, environment, scalars, graph)
        return mixed, tensors


class TensorMaps(KernelModule):
    """Equations 4 and 7 for what is not scalar: products, and linear maps over paths and channels.

    The last layer has none: nobody asks for its tensors.
    """

    def __init__(
        self, irreps: Irreps, targets: Irreps, n_scalars: int, config: AllegroConfig
    ) -> None:
        super().__init__()
        channels = config.channels
        self.scalars = IrrepsLinear(Irreps([SCALAR]), channels, (n_scalars,))
        self.plan = convolution_plan(irreps, spherical_irreps(config.l_max), targets[1:])
        self.others: IrrepsLinear | None = None
        if self.plan.n_paths:
            copies = self.plan.paths_per_out
            self.others = IrrepsLinear(self.plan.out_irreps, channels, copies)

    def forward(
        self, tensors: Tensor, environment: Tensor, scalars: Tensor, graph: AtomGraph
    ) -> Tensor:
        """Args: tensors [E, H, K], environment [N, S, K], scalars [E, P, K]. Returns: [E, O, K]."""
        mapped: Tensor = self.scalars(scalars)
        if self.others is None:
            return mapped
        products = self.kernels.edge_product(self.plan, tensors, environment, graph)  # (4)
        return torch.cat([mapped, self.others(products)], dim=1)  # (7)


class Allegro(Network):
    """The network: from edge vectors to one energy per atom."""

    def __init__(self, config: AllegroConfig, n_species: int, avg_num_neighbors: float) -> None:
        super().__init__()
        self.config = config
        self.avg_num_neighbors = avg_num_neighbors
        self.two_body = TwoBodyLatents(config, n_species)
        self.weights = HarmonicWeights(config.latent, config.l_max, config.channels)
        irreps = edge_irreps(config.l_max, config.parity, config.layers)
        self.layers = nn.ModuleList(
            AllegroLayer(before, after, config, avg_num_neighbors)
            for before, after in itertools.pairwise([*irreps, Irreps([])])
        )
        self.readout = Perceptron([config.latent, config.readout_hidden, 1], "none")
        with torch.no_grad():
            self.readout.weights[-1] *= READOUT_SCALE
        self.pair_scale = nn.Parameter(torch.ones(n_species, n_species))

    @property
    def hops(self) -> int:
        """An edge meets those of the same receiver alone, whatever the number of layers."""
        return 1

    def forward(self, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """The energies of equation 9, before scale and references.

        Args:
            vectors: [E, 3] edge vectors, Angstrom, in the network's dtype.
            graph: the graph.

        Returns:
            [N, 1]: the energy of each atom.
        """
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        harmonics = self.kernels.spherical_harmonics(vectors, self.config.l_max)
        latents, envelope = self.two_body(lengths, graph)  # (1)
        tensors = _times_harmonics(self.weights(latents), harmonics)  # (2)
        for layer in self.layers:
            latents, tensors = layer(latents, tensors, harmonics, envelope, graph)
        pair = pair_of_edge(graph, len(self.pair_scale))
        scale = self.kernels.rows(self.pair_scale.flatten(), pair)
        energies = self.readout(latents) * scale[:, None]  # (8)
        summed = self.kernels.segment_sum(energies, graph.row_ptr)
        return summed / math.sqrt(self.avg_num_neighbors)  # (9)

    def tabulate(self, spacing: float) -> None:
        """Refuse: nothing here is a function of the distance alone.

        Raises:
            ClebschError: always.
        """
        raise ClebschError(
            "an Allegro model cannot be tabulated: its weights depend on elements and on the "
            "environment, not on the distance alone"
        )

    def linear_maps(self) -> Iterator[nn.Parameter]:
        """Those of tensors, of latents and from latents to weights of harmonics.

        The two-body perceptron is a function of one number for each pair of elements.
        """
        yield from super().linear_maps()
        yield self.weights.weight
        for layer in self.layers:
            assert isinstance(layer, AllegroLayer)
            yield layer.weights.weight
            yield from layer.perceptron.weights

    def readout_parameters(self) -> Iterator[nn.Parameter]:
        """The weights that make energies of latent features, and the scale of pairs."""
        yield from self.readout.parameters()
        yield self.pair_scale

    def decayed_parameters(self) -> Iterator[nn.Parameter]:
        """None: the paper trains with Adam and no weight decay."""
        yield from ()


def _times_harmonics(weights: Tensor, harmonics: Tensor) -> Tensor:
    """w_nl Y_lm: weights [E, l_max + 1, K] and harmonics [E, S] give [E, S, K]."""
    dims: Sequence[int] = [2 * degree + 1 for degree in range(weights.shape[1])]
    parts = zip(harmonics.split(dims, dim=1), weights.unbind(1), strict=True)
    return torch.cat([y[:, :, None] * w[:, None, :] for y, w in parts], dim=1)
