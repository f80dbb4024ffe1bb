"""Which keys of a file are labels."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from clebsch.data.census import NO_NUMBER, Census, take_census
from clebsch.data.rawframe import RawFrame
from clebsch.data.units import unit_factor
from clebsch.errors import DataError, did_you_mean

#: The word that turns a label off: it is then not read, whatever the file holds.
NOT_READ = "none"

#: Names under which labels are found without being asked for; upper and lower case are the same.
ALIASES: dict[str, tuple[str, ...]] = {
    "energy": (
        "energy", "ref_energy", "dft_energy", "qm_energy", "totenergy", "total_energy",
        "energy_total",
    ),
    "forces": ("forces", "force", "ref_forces", "ref_force", "dft_forces", "dft_force",
               "qm_forces"),
    "stress": ("stress", "ref_stress", "dft_stress"),
    "virial": ("virial", "virials", "ref_virial", "ref_virials", "dft_virial", "dft_virials"),
    # not "weight" alone, which may as well be a mass
    "weight": ("config_weight",),
    "energy_weight": ("energy_weight", "config_energy_weight"),
    "forces_weight": ("forces_weight", "force_weight", "config_forces_weight"),
    # a virial is read as a stress, and so are its weights
    "stress_weight": (
        "stress_weight", "config_stress_weight", "virial_weight", "virials_weight",
        "config_virial_weight", "config_virials_weight",
    ),
}  # fmt: skip

#: More names that are as clear as that in an .npz file only.
NPZ_ALIASES = {"energy": ("e", "energies"), "forces": ("f",)}


#: Labels that are not weights: commands have an option for the key of each.
QUANTITIES = ("energy", "forces", "stress", "virial")


class LabelKeys(BaseModel):
    """Under which keys the labels are.

    None finds a key by its usual names (``ALIASES``); "none" does not read the label. A key that
    is asked for and found nowhere is an error; so are several usual names with different values.

    Attributes:
        energy: total energy of the structure, eV.
        forces: eV/Angstrom.
        stress: eV/Angstrom^3, as 3x3, as 9 numbers, or as 6 in the order xx, yy, zz, yz, xz, xy.
        virial: eV, shaped like the stress; used where there is no stress.
        stress_convention: "ase" for +(dE/d strain)/volume; "negative" for its opposite, which is
            positive under compression (VASP's and most codes' pressure).
        virial_convention: "virial" for -dE/d strain; "dE_dstrain" for +dE/d strain.
        energy_unit: of energies and virials in the files: eV, Hartree, Rydberg, kcal/mol or kJ/mol.
            None: what a file declares, eV if it declares nothing; so for the units below.
        forces_unit: an energy over a length, such as Hartree/Bohr or kcal/mol/Angstrom.
        stress_unit: such as GPa, kbar or Hartree/Bohr^3.
        length_unit: of positions and cells: Angstrom, Bohr or nm.
        weight: factor on all loss terms of the structure; a key named "weight" must be asked for.
        energy_weight: factor on its energy term.
        forces_weight: factor on its forces term.
        stress_weight: factor on its stress term.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virial: str | None = None
    stress_convention: Literal["ase", "negative"] = "ase"
    virial_convention: Literal["virial", "dE_dstrain"] = "virial"
    energy_unit: str | None = None
    forces_unit: str | None = None
    stress_unit: str | None = None
    length_unit: str | None = None
    weight: str | None = None
    energy_weight: str | None = None
    forces_weight: str | None = None
    stress_weight: str | None = None

    @field_validator("energy_unit", "forces_unit", "stress_unit", "length_unit")
    @classmethod
    def _is_a_unit(cls, unit: str | None, info: ValidationInfo) -> str | None:
        if unit is not None:
            unit_factor(str(info.field_name).removesuffix("_unit"), unit)
        return unit


def resolve_keys(
    keys: LabelKeys, files: dict[Path, list[RawFrame]], strict: bool = True
) -> dict[Path, dict[str, str]]:
    """The key of each label that each file has.

    Unless ``strict``, a label whose key a file does not have is looked for under its usual names.

    Raises:
        DataError: a key that was asked for is in none of the files; a file has a label under
            several usual names with different values, or not under the name asked for but
            under a usual one.
    """
    censuses = {path: take_census([path], frames) for path, frames in files.items()}
    resolved: dict[Path, dict[str, str]] = {path: {} for path in files}
    for path, frames in files.items():
        wanted = keys if strict else _those_held(keys, censuses[path])
        for label in ALIASES:
            asked = getattr(wanted, label)
            if asked == NOT_READ:
                continue
            if asked is not None:
                _require(label, asked, censuses)
            key = _resolve(label, asked, censuses[path], frames)
            if key is not None:
                resolved[path][label] = key
        # who asks for one of stress and virial does not want the other
        if wanted.stress not in (None, NOT_READ) and wanted.virial is None:
            resolved[path].pop("virial", None)
        if wanted.virial not in (None, NOT_READ) and wanted.stress is None:
            resolved[path].pop("stress", None)
    return resolved


def _those_held(keys: LabelKeys, census: Census) -> LabelKeys:
    """``keys`` without those that the file does not have."""
    held = {entry.key for entry in census.entries}
    absent = [label for label in ALIASES if getattr(keys, label) not in held | {None, NOT_READ}]
    return keys.model_copy(update=dict.fromkeys(absent))


def _require(label: str, asked: str, censuses: dict[Path, Census]) -> None:
    if any(entry.key == asked for census in censuses.values() for entry in census.entries):
        return
    found = {
        entry.key: None
        for census in censuses.values()
        for entry in census.entries
        if entry.shape != NO_NUMBER
    }
    where = "; ".join(f"{path}: {census.describe()}" for path, census in censuses.items())
    names = ", ".join(str(path) for path in censuses)
    raise DataError(
        f"{names}: no frame has the {label} key {asked!r}. {did_you_mean(asked, found)} ({where})"
    )


def _resolve(label: str, asked: str | None, census: Census, frames: list[RawFrame]) -> str | None:
    path = census.paths[0]
    usual = ALIASES[label]
    if path.endswith(".npz"):
        usual += NPZ_ALIASES.get(label, ())
    held = list(dict.fromkeys(entry.key for entry in census.entries))
    candidates = [key for key in held if key.lower() in usual]
    if asked in held:
        return asked
    if asked is not None and candidates and label in QUANTITIES:
        raise DataError(
            f"{path}: no frame has the {label} key {asked!r}, but there is "
            f"{' and '.join(map(repr, candidates))} ({census.describe()}): give all files the "
            "same key, or leave the files without this label out"
        )
    if asked is not None or not candidates:
        return None
    if len(candidates) > 1 and not _same_everywhere(candidates, frames):
        which = "which are not the same"
        if not any(sum(map(bool, map(frame.lookup, candidates))) > 1 for frame in frames):
            which = "of which no frame has two; frames without the one that you name have no label"
        raise DataError(
            f"{path}: the {label} may be any of {', '.join(map(repr, candidates))}, {which}; say "
            f"which with {how_to_name(label, 'KEY')} ({census.describe()})"
        )
    return label if label in candidates else candidates[0]


def how_to_name(label: str, key: str) -> str:
    """How a user says where a label is."""
    setting = f"data.keys.{label}={key}"
    if label in QUANTITIES:
        return f"--{label}-key {key}, in a training {setting}"
    return setting


def how_to_say_units(**units: str) -> str:
    """How a user says in which units what files hold is, by quantity."""
    options = " ".join(f"--{quantity}-unit {unit}" for quantity, unit in units.items())
    settings = " ".join(f"data.keys.{quantity}_unit={unit}" for quantity, unit in units.items())
    return f"{options}, in a training {settings}"


def _same_everywhere(candidates: list[str], frames: list[RawFrame]) -> bool:
    """Whether all ``candidates`` are in the same frames with equal values."""
    for frame in frames:
        values = [np.asarray(value) for key in candidates for _, value in frame.lookup(key)[:1]]
        if values and len(values) != len(candidates):
            return False
        if any(not np.array_equal(value, values[0]) for value in values[1:]):
            return False
    return True
