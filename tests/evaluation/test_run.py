"""From files to verdicts: ``run_evaluate`` and ``report_run`` on real models and real files."""

from __future__ import annotations

import hashlib
import io
import json

import ase.io
import numpy as np
import pytest
import torch
from ase.units import Hartree
from rich.console import Console

import clebsch
from clebsch.data.labels import LabelKeys
from clebsch.errors import ClebschError, DataError, UnknownElementError
from clebsch.evaluation.evaluate import evaluate
from clebsch.evaluation.run import run_evaluate
from clebsch.training.configfile import load_config, write_config
from clebsch.training.report import MAX_TRAINING_FRAMES, read_history, report_run, run_sets

from .toy import crystal, labelled, molecule

TINY = {
    "name": "message_passing",
    "cutoff": 3.0,
    "layers": 1,
    "channels": 4,
    "l_max": 1,
    "message_l": 0,
    "product": {"correlation": 2},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    clebsch.build(TINY, ["H", "C", "O"]).save(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "frames.xyz"
    frames = [labelled(molecule(i, "HCO"), seed=i) for i in range(10)]
    ase.io.write(path, [frame.to_atoms() for frame in frames])
    return path


def printed(**arguments):
    text = io.StringIO()
    sets = run_evaluate(console=Console(file=text, width=160), **arguments)
    return sets, text.getvalue()


def test_evaluate_prints_tables_and_writes_predictions(model, data, tmp_path):
    out = tmp_path / "out.xyz"
    sets, text = printed(model=model, data=[data], out=out)
    assert "frames.xyz: 10 structures, 30 atoms" in text
    assert f"Predictions: {out}" in text
    read = ase.io.read(out, index=":")
    frames, evaluation = sets["frames.xyz"]
    assert len(read) == len(frames) == 10
    errors = [a.get_potential_energy() - a.info["reference_energy"] for a in read]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(
        evaluation.metrics["energy_rmse"], abs=1e-6
    )


def test_evaluate_prints_nothing_but_json_when_asked(model, data, tmp_path):
    out = tmp_path / "out.xyz"
    sets, text = printed(model=model, data=[data], as_json=True, out=out)
    summary = json.loads(text)
    assert summary["sets"]["frames.xyz"]["metrics"] == sets["frames.xyz"][1].metrics
    assert summary["predictions"] == str(out)


def test_labels_are_read_as_in_training(model, data, tmp_path):
    """Keys, units, signs and boxes of the training, which need not be said again."""
    potential = clebsch.load(model)
    keys = LabelKeys(
        energy="E0",
        forces="F0",
        stress="none",
        stress_convention="negative",
        energy_unit="Hartree",
        forces_unit="eV/A",
    )
    told = {"keys": keys.model_dump(mode="json"), "pbc": "none"}
    trained = tmp_path / "trained.safetensors"
    potential.save(trained, provenance={"config": {"data": told}})
    frames = [labelled(molecule(i, "HCO"), seed=i).to_atoms() for i in range(3)]
    for atoms in frames:
        atoms.info["E0"] = atoms.get_potential_energy() + 1.0
        atoms.arrays["F0"] = atoms.get_forces()
        atoms.set_cell([9, 9, 9])
        atoms.pbc = True
    both = tmp_path / "both.xyz"
    ase.io.write(both, frames)

    sets, text = printed(model=trained, data=[both, data])
    assert "Labels as in training: energy E0, forces F0" in text
    judged = sets["both.xyz"][0]
    energies = [atoms.info["E0"] * Hartree for atoms in frames]
    assert [frame.energy for frame in judged] == pytest.approx(energies, rel=1e-12)
    assert not judged[0].pbc.any()
    assert sets["frames.xyz"][0][0].energy is not None  # under its usual name, in the other file

    written = tmp_path / "written.xyz"  # in eV, as it says, whatever the training read
    printed(model=trained, data=[both], out=written)
    again = printed(model=trained, data=[written])[0]["written.xyz"]
    assert again[1].metrics["energy_mae"] < 1e-6
    assert again[1].metrics["forces_mae"] < 1e-6

    asked, text = printed(model=trained, data=[both], keys=LabelKeys(), pbc="file")
    assert "as in training" not in text
    assert asked["both.xyz"][0][0].energy == pytest.approx(frames[0].info["E0"] - 1.0)
    assert asked["both.xyz"][0][0].pbc.all()


def test_files_of_the_same_name_are_told_apart(model, data, tmp_path):
    copy = tmp_path / data.name
    copy.write_bytes(data.read_bytes())
    sets, _ = printed(model=model, data=[data, copy])
    assert list(sets) == [str(data), str(copy)]


def test_a_file_given_twice_is_refused(model, data, run):
    for attempt in (
        lambda: printed(model=model, data=[data, data]),
        lambda: report_run(run, [data, data]),
    ):
        with pytest.raises(DataError, match=r"frames\.xyz: given twice"):
            attempt()
    assert not (run / "report.html").exists()


def test_a_useless_output_name_is_refused_before_the_work(data, tmp_path):
    with pytest.raises(ClebschError, match="must end in"):
        printed(model=tmp_path / "absent", data=[data], out=tmp_path / "out.csv")


def test_an_unknown_element_is_named_with_its_frame(model, tmp_path):
    path = tmp_path / "odd.xyz"
    atoms = molecule(1, ["H", "Cu"]).to_atoms()
    atoms.info["energy"] = 1.0
    ase.io.write(path, atoms)
    with pytest.raises(UnknownElementError, match=r"odd\.xyz.*Cu"):
        printed(model=model, data=[path])


def test_stress_of_a_crystal_is_judged():
    frames = [labelled(crystal(i), seed=i) for i in range(3)] + [labelled(molecule(1))]
    potential = clebsch.build(TINY, ["H", "C", "O", "Cu"], dtype=torch.float64)
    result = evaluate(potential, frames)
    predicted = [potential(potential.graph(f), ("stress",)).stress[0] for f in frames[:3]]
    errors = [p.numpy() - f.stress for p, f in zip(predicted, frames, strict=False)]
    voigt = np.array(errors)[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    assert result.metrics["stress_rmse"] == pytest.approx(np.sqrt(np.mean(voigt**2)))


@pytest.fixture
def run(model, data, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    settings = [f"data.train={data}", "data.valid_count=3", f"model={json.dumps(TINY)}"]
    settings.append(f"run={folder}")
    write_config(load_config(None, settings), folder / "config.yaml")
    (folder / "model.safetensors").write_bytes(model.read_bytes())
    record = {
        "epoch": 1,
        "step": 2,
        "seconds": 75.0,
        "lr": 0.01,
        "train": {"loss": 1.0},
        "valid": {"forces_rmse": 0.1},
        "best": True,
    }
    lines = json.dumps(record) + "\n" + '{"epoch": 2, "st'
    (folder / "metrics.jsonl").write_text(lines)
    return folder


def test_a_run_is_reported_with_its_own_sets_and_test_files(run, data):
    path = report_run(run, [data])
    assert path == run / "report.html"
    text = path.read_text()
    for words in (
        "Validation",
        "Training",
        "frames.xyz",
        "0:01:15",
        "Learning curves",
        "products of order 2",
    ):
        assert words in text, words


def test_a_run_whose_data_are_gone_is_reported_without_them(run):
    config = load_config(run / "config.yaml", ["data.train=/nowhere/frames.xyz"])
    write_config(config, run / "config.yaml")
    text = report_run(run).read_text()
    assert "not where, or not what, they were" in text
    assert "Learning curves" in text


def test_a_run_whose_data_have_changed_is_reported_without_them(run, model, data):
    """The model file knows the checksums; moved files are the same files."""
    files = {"/where/it/was.xyz": hashlib.sha256(data.read_bytes()).hexdigest()}
    for checksums, judged in ((files, True), ({"/x.xyz": "another"}, False)):
        told = {"data": {"train": {"files": checksums}, "valid": {"files": checksums}}}
        clebsch.load(model).save(run / "model.safetensors", provenance=told)
        text = report_run(run).read_text()
        assert ("or not what, they were" in text) is not judged
        assert ("Worst structures" in text) is judged


def test_sets_of_a_run_are_split_as_in_training(run):
    sets = run_sets(load_config(run / "config.yaml"))
    assert {name: len(frames) for name, frames in sets.items()} == {"Validation": 3, "Training": 7}
    assert not {f.source for f in sets["Validation"]} & {f.source for f in sets["Training"]}


def test_a_large_training_set_is_thinned_out_and_says_so(run, monkeypatch):
    assert MAX_TRAINING_FRAMES >= 100
    monkeypatch.setattr("clebsch.training.report.MAX_TRAINING_FRAMES", 3)
    sets = run_sets(load_config(run / "config.yaml"))
    assert len(sets["Training (3 of 7)"]) == 3


def test_history_forgives_a_cut_last_line_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_history(path) == []
    path.write_text('{"epoch": 1}\n{"epoch"')
    assert read_history(path) == [{"epoch": 1}]
    path.write_text('{"epoch": 1}\nnonsense\n{"epoch": 3}\n')
    with pytest.raises(DataError, match="line 2"):
        read_history(path)
