"""Structures and potentials that many tests share."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule

import clebsch
from clebsch.data.statistics import Statistics
from clebsch.models.ace_config import ACEConfig
from clebsch.models.config import MACEConfig, ModelConfig

SPECIES = ["H", "C", "O", "Cu", "Au"]
REFERENCES = {"H": -13.6, "C": -1027.0, "O": -2042.0, "Cu": -3.5, "Au": -3.2}

#: Every architecture in the battery: a new model adds its line here.
MODELS: dict[str, ModelConfig] = {
    "mace": MACEConfig(channels=4, l_max=2, message_l=1, cutoff=3.5, radial={"hidden": (8,)}),
    "mace published form": MACEConfig(
        channels=4,
        l_max=2,
        message_l=2,
        cutoff=3.5,
        first_layer="residual",
        radial={"hidden": (8,)},
    ),
    "mace three layers with ZBL": MACEConfig(
        channels=3, layers=3, l_max=1, message_l=1, correlation=2, cutoff=3.0, zbl=True
    ),
    "ace": ACEConfig(cutoff=3.5, max_degree=(5, 3, 2), committee=2),
    "ace order four with ZBL": ACEConfig(
        cutoff=3.0, correlation=4, max_degree=(4, 3, 2, 2), l_weight=1.5, committee=0, zbl=True
    ),
}


def statistics() -> Statistics:
    """As a data set would give them."""
    values = {field.name: 0 for field in dataclasses.fields(Statistics)}
    values.update(avg_num_neighbors=6.0, forces_rms=1.3, mean_interaction_energy=-2.0)
    return Statistics(**values)


def potential(
    model: str = "mace", dtype: torch.dtype = torch.float64, backend: str = "auto", seed: int = 0
) -> clebsch.Potential:
    """A random potential that knows all elements used in tests."""
    built = clebsch.build(
        MODELS[model],
        SPECIES,
        references=REFERENCES,
        statistics=statistics(),
        dtype=dtype,
        seed=seed,
    )
    return built.use_backend(backend)


def rattled(atoms: Atoms, seed: int = 0, by: float = 0.1) -> Atoms:
    """A copy with random displacements."""
    copy = atoms.copy()
    copy.positions += by * np.random.default_rng(seed).normal(size=(len(atoms), 3))
    return copy


def ethanol(seed: int = 0) -> Atoms:
    """A rattled molecule without a cell."""
    return rattled(molecule("CH3CH2OH"), seed)


def skewed_cell() -> Atoms:
    """A small, strongly skewed periodic cell with self-images within the cut-off."""
    atoms = bulk("Cu", cubic=False) * (2, 1, 1)
    atoms.symbols[0] = "Au"
    skew = np.array([[1.0, 0.35, 0], [0, 1, -0.2], [0.1, 0, 1.1]])
    atoms.set_cell(atoms.cell.array @ skew, scale_atoms=True)
    return rattled(atoms)


def slab() -> Atoms:
    """Two periodic directions, no third lattice vector."""
    atoms = fcc111("Cu", (2, 2, 2), vacuum=None, periodic=False)
    atoms.pbc = [True, True, False]
    atoms.cell[2] = 0
    return rattled(atoms)


STRUCTURES = {"molecule": ethanol, "skewed cell": skewed_cell, "slab": slab}
