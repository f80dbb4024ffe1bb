"""Seconds for 1000 steps of MD of 3BPA with each model given, in turns, as a table.

    python benchmarks/md_speed.py mace_small nequip_small ... [model.safetensors ...]

A preset has random weights and an energy unit of 1 meV: atoms at 300 K then fly almost freely, and
steps of 0.1 fs keep 1000 of them (0.1 ps) near the geometry, and the number of neighbours, of a
trained potential. Everything that ``clebsch md`` does is in the time; a first run, which compiles
kernels, is not.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import torch

import clebsch
from clebsch.benchmarks.structures import benzyloxypyridine
from clebsch.simulation.md import run_md

ROUNDS, STEPS = 3, 1000


def potential(name: str) -> clebsch.Potential:
    """A model file, or a preset with random weights and next to no forces."""
    if Path(name).exists():
        return clebsch.load(name)
    built = clebsch.build(name, ["H", "C", "N", "O"], dtype=torch.float32)
    built.head.scale.fill_(1e-3)
    return built


def seconds(tested: clebsch.Potential, folder: Path, steps: int = STEPS) -> float:
    """Wall time of the steps."""
    atoms = benzyloxypyridine()[0]
    result = run_md(
        tested,
        atoms,
        steps=steps,
        timestep_fs=0.1,
        temperature=300,
        output=folder / "md.traj",
        overwrite=True,
        interval=100,
    )
    return steps / result.steps_per_second


def main(names: list[str]) -> None:
    """Print a row for each model: the median of the rounds, and all of them."""
    tested = {name: potential(name) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            seconds(tested[name], Path(folder), steps=50)
        for _ in range(ROUNDS):
            for name in names:
                times[name].append(seconds(tested[name], Path(folder)))
    print(f"{torch.get_num_threads()} threads, n = {ROUNDS}")
    for name, found in times.items():
        n_parameters = sum(p.numel() for p in tested[name].parameters())
        told = " ".join(f"{t:.2f}" for t in found)
        print(f"| {name} | {n_parameters} | {statistics.median(found):.2f} | {told} |")


if __name__ == "__main__":
    main(sys.argv[1:])
