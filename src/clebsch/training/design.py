"""The design matrix of linear ACE: derivatives of energies, forces and virials by coefficients.

For a central atom i, dB_p/dr_ij = sum over variables v of (dB_p/dA_v) (dA_v/dr_ij), where v runs
over the channels of j's species alone. dB/dA is sparse: its entries are linear in products of one
factor fewer, which are computed for all atoms of a structure at once; each atom then costs one
sparse product for every species among its neighbours. All of it in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from clebsch.algebra import spherical_harmonics
from clebsch.algebra.cluster import ClusterBasis
from clebsch.graph import AtomGraph, edge_vectors
from clebsch.models.ace import ACE


class Design:
    """Design matrices of structures for one network.

    Attributes:
        n_columns: coefficients of all central species.
    """

    def __init__(self, network: ACE) -> None:
        self.network = network
        basis = network.basis
        self.n_columns = len(network.coefficients)
        self._variables = [_VariablesOfSpecies(basis, z) for z in range(len(network.functions))]
        self._centers = [
            _Center(basis.subset(functions), self._variables) for functions in network.functions
        ]
        counts = [len(functions) for functions in network.functions]
        self._starts = np.concatenate([[0], np.cumsum(counts)])

    def __call__(self, graph: AtomGraph, virial: bool = True) -> np.ndarray:
        """The rows of one structure.

        Args:
            graph: of one structure with N atoms.
            virial: whether those of the virial are wanted; else they are zero.

        Returns:
            [1 + 3 N + 9, n_columns] float64: derivatives of the energy, of the forces and of the
            virial (as ``clebsch.conventions`` has them) in the network's unit of energy.
        """
        n_atoms = graph.n_atoms
        vectors = edge_vectors(graph, graph.positions)
        functions = _edge_functions(self.network, vectors, graph)
        species, senders = graph.species.numpy(), graph.senders.numpy()
        directions, row_ptr = vectors.numpy(), graph.row_ptr.numpy()
        variables = np.zeros((n_atoms, self.network.basis.n_variables))
        gradients = []  # of each neighbour species, [E_z, U, 3], and its edges
        for z, channel in enumerate(self._variables):
            edges = np.flatnonzero(species[senders] == z)
            values, gradient = functions.of(edges, channel)
            np.add.at(variables, (graph.receivers.numpy()[edges, None], channel.places), values)
            gradients.append((edges, gradient))
        rows = np.zeros((1 + 3 * n_atoms + 9, self.n_columns))
        for kind, center in enumerate(self._centers):
            atoms = np.flatnonzero(species == kind)
            mine = rows[:, self._starts[kind] : self._starts[kind + 1]]
            energy = mine[0]
            forces = mine[1 : 1 + 3 * n_atoms].reshape(n_atoms, 3, -1)
            strain = mine[1 + 3 * n_atoms :].reshape(3, 3, -1)
            for i, entries in zip(atoms, center.jacobian(variables[atoms]), strict=True):
                for z, (edges, gradient) in enumerate(gradients):
                    low, high = np.searchsorted(edges, [row_ptr[i], row_ptr[i + 1]])
                    if low == high:
                        continue
                    total, pulls = center.slopes(z, entries, variables[i], gradient[low:high])
                    energy += total / center.orders  # Euler: sum A dB/dA = nu B
                    for j, pull in zip(senders[edges[low:high]], pulls, strict=True):
                        # r_ij = r_i - r_j: the energy's slope pulls i one way and j the other
                        forces[j] += pull
                        forces[i] -= pull
                    if virial:
                        outer = np.einsum("jap,jb->abp", pulls, directions[edges[low:high]])
                        strain -= 0.5 * (outer + outer.transpose(1, 0, 2))
        return rows


class _VariablesOfSpecies:
    """The variables of one neighbour species: their places, radial functions and harmonics."""

    def __init__(self, basis: ClusterBasis, z: int) -> None:
        offsets = basis.offsets
        places, radial, harmonic = ([np.zeros(0, dtype=np.int64)] for _ in range(3))
        for label, (kind, n, degree) in enumerate(basis.labels.tolist()):
            if kind == z:
                count = 2 * degree + 1
                places.append(np.arange(offsets[label], offsets[label] + count))
                radial.append(np.full(count, n))
                harmonic.append(np.arange(degree**2, (degree + 1) ** 2))
        self.places = np.concatenate(places)
        self.radial = np.concatenate(radial)
        self.harmonic = np.concatenate(harmonic)


@dataclass(frozen=True, eq=False)
class _Block:
    """The entries of dB/dA for variables of one species, as a sparse matrix."""

    entries: slice
    indices: np.ndarray
    indptr: np.ndarray
    shape: tuple[int, int]

    def matrix(self, entries: np.ndarray) -> csr_array:
        """[P, U] with these values."""
        return csr_array((entries[self.entries], self.indices, self.indptr), shape=self.shape)


class _Center:
    """dB/dA of one central species: which entries there are, and each as a sum over products of
    one factor fewer.

    Attributes:
        orders: nu of each function.
    """

    def __init__(self, basis: ClusterBasis, variables: list[_VariablesOfSpecies]) -> None:
        self.orders = basis.orders
        lower, factors, functions, values = [], [], [], []
        for slot in range(basis.monomials.shape[1]):
            factor = basis.monomials[basis.rows, slot]
            kept = factor >= 0
            lower.append(np.delete(basis.monomials[basis.rows], slot, axis=1)[kept])
            factors.append(factor[kept])
            functions.append(basis.functions[kept])
            values.append(basis.coefficients[kept])
        self._products, low = np.unique(np.concatenate(lower), axis=0, return_inverse=True)
        factor, function = np.concatenate(factors), np.concatenate(functions)
        label = np.searchsorted(basis.offsets, factor, side="right") - 1
        species = basis.labels[label, 0]
        key = np.stack([species, function, factor], axis=1)
        pairs, pair = np.unique(key, axis=0, return_inverse=True)
        shape = (len(pairs), len(self._products))
        entries = (np.concatenate(values), (pair.reshape(-1), low.reshape(-1)))
        self._sums = csr_array(entries, shape=shape)
        self._variables = variables
        self._blocks = [_block(pairs, z, v, len(self.orders)) for z, v in enumerate(variables)]

    def jacobian(self, variables: np.ndarray) -> np.ndarray:
        """[N, n_entries] float64, for variables [N, V]."""
        padded = np.concatenate([variables.T, np.ones((1, len(variables)))])  # -1 is the constant
        products = np.ones((len(self._products), len(variables)))
        for factors in self._products.T:
            products *= padded[factors]
        return np.ascontiguousarray((self._sums @ products).T)

    def slopes(
        self, z: int, entries: np.ndarray, variables: np.ndarray, gradient: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What neighbours of one species do to the functions of one atom.

        Args:
            z: the neighbours' species.
            entries: [n_entries], of the atom.
            variables: [V], of the atom.
            gradient: [n, U, 3], of the variables of species z by the vectors to n neighbours.

        Returns:
            [P] sum over the variables of species z of A dB/dA, and [n, 3, P] dB/dr of each.
        """
        places = self._variables[z].places
        by_vector = gradient.transpose(1, 0, 2).reshape(len(places), 3 * len(gradient))
        columns = np.concatenate([variables[places, None], by_vector], axis=1)
        product = np.ascontiguousarray((self._blocks[z].matrix(entries) @ columns).T)
        return product[0], product[1:].reshape(len(gradient), 3, -1)


def _block(pairs: np.ndarray, z: int, variables: _VariablesOfSpecies, n_functions: int) -> _Block:
    """The entries (z, function, variable) of one neighbour species."""
    start, stop = np.searchsorted(pairs[:, 0], [z, z + 1])
    functions, factors = pairs[start:stop, 1], pairs[start:stop, 2]
    counts = np.bincount(functions, minlength=n_functions)
    return _Block(
        slice(start, stop),
        np.searchsorted(variables.places, factors),
        np.concatenate([[0], np.cumsum(counts)]),
        (n_functions, len(variables.places)),
    )


@dataclass(frozen=True, eq=False)
class _EdgeFunctions:
    """R_n(r) <n>^-1/2 and Y_lm of all edges with their derivatives by the edge vectors."""

    radial: np.ndarray  # [E, n]
    d_radial: np.ndarray  # [E, n, 3]
    harmonics: np.ndarray  # [E, lm]
    d_harmonics: np.ndarray  # [E, lm, 3]

    def of(self, edges: np.ndarray, channel: _VariablesOfSpecies) -> tuple[np.ndarray, np.ndarray]:
        """Values [E_z, U] and gradients [E_z, U, 3] of the products that a species needs."""
        n, lm = channel.radial, channel.harmonic
        radial, harmonics = self.radial[edges][:, n], self.harmonics[edges][:, lm]
        gradients = radial[..., None] * self.d_harmonics[edges][:, lm]
        gradients += harmonics[..., None] * self.d_radial[edges][:, n]
        return radial * harmonics, gradients


def _edge_functions(network: ACE, vectors: Tensor, graph: AtomGraph) -> _EdgeFunctions:
    vectors = vectors.detach().requires_grad_()
    with torch.enable_grad():
        lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        radial = network.radial(lengths[:, 0], graph) * network.avg_num_neighbors**-0.5
        harmonics = spherical_harmonics(vectors, network.l_max)
        slopes = _derivatives(radial, lengths)
        d_harmonics = _derivatives(harmonics, vectors)
    directions = (vectors / lengths).detach()
    return _EdgeFunctions(
        radial.detach().numpy(),
        (slopes * directions[:, None]).numpy(),
        harmonics.detach().numpy(),
        d_harmonics.numpy(),
    )


def _derivatives(values: Tensor, by: Tensor) -> Tensor:
    """[E, columns, k]: of values [E, columns] by [E, k], edge by edge.

    A pull-back is linear in what it pulls back: its own derivative by that has all columns at once.
    """
    pulled = torch.zeros_like(values, requires_grad=True)
    (slope,) = torch.autograd.grad(values, by, pulled, create_graph=True)
    parts = [
        torch.autograd.grad(part.sum(), pulled, retain_graph=True)[0] for part in slope.unbind(1)
    ]
    return torch.stack(parts, dim=2)
