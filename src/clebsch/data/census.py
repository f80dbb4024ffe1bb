"""The census of a file: which keys it holds, where, in which shape and how often."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clebsch.data.rawframe import RawFrame

#: The shape of what is neither a number nor an array of numbers.
NO_NUMBER = "no number"


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
