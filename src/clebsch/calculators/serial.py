"""A potential that one process evaluates, step after step, for atoms of another program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from clebsch.calculators.verlet import VerletList
from clebsch.errors import ClebschError
from clebsch.graph import AtomGraph
from clebsch.potential import Potential


@dataclass(frozen=True, eq=False)
class LocalAtoms:
    """The atoms that a process has of a structure, and the cell of the structure.

    Attributes:
        tags: [n_local] int64, ascending: one number for each atom of the structure.
        numbers: [n_local] int64, atomic numbers.
        positions: [n_local, 3] float64, Angstrom, in any image.
        cell: [3, 3] float64, rows are lattice vectors, all three.
        origin: [3] float64, Angstrom, the cell's corner.
        pbc: [3] bool.
    """

    tags: np.ndarray
    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    origin: np.ndarray
    pbc: np.ndarray

    def along(self) -> np.ndarray:
        """[n_local, 3], positions in lattice vectors."""
        return self.positions @ np.linalg.inv(self.cell)

    def unwrapped(self, before: np.ndarray) -> np.ndarray:
        """Positions in the images in which atoms were ``before``, [n_local, 3], as ``along``."""
        images = np.round(self.along() - before) * self.pbc
        positions: np.ndarray = self.positions - images @ self.cell
        return positions


class SerialPotential:
    """Energy, forces and virial of a structure as it moves, all of it in this process.

    Args:
        potential: what computes.
        skin: Angstrom by which lists of neighbours reach beyond the cut-off.

    Raises:
        ClebschError: a negative skin.
    """

    def __init__(self, potential: Potential, skin: float) -> None:
        self.potential = potential
        self._neighbors = VerletList(potential, skin)
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def n_builds(self) -> int:
        """Number of neighbour searches so far."""
        return self._neighbors.n_builds

    def __call__(self, read: Callable[[], LocalAtoms]) -> tuple[float, np.ndarray, np.ndarray]:
        """Energy, eV, forces [n_atoms, 3], eV/Angstrom, and virial [3, 3], eV.

        Args:
            read: gives the atoms, all of the structure.

        Raises:
            DataError: an impossible cell or position.
            ClebschError: one of them is not a finite number.
        """
        local = read()
        positions = local.positions
        if self._last is not None and np.array_equal(self._last[0], local.tags):
            # each atom in the image in which it was before
            positions = local.unwrapped(self._last[1])
        self._last = local.tags, positions @ np.linalg.inv(local.cell)
        atoms = Atoms(numbers=local.numbers, positions=positions, cell=local.cell, pbc=local.pbc)
        return evaluated(self.potential, self._neighbors.graph(atoms))


def evaluated(potential: Potential, graph: AtomGraph) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy, eV, forces [n_atoms, 3], eV/Angstrom, and virial [3, 3], eV, of one structure.

    Raises:
        ClebschError: one of them is not a finite number.
    """
    prediction = potential(graph, ("energy", "forces", "virial"))
    assert prediction.energy is not None
    assert prediction.forces is not None
    assert prediction.virial is not None
    energy, forces = float(prediction.energy), prediction.forces.cpu().numpy()
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        raise ClebschError("the model's energy or a force is not a finite number")
    return energy, forces, prediction.virial[0].cpu().numpy()
