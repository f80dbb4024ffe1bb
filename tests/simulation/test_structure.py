"""Structures are read from files whatever their names."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write

import clebsch
from clebsch.cli_doctor import _read
from clebsch.errors import DataError
from clebsch.simulation.structure import check_fits, read_structure


def test_an_at_sign_is_part_of_a_files_name(tmp_path: Path) -> None:
    """ASE would take what follows it for the number of a structure, or for a query."""
    path = tmp_path / "water@300.xyz"
    write(tmp_path / "water.xyz", [molecule("H2O"), molecule("CH4")])
    (tmp_path / "water.xyz").rename(path)
    assert len(read_structure(path)) == 5
    assert len(read_structure(path, 0)) == 3
    assert [len(atoms) for atoms in _read(path).values()] == [3, 5]


@pytest.mark.parametrize("name", ["blanks.xyz", "blanks.extxyz.gz"])
def test_blank_lines_between_frames_hide_no_structure(tmp_path: Path, name: str) -> None:
    """ASE stops at them without a word: the first frame was taken for the last."""
    frames = [molecule("H2O"), molecule("CH4"), molecule("C6H6")]
    texts = []
    for atoms in frames:
        write(tmp_path / "one.xyz", atoms)
        texts.append((tmp_path / "one.xyz").read_text())
    path = tmp_path / name
    text = "\n".join(texts) + "\n\n"
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert read_structure(path) == frames[-1]
    for index in range(-3, 3):
        assert read_structure(path, index) == frames[index]
    assert list(_read(path).values()) == frames
    for index in (3, -4):
        with pytest.raises(DataError, match=f"no structure number {index}: .* from 0 to 2"):
            read_structure(path, index)


def test_atoms_at_one_place_are_named_before_anything_begins() -> None:
    potential = clebsch.build("mace_tiny", ["H"])
    atoms = Atoms("H3", [[0, 0, 0], [1, 0, 0], [0, 0, 0]])
    with pytest.raises(DataError, match=r"h\.xyz: atoms 0 and 2 are at one place"):
        check_fits(potential, atoms, "h.xyz")


def test_a_data_set_is_no_structure(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", R=np.zeros((2, 1, 3)), z=np.ones(1))
    with pytest.raises(DataError, match=r"set\.npz: .*a format that ASE reads; \.npz is for data"):
        read_structure(tmp_path / "set.npz")
