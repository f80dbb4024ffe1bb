"""Full neighbour lists, any cell, any periodicity: vesin finds the pairs."""

from __future__ import annotations

import numpy as np
import torch
import vesin
from torch import Tensor

from clebsch.errors import DataError
from clebsch.graph import AtomGraph, make_graph


def neighbor_graph(
    positions: Tensor, cell: Tensor, pbc: Tensor, species: Tensor, cutoff: float
) -> AtomGraph:
    """The graph of one structure: both directions of every pair, and an atom's own images.

    Atoms may lie outside the cell. Directions that are not periodic need no lattice vector.

    Args:
        positions: [n_atoms, 3] float64, Angstrom.
        cell: [3, 3] float64, rows are lattice vectors.
        pbc: [3] bool.
        species: [n_atoms] int64.
        cutoff: Angstrom; pairs at a distance below it are neighbours.

    Raises:
        DataError: a periodic direction has no lattice vector, the periodic lattice vectors are
            linearly dependent, or a position is not a finite number.
    """
    if not torch.isfinite(positions).all():
        atom = int((~torch.isfinite(positions)).any(dim=1).nonzero()[0])
        raise DataError(f"the position of atom {atom} is not a finite number")
    if not torch.isfinite(cell).all():
        raise DataError("a lattice vector is not a finite number")
    points = positions.detach().cpu().numpy()
    box = complete_cell(cell.detach().cpu().numpy(), pbc.cpu().numpy())
    periodic = [bool(p) for p in pbc]
    finder = vesin.NeighborList(cutoff=float(cutoff), full_list=True, n_threads=1)
    senders, receivers, images = finder.compute(points, box, periodic, quantities="ijS")
    return make_graph(
        positions=positions,
        cell=cell,
        pbc=pbc,
        species=species,
        senders=torch.from_numpy(senders.astype(np.int64)),
        receivers=torch.from_numpy(receivers.astype(np.int64)),
        images=torch.from_numpy(images.astype(np.int64).reshape(-1, 3)),
    )


def complete_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """A cell of full rank: directions that are not periodic and have no vector get a unit one.

    The added vectors are orthogonal to the given ones and serve the neighbour search alone; no
    volume, and so no stress, is ever computed from them.

    Args:
        cell: [3, 3] float64.
        pbc: [3] bool.

    Raises:
        DataError: the periodic directions do not span as many dimensions as there are of them.
    """
    completed = np.array(cell, dtype=np.float64)
    periodic = completed[np.asarray(pbc, dtype=bool)]
    if len(periodic):
        lengths = np.linalg.norm(periodic, axis=1)
        if (lengths < 1e-6).any():
            raise DataError("the structure is periodic in a direction without a lattice vector")
        if np.linalg.matrix_rank(periodic / lengths[:, None], tol=1e-8) < len(periodic):
            raise DataError("the lattice vectors of the periodic directions are linearly dependent")
    # A vector of a direction that is not periodic is of no use to the search, and it may be
    # dependent on the periodic ones: all of them are replaced.
    orthogonal = np.linalg.svd(periodic)[2][len(periodic) :] if len(periodic) else np.eye(3)
    completed[~np.asarray(pbc, dtype=bool)] = orthogonal
    return completed
