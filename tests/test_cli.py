"""The command line: every command does its work, and every mistake gets one clear line."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

import clebsch
from clebsch.modelfile import save_heads

COMMANDS = (
    "demo",
    "check",
    "train",
    "resume",
    "evaluate",
    "report",
    "md",
    "relax",
    "scan",
    "presets",
    "bench",
    "doctor",
    "convert",
    "info",
)
SETTINGS = {
    "preset": "mace_tiny",
    "channels": 2,
    "l_max": 1,
    "product": {"correlation": 2},
    "cutoff": 3.0,
}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run_command: Run) -> Run:
    """Run a command; its exit status, standard output and standard error."""
    return run_command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and structures; a random network is as good as a trained one here."""
    folder = tmp_path_factory.mktemp("cli")
    potential = clebsch.build(SETTINGS, ["H", "O", "Cu"], dtype=torch.float64)
    potential.save(folder / "model.safetensors")
    rng = np.random.default_rng(0)
    frames = []
    for stretch in np.linspace(-0.1, 0.3, 12):
        water = Atoms("OHH", [[0, 0, 0], [0.96 + stretch, 0, 0], [-0.24, 0.93, 0]])
        forces = rng.standard_normal((3, 3))
        water.calc = SinglePointCalculator(
            water, energy=20 * (stretch - 0.02) ** 2, forces=forces - forces.mean(0)
        )
        frames.append(water)
    ase.io.write(folder / "water.xyz", frames, format="extxyz")
    ase.io.write(folder / "copper.xyz", bulk("Cu", cubic=True))
    ase.io.write(folder / "gold.xyz", bulk("Au", cubic=True))
    return folder


def test_help_names_all_commands_and_needs_no_torch(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert all(command in out for command in COMMANDS)
    check = "import sys, clebsch.cli; sys.exit('torch' in sys.modules or 'ase' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run: Run, command: str) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    assert "Usage" in out


def test_the_module_is_the_command_and_knows_its_version() -> None:
    called = subprocess.run(
        [sys.executable, "-m", "clebsch", "--version"], capture_output=True, text=True
    )
    assert called.stdout.strip() == clebsch.__version__
    assert called.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("md", "absent.safetensors", "{}/water.xyz"), "absent.safetensors"),
        (("md", "{}/model.safetensors", "{}/absent.xyz"), "absent.xyz"),
        (
            ("md", "{}/model.safetensors", "{}/water.xyz", "--index", 99),
            "number 99: they are numbered from 0 to 11",
        ),
        (("md", "{}/model.safetensor", "{}/water.xyz"), "Did you mean 'model.safetensors'"),
        (("md", "{}/model.safetensors", "{}/watter.xyz"), "Did you mean 'water.xyz'"),
        (("train", "{}/watr.xyz"), "Did you mean 'water.xyz'"),
        (("train", "data.references={{H:-13.6, O: -2041}}"), "a blank belongs after the colon"),
        (("convert", "{}/model.safetensors", "{}/new.xyz"), "ends in .safetensors"),
        (("md", "{}/model.safetensors", "{}/water.xyz", "--ensemble", "ntv"), "'nvt'"),
        (("md", "{}/model.safetensors", "{}/water.xyz", "--dtype", "float16"), "float16"),
        (("md", "{}/model.safetensors", "{}/water.xyz", "--device", "gpu"), "'gpu'"),
        (("md", "{}/model.safetensors", "{}/water.xyz", "--keep-velocities"), "nve"),
        (("md", "{}/water.xyz", "{}/water.xyz"), "water.xyz"),
        (("relax", "{}/model.safetensors", "{}/gold.xyz", "--output", "{}/g.xyz"), "gold.xyz: "),
        (
            ("relax", "{}/model.safetensors", "{}/water.xyz", "--cell"),
            "water.xyz: relaxing the cell needs a structure that is periodic in all three",
        ),
        (
            ("md", "{}/model.safetensors", "{}/water.xyz", "--ensemble", "npt"),
            "water.xyz: npt needs a structure that is periodic in all three",
        ),
        (("relax", "{}/model.safetensors", "{}/water.xyz", "--steps", -1), "steps = -1"),
        (("scan", "{}/model.safetensors", "{}/water.xyz", "--energy-key", "enrgy"), "enrgy"),
        (("check", "{}/water.xyz", "--forces-key", "REF_forces"), "REF_forces"),
        (("check", "{}/water.xyz", "--pbc", "nome"), "'none'"),
        (("check", "{}/water.xyz", "--stress-convention", "vasp"), "negative"),
        (("check", "{}/water.xyz", "--virial-convention", "dE_strain"), "'dE_dstrain'"),
        (("check", "{}/water.xyz", "--energy-unit", "kcal"), "--energy-unit: 'kcal' is no unit of"),
        (("check", "{}/water.xyz", "--energy-unit", "Ha"), "say the unit of the forces too"),
        (
            ("train", "data.train={}/water.xyz", "data.keys.forces_unit=eV"),
            "data.keys.forces_unit: 'eV' is no unit of forces: an energy over a length",
        ),
        (("evaluate", "{}/model.safetensors", "{}/water.xyz", "--dtype", "float16"), "float16"),
        (("evaluate", "{}/model.safetensors", "{}/absent.xyz"), "absent.xyz"),
        (("evaluate", "{}/model.safetensors", "{}/water.xyz", "{}/water.xyz"), "given twice"),
        (("train", "a.yaml", "b.yaml"), "a.yaml and b.yaml"),
        (("train", "data.train={}/water.xyz", "model.chanels=3"), "channels"),
        (("resume", "{}"), "no"),
        (("report", "{}"), "config.yaml"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_mistakes_get_one_line_and_status_2(
    run: Run,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*(str(argument).format(folder) for argument in arguments))
    assert status == 2
    assert err.strip().startswith("error: ")
    assert message in err
    assert "Traceback" not in out + err
    assert not list(tmp_path.iterdir())


def test_unknown_options_and_commands_are_refused(run: Run, folder: Path) -> None:
    status, _, err = run(
        "md", folder / "model.safetensors", folder / "water.xyz", "--tempreature", 3
    )
    assert status == 2
    assert "--tempreature" in err
    assert run("evalute")[0] == 2


def test_md_runs_and_restarts(run: Run, folder: Path, tmp_path: Path) -> None:
    command = (
        "md",
        folder / "model.safetensors",
        folder / "water.xyz",
        "--output",
        tmp_path / "water.extxyz",
        "--timestep",
        0.05,  # a random network is a rough landscape
    )
    status, out, _ = run(*command, "--steps", 20)
    assert status == 0
    assert str(tmp_path / "water.extxyz") in out
    assert "Temperature" in out
    assert len(ase.io.read(tmp_path / "water.extxyz", index=":")) == 3
    assert run(*command, "--steps", 40)[0] == 2  # there is a run already
    status, _, err = run(*command, "--steps", 40, "--restart", "--tabulate")
    assert status == 2
    assert "another model" in err
    other = (*command[:2], folder / "copper.xyz", *command[3:])
    status, _, err = run(*other, "--steps", 40, "--restart")
    assert status == 2
    state = tmp_path / "water.state.json"
    assert f"{state}: the run was begun with other atoms than {folder / 'copper.xyz'} has" in err
    status, out, _ = run(*command, "--steps", 40, "--restart", "--json")
    assert status == 0
    assert json.loads(out)["steps"] == 40
    assert len(ase.io.read(tmp_path / "water.extxyz", index=":")) == 5
    status, out, err = run(*command, "--steps", 10, "--overwrite", "--ensemble", "nve", "--json")
    assert status == 0, err
    assert json.loads(out)["ensemble"] == "nve"


def test_md_that_blows_up_has_a_bad_answer(run: Run, folder: Path, tmp_path: Path) -> None:
    command = ("md", folder / "model.safetensors", folder / "water.xyz", "--timestep", 500)
    status, _, err = run(*command, "--steps", 200, "--output", tmp_path / "md.traj")
    assert "blew up" in err
    assert status == 1


def test_an_interrupted_md_says_how_to_go_on(folder: Path, tmp_path: Path) -> None:
    arguments = [folder / "model.safetensors", folder / "copper.xyz", "--time", 1000]
    process = subprocess.Popen(
        [sys.executable, "-m", "clebsch", "md", *map(str, arguments)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (tmp_path / "md.state.json").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--restart" in err
    assert "Traceback" not in err


def test_an_interrupted_relaxation_keeps_the_structure_reached(
    folder: Path, tmp_path: Path
) -> None:
    options = ["--fmax", 1e-300, "--steps", 10**9, "--trajectory", "steps.traj"]
    arguments = [folder / "model.safetensors", folder / "water.xyz", *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "clebsch", "relax", *map(str, arguments)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    steps = tmp_path / "steps.traj"
    while process.poll() is None and not (steps.exists() and steps.stat().st_size > 10_000):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"after \d+ steps; relaxed\.extxyz holds the structure reached", err), err
    reached, last = ase.io.read(tmp_path / "relaxed.extxyz"), ase.io.read(steps)
    np.testing.assert_allclose(reached.positions, last.positions, atol=1e-7)


def test_relax_reports_convergence_in_its_status(run: Run, folder: Path, tmp_path: Path) -> None:
    command = ("relax", folder / "model.safetensors", folder / "copper.xyz", "--overwrite")
    output = tmp_path / "relaxed.cif"
    status, out, _ = run(*command, "--output", output, "--fmax", 10)
    assert status == 0
    assert "Converged" in out
    assert len(ase.io.read(output)) == 4
    options = ("--cell", "--fmax", 1e-9, "--steps", 1, "--json", "--output", output)
    status, out, _ = run(*command, *options)
    assert status == 1
    assert json.loads(out)["converged"] is False


def test_scan_prints_and_writes_the_curve(run: Run, folder: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / f"scan.{suffix}" for suffix in ("csv", "json", "svg")]
    options = [part for path in outputs for part in ("--output", path)]
    command = ("scan", folder / "model.safetensors", folder / "water.xyz")
    status, out, _ = run(*command, *options)
    assert status == 0
    assert "RMSE" in out
    assert all(path.exists() and str(path) in out for path in outputs)
    status, out, _ = run(*command, "--json", "--energy-key", "none")
    assert status == 0
    assert json.loads(out)["reference"] is None


def test_check_and_its_status(run: Run, folder: Path, tmp_path: Path) -> None:
    status, out, _ = run("check", folder / "water.xyz")
    assert status == 0
    assert "12 structures" in out
    status, out, _ = run("check", folder / "water.xyz", "--json")
    report = json.loads(out)
    assert report["n_frames"] == 12


def test_evaluate_writes_json_predictions_and_report(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    predictions, report = tmp_path / "predicted.xyz", tmp_path / "report.html"
    options = ("--json", "--predictions", predictions, "--report", report)
    status, out, _ = run("evaluate", folder / "model.safetensors", folder / "water.xyz", *options)
    assert status == 0
    metrics = json.loads(out)["sets"]["water.xyz"]["metrics"]
    assert metrics["forces_rmse"] > 0
    assert len(ase.io.read(predictions, index=":")) == 12
    assert "<html" in report.read_text()


def test_a_committee_tells_how_sure_a_model_is(run: Run, folder: Path, tmp_path: Path) -> None:
    model, other, data = folder / "model.safetensors", tmp_path / "other", folder / "water.xyz"
    known = clebsch.load(model)
    clebsch.build(known.config, known.species, seed=1).save(other)
    predictions = tmp_path / "predicted.xyz"
    report = tmp_path / "report.html"
    options = ("--committee", other, "--predictions", predictions, "--report", report)
    status, out, err = run("evaluate", model, data, *options)
    assert (status, err) == (0, "")
    assert "What the committee says" in out
    assert "What the committee says" in report.read_text()
    assert "Most uncertain structures" in out
    frames = ase.io.read(predictions, index=":")
    most = max(float(frame.arrays["uncertainty_forces"].max()) for frame in frames)
    assert all(frame.info["uncertainty_energy"] > 0 for frame in frames)
    status, out, _ = run("evaluate", model, data, "--committee", other, "--json")
    told = json.loads(out)["sets"]["water.xyz"]["calibration"]["most_uncertain"][0]
    assert told["uncertainty"] == pytest.approx(most, rel=1e-4)

    output = ("--output", tmp_path / "md.traj", "--steps", 2, "--interval", 1)
    status, out, _ = run("md", model, data, *output, "--committee", other, "--json")
    assert status == 0
    assert json.loads(out)["most_uncertain"]["uncertainty"] > 0
    stop = ("--committee", other, "--stop-at-uncertainty", 1e-9, "--overwrite")
    status, _, err = run("md", model, data, *output, *stop)
    assert status == 1
    assert "stopped at step 0 (0.0000 ps): a force is more uncertain than 1e-09" in err
    for command in (("evaluate", model, data), ("md", model, data, *output, "--overwrite")):
        status, _, err = run(*command, "--uncertainty")
        assert status == 2
        assert "alone has no committee" in err
        for twice in ([model], [other, other]):
            names = [part for file in twice for part in ("--committee", file)]
            status, _, err = run(*command, *names)
            assert status == 2
            assert "the same model twice" in err


@pytest.mark.parametrize("command", ["predictions", "report", "scan"])
def test_results_replace_no_file_and_never_one_that_is_read(
    run: Run, folder: Path, tmp_path: Path, command: str
) -> None:
    data = tmp_path / {"predictions": "a.xyz", "report": "a.html", "scan": "a.csv"}[command]
    shutil.copy(folder / "water.xyz", data)
    read = tmp_path / "data.xyz"
    shutil.copy(data, read)
    before = data.read_bytes()

    def attempt(*rest: object) -> tuple[int, str]:
        model = folder / "model.safetensors"
        if command == "scan":
            status, _, err = run("scan", model, read, "--output", *rest)
        else:
            status, _, err = run("evaluate", model, read, f"--{command}", *rest)
        return status, err

    status, err = attempt(data)
    assert status == 2
    assert f"{data} exists already" in err
    for path, problem in ((read, "is read by this command"), (tmp_path / "no" / "a.csv", "folder")):
        status, err = attempt(path, "--overwrite")
        assert status == 2
        assert problem in err
    assert data.read_bytes() == read.read_bytes() == before
    status, err = attempt(data, "--overwrite")
    assert status == 0, err
    assert data.read_bytes() != before


@pytest.mark.parametrize(
    ("command", "option", "name"),
    [
        ("md", "--output", "start.xyz"),
        ("md", "--output", "start.traj"),
        ("relax", "--output", "start.xyz"),
        ("relax", "--trajectory", "start.traj"),
    ],
)
def test_a_simulation_never_writes_over_its_start(
    run: Run, folder: Path, tmp_path: Path, command: str, option: str, name: str
) -> None:
    start = tmp_path / name
    ase.io.write(start, ase.io.read(folder / "water.xyz"))
    before = start.read_bytes()
    options = ("--steps", 1, option, start, "--overwrite")
    others = () if option == "--output" else ("--output", tmp_path / "relaxed.xyz")
    status, _, err = run(command, folder / "model.safetensors", start, *options, *others)
    assert status == 2
    assert f"{start} is read by this command" in err
    assert start.read_bytes() == before
    assert list(tmp_path.iterdir()) == [start]


def test_md_does_not_write_its_log_over_its_start(run: Run, folder: Path, tmp_path: Path) -> None:
    start = tmp_path / "water.log"  # as programs of quantum chemistry call their output
    ase.io.write(start, ase.io.read(folder / "water.xyz"), format="traj")
    command = ("md", folder / "model.safetensors", start, "--steps", 1, "--overwrite")
    status, _, err = run(*command, "--output", tmp_path / "water.traj")
    assert status == 2
    assert f"{start} is read by this command" in err


def test_a_restart_may_read_the_structure_from_its_own_trajectory(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    model, frames = folder / "model.safetensors", tmp_path / "md.traj"
    options = ("--output", frames, "--interval", 1, "--timestep", 0.05, "--steps")
    assert run("md", model, folder / "water.xyz", *options, 1)[0] == 0
    status, _, err = run("md", model, frames, *options, 2, "--restart")
    assert status == 0, err
    assert len(ase.io.read(frames, index=":")) == 3


@pytest.mark.parametrize("command", ["relax", "scan"])
def test_two_results_of_one_name_are_refused_before_the_work(
    run: Run, folder: Path, tmp_path: Path, command: str
) -> None:
    name = {"relax": "steps.traj", "scan": "scan.csv"}[command]
    options = ("--output", tmp_path / name, "--output", tmp_path / name)
    if command == "relax":
        options = ("--output", tmp_path / name, "--trajectory", tmp_path / name)
    arguments = (command, folder / "model.safetensors", folder / "water.xyz")
    status, _, err = run(*arguments, *options, "--overwrite")
    assert status == 2
    assert f"{tmp_path / name}: is to hold two results" in err
    assert not list(tmp_path.iterdir())


def test_a_report_is_called_html(run: Run, folder: Path, tmp_path: Path) -> None:
    precious = tmp_path / "other.safetensors"
    precious.write_text("a model")
    command = ("evaluate", folder / "model.safetensors", folder / "water.xyz", "--overwrite")
    status, out, err = run(*command, "--report", precious)
    assert status == 2
    assert f"{precious}: a report is written as HTML; the name must end in .html" in err
    assert not out, "nothing was computed"
    assert precious.read_text() == "a model"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("evaluate", "{}/model.safetensors", "{}/water.xyz", "--report"), "a.html"),
        (("evaluate", "{}/model.safetensors", "{}/water.xyz", "--predictions"), "a.xyz"),
        (("scan", "{}/model.safetensors", "{}/water.xyz", "--output"), "a.csv"),
        (("relax", "{}/model.safetensors", "{}/water.xyz", "--output"), "a.xyz"),
        (("md", "{}/model.safetensors", "{}/water.xyz", "--output"), "a.traj"),
        (("convert", "{}/model.safetensors"), "a.safetensors"),
        (("convert", "{}/model.safetensors", "--to", "mace-torch"), "build_model.py"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_a_folder_that_cannot_be_written_is_said_before_the_work(
    run: Run,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    name: str,
) -> None:
    def refuse(*_: object, **__: object) -> None:  # permissions would not stop root
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), "of-a-temporary-name")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    out = tmp_path / ("folder" if name == "build_model.py" else name)
    status, _, err = run(*(part.format(folder) for part in command), out)
    assert status == 2
    assert f"{tmp_path / name}: cannot be written: Operation not permitted" in err
    assert not list(tmp_path.iterdir())


def test_convert_does_not_write_over_the_model_it_reads(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copy(folder / "model.safetensors", tmp_path))
    before = model.read_bytes()
    status, _, err = run("convert", model, model, "--elements", "H,O", "--overwrite")
    assert status == 2
    assert f"{model} is read by this command" in err
    status, _, err = run("convert", model, model, "--to", "mace-torch", "--overwrite")
    assert status == 2
    assert f"there is no folder {model}" in err
    assert model.read_bytes() == before


def test_nothing_to_judge_by_is_a_bad_answer(run: Run, folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.xyz"
    ase.io.write(bare, Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]))
    status, out, _ = run("evaluate", folder / "model.safetensors", bare)
    assert status == 1
    assert "no labels under a usual name. clebsch check tells what the file has" in out
    predictions = tmp_path / "predicted.xyz"
    status, _, _ = run("evaluate", folder / "model.safetensors", bare, "--predictions", predictions)
    assert status == 0
    assert predictions.is_file()


def test_a_folder_in_place_of_a_model_leads_to_the_model(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    status, _, err = run("evaluate", folder, folder / "water.xyz")
    assert status == 2
    assert f"its model is {folder / 'model.safetensors'}" in err
    status, _, err = run("md", folder / "model.safetensors", tmp_path)
    assert f"{tmp_path}: is a folder" in err


def test_evaluate_in_single_precision_and_with_the_other_virial(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    crystal = bulk("Cu", cubic=True)
    crystal.info["energy"], crystal.info["virial"] = 1.0, np.eye(3)
    ase.io.write(tmp_path / "crystal.xyz", crystal)

    def metrics(*options: str) -> dict[str, float]:
        command = ("evaluate", folder / "model.safetensors", tmp_path / "crystal.xyz", "--json")
        status, out, err = run(*command, *options)
        assert status == 0, err
        return json.loads(out)["sets"]["crystal.xyz"]["metrics"]

    double, single = metrics(), metrics("--dtype", "float32")
    assert single["energy_rmse"] != double["energy_rmse"]
    assert single["energy_rmse"] == pytest.approx(double["energy_rmse"], rel=1e-4)
    turned = metrics("--virial-convention", "dE_dstrain")
    assert turned["stress_rmse"] != pytest.approx(double["stress_rmse"], rel=1e-3)


@pytest.mark.parametrize(
    ("command", "options"),
    [("evaluate", ()), ("scan", ()), ("md", ("--steps", 1)), ("relax", ("--steps", 1))],
)
def test_a_model_of_several_heads_is_used_by_one(
    run: Run,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: tuple[object, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    model = clebsch.load(folder / "model.safetensors")
    save_heads({"first": model, "second": model}, tmp_path / "heads.safetensors")
    arguments = (command, "heads.safetensors", folder / "water.xyz", *options)
    status, _, err = run(*arguments)
    assert status == 2
    assert "the heads first, second; choose one: --head=first" in err
    status, _, err = run(*arguments, "--head", "second")
    assert status in ((0, 1) if command == "relax" else (0,)), err


def test_evaluate_reports_on_the_chosen_head(run: Run, folder: Path, tmp_path: Path) -> None:
    first, second = (clebsch.load(folder / "model.safetensors") for _ in range(2))
    second.head.references += 100
    save_heads({"first": first, "second": second}, tmp_path / "heads.safetensors")
    maes = {}
    for head in ("first", "second"):
        options = ("--head", head, "--json", "--report", tmp_path / f"{head}.html")
        status, out, err = run(
            "evaluate", tmp_path / "heads.safetensors", folder / "water.xyz", *options
        )
        assert status == 0, err
        maes[head] = json.loads(out)["sets"]["water.xyz"]["metrics"]["energy_mae"]
    assert abs(maes["second"] - maes["first"]) > 50


def test_training_from_the_command_line(run: Run, folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    config.write_text(
        f"data: {{train: {folder / 'water.xyz'}, valid_count: 3}}\n"
        f"model: {json.dumps(SETTINGS)}\n"
        "training: {max_epochs: 1, batch_size: 4}\n"
    )
    status, out, err = run("train", config, f"run={tmp_path / 'run'}", "training.max_epochs=2")
    assert status == 0, err
    assert (tmp_path / "run" / "report.html").exists()
    assert str(tmp_path / "run" / "report.html") in out
    assert clebsch.load(tmp_path / "run" / "model.safetensors").species == ("H", "O")
    status, out, err = run("resume", tmp_path / "run", "--max-epochs", 3)
    assert status == 0, err
    (tmp_path / "run" / "report.html").unlink()
    status, out, err = run("report", tmp_path / "run", folder / "water.xyz")
    assert status == 0, err
    assert (tmp_path / "run" / "report.html").exists()


def test_presets_are_listed(run: Run) -> None:
    status, out, _ = run("presets")
    assert status == 0
    assert all(name in out for name in clebsch.PRESETS)


def test_ctrl_c_is_answered_where_no_command_says_what_it_saved(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clebsch.cli.load_model", cut_off)
    status, out, err = run("relax", "model.safetensors", "water.xyz")
    assert (status, out, err) == (130, "", "Interrupted.\n")


def test_a_setting_without_its_value_is_no_mystery(run: Run) -> None:
    status, _, err = run("train", "training.lr")
    assert status == 2
    assert "training.lr: no such file" in err
    assert "A setting is written KEY=VALUE" in err


def test_a_report_of_no_run_is_refused_as_resume_refuses_it(run: Run, tmp_path: Path) -> None:
    for command in ("report", "resume"):
        status, _, err = run(command, tmp_path)
        assert status == 2
        assert f"{tmp_path}: is not the folder of a run: it holds no config.yaml" in err
