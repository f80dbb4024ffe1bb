"""Reading labelled structures: ``read_frames`` for the frames, ``census`` for what files hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from ase.calculators.calculator import all_properties

from clebsch.data.census import Census, CensusEntry, take_census
from clebsch.data.formats import iter_raw_frames
from clebsch.data.frame import WEIGHTS, Frame
from clebsch.data.label_values import (
    forces_label,
    scalar_label,
    stress_label,
    unit_factors,
    weight_label,
)
from clebsch.data.labels import LabelKeys, resolve_keys
from clebsch.data.rawframe import RawFrame
from clebsch.data.references import calls_itself_isolated
from clebsch.data.units import declared_quantity
from clebsch.errors import DataError

__all__ = ["Census", "CensusEntry", "LabelKeys", "census", "read_frames", "read_with_census"]

Paths = Path | str | Sequence[Path | str]


def read_frames(
    paths: Paths,
    keys: LabelKeys | None = None,
    *,
    pbc: Literal["file", "none"] = "file",
    strict: bool = True,
) -> list[Frame]:
    """All frames of one or several files, with the labels that ``keys`` finds in them.

    Extended XYZ (also .xz, .gz, .bz2), .npz, ASE databases, and what else ASE reads. Units that
    ``keys`` or the files themselves name are converted.

    Args:
        paths: a file or several.
        keys: where the labels are; by their usual names if None. Keys are looked for file by file.
        pbc: "file" as the files say; "none" reads every structure as a molecule: no cell, not
            periodic, and no stress unless it is asked for. For dummy boxes around molecules.
        strict: a key that is asked for has to be there, and units may not be others than the file
            declares. Otherwise, in a file that does not have the key, the label is looked for under
            its usual names, and what the file declares holds.

    Returns:
        The frames in the order of the files. A label that a frame lacks, or that has the weight
        0, is None.

    Raises:
        DataError: a file is missing, empty, truncated or malformed; a key that was asked for is
            nowhere, or which of several is meant is unclear; a label has a wrong shape, is
            asymmetric, nan or infinite, or a weight negative; a stress comes without a cell; a file
            declares an unknown unit, or another than ``keys``.
    """
    return read_with_census(paths, keys, pbc=pbc, strict=strict)[0]


def read_with_census(
    paths: Paths,
    keys: LabelKeys | None = None,
    *,
    pbc: Literal["file", "none"] = "file",
    strict: bool = True,
) -> tuple[list[Frame], Census]:
    """The frames as ``read_frames`` gives them and the census of their files, read once."""
    keys = LabelKeys() if keys is None else keys
    files = {path: list(iter_raw_frames(path)) for path in path_list(paths)}
    if pbc == "none":
        unasked = {"stress": keys.stress or "none", "virial": keys.virial or "none"}
        keys = keys.model_copy(update=unasked)
    resolved = resolve_keys(keys, files, strict)
    frames = [
        _to_frame(raw, keys, resolved[path], pbc == "none", strict)
        for path, raws in files.items()
        for raw in raws
    ]
    everything = take_census(list(files), (raw for raws in files.values() for raw in raws))
    return frames, everything


def census(paths: Paths) -> Census:
    """Which keys the files hold, where, in which shape and in how many frames.

    Raises:
        DataError: a file is missing, empty, truncated or malformed.
    """
    listed = path_list(paths)
    return take_census(listed, (raw for path in listed for raw in iter_raw_frames(path)))


def path_list(paths: Paths) -> list[Path]:
    """The files as a list.

    Raises:
        DataError: there are none, or one is given twice.
    """
    listed = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    if not listed:
        raise DataError("no files to read were given")
    for number, path in enumerate(listed):
        if path in listed[:number]:
            raise DataError(f"{path}: given twice")
    return listed


def _to_frame(
    raw: RawFrame, keys: LabelKeys, found: dict[str, str], molecule: bool, strict: bool
) -> Frame:
    factors = unit_factors(raw, keys, found, strict)
    length = factors["length"]
    raw = replace(raw, positions=raw.positions * length, cell=raw.cell * length)
    if molecule:
        raw = replace(raw, cell=np.zeros((3, 3)), pbc=np.zeros(3, dtype=bool))
    _check_geometry(raw)
    used = set(found.values())
    weights = {kind: weight_label(raw, found.get(kind), kind) for kind in WEIGHTS}
    left_out = _left_out(raw, weights, found)
    energy = forces = stress = None
    if "energy" not in left_out:
        energy = scalar_label(raw, found.get("energy"), "energy", factors["energy"])
    if "forces" not in left_out:
        forces = forces_label(raw, found.get("forces"), factors["forces"])
    if "stress" not in left_out:
        stress = stress_label(raw, keys, found, factors)
    return Frame(
        numbers=raw.numbers,
        positions=raw.positions,
        cell=raw.cell,
        pbc=raw.pbc,
        energy=energy,
        forces=forces,
        stress=stress,
        free_energy=_free_energy(raw, factors["energy"]),
        **weights,
        left_out=left_out,
        source=raw.source,
        info={key: value for key, value in raw.info.items() if key not in used and _stays(key)},
    )


def _stays(key: str) -> bool:
    """Whether what a file says under this key, which is no label, still holds for the frame."""
    # ASE refuses to write info keys that a calculator also has
    return key not in all_properties and declared_quantity(key) is None


def _free_energy(raw: RawFrame, factor: float) -> float | None:
    for _, value in raw.lookup("free_energy"):
        if isinstance(value, (int, float, np.number)) and np.isfinite(value):
            return float(value) * factor
    return None


def _left_out(raw: RawFrame, weights: dict[str, float], found: dict[str, str]) -> tuple[str, ...]:
    """The labels that are there with the weight 0.

    The energy of what calls itself an isolated atom is a reference, whatever it weighs in a loss.
    """
    places = {"energy": ("energy",), "forces": ("forces",), "stress": ("stress", "virial")}
    left_out = [
        label
        for label, names in places.items()
        if weights["weight"] * weights[f"{label}_weight"] == 0
        and any(raw.lookup(found[name]) for name in names if name in found)
    ]
    if len(raw.numbers) == 1 and calls_itself_isolated(raw.info) and "energy" in left_out:
        left_out.remove("energy")
    return tuple(left_out)


def _check_geometry(raw: RawFrame) -> None:
    bad = np.argwhere(~np.isfinite(raw.positions))
    if len(bad):
        atom, axis = (int(index) for index in bad[0])
        raise DataError(
            f"{raw.where}: the position of {raw.atom(atom)} is {raw.positions[atom, axis]} "
            f"along {'xyz'[axis]}"
        )
    if raw.numbers.min() < 1:
        raise DataError(f"{raw.where}: atom {int(raw.numbers.argmin())} is not an element")
    if not np.isfinite(raw.cell).all():
        raise DataError(f"{raw.where}: the cell holds nan or infinity: {raw.cell.tolist()}")
    if raw.pbc.any():
        periodic = raw.cell[raw.pbc]
        lengths = np.linalg.norm(periodic, axis=1)
        volume = 0.0
        if lengths.min() > 0:
            unit = periodic / lengths[:, None]
            volume = float(np.sqrt(max(np.linalg.det(unit @ unit.T), 0.0)))
        if volume < 1e-4:
            raise DataError(
                f"{raw.where}: periodic (pbc {raw.pbc.tolist()}) without independent cell "
                f"vectors: {raw.cell.tolist()}; molecules are read with --pbc none, in a training "
                "data.pbc=none"
            )
