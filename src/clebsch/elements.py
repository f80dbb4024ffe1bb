"""Chemical elements by their symbols."""

from __future__ import annotations

from collections.abc import Iterable

from ase.data import chemical_symbols

from clebsch.errors import UnknownElementError, did_you_mean

#: All symbols; ASE's list begins with X, which stands for no element.
ELEMENTS = tuple(chemical_symbols[1:])


def not_an_element(symbol: str) -> str | None:
    """The error message for a symbol that is not an element; None for an element."""
    if symbol in ELEMENTS:
        return None
    return f"{symbol!r} is not an element. {did_you_mean(symbol, ELEMENTS)}"


def unknown_element(
    symbol: str, where: str, known: Iterable[str], model: str = "this model"
) -> UnknownElementError:
    """The error of an element that a model was not built for.

    Args:
        symbol: of the element.
        where: it was met.
        known: symbols of the elements that the model was built for.
        model: in words.
    """
    return UnknownElementError(
        f"element {symbol} ({where}) is unknown to {model}, which knows {', '.join(known)}"
    )
