"""Full neighbour lists, any cell, any periodicity: the same pairs in the same order on any device.

On CPUs vesin finds them. On GPUs NVIDIA's nvalchemi-toolkit-ops does where it is installed, so that
nothing but the sizes of results leaves the device.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
import vesin
from torch import Tensor

from clebsch.errors import BackendError, DataError
from clebsch.graph import AtomGraph, edge_vectors, make_graph

#: The package that searches on GPUs, and the module it brings.
GPU_PACKAGE, GPU_MODULE = "nvalchemi-toolkit-ops", "nvalchemiops"
#: Atoms closer than this, Angstrom, are at one place, without a direction to each other.
ONE_PLACE = 1e-6
#: Neighbours of an atom that there is room for at first, on GPUs.
ROOM = 64

#: Senders [E], receivers [E] and images [E, 3], int64.
_Pairs = tuple[Tensor, Tensor, Tensor]


def search_place(device: torch.device) -> torch.device:
    """Where structures for a device are searched: there, if something can, or on the CPU."""
    on_device = device.type == "cuda" and importlib.util.find_spec(GPU_MODULE) is not None
    return device if on_device else torch.device("cpu")


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

    Returns:
        The graph, on the device of the positions, where all tensors must be.

    Raises:
        BackendError: that is no CPU, and the package is missing that searches there.
        DataError: a periodic direction has no lattice vector, the periodic lattice vectors are
            linearly dependent, a position is not a finite number, or two atoms are at one place.
    """
    if not torch.isfinite(positions).all():
        atom = int((~torch.isfinite(positions)).any(dim=1).nonzero()[0])
        raise DataError(f"the position of atom {atom} is not a finite number")
    if not torch.isfinite(cell).all():
        raise DataError("a lattice vector is not a finite number")
    search = _search_on_cpu if positions.device.type == "cpu" else search_on_device
    box = complete_cell(cell.detach().cpu().numpy(), pbc.cpu().numpy())
    senders, receivers, images = search(positions.detach(), box, pbc, float(cutoff))
    graph = make_graph(
        positions=positions,
        cell=cell,
        pbc=pbc,
        species=species,
        senders=senders,
        receivers=receivers,
        images=images,
    )
    _check_distances(graph)
    return graph


def _check_distances(graph: AtomGraph) -> None:
    """Atoms at one place have no direction to each other, and no finite energy."""
    vectors = edge_vectors(graph, graph.positions.detach())
    together = torch.nonzero(vectors.square().sum(1) < ONE_PLACE**2)
    if len(together):
        edge = int(together[0])
        first, second = sorted((int(graph.senders[edge]), int(graph.receivers[edge])))
        raise DataError(f"atoms {first} and {second} are at one place")


def _search_on_cpu(positions: Tensor, box: np.ndarray, pbc: Tensor, cutoff: float) -> _Pairs:
    senders, receivers, images = find_pairs(positions.numpy(), box, pbc.numpy(), cutoff, "ijS")
    return (
        torch.from_numpy(senders.astype(np.int64)),
        torch.from_numpy(receivers.astype(np.int64)),
        torch.from_numpy(images.astype(np.int64).reshape(-1, 3)),
    )


def find_pairs(
    positions: np.ndarray, box: np.ndarray, pbc: np.ndarray, cutoff: float, quantities: str
) -> list[np.ndarray]:
    """What vesin says of the pairs of one structure, both directions, in no particular order.

    Args:
        positions: [n_atoms, 3], Angstrom.
        box: [3, 3], of ``complete_cell``.
        pbc: [3] bool.
        cutoff: Angstrom.
        quantities: vesin's letters.
    """
    places = drawn_together(positions, box, pbc, cutoff)
    finder = vesin.NeighborList(cutoff=cutoff, full_list=True, n_threads=1)
    found: list[np.ndarray] = finder.compute(places, box, [bool(p) for p in pbc], quantities)
    return found


def search_on_device(positions: Tensor, box: np.ndarray, pbc: Tensor, cutoff: float) -> _Pairs:
    """The pairs of one structure by nvalchemi-toolkit-ops, in no particular order.

    Args:
        positions: [n_atoms, 3] float64; the package takes those of CPUs too.
        box: [3, 3], of ``complete_cell``.
        pbc: [3] bool.
        cutoff: Angstrom.

    Returns:
        senders [E], receivers [E], images [E, 3], int64.

    Raises:
        BackendError: the package is missing.
    """
    try:
        from nvalchemiops.torch.neighbors import neighbor_list
    except ImportError as error:
        raise BackendError(
            f"a neighbour list of tensors on {positions.device} needs {GPU_PACKAGE} "
            f"(pip install {GPU_PACKAGE}[torch]), or structures on the CPU: {error}"
        ) from None
    device = positions.device
    if not len(positions):
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return empty, empty, empty.reshape(0, 3)
    cell = torch.tensor(box, device=device)
    # The search divides the cell, which therefore has to hold the atoms where it is not periodic.
    along = positions @ torch.linalg.inv(cell)
    lowest = torch.where(pbc, 0.0, along.amin(0))
    length = torch.where(pbc, 1.0, along.amax(0) - lowest + cutoff)
    inside, cell = positions - lowest @ cell, cell * length[:, None]
    room = min(ROOM, len(positions) * 27)
    while True:
        found, counts, images = neighbor_list(
            inside, cutoff, cell=cell[None], pbc=pbc[None], max_neighbors=room
        )
        most = int(counts.max())
        if most <= room:
            break
        room = most
    there = torch.arange(found.shape[1], device=device) < counts[:, None]
    senders, column = there.nonzero(as_tuple=True)
    return senders, found[senders, column].long(), images[senders, column].long()


def drawn_together(
    positions: np.ndarray, box: np.ndarray, pbc: np.ndarray, cutoff: float
) -> np.ndarray:
    """Positions with the same pairs within the cut-off, and little empty space between atoms.

    vesin walks through empty space, and divides by zero where there is very much of it. In
    directions that are not periodic, gaps of more than two cut-offs are made as long as that.

    Args:
        positions: [n_atoms, 3], Angstrom.
        box: [3, 3], of ``complete_cell``.
        pbc: [3] bool.
        cutoff: Angstrom.
    """
    for direction in box[~np.asarray(pbc, dtype=bool)]:  # unit vectors, orthogonal to all others
        along = positions @ direction
        order = along.argsort(kind="stable")
        excess = np.maximum(np.diff(along[order]) - 2 * cutoff, 0.0)
        if excess.any():
            shifts = np.zeros(len(positions))
            shifts[order[1:]] = excess.cumsum()
            positions = positions - shifts[:, None] * direction
    return positions


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
