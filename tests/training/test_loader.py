"""Batches: every frame once, within the budget, in an order that seed and epoch alone decide."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

import clebsch
from clebsch.data.frame import Frame
from clebsch.data.loader import BatchSampler, LabelledGraphs
from clebsch.errors import UnknownElementError
from clebsch.graph import TENSORS


def frame(n: int, **labels: object) -> Frame:
    positions = np.arange(3.0 * n).reshape(n, 3)
    return Frame(
        np.full(n, 29), positions, np.zeros((3, 3)), np.zeros(3, bool), source=f"f:{n}", **labels
    )


def joined(batches: list[list[int]]) -> list[int]:
    return [frame for batch in batches for frame in batch]


@pytest.fixture(scope="module")
def potential() -> clebsch.Potential:
    return clebsch.build(
        {"channels": 2, "l_max": 1, "product": {"correlation": 2}, "cutoff": 6.0}, ["Cu"]
    )


@pytest.mark.parametrize("kind", [{"batch_size": 4}, {"batch_edges": 60}])
def test_an_epoch_holds_every_frame_once_in_an_order_of_its_own(kind: dict[str, int]) -> None:
    sampler = BatchSampler([10 + i for i in range(23)], seed=3, **kind)
    epochs = [sampler.epoch(epoch) for epoch in range(3)]
    for batches in epochs:
        assert sorted(joined(batches)) == list(range(23))
    assert len({str(joined(batches)) for batches in epochs}) == 3
    assert sampler.in_order() == BatchSampler(sampler.n_edges, seed=4, **kind).in_order()
    assert joined(sampler.in_order()) == list(range(23))


def test_graphs_travel_to_other_processes_in_one_piece(potential: clebsch.Potential) -> None:
    """Tensors by the thousand would be pickled one by one: minutes, for large sets."""
    frames = [frame(1 + i % 3, energy=float(i)) for i in range(200)]
    graphs = LabelledGraphs(potential, frames)
    sent = pickle.dumps(graphs)
    assert sent.count(b"_rebuild_tensor") < 50
    received = pickle.loads(sent)
    assert received.fingerprint() == graphs.fingerprint()
    assert received.n_edges == graphs.n_edges
    ours, theirs = graphs.batch([150, 3, 77]), received.batch([150, 3, 77])
    for name in TENSORS:
        assert torch.equal(getattr(ours.graph, name), getattr(theirs.graph, name))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    state = torch.get_rng_state()
    first = BatchSampler([1] * 20, batch_size=3, seed=7).epoch(5)
    torch.rand(3)
    sampler = BatchSampler([1] * 20, batch_size=3, seed=7)
    sampler.epoch(2)
    assert sampler.epoch(5) == first
    assert BatchSampler([1] * 20, batch_size=3, seed=8).epoch(5) != first
    torch.set_rng_state(state)
    sampler.epoch(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_stay_within_the_edge_budget_but_for_a_frame_that_alone_exceeds_it() -> None:
    n_edges = [5, 30, 8, 8, 8, 200, 1, 60, 12, 40]
    sampler = BatchSampler(n_edges, batch_edges=64, seed=1)
    for epoch in range(10):
        batches = sampler.epoch(epoch)
        for batch in batches:
            assert sum(n_edges[i] for i in batch) <= 64 or batch == [5]
        assert len(batches) < len(n_edges)


def test_labels_and_masks_line_up_with_the_graph(potential: clebsch.Potential) -> None:
    forces = np.arange(6.0).reshape(2, 3)
    stress = np.diag([1.0, 2.0, 3.0])
    graphs = LabelledGraphs(
        potential,
        [
            frame(3, energy=1.5, weight=2.0, energy_weight=3.0),
            frame(2, forces=forces, forces_weight=0.5),
            frame(1, stress=stress),
        ],
    )
    batch = graphs.batch([1, 2, 0])
    assert batch.frame_indices == (1, 2, 0)
    assert batch.graph.atoms_per_frame.tolist() == [2, 1, 3]
    labels = batch.labels
    assert labels.has_energy.tolist() == [False, False, True]
    assert labels.has_forces.tolist() == [True, False, False]
    assert labels.has_stress.tolist() == [False, True, False]
    assert labels.energy[2] == 1.5
    assert labels.energy.dtype == torch.float64
    assert np.array_equal(labels.forces[:2], forces)
    assert np.array_equal(labels.stress[1], stress)
    assert labels.energy_weight.tolist() == [1.0, 1.0, 6.0]
    assert labels.forces_weight.tolist() == [0.5, 1.0, 2.0]
    assert graphs.counts == {"frames": 3, "energies": 1, "forces": 1, "stresses": 1}


def test_an_unknown_element_names_the_frame(potential: clebsch.Potential) -> None:
    stranger = Frame(
        np.array([29, 79]), np.eye(3)[:2], np.zeros((3, 3)), np.zeros(3, bool), source="x.xyz:7"
    )
    with pytest.raises(UnknownElementError, match=r"x\.xyz:7.*Au"):
        LabelledGraphs(potential, [frame(1), stranger])


def test_the_fingerprint_sees_labels_weights_and_order(potential: clebsch.Potential) -> None:
    def fingerprint(*frames: Frame) -> str:
        return LabelledGraphs(potential, frames).fingerprint()

    one, two = frame(1, energy=1.0), frame(2, energy=1.0)
    assert fingerprint(one, two) == fingerprint(frame(1, energy=1.0), frame(2, energy=1.0))
    others = {
        fingerprint(two, one),
        fingerprint(frame(1, energy=1.0 + 1e-12), two),
        fingerprint(frame(1, energy=1.0, weight=2.0), two),
        fingerprint(frame(1), two),
    }
    assert fingerprint(one, two) not in others
    assert len(others) == 4
