"""What models of H, C and O are compared on."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms

from builders import ethanol

SPECIES = ("H", "C", "O")

STRUCTURES = {
    "molecule": ethanol(),
    # skewed, and smaller than the cut-off: atoms see their own images
    "crystal": Atoms(
        "COCH",
        [[0, 0, 0], [1.4, 1.3, 1.2], [0.1, 2.0, 1.5], [2.1, 0.2, 1.4]],
        cell=[[3.1, 0.2, 0.1], [0.5, 3.0, -0.3], [0.2, 0.4, 3.3]],
        pbc=True,
    ),
    "slab": Atoms(
        "CCOOH",
        [[0, 0, 0], [1.3, 1.2, 0.1], [0.2, 1.5, 1.4], [1.6, 0.1, 1.6], [0.9, 0.9, 2.6]],
        cell=[[2.9, 0, 0], [0.3, 2.8, 0], [0, 0, 0]],
        pbc=[True, True, False],
    ),
    "lone atom": Atoms("O", [[0, 0, 0]]),
}


def as_json(atoms: Atoms) -> dict[str, Any]:
    """As ``make_models.py`` takes structures."""
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": np.asarray(atoms.cell).tolist(),
        "pbc": atoms.pbc.tolist(),
    }
