"""Run by ``make wheel-test`` with the installed wheel and its dependencies alone: does it work?"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from ase.build import molecule

import clebsch

home = Path(clebsch.__file__).resolve()
assert home.is_relative_to(Path(sys.prefix).resolve()), f"not the installed package: {home}"
assert (home.parent / "py.typed").is_file(), "type hints are not marked as such"

potential = clebsch.build("mace_tiny", ["H", "C", "O"], references={"H": -13.6, "C": -1, "O": -2})
atoms = molecule("CH3CH2OH")
with tempfile.TemporaryDirectory() as folder:
    potential.save(Path(folder) / "model.safetensors")
    atoms.calc = clebsch.calculator(clebsch.load(Path(folder) / "model.safetensors"))
energy, forces = atoms.get_potential_energy(), torch.from_numpy(atoms.get_forces())
assert forces.shape == (9, 3)
assert forces.isfinite().all()
assert forces.abs().max() > 1e-3
assert forces.sum(0).abs().max() < 1e-3, "forces of a free molecule must sum to zero"
print(f"clebsch {clebsch.__version__} from {home.parent}")
print(f"ethanol: {energy:.4f} eV with the {potential.backend} backend")
