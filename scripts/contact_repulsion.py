"""What contact repulsion changes: random displacements of a structure, and errors on test sets.

    python scripts/contact_repulsion.py MODEL TRAIN STRUCTURE [TEST ...]

Takes a model file, the structures that it was trained on (which say how close atoms came; files of
before format 3 do not), a structure of which copies are displaced at random, and labelled test
sets. Prints, without contact repulsion and with it, how many copies have less energy than the
structure itself, and the root mean square errors of forces.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms

import clebsch
from clebsch.contacts import closest, pair_table, shortest_distances
from clebsch.data.frame import Frame
from clebsch.data.read import read_frames
from clebsch.nn.contact import ContactRepulsion
from clebsch.potential import Potential

#: Standard deviations of displacements, Angstrom.
DISPLACEMENTS = (0.05, 0.1, 0.15, 0.2, 0.3)
#: Structures in one evaluation.
BATCH = 20


def with_and_without(model: Path, frames: Sequence[Frame]) -> dict[str, Potential]:
    """The potential of a file, without contact repulsion and with that of its training frames."""
    potential = clebsch.load(model)
    distances = closest(shortest_distances(potential.graph(f), potential.species) for f in frames)
    found = {"without": potential, "with": copy.deepcopy(potential)}
    found["without"].contact = None
    numbers = [ase.data.atomic_numbers[symbol] for symbol in potential.species]
    found["with"].contact = ContactRepulsion(numbers)
    found["with"].contact.learn(pair_table(distances, potential.species))
    return found


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("structure", type=Path)
    parser.add_argument("test", type=Path, nargs="*")
    parser.add_argument("-n", type=int, default=200, help="displaced copies of each kind")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    potentials = with_and_without(asked.model, read_frames(asked.train))
    atoms = ase.io.read(asked.structure, index=0)
    print(f"{asked.n} copies of {atoms.get_chemical_formula()}, displaced by a normal distribution")
    for size in DISPLACEMENTS:
        rng = np.random.default_rng(0)
        displaced = []
        for _ in range(asked.n):
            displaced.append(atoms.copy())
            displaced[-1].positions += rng.normal(scale=size, size=atoms.positions.shape)
        print(f"{size:g} A:", end="")
        for name, potential in potentials.items():
            gained = energies(potential, displaced) - energies(potential, [atoms])
            shown = f"lowest {gained.min():.4g} eV, median {np.median(gained):.4g}"
            print(f"  {name}: {(gained < 0).sum()} below, {shown}", end="")
        print(flush=True)
    for test in asked.test:
        frames = read_frames(test)
        errors = {name: force_error(each, frames) for name, each in potentials.items()}
        shown = ", ".join(f"{name} {error:.2f}" for name, error in errors.items())
        print(f"{test.name}: n = {len(frames)}, forces {shown} meV/A", flush=True)


if __name__ == "__main__":
    main()
