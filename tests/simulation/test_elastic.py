"""Elastic constants: the same from stresses, from energies and from the equation of state."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from clebsch.errors import ClebschError
from clebsch.simulation.elastic import cubic_elastic_constants, energy_volume_curve
from clebsch.simulation.relax import run_relax


@pytest.fixture(scope="module")
def copper() -> Atoms:
    return run_relax(EMT(), bulk("Cu", cubic=True), cell=True, fmax=1e-5).atoms


@pytest.fixture(scope="module")
def alloy() -> Atoms:
    """Cu3Au, L1_2: cubic, with atoms that stay in place by symmetry."""
    crystal = bulk("Cu", cubic=True, a=3.7)
    crystal.symbols[0] = "Au"
    return run_relax(EMT(), crystal, cell=True, fmax=1e-5).atoms


def energy_curvature(crystal: Atoms, strain: np.ndarray) -> float:
    """Second derivative of the energy density along a strain, GPa."""
    size, energies = 0.002, []
    for factor in (-size, 0.0, size):
        strained = crystal.copy()
        strained.calc = EMT()
        strained.set_cell(crystal.cell.array @ (np.eye(3) + factor * strain), scale_atoms=True)
        energies.append(strained.get_potential_energy())
    curvature = (energies[0] - 2 * energies[1] + energies[2]) / size**2
    return curvature / crystal.cell.volume / units.GPa


@pytest.mark.parametrize("name", ["copper", "alloy"])
def test_constants_from_stresses_equal_those_from_energies(
    name: str, request: pytest.FixtureRequest
) -> None:
    crystal = request.getfixturevalue(name)
    constants = cubic_elastic_constants(EMT(), crystal, strain=0.002)
    shear = np.array([[0, 0, 0], [0, 0, 0.5], [0, 0.5, 0]])
    assert energy_curvature(crystal, np.diag([1, 0, 0])) == pytest.approx(constants.c11, rel=2e-3)
    assert energy_curvature(crystal, np.diag([1, -1, 0])) == pytest.approx(
        2 * (constants.c11 - constants.c12), rel=2e-3
    )
    assert energy_curvature(crystal, shear) == pytest.approx(constants.c44, rel=2e-3)
    assert constants.spread < 1e-6
    assert abs(constants.pressure) < 0.01


@pytest.mark.parametrize(
    ("angle", "axis"), [(60, (1, 1, 1)), (45, (0, 0, 1))], ids=["threefold", "fourfold"]
)
def test_the_spread_tells_that_axes_lie_otherwise(
    copper: Atoms, angle: float, axis: tuple[int, ...]
) -> None:
    """Turned about a diagonal, the three axes look alike and the means are of no crystal."""
    turned = copper.copy()
    turned.rotate(angle, axis, rotate_cell=True)
    assert cubic_elastic_constants(EMT(), turned).spread > 10


def test_emts_copper_has_its_known_constants(copper: Atoms) -> None:
    constants = cubic_elastic_constants(EMT(), copper)
    # ASE's own test suite finds 134 GPa for the bulk modulus of EMT's copper.
    assert constants.bulk_modulus == pytest.approx(134.4, rel=0.01)
    assert constants.c11 == pytest.approx(173, abs=1)
    assert constants.c12 == pytest.approx(115, abs=1)
    assert constants.c44 == pytest.approx(90, abs=1)


def test_the_equation_of_state_agrees_with_the_constants(alloy: Atoms) -> None:
    curve = energy_volume_curve(EMT(), alloy)
    constants = cubic_elastic_constants(EMT(), alloy)
    assert curve.bulk_modulus == pytest.approx(constants.bulk_modulus, rel=0.01)
    assert curve.volume == pytest.approx(alloy.cell.volume, rel=1e-4)
    assert curve.energy == pytest.approx(alloy.get_potential_energy(), abs=1e-4)
    assert curve.fit_error < 1e-3
    assert len(curve.energies) == len(curve.volumes) == 13
    assert 3 < curve.bulk_modulus_derivative < 7


def test_relaxed_constants_of_a_rattled_crystal_are_the_perfect_ones(copper: Atoms) -> None:
    rattled = copper.copy()
    rattled.rattle(0.05, seed=2)
    perfect = cubic_elastic_constants(EMT(), copper)
    relaxed = cubic_elastic_constants(EMT(), rattled, relax=True)
    assert relaxed.c11 == pytest.approx(perfect.c11, rel=1e-3)
    assert relaxed.c44 == pytest.approx(perfect.c44, rel=1e-3)
    assert cubic_elastic_constants(EMT(), rattled).c44 != pytest.approx(perfect.c44, rel=1e-2)


def test_bad_input(copper: Atoms) -> None:
    with pytest.raises(ClebschError, match="periodic"):
        cubic_elastic_constants(EMT(), molecule("H2O"))
    with pytest.raises(ClebschError, match="small and positive"):
        cubic_elastic_constants(EMT(), copper, strain=0.5)
    with pytest.raises(ClebschError, match="at least 5"):
        energy_volume_curve(EMT(), copper, [0.0, 0.01])
    with pytest.raises(ClebschError, match="no minimum"):
        energy_volume_curve(EMT(), copper, np.linspace(0.02, 0.06, 6))
