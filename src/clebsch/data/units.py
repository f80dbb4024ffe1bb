"""Units that files may be in, and the factors that make eV and Angstrom of them."""

from __future__ import annotations

import numpy as np
from ase import units

from clebsch.data.rawframe import RawFrame, shorten
from clebsch.errors import DataError

_ENERGIES = {
    "ev": 1.0,
    "hartree": units.Hartree,
    "ha": units.Hartree,
    "rydberg": units.Rydberg,
    "ry": units.Rydberg,
    "kcal/mol": units.kcal / units.mol,
    "kj/mol": units.kJ / units.mol,
}
_LENGTHS = {
    **dict.fromkeys(("angstrom", "angstroms", "ang", "a", "å"), 1.0),
    "bohr": units.Bohr,
    "nm": units.nm,
}
_PRESSURES = {"gpa": units.GPa, "kbar": 1e3 * units.bar, "bar": units.bar}

#: What each quantity's unit may be, as messages say it.
EXAMPLES = {
    "energy": "eV, Hartree, Rydberg, kcal/mol or kJ/mol",
    "forces": "an energy over a length, such as eV/Angstrom, Hartree/Bohr or kcal/mol/Angstrom",
    "stress": "eV/Angstrom^3, Hartree/Bohr^3, GPa, kbar or bar",
    "length": "Angstrom, Bohr or nm",
}

#: Under which names, without an s at the end, files declare the unit of which quantity.
_DECLARATIONS = {
    **dict.fromkeys(("energy_unit", "e_unit"), "energy"),
    **dict.fromkeys(("forces_unit", "force_unit", "f_unit"), "forces"),
    "stress_unit": "stress",
    **dict.fromkeys(("length_unit", "position_unit", "r_unit"), "length"),
}


#: What files that Clebsch writes declare.
DECLARED = {
    "energy_unit": "eV",
    "forces_unit": "eV/Angstrom",
    "stress_unit": "eV/Angstrom^3",
    "length_unit": "Angstrom",
}


def unit_factor(quantity: str, unit: str) -> float:
    """What a number in ``unit`` is multiplied with; upper and lower case are the same.

    Args:
        quantity: a key of ``EXAMPLES``.
        unit: its name, such as "kcal/mol/Angstrom".

    Raises:
        ValueError: no such unit.
    """
    name = unit.lower().replace(" ", "").replace("**", "^").replace("³", "^3")
    over, _, under = name.rpartition("/")
    if quantity == "energy" and name in _ENERGIES:
        return _ENERGIES[name]
    if quantity == "length" and name in _LENGTHS:
        return _LENGTHS[name]
    if quantity == "forces" and over in _ENERGIES and under in _LENGTHS:
        return _ENERGIES[over] / _LENGTHS[under]
    if quantity == "stress" and name in _PRESSURES:
        return _PRESSURES[name]
    cubed = under.removesuffix("^3")
    if quantity == "stress" and cubed != under and over in _ENERGIES and cubed in _LENGTHS:
        return _ENERGIES[over] / _LENGTHS[cubed] ** 3
    raise ValueError(f"{shorten(unit)} is no unit of {quantity}: {EXAMPLES[quantity]}")


def declared_quantity(key: str) -> str | None:
    """The quantity whose unit files declare under ``key``; None if it is no such name."""
    return _DECLARATIONS.get(key.lower().removesuffix("s"))


def declared_units(frame: RawFrame) -> dict[str, str]:
    """The units that the file itself declares for this frame, by quantity.

    Raises:
        DataError: a declaration is no known unit, or two differ.
    """
    declared: dict[str, str] = {}
    for held in frame.places.values():
        for key, value in held.items():
            quantity = declared_quantity(key)
            if quantity is None:
                continue
            for unit in _texts(value):
                try:
                    factor = unit_factor(quantity, unit)
                except ValueError as error:
                    raise DataError(f"{frame.where}: key {key!r}: {error}") from None
                if factor != unit_factor(quantity, declared.setdefault(quantity, unit)):
                    raise DataError(
                        f"{frame.where}: declares the {quantity} in {declared[quantity]} and, "
                        f"under {key!r}, in {unit}"
                    )
    return declared


def _texts(value: object) -> list[str]:
    """The text of a value, or those of an array of values, however deep."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _texts(item)]
    return [(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip()]
