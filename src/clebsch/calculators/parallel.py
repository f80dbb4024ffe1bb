"""A potential that MPI ranks evaluate together, each for its own atoms.

The energy of an atom depends on others over ``potential.hops`` edges. Those of other ranks among
them are a rank's ghosts: it computes the energies of its own atoms, and their derivatives by its
atoms and ghosts. In each step positions go from owners to ghosts, and forces on ghosts come home.
A ghost stands for an atom, not for an image of one: edges tell images, as they do in all graphs.

Lists of neighbours and of ghosts are kept, and are complete for as long as ``verlet`` says, of all
ranks' atoms. New ones need all positions on every rank; then, and in no other step, a rank's work
grows with the size of the whole structure.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from clebsch.calculators.serial import LocalAtoms, evaluated
from clebsch.calculators.verlet import Snapshot, check_skin, within_cutoff
from clebsch.errors import ClebschError, DataError
from clebsch.graph import AtomGraph, neighborhood
from clebsch.neighbors import complete_cell, neighbor_graph, search_place
from clebsch.potential import Potential


class Ranks:
    """MPI ranks of which none goes on alone, and none waits for one that has failed.

    Attributes:
        comm: their communicator, of mpi4py; None for a process on its own.
    """

    def __init__(self, comm: Any = None) -> None:
        self.comm = comm
        self._shared: BaseException | None = None

    @contextmanager
    def together(self, n_sums: int = 0) -> Iterator[np.ndarray]:
        """What fails on one rank in the context, where ranks do not meet, fails on all at its end.

        Args:
            n_sums: how many numbers are summed.

        Yields:
            [n_sums] float64, zeros, for this rank's numbers. After the context they are the sums
            over all ranks.

        Raises:
            BaseException: this rank's error.
            ClebschError: it had none; tells of another's.
        """
        here, sums = np.zeros(1 + n_sums), np.empty(1 + n_sums)
        if self.comm is None:
            yield here[1:]
            return
        error: BaseException | None = None
        try:
            yield here[1:]
        except BaseException as caught:  # Ctrl-C, too: the others would wait forever
            error, here[0] = caught, 1.0
        self.comm.Allreduce(here, sums)
        here[:] = sums
        if not here[0]:
            return
        told = self.comm.allgather(None if error is None else f"{type(error).__name__}: {error}")
        if error is None:
            rank = next(rank for rank, text in enumerate(told) if text is not None)
            error = ClebschError(f"MPI rank {rank}: {told[rank]}")
        self._shared = error
        raise error

    def end_unless_shared(self, error: BaseException) -> None:
        """End all ranks' processes if others do not know of the error, and would wait forever."""
        if self.comm is not None and error is not self._shared:
            traceback.print_exception(error)
            time.sleep(1)  # mpiexec passes on what was written if it has the time
            self.comm.Abort(1)


@dataclass(frozen=True, eq=False)
class _Part:
    """What a rank computes, and what it exchanges with which other.

    Attributes:
        atoms: its own, when the lists were made.
        snapshot: of them.
        along: [n_own, 3], their positions in lattice vectors.
        graph: the pairs within cutoff + skin; own atoms, then ghosts in order of their owners.
        n_ghosts: by owner, [n_ranks].
        lent: [n_lent], which own atoms are ghosts elsewhere, in order of ranks.
        n_lent: by rank, [n_ranks].
    """

    atoms: LocalAtoms
    snapshot: Snapshot
    along: np.ndarray
    graph: AtomGraph
    n_ghosts: np.ndarray
    lent: np.ndarray
    n_lent: np.ndarray


class ParallelPotential:
    """Energy, forces and virial of a structure that is divided among MPI ranks, as it moves.

    Every call is one of all ranks.

    Args:
        potential: what computes, the same on all ranks.
        skin: Angstrom by which lists of neighbours reach beyond the cut-off.
        ranks: who computes.

    Attributes:
        potential: the same.
        n_builds: number of neighbour searches so far.

    Raises:
        ClebschError: a negative skin.
    """

    def __init__(self, potential: Potential, skin: float, ranks: Ranks) -> None:
        self.potential, self.n_builds = potential, 0
        self._ranks = ranks
        self._skin = check_skin(skin)
        self._part: _Part | None = None

    @property
    def n_ghosts(self) -> int:
        """Number of atoms of other ranks that this one needs."""
        return 0 if self._part is None else int(self._part.n_ghosts.sum())

    def __call__(self, read: Callable[[], LocalAtoms]) -> tuple[float, np.ndarray, np.ndarray]:
        """Evaluate.

        Args:
            read: gives the atoms of this rank, of which there may be none.

        Returns:
            The energy of the whole structure, eV; the forces on this rank's atoms, [n_local, 3],
            eV/Angstrom; the virial of the whole structure, [3, 3], eV.

        Raises:
            DataError: an impossible cell or position.
            ClebschError: something is not a finite number, or was wrong on another rank.
        """
        part = self._part
        with self._ranks.together(1) as incomplete:
            local = read()
            # A barostat may move the corner of the box with all atoms; against it they stay.
            corner = local.origin * local.pbc
            atoms = replace(local, positions=local.positions - corner, origin=local.origin - corner)
            incomplete[:] = part is None or not self._still_complete(part, atoms)
        if incomplete:
            part = self._part = self._build(atoms)
        assert part is not None
        positions = self._to_ghosts(part, atoms.unwrapped(part.along))
        with self._ranks.together(10) as totals:
            energy, forces, virial = self._evaluated(part, positions, atoms.cell)
            totals[:] = energy, *virial.flat
        return float(totals[0]), self._to_owners(part, forces), totals[1:].reshape(3, 3)

    def _evaluated(
        self, part: _Part, positions: np.ndarray, cell: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray]:
        if not len(part.atoms.tags):
            return 0.0, positions, np.zeros((3, 3))
        device = part.graph.positions.device
        graph = part.graph.with_positions(
            torch.tensor(positions, device=device), torch.tensor(cell, device=device)[None]
        )
        if not self.potential.replays(graph):
            graph = within_cutoff(graph, float(self.potential.cutoff))
        return evaluated(self.potential, graph)

    def _still_complete(self, part: _Part, atoms: LocalAtoms) -> bool:
        """Whether this rank has its atoms of before, and none has moved too far.

        If it is so on all ranks, no two of all atoms can have come within the cut-off unlisted.
        """
        then = part.atoms
        if not np.array_equal(then.tags, atoms.tags):
            return False
        if not (
            np.array_equal(then.numbers, atoms.numbers) and np.array_equal(then.pbc, atoms.pbc)
        ):
            return False
        moved, stretch = part.snapshot.moved(atoms.unwrapped(part.along), atoms.cell)
        farthest = np.sqrt(np.einsum("ni,ni->n", moved, moved).max(initial=0.0))
        cutoff = float(self.potential.cutoff)
        return bool(2 * farthest <= stretch * (cutoff + self._skin) - cutoff)  # False for NaN

    def _build(self, atoms: LocalAtoms) -> _Part:
        comm = self._ranks.comm
        counts = np.array(comm.allgather(len(atoms.tags)))
        structure = LocalAtoms(
            _of_all(comm, atoms.tags, counts),
            _of_all(comm, atoms.numbers, counts),
            _of_all(comm, atoms.positions, counts),
            atoms.cell,
            atoms.origin,
            atoms.pbc,
        )
        begins = counts.cumsum() - counts
        first = int(begins[comm.rank])
        with self._ranks.together():
            graph, ghosts = self._list(structure, first, first + int(counts[comm.rank]))
        self.n_builds += 1
        owners = np.searchsorted(counts.cumsum(), ghosts, side="right")
        n_ghosts = np.bincount(owners, minlength=comm.size)
        n_lent = np.empty_like(n_ghosts)
        comm.Alltoall(n_ghosts, n_lent)
        lent = np.empty(n_lent.sum(), dtype=np.int64)
        comm.Alltoallv([ghosts - begins[owners], n_ghosts], [lent, n_lent])
        return _Part(
            atoms,
            Snapshot.of(atoms.positions, atoms.cell, atoms.pbc),
            atoms.along(),
            graph,
            n_ghosts,
            lent,
            n_lent,
        )

    def _list(self, structure: LocalAtoms, first: int, end: int) -> tuple[AtomGraph, np.ndarray]:
        """The graph of atoms from ``first`` to ``end`` with their ghosts, and which these are."""
        potential = self.potential

        def number(atom: int) -> int:
            """The place in the order of tags, which errors tell on one rank as well."""
            return int((structure.tags < structure.tags[atom]).sum())

        lost = ~np.isfinite(structure.positions).all(axis=1)
        if lost.any():
            atom = number(int(lost.argmax()))
            raise DataError(f"the position of atom {atom} is not a finite number")
        reach = potential.hops * (potential.cutoff + self._skin)
        near = np.flatnonzero(_within_reach(structure, first, end, reach))
        own = np.flatnonzero((near >= first) & (near < end))
        place = search_place(potential.device)
        graph = neighbor_graph(
            torch.tensor(structure.positions[near], device=place),
            torch.tensor(structure.cell, device=place),
            torch.tensor(structure.pbc, device=place),
            potential.species_of(structure.numbers[near]).to(place),
            potential.cutoff + self._skin,
            lambda atom: number(near[atom]),
        )
        part, atoms = neighborhood(graph, torch.tensor(own, device=place), potential.hops)
        ghosts = near[atoms[len(own) :].cpu().numpy()]
        return part.to(potential.device), ghosts

    def _to_ghosts(self, part: _Part, own: np.ndarray) -> np.ndarray:
        """What own atoms have, [n_own, 3], and behind it what the ghosts' owners have of them."""
        n_own = len(own)
        nodes = np.empty((n_own + self.n_ghosts, 3))
        nodes[:n_own] = own
        self._ranks.comm.Alltoallv(
            [own[part.lent], 3 * part.n_lent], [nodes[n_own:], 3 * part.n_ghosts]
        )
        return nodes

    def _to_owners(self, part: _Part, nodes: np.ndarray) -> np.ndarray:
        """Sums over own atoms, [n_own, 3], and what other ranks have of them as their ghosts."""
        n_own = len(part.atoms.tags)
        own, back = nodes[:n_own].copy(), np.empty((len(part.lent), 3))
        self._ranks.comm.Alltoallv(
            [np.ascontiguousarray(nodes[n_own:]), 3 * part.n_ghosts], [back, 3 * part.n_lent]
        )
        ends = part.n_lent.cumsum()
        for begin, end in zip(ends - part.n_lent, ends, strict=True):
            own[part.lent[begin:end]] += back[begin:end]  # an atom once for each rank
        return own


def _of_all(comm: Any, own: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rows of all ranks, in order of ranks."""
    rows = np.empty((counts.sum(), *own.shape[1:]), dtype=own.dtype)
    comm.Allgatherv(np.ascontiguousarray(own), [rows, counts * (rows[:1].size if len(rows) else 1)])
    return rows


def _within_reach(structure: LocalAtoms, first: int, end: int, reach: float) -> np.ndarray:
    """[n_atoms] bool: all atoms within ``reach`` (Angstrom) of those from ``first`` to ``end``.

    Others may be among them: along each lattice vector the atoms fill an interval, the shortest
    that a period has, and what is within reach of all three is taken.
    """
    near = np.full(len(structure.tags), first < end)
    if first == end:
        return near
    inverse = np.linalg.inv(complete_cell(structure.cell, structure.pbc))
    along = structure.positions @ inverse
    margins = reach * np.linalg.norm(inverse, axis=0)
    for place, margin, periodic in zip(along.T, margins, structure.pbc, strict=True):
        own = np.sort(place[first:end])
        begin, length = own[0], own[-1] - own[0]
        if periodic:
            own = np.sort(own % 1)
            gaps = np.diff(own, append=own[0] + 1)
            widest = int(gaps.argmax())
            begin, length = own[(widest + 1) % len(own)], 1 - gaps[widest]
            near &= (place - begin + margin) % 1 <= length + 2 * margin
        else:
            near &= abs(place - begin - length / 2) <= length / 2 + margin
    return near
