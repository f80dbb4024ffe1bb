"""Path weights: the radial functions of a convolution, and what they are made of.

Each kind offers ``convolve``, the sum over neighbours with its path weights, because the fast way
to it differs: what is linear in few numbers of an edge is multiplied out inside the convolution.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clebsch.algebra import spherical_harmonics, spherical_irreps
from clebsch.graph import AtomGraph
from clebsch.kernels.dispatch import load_backend
from clebsch.kernels.plan import ConvolutionPlan, convolution_plan
from clebsch.nn.kernel_module import KernelModule
from clebsch.nn.radial import EdgeGeometry

#: Standard deviation of a radial network's initial weights after its first layer.
#:
#: Values of the radial basis are about 0.2 at the distances of neighbours, where SiLU is nearly
#: linear. From weights of 1, path weights would start at 0.14 and the one-particle basis at 0.04 in
#: the first layer and 0.001 in the second (mace_small on acetylacetone): products of three would
#: not count. Chosen by trial: there, after 2700 steps of Muon on all matrices, the force RMSE of
#: validation was 12.9 meV/Angstrom, and 15.7 without (one run each).
INITIAL_SCALE = 1.6765


class RadialNetwork(KernelModule):
    """The multilayer perceptron from radial basis to path weights, R of equation 8, without biases.

    Without biases and with SiLU(0) = 0 the path weights inherit the envelope's smooth end at the
    cut-off. The last layer is kept apart as ``last_weight``, for the convolution to apply: path
    weights are then made block by block.
    """

    def __init__(self, n_basis: int, hidden: Sequence[int], n_paths: int, channels: int) -> None:
        super().__init__()
        widths = [n_basis, *hidden]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(fan_in, fan_out) * (INITIAL_SCALE if layer else 1.0))
            for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(widths))
        )
        self.last = nn.Parameter(INITIAL_SCALE * torch.randn(widths[-1], n_paths, channels))

    def forward(self, basis: Tensor) -> Tensor:
        """Args: basis [E, n_basis]. Returns: the last hidden layer, [E, width]."""
        hidden = basis
        for weight in self.weights:
            hidden = self.kernels.silu(hidden @ (weight / math.sqrt(len(weight))))
        return hidden

    def convolve(
        self, plan: ConvolutionPlan, edges: EdgeGeometry, nodes: Tensor, graph: AtomGraph
    ) -> Tensor:
        """The convolution of equation 8 with these path weights: [N, C, K]."""
        hidden = self(edges.basis)
        if edges.envelope is not None:
            hidden = hidden * edges.envelope[:, None]  # the last layer is linear
        return self.kernels.convolve_radial(
            plan, hidden, self.last_weight, edges.harmonics, nodes, graph
        )

    def path_weights(self, basis: Tensor) -> Tensor:
        """Args: basis [E, n_basis]. Returns: [E, n_paths, channels]."""
        weight = self.last_weight
        return (self(basis) @ weight.flatten(1)).unflatten(1, weight.shape[1:])

    @property
    def last_weight(self) -> Tensor:
        """[hidden[-1], n_paths, channels], normalised by its fan-in."""
        return self.last / math.sqrt(len(self.last))


class EdgeScalars(KernelModule):
    """What path weights know of an edge's atoms: a linear map of the scalars of both.

    Equation as mace-torch's attention blocks compute it, no paper; s sends, r receives:

        x_e = [R(r_e), W h_s, W h_r]

    Path weights of x_e do not end at the cut-off by themselves as those of R do.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, width))

    def forward(self, nodes: Tensor, edges: EdgeGeometry, graph: AtomGraph) -> EdgeGeometry:
        """Args: nodes [N, H, K], scalars first. Returns: edges with x_e as their basis."""
        made = nodes[:, 0] @ (self.weight / math.sqrt(len(self.weight)))
        kernels = self.kernels
        of_atoms = [kernels.from_senders(made, graph), kernels.from_receivers(made, graph)]
        return edges._replace(basis=torch.cat([edges.basis, *of_atoms], dim=1))


class ElementLinear(KernelModule):
    """Path weights linear in the radial basis, with a matrix for each element of the sender.

    As in BOTNet (Batatia et al. 2022, arXiv 2205.06643): nothing but a sum over neighbours is left
    of the layer, and so its body order is known.
    """

    species: Tensor

    def __init__(self, n_basis: int, n_species: int, n_paths: int, channels: int) -> None:
        super().__init__()
        self.last = nn.Parameter(INITIAL_SCALE * torch.randn(n_species, n_basis, n_paths, channels))
        self.register_buffer("species", torch.eye(n_species), persistent=False)

    def convolve(
        self, plan: ConvolutionPlan, edges: EdgeGeometry, nodes: Tensor, graph: AtomGraph
    ) -> Tensor:
        """The convolution of equation 8 with these path weights: [N, C, K]."""
        is_species = self.species[graph.species[graph.senders]]
        hidden = (is_species[:, :, None] * edges.basis[:, None, :]).flatten(1)
        weight = self.last.flatten(0, 1) / math.sqrt(self.last.shape[1])
        return self.kernels.convolve_radial(plan, hidden, weight, edges.harmonics, nodes, graph)


class PairAmplitudes(KernelModule):
    """PACE's edge booster: radial functions of each degree for every pair of elements.

    PACE (Xu et al. 2024, arXiv 2411.04219) gives half of the channels of an edge
    psi0_l = u w_l(r) Y_l, where u belongs to the pair of elements, and the other half psi1, a
    tensor product of psi0 with the harmonics of the same edge: psi1_l3 = the sum over paths of
    (w'_path(r) + w''_path(pair)) psi0_l1 x Y_l2. Harmonics of one direction couple to
    harmonics, Y_l1 x Y_l2 -> g Y_l3, so that both halves are amplitudes times Y_l, and no tensor
    product needs to be computed.
    """

    pairs: Tensor
    mixing: Tensor

    def __init__(
        self, n_basis: int, hidden: Sequence[int], l_max: int, n_species: int, channels: int
    ) -> None:
        super().__init__()
        half = channels // 2
        self.register_buffer("pairs", pair_features(n_species), persistent=False)
        self.inner = nn.Parameter(torch.randn(2 * n_species, half))
        self.norm = nn.LayerNorm(half)
        self.outer = nn.Parameter(torch.randn(half, half))
        self.plan = boost_plan(l_max)
        self.register_buffer("mixing", _boost_mixing(self.plan), persistent=False)
        self.radial = RadialNetwork(n_basis, hidden, l_max + 1, half)
        self.boost = RadialNetwork(n_basis, hidden, self.plan.n_paths, half)
        self.boost_of_pair = RadialNetwork(2 * n_species, hidden, self.plan.n_paths, half)

    def forward(self, basis: Tensor, graph: AtomGraph) -> Tensor:
        """Args: basis [E, n_basis]. Returns: [E, l_max + 1, K]."""
        pair = pair_of_edge(graph, math.isqrt(len(self.pairs)))
        inner = self.norm(self.pairs @ (self.inner / math.sqrt(len(self.inner))))
        embedded = self.kernels.silu(inner) @ (self.outer / math.sqrt(len(self.outer)))
        of_pair = self.kernels.rows(self.boost_of_pair.path_weights(self.pairs), pair)
        plain = self.kernels.rows(embedded, pair)[:, None, :] * self.radial.path_weights(basis)
        weights = self.boost.path_weights(basis) + of_pair
        sources = _columns(plain, [path.node for path in self.plan.paths])
        boosted = self.mixing @ (weights * sources)
        return torch.cat([plain, boosted], dim=2)


class PairWeights(KernelModule):
    """Path weights of PACE: a network of the distance plus one of the pair of elements, times the
    pair's amplitude of the path's harmonic; in the first layer the amplitude alone.
    """

    pairs: Tensor

    def __init__(
        self,
        n_basis: int,
        hidden: Sequence[int],
        plan: ConvolutionPlan,
        n_species: int,
        channels: int,
        first: bool,
    ) -> None:
        super().__init__()
        self.of_distance: RadialNetwork | None = None
        if not first:
            self.of_distance = RadialNetwork(n_basis, hidden, plan.n_paths, channels)
            self.of_pair = RadialNetwork(2 * n_species, hidden, plan.n_paths, channels)
        self.register_buffer("pairs", pair_features(n_species), persistent=False)

    def convolve(
        self, plan: ConvolutionPlan, edges: EdgeGeometry, nodes: Tensor, graph: AtomGraph
    ) -> Tensor:
        """The convolution of equation 8 with these path weights: [N, C, K]."""
        assert edges.amplitudes is not None
        weights = _columns(edges.amplitudes, [path.harmonic for path in plan.paths])
        if self.of_distance is not None:
            pair = pair_of_edge(graph, math.isqrt(len(self.pairs)))
            of_pair = self.kernels.rows(self.of_pair.path_weights(self.pairs), pair)
            weights = weights * (self.of_distance.path_weights(edges.basis) + of_pair)
        return self.kernels.convolve(plan, weights, edges.harmonics, nodes, graph)


def pair_features(n_species: int) -> Tensor:
    """[n_species^2, 2 n_species]: which element sends and which receives, for every pair."""
    eye = torch.eye(n_species)
    return torch.cat([eye.repeat(n_species, 1), eye.repeat_interleave(n_species, dim=0)], dim=1)


def pair_of_edge(graph: AtomGraph, n_species: int) -> Tensor:
    """[E] int64: rows of ``pair_features``."""
    return graph.species[graph.receivers] * n_species + graph.species[graph.senders]


def boost_plan(l_max: int) -> ConvolutionPlan:
    """The paths of the edge booster: harmonics times harmonics of the same edge."""
    irreps = spherical_irreps(l_max)
    return convolution_plan(irreps, irreps, irreps, summed=True)


def _boost_mixing(plan: ConvolutionPlan) -> Tensor:
    """[l_max + 1, paths]: g of every path, at the row of the irrep that it ends in."""
    direction = torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64)
    harmonics = spherical_harmonics(direction, plan.out_irreps.l_max).numpy()
    of_degree = [harmonics[part] for part in plan.out_irreps.slices]
    mixing = torch.zeros(len(plan.out_irreps), plan.n_paths, dtype=torch.float64)
    for index, path in enumerate(plan.paths):
        edge, node, out = of_degree[path.harmonic], of_degree[path.node], of_degree[path.out]
        coupled = (edge[:, None, None] * node[None, :, None] * plan.coefficients(path)).sum((0, 1))
        mixing[path.out, index] = float(coupled @ out) / len(out)  # |Y_l|^2 = 2l + 1
    return mixing


class RadialTable(KernelModule):
    """Path weights as a table: cubic Hermite splines of the distance, values and slopes exact.

    It computes what a radial network computed when the table was made; it is for inference.

    Args:
        network: the radial network.
        basis: radial basis that it is evaluated with.
        cutoff: Angstrom, where path weights end at zero.
        spacing: Angstrom between distances of the table.
        envelope: what path weights are multiplied by, where the basis has none.
    """

    table: Tensor

    def __init__(
        self,
        network: RadialNetwork,
        basis: nn.Module,
        cutoff: float,
        spacing: float,
        envelope: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.kernels = network.kernels
        n_intervals = math.ceil(cutoff / spacing)
        self.per_angstrom = n_intervals / cutoff
        double, double_basis = copy.deepcopy(network).double(), copy.deepcopy(basis).double()
        for module in (double, double_basis):
            load_backend("reference").install(module)
        device = network.last.device
        lengths = torch.linspace(0, cutoff, n_intervals + 1, dtype=torch.float64, device=device)
        lengths[0] = 1e-6  # the basis at 0 is a limit

        def hidden(lengths: Tensor) -> Tensor:
            out: Tensor = double(double_basis(lengths))
            return out if envelope is None else out * envelope(lengths)[:, None]

        # Two reverse passes: torch's forward mode warns of parts of torch that it loads.
        ones = torch.ones_like(lengths)
        pair = torch.autograd.functional.jvp(hidden, lengths, ones)
        values, slopes = (part.detach() @ double.last_weight.detach().flatten(1) for part in pair)
        knots = torch.stack([values, slopes / self.per_angstrom], dim=1)
        shaped = knots.unflatten(2, network.last.shape[1:])
        self.register_buffer("table", shaped.to(network.last.dtype))  # [n_knots, 2, P, K]

    def convolve(
        self, plan: ConvolutionPlan, edges: EdgeGeometry, nodes: Tensor, graph: AtomGraph
    ) -> Tensor:
        """The convolution of equation 8 with these path weights: [N, C, K]."""
        # Just inside the last interval, beyond which nothing changes.
        most = (len(self.table) - 1) * (1 - 1e-6)
        places = (edges.lengths * self.per_angstrom).clamp(max=most)
        return self.kernels.convolve_table(plan, places, self.table, edges.harmonics, nodes, graph)


def _columns(values: Tensor, places: Sequence[int]) -> Tensor:
    """``values[:, places]``, [E, places, ...], whose derivative adds in one order."""
    columns = values.unbind(1)
    return torch.stack([columns[place] for place in places], dim=1)
