"""What labels say, in Clebsch's units and signs."""

from __future__ import annotations

import numpy as np

from clebsch.conventions import VOIGT
from clebsch.data.labels import (
    NOT_READ,
    QUANTITIES,
    LabelKeys,
    how_to_name,
    how_to_say_units,
)
from clebsch.data.rawframe import RawFrame, shorten
from clebsch.data.units import EXAMPLES, declared_units, unit_factor
from clebsch.errors import DataError


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
