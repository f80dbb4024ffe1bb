"""Scans: the two curves are compared at one common zero, and errors are what they say."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from morse import Morse

from clebsch.data.frame import Frame
from clebsch.errors import ClebschError, DataError
from clebsch.simulation.scan import ScanResult, run_scan

DISTANCES = np.linspace(2.0, 4.0, 9)
ERRORS = np.array([0.01, -0.02, 0.0, 0.03, 0.01, 0.0, 0.0, 0.01, 0.02])


def stretched_dimer(labels: np.ndarray | None = None) -> list[Frame]:
    return [
        Frame(
            numbers=np.array([29, 29]),
            positions=np.array([[0, 0, 0], [0, 0, distance]]),
            cell=np.zeros((3, 3)),
            pbc=np.zeros(3, dtype=bool),
            energy=None if labels is None else float(labels[i]),
            source=f"scan.xyz:{i}",
        )
        for i, distance in enumerate(DISTANCES)
    ]


def morse_energies() -> np.ndarray:
    return Morse().pair_energy(torch.tensor(DISTANCES)).numpy()


@pytest.fixture
def result() -> ScanResult:
    return run_scan(Morse(), stretched_dimer(morse_energies() - ERRORS - 1000.0))


def test_energies_and_barrier_without_a_reference() -> None:
    result = run_scan(Morse(), stretched_dimer())
    np.testing.assert_allclose(result.energies, morse_energies(), atol=1e-12)
    assert result.origin == int(morse_energies().argmin()) != 0
    assert result.relative.min() == 0
    assert result.barrier == pytest.approx(np.ptp(morse_energies()))
    assert result.reference_relative is None
    assert result.max_error is None
    assert result.rmse is None


def test_errors_are_of_energies_relative_to_one_frame(result: ScanResult) -> None:
    origin = int((morse_energies() - ERRORS).argmin())
    errors = ERRORS - ERRORS[origin]
    assert result.origin == origin
    assert result.max_error == pytest.approx(np.abs(errors).max())
    assert result.rmse == pytest.approx(np.sqrt(np.mean(np.delete(errors, origin) ** 2)))
    assert result.reference_barrier == pytest.approx(np.ptp(morse_energies() - ERRORS))
    first = run_scan(Morse(), stretched_dimer(morse_energies() - ERRORS), relative_to="first")
    assert first.origin == 0
    assert first.max_error == pytest.approx(np.abs(ERRORS - ERRORS[0]).max())


def test_what_is_written_is_what_was_computed(result: ScanResult, tmp_path: Path) -> None:
    with result.write(tmp_path / "scan.csv").open() as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_allclose([float(r["energy_eV"]) for r in rows], result.energies, atol=1e-8)
    np.testing.assert_allclose(
        [float(r["reference_relative_eV"]) for r in rows], result.reference_relative, atol=1e-8
    )
    content = json.loads(result.write(tmp_path / "scan.json").read_text())
    assert content["energies"] == result.energies.tolist()
    assert content["sources"][2] == "scan.xyz:2"
    assert result.write(tmp_path / "scan.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in result.write(tmp_path / "scan.svg").read_text()
    assert f"{1000 * result.max_error:.2f}" in result.describe()
    with pytest.raises(ClebschError, match=r"\.csv"):
        result.write(tmp_path / "scan.pdf")


def test_bad_scans_are_refused() -> None:
    with pytest.raises(DataError, match="at least one"):
        run_scan(Morse(), [])
    with pytest.raises(ClebschError, match="'first'"):
        run_scan(Morse(), stretched_dimer(), relative_to="fist")
    frames = stretched_dimer(morse_energies())
    frames[4] = replace(frames[4], energy=None)
    with pytest.raises(DataError, match=r"scan\.xyz:4: has no energy"):
        run_scan(Morse(), frames)
    frames = stretched_dimer()
    frames[3] = replace(frames[3], numbers=np.array([29, 79]))
    with pytest.raises(DataError, match=r"scan\.xyz:3: .*composition"):
        run_scan(Morse(), frames)


class Diverging(Morse):
    """Without a value where two atoms are closer than 2.6 Angstrom."""

    def pair_energy(self, distance: torch.Tensor) -> torch.Tensor:
        return super().pair_energy(distance) + torch.log(distance - 2.6)


def test_energies_that_are_no_numbers_are_refused() -> None:
    frames = stretched_dimer()[::-1]
    with pytest.raises(ClebschError, match=r"scan\.xyz:2: the model's energy .* not finite"):
        run_scan(Diverging(), frames)
