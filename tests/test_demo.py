"""``clebsch demo``: the whole road, on so few frames that only the road is tested."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from rich.console import Console

from clebsch.demo import run_demo
from clebsch.demo.sampling import Job, ethanol, run_jobs, torsion_atoms
from clebsch.demo.settings import FULL, QUICK, Files, jobs, write_training_config
from clebsch.errors import ClebschError
from clebsch.models.presets import preset_config
from clebsch.simulation.recorder import read_log
from clebsch.training.configfile import load_config


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Files, str]:
    """The files of one quick demonstration and what it printed."""
    pytest.importorskip("tblite")
    # A folder that a shell, YAML and rich's markup would each misread if it were not quoted.
    out = tmp_path_factory.mktemp("demo") / "my demo: [1]"
    console = quiet()
    report = run_demo(out, seed=1, quick=True, console=console)
    files = Files(out)
    assert report == files.report
    assert isinstance(console.file, io.StringIO)
    return files, console.file.getvalue()


def test_every_file_that_was_promised_is_there(demo: tuple[Files, str]) -> None:
    files, _ = demo
    expected = [*files.train, *files.tests.values(), files.isolated_atoms, files.torsion]
    expected += [files.config, files.model, files.trajectory, files.scan, files.report]
    expected += [files.predictions(test) for test in files.tests.values()]
    assert [path for path in expected if not path.is_file()] == []


def test_the_trajectories_are_independent_of_one_another(demo: tuple[Files, str]) -> None:
    files, _ = demo
    paths = [*files.train, *files.tests.values()]
    firsts = [read(path, index=0).positions for path in paths]
    for i, first in enumerate(firsts):
        for other in firsts[:i]:
            assert np.abs(first - other).max() > 1e-3
    counts = [len(read(path, index=":")) for path in paths]
    assert counts == [QUICK.train_frames] * 4 + [QUICK.test_frames, QUICK.hot_frames]


def test_the_scan_turns_the_hydroxyl_hydrogen_and_nothing_else(demo: tuple[Files, str]) -> None:
    files, _ = demo
    frames = read(files.torsion, index=":")
    hydrogen, *others = torsion_atoms(frames[0])
    assert [f.info["torsion"] for f in frames] == [0, 90, 180, 270, 360]
    for frame in frames:
        angle = frame.get_dihedral(hydrogen, *others)
        assert np.cos(np.radians(angle - frame.info["torsion"])) == pytest.approx(1)
        rest = np.delete(frame.positions - frames[0].positions, hydrogen, axis=0)
        assert np.abs(rest).max() < 1e-7
        assert frame.get_distance(hydrogen, others[0]) == pytest.approx(0.96, abs=0.02)
    energies = [frame.get_potential_energy() for frame in frames]
    assert energies[0] == pytest.approx(energies[4], abs=1e-6)
    assert 0.01 < energies[0] - energies[2] < 0.15  # eclipsed above trans


def test_the_summary_says_what_the_files_say(demo: tuple[Files, str]) -> None:
    files, printed = demo
    summary = json.loads(files.summary.read_text())
    for name, test in files.tests.items():
        frames = read(files.predictions(test), index=":")
        errors = [f.get_forces() - f.arrays["reference_forces"] for f in frames]
        found = summary["evaluations"][name]
        assert found["n_frames"] == len(frames)
        assert found["forces_rmse"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-4)
        assert f"{1000 * found['forces_rmse']:.1f} meV/Å" in printed
    log = read_log(files.trajectory.with_suffix(".log"))
    slope = np.polyfit(log["time_ps"], 1000 * log["total_eV"] / 9, 1)[0]
    assert summary["dynamics"]["energy_drift_meV"] == pytest.approx(slope, rel=1e-3)
    assert log["step"][-1] == QUICK.md_steps
    curve = np.loadtxt(files.scan, delimiter=",", skiprows=1)
    largest = np.abs(curve[:, 1] - curve[:, 3]).max()
    assert summary["torsion"]["max_error"] == pytest.approx(largest, abs=1e-6)
    assert summary["seed"] == 1
    assert {"clebsch", "torch", "tblite", "python"} <= set(summary["versions"])
    assert sum(v for k, v in summary["seconds"].items() if k != "total") == pytest.approx(
        summary["seconds"]["total"]
    )


def test_what_is_printed_shows_the_check_and_where_everything_lies(
    demo: tuple[Files, str],
) -> None:
    files, printed = demo
    n_frames = 4 * QUICK.train_frames + QUICK.test_frames + QUICK.hot_frames + 3
    for words in (f"{n_frames} structures of 1 to 9 atoms", "C2H6O", "Energy drift"):
        assert words in printed
    for path in (files.report, files.model, files.config, files.out):
        assert str(path) in printed


def test_the_report_has_dynamics_torsion_and_times(demo: tuple[Files, str]) -> None:
    files, _ = demo
    page = files.report.read_text()
    for title in ("Learning curves", "Predictions", "Molecular dynamics", "Torsion scan", "Time"):
        assert f"<h2>{title}</h2>" in page
    for caption in ("Temperature", "Total energy, relative to the first step", "Torsion energy"):
        assert f"<figcaption>{caption}</figcaption>" in page


def test_the_training_configuration_can_be_trained_again(demo: tuple[Files, str]) -> None:
    files, _ = demo
    again = load_config(files.config, [f"run={json.dumps(str(files.out / 'again'))}"])
    assert again.data.train == tuple(files.train)
    resolved = load_config(files.run / "config.yaml")
    chosen = {"run": files.run, "threads": resolved.threads, "processes": 1}
    assert again.model_copy(update=chosen) == resolved


def test_the_full_demo_trains_a_preset_within_its_time(tmp_path: Path) -> None:
    write_training_config(Files(tmp_path), FULL, seed=0)
    config = load_config(tmp_path / "train.yaml")
    assert config.model == preset_config("mace_tiny")
    assert config.training.max_epochs is None
    assert config.training.max_minutes is not None
    assert config.training.max_minutes <= 4


def test_the_full_demo_is_what_the_issue_asks_for() -> None:
    listed = jobs(Files(Path("out")), FULL, seed=0)
    trajectories = [job for job in listed if job.kind == "trajectory"]
    test, hot = trajectories[-2:]
    assert (test.settings["temperature"], test.n_frames >= 200) == (300, True)
    assert (hot.settings["temperature"], hot.n_frames >= 100) == (600, True)
    assert FULL.md_steps * 0.5e-3 >= 5
    later = jobs(Files(Path("out")), FULL, seed=1)
    seeds = [job.settings["seed"] for job in (*listed, *later) if job.kind == "trajectory"]
    assert len(set(seeds)) == len(seeds)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(ClebschError, match="not an empty folder; choose another one"):
        run_demo(tmp_path, quick=True, console=quiet())
    with pytest.raises(ClebschError, match="not an empty folder"):
        run_demo(tmp_path / "thesis.tex", quick=True, console=quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_without_tblite_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    with pytest.raises(ClebschError, match=r"pip install 'clebsch\[demo\]'"):
        run_demo(tmp_path / "out", quick=True, console=quiet())
    assert not (tmp_path / "out").exists()


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClebschError, match="seed = -1"):
        run_demo(tmp_path / "out", seed=-1, quick=True, console=quiet())


def test_a_job_that_fails_is_named_and_ends_the_others(tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    endless = {"temperature": 300, "n_frames": 10**6, "stride": 1, "equilibration": 10**6}
    failing = Job("torsion", tmp_path / "no" / "folder.xyz", 1, {"step": 360})
    with pytest.raises(ClebschError, match=r"no/folder\.xyz: xTB's process failed: .*No such file"):
        run_jobs([Job("trajectory", tmp_path / "a.xyz", 1, endless), failing], quiet())


def test_the_torsion_is_found_whatever_the_order_of_atoms() -> None:
    atoms = ethanol()
    order = np.random.default_rng(0).permutation(len(atoms))
    symbols = atoms[order].symbols
    hydrogen, oxygen, carbon, methyl = torsion_atoms(atoms[order])
    assert [symbols[i] for i in (hydrogen, oxygen, carbon, methyl)] == ["H", "O", "C", "C"]
    assert atoms[order].get_distance(hydrogen, oxygen) < 1.1
    assert atoms[order].get_distance(oxygen, carbon) < 1.5
    assert atoms[order].get_dihedral(hydrogen, oxygen, carbon, methyl) == pytest.approx(180, abs=1)
