"""Linear ACE: site energies that are linear in invariants of full channel coupling.

Drautz, Phys. Rev. B 99, 014104 (2019); Dusson et al., J. Comput. Phys. 454, 110946 (2022). With
couplings and coefficients folded into one number for each monomial, the energy of an atom is a
sparse polynomial in its one-particle basis A, one polynomial for each central species.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from clebsch.algebra import Irreps, spherical_irreps
from clebsch.algebra.cluster import ClusterBasis, cluster_basis
from clebsch.errors import ConfigError
from clebsch.graph import AtomGraph
from clebsch.kernels.plan import convolution_plan
from clebsch.kernels.tree import PolynomialForest, polynomial_tree
from clebsch.models.ace_config import ACEConfig
from clebsch.models.network import Network
from clebsch.nn.couplings import FoldedCouplings
from clebsch.nn.kernel_module import KernelModule
from clebsch.nn.pairwise import PairPolynomials

#: Channels of single precision that fill two vectors of the widest kind.
CHANNEL_BLOCK = 32


class ACE(Network):
    """From edge vectors to one energy per atom.

    Raises:
        ConfigError: the limits of the degree leave a central species without functions.

    Attributes:
        basis: the invariants B of all central species.
        functions: for each central species, ascending numbers of the functions that it has.
        coefficients: [P], c of every central species and function, species by species.
        committee: [n_draws, P], draws from a fit's posterior minus its mean; zero before the fit.
        forest: the monomials of each central species.
    """

    places: Tensor
    committee: Tensor

    def __init__(self, config: ACEConfig, species: Sequence[str], avg_num_neighbors: float) -> None:
        super().__init__()
        self.config = config
        self.avg_num_neighbors = avg_num_neighbors
        limits = [config.max_degrees(element) for element in species]
        extra = tuple(config.neighbor_degree.get(element, 0.0) for element in species)
        for element, degrees in zip(species, limits, strict=True):
            if all(order * min(extra) > limit for order, limit in enumerate(degrees, start=1)):
                raise ConfigError(
                    f"the limits of the degree, {degrees}, leave no function for a central "
                    f"{element} atom: neighbor_degree is at least {min(extra):g} here"
                )
        built = _polynomials(tuple(limits), config.l_weight, extra, config.max_n)
        self.basis, self.functions, self.forest, couplings = built
        self.couplings = FoldedCouplings(*couplings, self.forest.n_terms)
        n_species, n_radial = len(species), int(self.basis.labels[:, 1].max()) + 1
        self.l_max = int(self.basis.labels[:, 2].max())
        self.radial = PairPolynomials(species, config.cutoff, n_radial, config.envelope_exponent)
        groups = _degree_groups(self.basis)
        self.sums = nn.ModuleList(_Sums(group, self.l_max, n_species) for group in groups)
        places = torch.tensor(_places(self.basis, groups))
        self.register_buffer("places", places, persistent=False)
        n_coefficients = sum(len(functions) for functions in self.functions)
        self.coefficients = nn.Parameter(torch.randn(n_coefficients) / self.basis.n_functions**0.5)
        self.register_buffer("committee", torch.zeros(config.committee, n_coefficients))

    @property
    def hops(self) -> int:
        """The basis of an atom sums over its own edges."""
        return 1

    def forward(self, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """Args: vectors [E, 3], Angstrom, in the network's dtype. Returns: [N, 1]."""
        variables = self.one_particle_basis(vectors, graph)
        return self._energies(variables, self.coefficients, graph)[:, None]

    def committee_energies(self, vectors: Tensor, graph: AtomGraph) -> list[Tensor]:
        """What ``forward`` gives for each draw of the committee, [N]: see ``forward``.

        They are no single tensor: through that, the derivative of one would be that of all.
        """
        variables = self.one_particle_basis(vectors, graph)
        return [self._energies(variables, draw, graph) for draw in self.committee]

    def _energies(self, variables: Tensor, coefficients: Tensor, graph: AtomGraph) -> Tensor:
        """[N] of coefficients [P]."""
        terms = self.couplings(coefficients)
        return self.kernels.tree_polynomial(self.forest, variables, terms, graph.species)

    def one_particle_basis(self, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """A of the labels that are used.

        A[i, (z n l m)] = <n>^-1/2 sum over neighbours j of species z of R_n(r_ij) Y_lm(r_ij):
        convolutions of one-hot features with fixed path weights.

        Args:
            vectors: [E, 3], Angstrom.
            graph: the graph.

        Returns:
            [N, n_variables].
        """
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        radial = self.radial(lengths, graph) * self.avg_num_neighbors**-0.5
        harmonics = self.kernels.spherical_harmonics(vectors, self.l_max)
        summed = [sums(radial, harmonics, graph).flatten(1) for sums in self.sums]
        return torch.cat(summed, dim=1).index_select(1, self.places)

    def tabulate(self, spacing: float) -> None:
        """There are no radial networks, and nothing to replace."""

    def readout_parameters(self) -> Iterator[nn.Parameter]:
        """All."""
        yield self.coefficients

    def decayed_parameters(self) -> Iterator[nn.Parameter]:
        """All: what regularisation there is in a fit, weight decay is in training by gradients."""
        yield self.coefficients


_Couplings = tuple[np.ndarray, np.ndarray, np.ndarray]  # coefficient, term and value of entries


@lru_cache(maxsize=16)
def _polynomials(
    limits: tuple[tuple[float, ...], ...],
    l_weight: float,
    neighbor_degrees: tuple[float, ...],
    max_n: tuple[int, ...] | None,
) -> tuple[ClusterBasis, list[np.ndarray], PolynomialForest, _Couplings]:
    """The basis of all central species, the functions and the tree of each, and its couplings."""
    highest = np.max(limits, axis=0).tolist()
    basis = cluster_basis(len(neighbor_degrees), highest, l_weight, neighbor_degrees, max_n)
    functions = [basis.up_to(degrees) for degrees in limits]
    trees, entries, n_coefficients, n_terms = [], [], 0, 0
    for own in functions:
        part = basis.subset(own)
        used, row = np.unique(part.rows, return_inverse=True)
        tree, monomials = polynomial_tree(part.monomials[used], part.n_variables)
        term_of = np.argsort(monomials)
        entries.append((n_coefficients + part.functions, n_terms + term_of[row], part.coefficients))
        trees.append(tree)
        n_coefficients += len(own)
        n_terms += tree.n_terms
    coefficients, terms, values = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    return basis, functions, PolynomialForest(tuple(trees)), (coefficients, terms, values)


@dataclass(frozen=True)
class _DegreeGroup:
    """Consecutive degrees, and the channels (z, n) that any of their labels has."""

    degrees: range
    channels: tuple[tuple[int, int], ...]


def _degree_groups(basis: ClusterBasis) -> list[_DegreeGroup]:
    """Degrees whose channels fill as many vectors: higher ones have fewer radial functions."""
    by_degree: dict[int, set[tuple[int, int]]] = {}
    for z, n, degree in basis.labels.tolist():
        by_degree.setdefault(degree, set()).add((z, n))
    channels = [by_degree.get(degree, set()) for degree in range(max(by_degree) + 1)]
    blocks = [-(-len(found) // CHANNEL_BLOCK) for found in channels]
    groups = []
    for _, members in itertools.groupby(range(len(channels)), key=blocks.__getitem__):
        degrees = list(members)
        found = set().union(*(channels[degree] for degree in degrees))
        if found:
            groups.append(_DegreeGroup(range(degrees[0], degrees[-1] + 1), tuple(sorted(found))))
    return groups


class _Sums(KernelModule):
    """Sums over neighbours of R_n Y_lm for the degrees and channels of a group."""

    one_radial: Tensor
    one_species: Tensor

    def __init__(self, group: _DegreeGroup, l_max: int, n_species: int) -> None:
        super().__init__()
        harmonics = spherical_irreps(l_max)
        wanted = Irreps(harmonics[degree] for degree in group.degrees)
        self.plan = convolution_plan(spherical_irreps(0), harmonics, wanted)
        z, n = np.array(group.channels).T
        self.n_radial = int(n.max()) + 1
        same_n = n == np.arange(self.n_radial)[:, None]
        per_path = np.repeat(same_n[:, None], len(group.degrees), axis=1)
        same_z = z == np.arange(n_species)[:, None]
        self.register_buffer("one_radial", torch.tensor(per_path).float(), persistent=False)
        self.register_buffer("one_species", torch.tensor(same_z).float(), persistent=False)

    def forward(self, radial: Tensor, harmonics: Tensor, graph: AtomGraph) -> Tensor:
        """Args: radial [E, n], harmonics [E, lm]. Returns: [N, (l, m), (z, n)]."""
        nodes = self.one_species[graph.species][:, None, :]  # [N, 1, (z, n)]
        own = radial[:, : self.n_radial].contiguous()
        return self.kernels.convolve_radial(
            self.plan, own, self.one_radial, harmonics, nodes, graph
        )


def _places(basis: ClusterBasis, groups: Sequence[_DegreeGroup]) -> np.ndarray:
    """[n_variables] int64: where each variable stands among the sums of all groups, flattened."""
    start, first = {}, 0
    for group in groups:
        for degree in group.degrees:
            start[degree] = first, {channel: k for k, channel in enumerate(group.channels)}
            first += (2 * degree + 1) * len(group.channels)
    found = []
    for z, n, degree in basis.labels.tolist():
        offset, channels = start[degree]
        found.append(offset + np.arange(2 * degree + 1) * len(channels) + channels[z, n])
    return np.concatenate(found)
