"""Small data sets and configurations of training: clusters and crystals by EMT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from clebsch.training.config import Config
from clebsch.training.configfile import load_config

#: A MACE that takes a step in milliseconds.
MODEL = (
    "model={name: message_passing, cutoff: 4.0, channels: 2, l_max: 1, message_l: 1, "
    "product: {correlation: 2}, readout: {hidden: 4}, radial: {n_basis: 4, hidden: [8]}}"
)


def cluster(seed: int) -> Atoms:
    """Three or four atoms, EMT's energy and forces."""
    rng = np.random.default_rng(seed)
    symbols = ["Cu", "Au", "Cu", "Au"][: 3 + seed % 2]
    corners = np.array([[0, 0, 0], [2.6, 0, 0], [1.3, 2.2, 0], [1.3, 0.8, 2.1]])[: len(symbols)]
    return labelled(Atoms(symbols, corners + 0.15 * rng.normal(size=corners.shape)))


def crystal(seed: int) -> Atoms:
    """A strained copper crystal, EMT's energy, forces and stress."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
    atoms.set_cell(atoms.cell + 0.1 * rng.normal(size=(3, 3)), scale_atoms=True)
    atoms.rattle(0.05, seed=seed)
    return labelled(atoms)


def labelled(atoms: Atoms) -> Atoms:
    """With EMT's results."""
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.pbc.any():
        results["stress"] = atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def without(atoms: Atoms, *labels: str) -> Atoms:
    """A copy that lacks some labels."""
    copy = atoms.copy()
    kept = {k: v for k, v in atoms.calc.results.items() if k not in labels}
    copy.calc = SinglePointCalculator(copy, **kept)
    return copy


def data_file(folder: Path, frames: list[Atoms] | None = None, name: str = "data.xyz") -> Path:
    """Frames as extended XYZ; twelve clusters if none are given."""
    path = folder / name
    write(path, frames or [cluster(seed) for seed in range(12)], format="extxyz")
    return path


def config(data: Path, *overrides: str) -> Config:
    """Two epochs of five batches, in float64."""
    settings = (
        f"data.train={data}",
        "data.valid_count=2",
        MODEL,
        "dtype=float64",
        "training.batch_size=2",
        "training.max_epochs=2",
        "training.lr=0.01",
        "training.checkpoint_minutes=1000",
    )
    return load_config(None, [*settings, *overrides])


def history(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the times, which differ from run to run."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        del record["seconds"]
    return records
