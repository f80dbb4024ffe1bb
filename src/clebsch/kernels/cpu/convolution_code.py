"""The convolution's kernels, written out for one plan and one number of channels.

``clebsch.kernels.cpu.convolution_walk`` says how they go and what the names mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from llvmlite import ir

from clebsch.kernels.cpu import machine
from clebsch.kernels.cpu.convolution_spec import BLOCK, TABLE, ConvolutionSpec, Wanted
from clebsch.kernels.cpu.convolution_walk import Chunk, Writer
from clebsch.kernels.cpu.emit import Emitter, Index


def _groups(spec: ConvolutionSpec) -> list[list[int]]:
    """Consecutive paths whose sums fit in registers together."""
    groups: list[list[int]] = [[]]
    most = 18 // spec.vectors if machine.many_registers() else 8 // spec.vectors
    for path in range(spec.plan.n_paths):
        if groups[-1] and len(_outputs(spec, [*groups[-1], path])) > most:
            groups.append([])
        groups[-1].append(path)
    return groups


def _outputs(spec: ConvolutionSpec, paths: Sequence[int]) -> list[int]:
    """The output components of some paths, each once."""
    return sorted({m for path in paths for m in spec.plan.out_components[path]})


def _by_harmonic(spec: ConvolutionSpec) -> list[list[int]]:
    """Paths by the harmonic they use, whose derivative's sums then share registers."""
    paths = sorted(range(spec.plan.n_paths), key=lambda p: spec.plan.paths[p].harmonic)
    return [list(group) for _, group in groupby(paths, key=lambda p: spec.plan.paths[p].harmonic)]


def _rows(e: Emitter, base: ir.Value, step: Index, per_path: int) -> Callable[[int], ir.Value]:
    """Where an edge's weights of a path lie."""
    return lambda path: e.at(base, step, path * per_path)


def write_forward(spec: ConvolutionSpec, name: str) -> str:
    """``out[i] += sum over edges``.

    Arguments: row_ptr, senders, receivers, hidden [E, F] (or weights [E, P, K]), weight (packed),
    harmonics [S, E + BLOCK], nodes, out [N, C, K], work; start, stop, n_edges.
    """
    k = Writer(
        spec,
        name,
        ("row_ptr", "senders", "receivers", "hidden", "weight", "harmonics", "nodes", "out"),
    )
    e = k.e
    table = k.scratch(len(spec.plan.entries) * BLOCK)
    for chunk, start, count in k.chunks_and_blocks():
        k.couplings(start, k["harmonics"], table)
        hidden = k.block_of_hidden(k["hidden"], start) if spec.hidden > 0 else None
        weights, per_edge, per_path = k.tile_of_weights("hidden", start, count, chunk, hidden)
        channel = e.times(chunk, spec.chunk)
        for receiver, a, b in k.runs(start, count):
            row = e.at(k["out"], e.times(receiver, spec.plan.out_dim * spec.channels), channel)
            for group in _groups(spec):
                _sum_over_edges(
                    k, group, row, (a, b), start, channel, weights, per_edge, per_path, table
                )
    return e.finish(k.work.size)


def _sum_over_edges(
    k: Writer,
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
    for component in _outputs(spec, group):
        sums[component] = [e.variable(spec.lanes) for _ in range(spec.vectors)]
        for old, variable in zip(
            k.load(e.at(row, component * spec.channels)), sums[component], strict=True
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
                for m3, component in enumerate(spec.plan.out_components[path]):
                    if (path, m2, m3) not in spec.plan.entries:
                        continue
                    g = k.coupling(table, edge, path, m2, m3)
                    for value, variable in zip(weighted, sums[component], strict=True):
                        e.put(e.fma(g, value, e.get(variable, spec.lanes)), variable)
    for component, variables in sums.items():
        total = [e.get(variable, spec.lanes) for variable in variables]
        k.store(total, e.at(row, component * spec.channels))


def write_gradients(spec: ConvolutionSpec, wanted: Wanted, name: str) -> str:
    """All first derivatives of ``cotangent . convolution``, added to what is there.

    Arguments: row_ptr, senders, receivers, hidden, weight, weight_t (``turned``),
    harmonics, nodes, cotangent [N, C, K], d_hidden, d_weight (packed), d_harmonics [E, S rounded
    up], d_nodes, work; start, stop, n_edges. d_nodes and d_weight must be this call's own: their
    rows belong to no receiver.
    """
    k = Writer(
        spec,
        name,
        (
            *("row_ptr", "senders", "receivers", "hidden", "weight", "weight_t", "harmonics"),
            *("nodes", "cotangent", "d_hidden", "d_weight", "d_harmonics", "d_nodes"),
        ),
    )
    e = k.e
    table = k.scratch(len(spec.plan.entries) * BLOCK)
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
                    _rows(e, weights, step, per_path),
                    _rows(e, d_weights, step, per_path),
                    place,
                )
        if spec.hidden == TABLE and wanted.radial:
            k.table_gradient(d_weights, chunk, start, count)
        if hidden is not None and wanted.radial:
            k.hidden_gradient(d_weights, chunk, start, count)
        if hidden is not None and wanted.weight:
            k.weight_gradient([(hidden, d_weights)], chunk, count)
    return e.finish(k.work.size)


def _edge_gradients(k, wanted, edge, index, table, copied, weight, d_weight, place) -> None:  # type: ignore[no-untyped-def]
    """Derivatives of one edge and chunk."""
    spec, e, entries = k.spec, k.e, k.spec.plan.entries
    zeros = [e.zero(spec.lanes)] * spec.vectors
    node, d_node = e.at(k["nodes"], place), e.at(k["d_nodes"], place)
    harmonic_sums: dict[int, ir.Value] = {}
    for group in _by_harmonic(spec):
        for path in group:
            e.may_break()
            radial = k.load(weight(path)) if wanted.nodes or wanted.harmonics else zeros
            d_radial = None
            for m2 in range(spec.node_dim(path)):
                outs = [m3 for m3 in range(spec.out_dim(path)) if (path, m2, m3) in entries]
                if not outs:
                    continue
                component = spec.node_component(path, m2) * spec.channels
                features = k.load(e.at(node, component))
                upward = None  # v
                weighted = k.mul(radial, features)  # u
                for m3 in outs:
                    g = k.load(e.at(copied, spec.plan.out_components[path][m3] * spec.chunk))
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
    k: Writer,
    sums: dict[int, ir.Value],
    entry: tuple[int, int, int],
    products: Sequence[tuple[Chunk, Chunk]],
) -> None:
    """Add an entry's derivative, the sum of products over channels, to those of Y."""
    total = None
    for left, right in products:
        for a, b in zip(left, right, strict=True):
            total = k.e.fma(a, b, total)
    for m, coefficient in k.spec.plan.entries[entry]:
        number = k.e.constant(coefficient, k.spec.lanes)
        sums[m] = k.e.fma(total, number, sums.get(m))


def write_second(spec: ConvolutionSpec, wanted: Wanted, moving_nodes: bool, name: str) -> str:
    """All derivatives of ``direction . (first derivatives)``, added to what is there.

    The directions are those of X (or of the path weights), Y and, with ``moving_nodes``, h; the
    last radial weight stands still.

    Arguments: row_ptr, senders, receivers, hidden, t_hidden, weight, weight_t, harmonics,
    t_harmonics [S, E + BLOCK], nodes, t_nodes, cotangent, d_hidden, d_weight (packed), d_harmonics,
    d_nodes, d_cotangent [N, C, K], work; start, stop, n_edges.
    """
    k = Writer(
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
    table, t_table = (k.scratch(len(spec.plan.entries) * BLOCK) for _ in range(2))
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
                    _rows(e, weights, step, per_path),
                    _rows(e, t_weights, step, per_path),
                    _rows(e, d_weights, step, per_path),
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


def _edge_second(  # type: ignore[no-untyped-def]
    k, wanted, moving_nodes, edge, index, tables, copies, weight, t_weight, d_weight, place
) -> None:
    """Second derivatives of one edge and chunk."""
    spec, e, entries = k.spec, k.e, k.spec.plan.entries
    (table, t_table), (copied, d_copied) = tables, copies
    zeros = [e.zero(spec.lanes)] * spec.vectors
    node, t_node, d_node = (e.at(k[name], place) for name in ("nodes", "t_nodes", "d_nodes"))
    harmonic_sums: dict[int, ir.Value] = {}
    for group in _by_harmonic(spec):
        for path in group:
            e.may_break()
            radial, t_radial = k.load(weight(path)), k.load(t_weight(path))
            d_radial = dt_radial = None
            weighted, t_weighted = {}, {}  # u = R h and its change
            for m2 in range(spec.node_dim(path)):
                outs = [m3 for m3 in range(spec.out_dim(path)) if (path, m2, m3) in entries]
                if not outs:
                    continue
                component = spec.node_component(path, m2) * spec.channels
                features = k.load(e.at(node, component))
                weighted[m2] = k.mul(radial, features)
                t_weighted[m2] = k.mul(t_radial, features)
                upward = t_upward = None  # v and its change
                for m3 in outs:
                    g = k.load(e.at(copied, spec.plan.out_components[path][m3] * spec.chunk))
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
                ins = [m2 for m2 in range(spec.node_dim(path)) if (path, m2, m3) in entries]
                if not ins:
                    continue
                row = spec.plan.out_components[path][m3] * spec.chunk
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
