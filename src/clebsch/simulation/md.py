"""Molecular dynamics: constant energy, Langevin at constant temperature, or pressure as well."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.md.md import MolecularDynamics

from clebsch.calculators import as_calculator
from clebsch.errors import BlowUpError, ClebschError, DataError
from clebsch.files import check_outputs
from clebsch.interrupt import stop_on_signals
from clebsch.potential import Potential
from clebsch.simulation.contacts import (
    ClosestContact,
    contacts_of,
    describe_contacts,
    knows_contacts,
    with_contacts,
)
from clebsch.simulation.guard import BlowUpGuard
from clebsch.simulation.identity import source_identity
from clebsch.simulation.integrators import (
    MDSettings,
    integrator_state,
    make_integrator,
    restore_integrator,
    settings_that_act,
)
from clebsch.simulation.lone_atoms import LoneAtoms, with_lone_atoms
from clebsch.simulation.recorder import (
    Recorder,
    RunFiles,
    RunState,
    read_log,
    told_constraints,
)
from clebsch.simulation.structure import bare_copy
from clebsch.simulation.uncertainty import UncertainForce, Watch, more_uncertain
from clebsch.simulation.velocities import (
    conserved_degrees_of_freedom,
    draw_momenta,
    temperature_of,
)

#: Called with steps done, steps in all, and the temperature in K.
ProgressCallback = Callable[[int, int, float], None]


@dataclass(frozen=True, eq=False)
class MDResult:
    """What a run was, from its log; everything but the speed counts all restarts of it.

    Means and standard deviations are over the second half of the log, where a run that did not
    start in equilibrium is nearer to it.

    Attributes:
        ensemble: "nve", "nvt" or "npt".
        n_atoms: number of atoms.
        steps: steps done in all.
        time_ps: simulated time.
        interrupted: stopped by Ctrl-C or SIGTERM before the end.
        steps_per_second: of this session, everything included; 0 if it had no step to do.
        temperature_mean, temperature_std: K.
        energy_drift_meV: slope of the total energy, meV/atom/ps, by least squares over the whole
            log; None unless nve and at least ten lines.
        energy_rms_meV: root mean square of the total energy around that line, meV/atom.
        volume_mean, volume_std: Angstrom^3; None unless npt.
        pressure_mean, pressure_std: GPa, kinetic part included; None unless npt.
        lone_atoms: those that were beyond the model's cut-off of all others in a frame; None
            without any, and for calculators other than Clebsch's.
        contacts: the closest of each pair of elements that was much closer in a frame than any in
            training; empty where training is not known.
        most_uncertain: the most uncertain force of all frames; None without a committee.
        trajectory, log, state: the files.
        atoms: the final structure with velocities, and with its calculator.
    """

    ensemble: str
    n_atoms: int
    steps: int
    time_ps: float
    interrupted: bool
    steps_per_second: float
    temperature_mean: float
    temperature_std: float
    energy_drift_meV: float | None
    energy_rms_meV: float | None
    volume_mean: float | None
    volume_std: float | None
    pressure_mean: float | None
    pressure_std: float | None
    lone_atoms: LoneAtoms | None
    contacts: tuple[ClosestContact, ...]
    most_uncertain: UncertainForce | None
    trajectory: Path
    log: Path
    state: Path
    atoms: Atoms

    def to_json(self) -> dict[str, Any]:
        """Everything but the structure, fit for ``json.dumps``."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "atoms"}
        values["lone_atoms"] = None if self.lone_atoms is None else asdict(self.lone_atoms)
        values["contacts"] = [asdict(contact) for contact in self.contacts]
        values["most_uncertain"] = self.most_uncertain and asdict(self.most_uncertain)
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}

    def describe(self) -> str:
        """A few lines for people."""
        speed = f"{self.steps_per_second:.1f} steps/s"
        if not self.steps_per_second:
            speed = "all of them done before"
        lines = [
            f"{self.steps} steps, {self.time_ps:g} ps of {self.ensemble.upper()} with "
            f"{self.n_atoms} atoms, {speed}; means are over the second half",
            f"Temperature   {self.temperature_mean:.1f} +- {self.temperature_std:.1f} K",
        ]
        if self.energy_drift_meV is not None:
            lines.append(
                f"Energy drift  {self.energy_drift_meV:.4f} meV/atom/ps "
                f"(rms around it {self.energy_rms_meV:.4f} meV/atom)"
            )
        if self.volume_mean is not None:
            lines.append(
                f"Volume        {self.volume_mean:.2f} +- {self.volume_std:.2f} Angstrom^3"
            )
            lines.append(f"Pressure      {self.pressure_mean:.3f} +- {self.pressure_std:.3f} GPa")
        if self.most_uncertain is not None:
            lines.append(f"Uncertainty   up to {self.most_uncertain.describe(self.atoms)}")
        if self.lone_atoms is not None:
            lines.append(f"Warning       {self.lone_atoms.describe(self.atoms)}")
        if self.contacts:
            lines.append(f"Warning       atoms were {describe_contacts(self.contacts)}")
        lines += [f"Trajectory    {self.trajectory}", f"Log           {self.log}"]
        return "\n".join(lines)


def run_md(
    source: Potential | BaseCalculator,
    atoms: Atoms,
    *,
    ensemble: str = "nve",
    steps: int | None = None,
    time_ps: float | None = None,
    timestep_fs: float = 0.5,
    temperature: float | None = None,
    pressure: float | None = None,
    friction: float | None = None,
    barostat_period_fs: float | None = None,
    seed: int = 0,
    output: Path | str = "md.traj",
    log: Path | str | None = None,
    interval: int = 10,
    stop_at_contacts: bool = False,
    committee: Sequence[Potential] | None = None,
    stop_at_uncertainty: float | None = None,
    restart: bool = False,
    overwrite: bool = False,
    inputs: Iterable[Path | str] = (),
    name: str = "the structure",
    progress: ProgressCallback | None = None,
) -> MDResult:
    """Run molecular dynamics; ``atoms`` itself is not moved.

    A state file beside the trajectory makes it possible to go on after an interruption, bit for
    bit on a CPU: call again with the same arguments and ``restart=True``. Ctrl-C and SIGTERM end
    this run after the current step with everything saved, and raise nothing: a script that does
    several runs should look at ``interrupted`` of each result, or it goes on with the next.

    Args:
        source: a potential, or any ASE calculator.
        atoms: the initial structure; its constraints hold, or are refused.
        ensemble: "nve" (velocity Verlet), "nvt" (Langevin) or "npt" (Langevin, isotropic).
        steps: total number of steps, those before a restart included; or else
        time_ps: total time in ps.
        timestep_fs: fs; 0.5 with hydrogen, 1 to 2 without.
        temperature: K; initial velocities are drawn at it. For nve it may be None: the structure's
            own velocities are kept.
        pressure: for npt, GPa; 0 if None.
        friction: for nvt and npt, of the thermostat, 1/ps; 10 if None.
        barostat_period_fs: for npt, time scale of the volume, fs; 1000 if None.
        seed: of initial velocities and random forces.
        output: trajectory: ``.traj`` (ASE's, exact, for long runs) or ``.extxyz`` (text, slow to
            write); frames carry momenta, energy and forces, and their step and time.
        log: one line a frame, ``numpy.loadtxt`` reads it; ``output`` with ``.log`` if None.
        interval: steps between frames; the last step is one as well.
        stop_at_contacts: end the run at a frame in which atoms are much closer than any in training
            (``clebsch.contacts``).
        committee: potentials that tell with the source, which alone moves the atoms, how uncertain
            forces are in every frame (``clebsch.committee``); none for a linear ACE with draws of
            its own. Nothing is told of that if None.
        stop_at_uncertainty: eV/Angstrom; end the run at a frame in which the force on an atom is
            more uncertain.
        restart: go on with the run that ``output`` belongs to.
        overwrite: begin anew although the files exist.
        inputs: files that model and structure were read from: no new run writes over them.
        name: of the structure, or of its file, in errors.
        progress: called at every frame.

    Raises:
        ClebschError: settings that make no sense; files that exist, that cannot be written, as on a
            disk that is full by now, or that another run is writing; a restart of another run;
            velocities to keep that are missing or not finite; a run to be stopped for what the
            model does not tell; a committee that tells nothing.
        BlowUpError: the run blew up, or was stopped; what was written until then stays.
    """
    acting = settings_that_act(
        ensemble, pressure=pressure, friction=friction, barostat_period_fs=barostat_period_fs
    )
    settings = MDSettings(
        ensemble=ensemble, timestep_fs=timestep_fs, temperature=temperature, seed=seed, **acting
    )
    total_steps = _total_steps(steps, time_ps, timestep_fs)
    if interval < 1:
        raise ClebschError(f"interval = {interval}: frames are at least one step apart")
    if atoms.get_number_of_degrees_of_freedom() < 1:
        what = "all of its atoms are fixed" if len(atoms) else "it has no atoms"
        raise DataError(f"{name}: nothing can move: {what}")
    files = RunFiles.beside(output, log)
    # a restart appends: its structure may well be read from the trajectory
    check_outputs(files.all, overwrite=True, inputs=() if restart else inputs)
    with files.alone():
        resumed = None
        if restart:
            resumed = RunState.read(files.state)
            _check_same_settings(settings, resumed, files.state)
            _check_same_source(source, resumed, files.state)
            _check_same_structure(atoms, name, resumed, files.state)
        else:
            _check_new(files, overwrite)
            if temperature is None:
                _check_velocities(atoms, name)
        watch = None
        if committee is not None or stop_at_uncertainty is not None:
            watch = Watch(source, committee or (), stop_at_uncertainty)
        run = _Run(source, atoms, settings, resumed, stop_at_contacts, watch)
        with Recorder(files, settings.ensemble == "npt", watch is not None, resumed) as recorder:
            interrupted, speed = run.advance(total_steps, interval, recorder, progress)
        return _summarise(run, files, interrupted, speed)


class _Run:
    """A structure, its integrator and the random numbers that move it."""

    def __init__(
        self,
        source: Potential | BaseCalculator,
        atoms: Atoms,
        settings: MDSettings,
        resumed: RunState | None,
        stop_at_contacts: bool,
        watch: Watch | None,
    ) -> None:
        self.settings = settings
        self.stop_at_contacts = stop_at_contacts
        self.watch = watch
        self.source = source_identity(source)
        self.atoms = bare_copy(atoms)
        self.atoms.calc = as_calculator(source)
        if stop_at_contacts and not knows_contacts(self.atoms.calc):
            raise ClebschError(
                "a run cannot be stopped at contacts: the model does not tell how close atoms came "
                "in its training; those that Clebsch trained do, unless they began as imported ones"
            )
        self.rng = np.random.default_rng(settings.seed)
        self.lone_atoms: LoneAtoms | None = None
        self.contacts: tuple[ClosestContact, ...] = ()
        self.most_uncertain: UncertainForce | None = None
        if resumed is not None:
            resumed.put_into(self.atoms)
            self.contacts = tuple(ClosestContact(**told) for told in resumed.contacts)
            if resumed.lone_atoms is not None:
                self.lone_atoms = LoneAtoms(**resumed.lone_atoms)
            if resumed.most_uncertain is not None:
                self.most_uncertain = UncertainForce(**resumed.most_uncertain)
        elif settings.temperature is not None:
            draw_momenta(self.atoms, settings.temperature, self.rng)
        self.dynamics: MolecularDynamics = make_integrator(self.atoms, settings, self.rng)
        if resumed is not None:
            restore_integrator(self.dynamics, self.rng, resumed.integrator)
            self.dynamics.nsteps = resumed.step
            self.degrees_of_freedom = resumed.degrees_of_freedom
        elif settings.ensemble == "nve":
            self.degrees_of_freedom = conserved_degrees_of_freedom(self.atoms)
        else:  # Langevin's random forces move the centre of mass as well
            self.degrees_of_freedom = int(self.atoms.get_number_of_degrees_of_freedom())

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.dynamics.nsteps)

    @property
    def time_ps(self) -> float:
        """Time simulated."""
        return self.step * self.settings.timestep_fs / 1000

    def state(self) -> RunState:
        """What a restart needs."""
        return RunState.of(
            self.atoms,
            self.step,
            asdict(self.settings),
            self.source,
            self.degrees_of_freedom,
            integrator_state(self.dynamics, self.rng),
            None if self.lone_atoms is None else asdict(self.lone_atoms),
            [asdict(contact) for contact in self.contacts],
            None if self.most_uncertain is None else asdict(self.most_uncertain),
        )

    def advance(
        self,
        total_steps: int,
        interval: int,
        recorder: Recorder,
        progress: ProgressCallback | None,
    ) -> tuple[bool, float]:
        """Do the remaining steps; whether it was interrupted, and steps per second."""
        guard = BlowUpGuard(self.atoms, self.degrees_of_freedom, self.settings.temperature)
        first, start = self.step, time.perf_counter()

        def report() -> None:
            if progress is not None:
                temperature = temperature_of(self.atoms, self.degrees_of_freedom)
                progress(self.step, total_steps, temperature)

        reason: str | None = None
        if recorder.last_step < 0:  # not where a run killed before its first step is restarted
            reason = self._record(guard, recorder)
            recorder.save(self.state())
        with stop_on_signals() as request:
            while self.step < total_steps and not (request.received or reason):
                self._one_step(guard)
                if self.step % interval == 0:
                    reason = self._record(guard, recorder)
                    report()
                    if recorder.is_state_due():
                        recorder.save(self.state())
            # before a frame between two intervals, which a restart then cuts off again
            recorder.save(self.state())
            if recorder.last_step != self.step:
                reason = self._record(guard, recorder)
                report()
        if reason is not None:
            raise BlowUpError(
                f"the run was stopped at step {self.step} ({self.time_ps:.4f} ps): {reason}. What "
                "was written until then is kept"
            )
        elapsed = time.perf_counter() - start
        return self.step < total_steps, (self.step - first) / elapsed

    def _one_step(self, guard: BlowUpGuard) -> None:
        try:
            self.dynamics.step()
        except ClebschError as error:  # such as a position that is not a number
            self.dynamics.nsteps += 1
            self._refuse(str(error))
        self.dynamics.nsteps += 1
        self._refuse(guard.trouble(self.atoms))

    def _record(self, guard: BlowUpGuard, recorder: Recorder) -> str | None:
        """Write a frame; why it is to end the run, or None."""
        self._refuse(guard.trouble_at_record(self.atoms))
        self.lone_atoms = with_lone_atoms(self.lone_atoms, self.atoms, self.step)
        contacts = contacts_of(self.atoms)
        self.contacts = with_contacts(self.contacts, contacts, self.step)
        told = None if self.watch is None else self.watch.ask(self.atoms, self.step)
        self.most_uncertain = more_uncertain(self.most_uncertain, told)
        recorder.record(
            self.atoms,
            self.step,
            self.time_ps,
            self.degrees_of_freedom,
            None if told is None else told.uncertainty,
        )
        if contacts and self.stop_at_contacts:
            return f"atoms are {describe_contacts(contacts)}"
        if self.watch is not None and told is not None:
            return self.watch.trouble(told, self.atoms)
        return None

    def _refuse(self, trouble: str | None) -> None:
        if trouble is not None:
            raise BlowUpError(
                f"the run blew up at step {self.step} ({self.time_ps:.4f} ps): {trouble}. What was "
                "written until then is kept. A shorter time step or a better potential may help."
            )


def _total_steps(steps: int | None, time_ps: float | None, timestep_fs: float) -> int:
    if (steps is None) == (time_ps is None):
        raise ClebschError("give either the number of steps or the time in ps")
    if time_ps is not None and not np.isfinite(time_ps):
        raise ClebschError(f"time = {time_ps} ps is not a finite number")
    total = steps if steps is not None else round(1000 * float(time_ps or 0) / timestep_fs)
    if total < 0:
        raise ClebschError("a run cannot have a negative length")
    return total


def _check_new(files: RunFiles, overwrite: bool) -> None:
    if files.existing() and not overwrite:
        raise ClebschError(
            f"{files.existing()[0]} exists already: restart that run (--restart), choose "
            "another output, or allow overwriting (--overwrite)"
        )


def _check_velocities(atoms: Atoms, name: str) -> None:
    momenta = atoms.get_momenta()
    if not momenta.any():
        raise ClebschError("nve needs a temperature (K), or a structure that has velocities")
    broken = ~np.isfinite(momenta).all(axis=1)
    if broken.any():
        atom = int(broken.argmax())
        raise DataError(
            f"{name}: the velocity of atom {atom} ({atoms.symbols[atom]}) is not made of finite "
            "numbers; give a temperature for new ones"
        )


def _check_same_settings(settings: MDSettings, resumed: RunState, path: Path) -> None:
    for name, asked in asdict(settings).items():
        before = resumed.settings.get(name)
        if before != asked:
            raise ClebschError(
                f"{path}: the run was begun with {name} = {before}, a restart cannot change it "
                f"to {asked}"
            )


def _check_same_source(source: Potential | BaseCalculator, resumed: RunState, path: Path) -> None:
    if source_identity(source) != resumed.source:
        raise ClebschError(
            f"{path}: the run was begun with another model, a restart must go on with the same: "
            f"{resumed.source[:24]}, not {source_identity(source)[:24]}"
        )


def _check_same_structure(atoms: Atoms, name: str, resumed: RunState, path: Path) -> None:
    if atoms.numbers.tolist() != resumed.numbers:
        raise DataError(
            f"{path}: the run was begun with other atoms than {name} has, a restart must go on "
            "with the same in the same order"
        )
    if atoms.pbc.tolist() != resumed.pbc:
        raise DataError(
            f"{path}: the run was begun with pbc {resumed.pbc}, a restart cannot change it to "
            f"{atoms.pbc.tolist()}, which {name} has"
        )
    if atoms.get_masses().tolist() != resumed.masses:
        raise DataError(
            f"{path}: the run was begun with other masses than {name} has, a restart must go on "
            "with the same"
        )
    if told_constraints(atoms) != resumed.constraints:
        raise DataError(
            f"{path}: the run was begun with other constraints than {name} has, a restart must go "
            "on with the same; extended XYZ keeps few of them, .traj keeps all"
        )


def _summarise(run: _Run, files: RunFiles, interrupted: bool, speed: float) -> MDResult:
    log = read_log(files.log)
    second_half = slice(len(log["step"]) // 2, None)

    def mean_and_std(column: str) -> tuple[float | None, float | None]:
        if column not in log:
            return None, None
        values = log[column][second_half]
        return float(values.mean()), float(values.std())

    drift = rms = None
    if run.settings.ensemble == "nve" and len(log["step"]) >= 10:
        energies = 1000 * (log["total_eV"] - log["total_eV"][0]) / len(run.atoms)
        slope, intercept = np.polyfit(log["time_ps"], energies, 1)
        residuals = energies - (slope * log["time_ps"] + intercept)
        drift, rms = float(slope), float(np.sqrt(np.mean(residuals**2)))
    temperature = log["temperature_K"][second_half]
    volume, pressure = mean_and_std("volume_A3"), mean_and_std("pressure_GPa")
    return MDResult(
        ensemble=run.settings.ensemble,
        n_atoms=len(run.atoms),
        steps=run.step,
        time_ps=run.time_ps,
        interrupted=interrupted,
        steps_per_second=speed,
        temperature_mean=float(temperature.mean()),
        temperature_std=float(temperature.std()),
        energy_drift_meV=drift,
        energy_rms_meV=rms,
        volume_mean=volume[0],
        volume_std=volume[1],
        pressure_mean=pressure[0],
        pressure_std=pressure[1],
        lone_atoms=run.lone_atoms,
        contacts=run.contacts,
        most_uncertain=run.most_uncertain,
        trajectory=files.trajectory,
        log=files.log,
        state=files.state,
        atoms=run.atoms,
    )
