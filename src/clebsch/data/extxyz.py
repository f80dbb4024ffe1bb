"""Extended XYZ, read strictly.

ASE's reader stops without a word at a blank line between frames, ignores columns that
``Properties`` does not name, and loops for hours over a frame that declares 99999999999 atoms.
Here every line is accounted for: what cannot be read is an error that names file, frame and line.

The format: a line with the number of atoms n; a line of ``key=value`` pairs, among them
``Lattice="ax ay az bx by bz cx cy cz"``, ``pbc="T T F"`` and
``Properties=name:type:columns:...``; n lines of columns. A lattice without ``pbc`` is periodic
in all directions, as in ASE.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import numpy as np
from ase.data import atomic_numbers

from clebsch.data.rawframe import RawFrame, shorten
from clebsch.elements import ELEMENTS
from clebsch.errors import DataError

_Frame = TypeVar("_Frame")

#: A line longer than this is not a line of a structure file.
LONGEST_LINE = 16_000_000
#: Programs that write fixed decimals write so many at least.
_FIXED_DECIMALS = 4

#: What opens a compressed file, by its suffix.
OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
#: What reading one raises where it is truncated or corrupt.
BROKEN_STREAM = (EOFError, lzma.LZMAError, zlib.error, OSError)
#: Suffixes of extended XYZ.
SUFFIXES = (".xyz", ".extxyz")
_CLOSING = {'"': '"', "'": "'", "{": "}", "[": "]"}
_BOOLEANS = {"T": True, "True": True, "true": True, "TRUE": True}
_BOOLEANS |= {"F": False, "False": False, "false": False, "FALSE": False}


def _integer(word: str) -> int:
    return int(_plain(word))


def _real(word: str) -> float:
    return float(_plain(word))


def _plain(word: str) -> str:
    """Python takes 10_20 for 1020, which in a file is text or damage."""
    if "_" in word:
        raise ValueError(word)
    return word


_CONVERTERS: dict[str, Callable[[str], Any]] = {
    "R": _real,
    "I": _integer,
    "S": str,
    "L": _BOOLEANS.__getitem__,
}
_BARE_KEY = re.compile(r"[^\s=]+")
_BARE_VALUE = re.compile(r"\S+")
_SPACE = re.compile(r"\s*")


class _Malformed(Exception):
    """What is wrong in a frame, and at which atom; the reader adds file, frame and line."""

    def __init__(self, message: str, atom: int | None = None) -> None:
        super().__init__(message if atom is None else f"atom {atom}: {message}")
        self.atom = atom


@dataclass
class _Lines:
    """The lines of a text file with their numbers, and the errors of a broken stream."""

    file: IO[str]
    number: int = 0
    frame_start: int = 0

    def next(self) -> str:
        """The next line with its line end; "" at the end of the file."""
        try:
            line = self.file.readline(LONGEST_LINE)
        except BROKEN_STREAM as error:
            raise _Malformed(f"the compressed stream is truncated or corrupt ({error})") from error
        if len(line) >= LONGEST_LINE:
            raise _Malformed(f"a line is longer than {LONGEST_LINE} characters")
        self.number += 1
        return line


def format_suffix(path: Path) -> str:
    """The suffix that tells the format, in lower case, without that of a compressed file."""
    stem = path.stem if path.suffix.lower() in OPENERS else path.name
    return Path(stem).suffix.lower()


def iter_extxyz(path: Path) -> Iterator[RawFrame]:
    """The frames of an extended XYZ file, plain or compressed with xz, gz or bz2.

    Raises:
        DataError: the file is empty, truncated or malformed; names file, frame and line.
    """
    return _iter_frames(path, _read_frame)


def iter_frame_texts(path: Path) -> Iterator[str]:
    """The lines of each frame as they stand, without the blank ones between frames.

    Raises:
        DataError: as of ``iter_extxyz``, but for what is on the lines of atoms.
    """
    return _iter_frames(path, _frame_text)


def _iter_frames(path: Path, read: Callable[[_Lines, int, str], _Frame]) -> Iterator[_Frame]:
    """What ``read`` makes of the lines after each number of atoms."""
    opener = OPENERS.get(path.suffix.lower(), open)
    index = 0
    try:
        stream = opener(path, "rt", encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror or error}") from error
    with cast(IO[str], stream) as file:
        lines = _Lines(file)
        try:
            while (n_atoms := _atom_count(lines)) is not None:
                yield read(lines, n_atoms, f"{path}:{index}")
                index += 1
        except _Malformed as error:
            line = lines.number if error.atom is None else lines.frame_start + 2 + error.atom
            raise DataError(f"{path}: frame {index} (line {line}): {error}") from error
    if index == 0:
        raise DataError(f"{path}: the file holds no frames")


def _atom_count(lines: _Lines) -> int | None:
    """The number that opens a frame; None at the end of the file. Skips blank lines."""
    while (line := lines.next()) != "":
        text = line.strip()
        if not text:
            continue
        if not (text.isascii() and text.lstrip("+").isdigit()) or len(text) > 18:
            raise _Malformed(f"expected a number of atoms, found {shorten(text)}")
        if (count := int(text)) < 1:
            raise _Malformed(f"expected at least one atom, found {shorten(text)}")
        lines.frame_start = lines.number
        return count
    return None


def _comment(lines: _Lines) -> str:
    comment = lines.next()
    if comment == "":
        raise _Malformed("the file ends after the number of atoms")
    return comment


def _frame_text(lines: _Lines, n_atoms: int, source: str) -> str:
    text = [f"{n_atoms}\n", _comment(lines)]
    for atom in range(n_atoms):
        text.append(_atom_line(lines, atom, n_atoms))
    return "".join(text)


def _read_frame(lines: _Lines, n_atoms: int, source: str) -> RawFrame:
    comment = _comment(lines)
    info = parse_comment(comment)
    _check_case(info)
    cell, pbc = _cell_of(info)
    named = "Properties" in info
    columns = _parse_properties(info.pop("Properties", "species:S:1:pos:R:3"))
    rows = _read_rows(lines, n_atoms, columns[-1].stop, named)
    arrays: dict[str, np.ndarray] = {}
    for column in columns:
        if column.name in arrays:
            raise _Malformed(f"Properties names {column.name!r} twice")
        arrays[column.name] = column.values(rows)
    return RawFrame(
        _pop_numbers(arrays), _pop_positions(arrays), cell, pbc, info, arrays, {}, source
    )


def _atom_line(lines: _Lines, atom: int, n_atoms: int) -> str:
    line = lines.next()
    if line == "":
        raise _Malformed(
            f"the file is truncated: the frame has {atom} of the {n_atoms} atoms it declares"
        )
    return line


def _read_rows(lines: _Lines, n_atoms: int, width: int, named: bool) -> list[list[str]]:
    rows: list[list[str]] = []
    line = ""
    for atom in range(n_atoms):
        line = _atom_line(lines, atom, n_atoms)
        row = line.split()
        if len(row) != width:
            truncated = "" if line.endswith("\n") else "; the file is truncated here"
            asked = "Properties names" if named else "a frame without Properties has"
            raise _Malformed(f"{len(row)} columns where {asked} {width}{truncated}", atom)
        rows.append(row)
    if not line.endswith("\n"):
        _check_last_number(rows)
    return rows


def _check_last_number(rows: list[list[str]]) -> None:
    """Where all columns have their fixed numbers of decimals, a last number that has fewer was cut.

    Programs that write as many digits as a number needs leave nothing to tell that by, and numbers
    of few decimals are people's.
    """
    *others, last = [len(row[-1].partition(".")[2]) for row in rows]
    columns = zip(*(row[:-1] for row in rows), strict=True)
    decimals = [{len(text.partition(".")[2]) for text in column} for column in columns]
    fixed = len(set(others)) == 1 and all(len(found) == 1 for found in decimals)
    if fixed and last < others[0] >= _FIXED_DECIMALS:
        raise _Malformed(
            f"the file is truncated: it ends without a line end and inside the last number, "
            f"{shorten(rows[-1][-1])}"
        )


# --- the comment line -----------------------------------------------------------------------------


def parse_comment(line: str) -> dict[str, Any]:
    """The ``key=value`` pairs of a frame's second line.

    Values become bool, int, float, str or arrays of them; a bare key is True; ``_JSON`` introduces
    a JSON value. A comment with neither ``Properties=`` nor ``Lattice=`` is free text, in which an
    unbalanced quote is no error.
    """
    free_text = "Properties" not in line and "Lattice" not in line
    pairs: dict[str, Any] = {}
    position, end = 0, len(line.rstrip())
    text = line[:end]
    while (position := _after_space(text, position)) < end:
        key, position = _token(text, position, _BARE_KEY, free_text)
        position = _after_space(text, position)
        if position < end and text[position] == "=":
            position = _after_space(text, position + 1)
            value, position = _token(text, position, _BARE_VALUE, free_text)
            parsed = _parse_value(value)
            if key in pairs and not free_text and repr(pairs[key]) != repr(parsed):
                raise _Malformed(f"the key {key!r} stands twice, with different values")
            pairs[key] = parsed
        else:
            pairs[key] = True
    return pairs


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _token(text: str, position: int, bare: re.Pattern[str], free_text: bool) -> tuple[str, int]:
    """The word or quoted text at ``position``, and where it ends."""
    if position < len(text) and text[position] in _CLOSING:
        end = _closing(text, position)
        if end is not None:
            return text[position + 1 : end].replace("\\", ""), end + 1
        if not free_text:
            raise _Malformed(f"no end to the quote that opens with {shorten(text[position:], 40)}")
        return text[position + 1 :], len(text)
    match = bare.match(text, position)
    if match:
        return match.group(), match.end()
    # an "=" where a key should be, or nothing after the "=" of the last key
    return "", min(position + 1, len(text))


def _closing(text: str, start: int) -> int | None:
    """Index of the delimiter that closes the one at ``start``; brackets nest, quotes do not."""
    opening = text[start]
    closing = _CLOSING[opening]
    depth, position = 0, start
    stops = re.compile("[" + re.escape(opening + closing) + r"\\]")
    while match := stops.search(text, position):
        found, position = match.group(), match.end()
        if found == "\\":
            position += 1
        elif found == closing and opening == closing:
            depth += 1
            if depth == 2:
                return match.start()
        elif found == opening:
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                return match.start()
    return None


def _parse_value(text: str) -> Any:
    if text.startswith("_JSON "):
        try:
            return json.loads(text[len("_JSON ") :])
        except (ValueError, RecursionError) as error:
            raise _Malformed(f"not JSON: {shorten(text)}") from error
    words = re.split(r"[\s,]+", text.replace("[", " ").replace("]", " ").strip())
    if words == [""]:
        return text
    for convert in (_integer, _real, _BOOLEANS.__getitem__):
        try:
            values = [convert(word) for word in words]
            return values[0] if len(values) == 1 else np.array(values)
        except (ValueError, KeyError, OverflowError):
            continue
    return text


def _check_case(info: dict[str, Any]) -> None:
    """What the format itself names is not understood in another case; a bare word is text."""
    for key, value in info.items():
        for name in ("Lattice", "pbc", "Properties"):
            if key != name and key.lower() == name.lower() and value is not True:
                raise _Malformed(f"the key {key!r} is not understood. Did you mean {name!r}?")


def _cell_of(info: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Takes ``Lattice`` and ``pbc`` out of ``info``."""
    lattice, periodic = info.pop("Lattice", None), info.pop("pbc", None)
    cell = np.zeros((3, 3))
    if lattice is not None:
        values = np.asarray(lattice)
        if values.shape != (9,) or values.dtype.kind not in "if":
            raise _Malformed(f"Lattice is not nine numbers: {shorten(lattice)}")
        cell = values.astype(np.float64).reshape(3, 3)
    if periodic is None:
        return cell, np.full(3, lattice is not None)
    flags = np.asarray(periodic)
    if (
        flags.dtype.kind not in "bi"
        or flags.shape not in ((), (3,))
        or not np.isin(flags, (0, 1)).all()
    ):
        raise _Malformed(f"pbc is not three of T and F: {shorten(periodic)}")
    return cell, np.broadcast_to(flags.astype(bool), (3,)).copy()


# --- the columns ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """One entry of ``Properties``: the values of columns ``start`` to ``stop`` of each row."""

    name: str
    kind: str
    start: int
    stop: int

    def values(self, rows: list[list[str]]) -> np.ndarray:
        """[n] for one column, [n, columns] for several."""
        width = self.stop - self.start
        words = [word for row in rows for word in row[self.start : self.stop]]
        convert = _CONVERTERS[self.kind]
        try:
            values = np.array([convert(word) for word in words])
        except (ValueError, KeyError, OverflowError) as error:
            raise self._complaint(words, convert, width) from error
        if self.kind == "R":
            values = values.astype(np.float64)
        return values if width == 1 else values.reshape(len(rows), width)

    def _complaint(self, words: list[str], convert: Callable[[str], Any], width: int) -> _Malformed:
        kinds = {"R": "a number", "I": "an integer", "S": "text", "L": "T or F"}
        for place, word in enumerate(words):
            try:
                np.array(convert(word), dtype=np.int64 if self.kind == "I" else None)
            except (ValueError, KeyError, OverflowError):
                text = f"{self.name} is not {kinds[self.kind]}: {shorten(word)}"
                return _Malformed(text, place // width)
        return _Malformed(f"{self.name}: values of column {self.start} cannot be read")


def _parse_properties(text: Any) -> list[_Column]:
    fields = text.split(":") if isinstance(text, str) else []
    if not fields or len(fields) % 3:
        raise _Malformed(f"Properties is not name:type:columns, repeated: {shorten(text)}")
    columns: list[_Column] = []
    start = 0
    for name, kind, count in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
        if kind not in ("R", "I", "S", "L"):
            raise _Malformed(f"Properties: the type of {name!r} is {kind!r}, not one of R, I, S, L")
        if not (count.isascii() and count.isdigit() and 0 < len(count) < 7 and int(count) > 0):
            raise _Malformed(f"Properties: {name!r} has {shorten(count)} columns")
        columns.append(_Column(name, kind, start, start + int(count)))
        start += int(count)
    return columns


def _pop_numbers(arrays: dict[str, np.ndarray]) -> np.ndarray:
    symbols = arrays.pop("species", None)
    numbers = arrays.pop("Z", None)
    if symbols is not None and symbols.ndim == 1:
        return np.array([_atomic_number(atom, word) for atom, word in enumerate(symbols)])
    if numbers is not None and numbers.ndim == 1 and numbers.dtype.kind == "i":
        for atom, number in enumerate(numbers):
            _atomic_number(atom, str(number))
        return numbers.astype(np.int64)
    raise _Malformed("Properties names neither species:S:1 nor Z:I:1")


def _atomic_number(atom: int, word: str) -> int:
    """The atomic number of a symbol in any case, or of a number."""
    word = str(word)
    number = atomic_numbers.get(word.capitalize(), 0)
    if word.isascii() and word.isdigit() and len(word) < 4:
        number = int(word)
    if not 0 < number < 119:
        if word.upper() == "X":
            raise _Malformed("'X' is no element but a ghost or dummy atom: take it out", atom)
        nearest = get_close_matches(word[:3].capitalize(), ELEMENTS, n=1, cutoff=0.5)
        hint = f". Did you mean {nearest[0]!r}?" if nearest else ""
        raise _Malformed(f"{shorten(word)} is not an element{hint}", atom)
    return number


def _pop_positions(arrays: dict[str, np.ndarray]) -> np.ndarray:
    positions = arrays.pop("pos", None)
    if positions is None or positions.ndim != 2 or positions.shape[1] != 3:
        raise _Malformed("Properties does not name pos:R:3")
    return positions.astype(np.float64)
