"""Results as JSON: one list of rows for each suite, to which runs add theirs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from clebsch.errors import DataError
from clebsch.files import atomic_write

#: Characters of a file's name, at most: what file systems allow.
_LONGEST_NAME = 255


class Row(BaseModel):
    """What one training reached.

    Attributes:
        suite, task, model, seed: which training.
        recipe: "fast", "paper" or "fit".
        settings: what was set beside recipe and model, ``key=value``.
        config: the resolved configuration without paths and machine; empty if it is not known.
        n_parameters: of the network.
        n_train, n_valid: structures.
        epochs, max_epochs: done, and of the whole run; None for a run limited in minutes, or
            a fit.
        steps: optimiser steps done.
        frames: structures whose loss was differentiated, each as often as it was.
        seconds: wall time of the run so far.
        finished: whether the run is over.
        projected_seconds: wall time that the rest will take at the same pace.
        tests: by the test's name: metrics (eV, eV/Angstrom) and ``n``, the structures.
        curve: of the training: ``frames`` so far, and root mean square errors of validation,
            ``energy`` (eV) and ``forces`` (eV/Angstrom); empty if it is not known.
        machine: processor, cores, and what else ran.
        versions: of Clebsch and torch.
        date: when it was judged.
        remark: what else a reader should know.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str
    task: str
    model: str
    seed: int
    recipe: str
    settings: tuple[str, ...] = ()
    config: dict[str, Any] = {}
    n_parameters: int
    n_train: int
    n_valid: int
    epochs: int | None = None
    max_epochs: int | None = None
    steps: int | None = None
    frames: int | None = None
    seconds: float
    finished: bool
    projected_seconds: float | None = None
    tests: dict[str, dict[str, float]]
    curve: dict[str, list[float]] = {}
    machine: dict[str, Any]
    versions: dict[str, str] = {}
    date: str
    remark: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for results of one run."""
        settings = plain_settings(self.settings)
        return (self.suite, self.task, self.model, self.recipe, settings, self.seed)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for results that differ by the seed alone."""
        return self.key[:-1]


def plain_settings(settings: Sequence[str]) -> tuple[str, ...]:
    """Settings in one order and spelling: ``training.lr=1e-2`` is ``training.lr=0.010``.

    Args:
        settings: ``key=value``; the last counts of those with one key.
    """
    return tuple(sorted(f"{key}={value}" for key, value in dict(map(_parsed, settings)).items()))


def _parsed(setting: str) -> tuple[str, str]:
    key, _, text = setting.partition("=")
    try:
        value = yaml.safe_load(text)
        if isinstance(value, int | str) and not isinstance(value, bool):
            value = float(value)
        return key, json.dumps(value, sort_keys=True)
    except (yaml.YAMLError, ValueError, TypeError):  # neither a number nor anything of YAML's
        return key, text.strip()


def results_file(folder: Path, suite: str) -> Path:
    """Where a suite's rows are."""
    return folder / f"{suite}.json"


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; none if there is no file.

    Raises:
        DataError: it is not a list of rows.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [Row.model_validate(entry) for entry in entries]
    except FileNotFoundError:
        return []
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a file of results ({reason})") from None


def add_row(path: Path, row: Row) -> None:
    """Add a row, in place of earlier ones of the same run.

    Other processes that add rows at the same time wait for each other.

    Raises:
        DataError: the file holds something else.
        OSError: it cannot be written; what it held is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        rows = [one for one in read_rows(path) if one.key != row.key]
        write_rows(path, [*rows, row])


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows of a suite, a line for each."""
    entries = [row.model_dump(mode="json", exclude_defaults=True) for row in rows]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    atomic_write(path, f"[\n{lines}\n]\n")


def slug(text: str) -> str:
    """A text as the name of a file; different texts give different names."""
    plain = re.sub(r"[^\w.=-]+", "_", text)
    if plain == text and len(plain) <= _LONGEST_NAME:
        return plain
    ending = f"-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    name = plain + ending
    return name if len(name) <= _LONGEST_NAME else plain[:150] + ending
