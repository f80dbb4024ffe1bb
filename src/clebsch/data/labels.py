"""Which keys of a file are labels, and what they say in Clebsch's units and signs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from clebsch.conventions import VOIGT
from clebsch.data.rawframe import RawFrame, shorten
from clebsch.data.units import EXAMPLES, declared_units, unit_factor
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


NO_NUMBER = "no number"

# --- census ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CensusEntry:
    """One key: where it stands, what is under it and how often.

    Attributes:
        key: the name in the file.
        place: "info" (per structure), "arrays" (per atom) or "calculator" (stored results).
        shape: "one number", "[n, 3]" and the like with n for the number of atoms, "varies" where
            frames differ, "no number" for anything else.
        count: frames that have it.
        first: source of the first of them, "path:index".
    """

    key: str
    place: str
    shape: str
    count: int
    first: str


@dataclass(frozen=True)
class Census:
    """All keys in some files.

    Attributes:
        paths: the files.
        n_frames: frames in all of them.
        entries: by place and key.
    """

    paths: tuple[str, ...]
    n_frames: int
    entries: tuple[CensusEntry, ...]

    def describe(self) -> str:
        """One line for messages: each key with its place and count."""
        if not self.entries:
            return "the frames hold nothing but atoms and cells"
        shown = self.entries[:20]
        found = [f"{e.key} ({e.place}, {e.count} of {self.n_frames})" for e in shown]
        if len(self.entries) > len(shown):
            found.append(f"and {len(self.entries) - len(shown)} more keys")
        return "found: " + ", ".join(found)


def take_census(paths: Sequence[Path], frames: Iterable[RawFrame]) -> Census:
    """Counts the keys in ``frames``."""
    seen: dict[tuple[str, str], CensusEntry] = {}
    n_frames = 0
    for frame in frames:
        n_frames += 1
        for place, held in frame.places.items():
            for key, value in held.items():
                shape = _shape(value, len(frame.numbers), per_atom=place == "arrays")
                old = seen.get((place, key))
                if old is None:
                    seen[place, key] = CensusEntry(key, place, shape, 1, frame.source)
                else:
                    shape = shape if shape == old.shape else "varies"
                    seen[place, key] = CensusEntry(key, place, shape, old.count + 1, old.first)
    return Census(tuple(map(str, paths)), n_frames, tuple(seen[key] for key in sorted(seen)))


def _shape(value: Any, n_atoms: int, per_atom: bool) -> str:
    """The shape of a number or an array of numbers; NO_NUMBER for anything else."""
    if isinstance(value, (bool, str, dict, type(None))):
        return NO_NUMBER
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        return NO_NUMBER
    if array.dtype.kind not in "iuf":
        return NO_NUMBER
    if array.ndim == 0:
        return "one number"
    sizes = [str(size) for size in array.shape]
    if per_atom or (array.ndim == 2 and array.shape == (n_atoms, 3)):
        sizes[0] = "n"
    return "[" + ", ".join(sizes) + "]"


# --- which key is which label ---------------------------------------------------------------------


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


def _same_everywhere(candidates: list[str], frames: list[RawFrame]) -> bool:
    """Whether all ``candidates`` are in the same frames with equal values."""
    for frame in frames:
        values = [np.asarray(value) for key in candidates for _, value in frame.lookup(key)[:1]]
        if values and len(values) != len(candidates):
            return False
        if any(not np.array_equal(value, values[0]) for value in values[1:]):
            return False
    return True


# --- what the labels say --------------------------------------------------------------------------


def unit_factors(
    frame: RawFrame, keys: LabelKeys, found: dict[str, str], strict: bool = True
) -> dict[str, float]:
    """What energy, forces, stress and length of the frame are multiplied with.

    Where one of energy, forces and length is not in eV and Angstrom, a label without a unit is not
    taken for one that is.

    Args:
        frame: as its file tells it.
        keys: units that the user names.
        found: keys of the labels that the file has.
        strict: what the file declares may not differ from ``keys``; otherwise it holds.

    Raises:
        DataError: the file declares another unit than ``keys`` says, or none that is known; a label
            needs a unit.
    """
    declared = declared_units(frame)
    units: dict[str, str | None] = {}
    factors = {}
    for quantity in EXAMPLES:
        said, asked = declared.get(quantity), getattr(keys, f"{quantity}_unit")
        unit = units[quantity] = said or asked
        factors[quantity] = 1.0 if unit is None else unit_factor(quantity, unit)
        if strict and asked is not None and unit_factor(quantity, asked) != factors[quantity]:
            raise DataError(
                f"{frame.where}: declares the {quantity} in {said}, not in {asked}, as "
                f"{quantity}_unit says"
            )
    other = [str(units[name]) for name in ("energy", "forces", "length") if factors[name] != 1]
    for label in QUANTITIES:
        quantity = "energy" if label == "virial" else label
        if other and not units[quantity] and label in found and frame.lookup(found[label]):
            raise DataError(
                f"{frame.where}: beside {other[0]}, say the unit of the {label} too: "
                f"{how_to_say_units(**{quantity: 'UNIT'})} ({EXAMPLES[quantity]})"
            )
    return factors


def how_to_say_units(**units: str) -> str:
    """How a user says in which units what files hold is, by quantity."""
    options = " ".join(f"--{quantity}-unit {unit}" for quantity, unit in units.items())
    settings = " ".join(f"data.keys.{quantity}_unit={unit}" for quantity, unit in units.items())
    return f"{options}, in a training {settings}"


def label_value(frame: RawFrame, key: str | None, one_number: bool = False) -> np.ndarray | None:
    """The number or numbers under ``key`` as float64; None where the frame does not have it.

    Where one number is asked for, another place may have one for each atom under the same name,
    such as atoms' shares of the energy.

    Raises:
        DataError: it is not numbers, or stands in two places with different values.
    """
    found = [] if key is None else frame.lookup(key)
    if one_number and len(found) > 1:
        found = [(place, value) for place, value in found if np.size(value) == 1] or found
    if not found:
        return None
    place, value = found[0]
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "iuf":
            raise ValueError
        numbers = array.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"{frame.where}: key {key!r} is not a number: {shorten(value)}") from error
    for other_place, other in found[1:]:
        if not np.array_equal(numbers, np.asarray(other)):
            raise DataError(
                f"{frame.where}: key {key!r} stands in {place} and in {other_place} with "
                "different values"
            )
    return numbers


def scalar_label(frame: RawFrame, key: str | None, what: str, factor: float = 1.0) -> float | None:
    """A finite number per structure, times ``factor``."""
    value = label_value(frame, key, one_number=True)
    if value is None:
        return None
    if value.size != 1:
        raise DataError(
            f"{frame.where}: the {what} key {key!r} has shape {value.shape}, not one number"
        )
    number = float(value.reshape(()))
    if not np.isfinite(number):
        raise DataError(f"{frame.where}: the {what} key {key!r} is {number}")
    return number * factor


def weight_label(frame: RawFrame, key: str | None, what: str) -> float:
    """A weight, 1 where the frame has none."""
    value = scalar_label(frame, key, what)
    if value is not None and value < 0:
        raise DataError(f"{frame.where}: the {what} key {key!r} is negative: {value}")
    return 1.0 if value is None else value


def forces_label(frame: RawFrame, key: str | None, factor: float) -> np.ndarray | None:
    """[n, 3] finite forces in eV/Angstrom, which ``factor`` makes of those in the file."""
    value = label_value(frame, key)
    if value is None:
        return None
    if value.shape != (len(frame.numbers), 3):
        raise DataError(
            f"{frame.where}: the forces key {key!r} has shape {list(value.shape)}, "
            f"not [{len(frame.numbers)}, 3]"
        )
    bad = np.argwhere(~np.isfinite(value))
    if len(bad):
        atom, axis = (int(index) for index in bad[0])
        raise DataError(
            f"{frame.where}: the forces key {key!r} is {value[atom, axis]} for "
            f"{frame.atom(atom)}, component {'xyz'[axis]}"
        )
    return value * factor


def stress_label(
    frame: RawFrame, keys: LabelKeys, found: dict[str, str], factors: dict[str, float]
) -> np.ndarray | None:
    """[3, 3] stress in eV/Angstrom^3 with ASE's sign, from a stress or else from a virial.

    ``factors`` make eV/Angstrom^3 of the stress and eV of the virial (that of the energy).
    """
    stress = _symmetric_label(frame, found.get("stress"), "stress", factors["stress"])
    virial = _symmetric_label(frame, found.get("virial"), "virial", factors["energy"])
    if stress is None and virial is None:
        return None
    volume = abs(np.linalg.det(frame.cell))
    if volume < 1e-6:
        what = "stress" if stress is not None else "virial"
        raise DataError(
            f"{frame.where}: the {what} key {found[what]!r} of a frame without a cell of three "
            f"independent vectors: there is no volume to refer it to. To leave it out: "
            f"{how_to_name(what, NOT_READ)}"
        )
    if stress is not None and keys.stress_convention == "negative":
        stress = -stress
    if virial is not None:
        sign = -1.0 if keys.virial_convention == "virial" else 1.0
        from_virial = sign * virial / volume
        if stress is None:
            return from_virial
        scale = max(np.abs(stress).max(), np.abs(from_virial).max())
        if np.abs(stress - from_virial).max() > 1e-3 * scale + 1e-6:
            raise DataError(
                f"{frame.where}: the stress key {found['stress']!r} and the virial key "
                f"{found['virial']!r} disagree (stress xx {stress[0, 0]:.6g}, from the virial "
                f"{from_virial[0, 0]:.6g} eV/A^3): give their conventions, or ask for one by key"
            )
    return stress


def _symmetric_label(
    frame: RawFrame, key: str | None, what: str, factor: float
) -> np.ndarray | None:
    """A stress-like label as a symmetric [3, 3], times ``factor``."""
    value = label_value(frame, key)
    if value is None:
        return None
    if value.shape == (6,):
        full = np.empty((3, 3))
        for (row, column), entry in zip(VOIGT, value, strict=True):
            full[row, column] = full[column, row] = entry
    elif value.shape in ((9,), (3, 3)):
        full = value.reshape(3, 3)
    else:
        raise DataError(
            f"{frame.where}: the {what} key {key!r} has shape {list(value.shape)}, "
            "not [3, 3], [9] or [6]"
        )
    if not np.isfinite(full).all():
        raise DataError(f"{frame.where}: the {what} key {key!r} holds nan or infinity")
    if np.abs(full - full.T).max() > 1e-3 * np.abs(full).max() + 1e-6:
        raise DataError(f"{frame.where}: the {what} key {key!r} is not symmetric: {full.tolist()}")
    return (full + full.T) * (factor / 2)
