"""The convolution's kernels, written out for one plan and one number of channels.

All three kernels walk the same way: over chunks of channels (two vector registers wide), over
blocks of ``BLOCK`` edges, sorted by receiver. For each block and chunk

1. the coefficients are contracted with the edges' harmonics: G[m2, m3] of every path, sparse,
   with edges side by side in a vector;
2. the path weights R are made by a small matrix product from the radial network's last hidden
   layer and stay in the first-level cache;
3. for each edge and path ``u = R h`` and ``A += G u``, or the derivatives of that.

No path weight and no message ever reaches memory as a whole. The names below: X hidden layer, W last
radial weight, R = X W path weights, Y harmonics, h sender's features, g cotangent of the output;
v = G^T g, and q = u g the derivative with respect to G. A leading ``t_`` is a direction (tangent),
a leading ``d_`` a derivative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
from llvmlite import ir

from clebsch.kernels.cpu import machine
from clebsch.kernels.cpu.emit import Emitter, Index
from clebsch.kernels.plan import ConvolutionPlan

#: Edges whose path weights are made at once.
BLOCK = 16

#: In place of a hidden layer's width: path weights come out of a table.
TABLE = -1

Chunk = list[ir.Value]  # the vectors of one chunk of channels


@dataclass(frozen=True, eq=False)
class ConvolutionSpec:
    """What a kernel is compiled for.

    Attributes:
        plan: paths and coefficients.
        channels: K.
        hidden: F, the width of the radial network's last hidden layer, a multiple of ``wide``;
            0 where path weights are given instead, TABLE where they come out of a table.
        bits: of the real type.
    """

    plan: ConvolutionPlan
    channels: int
    hidden: int
    bits: int

    @property
    def wide(self) -> int:
        """Lanes of the machine's vectors."""
        return machine.vector_bytes() * 8 // self.bits

    @cached_property
    def lanes(self) -> int:
        """Lanes of the vectors that hold channels: the most that divide their number."""
        lanes = self.wide
        while self.channels % lanes:
            lanes //= 2
        return lanes

    @cached_property
    def vectors(self) -> int:
        """Vectors in a chunk of channels."""
        return 2 if self.channels % (2 * self.lanes) == 0 else 1

    @property
    def chunk(self) -> int:
        """Channels in a chunk."""
        return self.lanes * self.vectors

    @property
    def n_chunks(self) -> int:
        """Chunks in all channels."""
        return self.channels // self.chunk

    @cached_property
    def n_harmonics(self) -> int:
        """Components of the harmonics, rounded up so that their sums fill whole vectors."""
        return -(-self.plan.harmonic_irreps.dim // self.lanes) * self.lanes

    @cached_property
    def entries(self) -> dict[tuple[int, int, int], list[tuple[int, float]]]:
        """(path, m2, m3) -> [(harmonic component, coefficient)], without what is zero."""
        found = {}
        for index, path in enumerate(self.plan.paths):
            table = self.plan.coefficients(path)
            start = self.plan.harmonic_irreps.slices[path.harmonic].start
            for m2 in range(table.shape[1]):
                for m3 in range(table.shape[2]):
                    nonzero = np.flatnonzero(np.abs(table[:, m2, m3]) > 1e-14)
                    if len(nonzero):
                        terms = [(start + int(m), float(table[m, m2, m3])) for m in nonzero]
                        found[index, m2, m3] = terms
        return found

    @cached_property
    def rank(self) -> dict[tuple[int, int, int], int]:
        """Numbers the entries."""
        return {entry: index for index, entry in enumerate(self.entries)}

    @cached_property
    def out_component(self) -> list[list[int]]:
        """[path][m3]: the component of the output."""
        seen = [0] * len(self.plan.out_irreps)
        components = []
        for path in self.plan.paths:
            block, copies = self.plan.out_blocks[path.out], self.plan.paths_per_out[path.out]
            dim = self.plan.out_irreps[path.out].dim
            components.append([block.start + m * copies + seen[path.out] for m in range(dim)])
            seen[path.out] += 1
        return components

    def node_component(self, path: int, m2: int) -> int:
        """The component of the sender's features."""
        return self.plan.node_irreps.slices[self.plan.paths[path].node].start + m2

    def node_dim(self, path: int) -> int:
        """Number of m2."""
        return self.plan.node_irreps[self.plan.paths[path].node].dim

    def out_dim(self, path: int) -> int:
        """Number of m3."""
        return self.plan.out_irreps[self.plan.paths[path].out].dim

    @property
    def key(self) -> str:
        """Tells this specification from others."""
        plan = self.plan
        irreps = f"{plan.node_irreps}|{plan.harmonic_irreps}|{plan.out_irreps}"
        return f"{irreps}|{self.channels}|{self.hidden}|{self.bits}"


class Workspace:
    """Hands out places in a kernel's scratch memory, in elements, each on a cache line."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, size: int) -> int:
        """The offset of ``size`` elements."""
        start, self.size = self.size, self.size + -(-size // 16) * 16
        return start


class _Writer:
    """What the three kernels share."""

    def __init__(self, spec: ConvolutionSpec, name: str, pointers: Sequence[str]) -> None:
        self.spec = spec
        integers = ("start", "stop", "n_edges")
        self.e = Emitter(name, [*pointers, "work"], integers, spec.bits)
        self.work = Workspace()
        self.row_ptr, self.senders, self.receivers = (
            self.e[name] for name in ("row_ptr", "senders", "receivers")
        )

    def __getitem__(self, name: str) -> ir.Value:
        return self.e[name]

    def scratch(self, size: int) -> ir.Value:
        """The address of scratch memory."""
        return self.e.at(self["work"], self.work.take(size))

    # --- chunks of channels ---

    def load(self, address: ir.Value) -> Chunk:
        lanes = self.spec.lanes
        return [
            self.e.load(self.e.at(address, v * lanes), lanes) for v in range(self.spec.vectors)
        ]

    def store(self, chunk: Chunk, address: ir.Value) -> None:
        for v, value in enumerate(chunk):
            self.e.store(value, self.e.at(address, v * self.spec.lanes))

    def mul(self, a: Chunk, b: Chunk) -> Chunk:
        return [self.e.mul(x, y) for x, y in zip(a, b, strict=True)]

    def fma(self, a: Chunk, b: Chunk, c: Chunk | None) -> Chunk:
        sums = c or [None] * len(a)
        return [self.e.fma(x, y, z) for x, y, z in zip(a, b, sums, strict=True)]

    def scale(self, number: ir.Value, a: Chunk, c: Chunk | None) -> Chunk:
        """number a + c."""
        return self.fma([number] * len(a), a, c)

    def increase(self, address: ir.Value, chunk: Chunk) -> None:
        old = self.load(address)
        self.store([self.e.add(x, y) for x, y in zip(old, chunk, strict=True)], address)

    def copy_rows(self, source: ir.Value, target: ir.Value, n_rows: int) -> None:
        """One chunk of ``n_rows`` rows [n_rows, K] to [n_rows, chunk]."""
        with self.e.loop(0, n_rows) as row:
            values = self.load(self.e.at(source, self.e.times(row, self.spec.channels)))
            self.store(values, self.e.at(target, self.e.times(row, self.spec.chunk)))

    # --- the walk ---

    def chunks_and_blocks(self) -> Iterator[tuple[ir.Value, ir.Value, ir.Value]]:
        """Chunks of channels, and in each the blocks of this call's edges."""
        first = self.e.integer_at(self.row_ptr, self["start"])
        last = self.e.integer_at(self.row_ptr, self["stop"])
        with self.e.loop(0, self.spec.n_chunks) as chunk, self.e.loop(first, last, BLOCK) as start:
            count = self.e.smaller(BLOCK, self.e.minus(last, start))
            yield chunk, start, count

    def runs(self, start: ir.Value, count: ir.Value) -> Iterator[tuple[ir.Value, ...]]:
        """The receivers of a block: each with its edges a..b, counted from the block's start."""
        end = self.e.plus(start, count)
        first = self.e.integer_at(self.receivers, start)
        last = self.e.plus(
            self.e.integer_at(self.receivers, self.e.minus(end, 1)), 1
        )
        with self.e.loop(first, last) as receiver:
            row_start = self.e.integer_at(self.row_ptr, receiver)
            row_stop = self.e.integer_at(self.row_ptr, self.e.plus(receiver, 1))
            a = self.e.minus(
                self.e.choose(self.e.less(row_start, start), start, row_start), start
            )
            b = self.e.minus(self.e.smaller(row_stop, end), start)
            yield receiver, a, b

    def couplings(self, start: ir.Value, harmonics: ir.Value, out: ir.Value) -> None:
        """G of every entry [entry, edge of the block], from harmonics [S, n_edges + BLOCK]."""
        wide = self.spec.wide
        stride = self.e.plus(self["n_edges"], BLOCK)
        for part in range(BLOCK // wide):
            rows = []
            for m in range(self.spec.plan.harmonic_irreps.dim):
                offset = self.e.plus(self.e.times(stride, m), start)
                rows.append(self.e.load(self.e.at(harmonics, offset, part * wide), wide))
            for entry, terms in self.spec.entries.items():
                total = None
                for m, coefficient in terms:
                    total = self.e.fma(rows[m], self.e.constant(coefficient, wide), total)
                place = self.spec.rank[entry] * BLOCK + part * wide
                self.e.store(total, self.e.at(out, place))

    def coupling(
        self, table: ir.Value, edge: ir.Value, path: int, m2: int, m3: int
    ) -> ir.Value:
        """G of one edge in all lanes."""
        place = self.spec.rank[path, m2, m3] * BLOCK
        return self.e.spread(self.e.at(table, edge, place), self.spec.lanes)

    # --- matrix products within a block ---

    def product(
        self,
        rows: int,
        vectors: int,
        lanes: int,
        inner: Index,
        left: tuple[ir.Value, int, int],
        right: tuple[ir.Value, int],
        out: tuple[ir.Value, int],
        add: bool,
    ) -> None:
        """out[r, :] (+)= sum over i of left[r, i] right[i, :].

        Args:
            rows: of the tile.
            vectors: in a row of the tile.
            lanes: of a vector.
            inner: length of the sum.
            left: address, stride of r, stride of i.
            right: address, stride of i.
            out: address, stride of r.
            add: to what is there.
        """
        e = self.e
        sums = [[e.variable(lanes) for _ in range(vectors)] for _ in range(rows)]
        for r, v in np.ndindex(rows, vectors):
            place = e.at(out[0], r * out[1] + v * lanes)
            e.put(e.load(place, lanes) if add else e.zero(lanes), sums[r][v])
        with e.loop(0, inner) as i:
            across = e.at(right[0], e.times(i, right[1]))
            values = [e.load(e.at(across, v * lanes), lanes) for v in range(vectors)]
            down = e.at(left[0], e.times(i, left[2]))
            for r in range(rows):
                number = e.spread(e.at(down, r * left[1]), lanes)
                for v in range(vectors):
                    total = e.get(sums[r][v], lanes)
                    e.put(e.fma(number, values[v], total), sums[r][v])
        for r, v in np.ndindex(rows, vectors):
            e.store(e.get(sums[r][v], lanes), e.at(out[0], r * out[1] + v * lanes))

    @property
    def tile(self) -> int:
        """Rows of a tile two vectors wide."""
        return 8 if machine.many_registers() else 4

    def block_of_hidden(self, hidden: ir.Value, start: ir.Value) -> ir.Value:
        """The address of a block's rows of X; the last block is copied, so as to be whole."""
        e, width = self.e, self.spec.hidden
        copy = self.scratch(BLOCK * width)
        rest = e.minus(self["n_edges"], start)
        address = e.at(hidden, e.times(start, width))
        short = e.less(rest, BLOCK)
        with e.when(short), e.loop(0, e.times(rest, width), self.spec.wide) as place:
            e.store(e.load(e.at(address, place), self.spec.wide), e.at(copy, place))
        return e.choose(short, copy, address)

    def path_weights(self, hidden: ir.Value, chunk: ir.Value, out: ir.Value) -> None:
        """R [P, BLOCK, chunk] of a block: X W, with W packed [chunk, P, F, channel]."""
        spec, e = self.spec, self.e
        width = spec.chunk
        with e.loop(0, spec.plan.n_paths) as path:
            panel = e.plus(e.times(chunk, spec.plan.n_paths), path)
            right = e.at(self["weight"], e.times(panel, spec.hidden * width))
            for row in range(0, BLOCK, self.tile):
                left = e.at(hidden, row * spec.hidden)
                target = e.at(out, e.times(path, BLOCK * width), row * width)
                self.product(
                    self.tile,
                    spec.vectors,
                    spec.lanes,
                    spec.hidden,
                    (left, spec.hidden, 1),
                    (right, width),
                    (target, width),
                    add=False,
                )

    def spline_basis(self, places: ir.Value, edge: ir.Value, slopes: bool) -> list[ir.Value]:
        """Cubic Hermite functions of an edge's place (or their slopes), in all lanes."""
        e, lanes = self.e, self.spec.lanes
        place = e.load(e.at(places, edge), 1)
        t = e.widened(e.sub(place, e.from_integer(e.whole_part(place))), lanes)
        coefficients = (
            ((0, -6, 6), (1, -4, 3), (0, 6, -6), (0, -2, 3))
            if slopes
            else ((1, 0, -3, 2), (0, 1, -2, 1), (0, 0, 3, -2), (0, 0, -1, 1))
        )
        functions = []
        for powers in coefficients:
            total = e.constant(powers[-1], lanes)
            for power in reversed(powers[:-1]):
                total = e.fma(total, t, e.constant(power, lanes))
            functions.append(total)
        return functions

    def knots(self, places: ir.Value, edge: ir.Value, chunk: ir.Value) -> list[ir.Value]:
        """Where the table holds an edge's first path: at the knots before and after its place."""
        e, spec = self.e, self.spec
        interval = e.whole_part(e.load(e.at(places, edge), 1))
        panel = 2 * spec.plan.n_paths * spec.chunk
        first = e.plus(e.times(interval, spec.n_chunks), chunk)
        return [
            e.at(self["weight"], e.times(e.plus(first, knot * spec.n_chunks), panel))
            for knot in range(2)
        ]

    def splined(
        self, basis: Sequence[ir.Value], knots: Sequence[ir.Value], path: ir.Value
    ) -> Chunk:
        """The path weights, or slopes, of a path."""
        total: Chunk | None = None
        corner = 0
        for knot in knots:
            for kind in range(2):
                row = self.e.plus(self.e.times(path, 2), kind)
                values = self.load(self.e.at(knot, self.e.times(row, self.spec.chunk)))
                total = self.scale(basis[corner], values, total)
                corner += 1
        assert total is not None
        return total

    def table_weights(
        self, places: ir.Value, chunk: ir.Value, count: ir.Value, out: ir.Value
    ) -> None:
        """R [P, BLOCK, chunk] of a block out of the table [n_knots, chunk, P, 2, channel]."""
        e, spec = self.e, self.spec
        with e.loop(0, count) as edge:
            basis = self.spline_basis(places, edge, slopes=False)
            knots = self.knots(places, edge, chunk)
            with e.loop(0, spec.plan.n_paths) as path:
                place = e.times(e.plus(e.times(path, BLOCK), edge), spec.chunk)
                self.store(self.splined(basis, knots, path), e.at(out, place))

    def table_gradient(
        self, d_weights: ir.Value, chunk: ir.Value, start: ir.Value, count: ir.Value
    ) -> None:
        """d_places += d_R . (slope of R) of a block."""
        e, spec = self.e, self.spec
        places = e.at(self["hidden"], start)
        with e.loop(0, count) as edge:
            basis = self.spline_basis(places, edge, slopes=True)
            knots = self.knots(places, edge, chunk)
            sums = [e.variable(spec.lanes) for _ in range(spec.vectors)]
            for variable in sums:
                e.put(e.zero(spec.lanes), variable)
            with e.loop(0, spec.plan.n_paths) as path:
                place = e.times(e.plus(e.times(path, BLOCK), edge), spec.chunk)
                given = self.load(e.at(d_weights, place))
                slopes = self.splined(basis, knots, path)
                for d, slope, variable in zip(given, slopes, sums, strict=True):
                    e.put(e.fma(d, slope, e.get(variable, spec.lanes)), variable)
            total = e.get(sums[0], spec.lanes)
            for variable in sums[1:]:
                total = e.add(total, e.get(variable, spec.lanes))
            target = e.at(self["d_hidden"], e.plus(start, edge))
            e.store(e.add(e.load(target, 1), e.lane_sum(total, spec.lanes)), target)

    def hidden_gradient(
        self, d_weights: ir.Value, chunk: ir.Value, start: ir.Value, count: ir.Value
    ) -> None:
        """d_X += d_R W^T of a block, with W^T packed [chunk, P, channel, F]."""
        spec, e = self.spec, self.e
        sums = self.scratch(BLOCK * spec.hidden)
        with e.loop(0, BLOCK * spec.hidden, spec.wide) as place:
            e.store(e.zero(spec.wide), e.at(sums, place))
        columns = 2 if spec.hidden % (2 * spec.wide) == 0 else 1
        with e.loop(0, spec.plan.n_paths) as path:
            panel = e.plus(e.times(chunk, spec.plan.n_paths), path)
            right = e.at(self["weight_t"], e.times(panel, spec.hidden * spec.chunk))
            left = e.at(d_weights, e.times(path, BLOCK * spec.chunk))
            with e.loop(0, spec.hidden, columns * spec.wide) as column:
                for row in range(0, BLOCK, self.tile):
                    self.product(
                        self.tile,
                        columns,
                        spec.wide,
                        spec.chunk,
                        (e.at(left, row * spec.chunk), spec.chunk, 1),
                        (e.at(right, column), spec.hidden),
                        (e.at(sums, column, row * spec.hidden), spec.hidden),
                        add=True,
                    )
        with e.loop(0, e.times(count, spec.hidden), spec.wide) as place:
            target = e.at(self["d_hidden"], e.times(start, spec.hidden), place)
            total = e.add(e.load(target, spec.wide), e.load(e.at(sums, place), spec.wide))
            e.store(total, target)

    def weight_gradient(
        self, pairs: Sequence[tuple[ir.Value, ir.Value]], chunk: ir.Value, count: ir.Value
    ) -> None:
        """d_W += sum over (X, d_R) of X^T d_R, packed as W is."""
        spec, e = self.spec, self.e
        width = spec.chunk
        tile = min(self.tile, spec.hidden)
        with e.loop(0, spec.plan.n_paths) as path:
            panel = e.plus(e.times(chunk, spec.plan.n_paths), path)
            out = e.at(self["d_weight"], e.times(panel, spec.hidden * width))
            with e.loop(0, spec.hidden, tile) as row:
                for hidden, d_weights in pairs:
                    self.product(
                        tile,
                        spec.vectors,
                        spec.lanes,
                        count,
                        (e.at(hidden, row), 1, spec.hidden),
                        (e.at(d_weights, e.times(path, BLOCK * width)), width),
                        (e.at(out, e.times(row, width)), width),
                        add=True,
                    )

    def harmonic_sums(self, sums: dict[int, ir.Value], edge: ir.Value) -> None:
        """d_Y[edge] += the sums over channels of every component's vector."""
        spec, e = self.spec, self.e
        for start in range(0, spec.n_harmonics, spec.lanes):
            rows = [sums.get(m) or e.zero(spec.lanes) for m in range(start, start + spec.lanes)]
            place = e.at(self["d_harmonics"], e.times(edge, spec.n_harmonics), start)
            e.store(e.add(e.load(place, spec.lanes), e.row_sums(rows, spec.lanes)), place)

    # --- where path weights lie ---

    def tile_of_weights(
        self,
        argument: str,
        start: ir.Value,
        count: ir.Value,
        chunk: ir.Value,
        hidden: ir.Value | None,
    ) -> tuple[ir.Value, int, int]:
        """Path weights of a block and chunk: address, stride of edges, stride of paths."""
        spec, e = self.spec, self.e
        if spec.hidden:
            out = self.scratch(spec.plan.n_paths * BLOCK * spec.chunk)
            if hidden is None:
                self.table_weights(e.at(self[argument], start), chunk, count, out)
            else:
                self.path_weights(hidden, chunk, out)
            return out, spec.chunk, BLOCK * spec.chunk
        row = spec.plan.n_paths * spec.channels
        address = e.at(self[argument], e.times(start, row), e.times(chunk, spec.chunk))
        return address, row, spec.channels


def _groups(spec: ConvolutionSpec) -> list[list[int]]:
    """Consecutive paths whose sums fit in registers together."""
    groups: list[list[int]] = [[]]
    most = 18 // spec.vectors if machine.many_registers() else 8 // spec.vectors
    for path in range(spec.plan.n_paths):
        total = sum(spec.out_dim(p) for p in groups[-1]) + spec.out_dim(path)
        if groups[-1] and total > most:
            groups.append([])
        groups[-1].append(path)
    return groups


def _by_harmonic(spec: ConvolutionSpec) -> list[list[int]]:
    """Paths by the harmonic they use, whose derivative's sums then share registers."""
    paths = sorted(range(spec.plan.n_paths), key=lambda p: spec.plan.paths[p].harmonic)
    return [list(group) for _, group in groupby(paths, key=lambda p: spec.plan.paths[p].harmonic)]


def write_forward(spec: ConvolutionSpec, name: str) -> str:
    """``out[i] += sum over edges``.

    Arguments: row_ptr, senders, receivers, hidden [E, F] (or weights [E, P, K]), weight (packed),
    harmonics [S, E + BLOCK], nodes, out [N, C, K], work; start, stop, n_edges.
    """
    k = _Writer(
        spec,
        name,
        ("row_ptr", "senders", "receivers", "hidden", "weight", "harmonics", "nodes", "out"),
    )
    e = k.e
    table = k.scratch(len(spec.entries) * BLOCK)
    for chunk, start, count in k.chunks_and_blocks():
        k.couplings(start, k["harmonics"], table)
        hidden = k.block_of_hidden(k["hidden"], start) if spec.hidden > 0 else None
        weights, per_edge, per_path = k.tile_of_weights("hidden", start, count, chunk, hidden)
        channel = e.times(chunk, spec.chunk)
        for receiver, a, b in k.runs(start, count):
            row = e.at(k["out"], e.times(receiver, spec.plan.out_dim * spec.channels), channel)
            for group in _groups(spec):
                _sum_over_edges(k, group, row, (a, b), start, channel, weights, per_edge, per_path, table)
    return e.finish(k.work.size)


def _sum_over_edges(
    k: _Writer,
    group: list[int],
    row: ir.Value,
    edges: tuple[ir.Value, ir.Value],
    start: ir.Value,
    channel: Index,
    weights: ir.Value,
    per_edge: int,
    per_path: int,
    table: ir.Value,
) -> None:
    """Add the edges of one receiver to the output of a group of paths."""
    spec, e = k.spec, k.e
    sums = {}
    for path in group:
        for m3, component in enumerate(spec.out_component[path]):
            sums[path, m3] = [e.variable(spec.lanes) for _ in range(spec.vectors)]
            for old, variable in zip(
                k.load(e.at(row, component * spec.channels)), sums[path, m3], strict=True
            ):
                e.put(old, variable)
    with e.loop(*edges) as edge:
        sender = e.integer_at(k.senders, e.plus(start, edge))
        node = e.at(k["nodes"], e.times(sender, spec.plan.node_irreps.dim * spec.channels), channel)
        here = e.at(weights, e.times(edge, per_edge))
        for path in group:
            radial = k.load(e.at(here, path * per_path))
            for m2 in range(spec.node_dim(path)):
                place = spec.node_component(path, m2) * spec.channels
                weighted = k.mul(radial, k.load(e.at(node, place)))
                for m3 in range(spec.out_dim(path)):
                    if (path, m2, m3) not in spec.entries:
                        continue
                    g = k.coupling(table, edge, path, m2, m3)
                    for value, variable in zip(weighted, sums[path, m3], strict=True):
                        e.put(e.fma(g, value, e.get(variable, spec.lanes)), variable)
    for path in group:
        for m3, component in enumerate(spec.out_component[path]):
            total = [e.get(variable, spec.lanes) for variable in sums[path, m3]]
            k.store(total, e.at(row, component * spec.channels))


@dataclass(frozen=True)
class Wanted:
    """Which derivatives a kernel computes."""

    radial: bool  # d_hidden, or d_weights where path weights are given
    weight: bool  # d_weight, of the last radial layer
    nodes: bool
    harmonics: bool


def write_gradients(spec: ConvolutionSpec, wanted: Wanted, name: str) -> str:
    """All first derivatives of ``cotangent . convolution``, added to what is there.

    Arguments: row_ptr, senders, receivers, hidden, weight, weight_t (packed [chunk, P, channel, F]),
    harmonics, nodes, cotangent [N, C, K], d_hidden, d_weight (packed), d_harmonics [E, S rounded
    up], d_nodes, work; start, stop, n_edges. d_nodes and d_weight must be this call's own: their
    rows belong to no receiver.
    """
    k = _Writer(
        spec,
        name,
        (
            *("row_ptr", "senders", "receivers", "hidden", "weight", "weight_t", "harmonics"),
            *("nodes", "cotangent", "d_hidden", "d_weight", "d_harmonics", "d_nodes"),
        ),
    )
    e = k.e
    table = k.scratch(len(spec.entries) * BLOCK)
    copied = k.scratch(spec.plan.out_dim * spec.chunk)
    for chunk, start, count in k.chunks_and_blocks():
        k.couplings(start, k["harmonics"], table)
        channel = e.times(chunk, spec.chunk)
        hidden = k.block_of_hidden(k["hidden"], start) if spec.hidden > 0 else None
        weights, per_edge, per_path = k.tile_of_weights("hidden", start, count, chunk, hidden)
        d_weights = weights
        if not spec.hidden:
            d_weights = k.tile_of_weights("d_hidden", start, count, chunk, None)[0]
        for receiver, a, b in k.runs(start, count):
            offset = e.times(receiver, spec.plan.out_dim * spec.channels)
            k.copy_rows(e.at(k["cotangent"], offset, channel), copied, spec.plan.out_dim)
            with e.loop(a, b) as edge:
                sender = e.integer_at(k.senders, e.plus(start, edge))
                place = e.plus(e.times(sender, spec.plan.node_irreps.dim * spec.channels), channel)
                step = e.times(edge, per_edge)
                _edge_gradients(
                    k,
                    wanted,
                    edge,
                    e.plus(start, edge),
                    table,
                    copied,
                    lambda path, step=step: e.at(weights, step, path * per_path),
                    lambda path, step=step: e.at(d_weights, step, path * per_path),
                    place,
                )
        if spec.hidden == TABLE and wanted.radial:
            k.table_gradient(d_weights, chunk, start, count)
        if hidden is not None and wanted.radial:
            k.hidden_gradient(d_weights, chunk, start, count)
        if hidden is not None and wanted.weight:
            k.weight_gradient([(hidden, d_weights)], chunk, count)
    return e.finish(k.work.size)


def _edge_gradients(k, wanted, edge, index, table, copied, weight, d_weight, place):  # type: ignore[no-untyped-def]
    """Derivatives of one edge and chunk."""
    spec, e = k.spec, k.e
    zeros = [e.zero(spec.lanes)] * spec.vectors
    node, d_node = e.at(k["nodes"], place), e.at(k["d_nodes"], place)
    harmonic_sums: dict[int, ir.Value] = {}
    for group in _by_harmonic(spec):
        for path in group:
            radial = k.load(weight(path)) if wanted.nodes or wanted.harmonics else zeros
            d_radial = None
            for m2 in range(spec.node_dim(path)):
                outs = [m3 for m3 in range(spec.out_dim(path)) if (path, m2, m3) in spec.entries]
                if not outs:
                    continue
                component = spec.node_component(path, m2) * spec.channels
                features = k.load(e.at(node, component))
                upward = None  # v
                weighted = k.mul(radial, features)  # u
                for m3 in outs:
                    g = k.load(e.at(copied, spec.out_component[path][m3] * spec.chunk))
                    upward = k.scale(k.coupling(table, edge, path, m2, m3), g, upward)
                    if wanted.harmonics:
                        _add_harmonics(k, harmonic_sums, (path, m2, m3), [(weighted, g)])
                if wanted.radial or wanted.weight:
                    d_radial = k.fma(upward, features, d_radial)
                if wanted.nodes:
                    d_place = e.at(d_node, component)
                    k.store(k.fma(radial, upward, k.load(d_place)), d_place)
            if wanted.radial or wanted.weight:
                k.store(d_radial or zeros, d_weight(path))
    if wanted.harmonics:
        k.harmonic_sums(harmonic_sums, index)


def _add_harmonics(
    k: _Writer,
    sums: dict[int, ir.Value],
    entry: tuple[int, int, int],
    products: Sequence[tuple[Chunk, Chunk]],
) -> None:
    """Add an entry's derivative, the sum of products over channels, to those of Y."""
    total = None
    for left, right in products:
        for a, b in zip(left, right, strict=True):
            total = k.e.fma(a, b, total)
    for m, coefficient in k.spec.entries[entry]:
        number = k.e.constant(coefficient, k.spec.lanes)
        sums[m] = k.e.fma(total, number, sums.get(m))


def write_second(
    spec: ConvolutionSpec, wanted: Wanted, moving_nodes: bool, name: str
) -> str:
    """All derivatives of ``direction . (first derivatives)``, added to what is there.

    The directions are those of X (or of the path weights), Y and, with ``moving_nodes``, h; the
    last radial weight stands still.

    Arguments: row_ptr, senders, receivers, hidden, t_hidden, weight, weight_t, harmonics,
    t_harmonics [S, E + BLOCK], nodes, t_nodes, cotangent, d_hidden, d_weight (packed), d_harmonics,
    d_nodes, d_cotangent [N, C, K], work; start, stop, n_edges.
    """
    k = _Writer(
        spec,
        name,
        (
            *("row_ptr", "senders", "receivers", "hidden", "t_hidden", "weight", "weight_t"),
            *("harmonics", "t_harmonics", "nodes", "t_nodes", "cotangent"),
            *("d_hidden", "d_weight", "d_harmonics", "d_nodes", "d_cotangent"),
        ),
    )
    e = k.e
    n_rows = spec.plan.out_dim
    table, t_table = (k.scratch(len(spec.entries) * BLOCK) for _ in range(2))
    copied, d_copied = (k.scratch(n_rows * spec.chunk) for _ in range(2))
    for chunk, start, count in k.chunks_and_blocks():
        k.couplings(start, k["harmonics"], table)
        k.couplings(start, k["t_harmonics"], t_table)
        channel = e.times(chunk, spec.chunk)
        hidden = t_hidden = None
        if spec.hidden:
            hidden = k.block_of_hidden(k["hidden"], start)
            t_hidden = k.block_of_hidden(k["t_hidden"], start)
        weights, per_edge, per_path = k.tile_of_weights("hidden", start, count, chunk, hidden)
        t_weights, _, _ = k.tile_of_weights("t_hidden", start, count, chunk, t_hidden)
        d_weights = weights
        if not spec.hidden:
            d_weights = k.tile_of_weights("d_hidden", start, count, chunk, None)[0]
        for receiver, a, b in k.runs(start, count):
            offset = e.plus(e.times(receiver, n_rows * spec.channels), channel)
            k.copy_rows(e.at(k["cotangent"], offset), copied, n_rows)
            k.copy_rows(e.at(k["d_cotangent"], offset), d_copied, n_rows)
            with e.loop(a, b) as edge:
                sender = e.integer_at(k.senders, e.plus(start, edge))
                place = e.plus(e.times(sender, spec.plan.node_irreps.dim * spec.channels), channel)
                step = e.times(edge, per_edge)
                _edge_second(
                    k,
                    wanted,
                    moving_nodes,
                    edge,
                    e.plus(start, edge),
                    (table, t_table),
                    (copied, d_copied),
                    *(
                        lambda path, base=base, step=step: e.at(base, step, path * per_path)
                        for base in (weights, t_weights, d_weights)
                    ),
                    place,
                )
            with e.loop(0, n_rows) as row:
                values = k.load(e.at(d_copied, e.times(row, spec.chunk)))
                k.store(values, e.at(k["d_cotangent"], offset, e.times(row, spec.channels)))
        if hidden is not None and wanted.radial:
            k.hidden_gradient(d_weights, chunk, start, count)
        if hidden is not None and wanted.weight:
            k.weight_gradient([(hidden, d_weights), (t_hidden, t_weights)], chunk, count)
    return e.finish(k.work.size)


def _edge_second(
    k, wanted, moving_nodes, edge, index, tables, copies, weight, t_weight, d_weight, place
):  # type: ignore[no-untyped-def]
    """Second derivatives of one edge and chunk."""
    spec, e = k.spec, k.e
    (table, t_table), (copied, d_copied) = tables, copies
    zeros = [e.zero(spec.lanes)] * spec.vectors
    node, t_node, d_node = (e.at(k[name], place) for name in ("nodes", "t_nodes", "d_nodes"))
    harmonic_sums: dict[int, ir.Value] = {}
    for group in _by_harmonic(spec):
        for path in group:
            radial, t_radial = k.load(weight(path)), k.load(t_weight(path))
            d_radial = dt_radial = None
            weighted, t_weighted = {}, {}  # u = R h and its change
            for m2 in range(spec.node_dim(path)):
                outs = [m3 for m3 in range(spec.out_dim(path)) if (path, m2, m3) in spec.entries]
                if not outs:
                    continue
                component = spec.node_component(path, m2) * spec.channels
                features = k.load(e.at(node, component))
                weighted[m2] = k.mul(radial, features)
                t_weighted[m2] = k.mul(t_radial, features)
                upward = t_upward = None  # v and its change
                for m3 in outs:
                    g = k.load(e.at(copied, spec.out_component[path][m3] * spec.chunk))
                    upward = k.scale(k.coupling(table, edge, path, m2, m3), g, upward)
                    t_upward = k.scale(k.coupling(t_table, edge, path, m2, m3), g, t_upward)
                d_radial = k.fma(t_upward, features, d_radial)
                dt_radial = k.fma(upward, features, dt_radial)
                if moving_nodes:
                    moved = k.load(e.at(t_node, component))
                    t_weighted[m2] = k.fma(radial, moved, t_weighted[m2])
                    d_radial = k.fma(upward, moved, d_radial)
                if wanted.nodes:
                    d_place = e.at(d_node, component)
                    total = k.fma(t_radial, upward, k.load(d_place))
                    k.store(k.fma(radial, t_upward, total), d_place)
            for m3 in range(spec.out_dim(path)):
                ins = [m2 for m2 in range(spec.node_dim(path)) if (path, m2, m3) in spec.entries]
                if not ins:
                    continue
                row = spec.out_component[path][m3] * spec.chunk
                g = k.load(e.at(copied, row))
                total = k.load(e.at(d_copied, row))
                for m2 in ins:
                    total = k.scale(k.coupling(table, edge, path, m2, m3), t_weighted[m2], total)
                    total = k.scale(k.coupling(t_table, edge, path, m2, m3), weighted[m2], total)
                    if wanted.harmonics:
                        _add_harmonics(k, harmonic_sums, (path, m2, m3), [(t_weighted[m2], g)])
                k.store(total, e.at(d_copied, row))
            k.store(d_radial or zeros, d_weight(path))
            if spec.hidden:
                k.store(dt_radial or zeros, t_weight(path))
    if wanted.harmonics:
        k.harmonic_sums(harmonic_sums, index)
