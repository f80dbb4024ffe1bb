"""Small labelled frames and files for the tests of reading and checking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from clebsch.data.frame import Frame
from clebsch.data.synthetic import labelled, write_xyz

WATER = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])


def water_text(
    n_frames: int = 3, energy_key: str = "energy", forces_key: str = "forces", extra: str = ""
) -> str:
    """Extended XYZ of water molecules; frame k has energy -470 - k / 10."""
    lines = []
    for index in range(n_frames):
        energy = -470 - index / 10
        properties = f"Properties=species:S:1:pos:R:3:{forces_key}:R:3"
        lines += ["3", f'{properties} {energy_key}={energy} pbc="F F F" {extra}'.rstrip()]
        for symbol, (x, y, z) in zip("OHH", WATER, strict=True):
            lines.append(f"{symbol} {x + 0.01 * index:.8f} {y:.8f} {z:.8f} 0.1 -0.2 0.00300000")
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def copper(seed: int = 0, strain: float = 0.0) -> Atoms:
    """Four rattled copper atoms in a skewed cell with EMT's energy, forces and stress."""
    atoms = bulk("Cu", cubic=True)
    rng = np.random.default_rng(seed)
    deformation = np.eye(3) * (1 + strain) + rng.normal(0, 0.01, (3, 3))
    atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    return labelled(atoms, EMT())


def copper_file(path: Path, n_frames: int = 3) -> Path:
    write_xyz(path, [copper(seed) for seed in range(n_frames)])
    return path


def frame(
    symbols: str, positions: object = None, *, cell: object = None, **fields: object
) -> Frame:
    """A frame from a formula; a grid of positions if none are given."""
    atoms = Atoms(symbols)
    n = len(atoms)
    if positions is None:
        positions = 1.5 * np.array([[i % 3, i // 3 % 3, i // 9] for i in range(n)])
    return Frame(
        numbers=np.asarray(atoms.numbers, dtype=np.int64),
        positions=np.array(positions, dtype=np.float64),
        cell=np.zeros((3, 3)) if cell is None else np.array(cell, dtype=np.float64),
        pbc=np.full(3, cell is not None),
        **fields,  # type: ignore[arg-type]
    )


def springs(seed: int, scale: float = 0.05, molecule_name: str = "CH3OH") -> Frame:
    """A molecule of springs between all atoms: exact energy and forces, rotated at random."""
    atoms = molecule(molecule_name)
    rng = np.random.default_rng(seed)
    rest = np.linalg.norm(atoms.positions[:, None] - atoms.positions[None], axis=2)
    moved = atoms.positions + rng.normal(0, scale, atoms.positions.shape)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    moved = moved @ rotation + rng.normal(size=3)
    vectors = moved[:, None] - moved[None]
    lengths = np.linalg.norm(vectors, axis=2)
    stretch = lengths - rest
    energy = 0.5 * 20.0 * np.sum(np.triu(stretch, 1) ** 2)
    pull = np.divide(stretch, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    forces = -20.0 * np.sum(pull[:, :, None] * vectors, axis=1)
    return Frame(
        numbers=np.asarray(atoms.numbers, dtype=np.int64),
        positions=moved,
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
        energy=float(energy) - 400.0,
        forces=forces,
        source=f"springs.xyz:{seed}",
    )
