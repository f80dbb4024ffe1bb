"""Atoms beyond the model's cut-off of all others: no force of the model acts on them there.

In a molecule ``guard`` ends the run where one is far away. A slab may lose an atom, or a gas be
meant, so that elsewhere this is said and ends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.geometry import get_distances

from clebsch.calculators import ClebschCalculator


@dataclass(frozen=True)
class LoneAtoms:
    """Which atoms had no other within the model's cut-off, in recorded frames.

    Attributes:
        cutoff: of the model, Angstrom.
        atoms: their indices, in the order in which they were found.
        step: of the frame in which the first of them was.
        distance: largest one of that atom from its nearest neighbour in such a frame, Angstrom.
    """

    cutoff: float
    atoms: list[int]
    step: int
    distance: float

    def describe(self, atoms: Atoms) -> str:
        """A sentence for people; ``atoms`` are those of the run."""
        first, others = self.atoms[0], len(self.atoms) - 1
        more = "" if not others else f"; so were {others} others" if others > 1 else "; so was one"
        return (
            f"atom {first} ({atoms.symbols[first]}) was beyond the model's cut-off of "
            f"{self.cutoff:g} Angstrom, where no force acts, from step {self.step} on: up to "
            f"{self.distance:.1f} Angstrom from its nearest neighbour{more}"
        )


def with_lone_atoms(before: LoneAtoms | None, atoms: Atoms, step: int) -> LoneAtoms | None:
    """What is known of lone atoms after one more frame, whose energy was computed.

    The model's neighbours are at hand, and only where an atom has none is a distance computed.

    Args:
        before: what was known.
        atoms: the frame; calculators other than Clebsch's tell no cut-off, and nothing is found.
        step: of the frame.
    """
    if not isinstance(atoms.calc, ClebschCalculator) or len(atoms) < 2:
        return before
    alone = atoms.calc.lone_atoms()
    if not alone:
        return before
    known = (
        LoneAtoms(float(atoms.calc.potential.cutoff), [], step, 0.0) if before is None else before
    )
    found = list(dict.fromkeys([*known.atoms, *alone]))
    distance = _nearest(atoms, found[0]) if found[0] in alone else 0.0
    return LoneAtoms(known.cutoff, found, known.step, max(known.distance, distance))


def _nearest(atoms: Atoms, atom: int) -> float:
    """Angstrom from an atom to the nearest other, across periodic images."""
    others = np.delete(atoms.positions, atom, axis=0)
    distances = get_distances(atoms.positions[[atom]], others, atoms.cell, atoms.pbc)[1]
    return float(distances.min())
