"""The exact state of a run on disk: checked, atomic, the previous one kept; no pickle.

There is no random generator in it: shuffles are a pure function of the seed and the epoch
(``clebsch.data.loader.BatchSampler``), so that epoch and position say it all.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clebsch.errors import ClebschError, ModelFileError
from clebsch.modelfile import read_tensors, write_tensors

STATE_FORMAT = "clebsch-training-state"
STATE_VERSION = 4
_NAME = re.compile(r"step-(\d{10})\.safetensors")

#: What ends a run: a limit, or no better model for a while.
Finished = Literal["epochs", "minutes", "patience"]


@dataclass
class TrainingState:
    """Where a run stands, without its tensors.

    Attributes:
        epoch: epochs completed.
        position: batches done in the epoch after them.
        step: batches done in all.
        frames: structures whose loss has been differentiated, each as often as it was.
        skipped: how many of the last batches in a row were skipped as not finite.
        seconds: wall time spent.
        waited: evaluations since the best model was found.
        best: the line of metrics.jsonl of the best model, or None before the first evaluation.
        history_lines: lines of metrics.jsonl so far.
        last_evaluation: the step of the last evaluation, -1 before the first.
        schedule: ``factor``, ``lowest`` and ``waited`` of the plateau rule.
        average_updates: updates of the averaged weights.
        train_sums: fields of the ``LossSums`` since the last evaluation.
        finished: why the run ended, or None while it has not.
        fingerprint: SHA-256 of training and validation data.
        config: the resolved configuration.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    frames: int = 0
    skipped: int = 0
    seconds: float = 0.0
    waited: int = 0
    best: dict[str, Any] | None = None
    history_lines: int = 0
    last_evaluation: int = -1
    schedule: dict[str, Any] = field(default_factory=dict)
    average_updates: int = 0
    train_sums: dict[str, Any] = field(default_factory=dict)
    finished: Finished | None = None
    fingerprint: str = ""
    config: dict[str, Any] = field(default_factory=dict)


def state_folder(run: Path) -> Path:
    """Where a run's states lie."""
    return run / "state"


def write_state(run: Path, state: TrainingState, tensors: dict[str, Tensor]) -> None:
    """Add a state to the run's folder and remove all but it and the one before.

    Raises:
        OSError: it cannot be written; the states that were there are unchanged.
    """
    folder = state_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": STATE_FORMAT, "format_version": STATE_VERSION, "state": asdict(state)}
    write_tensors(folder / f"step-{state.step:010d}.safetensors", tensors, metadata)
    for old in state_files(run)[2:]:
        old.unlink(missing_ok=True)


def read_newest_state(run: Path) -> tuple[TrainingState, dict[str, Tensor], list[str]]:
    """The newest state that can be trusted.

    Returns:
        The state, its tensors, and what was lost: one message for each newer state that is
        damaged. Damaged files are removed, so that they never count as the one to keep.

    Raises:
        ModelFileError: there is no state, or none is whole, or a newer one is whole but of another
            version; then nothing is removed.
    """
    paths = state_files(run)
    if not paths:
        raise ModelFileError(
            f"{run}: holds no training state to resume from; begin it with clebsch train"
        )
    damaged: list[tuple[Path, str]] = []
    for path in paths:
        try:
            tensors, metadata = read_tensors(path)
        except ModelFileError as error:
            damaged.append((path, str(error)))
            continue
        state = _state(path, metadata)
        for broken, _ in damaged:
            broken.unlink(missing_ok=True)
        notes = [
            f"{message}. Going back to step {state.step} (epoch {state.epoch + 1}); "
            f"{_step(broken) - state.step} steps are lost and will be done again."
            for broken, message in damaged
        ]
        return state, tensors, notes
    raise ModelFileError("; ".join(message for _, message in damaged) + "; no state is left")


def _state(path: Path, metadata: dict[str, Any]) -> TrainingState:
    if metadata.get("format") != STATE_FORMAT:
        raise ModelFileError(f"{path}: not a training state")
    version = metadata.get("format_version")
    if version != STATE_VERSION:
        raise ModelFileError(
            f"{path}: training state of version {version}; this Clebsch reads {STATE_VERSION}"
        )
    return TrainingState(**metadata["state"])


def state_files(run: Path) -> list[Path]:
    """The files of a run's states, newest first."""
    paths = state_folder(run).glob("step-*.safetensors")
    return sorted((p for p in paths if _NAME.fullmatch(p.name)), key=_step, reverse=True)


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


# --- tensors by name ------------------------------------------------------------------------------


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The optimiser's moments as ``name/moment``; empty before the first step."""
    return {
        f"{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, nn.Parameter],
    tensors: dict[str, Tensor],
) -> None:
    """Give the optimiser back what ``optimizer_tensors`` took."""
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, moment = key.rpartition("/")
        if name not in parameters:
            raise ClebschError(f"the state holds an optimiser's moment of an unknown {name!r}")
        parameter = parameters[name]
        optimizer.state[parameter][moment] = value.to(parameter.device)


def grouped(tensors: dict[str, Tensor], group: str) -> dict[str, Tensor]:
    """The tensors named ``group:...`` under the rest of their names."""
    prefix = f"{group}:"
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def named(tensors: dict[str, Tensor], group: str) -> dict[str, Tensor]:
    """The inverse of ``grouped``."""
    return {f"{group}:{name}": tensor for name, tensor in tensors.items()}
