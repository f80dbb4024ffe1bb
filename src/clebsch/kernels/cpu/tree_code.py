"""Kernels of sparse polynomials that are read from tables: see ``clebsch.kernels.tree``.

The lanes of a vector are atoms of one species; the walk over the nodes and terms of its tree is the
same for all of them. A node's terms are summed before they are multiplied by the node, so that a
term costs two multiply-adds where first derivatives are wanted, and no memory but its table.

For the polynomial E = sum over nodes p of w_p s_p with s_p = sum over terms of c A_q, the adjoint
of a node is a_p = s_p + sum over its child nodes of a A_q, and dE/dA_q sums c w_p over terms and
a_p w_parent over nodes. Second derivatives move all of this along t_A.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llvmlite import ir

from clebsch.kernels.cpu import machine
from clebsch.kernels.cpu.emit import Emitter, Index

#: Tables that every kernel takes first: int64 but for the coefficients.
TABLES = ("blocks", "order", "parents", "node_factors", "term_ptr", "term_factors", "coefficients")
#: Integers that every kernel takes after its range of blocks: of the largest tree, and of all.
SIZES = ("n_nodes", "n_variables")


@dataclass(frozen=True)
class _Block:
    """Atoms of one species: where the nodes of their tree stand, and they in the order."""

    first_node: ir.Value
    n_nodes: ir.Value
    place: ir.Value
    count: ir.Value


class _Writer:
    """What the three kernels share: blocks of atoms, rows of scratch memory, the tree."""

    def __init__(self, name: str, bits: int, pointers: Sequence[str]) -> None:
        names = (*TABLES, *pointers, "memory", "work")
        self.e = Emitter(name, names, ("start", "stop", *SIZES), bits)
        self.lanes = machine.wide(bits)
        self._rows: Index = 0

    def __getitem__(self, name: str) -> ir.Value:
        return self.e[name]

    def rows(self, count: str) -> ir.Value:
        """Scratch memory of as many vectors as the size of that name says."""
        start = self.e.times(self._rows, self.lanes)
        self._rows = self.e.plus(self._rows, self[count])
        return self.e.at(self["memory"], start)

    def get(self, memory: ir.Value, row: Index) -> ir.Value:
        return self.e.load(self.e.at(memory, self.e.times(row, self.lanes)), self.lanes)

    def put(self, value: ir.Value, memory: ir.Value, row: Index) -> None:
        self.e.store(value, self.e.at(memory, self.e.times(row, self.lanes)))

    def add(self, memory: ir.Value, row: Index, a: ir.Value, b: ir.Value) -> None:
        """Add a b to a row."""
        self.put(self.e.fma(a, b, self.get(memory, row)), memory, row)

    def clear(self, memory: ir.Value, count: ir.Value) -> None:
        with self.e.loop(0, count) as row:
            self.put(self.e.zero(self.lanes), memory, row)

    def blocks(self) -> Iterator[_Block]:
        """The blocks of the range; ``blocks`` holds what ``_Block`` does."""
        e = self.e
        with e.loop(self["start"], self["stop"]) as number:
            yield _Block(
                *(e.integer_at(self["blocks"], e.plus(e.times(number, 4), i)) for i in range(4))
            )

    def read(self, name: str, block: _Block, memory: ir.Value) -> None:
        """Atoms' variables as rows; atoms that are missing repeat the last."""
        e = self.e
        with e.loop(0, self.lanes) as a:
            within = e.smaller(a, e.minus(block.count, 1))
            atom = e.integer_at(self["order"], e.plus(block.place, within))
            source = e.at(self[name], e.times(atom, self["n_variables"]))
            with e.loop(0, self["n_variables"]) as row:
                target = e.at(memory, e.plus(e.times(row, self.lanes), a))
                e.store(e.load(e.at(source, row), 1), target)

    def write(self, name: str, block: _Block, memory: ir.Value, factor: ir.Value) -> None:
        """Rows times a factor to atoms' variables."""
        e = self.e
        with e.loop(0, self["n_variables"]) as row:
            self.put(e.mul(self.get(memory, row), factor), memory, row)
        with e.loop(0, block.count) as a:
            atom = e.integer_at(self["order"], e.plus(block.place, a))
            target = e.at(self[name], e.times(atom, self["n_variables"]))
            with e.loop(0, self["n_variables"]) as row:
                source = e.at(memory, e.plus(e.times(row, self.lanes), a))
                e.store(e.load(source, 1), e.at(target, row))

    def read_numbers(self, name: str, block: _Block, memory: ir.Value) -> ir.Value:
        """One number of each atom, 0 for those that are missing; through a row of scratch."""
        e = self.e
        self.put(e.zero(self.lanes), memory, 0)
        with e.loop(0, block.count) as a:
            atom = e.integer_at(self["order"], e.plus(block.place, a))
            e.store(e.load(e.at(self[name], atom), 1), e.at(memory, a))
        return self.get(memory, 0)

    def write_numbers(self, name: str, block: _Block, value: ir.Value, memory: ir.Value) -> None:
        """One number for each atom, through a row of scratch."""
        e = self.e
        self.put(value, memory, 0)
        with e.loop(0, block.count) as a:
            atom = e.integer_at(self["order"], e.plus(block.place, a))
            e.store(e.load(e.at(memory, a), 1), e.at(self[name], atom))

    def nodes(self, block: _Block) -> Iterator[tuple[ir.Value, ir.Value, ir.Value]]:
        """(node, parent, factor) of all but the constant, upwards."""
        with self.e.loop(1, block.n_nodes) as p:
            yield p, *self.parent(p, block)

    def parent(self, p: ir.Value, block: _Block) -> tuple[ir.Value, ir.Value]:
        """Parent and factor of a node."""
        place = self.e.plus(block.first_node, p)
        parent = self.e.integer_at(self["parents"], place)
        return parent, self.e.integer_at(self["node_factors"], place)

    def downwards(self, block: _Block) -> Iterator[ir.Value]:
        """All nodes, each before its parent."""
        with self.e.loop(0, block.n_nodes) as i:
            yield self.e.minus(self.e.minus(block.n_nodes, 1), i)

    def terms(self, p: ir.Value, block: _Block) -> Iterator[tuple[ir.Value, ir.Value, ir.Value]]:
        """(term, coefficient in all lanes, factor) of a node."""
        e = self.e
        place = e.plus(block.first_node, p)
        first = e.integer_at(self["term_ptr"], place)
        last = e.integer_at(self["term_ptr"], e.plus(place, 1))
        with e.loop(first, last) as t:
            c = e.spread(e.at(self["coefficients"], t), self.lanes)
            yield t, c, e.integer_at(self["term_factors"], t)

    def sum_into(self, name: str, t: ir.Value, value: ir.Value) -> None:
        """Add the lanes of a vector to the derivative by a term's coefficient."""
        e = self.e
        address = e.at(self[name], t)
        e.store(e.add(e.load(address, 1), e.lane_sum(value, self.lanes)), address)

    def finish(self) -> str:
        return self.e.finish(0)


def write_forward(name: str, bits: int) -> str:
    """out = polynomial. Arguments: tables, variables [N, V], out [N], memory, work."""
    k = _Writer(name, bits, ("variables", "out"))
    e, lanes = k.e, k.lanes
    a, w = k.rows("n_variables"), k.rows("n_nodes")
    for block in k.blocks():
        k.read("variables", block, a)
        k.put(e.constant(1, lanes), w, 0)
        for p, parent, q in k.nodes(block):
            k.put(e.mul(k.get(w, parent), k.get(a, q)), w, p)
        total, inner = e.variable(lanes), e.variable(lanes)
        e.put(e.zero(lanes), total)
        with e.loop(0, block.n_nodes) as p:
            e.put(e.zero(lanes), inner)
            for _, c, q in k.terms(p, block):
                e.put(e.fma(c, k.get(a, q), e.get(inner, lanes)), inner)
            e.put(e.fma(k.get(w, p), e.get(inner, lanes), e.get(total, lanes)), total)
        k.write_numbers("out", block, e.get(total, lanes), a)
    return k.finish()


def write_gradients(name: str, bits: int, weighted: bool) -> str:
    """Derivatives of ``cotangent . polynomial`` by variables and, if ``weighted``, coefficients.

    Those by variables are written, those by coefficients added to what is there. Arguments: tables,
    variables, cotangent [N], d_coefficients, d_variables, memory, work.
    """
    k = _Writer(name, bits, ("variables", "cotangent", "d_coefficients", "d_variables"))
    e, lanes = k.e, k.lanes
    a, d_a = k.rows("n_variables"), k.rows("n_variables")
    w, adjoint = k.rows("n_nodes"), k.rows("n_nodes")
    for block in k.blocks():
        g = k.read_numbers("cotangent", block, a)
        k.read("variables", block, a)
        k.clear(d_a, k["n_variables"])
        k.clear(adjoint, block.n_nodes)
        k.put(e.constant(1, lanes), w, 0)
        for p, parent, q in k.nodes(block):
            k.put(e.mul(k.get(w, parent), k.get(a, q)), w, p)
        total = e.variable(lanes)
        for p in k.downwards(block):
            value = k.get(w, p)
            e.put(k.get(adjoint, p), total)
            for t, c, q in k.terms(p, block):
                variable = k.get(a, q)
                e.put(e.fma(c, variable, e.get(total, lanes)), total)
                k.add(d_a, q, c, value)
                if weighted:
                    k.sum_into("d_coefficients", t, e.mul(e.mul(g, value), variable))
            with e.when(e.less(0, p)):
                parent, q = k.parent(p, block)
                s = e.get(total, lanes)
                k.add(d_a, q, s, k.get(w, parent))
                k.add(adjoint, parent, s, k.get(a, q))
        k.write("d_variables", block, d_a, g)
    return k.finish()


def write_second(name: str, bits: int, weighted: bool) -> str:
    """Derivatives of ``t_variables . (derivative by variables)``.

    By variables and cotangent, and by coefficients if ``weighted``. Arguments: tables, variables,
    cotangent, t_variables [N, V], d_coefficients, d_variables, d_cotangent [N], memory, work.
    """
    pointers = ("variables", "cotangent", "t_variables")
    k = _Writer(name, bits, (*pointers, "d_coefficients", "d_variables", "d_cotangent"))
    e, lanes = k.e, k.lanes
    a, t_a, d_a = (k.rows("n_variables") for _ in range(3))
    w, t_w, adjoint, t_adjoint = (k.rows("n_nodes") for _ in range(4))
    for block in k.blocks():
        g = k.read_numbers("cotangent", block, a)
        k.read("variables", block, a)
        k.read("t_variables", block, t_a)
        k.clear(d_a, k["n_variables"])
        k.clear(adjoint, block.n_nodes)
        k.clear(t_adjoint, block.n_nodes)
        k.put(e.constant(1, lanes), w, 0)
        k.put(e.zero(lanes), t_w, 0)
        for p, parent, q in k.nodes(block):
            below, variable = k.get(w, parent), k.get(a, q)
            k.put(e.mul(below, variable), w, p)
            moved = e.mul(k.get(t_w, parent), variable)
            k.put(e.fma(below, k.get(t_a, q), moved), t_w, p)
        change, inner, t_inner = (e.variable(lanes) for _ in range(3))
        e.put(e.zero(lanes), change)
        for p in k.downwards(block):
            value, t_value = k.get(w, p), k.get(t_w, p)
            e.put(e.zero(lanes), inner)
            e.put(e.zero(lanes), t_inner)
            for t, c, q in k.terms(p, block):
                variable, moved = k.get(a, q), k.get(t_a, q)
                e.put(e.fma(c, variable, e.get(inner, lanes)), inner)
                e.put(e.fma(c, moved, e.get(t_inner, lanes)), t_inner)
                k.add(d_a, q, c, t_value)
                if weighted:
                    both = e.fma(t_value, variable, e.mul(value, moved))
                    k.sum_into("d_coefficients", t, e.mul(g, both))
            s, t_s = e.get(inner, lanes), e.get(t_inner, lanes)
            both = e.fma(t_value, s, e.mul(value, t_s))
            e.put(e.add(e.get(change, lanes), both), change)
            with e.when(e.less(0, p)):
                parent, q = k.parent(p, block)
                variable, moved = k.get(a, q), k.get(t_a, q)
                s, t_s = e.add(s, k.get(adjoint, p)), e.add(t_s, k.get(t_adjoint, p))
                k.add(d_a, q, t_s, k.get(w, parent))
                k.add(d_a, q, s, k.get(t_w, parent))
                k.add(adjoint, parent, s, variable)
                k.add(t_adjoint, parent, t_s, variable)
                k.add(t_adjoint, parent, s, moved)
        k.write_numbers("d_cotangent", block, e.get(change, lanes), t_a)
        k.write("d_variables", block, d_a, g)
    return k.finish()
