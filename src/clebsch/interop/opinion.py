"""A second opinion on a model of mace-torch: what mace-torch itself says, where it is installed.

It runs in a process of its own, in the Python that has it, and unpickles the model's file there,
which runs whatever code the file holds. Nothing else in Clebsch does that; this is called only
where the user has asked for it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from clebsch.agreement import example_structure
from clebsch.errors import ClebschError
from clebsch.potential import Potential

#: The script that mace-torch's Python runs.
SCRIPT = Path(__file__).with_name("peer_answers.py")
#: From here on numbers of mace-torch contradict its own energy: eV/Angstrom relative to 1 + the
#: largest force, with differences of fourth order over 1e-3 Angstrom; and eV per atom.
CONTRADICTION = 1e-5
#: Deviations that are allowed, relative to 1 + the largest number (eV, Angstrom): float64 sums in
#: another order; a network in float32, or tables in a file that were.
ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-5}

_SHEAR = np.array([[1.0, 0.08, 0.05], [0.17, 0.95, -0.1], [0.06, 0.12, 1.04]])


@dataclass(frozen=True, eq=False)
class Opinion:
    """What mace-torch says in float64, in eV and Angstrom, with the signs of ASE.

    Attributes:
        program: its name and version.
        rounded: whether the tables of couplings in the file carry the rounding of float32.
        structures: by name.
        answers: of each structure, by the names of ``clebsch.conventions.OUTPUTS``: energy [],
            forces [N, 3], site_energies [N], and stress [3, 3] where all directions are periodic.
        notes: what is not among the answers since mace-torch contradicts itself there.
    """

    program: str
    rounded: bool
    structures: Mapping[str, Atoms]
    answers: Mapping[str, Mapping[str, np.ndarray]]
    notes: tuple[str, ...]

    def allowed(self, dtype: torch.dtype) -> float:
        """The largest deviation of a potential of this precision that passes."""
        return ALLOWED[torch.float32 if self.rounded else dtype]

    def deviation(self, potential: Potential, place: str, name: str) -> float:
        """How far a potential's numbers are from an answer, relative to 1 + the largest in it.

        Energies are compared without references, whose size would hide the network's, and those of
        structures per atom.
        """
        graph = potential.graph(self.structures[place])
        expected = self.answers[place][name]
        found = getattr(potential(graph, (name,)), name).numpy().reshape(expected.shape)
        references = potential.references[graph.species].numpy()
        if name == "energy":
            found, expected = ((e - references.sum()) / len(references) for e in (found, expected))
        elif name == "site_energies":
            found, expected = found - references, expected - references
        return float(np.abs(found - expected).max() / (1 + np.abs(expected).max()))


def opinion_structures(potential: Potential) -> dict[str, Atoms]:
    """A molecule and a skewed cell, of all the potential's elements each."""
    grid = example_structure(potential)
    molecule = Atoms(grid.symbols, grid.positions)
    skewed = grid.copy()
    skewed.set_cell(grid.cell.array @ _SHEAR, scale_atoms=True)
    return {"molecule": molecule, "skewed cell": skewed}


def ask_mace_torch(
    model: Path,
    python: str,
    structures: Mapping[str, Atoms],
    *,
    head: str,
    properties: Mapping[str, float],
) -> Opinion:
    """Run mace-torch on a model file; this runs any code that is in the file.

    Args:
        model: a ``.model`` file, or a checkpoint that holds a whole model.
        python: the Python that has mace-torch.
        structures: by name.
        head: which head of the model.
        properties: values of the properties that the model embeds.

    Raises:
        ClebschError: mace-torch failed; the message has its last line. Or there is no such Python.
    """
    job = {
        "model": str(model.resolve()),
        "head": head,
        "properties": dict(properties),
        "structures": {place: _as_json(atoms) for place, atoms in structures.items()},
    }
    # not this folder's modules first: some have names that others may have
    safety = {"PYTHONSAFEPATH": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    try:
        ended = subprocess.run(
            [python, str(SCRIPT)],
            input=json.dumps(job),
            env={**os.environ, **safety},
            capture_output=True,
            text=True,
        )
    except OSError as error:
        raise ClebschError(f"{python}: cannot be run ({error.strerror})") from None
    try:
        report = json.loads(ended.stdout.splitlines()[-1])
        places = report["places"]
        return Opinion(
            f"mace-torch {report['version']}",
            report["rounded"],
            structures,
            *_consistent({place: places[place] for place in structures}),
        )
    except (IndexError, ValueError, LookupError, TypeError):
        last = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
        raise ClebschError(
            f"{model}: mace-torch ({python}) gave no numbers for it: {last}"
        ) from None


def _consistent(
    places: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, dict[str, np.ndarray]], tuple[str, ...]]:
    """Answers without those kinds that contradict mace-torch's own energy, and what is said."""
    judged = {
        "forces": "forces are not the derivative of its energy",
        "site_energies": "energies of atoms do not add up to its energy",
    }
    left_out, notes = set(), []
    for key, why in judged.items():
        off = max(place["contradictions"][key] for place in places.values())
        if not off <= CONTRADICTION:
            left_out |= {key, "stress"} if key == "forces" else {key}
            notes.append(f"mace-torch's {why} (off by {off:.1g}) and are not compared")
    answers = {
        name: {
            key: np.array(value) for key, value in place["answers"].items() if key not in left_out
        }
        for name, place in places.items()
    }
    return answers, tuple(notes)


def _as_json(atoms: Atoms) -> dict[str, Any]:
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
        "pbc": atoms.pbc.tolist(),
    }
