"""What commands show on a terminal: lines of text and progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def say(text: str, console: Console | None = None, *, error: bool = False) -> None:
    """Print text as it is: brackets are no markup, and long lines are left to the terminal.

    Args:
        text: one or several lines.
        console: where; standard output, or standard error for an ``error``, if None.
        error: see ``console``.
    """
    shown = console or Console(stderr=error)
    shown.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[..., None]]:
    """A bar on standard error with the time left, driven by ``progress(done, total)``.

    A third argument is a new description.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # or it leaves blank lines in logs
    )
    with bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total, description=description: bar.update(
            task, completed=done, total=total, description=description
        )
