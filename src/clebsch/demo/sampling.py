"""xTB's share of the demonstration: every job in a process of its own, with one thread.

tblite is fastest with one thread for small molecules, and the number of threads can be set only
before it is loaded. A job is ``python -m clebsch.demo.sampling KIND PATH SETTINGS``, with settings
in JSON; it prints the number of frames done after each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.optimize import BFGS
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from clebsch.data.synthetic import (
    labelled,
    sample_xtb,
    write_xyz,
    xtb_calculator,
    xtb_isolated_atoms,
)
from clebsch.errors import ClebschError


@dataclass(frozen=True)
class Job:
    """A file that xTB makes.

    Attributes:
        kind: "trajectory", "isolated_atoms" or "torsion".
        path: the file.
        n_frames: frames in it, for the progress bar.
        settings: of a trajectory, for ``clebsch.data.synthetic.sample_xtb``; of a torsion,
            ``step`` in degrees.
    """

    kind: str
    path: Path
    n_frames: int
    settings: dict[str, Any]


def run_jobs(jobs: Sequence[Job], console: Console) -> None:
    """Run all jobs at once and wait for them.

    Raises:
        ClebschError: a job failed; the others are ended.
    """
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    processes = [_start(job) for job in jobs]
    with bar, ThreadPoolExecutor(len(jobs)) as pool:
        tasks = [bar.add_task(job.path.name, total=job.n_frames) for job in jobs]
        futures = [
            pool.submit(_follow, process, job, partial(_show, bar, task))
            for process, job, task in zip(processes, jobs, tasks, strict=True)
        ]
        try:
            for future in as_completed(futures):
                future.result()
        finally:  # before the pool waits for its threads, which wait for these
            for process in processes:
                if process.poll() is None:
                    process.terminate()


def _show(bar: Progress, task: TaskID, done: int) -> None:
    bar.update(task, completed=done)


def _start(job: Job) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "clebsch.demo.sampling"]
    return subprocess.Popen(
        [*command, job.kind, str(job.path), json.dumps(job.settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _follow(process: subprocess.Popen[str], job: Job, show: Callable[[int], None]) -> None:
    """Read what a job prints: counts of frames, and whatever goes wrong."""
    trouble = ""
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdecimal():
                show(int(line))
            else:
                trouble = line.strip() or trouble
    if process.returncode:
        reason = trouble or f"exit status {process.returncode}"
        raise ClebschError(f"{job.path}: xTB's process failed: {reason}")
    show(job.n_frames)


# --- what runs in the process of a job ------------------------------------------------------------


def ethanol() -> Atoms:
    """Ethanol as ASE's G2 collection has it (atoms C C O H ...), hydroxyl trans."""
    return molecule("CH3CH2OH")


def torsion_atoms(atoms: Atoms) -> tuple[int, int, int, int]:
    """Indices of H-O-C-C in ethanol."""
    oxygen = int(np.flatnonzero(atoms.numbers == 8)[0])
    nearest = np.argsort(atoms.get_distances(oxygen, range(len(atoms))))
    hydrogen = next(int(i) for i in nearest if atoms.numbers[i] == 1)
    carbon, methyl = (int(i) for i in nearest if atoms.numbers[i] == 6)
    return hydrogen, oxygen, carbon, methyl


def torsion_scan(step: int) -> list[Atoms]:
    """The hydroxyl hydrogen turned about the C-O bond of relaxed ethanol, with xTB's energies.

    Nothing else moves. The torsion angle H-O-C-C is in ``info["torsion"]``, 0 to 360 degrees.

    Args:
        step: degrees between frames.
    """
    atoms = ethanol()
    atoms.calc = xtb_calculator()
    BFGS(atoms, logfile=None).run(fmax=0.005, steps=200)
    hydrogen, oxygen, carbon, methyl = torsion_atoms(atoms)
    frames = []
    for angle in range(0, 361, step):
        # in this order: ASE turns the last atom
        atoms.set_dihedral(methyl, carbon, oxygen, hydrogen, angle, indices=[hydrogen])
        frames.append(labelled(atoms))
        frames[-1].info["torsion"] = float(angle)
    return frames


def main(kind: str, path: str, settings: str) -> None:
    """Do one job; see the module's text."""
    options = json.loads(settings)
    if kind == "trajectory":
        frames = sample_xtb(ethanol(), **options, progress=lambda done, _: print(done, flush=True))
    elif kind == "isolated_atoms":
        frames = xtb_isolated_atoms(ethanol().symbols)
    else:
        frames = torsion_scan(**options)
    write_xyz(Path(path), frames)


if __name__ == "__main__":
    main(*sys.argv[1:])
