"""Tests of a task become numbers: errors, scans relative to a minimum, curves to their ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

import clebsch
from clebsch.errors import DataError
from clebsch.potential import Potential
from clebsch.reproduce.judge import judge
from clebsch.reproduce.suites import HeldOut


@pytest.fixture(scope="module")
def potential() -> Potential:
    """Random weights in float64."""
    return clebsch.build("mace_tiny", ["H", "O"], dtype=torch.float64)


def stretched(potential: Potential, symbols: str, shifts: np.ndarray) -> list[Atoms]:
    """A bond from short to long, whose labels are the potential's energies and a shift of each."""
    frames = []
    for length, shift in zip(np.linspace(0.8, 4.0, len(shifts)), shifts, strict=True):
        atoms = Atoms(symbols, [[0, 0, 0], [0, 0, length]])
        energy = float(potential(potential.graph(atoms), ("energy",)).energy)
        atoms.calc = SinglePointCalculator(atoms, energy=energy + shift)
        atoms.info["config_type"] = symbols
        frames.append(atoms)
    return frames


def judged(potential: Potential, path: Path, frames: list[Atoms], kind: str) -> dict[str, float]:
    write(path, frames, format="extxyz")
    test = HeldOut("bond", "bond", kind)  # type: ignore[arg-type]
    absent = HeldOut("absent", "absent", optional=True)
    (name, metrics), *others = judge(potential, [test, absent], {"bond": path}).items()
    assert (name, others) == ("bond", [])
    assert metrics.pop("n") == len(frames)
    return metrics


def test_curves_are_relative_to_their_own_ends(potential: Potential, tmp_path: Path) -> None:
    shifts = np.array([0.3, 0.1, 0.0]), np.array([0.0, 0.2, 0.0])
    frames = stretched(potential, "H2", 1.0 + shifts[0])
    frames += stretched(potential, "O2", 5.0 + shifts[1])
    found = judged(potential, tmp_path / "bond.xyz", frames, "curves")
    relative = np.sqrt(np.mean([0.3**2, 0.1**2, 0.0, 0.2**2]))
    assert found["relative_energy_rmse"] == pytest.approx(relative, abs=1e-6)
    total = np.sqrt(np.mean(np.concatenate([1.0 + shifts[0], 5.0 + shifts[1]]) ** 2))
    assert found["energy_rmse"] == pytest.approx(total, abs=1e-6)


def test_a_curve_of_one_point_says_nothing_of_its_shape(
    potential: Potential, tmp_path: Path
) -> None:
    frames = stretched(potential, "H2", np.array([0.2]))
    found = judged(potential, tmp_path / "bond.xyz", frames, "curves")
    assert found == {"energy_rmse": pytest.approx(0.2, abs=1e-6)}


def test_a_scan_is_relative_to_the_minimum_of_the_reference(
    potential: Potential, tmp_path: Path
) -> None:
    frames = stretched(potential, "H2", np.array([30.0, 0.1, 0.1, 20.2]))
    found = judged(potential, tmp_path / "bond.xyz", frames, "scan")
    assert {"relative_energy_rmse", "max_error", "barrier", "reference_barrier"} == set(found)
    assert found["max_error"] == pytest.approx(29.9, abs=1e-6)


def test_errors_are_those_of_the_evaluation(potential: Potential, tmp_path: Path) -> None:
    frames = stretched(potential, "H2", np.array([0.2, -0.2]))
    found = judged(potential, tmp_path / "bond.xyz", frames, "errors")
    assert found["energy_mae"] == pytest.approx(0.2, abs=1e-6)
    assert "forces_mae" not in found


def test_curves_need_energies(potential: Potential, tmp_path: Path) -> None:
    frames = [*stretched(potential, "H2", np.zeros(2)), Atoms("H2", [[0, 0, 0], [0, 0, 1]])]
    with pytest.raises(DataError, match=r"bond.xyz:2: has no energy"):
        judged(potential, tmp_path / "bond.xyz", frames, "curves")
