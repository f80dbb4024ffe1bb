"""Chemical elements by their symbols."""

from __future__ import annotations

from ase.data import chemical_symbols

from clebsch.errors import ConfigError, did_you_mean

#: All symbols; ASE's list begins with X, which stands for no element.
ELEMENTS = tuple(chemical_symbols[1:])


def check_element(symbol: str) -> None:
    """Refuse what is no symbol of an element.

    Raises:
        ConfigError: it says which symbol is nearest.
    """
    if symbol not in ELEMENTS:
        raise ConfigError(f"{symbol!r} is not an element. {did_you_mean(symbol, ELEMENTS)}")
