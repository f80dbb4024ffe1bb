"""Judging a potential: labels as they are, batches that shrink, predictions that can be read."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from rich.console import Console

from clebsch.errors import ClebschError, UnknownElementError
from clebsch.evaluation.evaluate import N_WORST, evaluate
from clebsch.evaluation.predictions import write_predictions
from clebsch.evaluation.tables import milli, print_table

from .toy import ToyPotential, crystal, labelled, molecule


@pytest.fixture
def frames():
    """Molecules of several sizes, labelled with noise."""
    return [labelled(molecule(i, "HCOH"[: 2 + i % 3]), seed=i) for i in range(9)]


def test_errors_are_those_of_the_labels(frames):
    result = evaluate(ToyPotential(), frames)
    predictions = [ToyPotential()(ToyPotential().graph(f)) for f in frames]
    energy = np.array(
        [float(p.energy) - f.energy for p, f in zip(predictions, frames, strict=True)]
    )
    assert result.metrics["energy_rmse"] == pytest.approx(np.sqrt(np.mean(energy**2)))
    forces = np.concatenate(
        [p.forces.numpy() - f.forces for p, f in zip(predictions, frames, strict=True)]
    )
    assert result.metrics["forces_mae"] == pytest.approx(np.abs(forces).mean())
    assert "stress_mae" not in result.metrics
    assert result.n_frames == 9
    assert result.n_atoms == sum(len(f) for f in frames)


def test_compositions_that_fitted_references_leave_open_are_noted(frames):
    potential = ToyPotential()
    assert evaluate(potential, frames).notes == ()
    potential.provenance = {"data": {"formulas": ["CH"]}}
    (note,) = evaluate(potential, frames).notes
    assert "6 of 9 structures have compositions (CHO, CH2O)" in note
    assert "fitted to CH do not determine" in note
    potential.provenance = {"data": {"formulas": ["CH", "H", "CO2"]}}
    assert evaluate(potential, frames).notes == ()


def test_labels_that_count_as_missing_are_noted(frames):
    frames[2] = replace(frames[2], forces=None, left_out=("forces",))
    (note,) = evaluate(ToyPotential(), frames).notes
    assert note == "Labels of weight 0 count as missing: 1 sets of forces."


def test_edge_budget_changes_batches_but_nothing_else(frames):
    potential = ToyPotential()
    at_once = evaluate(potential, frames)
    assert potential.batch_sizes == [9]
    one_by_one = evaluate(potential, frames, max_edges=1)
    assert max(potential.batch_sizes[1:]) < 9
    assert one_by_one.metrics == pytest.approx(at_once.metrics, rel=1e-12)
    for one, other in zip(one_by_one.predictions, at_once.predictions, strict=True):
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-13)


def test_stress_is_asked_for_only_where_label_and_cell_are(frames):
    potential = ToyPotential()
    crystals = [labelled(crystal(1)), replace(labelled(crystal(2)), stress=None)]
    boxless = replace(frames[0], stress=np.eye(3))
    result = evaluate(potential, [boxless, crystals[0], crystals[1]])
    assert potential.outputs_asked == [("energy", "forces"), ("energy", "forces", "stress")]
    assert potential.batch_sizes == [2, 1]
    assert [p.stress is None for p in result.predictions] == [True, False, True]
    assert result.counts["stress"] == 6


def test_frames_without_labels_are_predicted(frames):
    bare = replace(frames[1], energy=None, forces=None)
    energy_only = replace(frames[2], forces=None)
    result = evaluate(ToyPotential(), [bare, energy_only])
    assert len(result.predictions) == 2
    assert result.counts == {"energy": 1, "energy_per_atom": 1}
    assert result.per_element == {}
    assert result.worst_forces == ()
    assert [e.index for e in result.worst_energies] == [1]


def test_an_empty_set_is_judged_as_nothing():
    result = evaluate(ToyPotential(), [])
    assert result.metrics == {}
    assert result.predictions == ()


def test_worst_structures_name_the_culprit(frames):
    spoiled = frames[4].forces.copy()
    spoiled[1, 2] += 5.0
    frames[4] = replace(frames[4], forces=spoiled)
    frames[7] = replace(frames[7], energy=frames[7].energy + 3.0)
    result = evaluate(ToyPotential(), frames * 2)
    worst = result.worst_forces[0]
    assert (worst.index, worst.source, worst.worst_atom) == (4, "toy.xyz:4", 1)
    assert worst.worst_atom_element == "C"
    assert worst.worst_atom_error == pytest.approx(5.0, abs=0.3)
    assert result.worst_energies[0].index == 7
    assert result.worst_energies[0].energy_per_atom == pytest.approx(-3.0 / 3, abs=0.1)
    assert len(result.worst_forces) == N_WORST
    sizes = [e.forces_rmse for e in result.worst_forces]
    assert sizes == sorted(sizes, reverse=True)


def test_config_types_are_judged_apart():
    frames = [labelled(molecule(i), seed=i, info={"config_type": "ab"[i % 2]}) for i in range(5)]
    result = evaluate(ToyPotential(), frames)
    assert {name: group.n_frames for name, group in result.groups.items()} == {"a": 3, "b": 2}
    alone = evaluate(ToyPotential(), frames[1::2])
    assert result.groups["b"].metrics == pytest.approx(alone.metrics)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
    ],
)
def test_running_out_of_memory_makes_batches_smaller(frames, monkeypatch, error):
    expected = evaluate(ToyPotential(), frames)
    potential = ToyPotential()
    whole = ToyPotential.forward

    def cramped(self, graph, outputs=("energy", "forces")):
        if graph.n_frames > 2:
            raise error
        return whole(self, graph, outputs)

    monkeypatch.setattr(ToyPotential, "forward", cramped)
    steps = []
    result = evaluate(potential, frames, progress=lambda done, total: steps.append((done, total)))
    assert result.metrics == pytest.approx(expected.metrics, rel=1e-12)
    assert "Memory ran out with a batch of 9 structures" in result.notes[0]
    assert steps[-1] == (9, 9)
    printed = io.StringIO()
    print_table(Console(file=printed, width=200), "set", result)
    assert "Memory ran out" in printed.getvalue()


def test_once_memory_ran_out_later_batches_are_smaller(frames, monkeypatch):
    potential = ToyPotential()
    total = sum(potential.graph(frame).n_edges for frame in frames)
    whole, tried = ToyPotential.forward, []

    def cramped(self, graph, outputs=("energy", "forces")):
        tried.append(graph.n_edges)
        if graph.n_edges > total // 3:
            raise MemoryError
        return whole(self, graph, outputs)

    monkeypatch.setattr(ToyPotential, "forward", cramped)
    evaluate(potential, frames * 4, max_edges=total)
    failed = [i for i, edges in enumerate(tried) if edges > total // 3]
    assert tried[0] == total
    assert max(failed) < 7, "the first batch, its halves and their halves alone"


def test_a_structure_too_large_for_memory_is_named(frames, monkeypatch):
    def never(self, graph, outputs=("energy", "forces")):
        raise MemoryError

    monkeypatch.setattr(ToyPotential, "forward", never)
    with pytest.raises(ClebschError, match=r"toy.xyz:0: memory does not suffice .* \(2 atoms"):
        evaluate(ToyPotential(), frames)


def test_other_runtime_errors_are_not_taken_for_lack_of_memory(frames, monkeypatch):
    def broken(self, graph, outputs=("energy", "forces")):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(ToyPotential, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        evaluate(ToyPotential(), frames)


def test_a_prediction_that_is_not_finite_names_the_frame(frames):
    with pytest.raises(ClebschError, match=r"toy.xyz:0: .* not finite"):
        evaluate(ToyPotential(strength=float("nan")), frames)


def test_a_stress_that_is_not_finite_names_the_frame(monkeypatch):
    honest = ToyPotential.forward

    def broken(self, graph, outputs=("energy", "forces")):
        prediction = honest(self, graph, outputs)
        if "stress" in outputs:
            prediction.stress[0, 1, 2] = float("inf")
        return prediction

    monkeypatch.setattr(ToyPotential, "forward", broken)
    with pytest.raises(ClebschError, match=r"crystal.xyz:1: .* derivatives are not finite"):
        evaluate(ToyPotential(), [labelled(molecule(0)), labelled(crystal(1))])


def test_an_unknown_element_is_an_error():
    with pytest.raises(UnknownElementError, match="Xe"):
        evaluate(ToyPotential(), [molecule(0, "HC"), molecule(1, ["H", "Xe"])])


def test_predictions_are_read_back_by_ase(tmp_path):
    info = {"config_type": "bulk", "energy": 3.0, "odd": object(), "temperature": 300.0}
    frames = [labelled(crystal(1), info=info), labelled(molecule(2)), molecule(3)]
    evaluation = evaluate(ToyPotential(), frames)
    path = tmp_path / "predictions.xyz"
    write_predictions(path, [(frames, evaluation)])
    read = ase.io.read(path, index=":")
    assert len(read) == 3
    for atoms, frame, prediction in zip(read, frames, evaluation.predictions, strict=True):
        assert atoms.get_potential_energy() == pytest.approx(prediction.energy, abs=1e-8)
        np.testing.assert_allclose(atoms.get_forces(), prediction.forces, atol=1e-7)
        np.testing.assert_allclose(atoms.positions, frame.positions, atol=1e-7)
        assert atoms.info["source"] == frame.source
        if frame.energy is None:
            assert "reference_energy" not in atoms.info
            assert "reference_forces" not in atoms.arrays
        else:
            assert atoms.info["reference_energy"] == pytest.approx(frame.energy, abs=1e-8)
            np.testing.assert_allclose(atoms.arrays["reference_forces"], frame.forces, atol=1e-7)
    stress = read[0].get_stress(voigt=False)
    np.testing.assert_allclose(stress, evaluation.predictions[0].stress, atol=1e-8)
    np.testing.assert_allclose(read[0].info["reference_stress"], frames[0].stress, atol=1e-8)
    assert read[0].info["config_type"] == "bulk"
    assert read[0].info["temperature"] == 300.0
    assert "stress" not in read[1].calc.results


def test_predictions_of_an_empty_set_are_an_empty_file(tmp_path):
    write_predictions(tmp_path / "none.xyz", [([], evaluate(ToyPotential(), []))])
    assert (tmp_path / "none.xyz").read_text() == ""


def test_predictions_go_to_extended_xyz_only(tmp_path):
    with pytest.raises(ClebschError, match=r"must end in \.xyz or \.extxyz"):
        write_predictions(tmp_path / "predictions.csv", [])


def test_json_is_plain_and_in_electronvolts(frames):
    result = evaluate(ToyPotential(), frames)
    summary = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert summary["metrics"]["forces_rmse"] == result.metrics["forces_rmse"]
    assert summary["units"]["forces"] == "eV/Angstrom"
    assert summary["worst_forces"][0]["source"].startswith("toy.xyz:")


def test_table_is_in_milli_units_and_survives_markup(frames):
    printed = io.StringIO()
    result = evaluate(ToyPotential(), frames)
    print_table(Console(file=printed, width=200), "[red]set[/nothing]", result)
    text = printed.getvalue()
    assert "[red]set[/nothing]" in text
    assert milli(result.metrics["forces_rmse"]) in text
    assert "meV/Å" in text


def test_table_of_unlabelled_frames_says_so():
    printed = io.StringIO()
    print_table(Console(file=printed, width=200), "bare", evaluate(ToyPotential(), [molecule(1)]))
    assert "no labels" in printed.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0.000"), (0.0123456, "12.3"), (0.00123, "1.23"), (-2.5, "-2500")],
)
def test_milli(value, text):
    assert milli(value) == text
