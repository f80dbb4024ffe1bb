"""The three ensembles, their settings, and what a restart must remember of an integrator.

NVE is velocity Verlet. NVT and NPT are the BAOAB splitting of Langevin dynamics (Leimkuhler and
Matthews, J. Chem. Phys. 138, 174102 (2013)), whose sampled positions hardly depend on the time
step; for NPT with the Langevin-Hoover barostat of Quigley and Probert (J. Chem. Phys. 120, 11432
(2004)), in which the volume fluctuates and the shape of the cell is kept. Stochastic thermostats on
the atoms and on the volume alike make both ergodic even for a few atoms in a harmonic crystal,
where Nose-Hoover chains may not be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.constraints import FixAtoms, FixCartesian, FixCom, FixedLine, FixedPlane, Hookean
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.md import MolecularDynamics
from ase.md.verlet import VelocityVerlet

from clebsch.errors import ClebschError, did_you_mean
from clebsch.simulation.structure import check_periodic

ENSEMBLES = ("nve", "nvt", "npt")

#: Settings that do something in some ensembles alone.
_ACT_IN = {
    "pressure": ("npt",),
    "friction": ("nvt", "npt"),
    "barostat_period_fs": ("npt",),
}

#: ASE's Langevin steps move positions and project velocities: what projections hold, and forces.
_HELD_BY_NVT = (FixAtoms, FixCartesian, FixCom, FixedLine, FixedPlane, Hookean)

#: eV/A^3 (20 GPa). The barostat's mass is chosen such that the volume of a material with this bulk
#: modulus oscillates with the period asked for; between a liquid (2 GPa) and a hard solid (200 GPa)
#: the true period is within a factor of three of it. The ensemble does not depend on it.
_TYPICAL_BULK_MODULUS = 20 * units.GPa


@dataclass(frozen=True)
class MDSettings:
    """What defines a run, besides potential and structure; a restart must have the same.

    Attributes:
        ensemble: "nve", "nvt" or "npt".
        timestep_fs: time step, fs.
        temperature: K; for nve of the initial velocities, None to keep those of the structure.
        pressure: GPa, of npt.
        friction: of the Langevin thermostat, 1/ps.
        barostat_period_fs: time over which the volume oscillates and forgets, fs.
        seed: of velocities and random forces.
    """

    ensemble: str = "nve"
    timestep_fs: float = 0.5
    temperature: float | None = None
    pressure: float = 0.0
    friction: float = 10.0
    barostat_period_fs: float = 1000.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            ClebschError: naming the setting.
        """
        if self.ensemble not in ENSEMBLES:
            hint = did_you_mean(self.ensemble, ENSEMBLES)
            raise ClebschError(f"unknown ensemble {self.ensemble!r}. {hint}")
        if self.temperature is None and self.ensemble != "nve":
            raise ClebschError(f"{self.ensemble} needs a temperature (K)")
        if self.seed < 0:
            raise ClebschError(f"seed = {self.seed} is negative")
        if not np.isfinite(self.pressure):
            raise ClebschError(f"pressure = {self.pressure} GPa is not a finite number")
        for name in ("timestep_fs", "temperature", "friction", "barostat_period_fs"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ClebschError(f"{name} = {value} is not a positive number")


def settings_that_act(ensemble: str, **given: float | None) -> dict[str, float]:
    """The settings that are given, which None is not.

    Raises:
        ClebschError: one does nothing in this ensemble.
    """
    found = {name: value for name, value in given.items() if value is not None}
    for name in found:
        if ensemble in ENSEMBLES and ensemble not in _ACT_IN[name]:
            raise ClebschError(
                f"{name} does nothing in {ensemble}, only in {' and '.join(_ACT_IN[name])}: leave "
                "it out, or take another ensemble"
            )
    return found


def make_integrator(
    atoms: Atoms, settings: MDSettings, rng: np.random.Generator
) -> MolecularDynamics:
    """The integrator of an ensemble, about to move ``atoms`` (which have momenta and a calculator).

    Raises:
        ClebschError: npt of a structure that is not periodic in three directions, or constrained;
            nvt with constraints that it does not keep to.
    """
    timestep = settings.timestep_fs * units.fs
    if settings.ensemble == "nve":
        return VelocityVerlet(atoms, timestep)
    thermostat = {
        "temperature_K": settings.temperature,
        "T_tau": 1000 * units.fs / settings.friction,
        "rng": rng,
        # Without a barostat this only spares a matrix exponential at each step.
        "hydrostatic": True,
    }
    if settings.ensemble == "nvt":
        for constraint in atoms.constraints:
            if not isinstance(constraint, _HELD_BY_NVT):
                raise ClebschError(
                    f"nvt does not keep to the constraint {type(constraint).__name__}, nve does; "
                    f"nvt keeps to {', '.join(kind.__name__ for kind in _HELD_BY_NVT)}"
                )
        return LangevinBAOAB(atoms, timestep, **thermostat)
    check_periodic(atoms, "npt")
    if atoms.constraints:
        raise ClebschError("npt cannot hold atoms in place while the cell moves: no constraints")
    period = settings.barostat_period_fs * units.fs
    return LangevinBAOAB(
        atoms,
        timestep,
        externalstress=-settings.pressure * units.GPa,
        P_tau=period,
        P_mass=9 * atoms.cell.volume * _TYPICAL_BULK_MODULUS * (period / (2 * np.pi)) ** 2,
        **thermostat,
    )


def integrator_state(dynamics: MolecularDynamics, rng: np.random.Generator) -> dict[str, Any]:
    """What, besides positions, momenta and cell, determines all further steps; fit for JSON."""
    state: dict[str, Any] = {"rng": rng.bit_generator.state}
    if isinstance(dynamics, LangevinBAOAB) and dynamics.externalstress is not None:
        # force_eps holds the kinetic energy of the middle of the last step, which is gone.
        for name in ("p_eps", "force_eps", "barostat_mass"):
            state[name] = float(getattr(dynamics, name))
    return state


def restore_integrator(
    dynamics: MolecularDynamics, rng: np.random.Generator, state: dict[str, Any]
) -> None:
    """Undo ``integrator_state``."""
    rng.bit_generator.state = state["rng"]
    for name in ("p_eps", "force_eps"):
        if name in state:
            setattr(dynamics, name, state[name])
    if "barostat_mass" in state:
        dynamics.barostat_mass = state["barostat_mass"]
        dynamics.set_temperature(dynamics.temperature_K)  # the noise depends on the mass
