"""What contact repulsion and energy floor change, where a model was trained and where it was not.

    python scripts/unknown_structures.py MODEL TRAIN STRUCTURE [TEST ...]

Takes a model file, the structures that it was trained on (they say how close atoms came and how
strongly they are bound, which files of before format 3 do not), a molecule of which copies are
displaced at random and relaxed, and labelled test sets. Prints without either, with contact
repulsion, and with both: how many copies have less energy than the molecule itself, the lowest and
the median; how many relax to its bonds; and root mean square errors of forces.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from ase.optimize import FIRE

import clebsch
from clebsch.contacts import closest, pair_table, shortest_distances
from clebsch.data.frame import Frame
from clebsch.data.loader import LabelledGraphs
from clebsch.data.read import read_frames
from clebsch.nn.contact import ContactRepulsion
from clebsch.nn.floor import EnergyFloor
from clebsch.potential import Potential
from clebsch.training.depths import deepest

#: Standard deviations of displacements, Angstrom, of copies and of those that are relaxed.
DISPLACEMENTS, RELAXED = (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.15, 0.2)
#: Structures in one evaluation.
BATCH = 20


def variants(model: Path, frames: Sequence[Frame]) -> dict[str, Potential]:
    """The potential of a file without either, with contact repulsion, and with both."""
    potential = clebsch.load(model)
    potential.contact = potential.floor = None
    known = closest(shortest_distances(potential.graph(f), potential.species) for f in frames)
    numbers = [atomic_numbers[symbol] for symbol in potential.species]
    contact, both = copy.deepcopy(potential), copy.deepcopy(potential)
    for one in (contact, both):
        one.contact = ContactRepulsion(numbers, potential.cutoff)
        one.contact.learn(pair_table(known, potential.species))
    both.floor = EnergyFloor(len(potential.species))
    both.floor.depths.copy_(deepest(potential, LabelledGraphs(potential, frames)))
    return {"neither": potential, "contact": contact, "both": both}


def batches(structures: Sequence[Atoms | Frame]) -> Iterator[Sequence[Atoms | Frame]]:
    """Some at a time."""
    for start in range(0, len(structures), BATCH):
        yield structures[start : start + BATCH]


def energies(potential: Potential, structures: Sequence[Atoms]) -> np.ndarray:
    """[n], eV."""
    told = [potential(potential.graph(some), "energy").energy for some in batches(structures)]
    return torch.cat(told).numpy()


def force_error(potential: Potential, frames: Sequence[Frame]) -> float:
    """Root mean square over components, meV/Angstrom."""
    squares = []
    for some in batches(frames):
        forces = potential(potential.graph(some), "forces").forces.numpy()
        squares.append((forces - np.concatenate([frame.forces for frame in some])) ** 2)
    return 1e3 * float(np.sqrt(np.concatenate(squares).mean()))


def displaced(atoms: Atoms, size: float, n: int) -> list[Atoms]:
    """Copies whose coordinates are displaced by a normal distribution."""
    rng, copies = np.random.default_rng(0), []
    for _ in range(n):
        copies.append(atoms.copy())
        copies[-1].positions += rng.normal(scale=size, size=atoms.positions.shape)
    return copies


def bonds(atoms: Atoms) -> np.ndarray:
    """[N, N]: which atoms are closer than 1.25 times the sum of their covalent radii."""
    radii = covalent_radii[atoms.numbers]
    return atoms.get_all_distances() < 1.25 * (radii[:, None] + radii)


def relaxed(potential: Potential, atoms: Atoms, steps: int = 300) -> Atoms:
    """A copy, after so many steps or where forces are below 0.05 eV/Angstrom."""
    moved = atoms.copy()
    moved.calc = clebsch.calculator(potential)
    FIRE(moved, logfile=None, maxstep=0.1).run(fmax=0.05, steps=steps)
    return moved


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("structure", type=Path)
    parser.add_argument("test", type=Path, nargs="*")
    parser.add_argument("-n", type=int, default=200, help="copies whose energies are computed")
    parser.add_argument("--relax", type=int, default=20, help="copies that are relaxed")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    potentials = variants(asked.model, read_frames(asked.train))
    start = ase.io.read(asked.structure, index=0)
    print(f"{asked.n} copies of {start.get_chemical_formula()}: below, lowest eV, median eV")
    for size in DISPLACEMENTS:
        copies = displaced(start, size, asked.n)
        for name, potential in potentials.items():
            gained = energies(potential, copies) - energies(potential, [start])
            shown = f"{(gained < 0).sum()}, {gained.min():.4g}, {np.median(gained):.4g}"
            print(f"  {size:g} A, {name}: {shown}", flush=True)
    for test in asked.test:
        frames = read_frames(test)
        errors = {name: force_error(each, frames) for name, each in potentials.items()}
        shown = ", ".join(f"{name} {error:.2f}" for name, error in errors.items())
        print(f"{test.name}: n = {len(frames)}, forces {shown} meV/A", flush=True)
    print(f"{asked.relax} copies of the relaxed molecule, relaxed: same bonds, lowest eV")
    for name, potential in potentials.items():
        molecule = relaxed(potential, start)
        lowest = molecule.get_potential_energy()
        for size in RELAXED:
            ends = [relaxed(potential, one) for one in displaced(molecule, size, asked.relax)]
            gained = min(end.get_potential_energy() for end in ends) - lowest
            same = sum(np.array_equal(bonds(end), bonds(molecule)) for end in ends)
            print(f"  {size:g} A, {name}: {same}, {gained:.4g}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # calculators warn of atoms that are far from training
    main()
