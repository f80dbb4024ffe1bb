"""The convolution's kernels, written out for one plan.

A program takes one receiver (or, for derivatives by the senders' features, one sender), a block of
channels and a part of the paths, and walks over the edges one after the other, in their order: sums
stay in registers, nothing is added to from two sides, and every run gives the same bits. Edges are
sorted by receiver; ``sender_order`` sorts them by sender.

Where path weights are made of the last hidden layer the walk takes blocks of 16 edges, the fewest
that ``tl.dot`` multiplies: edge by edge, each weight of the layer would be read again for every
multiply-add. Blocks stay within a receiver, so that no sum crosses programs; of 28 neighbours 12 %
of the rows are idle, of 53 17 %. Blocks across receivers would be full and need segmented sums.

The names: r path weight, y harmonics, h sender's features, a output, g its cotangent; G contracts
coefficients with harmonics, u = r h, v = G^T g, q = u g. A leading ``t_`` is a direction (tangent),
a leading ``d_`` a derivative.
"""

from __future__ import annotations

from dataclasses import dataclass

from clebsch.kernels.gpu.convolution_walk import (
    BY_RECEIVER,
    BY_SENDER,
    RADIAL_ARGUMENTS,
    HarmonicSums,
    Radial,
    contracted,
    couplings,
    each_part,
    edges_of_receiver,
    edges_of_sender,
    entries_by_node,
    load_cotangent,
    load_harmonics,
    load_sent,
    outputs_of,
    parts_by_node,
    parts_by_output,
    sent_by,
    store_sent,
    title,
    weights_of,
)
from clebsch.kernels.gpu.source import ChannelSource, load, products, store
from clebsch.kernels.plan import ConvolutionPlan

#: Output components of a part, at most (or those of one path): they lie in registers.
ROWS = {"convolve": 24, "convolve_gradients": 24, "convolve_second": 16}


@dataclass(frozen=True)
class Wanted:
    """Which derivatives of edges a kernel computes."""

    radial: bool
    harmonics: bool


def write_forward(plan: ConvolutionPlan, source: Radial = "given") -> str:
    """``out[i] = sum over edges``, [N, C, K].

    By ``source`` path weights are given, [E, P, K]; or come out of a table [n_knots, 2, P, K] at
    places [E]; or are made of the last hidden layer [E, F] and the last layer's weight [F, P, K].
    """
    name = "convolve"
    arguments = (*BY_RECEIVER, *RADIAL_ARGUMENTS[source][0], "harmonics", "nodes", "out")
    k = ChannelSource(name, f"Convolution {plan.key}.", arguments, "out", source == "layer")
    for _, paths in each_part(k, "receiver", parts_by_output(plan, ROWS[name])):
        outputs = outputs_of(plan, paths)
        k.clear(f"a{m}" for m in outputs)
        with edges_of_receiver(k):
            load_harmonics(k, plan, paths, "")
            load_sent(k, plan, paths, "")
            weights = weights_of(k, plan, source)
            for path in paths:
                title(k, plan, path)
                k.add(f"r = {weights.of(path)}")
                for h, outs in entries_by_node(plan, path):
                    k.add(f"u = r * h{h}")
                    for out, terms in outs:
                        k.add(f"a{out} += ({contracted(terms, 'y')}) * u")
        k.row("target", "out", "receiver", plan.out_dim)
        for m in outputs:
            k.add(store("target", m, k.total(f"a{m}")))
    return str(k)


def write_gradients(plan: ConvolutionPlan, wanted: Wanted, source: Radial = "given") -> str:
    """First derivatives of ``cotangent . convolution`` by what belongs to edges.

    d_weights is [E, P, K]; d_harmonics is [parts x blocks of channels, E, S], to be summed, and so
    are d_places [parts x blocks, E] or d_hidden [parts x blocks, E, F] that stand for d_weights.
    """
    name = "convolve_gradients"
    arguments = (
        *BY_RECEIVER,
        *RADIAL_ARGUMENTS[source][0],
        "harmonics",
        "nodes",
        "cotangent",
        RADIAL_ARGUMENTS[source][1],
    )
    doc = f"First derivatives by edges of convolution {plan.key}."
    arguments = (*arguments, "d_harmonics", "n_edges")
    k = ChannelSource(name, doc, arguments, "d_harmonics", source == "layer")
    for part, paths in each_part(k, "receiver", parts_by_output(plan, ROWS[name])):
        load_cotangent(k, plan, paths, "receiver")
        with edges_of_receiver(k):
            load_harmonics(k, plan, paths, "")
            load_sent(k, plan, paths, "")
            weights = weights_of(k, plan, source)
            weights.begin_gradient(wanted.radial)
            sums = HarmonicSums(k, plan, paths, wanted.harmonics)
            for path in paths:
                title(k, plan, path)
                if wanted.radial:
                    couplings(k, plan, path, "")
                if wanted.harmonics:
                    k.add(f"r = {weights.of(path)}")
                by_radial = []
                for h, outs in entries_by_node(plan, path):
                    if wanted.radial:
                        k.add(f"v{h} = {products((f'G{h}_{m}', f'g{m}') for m, _ in outs)}")
                        by_radial.append((f"h{h}", f"v{h}"))
                    if wanted.harmonics:
                        k.add(f"u = r * h{h}")
                        sums.add("u", outs)
                if wanted.radial:
                    weights.add_gradient(path, products(by_radial))
            weights.end_gradient(part, wanted.radial)
            sums.store(part)
    return str(k)


def write_node_gradient(plan: ConvolutionPlan, source: Radial = "given") -> str:
    """The first derivative of ``cotangent . convolution`` by nodes, d_nodes [N, H, K]."""
    name = "convolve_node_gradient"
    arguments = (*BY_SENDER, *RADIAL_ARGUMENTS[source][0], "harmonics", "cotangent", "d_nodes")
    doc = f"First derivative by nodes of convolution {plan.key}."
    k = ChannelSource(name, doc, arguments, "d_nodes", source == "layer")
    for _, paths in each_part(k, "sender", parts_by_node(plan)):
        k.clear(f"d_h{h}" for h in sent_by(plan, paths))
        with edges_of_sender(k):
            load_harmonics(k, plan, paths, "")
            load_cotangent(k, plan, paths, "receiver")
            weights = weights_of(k, plan, source)
            for path in paths:
                title(k, plan, path)
                couplings(k, plan, path, "")
                k.add(f"r = {weights.of(path)}")
                for h, outs in entries_by_node(plan, path):
                    upward = products((f"G{h}_{m}", f"g{m}") for m, _ in outs)
                    k.add(f"d_h{h} += r * ({upward})")
        store_sent(k, plan, paths)
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
    k = ChannelSource(name, doc, (*BY_RECEIVER, *inputs, *directions, *results), "d_cotangent")
    for part, paths in each_part(k, "receiver", parts_by_output(plan, ROWS[name])):
        outputs = outputs_of(plan, paths)
        load_cotangent(k, plan, paths, "receiver")
        k.clear(f"d_g{m}" for m in outputs)
        with edges_of_receiver(k):
            for tangent in ("", "t_"):
                load_harmonics(k, plan, paths, tangent)
                if not tangent or moving_nodes:
                    load_sent(k, plan, paths, tangent)
            k.row("weights", "path_weights", "edge", plan.n_paths)
            k.row("t_edge_weights", "t_weights", "edge", plan.n_paths)
            k.row("d_edge_weights", "d_weights", "edge", plan.n_paths)
            sums = HarmonicSums(k, plan, paths, wanted.harmonics)
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
    sums: HarmonicSums,
) -> None:
    title(k, plan, path)
    couplings(k, plan, path, "")
    couplings(k, plan, path, "t_")
    k.add(f"r = {load('weights', path)}")
    k.add(f"t_r = {load('t_edge_weights', path)}")
    by_radial = []
    for h, outs in entries_by_node(plan, path):
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
    k = ChannelSource(name, doc, (*BY_SENDER, *inputs, "d_nodes"), "d_nodes")
    for _, paths in each_part(k, "sender", parts_by_node(plan)):
        k.clear(f"d_h{h}" for h in sent_by(plan, paths))
        with edges_of_sender(k):
            load_harmonics(k, plan, paths, "")
            load_harmonics(k, plan, paths, "t_")
            load_cotangent(k, plan, paths, "receiver")
            k.row("weights", "path_weights", "edge", plan.n_paths)
            k.row("t_edge_weights", "t_weights", "edge", plan.n_paths)
            for path in paths:
                title(k, plan, path)
                couplings(k, plan, path, "")
                couplings(k, plan, path, "t_")
                k.add(f"r = {load('weights', path)}")
                k.add(f"t_r = {load('t_edge_weights', path)}")
                for h, outs in entries_by_node(plan, path):
                    upward = products((f"G{h}_{m}", f"g{m}") for m, _ in outs)
                    moved = products((f"t_G{h}_{m}", f"g{m}") for m, _ in outs)
                    k.add(f"d_h{h} += t_r * ({upward}) + r * ({moved})")
        store_sent(k, plan, paths)
    return str(k)
