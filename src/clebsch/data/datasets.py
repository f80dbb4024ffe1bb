"""Published data sets by name: where their files lie, and whether they are what was published.

``datasets.json`` holds the facts, which were read from the files themselves: numbers of structures,
energies, forces, SHA-256 of what a file unpacks to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from clebsch.data.extxyz import BROKEN_STREAM, OPENERS
from clebsch.data.frame import Frame
from clebsch.data.read import read_frames
from clebsch.errors import ConfigError, DataError, did_you_mean

#: Names that a file may have behind its stem.
_SUFFIXES = tuple(f".{kind}{packed}" for kind in ("xyz", "extxyz") for packed in ("", *OPENERS))

#: How far a file's own figures may be from the published ones: mean energies relatively (a
#: kcal/mol is converted by 23.06, 23.0605, 23.061 or all its digits), eV, eV/Angstrom. What is
#: within the first and another calculation differs in the other two.
_MEAN_TOLERANCE, _STD_TOLERANCE, _FORCES_TOLERANCE = 3e-5, 1e-4, 1e-4
#: The ratio of eV to kcal/mol.
_KCAL = 23.06


class DataFile(BaseModel):
    """A file of a data set.

    Attributes:
        about: what is in it.
        frames: how many structures; None if that is not known.
        formulas: of its structures, in Hill's order.
        energy_mean, energy_std: of the total energies, eV; None if they are not known.
        forces_rms: root mean square of the force components, eV/Angstrom; None without forces.
        sha256: of the file that these facts were read from, unpacked; None if none was.
        url: where it can be downloaded; None if not by itself.
        optional: whether the set is complete without it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str
    frames: int | None = None
    formulas: tuple[str, ...] = ()
    energy_mean: float | None = None
    energy_std: float | None = None
    forces_rms: float | None = None
    sha256: str | None = None
    url: str | None = None
    optional: bool = False


class DataSet(BaseModel):
    """A published data set; energies in eV, lengths in Angstrom.

    Attributes:
        title: what it is of, and at which level of theory.
        source: where it is published.
        licence: of the data.
        folders: names that its folder may have.
        archive: address of one file that holds all of it, or None.
        files: by their names without suffix; ``aspirin/train_01`` lies in a folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    source: str
    licence: str
    folders: tuple[str, ...]
    archive: str | None = None
    files: Mapping[str, DataFile]


@dataclass(frozen=True)
class FoundFile:
    """What became of one file of a data set.

    Attributes:
        name: in the set.
        path: where it was found; None if it is missing.
        verdict: "exact": byte for byte the file that the facts were read from; "same": another one
            with the same structures and labels, as far as counts and statistics tell; "missing".
    """

    name: str
    path: Path | None
    verdict: Literal["exact", "same", "missing"]


@cache
def data_sets() -> dict[str, DataSet]:
    """All that are known, by name."""
    return read_data_sets(Path(__file__).with_name("datasets.json"))


def read_data_sets(path: Path) -> dict[str, DataSet]:
    """Data sets as a JSON file describes them."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {name: DataSet.model_validate(entry) for name, entry in entries.items()}


def data_set(name: str) -> DataSet:
    """The data set of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in data_sets():
        raise ConfigError(f"unknown data set {name!r}. {did_you_mean(name, data_sets())}")
    return data_sets()[name]


def find_files(
    data: DataSet, folder: Path, names: Sequence[str] | None = None
) -> dict[str, FoundFile]:
    """Look for files and make sure that they are the published ones.

    Args:
        data: which set.
        folder: of the set, or the folder that its folder lies in.
        names: files to look for; all if None.

    Returns:
        What was found, by name.

    Raises:
        DataError: the folder does not exist, or a file is not what was published; it says in what.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found = {}
    for name in data.files if names is None else names:
        path = next((path for path in _places(data, folder, name) if path.is_file()), None)
        verdict = None if path is None else _verdict(data.files[name], path)
        found[name] = FoundFile(name, path, verdict or "missing")
    return found


def required_files(data: DataSet, folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The paths of files that must be there.

    Raises:
        DataError: one is missing, or is not what was published.
    """
    paths = {}
    for name, found in find_files(data, folder, names).items():
        if found.path is None:
            looked = ", ".join(str(folder / one) for one in ("", *data.folders))
            raise DataError(
                f"{name}.xyz is in none of {looked} (nor packed: .xyz.xz, .xyz.gz, .xyz.bz2). "
                + (as_published(data, folder) or f"It is published at {data.source}")
            )
        paths[name] = found.path
    return paths


def as_published(data: DataSet, folder: Path) -> str:
    """What makes files of the unpacked archive that a folder holds; "" if it holds none."""
    patterns = ("*", "npz_data/*", "*/npz_data/*")
    if data.archive is None or not any(any(folder.glob(f"{p}.npz")) for p in patterns):
        return ""
    name = data.folders[0]
    return (
        f"{folder} holds .npz files, as they are published: clebsch data {name} --from {folder} "
        "--to data makes the files of them that are looked for\n"
    )


def _places(data: DataSet, folder: Path, name: str) -> Iterator[Path]:
    for inner in ("", *data.folders):
        for suffix in _SUFFIXES:
            yield folder / inner / f"{name}{suffix}"


def _verdict(facts: DataFile, path: Path) -> Literal["exact", "same"]:
    """How a file was found to be the published one.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        with OPENERS.get(path.suffix, open)(path, "rb") as file:
            content = file.read()
    except BROKEN_STREAM as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if facts.sha256 is not None and hashlib.sha256(content).hexdigest() == facts.sha256:
        return "exact"
    problem = difference(facts, read_frames(path, pbc="none"))
    if problem is not None:
        raise DataError(f"{path}: not the published file: {problem}")
    return "same"


def difference(facts: DataFile, frames: Sequence[Frame]) -> str | None:
    """In what structures differ from the published ones; None if in nothing that is known."""
    if facts.frames is not None and len(frames) != facts.frames:
        return f"{len(frames)} structures instead of {facts.frames}"
    formulas = {frame.formula for frame in frames}
    if facts.formulas and formulas != set(facts.formulas):
        return f"structures of {', '.join(sorted(formulas))}, not of {', '.join(facts.formulas)}"
    if facts.energy_mean is not None and facts.energy_std is not None:
        energies = np.array([frame.energy for frame in frames if frame.energy is not None])
        if len(energies) < len(frames):
            return f"{len(frames) - len(energies)} structures without energy"
        mean, std = float(energies.mean()), float(energies.std())
        if abs(mean / facts.energy_mean / _KCAL - 1) < 1e-3:
            return "energies in kcal/mol; eV are expected"
        if abs(mean - facts.energy_mean) > _MEAN_TOLERANCE * abs(facts.energy_mean):
            return f"a mean energy of {mean:.4f} eV instead of {facts.energy_mean:.4f}"
        if abs(std - facts.energy_std) > _STD_TOLERANCE:
            return f"energies that spread by {std:.4f} eV instead of {facts.energy_std:.4f}"
    if facts.forces_rms is not None:
        forces = [frame.forces for frame in frames if frame.forces is not None]
        if len(forces) < len(frames):
            return f"{len(frames) - len(forces)} structures without forces"
        rms = float(np.sqrt(np.mean(np.concatenate([f.ravel() for f in forces]) ** 2)))
        if abs(rms - facts.forces_rms) > _FORCES_TOLERANCE:
            return f"forces of {rms:.4f} eV/Å root mean square instead of {facts.forces_rms:.4f}"
    return None
