"""What ends a run early: a structure that has blown up."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from scipy.spatial import cKDTree

from clebsch.simulation.velocities import temperature_of

_LARGEST_TEMPERATURE = 10_000.0  # K; or ten times the temperature of the run
_LOST_DISTANCE = 10.0  # Angstrom between an atom of a molecule and its nearest neighbour
_LARGEST_VOLUME_CHANGE = 5.0


class BlowUpGuard:
    """Tells when a structure has left what any potential can describe."""

    def __init__(self, atoms: Atoms, degrees_of_freedom: int, temperature: float | None) -> None:
        self._degrees_of_freedom = degrees_of_freedom
        self._largest_temperature = max(_LARGEST_TEMPERATURE, 10 * (temperature or 0.0))
        self._volume = atoms.cell.volume
        self._is_cluster = not atoms.pbc.any() and _loneliest(atoms)[1] < _LOST_DISTANCE

    def trouble(self, atoms: Atoms) -> str | None:
        """What is wrong, cheap enough for every step."""
        temperature = temperature_of(atoms, self._degrees_of_freedom)
        if not np.isfinite(temperature):
            return "velocities are not finite numbers"
        if temperature > self._largest_temperature:
            return f"the temperature has reached {temperature:.0f} K"
        return None

    def trouble_at_record(self, atoms: Atoms) -> str | None:
        """What is wrong, checked whenever a frame is written."""
        if not np.isfinite(atoms.get_potential_energy()):
            return "the energy is not a finite number"
        if self._volume > 0:
            ratio = atoms.cell.volume / self._volume
            if not 1 / _LARGEST_VOLUME_CHANGE < ratio < _LARGEST_VOLUME_CHANGE:
                return f"the volume has become {ratio:.2g} times what it was"
        if self._is_cluster:
            atom, distance = _loneliest(atoms)
            if distance > _LOST_DISTANCE:
                return (
                    f"atom {atom} ({atoms.symbols[atom]}) has left the others: it is "
                    f"{distance:.1f} Angstrom from its nearest neighbour"
                )
        return None


def _loneliest(atoms: Atoms) -> tuple[int, float]:
    """The atom that is farthest from its nearest neighbour, and that distance."""
    if len(atoms) < 2:
        return 0, 0.0
    distances = cKDTree(atoms.positions).query(atoms.positions, k=2)[0][:, 1]
    atom = int(distances.argmax())
    return atom, float(distances[atom])
