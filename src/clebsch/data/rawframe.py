"""One frame as a file tells it, before anything in it is taken for a label."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import chemical_symbols


@dataclass(frozen=True, eq=False)
class RawFrame:
    """What one frame of a file holds, whatever the format.

    Attributes:
        numbers: [n] int64, atomic numbers.
        positions: [n, 3] float64, Angstrom.
        cell: [3, 3] float64, rows are lattice vectors; zeros without a cell.
        pbc: [3] bool.
        info: what is said about the structure as a whole, by key.
        arrays: what is said about each atom, by key; first dimension n.
        results: what a stored calculation says (ASE's calculator), by key.
        source: "path:index", index from 0.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def places(self) -> dict[str, dict[str, Any]]:
        """What is held, by the place where it stands: info, arrays or calculator."""
        return {"info": self.info, "arrays": self.arrays, "calculator": self.results}

    def lookup(self, key: str) -> list[tuple[str, Any]]:
        """All places that hold ``key``, as (place, value)."""
        return [(place, held[key]) for place, held in self.places.items() if key in held]

    @property
    def where(self) -> str:
        """How messages call this frame: "train.xyz: frame 3"."""
        return where(self.source)

    def atom(self, index: int) -> str:
        """How messages call atom ``index``: "atom 3 (C)"."""
        return f"atom {index} ({chemical_symbols[self.numbers[index]]})"


def where(source: str) -> str:
    """A frame's source, "train.xyz:3", as messages put it: "train.xyz: frame 3"."""
    path, _, index = source.rpartition(":")
    return f"{path}: frame {index}" if path and index.isdigit() else source or "a frame"


def shorten(text: object, length: int = 60) -> str:
    """``repr`` of a value from a file, short enough for a message."""
    shown = repr(text if not isinstance(text, str) else text[: 2 * length])
    return shown if len(shown) <= length else shown[: length - 3] + "..."
