"""A run that is stopped, killed or blows up: nothing is lost, and it goes on bit for bit."""

from __future__ import annotations

import copy
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLength, FixedPlane
from morse import Analytic, Morse, cluster

import clebsch
from clebsch.errors import BlowUpError, ClebschError, DataError
from clebsch.simulation.md import MDResult, run_md
from clebsch.simulation.recorder import read_log

CASES = [
    ("nve", ".traj"),
    ("nve", ".extxyz"),
    ("nvt", ".traj"),
    ("npt", ".extxyz"),
]


def run(folder: Path, ensemble: str, suffix: str, steps: int, **options: Any) -> MDResult:
    crystal = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms, source = (crystal, EMT()) if ensemble == "npt" else (cluster(), Morse())
    folder.mkdir(exist_ok=True)
    return run_md(
        source,
        atoms,
        ensemble=ensemble,
        temperature=300,
        steps=steps,
        interval=4,
        output=folder / f"md{suffix}",
        **options,
    )


def assert_same_run(one: MDResult, other: MDResult) -> None:
    np.testing.assert_array_equal(one.atoms.positions, other.atoms.positions)
    np.testing.assert_array_equal(one.atoms.get_momenta(), other.atoms.get_momenta())
    np.testing.assert_array_equal(one.atoms.cell.array, other.atoms.cell.array)
    assert one.log.read_text() == other.log.read_text()
    frames = [ase.io.read(result.trajectory, index=":") for result in (one, other)]
    assert [f.info["step"] for f in frames[0]] == [f.info["step"] for f in frames[1]]
    for left, right in zip(*frames, strict=True):
        np.testing.assert_array_equal(left.positions, right.positions)
        np.testing.assert_array_equal(left.get_momenta(), right.get_momenta())
        np.testing.assert_array_equal(left.get_forces(), right.get_forces())


@pytest.mark.parametrize(("ensemble", "suffix"), CASES)
def test_a_restarted_run_equals_one_that_never_stopped(
    tmp_path: Path, ensemble: str, suffix: str
) -> None:
    whole = run(tmp_path / "whole", ensemble, suffix, 30)
    run(tmp_path / "parts", ensemble, suffix, 11)
    run(tmp_path / "parts", ensemble, suffix, 17, restart=True)
    assert_same_run(whole, run(tmp_path / "parts", ensemble, suffix, 30, restart=True))


@pytest.mark.parametrize("suffix", [".traj", ".extxyz"])
def test_a_run_restarted_from_its_beginning_has_its_first_frame_once(
    tmp_path: Path, suffix: str
) -> None:
    """As where it was killed in the ten seconds before the second state was saved."""
    run(tmp_path / "parts", "nvt", suffix, 0)
    finished = run(tmp_path / "parts", "nvt", suffix, 9, restart=True)
    assert_same_run(run(tmp_path / "whole", "nvt", suffix, 9), finished)


@pytest.mark.parametrize("suffix", [".traj", ".extxyz"])
def test_a_full_disk_ends_a_run_that_can_be_restarted(tmp_path: Path, suffix: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step: int, total: int, temperature: float) -> None:
        if step == 8:  # nothing longer than the trajectory now is can be written any more
            size = (tmp_path / "parts" / f"md{suffix}").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (max(size, 4096), hard))

    message = (
        rf"parts/md{suffix}: cannot be written: .*state saved last; when this is mended, the same "
        "command with --restart goes on"
    )
    try:
        with pytest.raises(ClebschError, match=message):
            run(tmp_path / "parts", "nvt", suffix, 400, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finished = run(tmp_path / "parts", "nvt", suffix, 20, restart=True)
    assert_same_run(run(tmp_path / "whole", "nvt", suffix, 20), finished)


@pytest.mark.parametrize("suffix", [".traj", ".extxyz"])
@pytest.mark.parametrize(("steps", "recorded"), [(3, [0, 3]), (8, [0, 4, 8]), (11, [0, 4, 8, 11])])
def test_the_last_step_is_recorded_once(
    tmp_path: Path, suffix: str, steps: int, recorded: list[int]
) -> None:
    """Whatever the interval is, and again when a run is restarted with nothing left to do."""
    seen: list[int] = []
    first = run(tmp_path / "run", "nvt", suffix, steps, progress=lambda step, *_: seen.append(step))
    assert [frame.info["step"] for frame in ase.io.read(first.trajectory, ":")] == recorded
    assert read_log(first.log)["step"].tolist() == recorded
    assert [0, *seen] == recorded
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    again = run(tmp_path / "copy", "nvt", suffix, steps, restart=True)
    assert_same_run(first, again)
    assert again.energy_drift_meV == first.energy_drift_meV


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_a_whole_step(tmp_path: Path, number: int) -> None:
    def stop(step: int, total: int, temperature: float) -> None:
        if step == 8:
            os.kill(os.getpid(), number)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stopped = run(tmp_path / "parts", "nvt", ".traj", 20, progress=stop)
    assert stopped.interrupted
    assert stopped.steps == 8
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    finished = run(tmp_path / "parts", "nvt", ".traj", 20, restart=True)
    assert not finished.interrupted
    assert_same_run(run(tmp_path / "whole", "nvt", ".traj", 20), finished)


@pytest.mark.parametrize(("ensemble", "suffix"), [("nvt", ".traj"), ("npt", ".extxyz")])
def test_kill_9_costs_only_what_came_after_the_last_state(
    tmp_path: Path, ensemble: str, suffix: str
) -> None:
    script = f"""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import clebsch.simulation.recorder as recorder
        from test_md_restart import run
        recorder._SECONDS_BETWEEN_STATES = 0.05
        run(Path({str(tmp_path / "parts")!r}), {ensemble!r}, {suffix!r}, 10**6,
            progress=lambda *_: time.sleep(0.02))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        log = tmp_path / "parts" / "md.log"
        deadline = time.monotonic() + 60
        while not (log.exists() and log.read_text().count("\n") > 12):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(ClebschError, match=r"md\.state\.json: another process is writing it"):
            run(tmp_path / "parts", ensemble, suffix, 1, restart=True)
    finally:
        process.kill()
        process.wait()
    step = json.loads((tmp_path / "parts" / "md.state.json").read_text())["step"]
    assert step > 0
    with log.open("a") as file:
        file.write("         999999   0.4")  # as if it had been killed while writing
    if suffix == ".extxyz":
        with (tmp_path / "parts" / "md.extxyz").open("a") as file:
            file.write("8\nLattice=")
    finished = run(tmp_path / "parts", ensemble, suffix, step + 40, restart=True)
    assert_same_run(run(tmp_path / "whole", ensemble, suffix, step + 40), finished)
    assert {path.name for path in log.parent.iterdir()} == {
        f"md{suffix}",
        "md.log",
        "md.state.json",
    }


def test_runs_are_not_overwritten_by_accident(tmp_path: Path) -> None:
    first = run(tmp_path, "nve", ".traj", 12)
    before = first.trajectory.read_bytes()
    with pytest.raises(ClebschError, match=r"md\.traj exists"):
        run(tmp_path, "nve", ".traj", 12)
    assert first.trajectory.read_bytes() == before
    assert run(tmp_path, "nve", ".traj", 4, overwrite=True).steps == 4
    assert len(ase.io.read(first.trajectory, index=":")) == 2


@pytest.mark.parametrize(
    ("second", "held"),
    [
        ({"output": "md.traj", "overwrite": True}, "md.state.json"),
        ({"output": "md.traj", "restart": True}, "md.state.json"),
        ({"output": "md.extxyz", "overwrite": True}, "md.state.json"),
        ({"output": "other.traj", "log": "md.log", "overwrite": True}, "md.log"),
    ],
)
def test_a_second_run_into_the_same_files_is_refused(
    tmp_path: Path, second: dict[str, Any], held: str
) -> None:
    paths = {name: tmp_path / second[name] for name in ("output", "log") if name in second}
    refusals = []

    def begin_a_second(*_: object) -> None:
        with pytest.raises(ClebschError) as caught:
            run_md(Morse(), cluster(), temperature=300, steps=12, **(second | paths))
        refusals.append(str(caught.value))

    first = run(tmp_path, "nve", ".traj", 12, progress=begin_a_second)
    assert len(refusals) == 3
    assert all(f"{tmp_path / held}: another process is writing it" in one for one in refusals)
    assert_same_run(run(tmp_path / "alone", "nve", ".traj", 12), first)
    assert {path.suffix for path in tmp_path.glob("*.*")} == {".traj", ".log", ".json"}


@pytest.mark.parametrize("damage", ["", "#step time_ps\n1 2\n1\n", "#step time_ps\n1\n", "a\nb\n"])
@pytest.mark.filterwarnings("ignore:.*no data:UserWarning")
def test_a_damaged_log_is_named(tmp_path: Path, damage: str) -> None:
    log = tmp_path / "md.log"
    with pytest.raises(DataError, match=r"md\.log: no such file"):
        read_log(log)
    log.write_text(damage)
    with pytest.raises(DataError, match=r"md\.log: is not the log of a run, or was damaged"):
        read_log(log)


def test_a_restart_must_be_of_the_same_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no state"):
        run(tmp_path, "nve", ".traj", 12, restart=True)
    result = run(tmp_path, "nve", ".traj", 12)
    with pytest.raises(ClebschError, match=r"timestep_fs = 0\.5.* 1\.0"):
        run(tmp_path, "nve", ".traj", 20, restart=True, timestep_fs=1.0)
    with pytest.raises(DataError, match=r"md\.state\.json: .* other atoms than the structure has"):
        run_md(
            Morse(),
            cluster()[:5],
            steps=20,
            temperature=300,
            output=result.trajectory,
            restart=True,
        )
    result.trajectory.unlink()
    with pytest.raises(DataError, match="gone"):
        run(tmp_path, "nve", ".traj", 20, restart=True)
    result.state.write_text(result.state.read_text()[:100])
    with pytest.raises(DataError, match=r"md\.state\.json"):
        run(tmp_path, "nve", ".traj", 20, restart=True)


def test_a_restart_goes_on_with_the_same_model_on_the_same_structure(tmp_path: Path) -> None:
    small = {
        "preset": "mace_tiny",
        "channels": 2,
        "l_max": 1,
        "product": {"correlation": 2},
        "cutoff": 3.0,
    }
    model, other = (clebsch.build(small, ["Cu"], dtype=torch.float64, seed=s) for s in (0, 1))

    def begin_or_go_on(source: Any, atoms: Atoms, **options: Any) -> MDResult:
        output = tmp_path / "md.traj"
        return run_md(source, atoms, temperature=300, steps=4, output=output, **options)

    begin_or_go_on(model, cluster())
    model.save(tmp_path / "model.safetensors")
    begin_or_go_on(clebsch.load(tmp_path / "model.safetensors"), cluster(), restart=True)
    begin_or_go_on(clebsch.calculator(model), cluster(), restart=True)
    for wrong in (other, Morse()):
        with pytest.raises(ClebschError, match=r"md\.state\.json.*another model"):
            begin_or_go_on(wrong, cluster(), restart=True)
    boxed, heavy = cluster(), cluster()
    boxed.set_cell([20, 20, 20])
    boxed.pbc = True
    heavy.set_masses([65.0] * 7)
    with pytest.raises(DataError, match=r"md\.state\.json: .*False.*True.*which box\.xyz has"):
        begin_or_go_on(model, boxed, restart=True, name="box.xyz")
    with pytest.raises(DataError, match=r"md\.state\.json: .*masses than the structure has"):
        begin_or_go_on(model, heavy, restart=True)
    more = copy.deepcopy(model)
    more.model.avg_num_neighbors *= 2
    with pytest.raises(ClebschError, match=r"md\.state\.json.*another model"):
        begin_or_go_on(more, cluster(), restart=True)
    state = tmp_path / "md.state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"version": 1}))
    with pytest.raises(DataError, match="version 1; this Clebsch reads"):
        begin_or_go_on(model, cluster(), restart=True)


@pytest.mark.parametrize(
    "constraint", [FixAtoms([0, 2]), FixedPlane(1, (0, 0, 1)), FixBondLength(0, 1)]
)
def test_a_restart_keeps_constraints(tmp_path: Path, constraint: Any) -> None:
    """They hold degrees of freedom, and most get lost in an extended XYZ file."""

    def begin_or_go_on(atoms: Atoms, **options: Any) -> MDResult:
        output = tmp_path / "md.traj"
        return run_md(Morse(), atoms, ensemble="nve", temperature=100, output=output, **options)

    held = cluster()
    held.set_constraint(constraint)
    begin_or_go_on(held, steps=3)
    begin_or_go_on(held.copy(), steps=6, restart=True)
    begin_or_go_on(ase.io.read(tmp_path / "md.traj"), steps=9, restart=True)
    other = cluster()
    other.set_constraint(FixAtoms([0]))
    for wrong in (cluster(), other):
        with pytest.raises(DataError, match=r"md\.state\.json: .*other constraints than held"):
            begin_or_go_on(wrong, steps=12, restart=True, name="held.xyz")


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_what_cannot_move_is_refused(tmp_path: Path, ensemble: Any) -> None:
    fixed = cluster()
    fixed.set_constraint(FixAtoms(range(len(fixed))))
    for atoms, why in ((fixed, "all of its atoms are fixed"), (Atoms(), "it has no atoms")):
        with pytest.raises(DataError, match=f"the structure: nothing can move: {why}"):
            run_md(
                Morse(),
                atoms,
                ensemble=ensemble,
                temperature=300,
                steps=2,
                output=tmp_path / "md.traj",
            )
    assert not (tmp_path / "md.traj").exists()


def test_a_run_that_heats_up_stops_and_says_where(tmp_path: Path) -> None:
    with pytest.raises(BlowUpError, match=r"blew up at step \d+ .*temperature") as caught:
        run_md(
            Morse(),
            cluster(),
            temperature=300,
            timestep_fs=60,
            steps=500,
            interval=1,
            output=tmp_path / "md.traj",
        )
    step = int(str(caught.value).split("step ")[1].split()[0])
    frames = ase.io.read(tmp_path / "md.traj", index=":")
    assert len(frames) == step  # all whole steps before it, and the start
    assert all(np.isfinite(frame.positions).all() for frame in frames)


def test_forces_that_are_not_numbers_stop_the_run(tmp_path: Path) -> None:
    class Breaks(Analytic):
        def calculate(self, *arguments: object) -> None:
            super().calculate(*arguments)
            if self.atoms.positions[0, 0] > 1.0:
                self.results["forces"] = self.results["forces"] * np.nan

    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 3]])
    atoms.set_momenta([[4, 0, 0], [4, 0, 0]])
    with pytest.raises(ClebschError, match=r"step \d+ .*not finite"):
        run_md(Breaks(), atoms, steps=500, timestep_fs=2, output=tmp_path / "md.traj")


def test_an_atom_that_flies_away_stops_the_run(tmp_path: Path) -> None:
    atoms = Atoms("Ar3", [[0, 0, 0], [0, 0, 3], [0, 0, 6]])
    atoms.set_momenta([[0, 0, 0], [0, 0, 0], [0, 0, 8]])
    with pytest.raises(ClebschError, match=r"atom 2 \(Ar\) has left"):
        run_md(Analytic(), atoms, steps=2000, timestep_fs=5, output=tmp_path / "md.traj")


def test_a_cell_that_explodes_stops_the_run(tmp_path: Path) -> None:
    gas = Atoms("Ar4", np.eye(4, 3), cell=[2, 2, 2], pbc=True)
    with pytest.raises(ClebschError, match="volume"):
        run_md(
            Analytic(),
            gas,
            ensemble="npt",
            temperature=3000,
            barostat_period_fs=50,
            steps=3000,
            timestep_fs=2,
            output=tmp_path / "md.traj",
        )
