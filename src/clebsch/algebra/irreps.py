"""Irreducible representations of O(3) and ordered lists of them.

An irrep is written as its degree l and its parity under inversion: "0e" a scalar, "1o" a vector,
"1e" a pseudovector. All irreps of a feature share one channel count, which lives outside
``Irreps``: features are [n_nodes, components, channels].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, total_ordering
from typing import overload

from clebsch.errors import ConfigError

_PARITY_LETTERS = {1: "e", -1: "o"}
_IRREP = re.compile(r"(\d+)\s*([eo])")


@total_ordering
@dataclass(frozen=True)
class Irrep:
    """An irrep of O(3) of dimension 2l+1.

    Sorted by l, odd before even.

    Raises:
        ConfigError: l is negative or parity is neither 1 nor -1.
    """

    l: int  # noqa: E741 - the field's own name
    parity: int

    def __post_init__(self) -> None:
        if self.l < 0 or self.parity not in _PARITY_LETTERS:
            raise ConfigError(
                f"No irrep has l={self.l} and parity={self.parity}: l is 0, 1, 2, ... "
                "and parity is 1 (even) or -1 (odd)."
            )

    @classmethod
    def parse(cls, text: str) -> Irrep:
        """Read "2e" or "1o"."""
        match = _IRREP.fullmatch(text.strip())
        if match is None:
            raise ConfigError(
                f"{text!r} is not an irrep: write l and e (even) or o (odd), such as '0e' or '1o'."
            )
        return cls(int(match[1]), 1 if match[2] == "e" else -1)

    @property
    def dim(self) -> int:
        """Number of components, 2l+1."""
        return 2 * self.l + 1

    @property
    def is_natural(self) -> bool:
        """Whether the parity is that of the spherical harmonics, (-1)^l."""
        return self.parity == (-1) ** self.l

    def __str__(self) -> str:
        return f"{self.l}{_PARITY_LETTERS[self.parity]}"

    def __lt__(self, other: Irrep) -> bool:
        return (self.l, self.parity) < (other.l, other.parity)

    def __mul__(self, other: Irrep) -> tuple[Irrep, ...]:
        """The irreps in the product of two, l ascending (the selection rule)."""
        parity = self.parity * other.parity
        degrees = range(abs(self.l - other.l), self.l + other.l + 1)
        return tuple(Irrep(degree, parity) for degree in degrees)


@dataclass(frozen=True)
class Irreps:
    """An immutable sequence of irreps and where the components of each lie.

    ``Irreps([Irrep(0, 1), Irrep(1, -1)])`` or ``Irreps.parse("0e+1o")``. The order is kept as
    given, and an irrep may occur more than once.
    """

    irreps: tuple[Irrep, ...]

    def __init__(self, irreps: Iterable[Irrep]) -> None:
        object.__setattr__(self, "irreps", tuple(irreps))

    @classmethod
    def parse(cls, text: str) -> Irreps:
        """Read "0e+1o+2e", without multiplicities."""
        return cls(Irrep.parse(term) for term in text.split("+"))

    @cached_property
    def dim(self) -> int:
        """Number of components of all irreps together."""
        return sum(irrep.dim for irrep in self.irreps)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The components of each irrep."""
        slices, start = [], 0
        for irrep in self.irreps:
            slices.append(slice(start, start + irrep.dim))
            start += irrep.dim
        return tuple(slices)

    @property
    def offsets(self) -> tuple[int, ...]:
        """The first component of each irrep."""
        return tuple(part.start for part in self.slices)

    @property
    def l_max(self) -> int:
        """Highest degree; -1 where there are no irreps."""
        return max((irrep.l for irrep in self.irreps), default=-1)

    def index(self, irrep: Irrep) -> int:
        """Position of the first occurrence; ValueError where there is none."""
        return self.irreps.index(irrep)

    def __len__(self) -> int:
        return len(self.irreps)

    def __iter__(self) -> Iterator[Irrep]:
        return iter(self.irreps)

    def __contains__(self, irrep: object) -> bool:
        return irrep in self.irreps

    @overload
    def __getitem__(self, position: int) -> Irrep: ...
    @overload
    def __getitem__(self, position: slice) -> Irreps: ...
    def __getitem__(self, position: int | slice) -> Irrep | Irreps:
        if isinstance(position, slice):
            return Irreps(self.irreps[position])
        return self.irreps[position]

    def __str__(self) -> str:
        return "+".join(str(irrep) for irrep in self.irreps)


#: The irrep of what no rotation or inversion changes.
SCALAR = Irrep(0, 1)


def spherical_irreps(l_max: int) -> Irreps:
    """The irreps of parity (-1)^l up to ``l_max``: 0e, 1o, 2e, ..., those of spherical harmonics.

    Raises:
        ConfigError: ``l_max`` is negative.
    """
    if l_max < 0:
        raise ConfigError(f"l_max must be 0 or more, not {l_max}.")
    return Irreps(Irrep(degree, (-1) ** degree) for degree in range(l_max + 1))


def all_irreps(l_max: int) -> Irreps:
    """The irreps of both parities up to ``l_max``, those of spherical harmonics first:
    0e, 0o, 1o, 1e, 2e, 2o, ...
    """
    natural = spherical_irreps(l_max)
    return Irreps(Irrep(ir.l, parity) for ir in natural for parity in (ir.parity, -ir.parity))
