"""Prefetched batches are those that were asked for, and trainings with them the same."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import clebsch
from clebsch.data.loader import Batch, LabelledGraphs, Labels
from clebsch.data.prefetch import MOST_PREFETCHED, BatchPrefetcher
from clebsch.data.read import read_frames
from clebsch.graph import TENSORS
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
    for names, part in ((TENSORS, "graph"), ([f.name for f in fields(Labels)], "labels")):
        for name in names:
            one, other = (getattr(getattr(b, part), name) for b in (found, expected))
            assert torch.equal(one, other), name


def test_a_batch_is_the_one_asked_for_whatever_was_prefetched(graphs: LabelledGraphs) -> None:
    prefetcher = BatchPrefetcher(graphs, CPU)
    batches = [[0, 3], [5, 1], [2, 4, 6]]
    for number, indices in enumerate(batches):
        for later in batches[number + 1 : number + 2]:
            prefetcher.prefetch(later)
        assert_equal(prefetcher.batch(indices), graphs.batch(indices))
    prefetcher.prefetch([7])
    assert_equal(prefetcher.batch([0]), graphs.batch([0]))
    assert_equal(prefetcher.batch([7]), graphs.batch([7]))


def test_what_is_prefetched_is_made_elsewhere_and_once(
    graphs: LabelledGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[tuple[int, ...], bool]] = []
    honest = LabelledGraphs.batch

    def batch(self: LabelledGraphs, indices: Sequence[int]) -> Batch:
        made.append((tuple(indices), threading.current_thread() is threading.main_thread()))
        return honest(self, indices)

    monkeypatch.setattr(LabelledGraphs, "batch", batch)
    prefetcher = BatchPrefetcher(graphs, CPU)
    prefetcher.prefetch([1, 2])
    prefetcher.prefetch([1, 2])
    prefetcher.batch([1, 2])
    prefetcher.batch([3])
    assert made == [((1, 2), False), ((3,), True)]


def test_prefetched_batches_that_nobody_asks_for_are_dropped(graphs: LabelledGraphs) -> None:
    prefetcher = BatchPrefetcher(graphs, CPU)
    for index in range(8):
        prefetcher.prefetch([index])
    assert list(prefetcher._prefetched) == [(index,) for index in range(8)][-MOST_PREFETCHED:]
    for index in range(8):
        prefetcher.batch([index])


def test_an_error_in_the_thread_reaches_who_asks(
    graphs: LabelledGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: LabelledGraphs, indices: Sequence[int]) -> Batch:
        raise MemoryError("full")

    monkeypatch.setattr(LabelledGraphs, "batch", fail)
    prefetcher = BatchPrefetcher(graphs, CPU)
    prefetcher.prefetch([0])
    with pytest.raises(MemoryError, match="full"):
        prefetcher.batch([0])


def test_trainings_are_the_same_with_prefetching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the trainer makes them prefetcher."""
    data = data_file(tmp_path, [cluster(seed) for seed in range(8)])
    asked = {True: 0, False: 0}
    honest = BatchPrefetcher.batch

    def batch(self: BatchPrefetcher, indices: Sequence[int]) -> Batch:
        asked[tuple(indices) in self._prefetched] += 1
        return honest(self, indices)

    monkeypatch.setattr(BatchPrefetcher, "batch", batch)

    def weights(name: str) -> dict[str, torch.Tensor]:
        settings = [MODEL, f"data.train={data}", "data.valid_count=2", "processes=1", "threads=1"]
        settings += ["training.batch_size=2", "training.max_epochs=2", f"run={tmp_path / name}"]
        result = train(load_config(None, settings))
        assert result.model is not None
        return dict(clebsch.load(result.model).state_dict())

    expected = weights("plain")
    begin = Trainer.__init__

    def with_prefetching(self: Trainer, *arguments: object) -> None:
        begin(self, *arguments)  # type: ignore[arg-type]
        self._lessons = [lesson.prefetched(CPU) for lesson in self._lessons]

    monkeypatch.setattr(Trainer, "__init__", with_prefetching)
    found = weights("prefetched")
    assert asked == {True: 4, False: 2}, "all but the first of each epoch"
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
