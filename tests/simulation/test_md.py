"""Molecular dynamics: energy is conserved, ensembles are what they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLength, FixInternals
from morse import Analytic, Morse, cluster, thermal_energy

from builders import tiny
from clebsch.errors import BlowUpError, ClebschError, DataError
from clebsch.simulation.md import MDResult, run_md
from clebsch.simulation.recorder import read_log


def test_nve_conserves_the_energy(tmp_path: Path) -> None:
    result = run_md(
        Morse(),
        cluster(),
        time_ps=1.0,
        timestep_fs=2,
        temperature=300,
        output=tmp_path / "nve.traj",
    )
    assert result.steps == 500
    assert result.time_ps == 1.0
    assert abs(result.energy_drift_meV) < 0.5
    assert result.energy_rms_meV < 0.5
    assert 50 < result.temperature_mean < 500
    log = read_log(result.log)
    assert np.ptp(log["potential_eV"]) > 0.01
    np.testing.assert_allclose(log["total_eV"], log["potential_eV"] + log["kinetic_eV"], atol=2e-9)


def test_the_drift_is_the_fitted_slope(tmp_path: Path) -> None:
    class Pumped(Analytic):
        """Forces with a curl, which do work on whatever circles."""

        def calculate(self, *arguments: object) -> None:
            super().calculate(*arguments)
            x, y, _ = self.atoms.positions.T
            self.results["forces"][:, :2] += 0.02 * np.array([-y, x]).T

    atoms = Atoms("Ar4", np.random.default_rng(0).standard_normal((4, 3)))
    atoms.set_momenta(5 * np.cross([0, 0, 1], atoms.positions))
    result = run_md(Pumped(spring=0.5), atoms, steps=400, timestep_fs=2, output=tmp_path / "a.traj")
    log = read_log(result.log)
    slope = np.polyfit(log["time_ps"], 1000 * log["total_eV"] / 4, 1)[0]
    assert slope > 50
    assert result.energy_drift_meV == pytest.approx(slope, rel=1e-6)


def test_langevin_samples_the_canonical_ensemble(tmp_path: Path) -> None:
    """Temperature and mean square displacement of springs, at a third of the stability limit."""
    sites = np.zeros((30, 3))
    result = run_md(
        Analytic(spring=2.0, sites=sites),
        Atoms("C30", sites),
        ensemble="nvt",
        temperature=400,
        steps=4000,
        timestep_fs=10,
        friction=10,
        interval=5,
        output=tmp_path / "nvt.traj",
    )
    log = read_log(result.log)
    half = len(log["step"]) // 2
    potential = log["potential_eV"][half:].mean() / (30 * 3)
    assert potential == pytest.approx(thermal_energy(400) / 2, rel=0.05)
    assert result.temperature_mean == pytest.approx(400, rel=0.06)
    expected_std = 400 * np.sqrt(2 / 90)
    assert result.temperature_std == pytest.approx(expected_std, rel=0.25)


def test_npt_samples_the_volumes_of_an_ideal_gas(tmp_path: Path) -> None:
    """P(V) ~ V^N exp(-PV/kT): mean (N+1) kT/P, relative standard deviation 1/sqrt(N+1)."""
    n, temperature, volume = 10, 300.0, 30.0
    pressure = (n + 1) * thermal_energy(temperature) / volume / units.GPa
    rng = np.random.default_rng(3)
    length = volume ** (1 / 3)
    gas = Atoms(f"Ar{n}", length * rng.random((n, 3)), cell=[length] * 3, pbc=True)
    result = run_md(
        Analytic(),
        gas,
        ensemble="npt",
        temperature=temperature,
        pressure=pressure,
        barostat_period_fs=60,
        steps=10000,
        timestep_fs=4,
        interval=8,
        output=tmp_path / "npt.traj",
    )
    log = read_log(result.log)
    kinetic = 2 / 3 * log["kinetic_eV"] / log["volume_A3"] / units.GPa
    np.testing.assert_allclose(log["pressure_GPa"], kinetic, rtol=1e-6)
    volumes = log["volume_A3"][200:]
    assert volumes.mean() == pytest.approx(volume, rel=0.08)
    assert volumes.std() / volumes.mean() == pytest.approx(1 / np.sqrt(n + 1), rel=0.2)
    assert result.temperature_mean == pytest.approx(temperature, rel=0.05)


def test_npt_keeps_a_copper_crystal_at_its_temperature_and_pressure(tmp_path: Path) -> None:
    crystal = bulk("Cu", cubic=True, a=3.59) * 2
    crystal.set_cell(crystal.cell.array * 1.01, scale_atoms=True)
    result = run_md(
        EMT(),
        crystal,
        ensemble="npt",
        temperature=300,
        pressure=2.0,
        steps=400,
        timestep_fs=5,
        output=tmp_path / "npt.traj",
    )
    assert result.temperature_mean == pytest.approx(300, rel=0.15)
    assert result.pressure_mean == pytest.approx(2.0, abs=0.8)
    cold = 32 * 3.59**3 / 4
    assert 0.97 * cold < result.volume_mean < 1.02 * cold
    shape = result.atoms.cell.cellpar()
    np.testing.assert_allclose(shape, [shape[0]] * 3 + [90] * 3, rtol=1e-9)
    distances = result.atoms.get_all_distances(mic=True)
    assert distances[~np.eye(32, dtype=bool)].min() > 2.0


@pytest.mark.parametrize("suffix", [".traj", ".extxyz"])
def test_trajectory_and_log_are_read_by_ase_and_numpy(tmp_path: Path, suffix: str) -> None:
    atoms = cluster()
    atoms.arrays["REF_forces"] = np.ones((7, 3))
    atoms.info["REF_energy"] = -1.0
    start = atoms.get_positions()
    result = run_md(
        Morse(), atoms, steps=25, temperature=300, interval=5, output=tmp_path / f"md{suffix}"
    )
    frames = ase.io.read(result.trajectory, index=":")
    log = np.loadtxt(result.log)
    assert [frame.info["step"] for frame in frames] == [0, 5, 10, 15, 20, 25]
    np.testing.assert_array_equal(log[:, 0], [0, 5, 10, 15, 20, 25])
    np.testing.assert_allclose(log[:, 3], [f.get_potential_energy() for f in frames], atol=1e-8)
    np.testing.assert_allclose(log[:, 4], [f.get_kinetic_energy() for f in frames], atol=1e-6)
    forces = Morse()(Morse().graph(frames[3]), ("forces",)).forces
    np.testing.assert_allclose(frames[3].get_forces(), forces, atol=1e-6)
    assert "REF_forces" not in frames[0].arrays  # a label of the start is none of the frames
    assert "REF_energy" not in frames[0].info
    np.testing.assert_array_equal(atoms.positions, start)  # and the input is left alone


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    def final(seed: int, name: str) -> np.ndarray:
        result = run_md(
            Morse(),
            cluster(),
            ensemble="nvt",
            temperature=300,
            steps=10,
            seed=seed,
            output=tmp_path / name,
        )
        return result.atoms.positions

    first = final(1, "a.traj")
    np.testing.assert_array_equal(first, final(1, "b.traj"))
    assert np.abs(first - final(2, "c.traj")).max() > 1e-4


def test_nve_without_a_temperature_keeps_the_velocities(tmp_path: Path) -> None:
    atoms = cluster()
    with pytest.raises(ClebschError, match="needs a temperature"):
        run_md(Morse(), atoms, steps=1, output=tmp_path / "none.traj")
    momenta = np.random.default_rng(0).standard_normal((7, 3))
    atoms.set_momenta(momenta)
    result = run_md(Morse(), atoms, steps=1, interval=1, output=tmp_path / "kept.traj")
    np.testing.assert_array_equal(ase.io.read(result.trajectory, 0).get_momenta(), momenta)


def test_velocities_to_keep_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    atoms = cluster()
    momenta = np.ones((7, 3))
    momenta[4, 1] = np.nan
    atoms.set_momenta(momenta)
    with pytest.raises(DataError, match=r"hot\.xyz: the velocity of atom 4 \(\w+\) is not"):
        run_md(Morse(), atoms, steps=1, output=tmp_path / "a.traj", name="hot.xyz")
    assert not list(tmp_path.iterdir())
    drawn = run_md(Morse(), atoms, steps=1, temperature=300, output=tmp_path / "a.traj")
    assert np.isfinite(drawn.atoms.get_momenta()).all()


@pytest.mark.parametrize("constraint", [FixBondLength(0, 1), FixInternals(bonds=[(1.0, [0, 1])])])
def test_nvt_refuses_constraints_that_it_would_not_keep(constraint: Any, tmp_path: Path) -> None:
    """ASE's Langevin steps move positions past them: bonds would drift."""
    atoms = cluster()
    atoms.set_constraint([FixAtoms([3]), constraint])
    name = type(constraint).__name__
    with pytest.raises(ClebschError, match=f"constraint {name}, nve does"):
        run_md(Morse(), atoms, ensemble="nvt", temperature=300, steps=1, output=tmp_path / "a.traj")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ensemble": "ntv", "temperature": 300}, "'nvt'"),
        ({"ensemble": "nvt"}, "temperature"),
        ({"ensemble": "npt", "temperature": 300}, "periodic in all three"),
        ({"temperature": -5.0}, "temperature = -5"),
        ({"temperature": 300, "timestep_fs": 0.0}, "timestep_fs = 0"),
        ({"temperature": 300, "interval": 0}, "interval = 0"),
        ({"temperature": 300, "time_ps": 1.0}, "either"),
        ({"temperature": 300, "steps": None}, "either"),
        ({"temperature": 300, "seed": -1}, "seed"),
        ({"temperature": 300, "steps": None, "time_ps": np.nan}, "time = nan ps"),
        ({"temperature": 300, "steps": None, "time_ps": np.inf}, "time = inf ps"),
        ({"ensemble": "npt", "temperature": 300, "pressure": np.nan}, "pressure = nan GPa"),
        ({"temperature": 300, "pressure": 0.0}, "pressure does nothing in nve, only in npt"),
        ({"ensemble": "nvt", "temperature": 300, "barostat_period_fs": 100.0}, "barostat_period"),
        ({"temperature": 300, "friction": 1.0}, "nothing in nve, only in nvt and npt"),
        ({"temperature": 300, "output": "md.xtc"}, "md.xtc"),
        ({"temperature": 300, "output": "nowhere/md.traj"}, "nowhere"),
        ({"temperature": 300, "log": "md.traj"}, "two results"),
        ({"temperature": 300, "log": "md.state.json"}, "two results"),
    ],
)
def test_settings_that_make_no_sense(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    arguments = {"steps": 10, "output": "md.traj", **settings}
    for name in ("output", "log"):
        if name in arguments:
            arguments[name] = tmp_path / str(arguments[name])
    with pytest.raises(ClebschError, match=message):
        run_md(Morse(), cluster(), **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pbc", [False, (True, True, False), True])
def test_an_atom_beyond_the_cutoff_of_all_others_is_said_and_ends_nothing(
    tmp_path: Path, pbc: Any
) -> None:
    """Also where images of its own are within the cut-off (6 Angstrom), and after a restart."""
    layer = [[0, 0, 0], [2.5, 0, 0], [0, 2.5, 0], [2.5, 2.5, 0]]
    atoms = Atoms("Cu5", [*layer, [1.2, 1.3, 4.5]], cell=[5, 5, 40], pbc=pbc)
    atoms.set_momenta([[0, 0, 0]] * 4 + [[0, 0, 20]])

    def go_on(steps: int, output: str = "md.traj", **options: Any) -> MDResult:
        output = tmp_path / output
        return run_md(Morse(), atoms, steps=steps, timestep_fs=2, output=output, **options)

    assert go_on(10).lone_atoms is None
    assert "cut-off" not in go_on(10, restart=True).describe()
    whole, part = go_on(80, "whole.traj"), go_on(60, restart=True)
    result = go_on(80, restart=True)
    frames = ase.io.read(result.trajectory, index=":")
    nearest = {f.info["step"]: f.get_distances(4, range(4), mic=True).min() for f in frames}
    said = result.to_json()["lone_atoms"]
    assert said == whole.to_json()["lone_atoms"]
    assert said["atoms"] == [4]
    assert said["step"] == min(step for step, distance in nearest.items() if distance > 6)
    assert said["step"] <= 60
    assert said["distance"] == pytest.approx(max(nearest.values()))
    assert 6 < part.lone_atoms.distance < said["distance"]
    sentence = "atom 4 (Cu) was beyond the model's cut-off of 6 Angstrom, where no force acts, from"
    assert f"{sentence} step {said['step']} on: up to {said['distance']:.1f} " in result.describe()


def test_only_a_model_has_a_cutoff_to_be_beyond_of(tmp_path: Path) -> None:
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 9]])
    result = run_md(Analytic(), atoms, steps=1, temperature=10, output=tmp_path / "md.traj")
    assert result.to_json()["lone_atoms"] is None


class Trained(Morse):
    """It knows how close copper atoms came in training: 2.6 Angstrom."""

    shortest_distances = {"Cu-Cu": 2.6}  # noqa: RUF012


def test_contacts_closer_than_in_training_are_said(tmp_path: Path) -> None:
    """The closest of all frames and the first step, also after a restart."""
    atoms = Atoms("Cu3", [[0, 0, 0], [2.6, 0, 0], [0, 0, 4]])
    atoms.set_momenta([[6, 0, 0], [-6, 0, 0], [0, 0, 0]])

    def go_on(steps: int, output: str, model: Morse, **options: Any) -> MDResult:
        output = tmp_path / output
        return run_md(
            model, atoms, steps=steps, timestep_fs=1, interval=2, output=output, **options
        )

    assert go_on(2, "md.traj", Trained()).contacts == ()
    whole, _ = go_on(60, "whole.traj", Trained()), go_on(30, "md.traj", Trained(), restart=True)
    result = go_on(60, "md.traj", Trained(), restart=True)
    frames = ase.io.read(result.trajectory, index=":")
    distances = {f.info["step"]: f.get_distance(0, 1) for f in frames}
    (said,) = result.to_json()["contacts"]
    assert result.contacts == whole.contacts
    assert (said["pair"], set(said["atoms"]), said["trained"]) == ("Cu-Cu", {0, 1}, 2.6)
    assert said["distance"] == pytest.approx(min(distances.values()))
    first = min(step for step, distance in distances.items() if distance < 0.9 * 2.6)
    assert 2 < said["step"] == first < 30 < max(distances)
    sentence = f"Cu-Cu {said['distance']:.2f} Angstrom (atoms "
    assert "the first at step" in result.describe().split(sentence)[1]
    assert "in training 2.60" in result.describe()
    assert go_on(60, "any.traj", Morse()).contacts == ()

    with pytest.raises(BlowUpError, match=rf"was stopped at step {first} .*in training 2\.60"):
        go_on(60, "stop.traj", Trained(), stop_at_contacts=True)
    assert ase.io.read(tmp_path / "stop.traj").info["step"] == first
    assert go_on(60, "stop.traj", Trained(), restart=True).contacts == whole.contacts
    with pytest.raises(ClebschError, match="the model does not tell how close atoms came in its"):
        go_on(60, "none.traj", Morse(), stop_at_contacts=True)
    assert not (tmp_path / "none.traj").exists()


def test_a_restart_stops_at_contacts_of_its_own_frames(tmp_path: Path) -> None:
    atoms = Atoms("Cu3", [[0, 0, 0], [2.6, 0, 0], [0, 0, 4]])
    atoms.set_momenta([[6, 0, 0], [-6, 0, 0], [0, 0, 0]])

    def go_on(steps: int, output: str, interval: int = 2, **options: Any) -> MDResult:
        options |= {"interval": interval, "output": tmp_path / output}
        return run_md(Trained(), atoms, steps=steps, timestep_fs=1, **options)

    whole = go_on(100, "whole.traj")
    went_apart = go_on(90, "md.traj")
    assert went_apart.atoms.get_distance(0, 1) > 0.9 * 2.6
    result = go_on(100, "md.traj", restart=True, stop_at_contacts=True)
    assert result.contacts == whole.contacts == went_apart.contacts

    with pytest.raises(BlowUpError, match=r"was stopped at step 15 .* in training 2\.60"):
        go_on(15, "between.traj", interval=20, stop_at_contacts=True)
    go_on(40, "between.traj", interval=20, restart=True)
    frames = ase.io.read(tmp_path / "between.traj", index=":")
    assert [frame.info["step"] for frame in frames] == [0, 20, 40]


def test_a_committee_tells_how_uncertain_every_frame_is(tmp_path: Path) -> None:
    """It moves nothing, and a run that went on tells the same as one that did not stop."""
    members = [tiny("Cu", seed) for seed in range(3)]

    def go_on(steps: int, output: str, committee: Any = members[1:], **options: Any) -> MDResult:
        options |= {"output": tmp_path / output, "interval": 2, "committee": committee}
        return run_md(members[0], cluster(), steps=steps, temperature=300, **options)

    whole, alone = go_on(20, "whole.traj"), go_on(20, "alone.traj", committee=None)
    frames = ase.io.read(whole.trajectory, index=":")
    forces = np.array([[one(one.graph(f)).forces.numpy() for one in members] for f in frames])
    away = np.sqrt((forces.std(1, ddof=1) ** 2).sum(-1))
    column = read_log(whole.log)["uncertainty_eV_A"]
    np.testing.assert_allclose(column, away.max(1), atol=2e-9)
    np.testing.assert_allclose([f.info["uncertainty_eV_A"] for f in frames], away.max(1), rtol=1e-9)
    frame, atom = np.unravel_index(away.argmax(), away.shape)
    told = whole.to_json()["most_uncertain"]
    assert (told["step"], told["atom"]) == (2 * frame, atom)
    assert told["uncertainty"] == pytest.approx(away.max())
    assert f"up to {away.max():.3f} eV/Angstrom for atom {atom} (Cu) at" in whole.describe()
    np.testing.assert_array_equal(whole.atoms.positions, alone.atoms.positions)
    assert alone.to_json()["most_uncertain"] is None
    assert "uncertainty_eV_A" not in read_log(alone.log)

    go_on(8, "md.traj")
    assert go_on(20, "md.traj", restart=True).most_uncertain == whole.most_uncertain
    np.testing.assert_array_equal(read_log(tmp_path / "md.log")["uncertainty_eV_A"], column)
    for output, committee, how in (("md", None, "with a"), ("alone", members[1:], "without a")):
        with pytest.raises(ClebschError, match=f"begun {how} committee"):
            go_on(30, f"{output}.traj", committee=committee, restart=True)


def test_a_run_stops_where_a_force_is_too_uncertain(tmp_path: Path) -> None:
    members = [tiny("Cu", seed) for seed in range(2)]

    def go_on(output: str, limit: float | None = None, **options: Any) -> MDResult:
        options |= {"committee": members[1:], "stop_at_uncertainty": limit}
        path = tmp_path / output
        return run_md(members[0], cluster(), steps=40, temperature=900, output=path, **options)

    column = read_log(go_on("whole.traj").log)["uncertainty_eV_A"]
    limit = float(np.sort(column)[-1] + max(c for c in column if c < column.max())) / 2
    first = 10 * int((column > limit).argmax())
    with pytest.raises(BlowUpError, match=rf"stopped at step {first} .*uncertain than {limit:g} "):
        go_on("stop.traj", limit)
    assert ase.io.read(tmp_path / "stop.traj").info["step"] == first
    assert go_on("stop.traj", limit=10 * limit, restart=True).steps == 40
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ClebschError, match="above 0"):
            go_on("bad.traj", bad)
    assert not (tmp_path / "bad.traj").exists()


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (EMT(), {"committee": [tiny("Cu")]}, "not of EMT"),
        (tiny("Cu"), {"committee": []}, "alone has no committee"),
        (tiny("Cu"), {"stop_at_uncertainty": 1.0}, "alone has no committee"),
    ],
)
def test_uncertainties_that_nothing_tells_are_refused_at_once(
    tmp_path: Path, source: Any, options: dict[str, Any], message: str
) -> None:
    output = tmp_path / "md.traj"
    with pytest.raises(ClebschError, match=message):
        run_md(source, cluster(), steps=1, temperature=300, output=output, **options)
    assert not output.exists()


def test_npt_refuses_fixed_atoms(tmp_path: Path) -> None:
    crystal = bulk("Cu", cubic=True)
    crystal.set_constraint(FixAtoms([0]))
    with pytest.raises(ClebschError, match="constraints"):
        run_md(
            EMT(),
            crystal,
            ensemble="npt",
            temperature=300,
            steps=1,
            output=tmp_path / "npt.traj",
        )
