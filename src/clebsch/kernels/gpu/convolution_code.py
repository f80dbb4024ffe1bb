"""The convolution's kernels, written out for one plan.

A program takes one receiver (or, for derivatives by the senders' features, one sender), a block of
channels and a part of the paths, and walks over the edges one after the other, in their order: sums
stay in registers, nothing is added to from two sides, and every run gives the same bits. Edges are
sorted by receiver; ``sender_order`` sorts them by sender.

The names: r path weight, y harmonics, h sender's features, a output, g its cotangent; G contracts
coefficients with harmonics, u = r h, v = G^T g, q = u g. A leading ``t_`` is a direction (tangent),
a leading ``d_`` a derivative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from clebsch.kernels.gpu.source import ChannelSource, load, products, store
from clebsch.kernels.plan import ConvolutionPlan

#: Output components of a part, at most (or those of one path): they lie in registers.
ROWS = {"convolve": 24, "convolve_gradients": 24, "convolve_second": 16}

_BY_RECEIVER = ("row_ptr", "senders")
_BY_SENDER = ("sender_ptr", "sender_order", "receivers")


@dataclass(frozen=True)
class Wanted:
    """Which derivatives of edges a kernel computes."""

    radial: bool
    harmonics: bool


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
        if parts and len(_outputs(plan, [*parts[-1], *unit])) <= most:
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


def write_forward(plan: ConvolutionPlan) -> str:
    """``out[i] = sum over edges``, [N, C, K]."""
    name = "convolve"
    arguments = (*_BY_RECEIVER, "path_weights", "harmonics", "nodes", "out")
    k = ChannelSource(name, f"Convolution {plan.key}.", arguments, "out")
    for _, paths in _parts(k, "receiver", parts_by_output(plan, ROWS[name])):
        outputs = _outputs(plan, paths)
        k.clear(f"a{m}" for m in outputs)
        with _edges_of_receiver(k):
            _load_harmonics(k, plan, paths, "")
            _load_sent(k, plan, paths, "")
            k.row("weights", "path_weights", "edge", plan.n_paths)
            for path in paths:
                _title(k, plan, path)
                k.add(f"r = {load('weights', path)}")
                for h, outs in _entries_by_node(plan, path):
                    k.add(f"u = r * h{h}")
                    for out, terms in outs:
                        k.add(f"a{out} += ({_contracted(terms, 'y')}) * u")
        k.row("target", "out", "receiver", plan.out_dim)
        for m in outputs:
            k.add(store("target", m, f"a{m}"))
    return str(k)


def write_gradients(plan: ConvolutionPlan, wanted: Wanted) -> str:
    """First derivatives of ``cotangent . convolution`` by what belongs to edges.

    d_weights is [E, P, K]; d_harmonics is [parts x blocks of channels, E, S], to be summed.
    """
    name = "convolve_gradients"
    arguments = (*_BY_RECEIVER, "path_weights", "harmonics", "nodes", "cotangent", "d_weights")
    doc = f"First derivatives by edges of convolution {plan.key}."
    k = ChannelSource(name, doc, (*arguments, "d_harmonics", "n_edges"), "d_harmonics")
    for part, paths in _parts(k, "receiver", parts_by_output(plan, ROWS[name])):
        _load_cotangent(k, plan, paths, "receiver")
        with _edges_of_receiver(k):
            _load_harmonics(k, plan, paths, "")
            _load_sent(k, plan, paths, "")
            k.row("weights", "path_weights", "edge", plan.n_paths)
            k.row("d_edge_weights", "d_weights", "edge", plan.n_paths)
            sums = _HarmonicSums(k, plan, paths, wanted.harmonics)
            for path in paths:
                _title(k, plan, path)
                if wanted.radial:
                    _couplings(k, plan, path, "")
                if wanted.harmonics:
                    k.add(f"r = {load('weights', path)}")
                by_radial = []
                for h, outs in _entries_by_node(plan, path):
                    if wanted.radial:
                        k.add(f"v{h} = {products((f'G{h}_{m}', f'g{m}') for m, _ in outs)}")
                        by_radial.append((f"h{h}", f"v{h}"))
                    if wanted.harmonics:
                        k.add(f"u = r * h{h}")
                        sums.add("u", outs)
                if wanted.radial:
                    k.add(store("d_edge_weights", path, products(by_radial)))
            sums.store(part)
    return str(k)


def write_node_gradient(plan: ConvolutionPlan) -> str:
    """The first derivative of ``cotangent . convolution`` by nodes, d_nodes [N, H, K]."""
    name = "convolve_node_gradient"
    arguments = (*_BY_SENDER, "path_weights", "harmonics", "cotangent", "d_nodes")
    k = ChannelSource(
        name, f"First derivative by nodes of convolution {plan.key}.", arguments, "d_nodes"
    )
    for _, paths in _parts(k, "sender", parts_by_node(plan)):
        k.clear(f"d_h{h}" for h in _sent(plan, paths))
        with _edges_of_sender(k):
            _load_harmonics(k, plan, paths, "")
            _load_cotangent(k, plan, paths, "receiver")
            k.row("weights", "path_weights", "edge", plan.n_paths)
            for path in paths:
                _title(k, plan, path)
                _couplings(k, plan, path, "")
                k.add(f"r = {load('weights', path)}")
                for h, outs in _entries_by_node(plan, path):
                    upward = products((f"G{h}_{m}", f"g{m}") for m, _ in outs)
                    k.add(f"d_h{h} += r * ({upward})")
        _store_sent(k, plan, paths)
    return str(k)


def write_second(plan: ConvolutionPlan, wanted: Wanted, moving_nodes: bool) -> str:
    """Derivatives of ``direction . (first derivatives)`` by what belongs to edges, and cotangent.

    The directions are those of path weights, harmonics and, with ``moving_nodes``, nodes. Results
    are as in ``write_gradients``, and d_cotangent [N, C, K].
    """
    name = "convolve_second"
    directions = ("t_weights", "t_harmonics", "t_nodes")
    results = ("d_weights", "d_harmonics", "d_cotangent", "n_edges")
    inputs = ("path_weights", "harmonics", "nodes", "cotangent")
    doc = f"Second derivatives by edges and cotangent of convolution {plan.key}."
    k = ChannelSource(name, doc, (*_BY_RECEIVER, *inputs, *directions, *results), "d_cotangent")
    for part, paths in _parts(k, "receiver", parts_by_output(plan, ROWS[name])):
        outputs = _outputs(plan, paths)
        _load_cotangent(k, plan, paths, "receiver")
        k.clear(f"d_g{m}" for m in outputs)
        with _edges_of_receiver(k):
            for tangent in ("", "t_"):
                _load_harmonics(k, plan, paths, tangent)
                if not tangent or moving_nodes:
                    _load_sent(k, plan, paths, tangent)
            k.row("weights", "path_weights", "edge", plan.n_paths)
            k.row("t_edge_weights", "t_weights", "edge", plan.n_paths)
            k.row("d_edge_weights", "d_weights", "edge", plan.n_paths)
            sums = _HarmonicSums(k, plan, paths, wanted.harmonics)
            for path in paths:
                _second_of_path(k, plan, path, wanted, moving_nodes, sums)
            sums.store(part)
        k.row("target", "d_cotangent", "receiver", plan.out_dim)
        for m in outputs:
            k.add(store("target", m, f"d_g{m}"))
    return str(k)


def _second_of_path(
    k: ChannelSource,
    plan: ConvolutionPlan,
    path: int,
    wanted: Wanted,
    moving_nodes: bool,
    sums: _HarmonicSums,
) -> None:
    _title(k, plan, path)
    _couplings(k, plan, path, "")
    _couplings(k, plan, path, "t_")
    k.add(f"r = {load('weights', path)}")
    k.add(f"t_r = {load('t_edge_weights', path)}")
    by_radial = []
    for h, outs in _entries_by_node(plan, path):
        k.add(f"u = r * h{h}")
        k.add(f"t_u = t_r * h{h}" + (f" + r * t_h{h}" if moving_nodes else ""))
        for out, _ in outs:
            k.add(f"d_g{out} += G{h}_{out} * t_u + t_G{h}_{out} * u")
        if wanted.harmonics:
            sums.add("t_u", outs)
        if wanted.radial:
            k.add(f"t_v{h} = {products((f't_G{h}_{m}', f'g{m}') for m, _ in outs)}")
            by_radial.append((f"h{h}", f"t_v{h}"))
            if moving_nodes:
                k.add(f"v{h} = {products((f'G{h}_{m}', f'g{m}') for m, _ in outs)}")
                by_radial.append((f"t_h{h}", f"v{h}"))
    if wanted.radial:
        k.add(store("d_edge_weights", path, products(by_radial)))


def write_second_node(plan: ConvolutionPlan) -> str:
    """The derivative of ``direction . (first derivatives)`` by nodes, d_nodes [N, H, K]."""
    name = "convolve_second_node"
    inputs = ("path_weights", "harmonics", "cotangent", "t_weights", "t_harmonics")
    doc = f"Second derivative by nodes of convolution {plan.key}."
    k = ChannelSource(name, doc, (*_BY_SENDER, *inputs, "d_nodes"), "d_nodes")
    for _, paths in _parts(k, "sender", parts_by_node(plan)):
        k.clear(f"d_h{h}" for h in _sent(plan, paths))
        with _edges_of_sender(k):
            _load_harmonics(k, plan, paths, "")
            _load_harmonics(k, plan, paths, "t_")
            _load_cotangent(k, plan, paths, "receiver")
            k.row("weights", "path_weights", "edge", plan.n_paths)
            k.row("t_edge_weights", "t_weights", "edge", plan.n_paths)
            for path in paths:
                _title(k, plan, path)
                _couplings(k, plan, path, "")
                _couplings(k, plan, path, "t_")
                k.add(f"r = {load('weights', path)}")
                k.add(f"t_r = {load('t_edge_weights', path)}")
                for h, outs in _entries_by_node(plan, path):
                    upward = products((f"G{h}_{m}", f"g{m}") for m, _ in outs)
                    moved = products((f"t_G{h}_{m}", f"g{m}") for m, _ in outs)
                    k.add(f"d_h{h} += t_r * ({upward}) + r * ({moved})")
        _store_sent(k, plan, paths)
    return str(k)


# --- the walk over parts and edges ---


def _parts(
    k: ChannelSource, atom: str, parts: Sequence[list[int]]
) -> Iterator[tuple[int, list[int]]]:
    """Each part's paths, within the condition that a program is of this part."""
    k.add(f"{atom} = tl.program_id(0).to(tl.int64)")
    k.add("part = tl.program_id(2)")
    for part, paths in enumerate(parts):
        with k.block(f"if part == {part}"):
            yield part, paths


@contextmanager
def _edges_of_receiver(k: ChannelSource) -> Iterator[None]:
    k.add("first = tl.load(row_ptr + receiver)")
    k.add("last = tl.load(row_ptr + receiver + 1)")
    with k.block("for edge in range(first, last)"):
        k.add("sender = tl.load(senders + edge)")
        yield


@contextmanager
def _edges_of_sender(k: ChannelSource) -> Iterator[None]:
    k.add("first = tl.load(sender_ptr + sender)")
    k.add("last = tl.load(sender_ptr + sender + 1)")
    with k.block("for place in range(first, last)"):
        k.add("edge = tl.load(sender_order + place)")
        k.add("receiver = tl.load(receivers + edge)")
        yield


def _title(k: ChannelSource, plan: ConvolutionPlan, path: int) -> None:
    p = plan.paths[path]
    node, harmonic = plan.node_irreps[p.node], plan.harmonic_irreps[p.harmonic]
    k.add(f"# path {path}: {node} x {harmonic} -> {plan.out_irreps[p.out]}")


# --- what an edge needs ---

#: Of one component of the sender's features: (output component, [(harmonic, coefficient)]).
_Outs = list[tuple[int, list[tuple[int, float]]]]


def _entries_by_node(plan: ConvolutionPlan, path: int) -> list[tuple[int, _Outs]]:
    """(component of the sender's features, what it is coupled to) of a path."""
    start = plan.node_irreps.slices[plan.paths[path].node].start
    found: dict[int, _Outs] = {}
    for (of_path, m2, m3), terms in plan.entries.items():
        if of_path == path:
            out = plan.out_components[path][m3]
            found.setdefault(start + m2, []).append((out, terms))
    return list(found.items())


def _outputs(plan: ConvolutionPlan, paths: Sequence[int]) -> list[int]:
    """The output components of some paths, each once."""
    return sorted({m for path in paths for m in plan.out_components[path]})


def _sent(plan: ConvolutionPlan, paths: Sequence[int]) -> list[int]:
    """The components of the sender's features that some paths use."""
    blocks = (plan.node_irreps.slices[plan.paths[path].node] for path in paths)
    return sorted({h for block in blocks for h in range(block.start, block.stop)})


def _harmonics(plan: ConvolutionPlan, paths: Sequence[int]) -> list[int]:
    """The components of the harmonics that some paths use."""
    blocks = (plan.harmonic_irreps.slices[plan.paths[path].harmonic] for path in paths)
    return sorted({y for block in blocks for y in range(block.start, block.stop)})


def _load_harmonics(
    k: ChannelSource, plan: ConvolutionPlan, paths: Sequence[int], tangent: str
) -> None:
    size = plan.harmonic_irreps.dim
    for y in _harmonics(plan, paths):
        k.add(f"{tangent}y{y} = tl.load({tangent}harmonics + edge * {size} + {y})")


def _load_sent(k: ChannelSource, plan: ConvolutionPlan, paths: Sequence[int], tangent: str) -> None:
    k.row(f"{tangent}sent", f"{tangent}nodes", "sender", plan.node_irreps.dim)
    for h in _sent(plan, paths):
        k.add(f"{tangent}h{h} = {load(f'{tangent}sent', h)}")


def _store_sent(k: ChannelSource, plan: ConvolutionPlan, paths: Sequence[int]) -> None:
    k.row("target", "d_nodes", "sender", plan.node_irreps.dim)
    for h in _sent(plan, paths):
        k.add(store("target", h, f"d_h{h}"))


def _load_cotangent(
    k: ChannelSource, plan: ConvolutionPlan, paths: Sequence[int], atom: str
) -> None:
    k.row("given", "cotangent", atom, plan.out_dim)
    for m in _outputs(plan, paths):
        k.add(f"g{m} = {load('given', m)}")


def _contracted(terms: Sequence[tuple[int, float]], harmonics: str) -> str:
    """Coefficients contracted with harmonics."""
    return products((repr(coefficient), f"{harmonics}{m}") for m, coefficient in terms)


def _couplings(k: ChannelSource, plan: ConvolutionPlan, path: int, tangent: str) -> None:
    """G of a path, or its change."""
    for h, outs in _entries_by_node(plan, path):
        for out, terms in outs:
            k.add(f"{tangent}G{h}_{out} = {_contracted(terms, f'{tangent}y')}")


class _HarmonicSums:
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
        self.k.add(f"row = {part} * tl.num_programs(1) + tl.program_id(1)")
        self.k.add(f"d_edge = d_harmonics + (row.to(tl.int64) * n_edges + edge) * {size}")
        for y in self.components:
            self.k.add(f"tl.store(d_edge + {y}, tl.sum(d_y{y}))")
