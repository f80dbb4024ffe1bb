"""Initial velocities: the right temperature over the right degrees of freedom, no drift."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms

from clebsch.simulation.velocities import (
    conserved_degrees_of_freedom,
    draw_momenta,
    temperature_of,
)


@pytest.mark.parametrize(
    ("atoms", "expected"),
    [
        (molecule("CH3CH2OH"), 21),
        (molecule("CO2"), 4),
        (molecule("N2"), 1),
        (Atoms("Ar"), 3),
        (bulk("Cu", cubic=True), 9),
    ],
    ids=["ethanol", "CO2", "N2", "one atom", "crystal"],
)
def test_degrees_of_freedom_and_mean_temperature(atoms: Atoms, expected: int) -> None:
    rng = np.random.default_rng(1)
    temperatures = []
    for _ in range(4000):
        draw_momenta(atoms, 300, rng)
        temperatures.append(temperature_of(atoms, expected))
    assert conserved_degrees_of_freedom(atoms) == expected
    # The mean of 4000 draws of a chi-square of d degrees has a relative error sqrt(2/d/4000).
    tolerance = 4 * np.sqrt(2 / expected / 4000)
    assert np.mean(temperatures) == pytest.approx(300, rel=tolerance)


def test_nothing_drifts_and_nothing_rotates() -> None:
    atoms = molecule("CH3CH2OH")
    draw_momenta(atoms, 300, np.random.default_rng(0))
    momenta = atoms.get_momenta()
    assert np.abs(momenta).max() > 0.1
    np.testing.assert_allclose(momenta.sum(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(atoms.get_angular_momentum(), 0, atol=1e-12)


def test_the_rotation_of_a_crystal_is_kept() -> None:
    atoms = bulk("Cu", cubic=True)
    draw_momenta(atoms, 300, np.random.default_rng(0))
    np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0, atol=1e-12)
    assert np.abs(atoms.get_angular_momentum()).max() > 0.1


def test_motions_that_are_not_at_rest_share_the_energy() -> None:
    atoms = molecule("CH3CH2OH")
    draw_momenta(atoms, 300, np.random.default_rng(0))
    atoms.set_momenta(atoms.get_momenta() + 0.1 * atoms.get_masses()[:, None])
    assert conserved_degrees_of_freedom(atoms) == 27


def test_fixed_atoms_stay_fixed() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.set_constraint(FixAtoms([0, 1]))
    draw_momenta(atoms, 300, np.random.default_rng(0))
    assert not atoms.get_momenta()[:2].any()
    assert conserved_degrees_of_freedom(atoms) == 6
