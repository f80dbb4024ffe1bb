"""What a run tells people and files: messages, a table, progress with time left, metrics.jsonl."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from clebsch.errors import ConfigError
from clebsch.files import atomic_write
from clebsch.terminal import say


class History:
    """metrics.jsonl: one line an evaluation, never more of them than the state knows of.

    Attributes:
        path: the file.
        n_lines: how many lines it has, with those that are not written yet.
        unwritten: lines that the file lacks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_lines = 0
        self.unwritten: list[str] = []

    def append(self, record: dict[str, Any]) -> None:
        """Add a line; numbers that are not finite become null, as JSON has none.

        Raises:
            OSError: it cannot be written now, and is kept for ``write``; the file is as it was.
        """
        self.unwritten.append(json.dumps(_finite(record), allow_nan=False) + "\n")
        self.n_lines += 1
        self.write()

    def write(self) -> None:
        """Write what is not written yet.

        Raises:
            OSError: it cannot be; the file is as it was.
        """
        if not self.unwritten:
            return
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(self.unwritten)
        except OSError:
            with suppress(OSError):
                os.truncate(self.path, size)  # a full disk may have taken half a line
            raise
        self.unwritten = []

    def truncate(self, n_lines: int) -> int:
        """Keep the first ``n_lines``, which a resumed run starts from, but for damaged ones.

        Returns:
            How many lines are missing, if the file has no more than that.
        """
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        kept = [line for line in text.splitlines()[:n_lines] if _is_record(line)]
        atomic_write(self.path, "".join(f"{line}\n" for line in kept))
        self.n_lines, self.unwritten = len(kept), []
        return n_lines - len(kept)


def _is_record(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


class RunLog:
    """Messages to the console and to RUN/log.txt, and the table of evaluations."""

    def __init__(self, run: Path, console: Console | None) -> None:
        self.run = run
        self.console = console or Console(quiet=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._header_shown = False
        self._tensorboard: Any = None

    def say(self, text: str) -> None:
        """A message; a log file that cannot be written is no reason to stop what it tells of."""
        say(text, self.console)
        with suppress(OSError), (self.run / "log.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def row(self, record: dict[str, Any]) -> None:
        """An evaluation as a line of the table, in meV and Angstrom."""
        columns = _columns(record)
        if not self._header_shown:
            self.say("  ".join(f"{title:>{width}}" for title, _, width in columns))
            self._header_shown = True
        self.say("  ".join(f"{value:>{width}}" for _, value, width in columns))

    @contextmanager
    def progress(self) -> Iterator[None]:
        """A bar while the context lasts; nothing but the table where there is no terminal."""
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        ) as self._progress:
            self._task = self._progress.add_task("starting", total=1.0, left="")
            try:
                yield
            finally:
                self._progress, self._task = None, None

    def advance(self, description: str, fraction: float, seconds_left: float | None) -> None:
        """Move the bar."""
        if self._progress is not None and self._task is not None:
            left = "" if seconds_left is None else f"{duration(seconds_left)} left"
            self._progress.update(
                self._task, description=description, completed=fraction, left=left
            )

    def open_tensorboard(self, step: int) -> None:
        """Also write scalars to RUN/tensorboard; events after ``step`` are overwritten.

        Raises:
            ConfigError: tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "tensorboard: true needs TensorBoard: pip install 'clebsch[tensorboard]'"
            ) from None
        self._tensorboard = SummaryWriter(str(self.run / "tensorboard"), purge_step=step)

    def scalars(self, record: dict[str, Any]) -> None:
        """An evaluation to TensorBoard, if it is open."""
        if self._tensorboard is None:
            return
        for part in ("train", "valid", "replay"):
            for name, value in record.get(part, {}).items():
                self._tensorboard.add_scalar(f"{part}/{name}", value, record["step"])
        self._tensorboard.add_scalar("lr", record["lr"], record["step"])
        self._tensorboard.flush()

    def close(self) -> None:
        """Release what is open."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _columns(record: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Title, value and width."""
    valid, trained = record["valid"], record["train"].get("loss")
    columns = [
        ("epoch", str(record["epoch"]), 6),
        ("step", str(record["step"]), 8),
        ("train loss", f"{trained:.4g}" if trained is not None else "-", 10),
        ("valid loss", f"{valid['loss']:.4g}", 10),
    ]
    for title, key in (
        ("E meV/atom", "energy_per_atom_rmse"),
        ("F meV/Å", "forces_rmse"),
        ("S meV/Å³", "stress_rmse"),
    ):
        if key in valid:
            columns.append((title, f"{1000 * valid[key]:.4g}", 10))
    if "replay" in record:
        columns.append(("replay F", f"{1000 * record['replay']['forces_rmse']:.4g}", 8))
    columns += [("lr", f"{record['lr']:.2e}", 9), ("time", duration(record["seconds"]), 8)]
    return [*columns, ("", "best" if record["best"] else "", 4)]


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
