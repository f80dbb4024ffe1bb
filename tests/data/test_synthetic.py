"""Data of our own making: seeded, labelled, and readable again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.emt import EMT

from clebsch.data.check import check_frames
from clebsch.data.read import read_frames
from clebsch.data.references import isolated_atoms
from clebsch.data.synthetic import (
    emt_isolated_atoms,
    sample_emt_cuau,
    sample_xtb,
    write_xyz,
    xtb_isolated_atoms,
)


def test_copper_gold_is_seeded_varied_and_labelled_by_emt(tmp_path: Path) -> None:
    frames = sample_emt_cuau(40, 10, seed=3)
    again = sample_emt_cuau(40, 10, seed=3)
    other = sample_emt_cuau(2, 0, seed=4)
    assert len(frames) == 50
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(frames, again, strict=True))
    assert not np.array_equal(frames[1].cell.array, other[1].cell.array)
    assert {len(atoms) for atoms in frames} <= {4, 8, 16, 32}
    assert {"Cu", "Au", "Cu3Au", "CuAu", "CuAu3", "random"} <= {
        a.info["config_type"] for a in frames
    }
    angles = np.array([atoms.cell.angles() for atoms in frames])
    assert (np.abs(angles - 90) > 20).any()
    for atoms in (frames[7], frames[45]):
        fresh = atoms.copy()
        fresh.calc = EMT()
        assert atoms.get_potential_energy() == pytest.approx(fresh.get_potential_energy())
        np.testing.assert_allclose(atoms.get_forces(), fresh.get_forces(), atol=1e-10)
        np.testing.assert_allclose(atoms.get_stress(), fresh.get_stress(), atol=1e-10)
    write_xyz(tmp_path / "cuau.xyz", [*frames, *emt_isolated_atoms()])
    references, rest = isolated_atoms(read_frames(tmp_path / "cuau.xyz"))
    assert set(references) == {"Cu", "Au"}
    assert [frame.energy for frame in rest] == [a.get_potential_energy() for a in frames]
    assert check_frames(rest, references=references).count("error") == 0


def test_xtb_dynamics_are_seeded_and_labelled(tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    water = molecule("H2O")
    seen: list[tuple[int, int]] = []
    arguments = {"stride": 5, "equilibration": 20}
    frames = sample_xtb(
        water, 300, 4, seed=1, progress=lambda *done: seen.append(done), **arguments
    )
    again = sample_xtb(water, 300, 4, seed=1, **arguments)
    other = sample_xtb(water, 300, 1, seed=2, **arguments)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert np.array_equal(frames[3].positions, again[3].positions)
    assert not np.array_equal(frames[0].positions, other[0].positions)
    assert np.array_equal(water.positions, molecule("H2O").positions)
    write_xyz(tmp_path / "w.xyz", [*frames, *xtb_isolated_atoms(["O", "H", "H"])])
    references, rest = isolated_atoms(read_frames(tmp_path / "w.xyz"))
    assert set(references) == {"O", "H"}
    assert rest[0].energy == frames[0].get_potential_energy()
    binding = rest[0].energy - references["O"] - 2 * references["H"]
    assert -18 < binding < -8
