"""Every other format: .npz by its usual keys, ASE databases, and whatever else ASE reads."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.io.formats import filetype

from clebsch.data.extxyz import SUFFIXES, format_suffix, iter_extxyz
from clebsch.data.rawframe import RawFrame, shorten
from clebsch.errors import DataError
from clebsch.files import no_such_file

#: Names under which .npz files keep what a structure is, in order of preference.
NPZ_KEYS = {
    "positions": ("R", "pos", "positions", "coords", "coordinates", "_positions"),
    "numbers": (
        "z",
        "Z",
        "atomic_numbers",
        "nuclear_charges",
        "numbers",
        "species",
        "_atomic_numbers",
    ),
    "cell": ("cell", "cells", "lattice", "_cell"),
    "pbc": ("pbc", "_pbc"),
}

#: What compressed files begin with.
_COMPRESSED = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\x00"}


def iter_raw_frames(path: Path) -> Iterator[RawFrame]:
    """The frames of a file, in order; the format is recognised by name and content.

    Raises:
        DataError: there is no such file, its format is unknown, or it is broken somewhere.
    """
    if not path.is_file():
        raise DataError(no_such_file(path, "a file of structures"))
    suffix = format_suffix(path)
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    _check_compression(path)
    if suffix in SUFFIXES:
        return iter_extxyz(path)
    if suffix == ".npz":
        return _iter_npz(path)
    return _iter_ase(path)


def _check_compression(path: Path) -> None:
    with path.open("rb") as file:
        begin = file.read(6)
    for suffix, magic in _COMPRESSED.items():
        if begin.startswith(magic) and path.suffix.lower() != suffix:
            raise DataError(f"{path}: is compressed; name it {path.name}{suffix}")


# --- ASE ------------------------------------------------------------------------------------------


def _iter_ase(path: Path) -> Iterator[RawFrame]:
    """Frames through ASE, whose readers may raise anything: it becomes one DataError."""
    index = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ASE's parsers; what matters is raised below
        try:
            images = _ase_images(path)
            for atoms in images:
                yield _from_atoms(atoms, f"{path}:{index}")
                index += 1
        except DataError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or "no reason given"
            raise DataError(
                f"{path}: frame {index}: ASE cannot read on: {type(error).__name__}: "
                f"{shorten(reason, 200)}"
            ) from error
    if index == 0:
        raise DataError(
            f"{path}: the file holds no frames; it was taken for {filetype(str(path))!r}, one of "
            "ASE's formats. If it is another, convert it: ase convert -i FORMAT FILE frames.xyz"
        )


def _ase_images(path: Path) -> Iterator[Atoms]:
    kind = filetype(str(path))
    if kind == "sqlite3" or path.suffix == ".db":
        _check_sqlite_size(path)
    if kind in ("sqlite3", "db", "json") or path.suffix == ".db":
        yield from _database_rows(path, "json" if kind == "json" else "db")
        return
    from ase.io import iread

    yield from iread(str(path), index=":", format=kind, do_not_split_by_at_sign=True)


def _database_rows(path: Path, kind: str) -> Iterator[Atoms]:
    """Rows of an ASE database with their key-value pairs and data in ``info``."""
    from ase.db import connect

    database = connect(str(path), type=kind, use_lock_file=False)
    for row in database.select():
        atoms = row.toatoms()
        atoms.info.update(row.key_value_pairs)
        for key, value in (row.data or {}).items():
            if isinstance(value, np.ndarray) and value.shape[:1] == (len(atoms),):
                if key not in atoms.arrays:
                    atoms.arrays[key] = value
            else:
                atoms.info.setdefault(key, value)
        yield atoms


def _check_sqlite_size(path: Path) -> None:
    """SQLite reads a file with its last page cut off: its header says how long it should be."""
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\x00"):
        raise DataError(f"{path}: not an SQLite database")
    page = int.from_bytes(header[16:18], "big")
    expected = (65536 if page == 1 else page) * int.from_bytes(header[28:32], "big")
    if path.stat().st_size < expected:
        raise DataError(
            f"{path}: the database is truncated: {path.stat().st_size} of {expected} bytes"
        )


def _from_atoms(atoms: Atoms, source: str) -> RawFrame:
    if len(atoms) == 0:
        raise DataError(f"{source}: the frame has no atoms")
    own = ("numbers", "positions")
    results = {} if atoms.calc is None else dict(getattr(atoms.calc, "results", {}))
    return RawFrame(
        numbers=np.asarray(atoms.numbers, dtype=np.int64),
        positions=np.array(atoms.positions, dtype=np.float64),
        cell=np.array(atoms.cell.array, dtype=np.float64),
        pbc=np.array(atoms.pbc, dtype=bool),
        info=dict(atoms.info),
        arrays={key: value for key, value in atoms.arrays.items() if key not in own},
        results={key: value for key, value in results.items() if value is not None},
        source=source,
    )


# --- npz ------------------------------------------------------------------------------------------


def _iter_npz(path: Path) -> Iterator[RawFrame]:
    """Frames of an .npz file.

    Positions [F, n, 3] (or [n, 3] for one frame) and atomic numbers [n] or [F, n] are needed; cell
    [3], [3, 3] or [F, 3, 3] and pbc [3] or [F, 3] may be there, under the names of ``NPZ_KEYS``.
    Other arrays with F entries are per structure, or per atom if n follows.
    """
    stored = _load_npz(path)
    names = {what: _npz_name(stored, aliases) for what, aliases in NPZ_KEYS.items()}
    positions = _npz_positions(path, stored, names["positions"])
    n_frames, n_atoms = positions.shape[:2]
    numbers = _npz_numbers(path, stored, names["numbers"], n_frames, n_atoms)
    cells = _npz_cells(path, stored, names["cell"], n_frames)
    pbc = _npz_pbc(path, stored, names["pbc"], cells)
    others = {key: value for key, value in stored.items() if key not in names.values()}
    single = positions.shape[0] == 1 and stored[str(names["positions"])].ndim == 2
    for index in range(n_frames):
        info, arrays = {}, {}
        for key, value in others.items():
            if single and value.shape[:1] == (n_atoms,):
                arrays[key] = value
            elif value.ndim == 0 or single:
                info[key] = value.item() if value.ndim == 0 else value
            elif value.shape[:2] == (n_frames, n_atoms):
                arrays[key] = value[index]
            elif value.shape[0] == n_frames:
                info[key] = value[index] if value[index].size != 1 else value[index].item()
            else:  # of no frame in particular; if it is asked for as a label, its shape is wrong
                info[key] = value
        yield RawFrame(
            numbers[index],
            positions[index],
            cells[index],
            pbc[index],
            info,
            arrays,
            {},
            f"{path}:{index}",
        )


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    stored: dict[str, np.ndarray] = {}
    key = ""
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):  # numpy would advise to unpickle it
                raise ValueError("not an .npz file, or one that was cut short")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                for key in archive.files:
                    stored[key] = archive[key]
    except Exception as error:  # zipfile, zlib and numpy raise a dozen different kinds
        where = f"key {key!r}: " if key else ""
        raise DataError(f"{path}: {where}cannot be read: {shorten(str(error), 200)}") from error
    return stored


def _npz_name(stored: dict[str, np.ndarray], aliases: tuple[str, ...]) -> str | None:
    return next((name for name in aliases if name in stored), None)


def _npz_positions(path: Path, stored: dict[str, np.ndarray], name: str | None) -> np.ndarray:
    if name is None:
        raise DataError(
            f"{path}: no positions under any of {', '.join(NPZ_KEYS['positions'])}; "
            f"the file holds {', '.join(stored) or 'nothing'}"
        )
    values = stored[name]
    if values.ndim not in (2, 3) or values.shape[-1] != 3 or 0 in values.shape:
        raise DataError(f"{path}: key {name!r} has shape {values.shape}, not [frames, atoms, 3]")
    if values.dtype.kind not in "iuf":
        raise DataError(f"{path}: key {name!r} does not hold numbers")
    return values.astype(np.float64).reshape(-1, *values.shape[-2:])


def _npz_numbers(
    path: Path, stored: dict[str, np.ndarray], name: str | None, n_frames: int, n_atoms: int
) -> np.ndarray:
    if name is None:
        raise DataError(
            f"{path}: no atomic numbers under any of {', '.join(NPZ_KEYS['numbers'])}; "
            f"the file holds {', '.join(stored)}"
        )
    values = stored[name]
    if values.dtype.kind in "SU":  # symbols; unknown ones are no elements below
        symbols = values.astype(str)
        values = np.vectorize(lambda s: atomic_numbers.get(s.strip().capitalize(), 0))(symbols)
    if values.shape not in ((n_atoms,), (n_frames, n_atoms)) or values.dtype.kind not in "iuf":
        raise DataError(
            f"{path}: key {name!r} has shape {values.shape}, not [{n_atoms}] or "
            f"[{n_frames}, {n_atoms}] numbers"
        )
    if not ((values >= 1) & (values <= 118)).all():
        raise DataError(f"{path}: key {name!r} holds numbers that are no elements (1 to 118)")
    if (broken := values[values % 1 != 0]).size:
        raise DataError(
            f"{path}: key {name!r} holds {broken[0]:g}, which is no atomic number: these are whole"
        )
    return np.broadcast_to(values.astype(np.int64), (n_frames, n_atoms))


def _npz_cells(
    path: Path, stored: dict[str, np.ndarray], name: str | None, n_frames: int
) -> np.ndarray:
    if name is None:
        return np.zeros((n_frames, 3, 3))
    values = stored[name]
    if values.shape == (3,):
        values = np.diag(values)
    if values.shape not in ((3, 3), (n_frames, 3, 3)) or values.dtype.kind not in "iuf":
        raise DataError(f"{path}: key {name!r} has shape {values.shape}, not [3, 3] per frame")
    return np.broadcast_to(values.astype(np.float64), (n_frames, 3, 3))


def _npz_pbc(
    path: Path, stored: dict[str, np.ndarray], name: str | None, cells: np.ndarray
) -> np.ndarray:
    """Without a pbc key, a cell means periodic in all directions, as in extended XYZ."""
    if name is None:
        return np.broadcast_to(np.any(cells != 0, axis=(1, 2))[:, None], (len(cells), 3))
    values = stored[name]
    if values.shape not in ((), (3,), (len(cells), 3)) or values.dtype.kind not in "bi":
        raise DataError(f"{path}: key {name!r} has shape {values.shape}, not three flags per frame")
    return np.broadcast_to(values.astype(bool), (len(cells), 3))
