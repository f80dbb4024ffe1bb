"""The copper-gold example in short: its own three steps, with less data and a smaller model."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT

import clebsch
from clebsch.data.read import read_frames
from clebsch.evaluation.evaluate import evaluate
from clebsch.training.configfile import load_config
from clebsch.training.loop import train

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cuau"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"cuau_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


validate = script("validate")


def deformed(strain: np.ndarray) -> Atoms:
    atoms = validate.relaxed(EMT(), validate.crystal("Cu3Au"))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return atoms


def stress(atoms: Atoms, calculator: Any) -> np.ndarray:
    copy = atoms.copy()
    copy.calc = calculator
    return copy.get_stress(voigt=False)


def relative_rms(predicted: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> float:
    """Of the errors, relative to the standard deviation of the labels."""
    errors = np.concatenate([np.ravel(p - r) for p, r in zip(predicted, labels, strict=True)])
    return float(np.sqrt(np.mean(errors**2)) / np.concatenate([np.ravel(r) for r in labels]).std())


def check_errors(potential: clebsch.Potential, test_file: Path) -> None:
    """Against the spread of the labels, which a model that knows nothing would be wrong by."""
    frames = read_frames(test_file)
    predictions = evaluate(potential, frames).predictions
    energies = [np.array(frame.energy / len(frame)) for frame in frames]
    found = [np.array(p.energy / len(f)) for p, f in zip(predictions, frames, strict=True)]
    assert relative_rms(found, energies) < 0.25
    assert relative_rms([p.forces for p in predictions], [f.forces for f in frames]) < 0.35
    assert relative_rms([p.stress for p in predictions], [f.stress for f in frames]) < 0.3


def check_stress(potential: clebsch.Potential) -> None:
    """Signs, sizes and places of its components."""
    calculator = clebsch.calculator(potential)
    for size in (-0.03, 0.03):
        normal = deformed(size * np.eye(3))
        pressure, expected = (-np.trace(stress(normal, c)) / 3 for c in (calculator, EMT()))
        assert np.sign(pressure) == np.sign(-size)
        assert pressure == pytest.approx(expected, rel=0.25)
        one = np.zeros((3, 3))
        one[1, 2] = one[2, 1] = size
        sheared = deformed(one)
        np.testing.assert_allclose(
            stress(sheared, calculator)[1, 2], stress(sheared, EMT())[1, 2], rtol=0.2
        )


def test_a_short_training_makes_energies_forces_stress_and_a_crystal(tmp_path: Path) -> None:
    script("generate").main(["--out", str(tmp_path), "--strained", "80", "--dynamics", "4"])
    config = load_config(
        EXAMPLE / "train.yaml",
        [
            f"data.train={tmp_path / 'train.xyz'}",
            f"run={tmp_path / 'run'}",
            "model.channels=16",
            "model.radial.hidden=[32, 32]",
            "training.batch_size=4",
            "training.max_epochs=30",
            "training.eval_every=10",
            "threads=1",
        ],
    )
    result = train(config)
    assert result.model is not None
    potential = clebsch.load(result.model, dtype=torch.float64)
    check_errors(potential, tmp_path / "test.xyz")
    check_stress(potential)
    validate.main([str(result.model), "--time", "0.5", "--repeats", "2", "--out", str(tmp_path)])
    summary = json.loads((tmp_path / "validation.json").read_text())
    checks = {(c["system"], c["quantity"]): c for c in summary["checks"]}
    for name in ("Cu", "Cu3Au"):
        assert abs(checks[name, "volume"]["deviation"]) < 0.02
        assert abs(checks[name, "bulk modulus"]["deviation"]) < 0.25
        assert abs(checks[name, "C44"]["deviation"]) < 0.25
    order = {q: c["passed"] for (system, q), c in checks.items() if system == "NPT 500 K"}
    assert order["rms displacement"]
    assert order["largest displacement"]
    assert order["atoms out of place"]


# --- the checks can fail --------------------------------------------------------------------------


class Softened(EMT):
    """EMT with everything a tenth smaller: the same volumes, other moduli."""

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results = {key: 0.9 * value for key, value in self.results.items()}


def test_emt_passes_its_own_checks_and_softer_crystals_fail_them() -> None:
    assert all(check.passed for check in validate.compare_crystal("Cu3Au", EMT()))
    assert all(check.passed for check in validate.compare_crystal("CuAu", EMT()))
    soft = {c.quantity: c for c in validate.compare_crystal("Cu3Au", Softened())}
    assert soft["volume"].passed
    for modulus in ("bulk modulus", "C11", "C12", "C44"):
        assert soft[modulus].deviation == pytest.approx(-0.1, abs=0.002)
        assert not soft[modulus].passed
    (curve,) = (check for name, check in soft.items() if name.startswith("E(V)"))
    assert not curve.passed
    assert not validate.Check("Cu", "C11", "GPa", 170.0, np.nan, np.nan, 0.05).passed


def test_a_drifting_breathing_crystal_is_one_and_a_melt_is_none() -> None:
    lattice = validate.solid_solution(2)
    rng = np.random.default_rng(0)

    def frames(amplitude: float, scale: float = 1.0) -> list[Atoms]:
        copies = [lattice.copy() for _ in range(20)]
        for number, atoms in enumerate(copies):
            atoms.positions += amplitude * rng.standard_normal(atoms.positions.shape)
            atoms.positions += 0.5 * number  # moves as a whole, across the cell's faces
            atoms.set_cell(atoms.cell.array * scale, scale_atoms=True)
        return copies

    thermal = validate.crystal_order(frames(0.1, scale=1.01), lattice)
    assert thermal.lindemann == pytest.approx(0.1 * np.sqrt(3 * 31 / 32) / 2.645, rel=0.05)
    assert thermal.furthest < validate.LEFT_ITS_SITE
    assert thermal.misplaced == 0
    melt = validate.crystal_order([f for f in frames(0.7)[:1] for _ in range(3)], lattice)
    assert melt.lindemann > validate.LINDEMANN_LIMIT
    assert melt.furthest > validate.LEFT_ITS_SITE
    assert melt.misplaced > 0
