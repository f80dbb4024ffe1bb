"""TF32 is off unless asked for, off again afterwards, and never where numbers are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import clebsch
from builders import copied_potential, ethanol
from clebsch.cli import main
from clebsch.evaluation import run as evaluation_run
from clebsch.rounding import allow_tf32, tf32_is_allowed
from clebsch.simulation import md
from clebsch.training.loop import train
from clebsch.training.trainer import Trainer
from training.toy import config, data_file


def test_it_is_off_before_and_after_and_whatever_is_raised() -> None:
    def fail() -> None:
        with allow_tf32(True):
            assert tf32_is_allowed()
            with allow_tf32(False):
                assert not tf32_is_allowed()
            assert tf32_is_allowed()
            raise ZeroDivisionError

    assert not tf32_is_allowed()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert not tf32_is_allowed()


def test_backends_and_stored_answers_are_checked_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    honest = clebsch.Potential.forward

    def noted(self: clebsch.Potential, *args: Any, **kwargs: Any) -> clebsch.Prediction:
        asked.append(tf32_is_allowed())
        return honest(self, *args, **kwargs)

    monkeypatch.setattr(clebsch.Potential, "forward", noted)
    tested = copied_potential("mace", torch.float32)
    with allow_tf32(True):
        tested.save(tmp_path / "model.safetensors")
        clebsch.load(tmp_path / "model.safetensors")
    assert len(asked) >= 4
    assert not any(asked)


def test_recordings_are_of_one_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clebsch.repeats.RECORD_AFTER", 0)
    tested = copied_potential("mace", torch.float32)
    graph = tested.graph(ethanol())
    for allowed in (False, True, False):
        with allow_tf32(allowed):
            tested(graph)
    assert len(tested._repeats.recordings) == 2


@pytest.mark.parametrize("allowed", [False, True])
def test_trainings_and_commands_that_ask_for_it_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    seen = []
    step = Trainer.step

    def noted(self: Trainer, *args: Any) -> None:
        seen.append(tf32_is_allowed())
        step(self, *args)

    monkeypatch.setattr(Trainer, "step", noted)
    setting = f"tf32={str(allowed).lower()}"
    train(config(data_file(tmp_path), "training.max_epochs=1", setting), tmp_path / "run")
    assert set(seen) == {allowed}

    class Done(Exception):
        pass

    def end(*_: Any, **__: Any) -> None:
        seen.append(tf32_is_allowed())
        raise Done

    monkeypatch.setattr(evaluation_run, "run_evaluate", end)
    monkeypatch.setattr(md, "run_md", end)
    model = tmp_path / "run" / "model.safetensors"
    data = tmp_path / "data.xyz"
    for command in (["evaluate", model, data], ["md", model, data]):
        seen.clear()
        with pytest.raises(Done):
            main([*map(str, command), *(["--tf32"] if allowed else [])])
        assert seen == [allowed]
    assert not tf32_is_allowed()
