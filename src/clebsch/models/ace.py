"""Linear ACE: site energies that are linear in invariants of full channel coupling.

Drautz, Phys. Rev. B 99, 014104 (2019); Dusson et al., J. Comput. Phys. 454, 110946 (2022). With
couplings and coefficients folded into one number for each monomial, the energy of an atom is a
sparse polynomial in its one-particle basis A, one polynomial for each central species.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from clebsch.algebra import spherical_irreps
from clebsch.algebra.cluster import ClusterBasis, cluster_basis
from clebsch.errors import ConfigError
from clebsch.graph import AtomGraph
from clebsch.kernels.backend import Kernels
from clebsch.kernels.dispatch import load_backend
from clebsch.kernels.plan import convolution_plan
from clebsch.kernels.tree import PolynomialForest, polynomial_tree
from clebsch.models.ace_config import ACEConfig
from clebsch.models.network import Network
from clebsch.nn.couplings import FoldedCouplings
from clebsch.nn.pairwise import PairPolynomials


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

    one_radial: Tensor
    one_species: Tensor
    places: Tensor
    committee: Tensor

    def __init__(self, config: ACEConfig, species: Sequence[str], avg_num_neighbors: float) -> None:
        super().__init__()
        self.config = config
        self.kernels: Kernels = load_backend("reference")
        self.avg_num_neighbors = avg_num_neighbors
        self.n_readouts = 1
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
        scalars, harmonics = spherical_irreps(0), spherical_irreps(self.l_max)
        self.plan = convolution_plan(scalars, harmonics, harmonics)
        channels = np.arange(n_species * n_radial)  # (z, n), n fastest
        same_n = channels % n_radial == np.arange(n_radial)[:, None]
        same_z = channels // n_radial == np.arange(n_species)[:, None]
        per_path = np.repeat(same_n[:, None], self.l_max + 1, axis=1)
        places = _places(self.basis, n_radial, len(channels))
        self.register_buffer("one_radial", torch.tensor(per_path).float(), persistent=False)
        self.register_buffer("one_species", torch.tensor(same_z).float(), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)
        n_coefficients = sum(len(functions) for functions in self.functions)
        self.coefficients = nn.Parameter(torch.randn(n_coefficients) / self.basis.n_functions**0.5)
        self.register_buffer("committee", torch.zeros(config.committee, n_coefficients))

    def forward(self, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """Args: vectors [E, 3], Angstrom, in the network's dtype. Returns: [N, 1]."""
        variables = self.one_particle_basis(vectors, graph)
        return self._energies(variables, self.coefficients, graph)[:, None]

    def committee_energies(self, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """What ``forward`` gives for each draw of the committee, [n_draws, N]: see ``forward``."""
        variables = self.one_particle_basis(vectors, graph)
        return torch.stack([self._energies(variables, draw, graph) for draw in self.committee])

    def _energies(self, variables: Tensor, coefficients: Tensor, graph: AtomGraph) -> Tensor:
        """[N] of coefficients [P]."""
        terms = self.couplings(coefficients)
        return self.kernels.tree_polynomial(self.forest, variables, terms, graph.species)

    def one_particle_basis(self, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """A of the labels that are used.

        A[i, (z n l m)] = <n>^-1/2 sum over neighbours j of species z of R_n(r_ij) Y_lm(r_ij):
        a convolution of one-hot features with fixed path weights.

        Args:
            vectors: [E, 3], Angstrom.
            graph: the graph.

        Returns:
            [N, n_variables].
        """
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        radial = self.radial(lengths, graph) * self.avg_num_neighbors**-0.5
        harmonics = self.kernels.spherical_harmonics(vectors, self.l_max)
        nodes = self.one_species[graph.species][:, None, :]  # [N, 1, (z, n)]
        summed = self.kernels.convolve_radial(
            self.plan, radial, self.one_radial, harmonics, nodes, graph
        )
        return summed.flatten(1).index_select(1, self.places)

    def tabulate(self, spacing: float) -> None:
        """There are no radial networks, and nothing to replace."""

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


def _places(basis: ClusterBasis, n_radial: int, n_channels: int) -> np.ndarray:
    """[n_variables] int64: where each variable stands in [(l, m), (z, n)], flattened."""
    found = []
    for z, n, degree in basis.labels.tolist():
        components = np.arange(degree**2, (degree + 1) ** 2)
        found.append(components * n_channels + z * n_radial + n)
    return np.concatenate(found)
