"""The kernels of the product of edge tensors with the environment of their receiver.

For each receiver and path the Clebsch-Gordan coefficients are contracted with the environment
first, ``M[a, c] = sum_b C[b, a, c] environment[b]`` for all channels of a chunk. M stays in the
first-level cache and serves all edges of the receiver: ``out[c] = sum_a M[a, c] tensors[a]``, and
``d_tensors[a] = sum_c M[a, c] g[c]``. The derivative by the environment is first summed over edges,
``D[a, c] = sum over edges of tensors[a] g[c]``, in registers, and then contracted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from llvmlite import ir

from clebsch.kernels.cpu import machine
from clebsch.kernels.cpu.emit import Emitter, Index, Workspace
from clebsch.kernels.plan import ConvolutionPlan

Chunk = list[ir.Value]  # the vectors of one chunk of channels
#: (tensor component a, output component c) -> [(environment component b, coefficient)].
Entries = dict[tuple[int, int], list[tuple[int, float]]]


@dataclass(frozen=True, eq=False)
class EdgeProductSpec(machine.Channels):
    """What a kernel is compiled for.

    Attributes:
        plan: paths and coefficients; "nodes" are the edge tensors, "harmonics" the environment.
    """

    plan: ConvolutionPlan

    @cached_property
    def entries(self) -> list[Entries]:
        """Of each path, without what is zero."""
        plan, seen, found = self.plan, [0] * len(self.plan.out_irreps), []
        for path in plan.paths:
            table = plan.coefficients(path)
            left = plan.node_irreps.slices[path.node].start
            middle = plan.harmonic_irreps.slices[path.harmonic].start
            copies, out = plan.paths_per_out[path.out], plan.out_blocks[path.out].start
            out += seen[path.out]
            seen[path.out] += 1
            entries: Entries = {}
            for c, a in np.ndindex(table.shape[2], table.shape[1]):
                nonzero = np.flatnonzero(np.abs(table[:, a, c]) > 1e-14)
                if len(nonzero):
                    terms = [(middle + int(b), float(table[b, a, c])) for b in nonzero]
                    entries[left + a, out + c * copies] = terms
            found.append(entries)
        return found

    @cached_property
    def n_entries(self) -> int:
        """Multiply-adds of one edge and channel."""
        return sum(len(entries) for entries in self.entries)

    @property
    def all_take_part(self) -> bool:
        """Whether every component of the tensors is in some path."""
        return len({a for path in self.entries for a, _ in path}) == self.plan.node_irreps.dim

    @property
    def key(self) -> str:
        """Tells this specification from others."""
        return f"{self.plan.key}|{self.channels}|{self.bits}"


class _Writer:
    """One kernel in the making: receivers, chunks of channels, edges."""

    def __init__(self, spec: EdgeProductSpec, name: str, pointers: Sequence[str]) -> None:
        self.spec = spec
        self.e = Emitter(name, [*pointers, "work"], ("start", "stop"), spec.bits)
        self.work = Workspace()

    def rows(self) -> Iterator[tuple[ir.Value, tuple[ir.Value, ir.Value], Index]]:
        """Receivers, the range of their edges, and the first channel of each chunk."""
        e = self.e
        with e.loop(e["start"], e["stop"]) as receiver:
            first = e.integer_at(e["row_ptr"], receiver)
            last = e.integer_at(e["row_ptr"], e.plus(receiver, 1))
            with e.loop(0, self.spec.n_chunks) as chunk:
                yield receiver, (first, last), e.times(chunk, self.spec.chunk)

    def row(self, name: str, row: ir.Value, dim: int, channel: Index) -> ir.Value:
        """Where a row of [rows, dim, K] has its chunk."""
        channels = self.spec.channels
        return self.e.at(self.e[name], self.e.times(row, dim * channels), channel)

    def load(self, base: ir.Value, component: int, stride: int | None = None) -> Chunk:
        """The chunk of one component."""
        spec = self.spec
        start = component * (spec.channels if stride is None else stride)
        return [
            self.e.load(self.e.at(base, start + v * spec.lanes), spec.lanes)
            for v in range(spec.vectors)
        ]

    def store(
        self, chunk: Chunk, base: ir.Value, component: int, stride: int | None = None
    ) -> None:
        """Write the chunk of one component."""
        spec = self.spec
        start = component * (spec.channels if stride is None else stride)
        for v, value in enumerate(chunk):
            self.e.store(value, self.e.at(base, start + v * spec.lanes))

    def fma(self, a: Chunk, b: Chunk, c: Chunk | None) -> Chunk:
        """a b + c."""
        sums = c or [None] * len(a)
        return [self.e.fma(x, y, z) for x, y, z in zip(a, b, sums, strict=True)]

    def scale(self, number: float, a: Chunk, c: Chunk | None) -> Chunk:
        """number a + c."""
        constant = self.e.constant(number, self.spec.lanes)
        return self.fma([constant] * len(a), a, c)

    def contracted(self, entries: Entries, environment: ir.Value, matrix: ir.Value) -> None:
        """M of one path, one chunk for each entry."""
        used = sorted({b for terms in entries.values() for b, _ in terms})
        values = {b: self.load(environment, b) for b in used}
        for place, terms in enumerate(entries.values()):
            total = None
            for b, coefficient in terms:
                total = self.scale(coefficient, values[b], total)
            assert total is not None
            self.store(total, matrix, place, self.spec.chunk)


def write_forward(spec: EdgeProductSpec, n_terms: int, name: str) -> str:
    """``out = sum over terms of the product of tensors and environment``.

    Arguments: row_ptr, then tensors [E, H, K] and environment [N, S, K] of each term, out
    [E, C, K], which is written, work; start and stop, a range of receivers.
    """
    terms = range(n_terms)
    inputs = [f"{kind}{term}" for term in terms for kind in ("tensors", "environment")]
    k = _Writer(spec, name, ("row_ptr", *inputs, "out"))
    e, plan = k.e, spec.plan
    largest = max(len(entries) for entries in spec.entries)
    matrices = [e.at(e["work"], k.work.take(largest * spec.chunk)) for _ in terms]
    for receiver, edges, channel in k.rows():
        for entries in spec.entries:
            for term in terms:
                row = k.row(f"environment{term}", receiver, plan.harmonic_irreps.dim, channel)
                k.contracted(entries, row, matrices[term])
            with e.loop(*edges) as edge:
                out = k.row("out", edge, plan.out_dim, channel)
                sums: dict[int, Chunk] = {}
                for term in terms:
                    left = k.row(f"tensors{term}", edge, plan.node_irreps.dim, channel)
                    values = {a: k.load(left, a) for a in sorted({a for a, _ in entries})}
                    for place, (a, c) in enumerate(entries):
                        factor = k.load(matrices[term], place, spec.chunk)
                        sums[c] = k.fma(factor, values[a], sums.get(c))
                for c, total in sums.items():
                    k.store(total, out, c)
    return e.finish(k.work.size)


def write_gradients(spec: EdgeProductSpec, wanted: Sequence[bool], name: str) -> str:
    """First derivatives of ``cotangent . product``.

    Arguments: row_ptr, tensors [E, H, K], environment [N, S, K], cotangent [E, C, K], d_tensors,
    which is written where components take part in a path, d_environment, which is added to, work;
    start and stop, a range of receivers.
    """
    pointers = ("tensors", "environment", "cotangent", "d_tensors", "d_environment")
    k = _Writer(spec, name, ("row_ptr", *pointers))
    e, plan = k.e, spec.plan
    largest = max(len(entries) for entries in spec.entries)
    matrix = e.at(e["work"], k.work.take(largest * spec.chunk))
    for receiver, edges, channel in k.rows():
        row = k.row("environment", receiver, plan.harmonic_irreps.dim, channel)
        d_row = k.row("d_environment", receiver, plan.harmonic_irreps.dim, channel)
        written: set[int] = set()
        for entries in spec.entries:
            if wanted[0]:
                k.contracted(entries, row, matrix)
                with e.loop(*edges) as edge:
                    _tensor_gradient(k, entries, matrix, edge, channel, written)
                written |= {a for a, _ in entries}
            if wanted[1]:
                for group in _groups(spec, entries):
                    _environment_gradient(k, group, edges, channel, d_row)
    return e.finish(k.work.size)


def _tensor_gradient(
    k: _Writer,
    entries: Entries,
    matrix: ir.Value,
    edge: ir.Value,
    channel: Index,
    written: set[int],
) -> None:
    """d_tensors[a] of one edge, added to what earlier paths have ``written``."""
    plan = k.spec.plan
    given = k.row("cotangent", edge, plan.out_dim, channel)
    target = k.row("d_tensors", edge, plan.node_irreps.dim, channel)
    values = {c: k.load(given, c) for c in sorted({c for _, c in entries})}
    sums: dict[int, Chunk] = {}
    for place, (a, c) in enumerate(entries):
        if a not in sums and a in written:
            sums[a] = k.load(target, a)
        sums[a] = k.fma(k.load(matrix, place, k.spec.chunk), values[c], sums.get(a))
    for a, total in sums.items():
        k.store(total, target, a)


def _groups(spec: EdgeProductSpec, entries: Entries) -> list[Entries]:
    """Entries whose sums over edges fit in registers together."""
    most = (24 if machine.many_registers() else 8) // spec.vectors
    listed = list(entries.items())
    return [dict(listed[start : start + most]) for start in range(0, len(listed), most)]


def _environment_gradient(
    k: _Writer,
    group: Entries,
    edges: tuple[ir.Value, ir.Value],
    channel: Index,
    target: ir.Value,
) -> None:
    """d_environment[b] += coefficient D[a, c] for a group of entries."""
    spec, e, plan = k.spec, k.e, k.spec.plan
    sums = {entry: [e.variable(spec.lanes) for _ in range(spec.vectors)] for entry in group}
    for variables in sums.values():
        for variable in variables:
            e.put(e.zero(spec.lanes), variable)
    with e.loop(*edges) as edge:
        left = k.row("tensors", edge, plan.node_irreps.dim, channel)
        given = k.row("cotangent", edge, plan.out_dim, channel)
        lefts = {a: k.load(left, a) for a in sorted({a for a, _ in group})}
        rights = {c: k.load(given, c) for c in sorted({c for _, c in group})}
        for (a, c), variables in sums.items():
            for x, y, variable in zip(lefts[a], rights[c], variables, strict=True):
                e.put(e.fma(x, y, e.get(variable, spec.lanes)), variable)
    totals: dict[int, Chunk] = {}
    for entry, terms in group.items():
        value = [e.get(variable, spec.lanes) for variable in sums[entry]]
        for b, coefficient in terms:
            totals[b] = k.scale(coefficient, value, totals.get(b) or k.load(target, b))
    for b, total in totals.items():
        k.store(total, target, b)
