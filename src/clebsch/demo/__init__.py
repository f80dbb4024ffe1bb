"""The whole road on data of its own making, in minutes: what ``clebsch demo`` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["run_demo"]


def run_demo(
    out: Path | str, *, seed: int = 0, quick: bool = False, console: Console | None = None
) -> Path:
    """Sample ethanol with GFN2-xTB, train a MACE on it, judge it, run it, and report.

    Args:
        out: the folder of all results; must be empty or not exist.
        seed: of everything random. Training is limited by time, so two runs still differ.
        quick: so small and short that the results mean nothing, for tests.
        console: where to print; standard output if None.

    Returns:
        The path of report.html; summary.json lies beside it.

    Raises:
        ClebschError: ``out`` holds something, tblite is not installed, or a stage failed.
        KeyboardInterrupt: Ctrl-C; what was finished stays on disk.
    """
    # Here, so that the processes that sample (clebsch.demo.sampling) need not wait for torch.
    from clebsch.demo.stages import run_stages

    return run_stages(Path(out), seed=seed, quick=quick, console=console)
