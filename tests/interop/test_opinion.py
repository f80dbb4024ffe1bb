"""``clebsch doctor`` and mace-torch: asked only if the user says so, and then listened to.

mace-torch is played by a script that says what each test wants; ``test_peers`` has the real one.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clebsch
from builders import potential
from clebsch import cli_doctor, doctor
from clebsch.benchmarks import opponents
from clebsch.interop import opinion
from clebsch.interop.mace_torch import read_mace_torch

from .archives import MODEL, archive, call, program, text

ASK = "--unpickle-with-mace-torch"

Run = Callable[..., tuple[int, str, str]]
Report = dict[str, Any]


@pytest.fixture(scope="module")
def ours() -> clebsch.Potential:
    return read_mace_torch(MODEL, head="second")


@pytest.fixture
def report(ours: clebsch.Potential) -> Report:
    """What mace-torch would print if it agreed."""
    places = {}
    for place, atoms in opinion.opinion_structures(ours).items():
        asked = ["energy", "forces", "site_energies", *(["stress"] if atoms.pbc.all() else [])]
        found = ours(ours.graph(atoms), asked)
        answers = {key: getattr(found, key).squeeze(0).tolist() for key in asked}
        offs = {"forces": 1e-9, "site_energies": 1e-12}
        places[place] = {"answers": answers, "contradictions": offs}
    return {"version": "0.3.x", "rounded": False, "places": places}


@pytest.fixture
def python(tmp_path: Path) -> Callable[[Report | str], Path]:
    """A program in mace-torch's place that prints a report, or fails with a text."""

    def write(said: Report | str) -> Path:
        (tmp_path / "said.json").write_text(json.dumps(said))
        path = tmp_path / "python"
        path.write_text(
            f"#!{sys.executable}\n"
            "import json, os, sys\n"
            "from pathlib import Path\n"
            "here = Path(__file__).parent\n"
            "asked = {'script': sys.argv[1], 'job': json.load(sys.stdin), 'env': {**os.environ}}\n"
            "(here / 'asked.json').write_text(json.dumps(asked))\n"
            "said = json.loads((here / 'said.json').read_text())\n"
            "if isinstance(said, str):\n"
            "    sys.exit('a long story\\n' + said)\n"
            "print('a word of its own')\n"
            "print(json.dumps(said))\n"
        )
        path.chmod(0o755)
        return path

    return write


def test_structures_are_a_molecule_and_a_skewed_cell_of_all_elements(ours: clebsch.Potential):
    found = opinion.opinion_structures(ours)
    assert set(found) == {"molecule", "skewed cell"}
    for atoms in found.values():
        assert set(atoms.symbols) == set(ours.species)
        assert ours.graph(atoms).n_edges > 2 * len(atoms)
    assert not found["molecule"].pbc.any()
    assert found["molecule"].cell.rank == 0
    cell = found["skewed cell"].cell.array
    assert found["skewed cell"].pbc.all()
    assert np.abs((cell @ cell.T)[np.triu_indices(3, 1)]).min() > 0.05  # no right angle


def test_numbers_that_agree_pass(run_doctor: Run, report: Report, python: Any, tmp_path: Path):
    status, out, _ = run_doctor(MODEL, "--head", "second", ASK, "--peer-python", python(report))
    assert status == 0, out
    for name in ("energy", "forces", "site energies", "stress"):
        assert f"{name}: mace-torch 0.3.x" in out
    assert "note:" not in out
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert Path(asked["script"]) == opinion.SCRIPT
    assert asked["env"]["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    job = asked["job"]
    assert (job["model"], job["head"], job["properties"]) == (str(MODEL), "second", {})
    assert job["structures"]["molecule"]["pbc"] == [False] * 3


def heard(report: Report, ours: clebsch.Potential, python: Any) -> opinion.Opinion:
    structures = opinion.opinion_structures(ours)
    return opinion.ask_mace_torch(
        MODEL, str(python(report)), structures, head="second", properties={}
    )


def failures(ours: clebsch.Potential, said: opinion.Opinion) -> set[tuple[str, str]]:
    """Names and structures of what the doctor finds wrong, in float64."""
    found = doctor.examine(ours, opinion=said, dtypes=[torch.float64], seconds=0)
    return {(check.name, check.structure) for check in found.failures}


@pytest.mark.parametrize("key", ["energy", "forces", "site_energies", "stress"])
def test_a_number_that_differs_is_named(
    key: str, ours: clebsch.Potential, report: Report, python: Any
):
    answers = report["places"]["skewed cell"]["answers"]
    answers[key] = (np.array(answers[key]) + 1e-6).tolist()
    wrong = {(f"{key.replace('_', ' ')}: mace-torch 0.3.x", "skewed cell")}
    assert failures(ours, heard(report, ours, python)) == wrong
    # tables in float32 bring so much themselves
    assert not failures(ours, heard({**report, "rounded": True}, ours, python))


def test_energies_are_held_to_what_the_network_says(
    ours: clebsch.Potential, report: Report, python: Any
):
    """Not to the size of references, which are thousands of eV: 0.01 eV of an atom is much."""
    answers = report["places"]["molecule"]["answers"]
    answers["energy"] += 0.01 * len(answers["forces"])
    answers["site_energies"][0] += 0.01
    wrong = failures(ours, heard({**report, "rounded": True}, ours, python))
    assert wrong == {
        (f"{name}: mace-torch 0.3.x", "molecule") for name in ("energy", "site energies")
    }


def test_a_difference_is_a_bad_answer(run_doctor: Run, report: Report, python: Any):
    report["places"]["molecule"]["answers"]["forces"][0][1] += 0.01
    arguments = (MODEL, "--head", "second", ASK, "--peer-python", python(report))
    status, out, _ = run_doctor(*arguments, "--dtype", "float32")
    assert status == 1
    assert "reference, float32, molecule: forces: mace-torch 0.3.x: off by" in out


def test_what_contradicts_itself_is_said_and_not_compared(
    ours: clebsch.Potential, report: Report, python: Any
):
    for place in report["places"].values():
        place["answers"]["forces"][0][0] += 1
        place["answers"]["site_energies"][0] += 1
    report["places"]["molecule"]["contradictions"] = {"forces": 0.3, "site_energies": float("nan")}
    said = heard(report, ours, python)
    assert [note.split(" (")[0] for note in said.notes] == [
        "mace-torch's forces are not the derivative of its energy",
        "mace-torch's energies of atoms do not add up to its energy",
    ]
    assert all(set(answers) == {"energy"} for answers in said.answers.values())
    found = doctor.examine(ours, opinion=said, dtypes=[torch.float64], seconds=0)
    assert not found.failures
    assert found.to_json()["notes"] == list(said.notes)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("No module named 'mace'", "gave no numbers for it: No module named 'mace'"),
        ({"version": "0.3.x"}, "gave no numbers"),
        ([], "gave no numbers"),
    ],
)
def test_a_mace_torch_that_fails_is_an_error(run_doctor: Run, python: Any, said: Any, message: str):
    arguments = (MODEL, "--head", "first", ASK, "--peer-python", python(said))
    status, _, error = run_doctor(*arguments)
    assert status == 2
    assert message in error


def test_without_the_option_nothing_runs_and_it_is_said(
    run_doctor: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(opinion.subprocess, "run", lambda *_, **__: pytest.fail("started"))
    monkeypatch.setattr(cli_doctor, "version", lambda name: "0.3.16")
    status, out, _ = run_doctor(MODEL, "--head", "first", "--dtype", "float64")
    assert status == 0
    assert f"note: not compared with mace-torch's own numbers: {ASK} does that" in out
    assert sys.executable in out
    assert "only for files that you trust" in out


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No mace-torch on this machine."""

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(cli_doctor, "version", absent)
    monkeypatch.setattr(opponents, "PEERS_FOLDER", tmp_path)


@pytest.mark.usefixtures("nowhere")
def test_where_there_is_no_mace_torch_it_is_said_how_to_get_one(run_doctor: Run):
    status, out, _ = run_doctor(MODEL, "--head", "first", "--dtype", "float64", "--json")
    assert status == 0
    (note,) = json.loads(out)["notes"]
    status, _, error = run_doctor(MODEL, "--head", "first", ASK)
    assert status == 2
    for text_ in (note, error):
        assert "run make peers" in text_
        assert "--peer-python" in text_


def test_the_environment_of_make_peers_is_found(monkeypatch: pytest.MonkeyPatch, nowhere: None):
    there = opponents.PEERS_FOLDER / "mace-torch"
    there.mkdir()
    (there / ".installed").touch()
    assert cli_doctor._find_mace_torch(None) == str(there / "bin" / "python")


def test_mistakes_get_one_clear_line(run_doctor: Run, tmp_path: Path):
    potential().save(tmp_path / "own.safetensors")
    for arguments, message in (
        ((tmp_path / "own.safetensors", ASK), "mace-torch cannot read it"),
        ((MODEL, "--head", "first", ASK, "--peer-python", tmp_path / "no"), "no such program"),
        ((MODEL, "--head", "first", "--peer-python", sys.executable), f"is for {ASK}"),
        ((MODEL,), "choose one"),
    ):
        status, _, error = run_doctor(*arguments)
        assert status == 2
        assert message in error


def test_a_hostile_file_is_refused_before_anything_unpickles_it(
    run_doctor: Run, python: Any, tmp_path: Path
):
    path = archive(tmp_path / "hostile.model", program(call("os", "system", text("true"))))
    status, _, error = run_doctor(path, ASK, "--peer-python", python("was run"))
    assert status == 2
    assert "os.system" in error
    assert not (tmp_path / "asked.json").exists()
