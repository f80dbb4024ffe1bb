"""Fetching published data sets from where they are published, or from the archive at hand."""

from __future__ import annotations

import io
import re
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from clebsch.data.datasets import DataSet, find_files
from clebsch.errors import ClebschError, ConfigError, DataError

#: ``progress(done, total, what)``, in bytes; a total of None is not known.
Progress = Callable[[int, int | None, str], None]

#: Paths in the archive of the revised MD17; groups: the molecule, the part.
_MOLECULES, _SPLITS = r"\brmd17_(\w+)\.npz", r"\bindex_(\w+)\.csv"

_KCAL_MOL = units.kcal / units.mol
_CHUNK = 1 << 20
_SECONDS = 60.0


def download(data: DataSet, folder: Path, progress: Progress | None = None) -> list[Path]:
    """Fetch what ``folder`` lacks of a data set, into a folder of its name inside.

    A file appears under its name when it is whole and was found to be the published one.

    Args:
        data: which set.
        folder: where the set's own folder is, or will be.
        progress: called on the way.

    Returns:
        The new files.

    Raises:
        ClebschError: there is no network, or what is published there is something else.
        DataError: a file that is there already is not the published one.
    """

    def fetch(new: Path, missing: list[str]) -> None:
        if data.archive is not None:
            archive = new.parent / "archive"
            _fetch(data.archive, archive, "archive", progress)
            unpack_rmd17(archive, new, missing)
            return
        for name in missing:
            url = data.files[name].url
            if url is not None and not (data.files[name].optional and not _exists(url)):
                _fetch(url, new / f"{name}.xyz", name, progress)

    return _complete(data, folder, fetch)


def unpack(data: DataSet, source: Path, folder: Path) -> list[Path]:
    """Write what ``folder`` lacks of a data set out of the archive that it is published as.

    Args:
        data: which set; it must be one that is published as an archive.
        source: the archive, or a folder that it was unpacked in, of which parts may be missing.
        folder: where the set's own folder is, or will be.

    Returns:
        The new files.

    Raises:
        ConfigError: the set is not published as an archive.
        ClebschError: the archive is not what was published.
        DataError: neither is there, or what is in it, or in ``folder``, is something else.
    """
    if data.archive is None:
        raise ConfigError(
            f"--from with --to unpacks an archive, and {data.folders[0]} is published as single "
            "files: --from alone finds them where they are, --to alone downloads them"
        )
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")

    def take(new: Path, missing: list[str]) -> None:
        unpack_rmd17(source, new, _held(source, missing) if source.is_dir() else missing)

    return _complete(data, folder, take)


def _complete(data: DataSet, folder: Path, get: Callable[[Path, list[str]], None]) -> list[Path]:
    """Let ``get(new, missing)`` write what ``folder`` lacks, and keep what is as published."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name, one in find_files(data, folder).items() if one.path is None]
    if not missing:
        return []
    home = folder / data.folders[0]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
        new = Path(scratch) / data.folders[0]
        new.mkdir()
        get(new, missing)
        paths = []
        for found in find_files(data, Path(scratch), missing).values():
            if found.path is not None:
                path = home / found.path.relative_to(new)
                path.parent.mkdir(parents=True, exist_ok=True)
                paths.append(found.path.replace(path))
        return paths


def _held(folder: Path, names: list[str]) -> list[str]:
    """Those of ``names`` whose molecule and split lie in an unpacked archive.

    Raises:
        ClebschError: there are none.
    """
    molecules, parts = (
        {name for name, _ in _places(folder, pattern)} for pattern in (_MOLECULES, _SPLITS)
    )
    held = [name for name in names if {*name.split("/")} <= molecules | parts]
    if not held:
        raise ClebschError(
            f"{folder}: holds nothing of what is missing. The published archive has "
            "npz_data/rmd17_MOLECULE.npz and splits/index_train_01.csv, index_test_01.csv"
        )
    return held


def unpack_rmd17(archive: Path, folder: Path, names: list[str]) -> None:
    """Write splits of the revised MD17 as extended XYZ, in eV and eV/Angstrom.

    The archive has all structures of a molecule as one .npz, in kcal/mol, and the rows of each
    split as text.

    Args:
        archive: a tar file with ``npz_data/rmd17_MOLECULE.npz`` and ``splits/index_PART.csv``, or
            a folder with them.
        folder: where to write ``MOLECULE/PART.xyz``.
        names: what to write, such as ``aspirin/train_01``.

    Raises:
        ClebschError: the archive lacks something, or is no archive.
    """
    wanted: dict[str, list[str]] = {}
    for name in names:
        molecule, _, part = name.partition("/")
        wanted.setdefault(molecule, []).append(part)
    parts = {part for parts in wanted.values() for part in parts}
    rows: dict[str, np.ndarray] = {}
    for part, file in _members(archive, _SPLITS):
        if part in parts:
            try:
                rows[part] = np.loadtxt(file, dtype=np.int64).ravel()
            except ValueError as error:
                raise ClebschError(
                    f"{archive}: index_{part}.csv: no list of rows: {error}"
                ) from None
    if parts - set(rows):
        raise ClebschError(f"{archive}: has no split {', '.join(sorted(parts - set(rows)))}")
    for molecule, file in _members(archive, _MOLECULES):
        if molecule not in wanted:
            continue
        content = io.BytesIO(file.read())
        (folder / molecule).mkdir(parents=True, exist_ok=True)
        for part in wanted.pop(molecule):
            try:
                frames = _rmd17_frames(content, rows[part])
            except (IndexError, KeyError, ValueError, zipfile.BadZipFile) as error:
                raise ClebschError(f"{archive}: {part} of {molecule}: {error}") from None
            write(folder / molecule / f"{part}.xyz", frames, format="extxyz")
    if wanted:
        raise ClebschError(f"{archive}: has no molecule {', '.join(sorted(wanted))}")


def _rmd17_frames(content: IO[bytes], rows: np.ndarray) -> list[Atoms]:
    content.seek(0)
    frames = []
    with np.load(content, allow_pickle=False) as arrays:
        numbers, positions = arrays["nuclear_charges"], arrays["coords"][rows]
        energies = _KCAL_MOL * arrays["energies"][rows]
        forces = _KCAL_MOL * arrays["forces"][rows]
    for place, energy, force in zip(positions, energies, forces, strict=True):
        atoms = Atoms(numbers, place)
        atoms.calc = SinglePointCalculator(atoms, energy=float(energy), forces=force)
        frames.append(atoms)
    return frames


def _members(archive: Path, pattern: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Members whose path ends with a pattern: what its group matches, and the content."""
    if archive.is_dir():
        for name, path in _places(archive, pattern):
            with path.open("rb") as content:
                yield name, content
        return
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                match = re.search(rf"{pattern}$", member.name)
                file = tar.extractfile(member) if match else None
                if match is not None and file is not None:
                    yield match[1], file
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ClebschError(f"{archive}: cannot be unpacked: {error}") from None


def _places(folder: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    """Files in a folder whose path ends with a pattern: what its group matches, and the path."""
    for path in sorted(folder.rglob("*")):
        match = re.search(rf"{pattern}$", path.as_posix())
        if match is not None and path.is_file():
            yield match[1], path


def _exists(url: str) -> bool:
    try:
        with _opened(urllib.request.Request(url, method="HEAD")):
            return True
    except urllib.error.HTTPError:
        return False
    except (OSError, urllib.error.URLError) as error:
        raise _unreachable(url, error) from None


def _fetch(url: str, path: Path, what: str, progress: Progress | None) -> None:
    """Raise ClebschError unless ``path`` holds all of what is at ``url``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _opened(urllib.request.Request(url)) as (content, total), path.open("wb") as file:
            done = 0
            while chunk := content.read(_CHUNK):
                done += file.write(chunk)
                if progress is not None:
                    progress(done, total, what)
    except (OSError, urllib.error.URLError) as error:
        raise _unreachable(url, error) from None
    if total is not None and done != total:
        raise ClebschError(f"{url}: the connection ended after {done} of {total} bytes; try again")


@contextmanager
def _opened(request: urllib.request.Request) -> Iterator[tuple[IO[bytes], int | None]]:
    """The content and its size, if the server tells."""
    with urllib.request.urlopen(request, timeout=_SECONDS) as response:
        size = response.headers.get("Content-Length")
        yield response, None if size is None else int(size)


def _unreachable(url: str, error: Exception) -> ClebschError:
    reason = getattr(error, "reason", None) or error
    return ClebschError(
        f"{url}: cannot be downloaded ({reason}). Fetch it by other means, and say where it is "
        "with --from FOLDER"
    )
