"""Processes and threads are chosen, kept with the run, and threads set for as long as it lasts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

import clebsch
from clebsch.errors import ConfigError
from clebsch.training import parallelism as module
from clebsch.training.configfile import load_config
from clebsch.training.loop import train
from clebsch.training.prepare import prepare

from .toy import config, data_file


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 1.0, 2: 0.95}, 1),  # hardly faster: not worth a core
        ({1: 1.0, 2: 0.6, 4: 0.59}, 2),
        ({1: 1.0, 2: 0.6, 4: 0.3, 6: 0.2}, 6),
    ],
)
def test_more_threads_are_taken_while_they_pay(
    seconds: dict[int, float],
    expected: int,
    tmp_path: Path,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_seconds", lambda *arguments: seconds[arguments[-1]])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    used: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    result = train(config(data_file(tmp_path), "training.max_epochs=1"), tmp_path / "run", console)
    assert load_config(result.run / "config.yaml").threads == expected
    assert used == [expected, 6]


def test_threads_that_were_given_are_not_timed(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_seconds", None)
    settings = config(data_file(tmp_path), "training.max_epochs=1", "threads=1")
    before = torch.get_num_threads()
    train(settings, tmp_path / "run", console)
    assert torch.get_num_threads() == before


def test_timing_leaves_the_potential_as_it_was(tmp_path: Path, console: Console) -> None:
    """A run that was timed and one that was given the number found have the same weights."""
    data = data_file(tmp_path)
    timed = train(config(data, "training.max_epochs=1"), tmp_path / "timed", console)
    number = load_config(timed.run / "config.yaml").threads
    settings = config(data, "training.max_epochs=1", f"threads={number}")
    given = train(settings, tmp_path / "given", console)
    assert timed.model is not None
    assert given.model is not None
    first, second = clebsch.load(timed.model), clebsch.load(given.model)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


@pytest.mark.parametrize(
    ("given", "cores", "seconds", "expected"),
    [
        ((), 6, 100.0, (2, 1)),  # a batch has two structures
        ((), 1, 100.0, (1, 1)),
        ((), 6, 10.0, (1, 1)),  # soon over
        (("threads=1",), 6, 100.0, (1, 1)),
        (("processes=3",), 6, 10.0, (3, 1)),
        (("processes=2", "threads=3"), 1, 10.0, (2, 3)),
    ],
)
def test_long_runs_get_a_process_for_each_core_and_structure_of_a_batch(
    given: tuple[str, ...],
    cores: int,
    seconds: float,
    expected: tuple[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_expected_seconds", lambda *arguments: seconds)
    monkeypatch.setattr(module, "_seconds", lambda *arguments: 1.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    settings = config(data_file(tmp_path), *given)
    prepared = prepare(settings, lambda _: None)
    found = module.with_parallelism(settings, prepared, lambda _: None)
    assert (found.processes, found.threads) == expected


def test_processes_on_a_gpu_are_refused(tmp_path: Path) -> None:
    settings = config(data_file(tmp_path), "processes=2")
    prepared = prepare(settings, lambda _: None)
    with pytest.raises(ConfigError, match=r"processes: .* not on device cuda"):
        module.with_parallelism(
            settings.model_copy(update={"device": "cuda"}), prepared, lambda _: None
        )
