"""Error sums: right by hand, blind to missing labels, the same whatever the batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from clebsch.evaluation.metrics import ErrorAccumulator


def test_values_by_hand():
    errors = ErrorAccumulator()
    errors.add_energy([1.0, 2.0], [1.4, 1.7], n_atoms=[2, 3])  # errors -0.4 and 0.3
    errors.add_forces(np.zeros((2, 3)), [[3.0, 0, 0], [0, 0, -4.0]])
    stress = np.zeros((1, 3, 3))
    reference = np.array([[[0.6, 0, 0], [0, 0, 0.3], [0, 0.3, 0]]])
    errors.add_stress(stress, reference)
    result = errors.result()
    assert result["energy_mae"] == pytest.approx(0.35)
    assert result["energy_rmse"] == pytest.approx(math.sqrt((0.16 + 0.09) / 2))
    assert result["energy_per_atom_mae"] == pytest.approx((0.2 + 0.1) / 2)
    assert result["energy_per_atom_rmse"] == pytest.approx(math.sqrt((0.04 + 0.01) / 2))
    assert result["forces_mae"] == pytest.approx(7 / 6)
    assert result["forces_rmse"] == pytest.approx(math.sqrt(25 / 6))
    # Six Voigt components: the off-diagonal pair counts once.
    assert result["stress_mae"] == pytest.approx(0.9 / 6)
    assert result["stress_rmse"] == pytest.approx(math.sqrt((0.36 + 0.09) / 6))
    assert errors.counts() == {"energy": 2, "energy_per_atom": 2, "forces": 6, "stress": 6}


def test_result_does_not_depend_on_batch_size():
    rng = np.random.default_rng(1)
    n_atoms = rng.integers(1, 9, size=23)
    ends = np.concatenate([[0], np.cumsum(n_atoms)])
    energy = rng.normal(size=(2, 23)) - 17_600
    forces = rng.normal(size=(2, ends[-1], 3))
    numbers = rng.choice([1, 6, 8], size=ends[-1])
    results = []
    for batch in (1, 4, 23):
        errors = ErrorAccumulator()
        for start in range(0, 23, batch):
            some = slice(start, start + batch)
            atoms = slice(ends[start], ends[min(start + batch, 23)])
            errors.add_energy(*energy[:, some], n_atoms[some])
            errors.add_forces(*forces[:, atoms], numbers=numbers[atoms])
        results.append(errors)
    for other in results[1:]:
        assert other.result() == pytest.approx(results[0].result(), rel=1e-13)
        assert other.counts() == results[0].counts()
        for symbol, expected in results[0].per_element().items():
            assert other.per_element()[symbol] == pytest.approx(expected, rel=1e-13)


def test_missing_labels_are_not_looked_at():
    errors = ErrorAccumulator()
    errors.add_energy([1.0, 5.0], [math.nan, 4.0], n_atoms=[3, 2], mask=[False, True])
    mask = [True, False]
    errors.add_forces([[1.0, 0, 0], [9.0, 9, 9]], [[0.0, 0, 0], [math.nan] * 3], mask, [1, 8])
    assert errors.result()["energy_mae"] == 1.0
    assert errors.result()["energy_per_atom_mae"] == 0.5
    assert errors.result()["forces_mae"] == pytest.approx(1 / 3)
    assert list(errors.per_element()) == ["H"]


def test_absent_quantities_are_absent_not_zero():
    errors = ErrorAccumulator()
    assert errors.result() == {}
    assert errors.per_element() == {}
    errors.add_forces(np.ones((2, 3)), np.full((2, 3), np.nan), mask=np.zeros(2, dtype=bool))
    errors.add_stress(np.ones((1, 3, 3)), np.zeros((1, 3, 3)), mask=[False])
    assert errors.result() == {}
    assert errors.counts() == {}


def test_float32_tensors_are_subtracted_in_float64():
    predicted = torch.tensor([0.1], dtype=torch.float32, requires_grad=True)
    reference = torch.tensor([0.3], dtype=torch.float32)
    errors = ErrorAccumulator()
    errors.add_energy(predicted, reference, torch.tensor([1]))
    assert errors.result()["energy_mae"] == float(np.float32(0.3)) - float(np.float32(0.1))


def test_per_element_errors_recombine_to_the_total():
    rng = np.random.default_rng(2)
    numbers = np.array([8, 1, 1, 6, 1])
    errors = ErrorAccumulator()
    errors.add_forces(rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), numbers=numbers)
    elements = errors.per_element()
    assert list(elements) == ["H", "C", "O"]
    assert [e["n"] for e in elements.values()] == [9, 3, 3]
    total = sum(e["forces_rmse"] ** 2 * e["n"] for e in elements.values())
    assert math.sqrt(total / 15) == pytest.approx(errors.result()["forces_rmse"])


def test_shapes_that_differ_are_refused_instead_of_broadcast():
    with pytest.raises(ValueError, match="differ in shape"):
        ErrorAccumulator().add_forces(np.zeros((4, 3)), np.zeros((1, 3)))
