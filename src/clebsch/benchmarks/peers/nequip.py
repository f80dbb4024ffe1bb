"""Measure nequip on one job. A script for an environment of its own (``make peers``).

Reads a job (``clebsch.benchmarks.jobs``) as JSON from standard input and prints the result as the
last line of standard output. It imports nothing of Clebsch but loads the timing code by its path.
It has the package's name and must be run with ``python -P``, which does not look beside it.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.data import chemical_symbols
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper
from nequip.model import FullNequIPGNNModel
from nequip.train import EnergyForceLoss
from nequip.utils.global_state import set_global_state


def main() -> None:
    """Standard input to standard output."""
    job = json.load(sys.stdin)
    timing = runpy.run_path(str(Path(__file__).parents[1] / "timing.py"))
    timing["limit_memory"](job["device"])
    torch.set_num_threads(job["threads"])
    set_global_state()
    device = timing["accelerator"](torch, job["device"])
    data = {key: value.to(job["device"]) for key, value in make_batch(job).items()}
    model = build(job).to(job["device"])
    call = {"energy_forces": energy_forces, "step": training_step}[job["mode"]](model, data)
    result = {
        "n_atoms": int(AtomicDataDict.num_nodes(data)),
        "n_edges": int(AtomicDataDict.num_edges(data)),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "versions": {"nequip": version("nequip"), "torch": torch.__version__},
        "timing": timing["measure"](call, **job["timing"], device=device),
    }
    print(json.dumps(result))


def make_batch(job: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The job's structures as one batch with its neighbours."""
    mapper = ChemicalSpeciesToAtomTypeMapper([chemical_symbols[z] for z in job["species"]])
    cutoff = job["architecture"]["cutoff"]
    listed = []
    for structure in job["structures"]:
        atoms = Atoms(**structure)
        listed.append(compute_neighborlist_(mapper(from_ase(atoms)), cutoff))
    batch: dict[str, torch.Tensor] = AtomicDataDict.batched_from_list(listed)
    return batch


def build(job: dict[str, Any]) -> torch.nn.Module:
    """The model of the job's architecture, run as it comes: without compilation.

    Its self-connection is a tensor product with the embedding of an atom's element. An embedding
    with as many features as there are elements makes that a matrix for each element, as in the
    published model; its first layer is then narrower than ours, and has no self-connection.
    """
    shape, n_species = job["architecture"], len(job["species"])
    radial, update, readout = shape["radial"], shape["update"], shape["readout"]
    parities = "eo" if shape["parity"] == "full" else None
    features = "+".join(
        f"{shape['channels']}x{l}{parity}"
        for l in range(shape["message_l"] + 1)  # noqa: E741
        for parity in parities or "eo"[l % 2]
    )
    layers = shape["layers"]
    model: torch.nn.Module = FullNequIPGNNModel(
        seed=0,
        model_dtype=job["dtype"],
        compile_mode="eager",
        r_max=shape["cutoff"],
        type_names=[chemical_symbols[z] for z in job["species"]],
        radial_mlp_depth=[len(radial["hidden"])] * layers,
        radial_mlp_width=[radial["hidden"][0]] * layers,
        feature_irreps_hidden=[*[features] * (layers - 1), f"{shape['channels']}x0e"],
        irreps_edge_sh=shape["l_max"],
        type_embed_num_features=n_species,
        readout_mlp_hidden_layers_depth=0 if readout["last"] == "linear" else 1,
        readout_mlp_hidden_layers_width=readout["hidden"],
        readout_mlp_nonlinearity="silu" if readout["last"] == "mlp" else None,
        num_bessels=radial["n_basis"],
        bessel_trainable=radial["trainable"],
        polynomial_cutoff_p=radial["envelope_exponent"],
        avg_num_neighbors=job["avg_num_neighbors"],
        per_type_energy_scales=1.0,
        per_type_energy_shifts=0.0,
        convnet_sc=update["self_connection"] == "species",
        convnet_nonlinearity_scalars={"e": update["gate"], "o": "tanh"},
        convnet_nonlinearity_gates={"e": update["gate"], "o": "tanh"},
    )
    return model


def energy_forces(model: torch.nn.Module, data: dict[str, torch.Tensor]) -> Callable[[], object]:
    """Energy and forces as its ASE calculator computes them: parameters take no gradient."""
    model.eval()
    model.requires_grad_(False)
    return lambda: model(dict(data))


def training_step(model: torch.nn.Module, data: dict[str, torch.Tensor]) -> Callable[[], object]:
    """A step as its training does it, with its own loss, zero labels, and AMSGrad."""
    loss_of = EnergyForceLoss(coeffs={"total_energy": 1.0, "forces": 1000.0})
    # so small a rate that a thousand steps leave the weights sane
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, amsgrad=True)
    n_frames = int(AtomicDataDict.num_frames(data))
    labels = {
        **data,
        "total_energy": torch.zeros(n_frames, 1, dtype=torch.float64, device=data["pos"].device),
        "forces": torch.zeros_like(data["pos"]),
    }
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(model(dict(data)), labels)["weighted_sum"].backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
