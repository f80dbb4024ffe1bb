"""How a crystal resists: its energy-volume curve and the elastic constants of a cubic one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator
from ase.eos import EquationOfState
from ase.optimize import BFGS

from clebsch.calculators import as_calculator
from clebsch.errors import ClebschError
from clebsch.potential import Potential
from clebsch.simulation.structure import bare_copy, check_periodic

_RELAXED_FORCE = 1e-4  # eV/A
_RELAXATION_STEPS = 500
_STRAINS = tuple(np.linspace(-0.03, 0.03, 13))


@dataclass(frozen=True, eq=False)
class EnergyVolumeCurve:
    """Energies of a scaled crystal, with a Birch-Murnaghan equation of state fitted to them.

    Attributes:
        volumes: [n] Angstrom^3, of the whole cell.
        energies: [n] eV, of the whole cell.
        volume: at the minimum, Angstrom^3.
        energy: at the minimum, eV.
        bulk_modulus: GPa.
        bulk_modulus_derivative: with respect to pressure, no unit.
        fit_error: root mean square deviation of the fit, eV.
    """

    volumes: np.ndarray
    energies: np.ndarray
    volume: float
    energy: float
    bulk_modulus: float
    bulk_modulus_derivative: float
    fit_error: float


@dataclass(frozen=True)
class CubicElasticConstants:
    """Elastic constants of a cubic crystal in GPa, at the cell that was given.

    Attributes:
        c11, c12, c44: means over the three axes.
        spread: the largest deviation of one axis from these means, or of a constant that has to
            be zero; zero for a cubic crystal whose axes lie along x, y and z.
        pressure: of the undeformed cell; the constants mean what they say where it is near zero.
    """

    c11: float
    c12: float
    c44: float
    spread: float
    pressure: float

    @property
    def bulk_modulus(self) -> float:
        """(C11 + 2 C12) / 3, GPa."""
        return (self.c11 + 2 * self.c12) / 3


def energy_volume_curve(
    source: Potential | BaseCalculator,
    atoms: Atoms,
    strains: Sequence[float] | np.ndarray = _STRAINS,
) -> EnergyVolumeCurve:
    """Scale a crystal isotropically and fit an equation of state.

    Args:
        source: a potential, or any ASE calculator.
        atoms: periodic in three directions, near its equilibrium; not moved.
        strains: relative changes of all lengths; at least five, on both sides of the minimum.

    Raises:
        ClebschError: not a crystal, too few strains, or no minimum between them.
    """
    check_periodic(atoms, "an energy-volume curve")
    if len(strains) < 5:
        raise ClebschError(f"an equation of state needs at least 5 strains, not {len(strains)}")
    crystal = bare_copy(atoms)
    crystal.calc = as_calculator(source)
    cell = crystal.cell.array.copy()
    volumes, energies = [], []
    for strain in strains:
        crystal.set_cell(cell * (1 + strain), scale_atoms=True)
        volumes.append(float(crystal.cell.volume))
        energies.append(float(crystal.get_potential_energy()))
    lowest = int(np.argmin(energies))
    if not min(volumes) < volumes[lowest] < max(volumes):
        raise ClebschError(
            f"the energy has no minimum between the volumes {min(volumes):.2f} and "
            f"{max(volumes):.2f} Angstrom^3: relax the cell first, or use larger strains"
        )
    equation = EquationOfState(volumes, energies, eos="birchmurnaghan")
    volume, energy, modulus = equation.fit()
    residuals = np.array(energies) - equation.func(np.array(volumes), *equation.eos_parameters)
    return EnergyVolumeCurve(
        volumes=np.array(volumes),
        energies=np.array(energies),
        volume=float(volume),
        energy=float(energy),
        bulk_modulus=float(modulus / units.GPa),
        bulk_modulus_derivative=float(equation.eos_parameters[2]),
        fit_error=float(np.sqrt(np.mean(residuals**2))),
    )


def cubic_elastic_constants(
    source: Potential | BaseCalculator,
    atoms: Atoms,
    *,
    strain: float = 0.005,
    relax: bool = False,
) -> CubicElasticConstants:
    """C11, C12 and C44 from the stress of strained cells, by central differences.

    Args:
        source: a potential, or any ASE calculator.
        atoms: a cubic crystal with its cubic axes along x, y and z; relax its cell first (with
            the same potential). Not moved.
        strain: size of the strain.
        relax: relax the positions in each strained cell; needed where atoms are not at centres of
            inversion.

    Raises:
        ClebschError: not a crystal, a strain that is not small and positive, or positions that
            did not relax.
    """
    check_periodic(atoms, "straining a crystal")
    if not 0 < strain < 0.1:
        raise ClebschError(f"a strain of {strain} is not small and positive")
    crystal = bare_copy(atoms)
    crystal.calc = as_calculator(source)
    pressure = -float(crystal.get_stress()[:3].mean()) / units.GPa
    strains = [kind(axis, strain) for kind in (_normal_strain, _shear_strain) for axis in range(3)]
    found = np.array([_stress_difference(crystal, each, relax) for each in strains]) / (2 * strain)
    normal, shear = found[:3, :3].diagonal(), found[3:, 3:].diagonal()
    c11, c44 = normal.mean(), shear.mean()
    c12 = (found[:3, :3].sum() - normal.sum()) / 6
    cubic = np.diag([*[c11 - c12] * 3, *[c44] * 3])
    cubic[:3, :3] += c12
    return CubicElasticConstants(
        c11=float(c11),
        c12=float(c12),
        c44=float(c44),
        spread=float(np.abs(found - cubic).max()),
        pressure=pressure,
    )


def _normal_strain(axis: int, size: float) -> np.ndarray:
    strain = np.zeros((3, 3))
    strain[axis, axis] = size
    return strain


def _shear_strain(axis: int, size: float) -> np.ndarray:
    """[3, 3] in the plane perpendicular to ``axis``: Voigt component 3 + axis is ``size``."""
    strain = np.zeros((3, 3))
    one, other = (i for i in range(3) if i != axis)
    strain[one, other] = strain[other, one] = size / 2
    return strain


def _stress_difference(crystal: Atoms, strain: np.ndarray, relax: bool) -> np.ndarray:
    """[6] Voigt, GPa: stress at +strain less stress at -strain; the crystal is left as it was."""
    cell, positions = crystal.cell.array.copy(), crystal.positions.copy()
    difference = np.zeros(6)
    for sign in (1, -1):
        crystal.set_cell(cell, scale_atoms=False)
        crystal.positions = positions
        crystal.set_cell(cell @ (np.eye(3) + sign * strain), scale_atoms=True)
        if relax and not BFGS(crystal, logfile=None).run(_RELAXED_FORCE, _RELAXATION_STEPS):
            raise ClebschError("the positions did not relax in a strained cell")
        difference += sign * crystal.get_stress() / units.GPa
    crystal.set_cell(cell, scale_atoms=False)
    crystal.positions = positions
    return difference
