"""Structures are read from files whatever their names."""

from __future__ import annotations

from pathlib import Path

from ase.build import molecule
from ase.io import write

from clebsch.cli_doctor import _read
from clebsch.simulation.structure import read_structure


def test_an_at_sign_is_part_of_a_files_name(tmp_path: Path) -> None:
    """ASE would take what follows it for the number of a structure, or for a query."""
    path = tmp_path / "water@300.xyz"
    write(tmp_path / "water.xyz", [molecule("H2O"), molecule("CH4")])
    (tmp_path / "water.xyz").rename(path)
    assert len(read_structure(path)) == 5
    assert len(read_structure(path, 0)) == 3
    assert [len(atoms) for atoms in _read(path).values()] == [3, 5]
