"""The product basis' kernels, written out for one set of couplings and one number of channels.

With couplings and weights contracted, a message is a sparse polynomial in the components of A, with
one coefficient for every term, species and channel. The monomials form a tree: each is its parent
times one more factor. The kernels walk the whole tree once for every block of atoms of one species
and every vector of channels; w is a monomial's value, c its coefficient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llvmlite import ir

from clebsch.kernels.cpu import machine
from clebsch.kernels.cpu.emit import Emitter, Workspace

#: Instructions between breaks: what is shared by all of a polynomial leaves registers there, which
#: made second derivatives of MACE's 887 terms 1.7 times slower at breaks every 4000.
LONGEST = 30_000

Atoms = list[ir.Value]  # one vector of channels for each atom of a block


@dataclass
class Monomial:
    """A node of the tree: terms are (output component, term number)."""

    terms: list[tuple[int, int]] = field(default_factory=list)
    children: dict[int, Monomial] = field(default_factory=dict)

    def find(self, factors: Sequence[int]) -> Monomial:
        """The descendant that multiplies these factors on top; made where it is missing."""
        node = self
        for factor in factors:
            node = node.children.setdefault(factor, Monomial())
        return node


@dataclass(frozen=True, eq=False)
class PolynomialSpec(machine.Channels):
    """What a kernel is compiled for.

    Attributes:
        key: tells the polynomial from others.
        groups: ranges of output components that are evaluated together.
        terms: (output component, factors) of every term, in the order of its coefficients.
        n_variables: V, number of components of A, all slots counted.
        n_outputs: O.
    """

    key: str
    groups: tuple[range, ...]
    terms: tuple[tuple[int, tuple[int, ...]], ...]
    n_variables: int
    n_outputs: int

    AT_ONCE = 1

    def tree(self, outputs: range) -> Monomial:
        """The monomials of some outputs."""
        root = Monomial()
        for number, (output, factors) in enumerate(self.terms):
            if output in outputs:
                root.find(factors).terms.append((output, number))
        return root


class _Writer:
    """What the three kernels share: blocks of atoms, and arithmetic on all atoms of one."""

    def __init__(
        self, spec: PolynomialSpec, name: str, pointers: Sequence[str], n_atoms: int
    ) -> None:
        self.spec, self.n_atoms = spec, n_atoms
        names = ("order", "species_ptr", *pointers, "work")
        self.e = Emitter(name, names, ("start", "stop", "n_species"), spec.bits)
        self.work = Workspace()

    def __getitem__(self, name: str) -> ir.Value:
        return self.e[name]

    def scratch(self, rows: int) -> ir.Value:
        """Rows of one vector for each atom."""
        return self.e.at(self["work"], self.work.take(rows * self.n_atoms * self.spec.lanes))

    def row(self, memory: ir.Value, index: int) -> Atoms:
        """A row of scratch memory."""
        start = index * self.n_atoms
        return [
            self.e.load(self.e.at(memory, (start + a) * self.spec.lanes), self.spec.lanes)
            for a in range(self.n_atoms)
        ]

    def set_row(self, memory: ir.Value, index: int, values: Atoms) -> None:
        for a, value in enumerate(values):
            place = (index * self.n_atoms + a) * self.spec.lanes
            self.e.store(value, self.e.at(memory, place))

    def add_to_row(self, memory: ir.Value, index: int, values: Atoms) -> None:
        """Add to a row of scratch memory."""
        held = self.row(memory, index)
        sums = [self.e.add(x, y) for x, y in zip(held, values, strict=True)]
        self.set_row(memory, index, sums)

    def mul(self, a: Atoms, b: Atoms) -> Atoms:
        return [self.e.mul(x, y) for x, y in zip(a, b, strict=True)]

    def fma(self, a: Atoms, b: Atoms, c: Atoms | None) -> Atoms:
        sums = c or [None] * len(a)
        return [self.e.fma(x, y, z) for x, y, z in zip(a, b, sums, strict=True)]

    def coefficient(self, panel: ir.Value, number: int) -> Atoms:
        """c of a term, the same for all atoms."""
        value = self.e.load(self.e.at(panel, number * self.spec.lanes), self.spec.lanes)
        return [value] * self.n_atoms

    def blocks(self):  # type: ignore[no-untyped-def]
        """(chunk of channels, offset of the coefficients, first place in the order, atoms)."""
        e, spec = self.e, self.spec
        size = len(spec.terms) * spec.lanes
        with (
            e.loop(self["start"], self["stop"]) as chunk,
            e.loop(0, self["n_species"]) as kind,
        ):
            panel = e.times(e.plus(e.times(kind, spec.n_chunks), chunk), size)
            first = e.integer_at(self["species_ptr"], kind)
            last = e.integer_at(self["species_ptr"], e.plus(kind, 1))
            with e.loop(first, last, self.n_atoms) as place:
                count = e.smaller(self.n_atoms, e.minus(last, place))
                yield e.times(chunk, spec.lanes), panel, place, count

    def read(self, name, rows, channel, place, count, memory, *, missing_as_zero=False) -> None:  # type: ignore[no-untyped-def]
        """Copy a block's rows of [N, rows, K]; atoms that are missing repeat the last, or are 0."""
        e, lanes = self.e, self.spec.lanes
        if missing_as_zero:
            with e.loop(0, rows * self.n_atoms) as row:
                e.store(e.zero(lanes), e.at(memory, e.times(row, lanes)))
        with e.loop(0, count if missing_as_zero else self.n_atoms) as a:
            within = e.smaller(a, e.minus(count, 1))
            atom = e.integer_at(self["order"], e.plus(place, within))
            source = e.at(self[name], e.times(atom, rows * self.spec.channels), channel)
            target = e.at(memory, e.times(a, lanes))
            with e.loop(0, rows) as row:
                value = e.load(e.at(source, e.times(row, self.spec.channels)), lanes)
                e.store(value, e.at(target, e.times(row, self.n_atoms * lanes)))

    def write(self, name, rows, channel, place, count, memory) -> None:  # type: ignore[no-untyped-def]
        """Copy scratch rows back to the block's rows of [N, rows, K]."""
        e, lanes = self.e, self.spec.lanes
        with e.loop(0, count) as a:
            atom = e.integer_at(self["order"], e.plus(place, a))
            target = e.at(self[name], e.times(atom, rows * self.spec.channels), channel)
            source = e.at(memory, e.times(a, lanes))
            with e.loop(0, rows) as row:
                value = e.load(e.at(source, e.times(row, self.n_atoms * lanes)), lanes)
                e.store(value, e.at(target, e.times(row, self.spec.channels)))

    def sum_into(
        self, panel: ir.Value, number: int, products: Sequence[tuple[Atoms, Atoms]]
    ) -> None:
        """Add products, summed over the block's atoms, to the derivative by a coefficient."""
        place = self.e.at(panel, number * self.spec.lanes)
        total = self.e.load(place, self.spec.lanes)
        for left, right in products:
            for x, y in zip(left, right, strict=True):
                total = self.e.fma(x, y, total)
        self.e.store(total, place)


def write_forward(spec: PolynomialSpec, name: str) -> str:
    """out = polynomial.

    Arguments: order, species_ptr, coefficients [S, chunk, T, channel], basis [N, V, K],
    out [N, O, K], work; the range of chunks start, stop, and n_species.
    """
    k = _Writer(spec, name, ("coefficients", "basis", "out"), 4)
    basis, out = k.scratch(spec.n_variables), k.scratch(spec.n_outputs)
    for channel, offset, place, count in k.blocks():
        k.read("basis", spec.n_variables, channel, place, count, basis)
        panel = k.e.at(k["coefficients"], offset)
        for outputs in spec.groups:
            sums: dict[int, Atoms] = {}
            for factor, node in spec.tree(outputs).children.items():
                k.e.may_break(LONGEST)
                _add_terms(k, node, k.row(basis, factor), panel, basis, sums)
            for output in outputs:
                k.set_row(out, output, sums.get(output) or [k.e.zero(spec.lanes)] * k.n_atoms)
        k.write("out", spec.n_outputs, channel, place, count, out)
    return k.e.finish(k.work.size)


def _add_terms(k, node, w, panel, basis, sums) -> None:  # type: ignore[no-untyped-def]
    for output, number in node.terms:
        sums[output] = k.fma(k.coefficient(panel, number), w, sums.get(output))
    for factor, child in node.children.items():
        _add_terms(k, child, k.mul(w, k.row(basis, factor)), panel, basis, sums)


def write_gradients(spec: PolynomialSpec, weighted: bool, name: str) -> str:
    """Derivatives of ``cotangent . polynomial`` by A and, if ``weighted``, by the coefficients.

    Those by A are written, those by coefficients added to what is there.
    Arguments: order, species_ptr, coefficients, basis, cotangent, d_coefficients, d_basis, work;
    start, stop, n_species.
    """
    pointers = ("coefficients", "basis", "cotangent", "d_coefficients", "d_basis")
    k = _Writer(spec, name, pointers, 4)
    basis, d_basis = k.scratch(spec.n_variables), k.scratch(spec.n_variables)
    cotangent = k.scratch(spec.n_outputs)
    for channel, offset, place, count in k.blocks():
        k.read("basis", spec.n_variables, channel, place, count, basis)
        k.read("cotangent", spec.n_outputs, channel, place, count, cotangent, missing_as_zero=True)
        _clear(k, d_basis)
        walk = _Reverse(
            k,
            basis,
            d_basis,
            cotangent,
            k.e.at(k["coefficients"], offset),
            k.e.at(k["d_coefficients"], offset) if weighted else None,
        )
        for factor, node in spec.tree(range(spec.n_outputs)).children.items():
            k.e.may_break(LONGEST)
            value = walk.visit(node, k.row(basis, factor))
            k.add_to_row(d_basis, factor, value)
        k.write("d_basis", spec.n_variables, channel, place, count, d_basis)
    return k.e.finish(k.work.size)


def _clear(k: _Writer, memory: ir.Value) -> None:
    for row in range(k.spec.n_variables):
        k.set_row(memory, row, [k.e.zero(k.spec.lanes)] * k.n_atoms)


@dataclass
class _Reverse:
    """First derivatives: with c' = sum over outputs of g c, one scalar polynomial for each atom.

    A node's value is s = c' + sum over children of (factor x the child's value); the derivative by
    the factor of a child is w s(child).
    """

    k: _Writer
    basis: ir.Value
    d_basis: ir.Value
    cotangent: ir.Value
    panel: ir.Value
    d_panel: ir.Value | None

    def visit(self, node: Monomial, w: Atoms) -> Atoms:
        k = self.k
        value: Atoms | None = None
        for output, number in node.terms:
            g = k.row(self.cotangent, output)
            value = k.fma(k.coefficient(self.panel, number), g, value)
            if self.d_panel is not None:
                k.sum_into(self.d_panel, number, [(g, w)])
        for factor, child in node.children.items():
            variable = k.row(self.basis, factor)
            below = self.visit(child, k.mul(w, variable))
            value = k.fma(below, variable, value)
            k.set_row(self.d_basis, factor, k.fma(w, below, k.row(self.d_basis, factor)))
        assert value is not None
        return value


def write_second(spec: PolynomialSpec, weighted: bool, name: str) -> str:
    """Derivatives of ``t_basis . (derivative by A)``: by A, cotangent and, if asked, coefficients.

    Arguments: order, species_ptr, coefficients, basis, cotangent, t_basis, d_coefficients, d_basis,
    d_cotangent, work; start, stop, n_species.
    """
    pointers = (
        *("coefficients", "basis", "cotangent", "t_basis"),
        *("d_coefficients", "d_basis", "d_cotangent"),
    )
    k = _Writer(spec, name, pointers, 2)
    basis, t_basis, d_basis = (k.scratch(spec.n_variables) for _ in range(3))
    cotangent, d_cotangent = k.scratch(spec.n_outputs), k.scratch(spec.n_outputs)
    for channel, offset, place, count in k.blocks():
        block = (channel, place, count)
        k.read("basis", spec.n_variables, *block, basis)
        k.read("t_basis", spec.n_variables, *block, t_basis, missing_as_zero=True)
        k.read("cotangent", spec.n_outputs, *block, cotangent, missing_as_zero=True)
        _clear(k, d_basis)
        walk = _Second(
            k,
            basis,
            t_basis,
            d_basis,
            cotangent,
            k.e.at(k["coefficients"], offset),
            k.e.at(k["d_coefficients"], offset) if weighted else None,
        )
        for factor, node in spec.tree(range(spec.n_outputs)).children.items():
            k.e.may_break(LONGEST)
            _, t_value = walk.visit(node, k.row(basis, factor), k.row(t_basis, factor))
            if t_value is not None:
                k.add_to_row(d_basis, factor, t_value)
        for output in range(spec.n_outputs):
            zeros = [k.e.zero(spec.lanes)] * k.n_atoms
            k.set_row(d_cotangent, output, walk.sums.get(output) or zeros)
        k.write("d_basis", spec.n_variables, *block, d_basis)
        k.write("d_cotangent", spec.n_outputs, *block, d_cotangent)
    return k.e.finish(k.work.size)


@dataclass
class _Second:
    """The change of everything in ``_Reverse`` as A moves along t_A."""

    k: _Writer
    basis: ir.Value
    t_basis: ir.Value
    d_basis: ir.Value
    cotangent: ir.Value
    panel: ir.Value
    d_panel: ir.Value | None
    sums: dict[int, Atoms] = field(default_factory=dict)

    def visit(self, node: Monomial, w: Atoms, t_w: Atoms) -> tuple[Atoms, Atoms | None]:
        k = self.k
        value: Atoms | None = None
        t_value: Atoms | None = None
        for output, number in node.terms:
            g, c = k.row(self.cotangent, output), k.coefficient(self.panel, number)
            value = k.fma(c, g, value)
            self.sums[output] = k.fma(c, t_w, self.sums.get(output))
            if self.d_panel is not None:
                k.sum_into(self.d_panel, number, [(g, t_w)])
        for factor, child in node.children.items():
            variable, moved = k.row(self.basis, factor), k.row(self.t_basis, factor)
            below, t_below = self.visit(
                child, k.mul(w, variable), k.fma(w, moved, k.mul(t_w, variable))
            )
            value = k.fma(below, variable, value)
            t_value = k.fma(below, moved, t_value)
            total = k.fma(t_w, below, k.row(self.d_basis, factor))
            if t_below is not None:
                t_value = k.fma(t_below, variable, t_value)
                total = k.fma(w, t_below, total)
            k.set_row(self.d_basis, factor, total)
        assert value is not None
        return value, t_value
