"""Reading the structure that a simulation starts from."""

from __future__ import annotations

from collections import deque
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms

from clebsch.data.extxyz import SUFFIXES, format_suffix, iter_frame_texts
from clebsch.errors import DataError
from clebsch.files import no_such_file
from clebsch.potential import Potential


def read_structure(path: Path | str, index: int = -1) -> Atoms:
    """One structure out of a file of any format that ASE reads.

    Args:
        path: the file.
        index: which of its structures, from 0; negative numbers count from the end.

    Raises:
        DataError: the file is missing or unreadable, or has no such structure.
    """
    path = Path(path)
    try:
        atoms = _read(path, index)
    except (IndexError, StopIteration):
        raise DataError(f"{path}: has no structure number {index}{_how_many(path)}") from None
    if len(atoms) == 0:
        raise DataError(f"{path}: structure number {index} has no atoms")
    return atoms


def read_structures(path: Path | str) -> list[Atoms]:
    """All structures of a file of any format that ASE reads.

    Raises:
        DataError: the file is missing or unreadable.
    """
    return list(_read(Path(path), ":"))


def _read(path: Path, index: int | str) -> Any:
    """What ASE reads, by its index.

    Of extended XYZ it is given the frames without blank lines between them: it takes such a line
    for the end of the file, without a word.

    Raises:
        DataError: the file is missing or unreadable.
        IndexError, StopIteration: it has no such structure.
    """
    if not path.is_file():
        raise DataError(no_such_file(path, "a file of structures"))
    try:
        if format_suffix(path) in SUFFIXES and path.stat().st_size:
            return _read_extxyz(path, index)
        return ase.io.read(path, index=index, do_not_split_by_at_sign=True)
    except (IndexError, StopIteration, DataError):
        raise
    except Exception as error:  # whatever ASE's many readers raise on files they cannot read
        why = f"ASE cannot read it: {type(error).__name__}: {error}"
        if path.suffix == ".npz":
            why = "a simulation takes a structure in a format that ASE reads; .npz is for data sets"
        raise DataError(f"{path}: {why}") from None


def _read_extxyz(path: Path, index: int | str) -> Any:
    texts = iter_frame_texts(path)
    if isinstance(index, str):
        return ase.io.read(StringIO("".join(texts)), index=index, format="extxyz")
    if index >= 0:
        text = next(islice(texts, index, None))
    else:
        last = deque(texts, maxlen=-index)
        text = last[index]
    return ase.io.read(StringIO(text), format="extxyz")


def _how_many(path: Path) -> str:
    try:
        number = len(_read(path, ":"))
    except Exception:  # the error that there is says enough
        return ""
    return f": they are numbered from 0 to {number - 1}"


def check_fits(
    potential: Potential, atoms: Atoms, name: str, moves_cell: str | None = None
) -> None:
    """Find out whether a potential can be asked about a structure, before anything begins.

    Args:
        potential: that will be asked.
        atoms: the structure.
        name: of its file, and of the structure in it.
        moves_cell: what is to be done, if that moves the cell.

    Raises:
        UnknownElementError: an element that the potential does not know; names file and atom.
        DataError: an impossible cell or position, two atoms at one place, or a cell to move that
            is not periodic.
    """
    try:
        potential.graph(atoms)
        if moves_cell is not None:
            check_periodic(atoms, moves_cell)
    except DataError as error:
        raise type(error)(f"{name}: {error}") from None


def check_periodic(atoms: Atoms, moves_cell: str) -> None:
    """Refuse what moves the cell, ``moves_cell`` in words, where the structure has none to move.

    Raises:
        DataError: the structure is not periodic in all three directions.
    """
    if not (atoms.pbc.all() and atoms.cell.volume > 0):
        raise DataError(f"{moves_cell} needs a structure that is periodic in all three directions")


def bare_copy(atoms: Atoms) -> Atoms:
    """The structure without labels and other columns of its file, which would go stale as it moves.

    Kept: elements, positions, momenta, masses, tags, cell, periodicity and constraints.
    """
    copy = Atoms(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell,
        pbc=atoms.pbc,
        constraint=[constraint.copy() for constraint in atoms.constraints],
    )
    for name in ("momenta", "masses", "tags"):
        if atoms.has(name):
            copy.set_array(name, atoms.get_array(name))
    return copy
