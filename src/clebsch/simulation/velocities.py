"""Initial velocities, and how many degrees of freedom share the kinetic energy."""

from __future__ import annotations

import numpy as np
from ase import Atoms, units


def draw_momenta(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Give ``atoms`` momenta from the Maxwell-Boltzmann distribution at ``temperature`` (K).

    The total momentum is taken out, and of a structure without periodicity the rotation too. The
    degrees of freedom that remain keep their share of the energy: nothing is rescaled. Structures
    with constraints and single atoms keep all that is drawn, but for what is constrained.
    """
    masses = atoms.get_masses()[:, None]
    momenta = rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature)
    if len(atoms) > 1 and not atoms.constraints:
        momenta -= masses * momenta.sum(axis=0) / masses.sum()
        if not atoms.pbc.any():
            momenta -= masses * _rigid_rotation(atoms, momenta)
    atoms.set_momenta(momenta)


def conserved_degrees_of_freedom(atoms: Atoms) -> int:
    """Degrees of freedom at constant energy: without the motions that are at rest and stay so.

    Total momentum, and the rotation of a structure without periodicity, are conserved; where they
    are zero they take no part in the temperature.
    """
    total = int(atoms.get_number_of_degrees_of_freedom())
    momenta = atoms.get_momenta()
    scale = np.abs(momenta).max(initial=0.0)
    if len(atoms) == 1 or atoms.constraints or scale == 0:
        return total
    if np.abs(momenta.sum(axis=0)).max() < 1e-8 * scale * len(atoms):
        total -= 3
        rotation = _rigid_rotation(atoms, momenta)
        velocities = momenta / atoms.get_masses()[:, None]
        if not atoms.pbc.any() and np.abs(rotation).max() < 1e-8 * np.abs(velocities).max():
            inertia = _inertia(atoms)
            total -= int(np.linalg.matrix_rank(inertia, tol=1e-6 * np.trace(inertia)))
    return max(total, 1)


def temperature_of(atoms: Atoms, degrees_of_freedom: int) -> float:
    """Kinetic temperature in K."""
    momenta = atoms.arrays["momenta"]
    kinetic = 0.5 * float(np.sum(momenta * momenta / atoms.get_masses()[:, None]))
    return 2 * kinetic / (degrees_of_freedom * units.kB)


def _inertia(atoms: Atoms) -> np.ndarray:
    """[3, 3] about the centre of mass; singular for linear molecules."""
    arms = atoms.positions - atoms.get_center_of_mass()
    masses = atoms.get_masses()
    return np.eye(3) * np.sum(masses * np.sum(arms * arms, axis=1)) - (arms.T * masses) @ arms


def _rigid_rotation(atoms: Atoms, momenta: np.ndarray) -> np.ndarray:
    """[n, 3] velocities of the rigid rotation that carries the angular momentum."""
    arms = atoms.positions - atoms.get_center_of_mass()
    angular_momentum = np.cross(arms, momenta).sum(axis=0)
    angular_velocity = np.linalg.pinv(_inertia(atoms), rcond=1e-8) @ angular_momentum
    return np.cross(angular_velocity, arms)
