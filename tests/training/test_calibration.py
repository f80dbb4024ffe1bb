"""Fitted references are fitted once more when training is over, where that is no chance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT

import clebsch
from clebsch.data.loader import LabelledGraphs
from clebsch.training.calibration import energy_residuals, reference_shift
from clebsch.training.configfile import load_config
from clebsch.training.loop import resume, train
from clebsch.training.report import run_sets
from training.toy import MODEL, cluster, data_file, labelled

COUNTS = np.array([[2.0, 1.0], [1.0, 3.0], [4.0, 0.0], [2.0, 2.0]] * 5)
BOTH = (True, True)


def shift_of(
    counts: np.ndarray, residuals: np.ndarray, fitted: Sequence[bool]
) -> np.ndarray | None:
    return reference_shift(counts, residuals, np.ones(len(residuals)), fitted)


def noise(size: float) -> np.ndarray:
    return size * np.random.default_rng(0).normal(size=len(COUNTS))


def test_a_shift_of_elements_is_found() -> None:
    found = shift_of(COUNTS, COUNTS @ [0.3, -0.2] + noise(0.01), BOTH)
    assert np.allclose(found, [0.3, -0.2], atol=0.01)


def test_elements_that_are_not_fitted_stay() -> None:
    found = shift_of(COUNTS, COUNTS @ [0.3, 0.0], (True, False))
    assert np.allclose(found, [0.3, 0.0])
    assert shift_of(COUNTS, COUNTS @ [0.0, 0.0] + noise(0.01), (False, False)) is None


def test_of_one_composition_the_shortest_shift_is_taken() -> None:
    counts = np.tile([3.0, 4.0], (10, 1))
    assert np.allclose(shift_of(counts, np.full(10, 5.0), BOTH), [0.6, 0.8])


def test_structures_count_by_their_size() -> None:
    """Large ones are off by more: squared residuals count 1/N."""
    counts, residuals = np.array([[1.0], [1.0], [1.0], [100.0]]), np.array([1.0, 1.0, 1.0, 50.0])
    found = shift_of(counts, residuals, (True,))
    assert np.allclose(found, (3 * 1.0 + 50.0) / (3 + 100))


def test_structures_count_by_their_weight() -> None:
    wrong = np.arange(len(COUNTS)) % 3 == 0
    residuals = COUNTS @ [0.3, -0.2] + noise(0.01) + 50.0 * wrong
    found = reference_shift(COUNTS, residuals, np.where(wrong, 1e-9, 2.0), BOTH)
    assert np.allclose(found, [0.3, -0.2], atol=0.01)


def test_of_four_structures_chance_is_told_from_a_shift() -> None:
    """With the variance counted among what was fitted, as Hurvich and Tsai do."""
    rng = np.random.default_rng(2)
    counts = np.ones((4, 1))
    shifted = [shift_of(counts, rng.normal(size=4), (True,)) is not None for _ in range(400)]
    assert np.mean(shifted) < 0.03
    assert shift_of(counts, 1 + 0.001 * rng.normal(size=4), (True,)) is not None


def test_what_may_be_chance_changes_nothing() -> None:
    """Of pure noise Akaike's criterion lets a few parts in a hundred through, least squares all."""
    rng = np.random.default_rng(1)
    counts = np.tile([3.0, 4.0], (50, 1))
    shifted = [shift_of(counts, rng.normal(size=50), BOTH) is not None for _ in range(400)]
    assert 0.05 < np.mean(shifted) < 0.25
    assert shift_of(counts[:2], np.array([5.0, 5.1]), BOTH) is None
    assert shift_of(np.zeros((0, 2)), np.zeros(0), BOTH) is None


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """A training whose validation structures have energies that are 1 eV per atom higher."""
    data = data_file(tmp_path, [cluster(seed) for seed in range(16)])
    higher = []
    for atoms in (cluster(seed) for seed in range(20, 28)):
        atoms.calc.results["energy"] += len(atoms)
        higher.append(atoms)
    valid = data_file(tmp_path, higher, "valid.xyz")
    return [
        *(MODEL, f"data.train={data}", f"data.valid={valid}", "processes=1", "threads=1"),
        *("training.max_epochs=2", f"run={tmp_path / 'run'}"),
    ]


def mean_residual(run: Path) -> float:
    sets = run_sets(load_config(run / "config.yaml"))
    potential = clebsch.load(run / "model.safetensors")
    valid = LabelledGraphs(potential, sets["Validation"])
    counts, residuals, _ = energy_residuals(potential, valid, [range(5), range(5, len(valid))])
    assert counts.sum(axis=1).tolist() == [len(frame) for frame in valid.frames]
    return float(np.mean(residuals))


def test_a_trained_model_is_right_on_average(tmp_path: Path, settings: list[str]) -> None:
    result = train(load_config(None, settings))
    run = tmp_path / "run"
    assert result.best is not None
    before, after = result.best["valid"], result.best["calibrated"]
    assert before["energy_rmse"] > 3
    assert after["energy_rmse"] < 0.3 * before["energy_rmse"]
    assert after["forces_rmse"] == before["forces_rmse"]
    assert abs(mean_residual(run)) < 0.2 * after["energy_rmse"]
    assert "References fitted once more" in (run / "log.txt").read_text(encoding="utf-8")
    stored = clebsch.load(run / "model.safetensors")
    assert stored.provenance["metrics"] == after
    references = dict(zip(stored.species, stored.references.tolist(), strict=True))
    assert stored.provenance["data"]["references"] == references


def test_a_training_that_goes_on_is_calibrated_at_its_new_end(
    tmp_path: Path, settings: list[str]
) -> None:
    train(load_config(None, settings))
    result = resume(tmp_path / "run", max_epochs=4)
    assert result.best is not None
    assert result.best["valid"]["energy_rmse"] > 3, "training goes on with its own references"
    assert abs(mean_residual(tmp_path / "run")) < 0.5


@pytest.mark.parametrize("form", ["density", "constant", "none"])
def test_energies_of_lone_atoms_stay_and_the_mean_energy_may_not(
    tmp_path: Path, settings: list[str], form: str
) -> None:
    """Where it belongs to every atom, alone or not: forces do not depend on it."""
    lone = data_file(tmp_path, [labelled(Atoms(symbol)) for symbol in ("Cu", "Au")], "lone.xyz")
    first_layer = "residual" if form == "constant" else "species_linear"
    result = train(
        load_config(
            None,
            [
                *(*settings, f"data.isolated_atoms={lone}", f"model.mean_energy={form}"),
                f"model.update.first_layer={first_layer}",
            ],
        )
    )
    potential = clebsch.load(tmp_path / "run" / "model.safetensors")
    for symbol, reference in zip(potential.species, potential.references, strict=True):
        alone = Atoms(symbol)
        alone.calc = EMT()
        assert float(reference) == pytest.approx(alone.get_potential_energy(), abs=1e-9)
        energy = potential(potential.graph(Atoms(symbol)), "energy").energy
        assert energy is not None
        assert (abs(float(energy) - float(reference)) < 1e-9) == (form != "constant")
    assert result.best is not None
    assert ("calibrated" in result.best) == (form == "constant")
    if form == "constant":
        before, after = result.best["valid"], result.best["calibrated"]
        assert before["energy_rmse"] > 3
        assert after["energy_rmse"] < 0.3 * before["energy_rmse"]
        assert after["forces_rmse"] == before["forces_rmse"]
        assert abs(mean_residual(tmp_path / "run")) < 0.2 * after["energy_rmse"]
        assert "Mean energy fitted once more" in (tmp_path / "run" / "log.txt").read_text("utf-8")
