"""What fine-tuning keeps and loses: a model of ten molecules learns an eleventh, or a new level.

    python scripts/fine_tuning.py prepare DATA FOLDER
    clebsch train data.train=FOLDER/old.xyz data.references=fit run=FOLDER/initial ...
    clebsch train data.train=FOLDER/new.xyz data.valid=FOLDER/valid.xyz run=FOLDER/tuned \
        initial=FOLDER/initial/model.safetensors data.references=fit ...
    python scripts/fine_tuning.py judge FOLDER FOLDER/initial FOLDER/tuned ...

``prepare`` draws 100 structures of each of the ten molecules of the revised MD17 (old.xyz) and 100
others to judge by, and 50 structures of acetylacetone at 300 K to learn (new.xyz), 20 to validate,
and a third of both of its test sets. DATA holds the folders rmd17 and acac. ``judge`` prints root
mean square errors of each run's model: of forces, and of energies of an atom around their mean
error, since one composition tells no references; of acetylacetone at 300 and 600 K, and the mean
over the ten molecules.

``prepare --xtb`` labels 50 + 20 structures of paracetamol (xtb-new.xyz, xtb-valid.xyz) and those to
judge by with GFN2-xTB, and ``judge --xtb`` tells of paracetamol and the mean of the nine others.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

import clebsch
from clebsch.data.frame import Frame
from clebsch.data.read import read_frames
from clebsch.data.synthetic import xtb_calculator
from clebsch.evaluation.predict import predict


def prepare(data: Path, folder: Path, xtb: bool) -> None:
    """Draw the structures, the same ones every time."""
    rng = np.random.default_rng(0)
    old: list[Frame] = []
    for molecule in sorted(path for path in (data / "rmd17").iterdir() if path.is_dir()):
        train, test = (_frames(molecule / f"{name}_01.xyz.xz") for name in ("train", "test"))
        old += [train[i] for i in rng.choice(len(train), 100, replace=False)]
        judged = [test[i] for i in rng.choice(len(test), 100, replace=False)]
        _write(folder / f"test-{molecule.name}.xyz", judged)
        if xtb:
            _write(folder / f"xtb-test-{molecule.name}.xyz", map(_by_xtb, judged))
    _write(folder / "old.xyz", [old[i] for i in rng.permutation(len(old))])
    _draw(data / "acac/train_300K.xyz.xz", 2, folder / "new.xyz", folder / "valid.xyz")
    for name in ("300K", "600K"):
        _write(folder / f"acac-{name}.xyz", _frames(data / f"acac/test_MD_{name}.xyz.xz")[::3])
    if xtb:
        file = data / "rmd17/paracetamol/train_01.xyz.xz"
        _draw(file, 1, folder / "xtb-new.xyz", folder / "xtb-valid.xyz", xtb=True)


def judge(folder: Path, runs: Sequence[Path], xtb: bool) -> None:
    """Print a line for each run."""
    names = ["acac-300K", "acac-600K"]
    tests = sorted(folder.glob("test-*.xyz"))
    if xtb:
        names = ["xtb-test-paracetamol"]
        tests = [p for p in sorted(folder.glob("xtb-test-*.xyz")) if p.stem not in names]
    print(f"energy, meV/atom / forces, meV/Angstrom: {'; '.join(names)}; mean of {len(tests)}")
    for run in runs:
        potential = clebsch.load(run / "model.safetensors")
        found = [_errors(potential, folder / f"{name}.xyz") for name in names]
        found.append(np.mean([_errors(potential, path) for path in tests], axis=0))
        print(f"{run.name}: " + "; ".join(f"{e:.2f} / {f:.1f}" for e, f in found), flush=True)


def _errors(potential: clebsch.Potential, path: Path) -> np.ndarray:
    frames = read_frames(path)
    predictions, _ = predict(potential, frames)
    pairs = list(zip(predictions, frames, strict=True))
    forces = np.concatenate([p.forces - f.forces for p, f in pairs])
    energies = np.array([(p.energy - f.energy) / len(f) for p, f in pairs])  # type: ignore[operator]
    return 1000 * np.array([energies.std(), np.sqrt(np.square(forces).mean())])


def _draw(file: Path, seed: int, new: Path, valid: Path, xtb: bool = False) -> None:
    frames = _frames(file)
    drawn = [frames[i] for i in np.random.default_rng(seed).choice(len(frames), 70, replace=False)]
    _write(new, map(_by_xtb, drawn[:50]) if xtb else drawn[:50])
    _write(valid, map(_by_xtb, drawn[50:]) if xtb else drawn[50:])


def _by_xtb(frame: Frame) -> Atoms:
    atoms = Atoms(frame.symbols, frame.positions)
    atoms.calc = xtb_calculator()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def _frames(path: Path) -> list[Frame]:
    return read_frames(path, pbc="none")


def _write(path: Path, frames: Iterable[Frame | Atoms]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    structures = [one.to_atoms() if isinstance(one, Frame) else one for one in frames]
    ase.io.write(path, structures, format="extxyz")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare")
    one.add_argument("data", type=Path)
    one.add_argument("folder", type=Path)
    two = commands.add_parser("judge")
    two.add_argument("folder", type=Path)
    two.add_argument("runs", type=Path, nargs="+")
    for command in (one, two):
        command.add_argument("--xtb", action="store_true")
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        prepare(arguments.data, arguments.folder, arguments.xtb)
    else:
        judge(arguments.folder, arguments.runs, arguments.xtb)


if __name__ == "__main__":
    main()
