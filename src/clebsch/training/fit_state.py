"""The state of a fit in closed form on disk: its normal equations so far; checked and atomic."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from clebsch.errors import ModelFileError
from clebsch.modelfile import read_tensors, write_tensors
from clebsch.training.normal_equations import NormalEquations
from clebsch.training.state import state_folder

STATE_FORMAT = "clebsch-fit-state"
STATE_VERSION = 2


@dataclass(frozen=True)
class FitState:
    """Where a fit stands, without its equations.

    Attributes:
        done: training structures that are in the equations: the first ones.
        seconds: wall time spent.
        fingerprint: SHA-256 of training and validation data.
        config: the resolved configuration.
    """

    done: int
    seconds: float
    fingerprint: str
    config: dict[str, Any]


def fit_state_file(run: Path) -> Path:
    """Where a fit's state lies, if there is one."""
    return state_folder(run) / "fit.safetensors"


def write_fit_state(run: Path, state: FitState, equations: NormalEquations) -> None:
    """Replace the state in the run's folder.

    Raises:
        OSError: it cannot be written; the state that was there is unchanged.
    """
    path = fit_state_file(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": STATE_FORMAT, "format_version": STATE_VERSION, "state": asdict(state)}
    write_tensors(path, equations.state(), metadata)


def read_fit_state(run: Path) -> tuple[FitState, dict[str, Tensor]]:
    """The state and what ``NormalEquations.restore`` takes.

    Raises:
        ModelFileError: there is none, or it cannot be trusted.
    """
    path = fit_state_file(run)
    if not path.exists():
        raise ModelFileError(
            f"{run}: holds no state of a fit to resume from; begin it with clebsch train"
        )
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != STATE_FORMAT or metadata.get("format_version") != STATE_VERSION:
        raise ModelFileError(
            f"{path}: not the state of a fit that this Clebsch reads (version {STATE_VERSION})"
        )
    return FitState(**metadata["state"]), tensors


def remove_fit_state(run: Path) -> None:
    """Of a fit that is done; states are large."""
    fit_state_file(run).unlink(missing_ok=True)
    if state_folder(run).is_dir() and not any(state_folder(run).iterdir()):
        state_folder(run).rmdir()
