"""Full neighbour lists, any cell, any periodicity: the same pairs in the same order on any device.

On CPUs vesin finds them, or SciPy's tree where a structure is so thin that vesin cannot. On GPUs
NVIDIA's nvalchemi-toolkit-ops does where it is installed, so that nothing but the sizes of results
leaves the device.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
import vesin
from scipy.spatial import cKDTree
from torch import Tensor

from clebsch.errors import BackendError, DataError
from clebsch.graph import AtomGraph, edge_vectors, make_graph

#: The package that searches on GPUs, and the module it brings.
GPU_PACKAGE, GPU_MODULE = "nvalchemi-toolkit-ops", "nvalchemiops"
#: Atoms closer than this, Angstrom, are at one place, without a direction to each other.
ONE_PLACE = 1e-6
#: Cells of the size of a cut-off that vesin divides a structure into at most.
VESIN_CELLS = 100_000
#: Neighbours of an atom that there is room for at first, on GPUs.
ROOM = 64

#: Senders [E], receivers [E] and images [E, 3], int64.
_Pairs = tuple[Tensor, Tensor, Tensor]


def search_place(device: torch.device) -> torch.device:
    """Where structures for a device are searched: there, if something can, or on the CPU."""
    on_device = device.type == "cuda" and importlib.util.find_spec(GPU_MODULE) is not None
    return device if on_device else torch.device("cpu")


def neighbor_graph(
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    species: Tensor,
    cutoff: float,
    number: Callable[[int], int] = int,
) -> AtomGraph:
    """The graph of one structure: both directions of every pair, and an atom's own images.

    Atoms may lie outside the cell. Directions that are not periodic need no lattice vector.

    Args:
        positions: [n_atoms, 3] float64, Angstrom.
        cell: [3, 3] float64, rows are lattice vectors.
        pbc: [3] bool.
        species: [n_atoms] int64.
        cutoff: Angstrom; pairs at a distance below it are neighbours.
        number: what errors call an atom, by its place.

    Returns:
        The graph, on the device of the positions, where all tensors must be.

    Raises:
        BackendError: that is no CPU, and the package is missing that searches there.
        DataError: a periodic direction has no lattice vector, the periodic lattice vectors are
            linearly dependent, a position is not a finite number, or two atoms are at one place.
    """
    if not torch.isfinite(positions).all():
        atom = int((~torch.isfinite(positions)).any(dim=1).nonzero()[0])
        raise DataError(f"the position of atom {number(atom)} is not a finite number")
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
    check_distances(graph, number)
    return graph


def check_distances(graph: AtomGraph, number: Callable[[int], int] = int) -> None:
    """Atoms at one place have no direction to each other, and no finite energy.

    Args:
        graph: one structure or several.
        number: what the error calls an atom, by its place.

    Raises:
        DataError: two are; names them.
    """
    vectors = edge_vectors(graph, graph.positions.detach())
    together = torch.nonzero(vectors.square().sum(1) < ONE_PLACE**2)
    if len(together):
        edge = int(together[0])
        ends = (int(graph.senders[edge]), int(graph.receivers[edge]))
        first, second = sorted(map(number, ends))
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
    """The pairs of one structure, both directions, in no particular order.

    Args:
        positions: [n_atoms, 3], Angstrom.
        box: [3, 3], of ``complete_cell``.
        pbc: [3] bool.
        cutoff: Angstrom.
        quantities: vesin's letters: i, j, S (images) or d (distances).
    """
    places = drawn_together(positions, box, pbc, cutoff)
    places, box = _closed(places, box, pbc, cutoff)
    if _too_thin_for_vesin(box, cutoff):
        found = _tree_pairs(places, box, cutoff)
        return [found[letter] for letter in quantities]
    finder = vesin.NeighborList(cutoff=cutoff, full_list=True, n_threads=1)
    computed: list[np.ndarray] = finder.compute(places, box, True, quantities)
    return computed


def _closed(
    positions: np.ndarray, box: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    """The structure in a box that is periodic in all directions and has the same pairs.

    Where a structure is not periodic its images are more than a cut-off away. Of structures that
    are periodic in some directions vesin 0.6.2 takes a hundred times as long to find the pairs.
    """
    free = ~np.asarray(pbc, dtype=bool)
    if not (free.any() and len(positions)):
        return positions, box
    along = positions @ np.linalg.inv(box)
    lowest = np.where(free, along.min(axis=0), 0.0)
    lengths = np.where(free, along.max(axis=0) - lowest + 1.01 * cutoff, 1.0)
    return positions - lowest @ box, box * lengths[:, None]


def _too_thin_for_vesin(box: np.ndarray, cutoff: float) -> bool:
    """Whether vesin might divide a periodic box into no cells at all along some direction.

    Where it would take more cells than ``VESIN_CELLS`` it takes fewer in all three directions, in
    proportion: of a thin direction's few cells none are left, and dividing by their number ends
    the process (vesin 0.6.2).
    """
    if np.abs(box).max() < 20 * cutoff:  # no height is above 35 of them
        return False
    heights = 1 / np.linalg.norm(np.linalg.inv(box), axis=0)
    cells = np.maximum(heights / cutoff, 1.0)
    left = cells.min() * np.cbrt(VESIN_CELLS / cells.prod())
    return bool(cells.prod() > VESIN_CELLS / 2 and left < 4)  # it rounds down several times


def _tree_pairs(positions: np.ndarray, box: np.ndarray, cutoff: float) -> dict[str, np.ndarray]:
    """What ``find_pairs`` finds in a periodic box, by letter: images within reach are put in."""
    inverse = np.linalg.inv(box)
    margin = cutoff * np.linalg.norm(inverse, axis=0)  # the cut-off in lattice vectors
    cells = np.floor(positions @ inverse)
    inside = positions - cells @ box
    along = inside @ inverse
    atoms, images = np.arange(len(positions)), np.zeros((len(positions), 3))
    for axis, reach in enumerate(margin):
        shifts = np.arange(-np.ceil(reach), np.ceil(reach) + 1)
        place = along[atoms, axis] + shifts[:, None]
        shift, which = np.nonzero((place > -reach) & (place < 1 + reach))
        atoms, images = atoms[which], images[which]
        images[:, axis] = shifts[shift]
    found = cKDTree(inside).sparse_distance_matrix(
        cKDTree(inside[atoms] + images @ box), cutoff, output_type="ndarray"
    )
    senders, receivers = found["i"], atoms[found["j"]]
    image = images[found["j"]] - cells[receivers] + cells[senders]
    pairs = (found["v"] < cutoff) & ((senders != receivers) | image.any(axis=1))
    return {
        "i": senders[pairs],
        "j": receivers[pairs],
        "S": image[pairs],
        "d": found["v"][pairs],
    }


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
