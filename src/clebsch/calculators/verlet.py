"""A neighbour list that is kept over many steps of a simulation (a Verlet list with a skin).

The list holds all pairs within ``cutoff + skin`` of the structure it was built for. It stays
complete as long as no other pair can have come within the cutoff. With the deformation F that
takes the old periodic lattice vectors to the new ones, an atom is now at r_i = r0_i F + u_i, and a
pair (image included) that was d0 apart is now at least

    s |d0| - |u_i - u_j|,    s = the smallest singular value of F,

apart. Pairs that are not listed had |d0| >= cutoff + skin, hence the list is complete while

    |u_i| + |u_j| <= s (cutoff + skin) - cutoff    for the two atoms that moved most.

Only differences of u matter: a common drift is taken out first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from clebsch.errors import ClebschError
from clebsch.graph import AtomGraph
from clebsch.neighbors import neighbor_graph, search_place
from clebsch.potential import Potential


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Where atoms were, [n_atoms, 3], and their cell, to see how they have moved since."""

    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    inverse: np.ndarray  # [3, n_periodic] pseudo-inverse of the periodic lattice vectors

    @classmethod
    def of(cls, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Snapshot:
        """Copies of what may change."""
        return cls(positions.copy(), cell.copy(), pbc.copy(), np.linalg.pinv(cell[pbc]))

    def moved(self, positions: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, float]:
        """u, [n_atoms, 3], and s of the module's text for where atoms and cell are now."""
        if np.array_equal(self.cell, cell):
            return positions - self.positions, 1.0
        # The identity across directions that are not periodic: any F that maps the periodic
        # vectors makes the bound hold, this one makes it tight.
        change = (cell - self.cell)[self.pbc]
        deformation = np.eye(3) + self.inverse @ change
        smallest_stretch = np.linalg.svd(deformation, compute_uv=False)[-1]
        return positions - self.positions @ deformation, float(smallest_stretch)


@dataclass(frozen=True, eq=False)
class _Listing:
    """The pairs within cutoff + skin, and the structure they were found for."""

    graph: AtomGraph
    numbers: np.ndarray
    snapshot: Snapshot


class VerletList:
    """Graphs of one structure as it moves, with as few neighbour searches as possible.

    Attributes:
        n_builds: number of neighbour searches so far.
    """

    def __init__(self, potential: Potential, skin: float) -> None:
        self.n_builds = 0
        self._potential = potential
        self._cutoff = float(potential.cutoff)
        self._skin = check_skin(skin)
        self._listing: _Listing | None = None

    def graph(self, atoms: Atoms) -> AtomGraph:
        """The graph of ``atoms`` with the edges shorter than the cutoff.

        Where evaluations are replayed as CUDA graphs it has those in the skin as well: their number
        then stays as it is, and nothing of the list leaves the device.

        Raises:
            UnknownElementError: an element that the potential does not know.
            DataError: an impossible cell, or a position that is not a finite number.
        """
        listing = self._listing
        if listing is None or not self._still_complete(listing, atoms):
            listing = self._listing = self._build(atoms)
        device = listing.graph.positions.device
        moved = listing.graph.with_positions(
            torch.tensor(atoms.positions, device=device),
            torch.tensor(atoms.cell.array, device=device)[None],
        )
        return moved if self._potential.replays(moved) else within_cutoff(moved, self._cutoff)

    def _build(self, atoms: Atoms) -> _Listing:
        old = self._listing
        if old is not None and np.array_equal(old.numbers, atoms.numbers):
            species = old.graph.species
        else:
            species = self._potential.graph(atoms).species
        cell, place = atoms.cell.array, search_place(species.device)
        graph = neighbor_graph(
            torch.tensor(atoms.positions, device=place),
            torch.tensor(cell, device=place),
            torch.tensor(atoms.pbc, device=place),
            species.to(place),
            self._cutoff + self._skin,
        ).to(species.device)
        self.n_builds += 1
        return _Listing(
            graph,
            numbers=atoms.numbers.copy(),
            snapshot=Snapshot.of(atoms.positions, cell, atoms.pbc),
        )

    def _still_complete(self, listing: _Listing, atoms: Atoms) -> bool:
        """Whether no pair outside of the list can be within the cutoff (see the module's text)."""
        if not np.array_equal(listing.numbers, atoms.numbers):
            return False
        if not np.array_equal(listing.snapshot.pbc, atoms.pbc):
            return False
        cell = atoms.cell.array
        if not np.isfinite(cell).all():
            return False  # the search then says so
        moved, smallest_stretch = listing.snapshot.moved(atoms.positions, cell)
        if len(moved) < 2:
            # an atom and its own images move together
            farthest_two = 0.0 if np.isfinite(moved).all() else np.nan
        else:
            moved -= moved.mean(axis=0)
            distances = np.sqrt(np.einsum("ni,ni->n", moved, moved))
            farthest_two = np.partition(distances, -2)[-2:].sum()
        reach = smallest_stretch * (self._cutoff + self._skin) - self._cutoff
        return bool(farthest_two <= reach)  # False for NaN: the search then names the atom


def check_skin(skin: float) -> float:
    """The skin of a neighbour list, Angstrom.

    Raises:
        ClebschError: it is negative or no number.
    """
    if not skin >= 0:
        raise ClebschError(f"the skin of a neighbour list cannot be {skin} Angstrom")
    return float(skin)


def within_cutoff(graph: AtomGraph, cutoff: float) -> AtomGraph:
    """One structure's graph without its edges of length ``cutoff`` (Angstrom) or more.

    They would contribute nothing, but the network would spend a third more time on them at a
    cut-off of 5 and a skin of 0.5 Angstrom. The order of the others stays.
    """
    # index_select with indices found once: several times faster here than indexing with a mask.
    receivers = graph.positions.index_select(0, graph.receivers)
    vectors = receivers - graph.positions.index_select(0, graph.senders)
    vectors = torch.addmm(vectors, graph.images, graph.cell[0])
    keep = torch.einsum("ea,ea->e", vectors, vectors) < cutoff * cutoff
    if bool(keep.all()):
        return graph
    kept = keep.nonzero()[:, 0]
    kept_before = _kept_before(keep)
    keep_by_sender = keep.index_select(0, graph.sender_order)
    order = graph.sender_order.index_select(0, keep_by_sender.nonzero()[:, 0])
    return replace(
        graph,
        senders=graph.senders.index_select(0, kept),
        receivers=graph.receivers.index_select(0, kept),
        images=graph.images.index_select(0, kept),
        row_ptr=kept_before[graph.row_ptr],
        sender_order=kept_before.index_select(0, order),
        sender_ptr=_kept_before(keep_by_sender)[graph.sender_ptr],
    )


def _kept_before(keep: Tensor) -> Tensor:
    """[n + 1] int64: how many of the first i entries are kept."""
    return torch.cat([torch.zeros(1, dtype=torch.int64, device=keep.device), keep.cumsum(0)])
