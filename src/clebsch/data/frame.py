"""One labelled structure, as it travels from files to training and judging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.symbols import Symbols

#: The kinds of weight that a frame has.
WEIGHTS = ("weight", "energy_weight", "forces_weight", "stress_weight")


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
        free_energy: eV, where the file tells one beside the energy (electrons smeared out over
            levels); it is no label, but forces and stress are derivatives of it.
        weight: multiplies all loss terms of this structure; the three below one term each.
        energy_weight: factor on the energy term.
        forces_weight: factor on the forces term.
        stress_weight: factor on the stress term.
        left_out: labels that the file gives with the weight 0. They count as missing, since what
            stands there may be anything, and are None above.
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
    free_energy: float | None = None
    weight: float = 1.0
    energy_weight: float = 1.0
    forces_weight: float = 1.0
    stress_weight: float = 1.0
    left_out: tuple[str, ...] = ()
    source: str = ""
    info: dict[str, Any] = field(default_factory=dict)

    def place(self, index: int) -> str:
        """Where it came from, for messages; its index in a list of frames if it does not say."""
        return self.source or f"frame {index}"

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def structure(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What it is without its labels: numbers, positions, cell and pbc."""
        return self.numbers, self.positions, self.cell, self.pbc

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


def describe_weights(frames: Sequence[Frame]) -> str:
    """Each kind of weight that is not 1 everywhere, with its range; "" if there is none."""
    shown = []
    for kind in WEIGHTS:
        values = [getattr(frame, kind) for frame in frames]
        changed = sum(value != 1 for value in values)
        if changed:
            shown.append(
                f"{kind} {min(values):g} to {max(values):g} "
                f"(not 1 for {changed} of {len(values)} structures)"
            )
    return ", ".join(shown)


def describe_left_out(frames: Sequence[Frame]) -> str:
    """How many labels count as missing for their weight 0; "" if none does."""
    names = {"energy": "energies", "forces": "sets of forces", "stress": "stresses"}
    counts = {name: sum(label in f.left_out for f in frames) for label, name in names.items()}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
