"""One labelled structure, as it travels from files to training and judging."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.symbols import Symbols

#: Atoms closer than this, Angstrom, are at one place, without a direction to each other.
ONE_PLACE = 1e-6


@dataclass(frozen=True, eq=False)
class Frame:
    """A structure with the labels that were found for it; a missing label is None.

    Attributes:
        numbers: [n] int64, atomic numbers.
        positions: [n, 3] float64, Angstrom.
        cell: [3, 3] float64, rows are lattice vectors; zeros without a cell.
        pbc: [3] bool.
        energy: total energy in eV.
        forces: [n, 3] float64, eV/Angstrom.
        stress: [3, 3] float64 symmetric, eV/Angstrom^3, ASE's sign.
        weight: multiplies all loss terms of this structure; the three below one term each.
        energy_weight: factor on the energy term.
        forces_weight: factor on the forces term.
        stress_weight: factor on the stress term.
        source: "path:index" of the frame (index from 0), for messages.
        info: what else the file said about this frame (config_type and the like).
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    energy: float | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    weight: float = 1.0
    energy_weight: float = 1.0
    forces_weight: float = 1.0
    stress_weight: float = 1.0
    source: str = ""
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def symbols(self) -> list[str]:
        """Chemical symbols, one per atom."""
        return [chemical_symbols[z] for z in self.numbers]

    @property
    def formula(self) -> str:
        """Composition in Hill's order, like "C2H6O"."""
        return str(Symbols(self.numbers).get_chemical_formula("hill"))

    @property
    def has_labels(self) -> bool:
        """Whether there is an energy, forces or a stress."""
        return not (self.energy is None and self.forces is None and self.stress is None)

    def to_atoms(self) -> Atoms:
        """The same structure for ASE, with its labels in a ``SinglePointCalculator``."""
        atoms = Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=self.pbc)
        atoms.info.update(self.info)
        labels: dict[str, Any] = {}
        if self.energy is not None:
            labels["energy"] = self.energy
        if self.forces is not None:
            labels["forces"] = self.forces
        if self.stress is not None:
            labels["stress"] = self.stress
        if labels:
            atoms.calc = SinglePointCalculator(atoms, **labels)
        return atoms
