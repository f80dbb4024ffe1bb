"""Training from a model that exists: its numbers before the first step, its elements, its shape."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

import clebsch
from clebsch.errors import ConfigError, ModelFileError, UnknownElementError
from clebsch.interop.mace_torch import read_mace_torch
from clebsch.modelfile import read_potential
from clebsch.training.config import Config
from clebsch.training.configfile import load_config
from clebsch.training.loop import resume, train
from clebsch.training.prepare import load_start, prepare
from clebsch.training.report import report_run

from .toy import cluster, data_file, history

MODEL = Path(__file__).parents[1] / "data_files" / "mace_torch.model"


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """One head of a model of mace-torch, as a file of ours."""
    path = tmp_path / "start.safetensors"
    read_mace_torch(MODEL, head="first").save(path)
    return path


def frames(symbols: str = "CH3CH2OH", count: int = 8) -> list[Atoms]:
    """Rattled molecules, labelled by a spring on each atom and the model's own references."""
    found = []
    for seed in range(count):
        atoms = molecule(symbols)
        equilibrium = atoms.positions.copy()
        moves = 0.1 * np.random.default_rng(seed).normal(size=equilibrium.shape)
        atoms.positions += moves
        references = {"H": -13.6, "C": -1027.3, "O": -2042.1}
        energy = sum(references[s] for s in atoms.symbols) + 2.0 * (moves**2).sum()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=-4.0 * moves)
        found.append(atoms)
    return found


def settings(data: Path, *overrides: str) -> Config:
    return load_config(
        None,
        [
            f"data.train={data}",
            "data.valid_count=2",
            "dtype=float64",
            "threads=1",
            "training.batch_size=2",
            "training.max_epochs=20",
            "training.checkpoint_minutes=1000",
            *overrides,
        ],
    )


def quiet(text: str) -> None:
    """Where nobody listens."""


def test_before_the_first_step_it_is_the_model_that_it_starts_from(tmp_path: Path, start: Path):
    data = data_file(tmp_path, frames())
    prepared = prepare(settings(data, f"initial={start}"), quiet)
    old, atoms = clebsch.load(start), frames()[0]
    for potential in (old, prepared.potential):
        assert potential.config == old.config
        assert potential.species == ("H", "C", "O")
    answers = [p(p.graph(atoms), ("energy", "forces")) for p in (old, prepared.potential)]
    assert torch.equal(answers[0].energy, answers[1].energy)
    assert torch.equal(answers[0].forces, answers[1].forces)
    assert prepared.origin == "initial"
    assert all(parameter.requires_grad for parameter in prepared.potential.parameters())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
def test_another_precision_than_the_files_is_said(
    tmp_path: Path, start: Path, stored: torch.dtype, dtype: str
):
    old = read_potential(start)[0]
    old.model.to(stored)
    old.save(start)
    said: list[str] = []
    load_start(settings(start, f"initial={start}", f"dtype={dtype}"), ["H"], said.append)
    kind = str(stored).removeprefix("torch.")
    expected = (
        f"The initial model is of {kind}, and training goes on in {dtype}; dtype={kind} keeps"
    )
    assert [text.startswith(expected) for text in said] == ([] if kind == dtype else [True])


def test_a_training_that_makes_it_worse_keeps_what_it_started_from(tmp_path: Path, start: Path):
    """It knows its data perfectly, so that every step leads away."""
    old, labelled = clebsch.load(start), frames()
    for atoms in labelled:
        atoms.calc = clebsch.calculator(old)
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **results)
    config = settings(data_file(tmp_path, labelled), f"initial={start}", "training.max_epochs=2")
    result = train(config, tmp_path / "run")
    assert result.best is not None
    assert (result.best["epoch"], result.best["frames"]) == (0, 0)
    assert result.model is not None
    kept = clebsch.load(result.model)
    assert kept.shortest_distances is None  # the old model does not tell how close it saw atoms
    answers = [p(p.graph(labelled[0]), "forces").forces for p in (old, kept)]
    assert torch.equal(*answers)
    assert [record["epoch"] for record in history(result.run)] == [0, 1, 2]


def test_a_start_that_is_killed_before_its_first_state_can_be_repeated(
    tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its history tells of the model that it starts from already."""

    def killed(*_: object) -> None:
        raise SystemExit

    config = settings(data_file(tmp_path, frames()), f"initial={start}", "training.max_epochs=1")
    for function in ("clebsch.training.loop.write_config", "clebsch.training.trainer.write_state"):
        with monkeypatch.context() as patch:
            patch.setattr(function, killed)
            with pytest.raises(SystemExit):
                train(config, tmp_path / "run")
        assert (tmp_path / "run" / "metrics.jsonl").exists()
    train(config, tmp_path / "run")
    assert [record["epoch"] for record in history(tmp_path / "run")] == [0, 1]


def test_a_finished_run_is_reported_without_what_it_started_from(tmp_path: Path, start: Path):
    gone = Path(shutil.copy(start, tmp_path / "gone.safetensors"))
    config = settings(data_file(tmp_path, frames()), f"initial={gone}", "training.max_epochs=1")
    train(config, tmp_path / "run")
    gone.unlink()
    assert "Validation" in report_run(tmp_path / "run").read_text()


def test_training_goes_on_from_there_and_resumes(tmp_path: Path, start: Path):
    data = data_file(tmp_path, frames())
    config = settings(data, f"initial={start}", "training.max_epochs=40", "training.lr=0.1")
    result = train(config, tmp_path / "run")
    assert result.model is not None
    trained, old = clebsch.load(result.model), clebsch.load(start)
    atoms = frames(count=9)[8]

    def error(potential: clebsch.Potential) -> float:
        forces = potential(potential.graph(atoms), "forces").forces.numpy()
        return float(np.sqrt(np.square(forces - atoms.get_forces()).mean()))

    assert error(trained) < error(old)
    assert torch.equal(trained.references, old.references)
    assert resume(tmp_path / "run", max_epochs=41).epoch == 41


def test_references_can_be_those_of_the_data(tmp_path: Path, start: Path):
    data = data_file(tmp_path, frames())
    given = "data.references={H: -10.0, C: -1000.0, O: -2000.0}"
    prepared = prepare(settings(data, f"initial={start}", given), quiet)
    assert prepared.potential.references.tolist() == [-10.0, -1000.0, -2000.0]
    assert prepared.origin == "given"


def test_fitted_references_leave_to_the_model_what_binds_its_atoms(tmp_path: Path, start: Path):
    """Its own answers, with other energies of lone atoms: only those are to be found."""
    old, shifts = clebsch.load(start), {"H": 0.5, "C": -3.0, "O": 20.0}
    labelled = [*frames(), *frames("CH3OH"), *frames("CH4")]
    for atoms in labelled:
        atoms.calc = clebsch.calculator(old)
        energy = atoms.get_potential_energy() + sum(shifts[s] for s in atoms.symbols)
        results = {"energy": energy, "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **results)
    config = settings(data_file(tmp_path, labelled), f"initial={start}", "data.references=fit")
    said: list[str] = []
    prepared = prepare(config, said.append)
    expected = {s: e + shifts[s] for s, e in zip(old.species, old.references.tolist(), strict=True)}
    assert prepared.references == pytest.approx(expected, abs=1e-6)
    assert prepared.potential.references.tolist() == list(prepared.references.values())
    assert (prepared.origin, prepared.fitted) == ("fit", frozenset("HCO"))
    assert any("what the initial model leaves of the energies" in text for text in said)


def test_a_run_does_not_go_on_from_another_initial_model(tmp_path: Path, start: Path):
    data = data_file(tmp_path, frames())
    config = settings(data, f"initial={start}", "training.max_epochs=1")
    train(config, tmp_path / "run")
    other = clebsch.load(start)
    other.references[0] += 1.0
    other.save(start)
    with pytest.raises(ModelFileError, match="initial model are not those"):
        resume(tmp_path / "run", max_epochs=2)


def test_isolated_atoms_of_another_level_of_theory_are_noticed(tmp_path: Path, start: Path):
    lone = Atoms("O", calculator=None)
    lone.calc = SinglePointCalculator(lone, energy=-2040.0, forces=np.zeros((1, 3)))
    data = data_file(tmp_path, [*frames(), lone])
    said: list[str] = []
    prepared = prepare(settings(data, f"initial={start}"), said.append)
    assert any("O by +2.100 eV" in text for text in said)
    assert prepared.references["O"] == -2042.1


@pytest.mark.parametrize("scale", [0.9, 1.1])
def test_what_was_close_in_either_training_is_known(tmp_path: Path, scale: float):
    """In that of the model that training starts from, and in the new one."""
    first = train(settings(data_file(tmp_path, frames()), "training.max_epochs=1"), tmp_path / "a")
    assert first.model is not None
    old = clebsch.load(first.model)
    before = old.shortest_distances
    assert before is not None
    scaled = frames()
    for atoms in scaled:
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.positions *= scale
        atoms.calc = SinglePointCalculator(atoms, **labels)
    data = data_file(tmp_path, scaled)
    more = train(settings(data, f"initial={first.model}", "training.max_epochs=1"), tmp_path / "b")
    assert more.model is not None
    after = clebsch.load(more.model)
    expected = {pair: min(1.0, scale) * distance for pair, distance in before.items()}
    assert after.shortest_distances == pytest.approx(expected)
    assert bool((after.floor.depths >= old.floor.depths).all())
    c_h = after.contact.distances[after.species.index("C"), after.species.index("H")]
    assert float(c_h) == pytest.approx(min(expected["C-H"], 0.76 + 0.31))


def test_references_are_fitted_to_what_the_network_says(tmp_path: Path):
    """Not to what contact repulsion and floor of the model before make of new structures."""
    config = {"channels": 2, "l_max": 1, "cutoff": 4.0}
    potential = clebsch.build(config, ["H", "C", "O"], dtype=torch.float64, seed=1)
    potential.provenance = {"data": {"shortest_distances": {}}}
    labelled = frames()
    for atoms in labelled:
        atoms.calc = clebsch.calculator(potential)
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **results)
    potential.contact.distances.fill_(1.4)
    potential.floor.depths.fill_(0.0)
    start = tmp_path / "start.safetensors"
    potential.save(start)
    chosen = [f"initial={start}", "data.references=fit"]
    prepared = prepare(settings(data_file(tmp_path, labelled), *chosen), quiet)
    assert max(map(abs, prepared.references.values())) < 1e-6


@pytest.mark.parametrize("shift", [0.0, 0.05, 30.0])
def test_energies_of_another_level_of_theory_are_noticed(tmp_path: Path, start: Path, shift: float):
    """Without isolated atoms too: each oxygen has another zero, or none of all."""
    old, labelled = clebsch.load(start), [*frames(), *frames("CH4")]
    for atoms in labelled:
        atoms.calc = clebsch.calculator(old)
        energy = atoms.get_potential_energy() + shift * atoms.symbols.count("O")
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=atoms.get_forces())
    said: list[str] = []
    data = data_file(tmp_path, labelled)
    prepared = prepare(settings(data, f"initial={start}"), said.append)
    assert any("data.references=fit" in text for text in said) == (shift == 30.0)
    assert prepared.references["O"] == -2042.1
    said.clear()
    prepare(settings(data, f"initial={start}", "data.references=fit"), said.append)
    assert not any("another level of theory" in text for text in said)


def test_errors_that_no_references_mend_are_no_other_level_of_theory(tmp_path: Path, start: Path):
    old, labelled = clebsch.load(start), frames()
    for index, atoms in enumerate(labelled):
        atoms.calc = clebsch.calculator(old)
        energy = atoms.get_potential_energy() + 3.0 * (-1) ** index
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=atoms.get_forces())
    said: list[str] = []
    prepare(settings(data_file(tmp_path, labelled), f"initial={start}"), said.append)
    assert not any("another level of theory" in text for text in said)


def test_elements_that_the_model_does_not_know_are_named(tmp_path: Path, start: Path):
    data = data_file(tmp_path, [cluster(seed) for seed in range(6)])
    with pytest.raises(
        UnknownElementError, match=r"element Cu \(in .*start.safetensors, which knows H, C, O"
    ):
        prepare(settings(data, f"initial={start}"), quiet)


def test_the_architecture_is_that_of_the_file(tmp_path: Path, start: Path):
    data = data_file(tmp_path, frames())
    config = settings(data, f"initial={start}")
    assert config.model == clebsch.load(start).config
    with pytest.raises(ConfigError, match=r"model: it is that of .*leave it out"):
        settings(data, f"initial={start}", "model.channels=64")
    with pytest.raises(ConfigError, match=r"initial: .*no such file"):
        settings(data, f"initial={tmp_path / 'none.model'}")
    with pytest.raises(ConfigError, match=r"initial: .*heads first, second"):
        settings(data, f"initial={MODEL}")


def test_a_configuration_without_a_start_has_none(tmp_path: Path):
    config = settings(data_file(tmp_path), "model=mace_tiny")
    assert config.initial is None
