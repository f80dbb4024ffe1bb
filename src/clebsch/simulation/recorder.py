"""Trajectory, log and state of a run on disk, such that a killed run can go on where it was.

The state file is written after trajectory and log have been synced, and says how long both were.
What a killed run wrote later is cut off by the restart, which then writes the same again; so is the
frame of a last step between two intervals, which a run that goes on does not have.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from ase import Atoms, units
from ase.io.extxyz import write_extxyz
from ase.io.jsonio import encode
from ase.io.trajectory import TrajectoryReader, TrajectoryWriter

from clebsch.errors import ClebschError, DataError
from clebsch.files import atomic_write, no_such_file, written_alone
from clebsch.simulation.velocities import temperature_of

COLUMNS = ("step", "time_ps", "total_eV", "potential_eV", "kinetic_eV", "temperature_K")
CELL_COLUMNS = ("volume_A3", "pressure_GPa")
UNCERTAINTY = "uncertainty_eV_A"
SUFFIXES = (".traj", ".extxyz", ".xyz")

_STATE_FORMAT = "clebsch-md-state"
_STATE_VERSION = 3
_SECONDS_BETWEEN_STATES = 10.0


@dataclass(frozen=True)
class RunFiles:
    """Where a run writes."""

    trajectory: Path
    log: Path
    state: Path

    @classmethod
    def beside(cls, trajectory: Path | str, log: Path | str | None = None) -> RunFiles:
        """The files of a run: log and state are named after the trajectory.

        Raises:
            ClebschError: the trajectory's suffix is not one of a format we write.
        """
        trajectory = Path(trajectory)
        if trajectory.suffix not in SUFFIXES:
            raise ClebschError(
                f"{trajectory}: a trajectory's name ends in {', '.join(SUFFIXES)}, its format"
            )
        log = trajectory.with_suffix(".log") if log is None else Path(log)
        return cls(trajectory, log, trajectory.with_suffix(".state.json"))

    @property
    def all(self) -> tuple[Path, ...]:
        """The three of them."""
        return self.trajectory, self.log, self.state

    def existing(self) -> list[Path]:
        """Those that are there already."""
        return [path for path in self.all if path.exists()]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other run writes these files while this lasts.

        The state is locked for the trajectory, too: md.traj and md.extxyz share it.

        Raises:
            ClebschError: another run writes them; names the file.
        """
        with ExitStack() as locks:
            for path in (self.state, self.log):
                locks.enter_context(written_alone(path))
            yield


def told_constraints(atoms: Atoms) -> list[str]:
    """What the constraints of a structure hold, each as text."""
    return [
        encode(constraint.todict()) if hasattr(constraint, "todict") else repr(constraint)
        for constraint in atoms.constraints
    ]


@dataclass
class RunState:
    """All that a run needs to go on, bit for bit, besides the potential.

    Attributes:
        settings: the run's ``MDSettings`` as a mapping.
        source: the model, see ``identity.source_identity``.
        step: number of steps done.
        numbers: [n] atomic numbers.
        masses: [n] atomic mass units.
        pbc: [3] periodic or not.
        constraints: as ASE tells each, in JSON, to see whether they are the same.
        positions, momenta: [n, 3], Angstrom and ASE's unit.
        cell: [3, 3] Angstrom.
        degrees_of_freedom: that share the kinetic energy.
        integrator: see ``integrators.integrator_state``.
        lone_atoms: see ``lone_atoms.LoneAtoms``, as a mapping; None if there were none.
        contacts: see ``contacts.ClosestContact``, as mappings.
        most_uncertain: see ``uncertainty.UncertainForce``, as a mapping; None without.
        sizes: of trajectory and log: bytes of a text file, frames of a ``.traj``.
    """

    settings: dict[str, Any]
    source: str
    step: int
    numbers: list[int]
    masses: list[float]
    pbc: list[bool]
    constraints: list[str]
    positions: list[list[float]]
    momenta: list[list[float]]
    cell: list[list[float]]
    degrees_of_freedom: int
    integrator: dict[str, Any]
    lone_atoms: dict[str, Any] | None = None
    contacts: list[dict[str, Any]] = field(default_factory=list)
    most_uncertain: dict[str, Any] | None = None
    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        atoms: Atoms,
        step: int,
        settings: dict[str, Any],
        source: str,
        degrees_of_freedom: int,
        integrator: dict[str, Any],
        lone_atoms: dict[str, Any] | None,
        contacts: list[dict[str, Any]],
        most_uncertain: dict[str, Any] | None,
    ) -> RunState:
        """The state of ``atoms`` after a whole step. JSON keeps every bit of a float64."""
        return cls(
            settings=settings,
            source=source,
            step=step,
            numbers=atoms.numbers.tolist(),
            masses=atoms.get_masses().tolist(),
            pbc=atoms.pbc.tolist(),
            constraints=told_constraints(atoms),
            positions=atoms.positions.tolist(),
            momenta=atoms.get_momenta().tolist(),
            cell=atoms.cell.array.tolist(),
            degrees_of_freedom=degrees_of_freedom,
            integrator=integrator,
            lone_atoms=lone_atoms,
            contacts=contacts,
            most_uncertain=most_uncertain,
        )

    @classmethod
    def read(cls, path: Path) -> RunState:
        """Read a state file.

        Raises:
            DataError: it is missing, damaged or of another version.
        """
        if not path.is_file():
            raise DataError(f"{path}: there is no state of a run to restart from")
        try:
            content = json.loads(path.read_text())
            if content.pop("format") != _STATE_FORMAT:
                raise ValueError("another format")
            version = content.pop("version")
            state = cls(**content) if version == _STATE_VERSION else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: is not the state of a run: {error!r}") from None
        if state is None:
            raise DataError(
                f"{path}: state of version {version}; this Clebsch reads {_STATE_VERSION}"
            )
        return state

    def write(self, path: Path) -> None:
        """Write a state file, atomically."""
        content = {"format": _STATE_FORMAT, "version": _STATE_VERSION, **asdict(self)}
        atomic_write(path, json.dumps(content))

    def put_into(self, atoms: Atoms) -> None:
        """Move ``atoms``, which are the same as those of the run, to this state."""
        atoms.set_cell(self.cell)
        atoms.set_positions(self.positions, apply_constraint=False)
        atoms.set_momenta(self.momenta, apply_constraint=False)


class Recorder:
    """Writes the frames of a run; a context manager.

    Args:
        files: where to.
        with_cell: log volume and pressure too.
        with_uncertainty: log the most uncertain force too.
        resumed: the state to go on from; None begins new files.

    Attributes:
        last_step: of the last frame, -1 without one.

    Raises:
        DataError: files to go on with are missing, shorter than they were, or damaged.
        ClebschError: the run was begun with uncertainties, and is to go on without, or inversely.
    """

    def __init__(
        self, files: RunFiles, with_cell: bool, with_uncertainty: bool, resumed: RunState | None
    ) -> None:
        self._files = files
        self._columns = COLUMNS + (CELL_COLUMNS if with_cell else ())
        self._columns += (UNCERTAINTY,) if with_uncertainty else ()
        self.last_step = -1
        if resumed is not None:
            _cut(files.trajectory, resumed.sizes["trajectory"])
            _cut(files.log, resumed.sizes["log"])
            before = read_log(files.log)
            if (UNCERTAINTY in before) != with_uncertainty:
                then, now = ("without", "with") if with_uncertainty else ("with", "without")
                raise ClebschError(
                    f"{files.log}: the run was begun {then} a committee, a restart cannot go on "
                    f"{now} one"
                )
            self.last_step = int(before["step"][-1])
        else:
            files.state.unlink(missing_ok=True)  # it belongs to the run that is overwritten
        mode = "w" if resumed is None else "a"
        self._frames: TrajectoryWriter | None = None
        self._file: IO[Any]
        if files.trajectory.suffix == ".traj":
            self._frames = TrajectoryWriter(files.trajectory, mode)
            self._file = self._frames.backend.fd
        else:
            self._file = files.trajectory.open(mode)
        self._log = files.log.open(mode)
        if resumed is None:
            self._log.write("#" + " ".join(f"{name:>17}" for name in self._columns)[1:] + "\n")
        self._last_state = time.monotonic()

    def record(
        self,
        atoms: Atoms,
        step: int,
        time_ps: float,
        degrees_of_freedom: int,
        uncertainty: float | None = None,
    ) -> None:
        """Add a frame to the trajectory and a line to the log.

        Raises:
            ClebschError: the disk refuses them; says what is kept.
        """
        atoms.get_forces()  # known already but before the first step; every frame has them
        potential = atoms.get_potential_energy()
        kinetic = atoms.get_kinetic_energy()
        temperature = temperature_of(atoms, degrees_of_freedom)
        values = [time_ps, potential + kinetic, potential, kinetic, temperature]
        if CELL_COLUMNS[0] in self._columns:
            stress = atoms.get_stress(voigt=False, include_ideal_gas=True)
            values += [atoms.cell.volume, -np.trace(stress) / 3 / units.GPa]
        if uncertainty is not None:
            values.append(uncertainty)
            atoms.info[UNCERTAINTY] = uncertainty
        line = f"{step:17d} " + " ".join(f"{value:17.9f}" for value in values) + "\n"
        with self._writing(self._files.log):
            self._log.write(line)
            self._log.flush()
        atoms.info.update(step=step, time_fs=1000 * time_ps)
        with self._writing(self._files.trajectory):
            if self._frames is not None:
                self._frames.write(atoms)
            else:
                write_extxyz(self._file, atoms)
                self._file.flush()
        self.last_step = step

    def is_state_due(self) -> bool:
        """Whether the last state file was written long enough ago."""
        return time.monotonic() - self._last_state > _SECONDS_BETWEEN_STATES

    def save(self, state: RunState) -> None:
        """Sync trajectory and log, then write the state file.

        Raises:
            ClebschError: the disk refuses them; says what is kept.
        """
        handles = {self._files.trajectory: self._file, self._files.log: self._log}
        for path, handle in handles.items():
            with self._writing(path):
                handle.flush()
                os.fsync(handle.fileno())
        frames = self._file.tell() if self._frames is None else len(self._frames.backend)
        state.sizes = {"trajectory": frames, "log": self._log.tell()}
        with self._writing(self._files.state):
            state.write(self._files.state)
        self._last_state = time.monotonic()

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """An error of the disk names the file, and says what is kept."""
        try:
            yield
        except OSError as error:
            kept = "no state of the run is saved yet; when this is mended, begin anew (--overwrite)"
            if self._files.state.exists():
                kept = (
                    f"{self._files.state} is the state saved last; when this is mended, the same "
                    "command with --restart goes on from it"
                )
            raise ClebschError(
                f"{path}: cannot be written: {error.strerror or error}. The run was stopped: {kept}"
            ) from error

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._writing(self._files.trajectory), ExitStack() as closing:
            closing.callback(self._log.close)
            closing.callback(self._file.close)
            if self._frames is not None:
                closing.callback(self._frames.close)  # which may fail before it closes the file


def read_log(path: Path) -> dict[str, np.ndarray]:
    """The columns of a run's log by name, each [n_rows] float64.

    Raises:
        DataError: the file is missing, or no log of a run.
    """
    if not path.is_file():
        raise DataError(no_such_file(path, "the log of a run"))
    try:
        with path.open() as file:
            names = file.readline().lstrip("#").split()
        if names[:1] != ["step"]:
            raise ValueError("its first column is not the step")
        rows = np.loadtxt(path, ndmin=2)
        return dict(zip(names, rows.T, strict=True))
    except ValueError as error:
        raise DataError(f"{path}: is not the log of a run, or was damaged: {error}") from None


def _cut(path: Path, size: int) -> None:
    """Shorten a file to what it was when the state was written.

    Raises:
        DataError: the file is missing or shorter than that.
    """
    if not path.is_file():
        raise DataError(f"{path}: is gone; a restart appends to it")
    if path.suffix != ".traj":
        if path.stat().st_size < size:
            raise DataError(f"{path}: is shorter than when the run's state was written")
        os.truncate(path, size)
        return
    with TrajectoryReader(path) as frames:
        if len(frames) < size:
            raise DataError(f"{path}: has {len(frames)} frames, the run's state counts {size}")
        if len(frames) == size:
            return
        shortened = path.with_name(f".{path.name}.shortened.traj")
        with TrajectoryWriter(shortened) as writer:
            for index in range(size):
                writer.write(frames[index])
    os.replace(shortened, path)
