"""Structures to measure on, made here: no data set is needed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import atomic_numbers
from ase.io import read

from clebsch.errors import ConfigError
from clebsch.neighbors import neighbor_graph

#: Made by scripts/make_3bpa.py.
_3BPA_FILE = Path(__file__).with_name("3bpa.xyz")
#: Angstrom.
LATTICE, RATTLE = 5.43, 0.05


@dataclass(frozen=True, eq=False)
class System:
    """What a call computes: one structure, or several as one batch.

    Attributes:
        name: for tables.
        frames: the structures.
    """

    name: str
    frames: tuple[Atoms, ...]

    @property
    def n_atoms(self) -> int:
        """Atoms of all structures."""
        return sum(len(frame) for frame in self.frames)

    @property
    def species(self) -> tuple[str, ...]:
        """Elements in order of atomic number."""
        found = {symbol for frame in self.frames for symbol in frame.symbols}
        return tuple(sorted(found, key=lambda symbol: atomic_numbers[symbol]))

    def n_edges(self, cutoff: float) -> int:
        """Directed edges of all structures, within ``cutoff`` (Angstrom)."""
        return sum(_n_edges(frame, cutoff) for frame in self.frames)


def _n_edges(atoms: Atoms, cutoff: float) -> int:
    graph = neighbor_graph(
        torch.tensor(atoms.positions),
        torch.tensor(atoms.cell.array),
        torch.tensor(atoms.pbc),
        torch.zeros(len(atoms), dtype=torch.int64),
        cutoff,
    )
    return graph.n_edges


def diamond(n_atoms: int, symbol: str = "Si", seed: int = 0) -> Atoms:
    """Rattled diamond silicon, a = 5.43 Angstrom, displacements of 0.05 Angstrom each way.

    The supercell of cubic cells whose number of atoms is nearest to the number asked for, of those
    at most twice as long as wide: 216 and 1000 are cubes, 10 000 becomes 9984.

    Args:
        n_atoms: how many, about.
        symbol: another element on the same lattice, for models that do not know silicon.
        seed: of the displacements.
    """
    side = round((n_atoms / 8) ** (1 / 3)) + 1
    repeats = [
        (a, b, c)
        for a in range(1, side + 1)
        for b in range(a, 2 * a + 1)
        for c in range(b, 2 * a + 1)
    ]
    nearest = min(repeats, key=lambda r: (abs(8 * r[0] * r[1] * r[2] - n_atoms), r[2] - r[0]))
    atoms = bulk(symbol, "diamond", a=LATTICE, cubic=True) * nearest
    atoms.positions += RATTLE * np.random.default_rng(seed).normal(size=(len(atoms), 3))
    return atoms


def ethanol() -> Atoms:
    """Nine atoms without a cell."""
    return molecule("CH3CH2OH")


def benzyloxypyridine() -> tuple[Atoms, ...]:
    """Five frames of 3-(benzyloxy)pyridin-2-amine (3BPA) at 300 K, 27 atoms each, no cell."""
    return tuple(read(_3BPA_FILE, index=":", format="xyz"))


def copper() -> Atoms:
    """3000 atoms of rattled copper, a = 3.61 Angstrom, displacements of 0.05 Angstrom each way.

    Four shells lie within 5.4 Angstrom, 54 neighbours of the perfect lattice: about 162 000 edges,
    where a published time is for 3000 atoms with 160 000.
    """
    atoms = bulk("Cu", "fcc", a=3.61) * (10, 15, 20)
    atoms.positions += RATTLE * np.random.default_rng(0).normal(size=(len(atoms), 3))
    return atoms


def system_of_size(n_atoms: int, species: Collection[str] | None = None) -> System:
    """The structures for a number of atoms: ethanol, 3BPA, five of 3BPA, else a diamond lattice.

    Args:
        n_atoms: how many; the lattice takes the nearest number it can (``diamond``).
        species: the elements that the model knows; None if it can be built for any. A model
            that does not know silicon gets its heaviest element on silicon's lattice.

    Raises:
        ConfigError: no atoms.
    """
    if n_atoms < 1:
        raise ConfigError(f"a size is a number of atoms, 1 or more, not {n_atoms}")
    if n_atoms == 9 and (species is None or {"H", "C", "O"} <= set(species)):
        return System("ethanol", (ethanol(),))
    if n_atoms == 27 and (species is None or {"H", "C", "N", "O"} <= set(species)):
        return System("3BPA", benzyloxypyridine()[:1])
    if n_atoms == 135 and (species is None or {"H", "C", "N", "O"} <= set(species)):
        return System("5 x 3BPA", benzyloxypyridine())
    symbol = "Si"
    if species is not None and "Si" not in species:
        symbol = max(species, key=lambda one: atomic_numbers[one])
    atoms = diamond(n_atoms, symbol)
    return System(f"{symbol} {len(atoms)}", (atoms,))


def paper_systems() -> dict[str, System]:
    """What the published comparison runs on: a batch of molecules, and crystals."""
    systems = [system_of_size(size) for size in (135, 216, 1000)]
    return {system.name: system for system in systems}
