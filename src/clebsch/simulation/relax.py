"""Relaxation of positions, and of the cell, to the nearest minimum of the energy."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator
from ase.filters import FrechetCellFilter
from ase.io.formats import UnknownFileTypeError, filetype, get_ioformat
from ase.io.trajectory import TrajectoryWriter
from ase.optimize import BFGS, FIRE, LBFGS

from clebsch.calculators import as_calculator
from clebsch.contacts import Contact
from clebsch.errors import ClebschError, DataError, did_you_mean
from clebsch.files import check_outputs
from clebsch.interrupt import stop_on_signals
from clebsch.potential import Potential
from clebsch.simulation.contacts import contacts_of, describe_contacts
from clebsch.simulation.structure import bare_copy, check_periodic

OPTIMIZERS = {"bfgs": BFGS, "fire": FIRE, "lbfgs": LBFGS}

#: Stress that a relaxed cell may be left with, GPa, if nothing else is asked for.
DEFAULT_SMAX = 0.01

#: Called with steps done, the largest force in eV/Angstrom, and the energy in eV.
ProgressCallback = Callable[[int, float, float], None]


@dataclass(frozen=True, eq=False)
class RelaxResult:
    """Where a relaxation ended, converged or not.

    Attributes:
        converged: the largest force is below ``fmax``; if the cell was relaxed, its gradient is as
            well, and the largest deviation of the stress is below ``smax``.
        interrupted: stopped by Ctrl-C or SIGTERM before the end.
        steps: optimiser steps done.
        energy_initial, energy_final: eV.
        max_force: largest force on an atom at the end, eV/Angstrom.
        max_stress: largest deviation of a stress component from the target pressure, GPa; None
            unless the cell was relaxed.
        volume_initial, volume_final: Angstrom^3; None unless the cell was relaxed.
        contacts: atoms much closer at the end than any in training; empty where that is not known.
        output, trajectory: the files; None if not asked for.
        atoms: the final structure with its calculator.
    """

    converged: bool
    interrupted: bool
    steps: int
    energy_initial: float
    energy_final: float
    max_force: float
    max_stress: float | None
    volume_initial: float | None
    volume_final: float | None
    contacts: list[Contact]
    output: Path | None
    trajectory: Path | None
    atoms: Atoms

    def to_json(self) -> dict[str, Any]:
        """Everything but the structure, fit for ``json.dumps``."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "atoms"}
        values["contacts"] = [asdict(contact) for contact in self.contacts]
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}

    def describe(self) -> str:
        """A few lines for people."""
        end = "Converged" if self.converged else "NOT converged"
        lines = [
            f"{end} after {self.steps} steps",
            f"Energy      {self.energy_initial:.6f} -> {self.energy_final:.6f} eV",
            f"Max. force  {self.max_force:.5f} eV/Angstrom",
        ]
        if self.energy_final > self.energy_initial + 1e-6 and self.max_stress is None:
            lines.append("The energy has RISEN: the search left its valley; try another optimizer")
        if self.max_stress is not None:
            lines.append(f"Max. stress {self.max_stress:.5f} GPa away from the pressure asked for")
            lines.append(
                f"Volume      {self.volume_initial:.3f} -> {self.volume_final:.3f} Angstrom^3"
            )
        if self.contacts:
            lines.append(f"Warning     atoms are {describe_contacts(self.contacts)}")
        if self.output is not None:
            lines.append(f"Structure   {self.output}")
        if self.trajectory is not None:
            lines.append(f"Trajectory  {self.trajectory}")
        return "\n".join(lines)


def run_relax(
    source: Potential | BaseCalculator,
    atoms: Atoms,
    *,
    fmax: float = 0.01,
    steps: int = 500,
    cell: bool = False,
    pressure: float = 0.0,
    smax: float | None = None,
    optimizer: str = "bfgs",
    output: Path | str | None = None,
    trajectory: Path | str | None = None,
    overwrite: bool = False,
    inputs: Iterable[Path | str] = (),
    name: str = "the structure",
    progress: ProgressCallback | None = None,
) -> RelaxResult:
    """Relax a structure; ``atoms`` itself is not moved.

    Ctrl-C and SIGTERM end the search after the current step: the structure reached is the result.

    Args:
        source: a potential, or any ASE calculator.
        atoms: the initial structure; its constraints hold.
        fmax: converged when no force exceeds it, eV/Angstrom, nor the gradient by the cell, eV per
            atom and unit of strain.
        steps: at most so many steps of the optimiser.
        cell: relax the lattice vectors too.
        pressure: GPa, on the relaxed cell.
        smax: with ``cell`` alone: converged when, besides, no component of the stress is further
            from that pressure, GPa; 0.01 if None.
        optimizer: "bfgs" (few steps, downhill; up to a thousand atoms), "fire" (any size, slower)
            or "lbfgs" (any size, but only near a minimum: elsewhere it may climb).
        output: file for the final structure, its format by the suffix.
        trajectory: ``.traj`` file for the structure after every step.
        overwrite: replace files that exist.
        inputs: files that model and structure were read from, which are never replaced.
        name: of the structure, or of its file, in errors.
        progress: called after every step.

    Raises:
        ClebschError: settings that make no sense; files that exist, or that cannot be written, as
            on a disk that is full by now; a format that cannot hold the structure; a cell to relax
            that is not periodic in all three directions; an energy or force that is not a finite
            number.
    """
    _check(atoms, fmax, steps, cell, pressure, smax, optimizer)
    smax = DEFAULT_SMAX if smax is None else smax
    output = None if output is None else Path(output)
    trajectory = None if trajectory is None else Path(trajectory)
    check_outputs((output, trajectory), overwrite=overwrite, inputs=inputs)
    _check_formats(output, trajectory)
    moved = bare_copy(atoms)
    moved.calc = as_calculator(source)
    volume = float(moved.cell.volume) if cell else None
    target = moved
    if cell:
        target = FrechetCellFilter(moved, scalar_pressure=pressure * units.GPa)
    energy = _finite_energy(moved, 0, name)
    if output is not None:
        with _folder_beside(output) as folder:
            _write(Path(folder, output.name), moved, output)
    frames = TrajectoryWriter(trajectory) if trajectory is not None else None
    search = OPTIMIZERS[optimizer](target, logfile=None)

    def after_step() -> None:
        _finite_energy(moved, search.nsteps, name)
        if frames is not None:
            with _writing(trajectory):
                frames.write(moved)
        if progress is not None:
            progress(search.nsteps, _max_force(moved), moved.get_potential_energy())

    search.attach(after_step)
    converged = False
    with stop_on_signals() as request:
        try:
            # 0 is never reached: ASE's own criterion, forces alone, must not end it
            for _ in search.irun(fmax=0.0, steps=steps):
                converged = _max_force(target) < fmax
                if cell:
                    converged = converged and _max_stress(moved, pressure) < smax
                if converged or request.received:
                    break
        finally:
            if frames is not None:  # on a full disk it does not come to closing the file
                with _writing(trajectory), closing(frames.backend.fd):
                    frames.close()
        if output is not None:
            _replace(output, moved)
    return RelaxResult(
        converged=converged,
        interrupted=not converged and search.nsteps < steps,
        steps=int(search.nsteps),
        energy_initial=energy,
        energy_final=float(moved.get_potential_energy()),
        max_force=_max_force(moved),
        max_stress=_max_stress(moved, pressure) if cell else None,
        volume_initial=volume,
        volume_final=float(moved.cell.volume) if cell else None,
        contacts=contacts_of(moved),
        output=output,
        trajectory=trajectory,
        atoms=moved,
    )


def _check(
    atoms: Atoms,
    fmax: float,
    steps: int,
    cell: bool,
    pressure: float,
    smax: float | None,
    optimizer: str,
) -> None:
    if not len(atoms):
        raise DataError("a structure without atoms cannot be relaxed")
    if optimizer not in OPTIMIZERS:
        hint = did_you_mean(optimizer, OPTIMIZERS)
        raise ClebschError(f"unknown optimiser {optimizer!r}. {hint}")
    if not np.isfinite(pressure):
        raise ClebschError(f"pressure = {pressure} GPa is not a finite number")
    if not fmax > 0:
        raise ClebschError(f"fmax = {fmax} is not a positive force")
    if steps < 0:
        raise ClebschError(f"steps = {steps}: a relaxation cannot have a negative length")
    if cell:
        check_periodic(atoms, "relaxing the cell")
    if pressure and not cell:
        raise ClebschError("a pressure acts on a cell that is relaxed: ask for that as well")
    if smax is not None and not cell:
        raise ClebschError("smax is for a cell that is relaxed: ask for that as well")
    if smax is not None and not smax > 0:
        raise ClebschError(f"smax = {smax} is not a positive stress")


def _check_formats(output: Path | None, trajectory: Path | None) -> None:
    """Find out from the names whether ASE can write the files: before the work, not after it."""
    if trajectory is not None and trajectory.suffix != ".traj":
        raise ClebschError(f"{trajectory}: this file is called *.traj")
    if output is None:
        return
    try:
        writable = get_ioformat(filetype(str(output), read=False)).can_write
    except UnknownFileTypeError:
        writable = False
    if not writable:
        raise ClebschError(f"{output}: ASE writes no format with the suffix {output.suffix!r}")


@contextmanager
def _writing(trajectory: Path | None) -> Iterator[None]:
    """An error of the disk names the file, and says what is kept."""
    try:
        yield
    except OSError as error:
        raise ClebschError(
            f"{trajectory}: cannot be written: {error.strerror or error}. The search was stopped; "
            "steps that were written before are kept"
        ) from error


def _folder_beside(output: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder on the same disk, which is removed when its context ends."""
    return tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)


def _replace(output: Path, atoms: Atoms) -> None:
    """Write a structure beside the file and rename it: what was there stays if that fails."""
    with _folder_beside(output) as folder:
        _write(Path(folder, output.name), atoms, output)
        for written in Path(folder).iterdir():  # some formats consist of several files
            os.replace(written, output.parent / written.name)


def _write(path: Path, atoms: Atoms, output: Path) -> None:
    """Write a structure to ``path``, in the format of ``output``.

    Raises:
        ClebschError: names ``output``, and why ASE cannot write it.
    """
    try:
        ase.io.write(path, atoms)
    except OSError as error:
        raise ClebschError(f"{output}: cannot be written: {error.strerror or error}") from error
    except Exception as error:  # whatever ASE's many writers raise on what they cannot write
        raise ClebschError(
            f"{output}: ASE cannot write this structure in the format of that name: "
            f"{type(error).__name__}: {error}"
        ) from None


def _finite_energy(atoms: Atoms, step: int, name: str) -> float:
    place = f"{name}: step {step} of the relaxation"
    try:
        energy, forces = float(atoms.get_potential_energy()), atoms.get_forces()
    except ClebschError as error:
        raise type(error)(f"{place}: {error}") from None
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        raise ClebschError(f"{place}: energy or forces are no finite numbers")
    return energy


def _max_force(atoms: Atoms | FrechetCellFilter) -> float:
    """The largest force on an atom, and of a filter also the largest one on a cell vector."""
    return float(np.linalg.norm(atoms.get_forces(), axis=1).max())


def _max_stress(atoms: Atoms, pressure: float) -> float:
    excess = atoms.get_stress(voigt=False) / units.GPa + pressure * np.eye(3)
    return float(np.abs(excess).max())
