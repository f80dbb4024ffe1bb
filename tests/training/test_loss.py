"""The loss: against hand computation, and what missing labels and weights do to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import clebsch
from clebsch.data.frame import Frame
from clebsch.data.loader import Batch, LabelledGraphs
from clebsch.potential import Prediction
from clebsch.training.config import LossConfig
from clebsch.training.loss import LossSums, loss_sums, trained_outputs
from clebsch.training.optimizer import trained_parameters
from clebsch.training.validate import validate

OUTPUTS = ("energy", "forces", "virial")


@pytest.fixture(scope="module")
def potential() -> clebsch.Potential:
    return clebsch.build(
        {
            "channels": 2,
            "l_max": 1,
            "product": {"correlation": 2},
            "cutoff": 4.0,
            "radial": {"hidden": [8]},
        },
        ["Cu", "Au"],
        dtype=torch.float64,
    )


def frame(seed: int, n: int = 3, labels: str = "efs", **more: Any) -> Frame:
    """Random atoms in a box of 27 cubic Angstrom, with random labels."""
    rng = np.random.default_rng(seed)
    stress = 0.1 * rng.normal(size=(3, 3))
    found: dict[str, Any] = {
        "energy": float(rng.normal()),
        "forces": rng.normal(size=(n, 3)),
        "stress": stress + stress.T,
    }
    kept = {name: value for name, value in found.items() if name[0] in labels}
    numbers = np.array([29, 79] * n)[:n]
    positions = rng.uniform(0, 3, size=(n, 3))
    pbc = more.pop("pbc", np.zeros(3, bool))
    return Frame(numbers, positions, 3 * np.eye(3), pbc, **(kept | more))


def prediction(batch: Batch, off: float) -> Prediction:
    """The labels, off by the same amount in every component."""
    labels = batch.labels
    return Prediction(
        energy=labels.energy + off,
        forces=labels.forces + off,
        virial=-27 * (labels.stress + off),
    )


def batch_of(potential: clebsch.Potential, *frames: Frame) -> Batch:
    return LabelledGraphs(potential, frames).batch(range(len(frames)))


def test_the_loss_is_what_its_formula_says(potential: clebsch.Potential) -> None:
    batch = batch_of(potential, frame(0, 2), frame(1, 4, weight=3.0))
    off = 0.1
    expected = {
        "per_sqrt_atoms": (1 / 2 + 3 / 4, 1 / 2 + 3 / 4),
        "per_atom": (1 / 4 + 3 / 16, 1 / 4 + 3 / 16),
        "total": (4.0, 4.0),
    }
    for form, (energy, stress) in expected.items():
        config = LossConfig(energy=2, forces=5, stress=7, energy_form=form)
        sums = loss_sums(prediction(batch, off), batch, config)
        loss = (
            2 * off**2 * energy / 2
            + 5 * off**2 * (2 * 3 + 4 * 3 * 3) / 18
            + 7 * (27 * off) ** 2 * 9 * stress / 18
        )
        assert float(sums.loss(config)) == pytest.approx(loss, rel=1e-12)


def test_weights_of_terms_act_on_their_term_alone(potential: clebsch.Potential) -> None:
    config = LossConfig(stress=1.0)
    plain = batch_of(potential, frame(0))
    expected = loss_sums(prediction(plain, 0.1), plain, config)
    for term in ("energy", "forces", "stress"):
        weighted = batch_of(potential, frame(0, **{f"{term}_weight": 4.0}))
        sums = loss_sums(prediction(weighted, 0.1), weighted, config)
        for name in ("energy", "forces", "stress"):
            factor = 4.0 if name == term else 1.0
            assert float(getattr(sums, name)) == pytest.approx(
                factor * float(getattr(expected, name)), rel=1e-12
            )


def test_the_huber_loss_is_squared_below_delta_and_linear_above(
    potential: clebsch.Potential,
) -> None:
    batch = batch_of(potential, frame(0, 1, labels="f"))
    off = torch.tensor([0.05, 0.1, -0.3], dtype=torch.float64)
    predicted = Prediction(forces=batch.labels.forces + off)
    config = LossConfig(huber_delta=0.1)
    total = float(loss_sums(predicted, batch, config).forces)
    assert total == pytest.approx(0.05**2 + 0.1**2 + 2 * 0.1 * 0.3 - 0.1**2, rel=1e-12)


def test_the_huber_loss_concerns_every_term(potential: clebsch.Potential) -> None:
    batch = batch_of(potential, frame(0, 1))
    config = LossConfig(huber_delta=0.1)
    sums = loss_sums(prediction(batch, 0.3), batch, config)
    linear = 2 * 0.1 * 0.3 - 0.1**2
    assert float(sums.energy) == pytest.approx(linear, rel=1e-12)
    assert float(sums.forces) == pytest.approx(3 * linear, rel=1e-12)
    virial = 2 * 0.1 * (27 * 0.3) - 0.1**2
    assert float(sums.stress) == pytest.approx(9 * virial, rel=1e-12)


def test_a_left_handed_cell_has_the_stress_of_a_right_handed_one(
    potential: clebsch.Potential,
) -> None:
    config = LossConfig(energy=0, forces=0, stress=1)
    right = frame(0, pbc=np.ones(3, bool))
    left = replace(right, cell=right.cell[[1, 0, 2]])
    assert np.linalg.det(left.cell) == pytest.approx(-27)
    batch = batch_of(potential, left)
    assert float(loss_sums(prediction(batch, 0.0), batch, config).stress) < 1e-20
    expected = validate(potential, LabelledGraphs(potential, [right]), [[0]], config)
    found = validate(potential, LabelledGraphs(potential, [left]), [[0]], config)
    assert found == pytest.approx(expected, rel=1e-9)


def gradient(potential: clebsch.Potential, batch: Batch, config: LossConfig) -> torch.Tensor:
    outputs = trained_outputs(batch.counts, config)
    loss = loss_sums(potential(batch.graph, outputs, differentiable=True), batch, config).loss(
        config
    )
    parameters = list(trained_parameters(potential).values())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).ravel()
            for g, p in zip(gradients, parameters, strict=True)
        ]
    )


def test_frames_without_labels_do_not_move_gradients(potential: clebsch.Potential) -> None:
    config = LossConfig(stress=1.0)
    full = frame(0)
    expected = gradient(potential, batch_of(potential, full), config)
    assert expected.norm() > 0
    found = gradient(potential, batch_of(potential, full, frame(1, labels="")), config)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10 * float(expected.norm()))
    as_zeros = Frame(full.numbers, frame(1).positions, full.cell, full.pbc, 0.0, np.zeros((3, 3)))
    wrong = gradient(potential, batch_of(potential, full, as_zeros), config)
    assert not torch.allclose(wrong, expected, rtol=1e-3)


def test_each_term_is_averaged_over_its_own_labels(potential: clebsch.Potential) -> None:
    frames = [frame(0, labels="e"), frame(1, labels="f"), frame(2, labels="s")]
    config = LossConfig(stress=1.0)
    together = gradient(potential, batch_of(potential, *frames), config)
    apart = sum(gradient(potential, batch_of(potential, f), config) for f in frames)
    assert torch.allclose(together, apart, rtol=1e-9, atol=1e-9 * float(together.norm()))


@pytest.mark.parametrize(
    ("labels", "outputs"), [("e", ("energy",)), ("f", ("forces",)), ("s", ("virial",))]
)
def test_only_what_is_labelled_is_asked_for(
    potential: clebsch.Potential, labels: str, outputs: tuple[str, ...]
) -> None:
    config = LossConfig(stress=1.0)
    batch = batch_of(potential, frame(0, labels=labels))
    assert trained_outputs(batch.counts, config) == outputs
    assert gradient(potential, batch, config).norm() > 0


def test_a_term_without_weight_is_not_computed(potential: clebsch.Potential) -> None:
    counts = batch_of(potential, frame(0)).counts
    assert trained_outputs(counts, LossConfig(energy=0, stress=0)) == ("forces",)
    assert trained_outputs(counts, LossConfig(forces=0, stress=0)) == ("energy",)


def test_sums_of_parts_are_the_sums_of_the_whole(potential: clebsch.Potential) -> None:
    config = LossConfig(stress=1.0)
    frames = [frame(0), frame(1, 5), frame(2, labels="e"), frame(3, 2)]
    whole = batch_of(potential, *frames)
    expected = loss_sums(potential(whole.graph, OUTPUTS), whole, config).loss(config)
    sums = LossSums()
    for part in ([0], [1, 2], [3]):
        batch = batch_of(potential, *(frames[i] for i in part))
        sums = sums + loss_sums(potential(batch.graph, OUTPUTS), batch, config).numbers()
    assert float(sums.loss(config)) == pytest.approx(float(expected), rel=1e-10)


def test_validation_does_not_depend_on_how_frames_are_batched(
    potential: clebsch.Potential,
) -> None:
    frames = [frame(0), frame(1, 5, labels="fs"), frame(2, labels="e"), frame(3, 2), frame(4, 7)]
    graphs = LabelledGraphs(potential, frames)
    config = LossConfig(stress=1.0)
    results = [
        validate(potential, graphs, batches, config)
        for batches in ([[0, 1, 2, 3, 4]], [[0], [1], [2], [3], [4]], [[3, 1], [4, 2, 0]])
    ]
    assert {"loss", "energy_rmse", "forces_rmse", "stress_rmse"} <= set(results[0])
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-10)


def test_validation_errors_are_those_of_the_labels(potential: clebsch.Potential) -> None:
    source = frame(0)
    graphs = LabelledGraphs(potential, [source])
    found = validate(potential, graphs, [[0]], LossConfig())
    predicted = potential(potential.graph(source), ("energy", "forces", "stress"))
    error = float(predicted.energy) - source.energy
    assert found["energy_rmse"] == pytest.approx(abs(error), rel=1e-10)
    assert found["energy_per_atom_mae"] == pytest.approx(abs(error) / 3, rel=1e-10)
    forces = predicted.forces.numpy() - source.forces
    assert found["forces_rmse"] == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-10)
    stress = (predicted.stress[0].numpy() - source.stress)[np.triu_indices(3)]
    assert found["stress_mae"] == pytest.approx(np.abs(stress).mean(), rel=1e-10)
