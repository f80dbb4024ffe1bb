"""Padded and captured evaluations are the plain ones, and captures stay few.

What stands in for a CUDA graph here computes anew into the same tensors, as one does.
"""

from __future__ import annotations

import copy
import gc
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

import clebsch
from builders import ethanol, potential, skewed_cell, slab
from captures import InPlace, capture_with, gradients
from clebsch.graph import AtomGraph, edge_vectors
from clebsch.recording import Recording
from clebsch.replay import (
    CAPTURE_AT,
    FEW_EDGES,
    GHOST_LENGTH,
    MOST_EDGES,
    CapturedRecordings,
    Captures,
    CudaCapturer,
    PaddedGraph,
    Sizes,
    bucket,
    tensors_of,
)

#: One of each kind, and those whose weights do not end at the cut-off by themselves.
MODELS = [
    "mace three layers with ZBL",
    "mace with gates of neighbours",
    "nequip",
    "pace",
    "allegro",
    "ace",
]
OUTPUTS = ("energy", "forces", "virial", "site_energies", "layer_energies")


class Broken:
    """Captures nothing."""

    def __init__(self, after: int = 0) -> None:
        self.good, self.after = InPlace(), after

    def capture(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], object]]:
        if self.good.captures < self.after:
            return self.good.capture(function)
        raise RuntimeError("no graph today")


@pytest.fixture
def capturer(monkeypatch: pytest.MonkeyPatch) -> InPlace:
    """Record and capture at the first evaluation; what captures."""
    found = InPlace()
    capture_with(monkeypatch, found)
    return found


# --- buckets ---


def test_padding_is_little_and_buckets_are_few() -> None:
    rng = np.random.default_rng(0)
    found = set()
    for atoms in rng.integers(40, 3000, size=3000).tolist():
        sizes = Sizes(atoms, int(atoms * rng.uniform(20, 60)), 1)
        padded = bucket(sizes)
        assert sizes.edges <= padded.edges <= 1.125 * sizes.edges
        assert sizes.atoms < padded.atoms
        assert padded.atoms <= 1.125 * (1.0625 * sizes.atoms + 1) + 4
        ghosts = padded.atoms - sizes.atoms
        most = -(-(padded.edges - sizes.edges) // ghosts)
        assert most <= 2 * sizes.edges / sizes.atoms + 1, "a ghost has too many edges"
        found.add(padded.edges)
    assert len(found) < 8 * 9  # from 800 to 180 000 edges there are eight octaves


def test_structures_of_one_simulation_share_a_bucket() -> None:
    """A molecule of 27 atoms whose neighbours come and go."""
    assert len({bucket(Sizes(27, edges, 1)) for edges in range(430, 449)}) == 1


@pytest.mark.parametrize("sizes", [(1, 0, 1), (0, 0, 0), (1, 2, 1), (2, 1, 2)], ids=str)
def test_no_size_of_a_bucket_is_special(sizes: tuple[int, int, int]) -> None:
    """Recordings are of sizes that are neither 0 nor 1."""
    padded = bucket(Sizes(*sizes))
    assert min(padded.atoms, padded.edges, padded.frames) > 1
    assert padded.atoms > sizes[0]
    assert padded.frames > sizes[2]


# --- ghosts ---


def check_graph(graph: AtomGraph) -> None:
    """What ``AtomGraph`` promises of its tensors."""
    n_atoms, n_edges, n_frames = graph.n_atoms, graph.n_edges, graph.n_frames
    for ends, ptr in ((graph.receivers, graph.row_ptr), (graph.senders, graph.sender_ptr)):
        counts = torch.bincount(ends, minlength=n_atoms)
        assert torch.equal(ptr, torch.cat([counts.new_zeros(1), counts.cumsum(0)]))
    assert (graph.receivers.diff() >= 0).all()
    assert torch.equal(graph.sender_order.sort().values, torch.arange(n_edges))
    assert (graph.senders[graph.sender_order].diff() >= 0).all()
    counts = torch.bincount(graph.frame, minlength=n_frames)
    assert torch.equal(graph.frame_ptr, torch.cat([counts.new_zeros(1), counts.cumsum(0)]))
    assert (graph.frame.diff() >= 0).all()


def test_padded_graphs_are_graphs_whatever_they_held_before() -> None:
    tested = potential()
    graphs = [
        tested.graph(atoms)
        for atoms in (
            [ethanol(), skewed_cell(), Atoms("O")],
            [ethanol()],
            [Atoms("O")],
            [slab(), Atoms("H")],
        )
    ]
    n_edges = max(graph.n_edges for graph in graphs) + 50
    padded = PaddedGraph(Sizes(24, n_edges, 5), tested.cutoff, torch.device("cpu"))
    for graph in graphs:
        padded.fill(graph)
        found = padded.graph
        check_graph(found)
        assert torch.equal(found.senders[: graph.n_edges], graph.senders)
        assert torch.equal(found.positions[: graph.n_atoms], graph.positions)
        ghosts = slice(graph.n_edges, None)
        assert (found.frame[found.senders[ghosts]] == graph.n_frames).all()
        vectors = edge_vectors(found, found.positions)
        lengths = torch.linalg.vector_norm(vectors[ghosts], dim=1)
        torch.testing.assert_close(
            lengths, torch.full_like(lengths, GHOST_LENGTH * tested.cutoff), rtol=1e-6, atol=0
        )
        assert found.row_ptr[graph.n_atoms :].diff().max() <= -(
            -(n_edges - graph.n_edges) // (24 - graph.n_atoms)
        )


# --- results ---

BATCHES: dict[str, Callable[[], list[Atoms]]] = {
    "molecule": lambda: [ethanol()],
    "slab": lambda: [slab()],
    "several": lambda: [ethanol(), Atoms("O"), skewed_cell(), ethanol(1)],
    "one atom": lambda: [Atoms("O")],
    "no edges": lambda: [Atoms("OH", [[0, 0, 0], [0, 0, 20]])],
    "one edge each way": lambda: [Atoms("OH", [[0, 0, 0], [0, 0, 1]])],
}


@pytest.mark.parametrize("model", MODELS)
def test_captured_evaluations_are_the_plain_ones(
    model: str, capturer: InPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = potential(model)
    graphs = [tested.graph(build()) for build in BATCHES.values()]
    for graph in graphs:
        found = [tested(graph, OUTPUTS) for _ in range(2)][1]
        expected = eager(tested, graph, monkeypatch)
        for name in OUTPUTS:
            here, there = getattr(found, name), getattr(expected, name)
            torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9, msg=name)
    assert capturer.captures == len({bucket(Sizes.of(graph)) for graph in graphs})


def eager(
    tested: clebsch.Potential, graph: AtomGraph, monkeypatch: pytest.MonkeyPatch
) -> clebsch.Prediction:
    with monkeypatch.context() as patch:
        patch.setattr("clebsch.repeats.RECORD_AFTER", 10**9)
        return tested(graph, OUTPUTS)


def test_stress_is_that_of_cells_that_were_given(
    capturer: InPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = potential()
    graph = tested.graph([skewed_cell(), skewed_cell()])
    found = tested(graph, ("stress", "forces"))
    assert capturer.captures == 1
    assert found.stress is not None
    assert found.stress.shape == (2, 3, 3)
    virial = eager(tested, graph, monkeypatch).virial
    assert virial is not None
    expected = -virial / torch.linalg.det(graph.cell).abs()[:, None, None]
    torch.testing.assert_close(found.stress, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_captured_gradients_are_the_plain_ones(
    model: str, capturer: InPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one batch; of two of a bucket, the second of which is evaluated before the first is
    differentiated; of one atom."""
    tested = potential(model)
    for batches in ([[ethanol(), skewed_cell()]], [[ethanol()], [ethanol(1)]], [[Atoms("O")]]):
        graphs = [tested.graph(atoms) for atoms in batches]
        found = gradients(tested, graphs)
        with monkeypatch.context() as patch:
            patch.setattr("clebsch.repeats.RECORD_AFTER", 10**9)
            expected = gradients(tested, graphs)
        largest = max(float(gradient.abs().max()) for gradient in expected)
        for here, there in zip(found, expected, strict=True):
            torch.testing.assert_close(here, there, rtol=1e-8, atol=1e-9 * largest)
    assert capturer.captures == 6  # each of three buckets in two stages


def test_a_gradient_survives_an_evaluation_of_another_size_before_it(
    capturer: InPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a later capture hands on may lie where an earlier one has temporary tensors."""
    tested = potential()
    small, large = tested.graph(ethanol()), tested.graph([ethanol(), skewed_cell()])
    gradients(tested, [small])
    found = gradients(tested, [large, small])
    assert capturer.captures == 4
    with monkeypatch.context() as patch:
        patch.setattr("clebsch.repeats.RECORD_AFTER", 10**9)
        expected = gradients(tested, [large, small])
    for here, there in zip(found, expected, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-8, atol=1e-6)


def test_results_are_not_overwritten_by_the_next_evaluation(capturer: InPlace) -> None:
    tested = potential()
    first = tested(tested.graph(ethanol()), OUTPUTS)
    kept = {name: getattr(first, name).clone() for name in OUTPUTS}
    tested(tested.graph(ethanol(1)), OUTPUTS)
    assert capturer.captures == 1
    for name in OUTPUTS:
        assert torch.equal(getattr(first, name), kept[name])
    graphs = [tested.graph(ethanol(seed)) for seed in (0, 1)]
    held = gradients(tested, graphs[:1])
    copies = [gradient.clone() for gradient in held]
    gradients(tested, graphs[1:])
    assert all(torch.equal(*pair) for pair in zip(held, copies, strict=True))


def test_weights_may_change_and_move(capturer: InPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    tested = potential()
    graph = tested.graph(ethanol())
    weight = tested.model.embedding
    for captures, change in ((1, "none"), (1, "in place"), (2, "moved")):
        if change == "in place":
            weight.data.mul_(1.1)
        elif change == "moved":
            weight.data = 1.1 * weight.data
        found = tested(graph, OUTPUTS)
        expected = eager(tested, graph, monkeypatch)
        torch.testing.assert_close(found.forces, expected.forces, rtol=1e-9, atol=1e-9)
        assert capturer.captures == captures


def test_positions_of_any_precision_are_used(capturer: InPlace) -> None:
    tested = potential()
    graph = tested.graph(ethanol())
    single = graph.with_positions(graph.positions.float())
    expected = tested(single, "energy").energy
    assert expected is not None
    other = graph.with_positions(graph.positions + 0.1 * torch.rand_like(graph.positions))
    tested(other, "energy")
    found = tested(single, "energy").energy
    assert found is not None
    assert torch.equal(found, expected)
    energy = tested(graph, "energy").energy
    assert energy is not None
    torch.testing.assert_close(found, energy, rtol=1e-6, atol=1e-5)


def test_inference_mode_and_history_stay_outside(capturer: InPlace) -> None:
    """Of tensors that are written over at the next evaluation."""
    tested = potential()
    graph = tested.graph(ethanol())
    with torch.inference_mode():
        inside = tested(graph, "energy").energy
    tracked = graph.with_positions(graph.positions.clone().requires_grad_())
    outside = [tested(tracked, "energy").energy for _ in range(2)]
    assert capturer.captures == 1
    (capture,) = tested._repeats.captures.captured.values()
    assert not any(tensor.requires_grad for tensor in capture.padded.tensors)
    assert all(torch.equal(energy, inside) for energy in outside)


def test_a_gradient_of_what_has_changed_is_refused(capturer: InPlace) -> None:
    """Its early stage would run again, with other weights."""
    tested = potential()
    graph, other = tested.graph(ethanol()), tested.graph(ethanol(1))
    for changed in (tested.model.embedding, graph.positions):
        energy = tested(graph, "energy", differentiable=True).energy
        assert energy is not None
        with torch.no_grad():
            changed.mul_(1.01)
        tested(other, "energy", differentiable=True)
        with pytest.raises(RuntimeError, match="changed in place"):
            energy.sum().backward()


def test_threads_take_turns(capturer: InPlace) -> None:
    tested = potential()
    graphs = [tested.graph(ethanol(seed)) for seed in range(2)]
    expected = [tested(graph, "energy").energy for graph in graphs]

    def energies(which: int) -> list[Tensor]:
        return [tested(graphs[which], "energy").energy for _ in range(50)]

    with ThreadPoolExecutor(2) as pool:
        for found, wanted in zip(pool.map(energies, range(2)), expected, strict=True):
            assert all(torch.equal(energy, wanted) for energy in found)


class CudaOfTwo:
    """Stands in for torch.cuda with two devices: what is current, and where functions ran."""

    def __init__(self) -> None:
        self.current, self.stream_device, self.capturing = 0, 0, False
        self.runs: list[tuple[int, int, bool]] = []
        self.streams: list[int] = []

    def run(self) -> str:
        self.runs.append((self.current, self.stream_device, self.capturing))
        return "results"

    def stream_of(self, device: torch.device | None = None) -> Any:
        index = self.current if device is None or device.index is None else device.index
        return SimpleNamespace(device=index, wait_stream=lambda other: None)

    @contextmanager
    def on_device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        yield
        self.current = before

    @contextmanager
    def on_stream(self, stream: Any) -> Iterator[None]:
        before, self.stream_device = self.stream_device, stream.device
        yield
        self.stream_device = before

    @contextmanager
    def graph(self, graph: Any, pool: Any, stream: Any, **settings: Any) -> Iterator[None]:
        self.capturing = True
        with self.on_stream(stream):
            yield
        self.capturing = False


def test_graphs_are_captured_on_the_device_of_the_potential(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which need not be the current one: kernels would run once, and nothing would be captured."""
    cuda = CudaOfTwo()
    graph = SimpleNamespace(replay=lambda: None)
    for name, value in {
        "Stream": cuda.stream_of,
        "current_stream": cuda.stream_of,
        "device": cuda.on_device,
        "stream": cuda.on_stream,
        "graph": cuda.graph,
        "set_stream": lambda stream: cuda.streams.append(stream.device),
        "CUDAGraph": lambda: graph,
        "graph_pool_handle": lambda: (0, 1),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    results, replay = CudaCapturer(torch.device("cuda", 1)).capture(cuda.run)
    assert (results, replay) == ("results", graph.replay)
    assert cuda.runs == [(1, 1, False), (1, 1, True)]
    assert cuda.current == 0
    assert cuda.streams == [1]  # as torch leaves it where capturing fails


# --- few, and never in the way ---


def toy(capturer: Any) -> tuple[CapturedRecordings, Captures]:
    """Sums over edges and atoms of a graph."""
    ones = torch.ones(3, dtype=torch.float64)

    def function(*tensors: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        graph = AtomGraph(*tensors)
        ends = (ones * graph.positions).index_select(0, graph.senders)
        reached = torch.zeros_like(graph.positions).index_add(0, graph.receivers, ends)
        return (reached, graph.cell.sum((1, 2))), ()

    def record(early: tuple[Tensor, ...], late: tuple[Tensor, ...]) -> Recording:
        return Recording(function, [(early, late)])

    captures = Captures(capturer)
    return CapturedRecordings(record, ("atoms", "frames"), (), 5.0, captures), captures


def chain(n_atoms: int, n_edges: int) -> AtomGraph:
    """Atoms with edges from the first to itself."""
    graph = clebsch.neighbors.neighbor_graph(
        torch.rand(n_atoms, 3, dtype=torch.float64) + 100 * torch.arange(n_atoms)[:, None],
        torch.zeros(3, 3, dtype=torch.float64),
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(n_atoms, dtype=torch.int64),
        1.0,
    )
    ends = torch.zeros(n_edges, dtype=torch.int64)
    ptr = torch.full((n_atoms + 1,), n_edges)
    ptr[0] = 0
    edges = {"senders": ends, "receivers": ends, "sender_order": torch.arange(n_edges)}
    images = torch.zeros(n_edges, 3, dtype=torch.float64)
    return replace(graph, **edges, images=images, row_ptr=ptr, sender_ptr=ptr)


def test_ten_thousand_sizes_leave_few_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clebsch.replay.MOST_CAPTURES", 32)
    capturer = InPlace()
    recordings, captures = toy(capturer)
    rng = np.random.default_rng(1)
    graphs = [chain(n, int(rng.integers(2, 900))) for n in rng.integers(2, 60, size=400).tolist()]
    most_bytes = used = 0
    for call, graph in zip(range(10_000), itertools.cycle(graphs), strict=False):
        recording = recordings.find(graph)
        if recording is not None:
            used += 1
            sums, cells = recording(*tensors_of(graph))
            assert cells.shape == (1,)
            if used % 100 == 0:
                expected = float(graph.n_edges * graph.positions[0].sum())
                assert sums[0].sum() == pytest.approx(expected)
        if call % 100 == 0:
            most_bytes = max(most_bytes, sum(c.n_bytes() for c in captures.captured.values()))
        assert len(captures.captured) <= 32
    gc.collect()
    assert used > 1000
    assert capturer.captures > 32  # some were given up
    assert len(capturer.live) <= 32
    assert most_bytes < 32 * 2 * 80 * 1100


def test_captures_hold_no_more_memory_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clebsch.replay.CAPTURE_AT", 1)
    recordings, captures = toy(InPlace())
    recordings.find(chain(10, 1000))
    (held,) = captures.captured.values()
    monkeypatch.setattr("clebsch.replay.MOST_BYTES", 3 * held.n_bytes())
    for n_edges in range(1000, 2000, 10):
        recordings.find(chain(10, n_edges))
    # one more than fits is made before it is known how large it is
    assert sum(one.n_bytes() for one in captures.captured.values()) <= 5.5 * held.n_bytes()


def test_a_size_is_captured_when_it_has_come_often() -> None:
    capturer = InPlace()
    recordings, _ = toy(capturer)
    for call in range(1, CAPTURE_AT + 3):
        found = recordings.find(chain(10, 100))
        assert capturer.captures == int(call >= CAPTURE_AT)
        assert (found is None) == (call < CAPTURE_AT)


def test_large_structures_are_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clebsch.replay.CAPTURE_AT", 1)
    capturer = InPlace()
    recordings, captures = toy(capturer)
    assert recordings.find(chain(10, MOST_EDGES + 1)) is None
    late = [("frames", ())]
    gradients = CapturedRecordings(recordings._record, recordings._early, late, 5.0, captures)
    assert gradients.find(chain(10, FEW_EDGES + 1)) is None
    assert capturer.captures == 0
    assert recordings.find(chain(10, FEW_EDGES + 1)) is not None


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda after: capture_with(monkeypatch, Broken(after))


@pytest.mark.parametrize("after", [0, 1], ids=["at once", "in the second stage"])
def test_a_capture_that_fails_is_told_once_and_done_without(
    after: int, broken: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(after)
    tested = potential()
    graphs = [tested.graph(ethanol())]
    with pytest.warns(UserWarning, match="no graph today") as told:
        found = [gradients(tested, graphs) for _ in range(2)]
    assert len(told) == 1
    with monkeypatch.context() as patch:
        patch.setattr("clebsch.repeats.RECORD_AFTER", 10**9)
        expected = gradients(tested, graphs)
    for one in found:
        for here, there in zip(one, expected, strict=True):
            torch.testing.assert_close(here, there, rtol=1e-8, atol=1e-8)


def test_copies_and_moved_potentials_capture_anew(capturer: InPlace) -> None:
    tested = potential()
    graph = tested.graph(ethanol())
    tested(graph)
    gradients(tested, [graph])
    assert tested._repeats.captures is not None
    assert len(capturer.live) == 3
    assert copy.deepcopy(tested)._repeats.captures is None
    tested.float()
    assert tested._repeats.captures is None
    assert not capturer.live
