"""Chemical elements by their symbols."""

from __future__ import annotations

from ase.data import chemical_symbols

from clebsch.errors import did_you_mean

#: All symbols; ASE's list begins with X, which stands for no element.
ELEMENTS = tuple(chemical_symbols[1:])


def not_an_element(symbol: str) -> str | None:
    """The error message for a symbol that is not an element; None for an element."""
    if symbol in ELEMENTS:
        return None
    return f"{symbol!r} is not an element. {did_you_mean(symbol, ELEMENTS)}"
