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
from clebsch.graph import AtomGraph
from clebsch.models.ace import ACE
from clebsch.potential import edge_vectors


class Design:
    """Design matrices of structures for one network.

    Attributes:
        n_functions: of each central species.
        n_columns: coefficients of all central species.
    """

    def __init__(self, network: ACE) -> None:
        self.network = network
        basis = network.basis
        self.n_species = len(network.coefficients)
        self.n_functions = basis.n_functions
        self.n_columns = self.n_species * self.n_functions
        self._jacobian = _Jacobian(basis)
        self._variables = [_VariablesOfSpecies(basis, z) for z in range(self.n_species)]
        self._blocks = self._jacobian.by_species(self._variables)

    def __call__(self, graph: AtomGraph, virial: bool = True) -> np.ndarray:
        """The rows of one structure, transposed.

        Args:
            graph: of one structure with N atoms.
            virial: whether those of the virial are wanted; else they are zero.

        Returns:
            [n_columns, 1 + 3 N + 9] float64: derivatives of the energy, of the forces and of the
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
        entries = self._jacobian.entries(variables)  # [N, n_entries]
        rows = np.zeros((self.n_columns, 1 + 3 * n_atoms + 9))
        for i in range(n_atoms):
            start = species[i] * self.n_functions
            mine = rows[start : start + self.n_functions]
            for channel, block, (edges, gradient) in zip(
                self._variables, self._blocks, gradients, strict=True
            ):
                low, high = np.searchsorted(edges, [row_ptr[i], row_ptr[i + 1]])
                if low == high:
                    continue
                columns = np.concatenate(
                    [
                        gradient[low:high].transpose(1, 0, 2).reshape(len(channel.places), -1),
                        variables[i, channel.places, None],
                    ],
                    axis=1,
                )
                product = block.matrix(entries[i]) @ columns  # [P, 3 n_j + 1]
                mine[:, 0] += product[:, -1] / self._jacobian.orders  # Euler: sum A dB/dA = nu B
                pulls = product[:, :-1].reshape(self.n_functions, high - low, 3)
                for number, edge in enumerate(edges[low:high]):
                    # r_ij = r_i - r_j: the energy's slope pulls i one way and j the other
                    j, pull = senders[edge], pulls[:, number]
                    mine[:, 1 + 3 * j : 4 + 3 * j] += pull
                    mine[:, 1 + 3 * i : 4 + 3 * i] -= pull
                if not virial:
                    continue
                outer = np.einsum("pja,jb->pab", pulls, directions[edges[low:high]])
                mine[:, -9:] -= 0.5 * (outer + outer.transpose(0, 2, 1)).reshape(-1, 9)
        return rows


class _VariablesOfSpecies:
    """The variables of one neighbour species: their places, radial functions and harmonics."""

    def __init__(self, basis: ClusterBasis, z: int) -> None:
        offsets = basis.offsets
        places, radial, harmonic = [], [], []
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


class _Jacobian:
    """dB/dA: which entries there are, and each as a sum over products of one factor fewer."""

    def __init__(self, basis: ClusterBasis) -> None:
        self.orders = basis.orders
        order = basis.monomials.shape[1]
        lower, factors, functions, values = [], [], [], []
        for slot in range(order):
            factor = basis.monomials[basis.rows, slot]
            kept = factor >= 0
            lower.append(np.delete(basis.monomials[basis.rows], slot, axis=1)[kept])
            factors.append(factor[kept])
            functions.append(basis.functions[kept])
            values.append(basis.coefficients[kept])
        self.products, low = np.unique(np.concatenate(lower), axis=0, return_inverse=True)
        factor, function = np.concatenate(factors), np.concatenate(functions)
        label = np.searchsorted(basis.offsets, factor, side="right") - 1
        species = basis.labels[label, 0]
        key = np.stack([species, function, factor], axis=1)
        self.pairs, pair = np.unique(key, axis=0, return_inverse=True)
        shape = (len(self.pairs), len(self.products))
        entries = (np.concatenate(values), (pair.reshape(-1), low.reshape(-1)))
        self._sums = csr_array(entries, shape=shape)

    def entries(self, variables: np.ndarray) -> np.ndarray:
        """[N, n_entries] float64, for variables [N, V]."""
        padded = np.concatenate([variables.T, np.ones((1, len(variables)))])  # -1 is the constant
        products = np.ones((len(self.products), len(variables)))
        for factors in self.products.T:
            products *= padded[factors]
        return np.ascontiguousarray((self._sums @ products).T)

    def by_species(self, variables: list[_VariablesOfSpecies]) -> list[_Block]:
        """The entries of each neighbour species, which stand together."""
        blocks = []
        for z, channel in enumerate(variables):
            start, stop = np.searchsorted(self.pairs[:, 0], [z, z + 1])
            functions, factors = self.pairs[start:stop, 1], self.pairs[start:stop, 2]
            counts = np.bincount(functions, minlength=len(self.orders))
            blocks.append(
                _Block(
                    slice(start, stop),
                    np.searchsorted(channel.places, factors),
                    np.concatenate([[0], np.cumsum(counts)]),
                    (len(self.orders), len(channel.places)),
                )
            )
        return blocks


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
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        radial = network.radial(lengths, graph) * network.avg_num_neighbors**-0.5
        harmonics = spherical_harmonics(vectors, network.l_max)
        slopes = _derivatives(radial, lengths)
        d_harmonics = _derivatives(harmonics, vectors)
    directions = (vectors / lengths[:, None]).detach()
    return _EdgeFunctions(
        radial.detach().numpy(),
        (slopes[..., None] * directions[:, None]).numpy(),
        harmonics.detach().numpy(),
        d_harmonics.numpy(),
    )


def _derivatives(values: Tensor, by: Tensor) -> Tensor:
    """[E, columns, ...]: of every column of ``values`` [E, columns], edge by edge."""
    columns = [
        torch.autograd.grad(column.sum(), by, retain_graph=True, materialize_grads=True)[0]
        for column in values.unbind(1)
    ]
    return torch.stack(columns, dim=1)
