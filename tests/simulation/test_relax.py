"""Relaxation: the minimum is found, and what was not reached is not claimed."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from morse import LENGTH, Analytic, Morse, cluster

from clebsch.errors import ClebschError
from clebsch.simulation.relax import run_relax

COPPER = 3.5898  # EMT's lattice constant, A


@pytest.mark.parametrize("optimizer", ["bfgs", "fire"])
def test_a_dimer_relaxes_to_its_bond_length(optimizer: str, tmp_path: Path) -> None:
    dimer = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.9]])
    result = run_relax(
        Morse(),
        dimer,
        fmax=1e-5,
        optimizer=optimizer,
        output=tmp_path / "relaxed.extxyz",
        trajectory=tmp_path / "steps.traj",
    )
    assert result.converged
    assert result.max_force < 1e-5
    # The envelope pulls the minimum a little inwards of Morse's own.
    assert LENGTH - 0.15 < result.atoms.get_distance(0, 1) < LENGTH
    assert result.energy_final < result.energy_initial
    assert dimer.get_distance(0, 1) == 2.9
    steps = ase.io.read(result.trajectory, index=":")
    assert len(steps) == result.steps + 1
    assert steps[0].get_potential_energy() == pytest.approx(result.energy_initial)
    final = ase.io.read(result.output)
    assert final.get_potential_energy() == pytest.approx(result.energy_final, abs=1e-8)


def test_a_search_that_climbs_says_so() -> None:
    """LBFGS takes the maximum between bond and dissociation for its goal; BFGS does not."""
    dimer = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.9]])
    climbed = run_relax(Morse(), dimer, optimizer="lbfgs")
    assert climbed.energy_final > climbed.energy_initial
    assert "RISEN" in climbed.describe()
    assert "RISEN" not in run_relax(Morse(), dimer).describe()


def test_copper_relaxes_to_its_lattice_constant() -> None:
    crystal = bulk("Cu", cubic=True)
    crystal.set_cell(crystal.cell.array @ np.diag([1.03, 0.99, 1.0]), scale_atoms=True)
    crystal.rattle(0.03, seed=1)
    result = run_relax(EMT(), crystal, cell=True, fmax=1e-4)
    assert result.converged
    np.testing.assert_allclose(result.atoms.cell.cellpar(), [COPPER] * 3 + [90] * 3, rtol=2e-4)
    assert result.max_stress < 0.01
    assert result.volume_final == pytest.approx(COPPER**3, rel=1e-3)


def test_a_pressure_compresses_the_cell() -> None:
    result = run_relax(EMT(), bulk("Cu", cubic=True), cell=True, pressure=5.0, fmax=1e-4)
    pressure = -result.atoms.get_stress()[:3].mean() / units.GPa
    assert pressure == pytest.approx(5.0, abs=0.01)
    assert result.max_stress < 0.01
    # The bulk modulus of EMT's copper is 134 GPa.
    assert result.volume_final == pytest.approx(COPPER**3 * (1 - 5 / 134), rel=5e-3)


def test_too_few_steps_are_not_called_converged() -> None:
    result = run_relax(Morse(), cluster(), fmax=1e-6, steps=2)
    assert not result.converged
    assert result.steps == 2
    assert result.max_force > 1e-6
    assert "NOT converged" in result.describe()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_structure_reached(tmp_path: Path, number: int) -> None:
    def stop(step: int, max_force: float, energy: float) -> None:
        if step == 3:
            os.kill(os.getpid(), number)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    output = tmp_path / "relaxed.extxyz"
    result = run_relax(Morse(), cluster(), fmax=1e-6, steps=100, output=output, progress=stop)
    assert result.interrupted
    assert not result.converged
    assert result.steps == 3
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    same = run_relax(Morse(), cluster(), fmax=1e-6, steps=3)
    assert not same.interrupted, "it was to end there"
    np.testing.assert_allclose(ase.io.read(output).positions, same.atoms.positions, atol=1e-7)


def test_no_steps_only_judge_the_structure() -> None:
    result = run_relax(Morse(), cluster(), steps=0)
    assert (result.steps, result.converged, result.interrupted) == (0, False, False)
    np.testing.assert_array_equal(result.atoms.positions, cluster().positions)


def test_a_relaxed_cell_is_only_converged_with_its_stress() -> None:
    stretched = bulk("Cu", cubic=True, a=3.8)  # no force on any atom
    result = run_relax(EMT(), stretched, cell=True, fmax=0.01, steps=1)
    assert not result.converged
    assert result.max_stress > 1


@pytest.mark.parametrize("optimizer", ["bfgs", "fire"])
def test_the_stress_converges_however_small_the_cell(optimizer: str) -> None:
    """One atom's energy hardly changes with a stress of 0.1 GPa: its gradient is below fmax."""
    strained = bulk("Cu", a=COPPER * 1.0003)
    options = {"cell": True, "fmax": 0.01, "optimizer": optimizer}
    lax = run_relax(EMT(), strained, smax=0.5, **options)
    assert lax.converged
    assert lax.steps == 0
    assert lax.max_stress > 0.1
    result = run_relax(EMT(), strained, **options)
    assert result.converged
    assert 0 < result.steps < 50
    assert result.max_stress < 0.01
    assert run_relax(EMT(), strained, smax=1e-4, **options).max_stress < 1e-4
    unfinished = run_relax(EMT(), strained, steps=0, **options)
    assert not unfinished.converged


def test_fixed_atoms_stay() -> None:
    atoms = cluster()
    atoms.set_constraint(FixAtoms([0]))
    result = run_relax(Morse(), atoms, fmax=0.01)
    np.testing.assert_array_equal(result.atoms.positions[0], atoms.positions[0])
    assert np.abs(result.atoms.positions - atoms.positions).max() > 1e-3


def test_a_tolerance_of_the_stress_is_positive() -> None:
    with pytest.raises(ClebschError, match="smax = 0"):
        run_relax(EMT(), bulk("Cu"), cell=True, smax=0.0)


def test_an_energy_that_is_not_a_number_stops_it() -> None:
    class Breaks(Analytic):
        def calculate(self, *arguments: object) -> None:
            super().calculate(*arguments)
            if np.abs(self.atoms.positions).max() < 0.9:
                self.results["energy"] = np.nan

    with pytest.raises(ClebschError, match=r"hot\.xyz: step [1-9]"):
        run_relax(Breaks(spring=1.0), Atoms("Ar2", [[0, 0, 1], [1, 0, 0]]), name="hot.xyz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": True}, "periodic in all three"),
        ({"optimizer": "lbgs"}, "'lbfgs'"),
        ({"fmax": 0.0}, "fmax"),
        ({"steps": -1}, "steps = -1"),
        ({"pressure": 1.0}, "pressure"),
        ({"pressure": np.nan}, "pressure = nan GPa is not a finite"),
        ({"smax": 0.01}, "smax is for a cell"),
        ({"output": "out.nonsense"}, "nonsense"),
        ({"output": "nowhere/out.xyz"}, "nowhere"),
        ({"output": "there.xyz"}, "exists"),
        ({"output": "there.traj", "trajectory": "there.traj"}, "two results"),
        ({"trajectory": "steps.xyz"}, "traj"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    (tmp_path / "there.xyz").write_text("precious")
    for name in ("output", "trajectory"):
        if name in options:
            options = {**options, name: tmp_path / str(options[name])}
    with pytest.raises(ClebschError, match=message):
        run_relax(Morse(), cluster(), **options)
    assert (tmp_path / "there.xyz").read_text() == "precious"


@pytest.mark.parametrize("name", ["POSCAR", "relaxed.pwi", "relaxed.lammps-data"])
def test_a_format_that_cannot_hold_the_structure_is_refused_before_the_search(
    tmp_path: Path, name: str
) -> None:
    output = tmp_path / name
    output.write_text("precious")
    steps: list[int] = []
    with pytest.raises(ClebschError, match=rf"{name}: ASE cannot write this structure"):
        run_relax(
            Morse(),
            cluster(),
            output=output,
            overwrite=True,
            progress=lambda step, *_: steps.append(step),
        )
    assert not steps
    assert output.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [output]


def test_a_result_that_cannot_be_written_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "relaxed.xyz"
    output.write_text("precious")
    honest, calls = ase.io.write, []

    def write(path: Path, atoms: Atoms) -> None:
        honest(path, atoms)
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(ase.io, "write", write)
    with pytest.raises(ClebschError, match=r"relaxed\.xyz: .*No space left"):
        run_relax(Morse(), cluster(), output=output, overwrite=True)
    assert output.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [output]


def test_a_full_disk_is_named_and_keeps_the_steps_before(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    trajectory, reached = tmp_path / "steps.traj", []

    def fill(step: int, max_force: float, energy: float) -> None:
        reached.append(energy)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))

    message = r"steps\.traj: cannot be written: File too large\. The search was stopped; steps"
    try:
        with pytest.raises(ClebschError, match=message):
            run_relax(Morse(), cluster(), fmax=1e-9, trajectory=trajectory, progress=fill)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
        with pytest.raises(ClebschError, match=r"end\.xyz: cannot be written: File too large$"):
            run_relax(Morse(), cluster(), output=tmp_path / "end.xyz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = [atoms.get_potential_energy() for atoms in ase.io.read(trajectory, ":")]
    assert 0 < len(kept) <= len(reached) + 1
    assert kept == reached[: len(kept)]
    assert list(tmp_path.iterdir()) == [trajectory]


def test_a_minimum_closer_than_anything_in_training_is_said() -> None:
    class Trained(Morse):
        shortest_distances = {"Cu-Cu": 3.0}  # noqa: RUF012

    result = run_relax(Trained(), Atoms("Cu2", [[0, 0, 0], [2.8, 0, 0]]))
    assert result.converged
    (said,) = result.to_json()["contacts"]
    assert said["distance"] == pytest.approx(result.atoms.get_distance(0, 1))
    assert "Warning     atoms are closer than anything" in result.describe()
    assert run_relax(Morse(), Atoms("Cu2", [[0, 0, 0], [2.8, 0, 0]])).contacts == []
