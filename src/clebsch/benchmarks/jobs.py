"""What is measured, by whom, and the process of its own in which it happens."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase.data import atomic_numbers

from clebsch.benchmarks.structures import System
from clebsch.errors import ClebschError
from clebsch.models.config import ModelConfig

Mode = Literal["energy_forces", "step"]

#: Variables that glibc's allocator reads.
_ALLOCATOR = re.compile("MALLOC_.*_|GLIBC_TUNABLES")


@dataclass(frozen=True)
class Contender:
    """Who is measured.

    Attributes:
        name: for tables.
        command: the process, which takes a job as JSON and prints its result as JSON.
        environment: variables that it gets beside those of this process.
        modes: what it is asked for.
        options: what its jobs have beside those of others.
        lacks: the settings of a model that it cannot follow; it is not asked for such a model.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    modes: tuple[Mode, ...] = ("energy_forces", "step")
    options: Mapping[str, Any] = field(default_factory=dict)
    lacks: Callable[[ModelConfig], Sequence[str]] = lambda config: ()


OURS = Contender("clebsch", (sys.executable, "-m", "clebsch.benchmarks.speed"))
#: With path weights out of tables, for energies and forces.
TABULATED = Contender(
    "clebsch, tabulated", OURS.command, modes=("energy_forces",), options={"tabulated": True}
)


@dataclass(frozen=True)
class Case:
    """A model on a system.

    Attributes:
        system: the structures.
        config: the architecture.
        name: of the model, for tables.
        species: the model's elements.
        model: a model file with weights; random weights if None.
    """

    system: System
    config: ModelConfig
    name: str
    species: tuple[str, ...]
    model: Path | None = None

    def job(
        self, mode: Mode, dtype: str, threads: int, timing: Mapping[str, Any], device: str = "cpu"
    ) -> dict[str, Any]:
        """As JSON: all that either side needs to know; lengths in Angstrom.

        Args:
            mode: energies and forces, or a training step.
            dtype: "float32" or "float64".
            threads: of the CPU.
            timing: arguments of ``clebsch.benchmarks.timing.measure``.
            device: where model and structures lie.
        """
        n_edges = self.system.n_edges(self.config.cutoff)
        return {
            "architecture": self.config.model_dump(mode="json"),
            "model": None if self.model is None else str(self.model),
            "species": [atomic_numbers[symbol] for symbol in self.species],
            "avg_num_neighbors": max(n_edges, 1) / self.system.n_atoms,
            "structures": [
                {
                    "numbers": atoms.numbers.tolist(),
                    "positions": atoms.positions.tolist(),
                    "cell": np.asarray(atoms.cell).tolist(),
                    "pbc": atoms.pbc.tolist(),
                }
                for atoms in self.system.frames
            ],
            "mode": mode,
            "dtype": dtype,
            "threads": threads,
            "device": device,
            "timing": dict(timing),
        }


class MeasurementError(ClebschError):
    """A process that measures ended without a result."""


def run_job(
    contender: Contender, job: Mapping[str, Any], limit: float | None = None
) -> dict[str, Any]:
    """Measure in a process of its own, so that peak memory is that of this case alone.

    The allocator is glibc's as it comes, whatever this process was told, unless the contender says
    otherwise.

    Args:
        contender: who.
        job: what (``Case.job``).
        limit: seconds after which the process is ended; None for none.

    Raises:
        MeasurementError: the process failed, and the message has its last line, or took too long.
    """
    environment = {k: v for k, v in os.environ.items() if not _ALLOCATOR.fullmatch(k)}
    environment |= {"OMP_NUM_THREADS": str(job["threads"]), **contender.environment}
    try:
        ended = subprocess.run(
            contender.command,
            input=json.dumps({**job, **contender.options}),
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"{contender.name}: not done after {limit:.0f} s") from None
    if ended.returncode != 0:
        last = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
        raise MeasurementError(f"{contender.name}: {last}")
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result
