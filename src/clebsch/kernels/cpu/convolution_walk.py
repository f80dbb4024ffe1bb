"""What the convolution's kernels share: the walk over edges, and making path weights on the way.

All kernels walk the same way: over chunks of channels (two vector registers wide), over blocks of
``BLOCK`` edges, sorted by receiver. For each block and chunk

1. the coefficients are contracted with the edges' harmonics: G[m2, m3] of every path, sparse,
   with edges side by side in a vector;
2. the path weights R are made by a small matrix product from the radial network's last hidden
   layer (or out of a table) and stay in the first-level cache;
3. for each edge and path ``u = R h`` and ``A += G u``, or the derivatives of that.

No path weight and no message ever reaches memory as a whole. The names: X hidden layer, W last
radial weight, R = X W path weights, Y harmonics, h sender's features, g cotangent of the output;
v = G^T g, and q = u g the derivative with respect to G. A leading ``t_`` is a direction (tangent),
a leading ``d_`` a derivative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llvmlite import ir

from clebsch.kernels.cpu.convolution_spec import BLOCK, ConvolutionSpec
from clebsch.kernels.cpu.emit import Emitter, Workspace
from clebsch.kernels.cpu.tile_code import Tile, row_tiles

Chunk = list[ir.Value]  # the vectors of one chunk of channels


class Writer:
    """One kernel in the making."""

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
        """Read a chunk."""
        lanes = self.spec.lanes
        return [self.e.load(self.e.at(address, v * lanes), lanes) for v in range(self.spec.vectors)]

    def store(self, chunk: Chunk, address: ir.Value) -> None:
        """Write a chunk."""
        for v, value in enumerate(chunk):
            self.e.store(value, self.e.at(address, v * self.spec.lanes))

    def mul(self, a: Chunk, b: Chunk) -> Chunk:
        """a b."""
        return [self.e.mul(x, y) for x, y in zip(a, b, strict=True)]

    def fma(self, a: Chunk, b: Chunk, c: Chunk | None) -> Chunk:
        """a b + c."""
        sums = c or [None] * len(a)
        return [self.e.fma(x, y, z) for x, y, z in zip(a, b, sums, strict=True)]

    def scale(self, number: ir.Value, a: Chunk, c: Chunk | None) -> Chunk:
        """number a + c."""
        return self.fma([number] * len(a), a, c)

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
        last = self.e.plus(self.e.integer_at(self.receivers, self.e.minus(end, 1)), 1)
        with self.e.loop(first, last) as receiver:
            row_start = self.e.integer_at(self.row_ptr, receiver)
            row_stop = self.e.integer_at(self.row_ptr, self.e.plus(receiver, 1))
            a = self.e.minus(self.e.choose(self.e.less(row_start, start), start, row_start), start)
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
            for entry, terms in self.spec.plan.entries.items():
                self.e.may_break()
                total = None
                for m, coefficient in terms:
                    total = self.e.fma(rows[m], self.e.constant(coefficient, wide), total)
                place = self.spec.rank[entry] * BLOCK + part * wide
                self.e.store(total, self.e.at(out, place))

    def coupling(self, table: ir.Value, edge: ir.Value, path: int, m2: int, m3: int) -> ir.Value:
        """G of one edge in all lanes."""
        place = self.spec.rank[path, m2, m3] * BLOCK
        return self.e.spread(self.e.at(table, edge, place), self.spec.lanes)

    # --- matrix products within a block ---

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
            for row, n_rows in row_tiles(e, BLOCK):
                left = e.at(hidden, e.times(row, spec.hidden))
                tile = Tile(e, n_rows, spec.vectors, spec.lanes)
                tile.clear()
                tile.add_products(spec.hidden, (left, spec.hidden, 1), (right, width))
                target = e.at(out, e.times(path, BLOCK * width), e.times(row, width))
                tile.store(target, width)

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
        """d_X += d_R W^T of a block, with W^T as ``convolution_spec.turned`` packs it."""
        spec, e = self.spec, self.e
        sums = self.scratch(BLOCK * spec.hidden)
        width, n_paths = spec.columns, spec.plan.n_paths
        with e.loop(0, spec.hidden // width) as column:
            panel = e.plus(e.times(chunk, spec.hidden // width), column)
            columns = e.at(self["weight_t"], e.times(panel, n_paths * spec.chunk * width))
            for row, n_rows in row_tiles(e, BLOCK):
                tile = Tile(e, n_rows, width // spec.wide, spec.wide)
                tile.clear()
                with e.loop(0, n_paths) as path:
                    place = e.plus(e.times(path, BLOCK), row)
                    left = e.at(d_weights, e.times(place, spec.chunk))
                    right = e.at(columns, e.times(path, spec.chunk * width))
                    tile.add_products(spec.chunk, (left, spec.chunk, 1), (right, width))
                target = e.at(sums, e.times(row, spec.hidden), e.times(column, width))
                tile.store(target, spec.hidden)
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
        with e.loop(0, spec.plan.n_paths) as path:
            panel = e.plus(e.times(chunk, spec.plan.n_paths), path)
            out = e.at(self["d_weight"], e.times(panel, spec.hidden * width))
            for row, n_rows in row_tiles(e, spec.hidden):
                tile = Tile(e, n_rows, spec.vectors, spec.lanes)
                target = e.at(out, e.times(row, width))
                tile.load(target, width)
                for hidden, d_weights in pairs:
                    left = (e.at(hidden, row), 1, spec.hidden)
                    right = (e.at(d_weights, e.times(path, BLOCK * width)), width)
                    tile.add_products(count, left, right)
                tile.store(target, width)

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
