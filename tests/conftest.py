"""Shared fixtures."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

if not torch.cuda.is_available():  # read when Triton is imported, which torch does as well
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="of the contract battery: cpu or cuda")


def pytest_configure(config: pytest.Config) -> None:
    import builders

    builders.DEVICE = config.getoption("--device")


@pytest.fixture
def shared_data() -> Path:
    """The folder of real DFT data; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def run_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """``clebsch``: exit status, standard output, standard error."""
    from clebsch.cli import main

    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def run_doctor(
    run_command: Callable[..., tuple[int, str, str]],
) -> Callable[..., tuple[int, str, str]]:
    """``clebsch doctor``, likewise."""
    return functools.partial(run_command, "doctor")


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_interrupts() -> Iterator[None]:
    """A shell that starts the tests in the background has them ignore Ctrl-C; some need it."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
