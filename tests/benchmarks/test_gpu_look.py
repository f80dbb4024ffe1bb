"""The first look at a GPU, without one: what fails takes nothing from what comes after it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_look.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_look", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("CAPTURE_AT", "MOST_EDGES"):  # which main changes
        monkeypatch.setattr(f"clebsch.replay.{name}", 1)
    return module


def looked_at(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, lost_in: int | None
) -> list[int]:
    """Numbers of models in their turn."""
    seen: list[int] = []

    def look(number: int, modes: list[str]) -> None:
        seen.append(number)
        assert modes == ["forces", "step"]
        raise ValueError("no such luck")

    monkeypatch.setattr(script, "look", look)
    monkeypatch.setattr(script, "is_alive", lambda: seen[-1] != lost_in)

    def another(program: str, command: list[str]) -> None:
        raise SystemExit(" ".join(command[1:]))

    monkeypatch.setattr("os.execv", another)
    cases = [f"{number}=forces,step" for number in (3, 1, 0)]
    monkeypatch.setattr(sys, "argv", ["gpu_look.py", "times", *cases])
    script.main()
    return seen


def test_a_model_that_fails_does_not_keep_others_from_their_turn(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert looked_at(script, monkeypatch, lost_in=None) == [3, 1, 0]
    assert capsys.readouterr().out.count("ValueError: no such luck") == 3


def test_a_gpu_that_is_lost_to_a_process_is_looked_at_by_another(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"^gpu_look\.py times 0=forces,step$"):
        looked_at(script, monkeypatch, lost_in=1)
    assert looked_at(script, monkeypatch, lost_in=0) == [3, 1, 0]  # nobody is left


def test_a_mode_that_fails_does_not_end_a_look(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with script.going_on():
        raise ValueError("not profiled")
    assert "ValueError: not profiled" in capsys.readouterr().out
