"""Fetching published data sets from where they are published."""

from __future__ import annotations

import io
import re
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from clebsch.data.datasets import DataSet, find_files
from clebsch.errors import ClebschError

#: ``progress(done, total, what)``, in bytes; a total of None is not known.
Progress = Callable[[int, int | None, str], None]

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
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name, one in find_files(data, folder).items() if one.path is None]
    if not missing:
        return []
    home = folder / data.folders[0]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
        new = Path(scratch) / data.folders[0]
        if data.archive is not None:
            archive = Path(scratch) / "archive"
            _fetch(data.archive, archive, "archive", progress)
            unpack_rmd17(archive, new, missing)
        else:
            for name in missing:
                url = data.files[name].url
                if url is not None and not (data.files[name].optional and not _exists(url)):
                    _fetch(url, new / f"{name}.xyz", name, progress)
        paths = []
        for found in find_files(data, Path(scratch), missing).values():
            if found.path is not None:
                path = home / found.path.relative_to(new)
                path.parent.mkdir(parents=True, exist_ok=True)
                paths.append(found.path.replace(path))
        return paths


def unpack_rmd17(archive: Path, folder: Path, names: list[str]) -> None:
    """Write splits of the revised MD17 as extended XYZ, in eV and eV/Angstrom.

    The archive has all structures of a molecule as one .npz, in kcal/mol, and the rows of each
    split as text.

    Args:
        archive: a tar file with ``npz_data/rmd17_MOLECULE.npz`` and ``splits/index_PART.csv``.
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
    for part, file in _members(archive, r"splits/index_(\w+)\.csv"):
        if part in parts:
            rows[part] = np.loadtxt(file, dtype=np.int64).ravel()
    if parts - set(rows):
        raise ClebschError(f"{archive}: has no split {', '.join(sorted(parts - set(rows)))}")
    for molecule, file in _members(archive, r"npz_data/rmd17_(\w+)\.npz"):
        if molecule not in wanted:
            continue
        content = io.BytesIO(file.read())
        (folder / molecule).mkdir(parents=True, exist_ok=True)
        for part in wanted.pop(molecule):
            frames = _rmd17_frames(content, rows[part])
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
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                match = re.search(rf"{pattern}$", member.name)
                file = tar.extractfile(member) if match else None
                if match is not None and file is not None:
                    yield match[1], file
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ClebschError(f"{archive}: cannot be unpacked: {error}") from None


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
