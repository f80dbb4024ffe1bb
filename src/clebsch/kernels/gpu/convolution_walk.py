"""What the convolution's kernels do in common: parts, the walk over edges, what an edge needs.

``clebsch.kernels.gpu.convolution_code`` says what the letters mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from clebsch.kernels.gpu.source import ChannelSource, load, products, store
from clebsch.kernels.plan import ConvolutionPlan

#: The arguments that say over which edges a program walks.
BY_RECEIVER = ("row_ptr", "senders")
BY_SENDER = ("sender_ptr", "sender_order", "receivers")


def parts_by_output(plan: ConvolutionPlan, most: int) -> list[list[int]]:
    """Consecutive paths with at most ``most`` output components together, if they are several.

    Paths that share their output components are in one part.
    """
    units: list[list[int]] = []
    for path in range(plan.n_paths):
        if units and plan.out_components[path] == plan.out_components[path - 1]:
            units[-1].append(path)
        else:
            units.append([path])
    parts: list[list[int]] = []
    for unit in units:
        if parts and len(outputs_of(plan, [*parts[-1], *unit])) <= most:
            parts[-1] += unit
        else:
            parts.append(unit)
    return parts


def parts_by_node(plan: ConvolutionPlan) -> list[list[int]]:
    """The paths of each node irrep."""
    found = [
        [path for path in range(plan.n_paths) if plan.paths[path].node == node]
        for node in range(len(plan.node_irreps))
    ]
    return [part for part in found if part]


# --- the walk over parts and edges ---


def each_part(
    k: ChannelSource, atom: str, parts: Sequence[list[int]]
) -> Iterator[tuple[int, list[int]]]:
    """Each part's paths, within the condition that a program is of this part."""
    k.add(f"{atom} = tl.program_id(0).to(tl.int64)")
    k.add("part = tl.program_id(2)")
    for part, paths in enumerate(parts):
        with k.block(f"if part == {part}"):
            yield part, paths


@contextmanager
def edges_of_receiver(k: ChannelSource) -> Iterator[None]:
    """The loop over the edges of a receiver."""
    k.add("first = tl.load(row_ptr + receiver)")
    k.add("last = tl.load(row_ptr + receiver + 1)")
    with _walk(k, "edge"):
        k.add("sender = tl.load(senders + edge)")
        yield


@contextmanager
def edges_of_sender(k: ChannelSource) -> Iterator[None]:
    """The loop over the edges of a sender."""
    k.add("first = tl.load(sender_ptr + sender)")
    k.add("last = tl.load(sender_ptr + sender + 1)")
    with _walk(k, "place"):
        k.add("edge = tl.load(sender_order + place)")
        k.add("receiver = tl.load(receivers + edge)")
        yield


@contextmanager
def _walk(k: ChannelSource, name: str) -> Iterator[None]:
    """The loop from ``first`` to ``last``; where blocks are not full, their last index repeats."""
    if not k.blocked:
        with k.block(f"for {name} in range(first, last)"):
            yield
        return
    with k.block("for start in range(first, last, EDGES)"):
        k.add("unbounded = start + tl.arange(0, EDGES)[:, None]")
        k.add("exists = unbounded < last")
        k.add(f"{name} = tl.minimum(unbounded, last - 1)")
        yield


def title(k: ChannelSource, plan: ConvolutionPlan, path: int) -> None:
    """A comment that says which path follows."""
    p = plan.paths[path]
    node, harmonic = plan.node_irreps[p.node], plan.harmonic_irreps[p.harmonic]
    k.add(f"# path {path}: {node} x {harmonic} -> {plan.out_irreps[p.out]}")


# --- what an edge needs ---

#: Of one component of the sender's features: (output component, [(harmonic, coefficient)]).
_Outs = list[tuple[int, list[tuple[int, float]]]]


def entries_by_node(plan: ConvolutionPlan, path: int) -> list[tuple[int, _Outs]]:
    """(component of the sender's features, what it is coupled to) of a path."""
    start = plan.node_irreps.slices[plan.paths[path].node].start
    found: dict[int, _Outs] = {}
    for (of_path, m2, m3), terms in plan.entries.items():
        if of_path == path:
            out = plan.out_components[path][m3]
            found.setdefault(start + m2, []).append((out, terms))
    return list(found.items())


def outputs_of(plan: ConvolutionPlan, paths: Sequence[int]) -> list[int]:
    """The output components of some paths, each once."""
    return sorted({m for path in paths for m in plan.out_components[path]})


def sent_by(plan: ConvolutionPlan, paths: Sequence[int]) -> list[int]:
    """The components of the sender's features that some paths use."""
    blocks = (plan.node_irreps.slices[plan.paths[path].node] for path in paths)
    return sorted({h for block in blocks for h in range(block.start, block.stop)})


def _harmonics(plan: ConvolutionPlan, paths: Sequence[int]) -> list[int]:
    """The components of the harmonics that some paths use."""
    blocks = (plan.harmonic_irreps.slices[plan.paths[path].harmonic] for path in paths)
    return sorted({y for block in blocks for y in range(block.start, block.stop)})


def load_harmonics(
    k: ChannelSource, plan: ConvolutionPlan, paths: Sequence[int], tangent: str
) -> None:
    """y of an edge, or its change, as far as some paths use it."""
    size = plan.harmonic_irreps.dim
    for y in _harmonics(plan, paths):
        k.add(f"{tangent}y{y} = tl.load({tangent}harmonics + edge * {size} + {y})")


def load_sent(k: ChannelSource, plan: ConvolutionPlan, paths: Sequence[int], tangent: str) -> None:
    """h of an edge's sender, or its change, as far as some paths use it."""
    k.row(f"{tangent}sent", f"{tangent}nodes", "sender", plan.node_irreps.dim)
    for h in sent_by(plan, paths):
        k.add(f"{tangent}h{h} = {load(f'{tangent}sent', h)}")


def store_sent(k: ChannelSource, plan: ConvolutionPlan, paths: Sequence[int]) -> None:
    """Write the derivative by a sender's features, as far as some paths use them."""
    k.row("target", "d_nodes", "sender", plan.node_irreps.dim)
    for h in sent_by(plan, paths):
        k.add(store("target", h, k.total(f"d_h{h}")))


def load_cotangent(
    k: ChannelSource, plan: ConvolutionPlan, paths: Sequence[int], atom: str
) -> None:
    """g of an atom, as far as some paths give it."""
    k.row("given", "cotangent", atom, plan.out_dim)
    for m in outputs_of(plan, paths):
        k.add(f"g{m} = {load('given', m)}")


def contracted(terms: Sequence[tuple[int, float]], harmonics: str) -> str:
    """Coefficients contracted with harmonics."""
    return products((repr(coefficient), f"{harmonics}{m}") for m, coefficient in terms)


def couplings(k: ChannelSource, plan: ConvolutionPlan, path: int, tangent: str) -> None:
    """G of a path, or its change."""
    for h, outs in entries_by_node(plan, path):
        for out, terms in outs:
            k.add(f"{tangent}G{h}_{out} = {contracted(terms, f'{tangent}y')}")


class HarmonicSums:
    """The derivative by an edge's harmonics, a vector for each component until it is stored."""

    def __init__(
        self, k: ChannelSource, plan: ConvolutionPlan, paths: Sequence[int], wanted: bool
    ) -> None:
        self.k, self.plan = k, plan
        self.components = _harmonics(plan, paths) if wanted else []
        k.clear(f"d_y{y}" for y in self.components)

    def add(self, weighted: str, outs: _Outs) -> None:
        """Add what one component of the sender's features, times its weight, gives."""
        for out, terms in outs:
            self.k.add(f"q = {weighted} * g{out}")
            for y, coefficient in terms:
                self.k.add(f"d_y{y} += {coefficient!r} * q")

    def store(self, part: int) -> None:
        """Sum over the channels of the block."""
        if not self.components:
            return
        size = self.plan.harmonic_irreps.dim
        _row_of_sums(self.k, part)
        self.k.add(f"d_edge = d_harmonics + (row * n_edges + edge) * {size}")
        for y in self.components:
            self.k.add(of_edge(self.k, f"d_edge + {y}", f"d_y{y}"))


def of_edge(k: ChannelSource, address: str, value: str) -> str:
    """Write a vector's sum over channels, for one edge or for each of a block."""
    if k.blocked:
        return f"tl.store({address}, tl.sum({value}, 1, keep_dims=True), mask=exists)"
    return f"tl.store({address}, tl.sum({value}))"


# --- path weights: given, out of a table, or made of the last hidden layer ---

Radial = Literal["given", "table", "layer"]

#: The arguments that path weights come from, and that of the derivative by the first of them.
RADIAL_ARGUMENTS: dict[Radial, tuple[tuple[str, ...], str]] = {
    "given": (("path_weights",), "d_weights"),
    "table": (("places", "table"), "d_places"),
    "layer": (("hidden", "last_weight"), "d_hidden"),
}


def weights_of(
    k: ChannelSource, plan: ConvolutionPlan, radial: Radial
) -> _Weights | _Splines | _Layer:
    """The path weights of an edge, from where they come."""
    kinds: dict[Radial, type[_Weights | _Splines | _Layer]] = {
        "given": _Weights,
        "table": _Splines,
        "layer": _Layer,
    }
    return kinds[radial](k, plan)


class _Weights:
    """The path weights of an edge, which are given."""

    def __init__(self, k: ChannelSource, plan: ConvolutionPlan) -> None:
        self.k, self.plan = k, plan
        k.row("weights", "path_weights", "edge", plan.n_paths)

    def of(self, path: int) -> str:
        """The weight of a path."""
        return load("weights", path)

    def begin_gradient(self, wanted: bool) -> None:
        """Before the derivatives of all paths."""
        if wanted:
            self.k.row("d_edge_weights", "d_weights", "edge", self.plan.n_paths)

    def add_gradient(self, path: int, value: str) -> None:
        """The derivative by the weight of a path."""
        self.k.add(store("d_edge_weights", path, value))

    def end_gradient(self, part: int, wanted: bool) -> None:
        """After the derivatives of all paths."""


class _Splines:
    """The path weights of an edge, cubic Hermite splines of its place in a table."""

    #: Powers 0 to 3 of what each corner, value and slope at the knots before and after, is times.
    POWERS = ((1, 0, -3, 2), (0, 1, -2, 1), (0, 0, 3, -2), (0, 0, -1, 1))

    def __init__(self, k: ChannelSource, plan: ConvolutionPlan) -> None:
        self.k, self.plan = k, plan
        k.add("place = tl.load(places + edge)")
        k.add("interval = place.to(tl.int64)")
        k.add("s = place - interval.to(place.dtype)")
        for corner, (one, s, ss, sss) in enumerate(self.POWERS):
            k.add(f"spline{corner} = {one}.0 + s * ({s}.0 + s * ({ss}.0 + s * {sss}.0))")
        k.row("knots", "table", "interval", 2 * plan.n_paths)

    def of(self, path: int) -> str:
        """The weight of a path."""
        return self._sum("spline", path)

    def begin_gradient(self, wanted: bool) -> None:
        """Before the derivatives of all paths."""
        if not wanted:
            return
        for corner, (_, s, ss, sss) in enumerate(self.POWERS):
            self.k.add(f"slope{corner} = {s}.0 + s * ({2 * ss}.0 + s * {3 * sss}.0)")
        self.k.clear(["d_place"])

    def add_gradient(self, path: int, value: str) -> None:
        """Add what the derivative by the weight of a path gives."""
        self.k.add(f"d_place += ({value}) * ({self._sum('slope', path)})")

    def end_gradient(self, part: int, wanted: bool) -> None:
        """After the derivatives of all paths: sum over the channels of the block."""
        if wanted:
            _row_of_sums(self.k, part)
            self.k.add("tl.store(d_places + row * n_edges + edge, tl.sum(d_place))")

    def _sum(self, function: str, path: int) -> str:
        """The table's corners times functions of the place."""
        rows = (path + corner * self.plan.n_paths for corner in range(4))
        return products((f"{function}{c}", load("knots", row)) for c, row in enumerate(rows))


class _Layer:
    """The path weights of a block of edges: the last hidden layer times the last layer's weight.

    Edges that do not exist have zeros for a hidden layer, so that they add nothing.
    """

    def __init__(self, k: ChannelSource, plan: ConvolutionPlan) -> None:
        self.k, self.plan = k, plan
        k.add("column = tl.arange(0, FILLED)[None, :]")
        k.add("unit = tl.arange(0, FILLED)[:, None]")
        k.add("has_column = exists & (column < WIDTH)")
        k.add("x = tl.load(hidden + edge * WIDTH + column, mask=has_column, other=0.0)")

    def of(self, path: int) -> str:
        """The weight of a path."""
        return f"tl.dot(x, {self._matrix(path)}, input_precision=PRECISION)"

    def begin_gradient(self, wanted: bool) -> None:
        """Before the derivatives of all paths."""
        if wanted:
            self.k.add("d_x = tl.zeros((EDGES, FILLED), zero.dtype)")

    def add_gradient(self, path: int, value: str) -> None:
        """Add what the derivative by the weight of a path gives."""
        matrix = f"tl.trans({self._matrix(path)})"
        self.k.add(f"d_x += tl.dot({value}, {matrix}, input_precision=PRECISION)")

    def end_gradient(self, part: int, wanted: bool) -> None:
        """After the derivatives of all paths."""
        if wanted:
            _row_of_sums(self.k, part)
            address = "d_hidden + (row * n_edges + edge) * WIDTH + column"
            self.k.add(f"tl.store({address}, d_x, mask=has_column)")

    def _matrix(self, path: int) -> str:
        """The last layer's weight for a path, [FILLED, BLOCK]."""
        row = f"unit * ({self.plan.n_paths} * CHANNELS) + {path} * CHANNELS + channel"
        return f"tl.load(last_weight + {row}, mask=(unit < WIDTH) & inside, other=0.0)"


def _row_of_sums(k: ChannelSource, part: int) -> None:
    """Where a program's sums over its channels stand beside those of others."""
    k.add(f"row = ({part} * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)")
