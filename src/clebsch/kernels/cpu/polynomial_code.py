"""The product basis' kernels, written out for one set of couplings and one number of channels.

``clebsch.kernels.polynomial`` says what they evaluate. Derivatives walk the same tree of Horner's
scheme with w, the product of a node's factors (and of the cotangent g of the output), on the way
down and q, the value of what stands in its brackets, on the way up: that by a factor is w q, that
by a coefficient w.

Code of all terms together would not fit the first-level instruction cache. It is divided into
parts, each of which is run for a whole tile of atoms before the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from llvmlite import ir

from clebsch.kernels.cpu import machine
from clebsch.kernels.cpu.emit import Emitter, Index, Workspace
from clebsch.kernels.polynomial import Node, Term, parts

#: Atoms whose rows are copied into the first-level cache and that all parts then work on.
TILE = 32

#: Atoms that all chunks of channels work on, one after the other, so that memory is read in order.
REACH = 64

#: Terms of a part.
PART = 64

Atoms = list[ir.Value]  # one vector of channels for each atom of a block


@dataclass(frozen=True, eq=False)
class PolynomialSpec(machine.Channels):
    """What a kernel is compiled for.

    Attributes:
        key: tells the polynomial from others.
        terms: in the order of their coefficients.
        n_variables: V, number of components of A, all slots counted.
        n_outputs: O.
    """

    key: str
    terms: tuple[Term, ...]
    n_variables: int
    n_outputs: int

    @cached_property
    def parts(self) -> list[tuple[int, Node]]:
        """Horner schemes of at most ``PART`` terms of one output each; they are to be added."""
        return parts(self.terms, PART)


@dataclass(frozen=True)
class Rows:
    """Scratch memory [vector of the chunk, block of atoms, row, atom of the block, lane]."""

    address: ir.Value
    number: int


@dataclass(frozen=True)
class _Tile:
    """Some atoms of one species, and one chunk of channels."""

    channel: Index
    panel: Index
    place: ir.Value
    count: ir.Value
    n_blocks: ir.Value


class _Writer:
    """What the three kernels share: tiles, and arithmetic on all atoms of a block."""

    def __init__(
        self, spec: PolynomialSpec, name: str, pointers: Sequence[str], n_atoms: int
    ) -> None:
        self.spec, self.n_atoms = spec, n_atoms
        names = ("order", "species_ptr", *pointers, "work")
        self.e = Emitter(name, names, ("start", "stop", "n_species"), spec.bits)
        self.work = Workspace()

    def __getitem__(self, name: str) -> ir.Value:
        return self.e[name]

    # --- memory ---

    def scratch(self, number: int) -> Rows:
        """Rows of one vector for each atom of a tile."""
        size = number * TILE * self.spec.chunk
        return Rows(self.e.at(self["work"], self.work.take(size)), number)

    def block(self, rows: Rows, vector: Index, number: Index) -> ir.Value:
        """The address of a block's rows of one vector."""
        size, e = rows.number * self.spec.lanes, self.e
        skipped = e.plus(e.times(vector, TILE), e.times(number, self.n_atoms))
        return e.at(rows.address, e.times(skipped, size))

    def _place(self, index: int, atom: int) -> int:
        return (index * self.n_atoms + atom) * self.spec.lanes

    def row(self, block: ir.Value, index: int) -> Atoms:
        """A row of a block."""
        e, lanes = self.e, self.spec.lanes
        return [e.load(e.at(block, self._place(index, a)), lanes) for a in range(self.n_atoms)]

    def set_row(self, block: ir.Value, index: int, values: Atoms) -> None:
        """Replace a row of a block."""
        for a, value in enumerate(values):
            self.e.store(value, self.e.at(block, self._place(index, a)))

    def coefficient(self, panel: ir.Value, number: int) -> Atoms:
        """c of a term, the same for all atoms."""
        value = self.e.load(self.e.at(panel, number * self.spec.lanes), self.spec.lanes)
        return [value] * self.n_atoms

    # --- arithmetic ---

    def mul(self, a: Atoms, b: Atoms) -> Atoms:
        """a b."""
        return [self.e.mul(x, y) for x, y in zip(a, b, strict=True)]

    def fma(self, a: Atoms, b: Atoms, c: Atoms | None) -> Atoms:
        """a b + c."""
        sums = c or [None] * len(a)
        return [self.e.fma(x, y, z) for x, y, z in zip(a, b, sums, strict=True)]

    # --- walking over atoms ---

    def tiles(self) -> Iterator[_Tile]:
        """All tiles of this call."""
        e, spec = self.e, self.spec
        size = len(spec.terms) * spec.chunk
        with e.loop(0, self["n_species"]) as kind:
            first = e.integer_at(self["species_ptr"], kind)
            last = e.integer_at(self["species_ptr"], e.plus(kind, 1))
            with e.loop(first, last, REACH) as reach, e.loop(self["start"], self["stop"]) as chunk:
                panel = e.times(e.plus(e.times(kind, spec.n_chunks), chunk), size)
                end = e.smaller(e.plus(reach, REACH), last)
                with e.loop(reach, end, TILE) as place:
                    count = e.smaller(TILE, e.minus(end, place))
                    n_blocks, _ = e.quotient(e.plus(count, self.n_atoms - 1), self.n_atoms)
                    yield _Tile(e.times(chunk, spec.chunk), panel, place, count, n_blocks)

    def parts(self, tile: _Tile) -> Iterator[tuple[int, Node, ir.Value, ir.Value, Index]]:
        """(output, tree, vector, block, offset of the vector's coefficients) of all parts."""
        e, spec = self.e, self.spec
        with e.loop(0, spec.vectors) as vector:
            panel = e.plus(tile.panel, e.times(vector, len(spec.terms) * spec.lanes))
            for output, root in spec.parts:
                with e.loop(0, tile.n_blocks) as number:
                    yield output, root, vector, number, panel

    def places(self, tile: _Tile, rows: Rows) -> Iterator[tuple[ir.Value, ir.Value, ir.Value, int]]:
        """For each atom of a tile: number (or the last's), whether it is there, block, place."""
        e = self.e
        with e.loop(0, tile.n_blocks) as number:
            for a in range(self.n_atoms):
                index = e.plus(e.times(number, self.n_atoms), a)
                within = e.smaller(index, e.minus(tile.count, 1))
                atom = e.integer_at(self["order"], e.plus(tile.place, within))
                offset = e.times(atom, rows.number * self.spec.channels)
                yield e.plus(offset, tile.channel), e.less(index, tile.count), number, a

    def read(self, name: str, tile: _Tile, rows: Rows, *, missing_as_zero: bool = False) -> None:
        """Copy a tile's rows of [N, rows, K]; atoms that are missing repeat the last, or are 0.

        The next chunk is told to come near: its rows lie apart, and no prefetcher would find them.
        """
        e, spec = self.e, self.spec
        for offset, there, number, a in self.places(tile, rows):
            source = e.at(self[name], offset)
            for row in range(rows.number):
                for vector in range(spec.vectors):
                    place = row * spec.channels + vector * spec.lanes
                    value = e.load(e.at(source, place), spec.lanes)
                    if missing_as_zero:
                        value = e.choose(there, value, e.zero(spec.lanes))
                    e.store(value, e.at(self.block(rows, vector, number), self._place(row, a)))
                e.prefetch(e.at(source, row * spec.channels + spec.chunk))

    def clear(self, tile: _Tile, rows: Rows) -> None:
        """Set a tile's rows to zero."""
        zeros = [self.e.zero(self.spec.lanes)] * self.n_atoms
        with self.e.loop(0, tile.n_blocks) as number:
            for vector in range(self.spec.vectors):
                for row in range(rows.number):
                    self.set_row(self.block(rows, vector, number), row, zeros)

    def write(self, name: str, tile: _Tile, rows: Rows) -> None:
        """Copy a tile's rows back to [N, rows, K]."""
        e, spec = self.e, self.spec
        for offset, there, number, a in self.places(tile, rows):
            target = e.at(self[name], offset)
            with e.when(there):
                for row in range(rows.number):
                    for vector in range(spec.vectors):
                        block = self.block(rows, vector, number)
                        value = e.load(e.at(block, self._place(row, a)), spec.lanes)
                        e.store(value, e.at(target, row * spec.channels + vector * spec.lanes))
                    e.prefetch(e.at(target, row * spec.channels + spec.chunk), to_write=True)


@dataclass
class _Walk:
    """Walks through one part for one block of atoms.

    Attributes:
        k: writes.
        panel: coefficients.
        basis: A, of the block.
        direction: along which A moves; None if it stands still. Everything then is the change of
            what it would be otherwise: q and w have changes t_q and t_w, and what is summed up are
            derivatives of the derivative along this direction.
        d_basis: derivatives by A are added here; None if only values are wanted.
        d_panel: those by coefficients likewise.
    """

    k: _Writer
    panel: ir.Value
    basis: ir.Value
    direction: ir.Value | None = None
    d_basis: ir.Value | None = None
    d_panel: ir.Value | None = None

    def value(
        self, node: Node, w: Atoms | None, t_w: Atoms | None
    ) -> tuple[Atoms | None, Atoms | None]:
        """q of a node and its change; None where it is zero."""
        k = self.k
        q = t_q = None
        if node.term is not None:
            q = k.coefficient(self.panel, node.term)
            self._add_to_coefficient(node.term, [(t_w if self.direction else w, None)])
        for factor, child in node.children.items():
            x = k.row(self.basis, factor)
            t_x = k.row(self.direction, factor) if self.direction else None
            if child.children:
                inner, t_inner = self.value(child, *self._below(w, t_w, x, t_x))
            else:  # a coefficient, whose w need not be made
                assert child.term is not None
                inner, t_inner = k.coefficient(self.panel, child.term), None
                products = [(t_w, x), (w, t_x)] if self.direction else [(w, x)]
                self._add_to_coefficient(child.term, products)
            assert inner is not None
            q = k.fma(inner, x, q)
            if t_x is not None:
                t_q = k.fma(inner, t_x, t_q)
                self._add_to_basis(factor, [(t_w, inner), (w, t_inner)])
            else:
                self._add_to_basis(factor, [(w, inner)])
            if t_inner is not None:
                t_q = k.fma(t_inner, x, t_q)
        return q, t_q

    def _below(
        self, w: Atoms | None, t_w: Atoms | None, x: Atoms, t_x: Atoms | None
    ) -> tuple[Atoms | None, Atoms | None]:
        """w of a child and its change."""
        if w is None:
            return None, None
        moved = None if t_w is None else self.k.mul(t_w, x)
        if t_x is not None:
            moved = self.k.fma(w, t_x, moved)
        return self.k.mul(w, x), moved

    def _add_to_basis(
        self, factor: int, products: Sequence[tuple[Atoms | None, Atoms | None]]
    ) -> None:
        if self.d_basis is None:
            return
        total = self.k.row(self.d_basis, factor)
        for left, right in products:
            if left is not None and right is not None:
                total = self.k.fma(left, right, total)
        self.k.set_row(self.d_basis, factor, total)

    def _add_to_coefficient(
        self, term: int, products: Sequence[tuple[Atoms | None, Atoms | None]]
    ) -> None:
        """Add products (without a second factor: the first), summed over the block's atoms."""
        if self.d_panel is None:
            return
        e, lanes = self.k.e, self.k.spec.lanes
        place = e.at(self.d_panel, term * lanes)
        total = e.load(place, lanes)
        for left, right in products:
            if left is None:
                continue
            for a, value in enumerate(left):
                total = e.add(total, value) if right is None else e.fma(value, right[a], total)
        e.store(total, place)


def _half_of(n_atoms: int) -> int:
    """Atoms of a block: half as many where there are only 16 vector registers."""
    return n_atoms if machine.many_registers() else n_atoms // 2


def write_forward(spec: PolynomialSpec, name: str) -> str:
    """out = polynomial.

    Arguments: order, species_ptr, coefficients [S, K / lanes, T, lane], basis [N, V, K],
    out [N, O, K], work; the range of chunks start, stop, and n_species.
    """
    k = _Writer(spec, name, ("coefficients", "basis", "out"), 4)
    basis, out = k.scratch(spec.n_variables), k.scratch(spec.n_outputs)
    for tile in k.tiles():
        k.read("basis", tile, basis)
        k.clear(tile, out)
        for output, root, *block, panel in k.parts(tile):
            walk = _Walk(k, k.e.at(k["coefficients"], panel), k.block(basis, *block))
            q, _ = walk.value(root, None, None)
            _add_row(k, k.block(out, *block), output, q)
        k.write("out", tile, out)
    return k.e.finish(k.work.size)


def _add_row(k: _Writer, block: ir.Value, index: int, values: Atoms | None) -> None:
    if values is not None:
        held = k.row(block, index)
        k.set_row(block, index, [k.e.add(x, y) for x, y in zip(held, values, strict=True)])


def write_gradients(spec: PolynomialSpec, weighted: bool, name: str) -> str:
    """Derivatives of ``cotangent . polynomial`` by A and, if ``weighted``, by the coefficients.

    Those by A are written, those by coefficients added to what is there.
    Arguments: order, species_ptr, coefficients, basis, cotangent, d_coefficients, d_basis, work;
    start, stop, n_species.
    """
    pointers = ("coefficients", "basis", "cotangent", "d_coefficients", "d_basis")
    k = _Writer(spec, name, pointers, _half_of(4))
    basis, d_basis = k.scratch(spec.n_variables), k.scratch(spec.n_variables)
    cotangent = k.scratch(spec.n_outputs)
    for tile in k.tiles():
        k.read("basis", tile, basis)
        k.read("cotangent", tile, cotangent, missing_as_zero=True)
        k.clear(tile, d_basis)
        for output, root, *block, panel in k.parts(tile):
            walk = _Walk(
                k,
                k.e.at(k["coefficients"], panel),
                k.block(basis, *block),
                d_basis=k.block(d_basis, *block),
                d_panel=k.e.at(k["d_coefficients"], panel) if weighted else None,
            )
            walk.value(root, k.row(k.block(cotangent, *block), output), None)
        k.write("d_basis", tile, d_basis)
    return k.e.finish(k.work.size)


def write_second(spec: PolynomialSpec, weighted: bool, name: str) -> str:
    """Derivatives of ``t_basis . (derivative by A)``: by A, cotangent and, if asked, coefficients.

    Arguments: order, species_ptr, coefficients, basis, cotangent, t_basis, d_coefficients, d_basis,
    d_cotangent, work; start, stop, n_species.
    """
    pointers = (
        *("coefficients", "basis", "cotangent", "t_basis"),
        *("d_coefficients", "d_basis", "d_cotangent"),
    )
    k = _Writer(spec, name, pointers, _half_of(2))
    basis, t_basis, d_basis = (k.scratch(spec.n_variables) for _ in range(3))
    cotangent, d_cotangent = k.scratch(spec.n_outputs), k.scratch(spec.n_outputs)
    for tile in k.tiles():
        k.read("basis", tile, basis)
        k.read("t_basis", tile, t_basis)
        k.read("cotangent", tile, cotangent, missing_as_zero=True)
        k.clear(tile, d_basis)
        k.clear(tile, d_cotangent)
        for output, root, *block, panel in k.parts(tile):
            walk = _Walk(
                k,
                k.e.at(k["coefficients"], panel),
                k.block(basis, *block),
                k.block(t_basis, *block),
                k.block(d_basis, *block),
                k.e.at(k["d_coefficients"], panel) if weighted else None,
            )
            g = k.row(k.block(cotangent, *block), output)
            _, t_q = walk.value(root, g, None)
            _add_row(k, k.block(d_cotangent, *block), output, t_q)
        k.write("d_basis", tile, d_basis)
        k.write("d_cotangent", tile, d_cotangent)
    return k.e.finish(k.work.size)
