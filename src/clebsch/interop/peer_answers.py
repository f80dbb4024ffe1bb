"""What mace-torch says about structures. A script for a Python that has mace-torch 0.3.x.

Reads a job as JSON from standard input and prints answers as the last line of standard output
(``clebsch.interop.opinion`` writes the one and reads the other). It imports nothing of Clebsch.
Loading the model unpickles its file, which runs whatever code is in it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

# e3nn 0.4.4 keeps its constants as a pickle, which torch otherwise refuses to load.
os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")

import mace
import numpy as np
import torch
from mace import data, tools
from mace.tools import torch_geometric

#: Angstrom; of central differences.
STEP = 1e-3


def main() -> None:
    """Standard input to standard output."""
    job = json.load(sys.stdin)
    torch.set_default_dtype(torch.float64)
    model = torch.load(job["model"], map_location="cpu", weights_only=False)
    if isinstance(model, dict):  # a checkpoint that holds a whole model
        model = model["model"]
    model = model.double()
    places = {}
    for place, structure in job["structures"].items():
        found = answers(model, structure, job["head"], job["properties"])
        offs = contradictions(model, structure, job["head"], job["properties"], found)
        places[place] = {"answers": found, "contradictions": offs}
    report = {"version": mace.__version__, "rounded": is_rounded(model), "places": places}
    print(json.dumps(report))


def answers(
    model: Any, structure: dict[str, Any], head: str, properties: dict[str, float]
) -> dict[str, Any]:
    """Energy in eV, forces, energies of atoms, and stress where all directions are periodic.

    Args:
        model: in the default precision.
        structure: numbers, positions, cell (Angstrom) and pbc.
        head: name of the model's head.
        properties: total charge, spin or the like, if the model embeds them.
    """
    crystal = all(structure["pbc"])
    out = model(
        batch(model, structure, head, properties), compute_force=True, compute_stress=crystal
    )
    return {
        "energy": float(out["energy"]),
        "forces": out["forces"].tolist(),
        "site_energies": out["node_energy"].tolist(),
        **({"stress": out["stress"][0].tolist()} if crystal else {}),
    }


def contradictions(
    model: Any,
    structure: dict[str, Any],
    head: str,
    properties: dict[str, float],
    found: dict[str, Any],
) -> dict[str, float]:
    """How far forces are from the energy's slope, and the sum of atoms' energies from the energy.

    In eV/Angstrom, relative to 1 + the largest force, and in eV per atom.
    """
    forces = np.array(found["forces"])
    direction = np.random.default_rng(0).normal(size=forces.shape)
    direction /= np.linalg.norm(direction)

    def energy(steps: int) -> float:
        positions = np.array(structure["positions"]) + steps * STEP * direction
        moved = batch(model, {**structure, "positions": positions}, head, properties)
        return float(model(moved, compute_force=False)["energy"])

    # of fourth order
    slope = (8 * (energy(1) - energy(-1)) - (energy(2) - energy(-2))) / (12 * STEP)
    off = abs(slope + float((forces * direction).sum()))
    total = abs(sum(found["site_energies"]) - found["energy"])
    return {
        "forces": off / (1 + float(np.abs(forces).max())),
        "site_energies": total / len(forces),
    }


def batch(
    model: Any, structure: dict[str, Any], head: str, properties: dict[str, float]
) -> dict[str, torch.Tensor]:
    """A structure as the model takes it."""
    numbers = np.array(structure["numbers"])
    configuration = data.Configuration(
        atomic_numbers=numbers,
        positions=np.array(structure["positions"]),
        properties={"energy": 0.0, "forces": np.zeros((len(numbers), 3))},
        property_weights={"energy": 1.0, "forces": 1.0},
        cell=np.array(structure["cell"]),
        pbc=tuple(structure["pbc"]),
        head=head,
    )
    graph = data.AtomicData.from_config(
        configuration,
        z_table=tools.AtomicNumberTable([int(z) for z in model.atomic_numbers]),
        cutoff=float(model.r_max),
        heads=getattr(model, "heads", [head]),
    )
    loaded = torch_geometric.dataloader.DataLoader([graph], batch_size=1)
    arguments: dict[str, torch.Tensor] = next(iter(loaded)).to_dict()
    for name, value in properties.items():
        arguments[name] = torch.tensor([value], dtype=torch.get_default_dtype())
    return arguments


def is_rounded(model: Any) -> bool:
    """Whether the tables of couplings were once in float32, and carry its rounding."""
    tables = [table for name, table in model.named_buffers() if "U_matrix" in name]
    return all(bool((table.float().double() == table).all()) for table in tables)


if __name__ == "__main__":
    main()
