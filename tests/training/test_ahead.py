"""Batches made ahead are those that were asked for, and trainings with them the same."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import clebsch
from clebsch.data.ahead import MOST_ANNOUNCED, BatchesAhead
from clebsch.data.loader import Batch, LabelledGraphs, Labels
from clebsch.data.read import read_frames
from clebsch.graph import AtomGraph
from clebsch.training.configfile import load_config
from clebsch.training.loop import train
from clebsch.training.trainer import Trainer
from training.toy import MODEL, cluster, data_file

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> LabelledGraphs:
    path = data_file(tmp_path_factory.mktemp("data"), [cluster(seed) for seed in range(8)])
    frames = read_frames(path)
    elements = sorted({symbol for frame in frames for symbol in frame.symbols})
    return LabelledGraphs(clebsch.build({"channels": 2, "l_max": 1}, elements), frames)


def assert_equal(found: Batch, expected: Batch) -> None:
    assert (found.frame_indices, found.counts) == (expected.frame_indices, expected.counts)
    for kind, name in ((AtomGraph, "graph"), (Labels, "labels")):
        for field in fields(kind):
            one, other = (getattr(getattr(b, name), field.name) for b in (found, expected))
            assert torch.equal(one, other), field.name


def test_a_batch_is_the_one_asked_for_whatever_was_announced(graphs: LabelledGraphs) -> None:
    ahead = BatchesAhead(graphs, CPU)
    batches = [[0, 3], [5, 1], [2, 4, 6]]
    for number, indices in enumerate(batches):
        for later in batches[number + 1 : number + 2]:
            ahead.announce(later)
        assert_equal(ahead.batch(indices), graphs.batch(indices))
    ahead.announce([7])
    assert_equal(ahead.batch([0]), graphs.batch([0]))
    assert_equal(ahead.batch([7]), graphs.batch([7]))


def test_what_is_announced_is_made_elsewhere_and_once(
    graphs: LabelledGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[tuple[int, ...], bool]] = []
    honest = LabelledGraphs.batch

    def batch(self: LabelledGraphs, indices: Sequence[int]) -> Batch:
        made.append((tuple(indices), threading.current_thread() is threading.main_thread()))
        return honest(self, indices)

    monkeypatch.setattr(LabelledGraphs, "batch", batch)
    ahead = BatchesAhead(graphs, CPU)
    ahead.announce([1, 2])
    ahead.announce([1, 2])
    ahead.batch([1, 2])
    ahead.batch([3])
    assert made == [((1, 2), False), ((3,), True)]


def test_announcements_that_nobody_takes_up_are_dropped(graphs: LabelledGraphs) -> None:
    ahead = BatchesAhead(graphs, CPU)
    for index in range(8):
        ahead.announce([index])
    assert list(ahead._announced) == [(index,) for index in range(8)][-MOST_ANNOUNCED:]
    for index in range(8):
        ahead.batch([index])


def test_an_error_in_the_thread_reaches_who_asks(
    graphs: LabelledGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: LabelledGraphs, indices: Sequence[int]) -> Batch:
        raise MemoryError("full")

    monkeypatch.setattr(LabelledGraphs, "batch", fail)
    ahead = BatchesAhead(graphs, CPU)
    ahead.announce([0])
    with pytest.raises(MemoryError, match="full"):
        ahead.batch([0])


def test_trainings_are_the_same_with_batches_made_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the trainer makes them ahead."""
    data = data_file(tmp_path, [cluster(seed) for seed in range(8)])
    asked = {True: 0, False: 0}
    honest = BatchesAhead.batch

    def batch(self: BatchesAhead, indices: Sequence[int]) -> Batch:
        asked[tuple(indices) in self._announced] += 1
        return honest(self, indices)

    monkeypatch.setattr(BatchesAhead, "batch", batch)

    def weights(name: str) -> dict[str, torch.Tensor]:
        settings = [MODEL, f"data.train={data}", "data.valid_count=2", "processes=1", "threads=1"]
        settings += ["training.batch_size=2", "training.max_epochs=2", f"run={tmp_path / name}"]
        result = train(load_config(None, settings))
        assert result.model is not None
        return dict(clebsch.load(result.model).state_dict())

    expected = weights("plain")
    begin = Trainer.__init__

    def with_batches_ahead(self: Trainer, *arguments: object) -> None:
        begin(self, *arguments)  # type: ignore[arg-type]
        self._ahead = BatchesAhead(self.prepared.train, CPU)

    monkeypatch.setattr(Trainer, "__init__", with_batches_ahead)
    found = weights("ahead")
    assert asked == {True: 4, False: 2}, "all but the first of each epoch"
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
