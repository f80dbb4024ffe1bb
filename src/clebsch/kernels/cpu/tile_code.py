"""Small matrix products whose sums stay in registers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llvmlite import ir

from clebsch.kernels.cpu import machine
from clebsch.kernels.cpu.emit import Emitter, Index


def most_rows() -> int:
    """Rows of a tile two vectors wide, so that sums and factors fit in registers."""
    return 8 if machine.many_registers() else 6


def row_tiles(e: Emitter, n_rows: int) -> Iterator[tuple[Index, int]]:
    """First row and number of rows of every tile that some rows are divided into."""
    most = most_rows()
    rest = n_rows % most
    if n_rows > rest:
        with e.loop(0, n_rows - rest, most) as row:
            yield row, most
    if rest:
        yield n_rows - rest, rest


class Tile:
    """Sums [rows, vectors of some lanes]."""

    def __init__(self, e: Emitter, rows: int, vectors: int, lanes: int) -> None:
        self.e, self.lanes = e, lanes
        self.sums = [[e.variable(lanes) for _ in range(vectors)] for _ in range(rows)]

    def clear(self) -> None:
        """Begin with zeros."""
        for row in self.sums:
            for variable in row:
                self.e.put(self.e.zero(self.lanes), variable)

    def load(self, address: ir.Value, stride: int) -> None:
        """Begin with what is in memory, rows ``stride`` elements apart."""
        for row, start in zip(self.sums, self._rows(address, stride), strict=True):
            for v, variable in enumerate(row):
                place = self.e.at(start, v * self.lanes)
                self.e.put(self.e.load(place, self.lanes), variable)

    def store(self, address: ir.Value, stride: int) -> None:
        """Write the sums, rows ``stride`` elements apart."""
        self.store_rows(self._rows(address, stride))

    def store_rows(self, addresses: Sequence[ir.Value]) -> None:
        """Write the sums, each row to an address of its own."""
        for row, start in zip(self.sums, addresses, strict=True):
            for v, variable in enumerate(row):
                place = self.e.at(start, v * self.lanes)
                self.e.store(self.e.get(variable, self.lanes), place)

    def _rows(self, address: ir.Value, stride: int) -> list[ir.Value]:
        return [self.e.at(address, r * stride) for r in range(len(self.sums))]

    def add(self, left: Sequence[ir.Value], right: ir.Value) -> None:
        """Add left[r] right[:]: a number behind each address times the row behind another."""
        e, lanes = self.e, self.lanes
        values = [e.load(e.at(right, v * lanes), lanes) for v in range(len(self.sums[0]))]
        for address, row in zip(left, self.sums, strict=True):
            number = e.spread(address, lanes)
            for value, variable in zip(values, row, strict=True):
                e.put(e.fma(number, value, e.get(variable, lanes)), variable)

    def add_products(
        self, inner: Index, left: tuple[ir.Value, int, int], right: tuple[ir.Value, int]
    ) -> None:
        """Add the sum over i of left[r, i] right[i, :].

        Args:
            inner: length of the sum.
            left: address, stride of r, stride of i.
            right: address, stride of i.
        """
        e = self.e
        at_once = 2 if isinstance(inner, int) and inner % 2 == 0 else 1
        with e.loop(0, inner, at_once) as first:
            for i in (e.plus(first, step) for step in range(at_once)):
                down = e.at(left[0], e.times(i, left[2]))
                rows = [e.at(down, r * left[1]) for r in range(len(self.sums))]
                self.add(rows, e.at(right[0], e.times(i, right[1])))
