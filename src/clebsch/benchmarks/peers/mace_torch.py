"""Measure mace-torch on one job. A script for an environment of its own (``make peers``).

With ``"cuequivariance": true`` in the job the model is converted by mace-torch's own converter.

Reads a job (``clebsch.benchmarks.jobs``) as JSON from standard input and prints the result as the
last line of standard output. It imports nothing of Clebsch but loads the timing code by its path.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

# e3nn 0.4.4 keeps its constants as a pickle, which torch otherwise refuses to load.
os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")

import mace
import numpy as np
import torch
from e3nn import o3
from mace import data, modules, tools
from mace.tools import torch_geometric

#: Published irreps: parity (-1)^l.
PARITIES = "eo"


def main() -> None:
    """Standard input to standard output."""
    job = json.load(sys.stdin)
    timing = runpy.run_path(str(Path(__file__).parents[1] / "timing.py"))
    timing["limit_memory"](job["device"])
    torch.set_num_threads(job["threads"])
    torch.set_default_dtype(getattr(torch, job["dtype"]))
    torch.manual_seed(0)
    device = timing["accelerator"](torch, job["device"])
    batch = make_batch(job).to(job["device"])
    model = build(job).to(job["device"])
    versions = {"mace-torch": mace.__version__, "torch": torch.__version__}
    if job.get("cuequivariance"):
        model = accelerated(model, job["device"])
        versions["cuequivariance"] = version("cuequivariance")
    call = {"energy_forces": energy_forces, "step": training_step}[job["mode"]](model, batch)
    result = {
        "n_atoms": batch.num_nodes,
        "n_edges": batch.edge_index.shape[1],
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "versions": versions,
        "timing": timing["measure"](call, **job["timing"], device=device),
    }
    print(json.dumps(result))


def make_batch(job: dict[str, Any]) -> Any:
    """The job's structures as one batch, with zero energies and forces as labels."""
    table = tools.AtomicNumberTable(job["species"])
    listed = []
    for structure in job["structures"]:
        numbers = np.array(structure["numbers"])
        configuration = data.Configuration(
            atomic_numbers=numbers,
            positions=np.array(structure["positions"]),
            properties={"energy": 0.0, "forces": np.zeros((len(numbers), 3))},
            property_weights={"energy": 1.0, "forces": 1.0},
            cell=np.array(structure["cell"]),
            pbc=tuple(structure["pbc"]),
        )
        listed.append(
            data.AtomicData.from_config(
                configuration, z_table=table, cutoff=job["architecture"]["cutoff"]
            )
        )
    loader = torch_geometric.dataloader.DataLoader(listed, batch_size=len(listed), shuffle=False)
    return next(iter(loader))


def build(job: dict[str, Any]) -> torch.nn.Module:
    """The model of the job's architecture."""
    shape = job["architecture"]
    channels = shape["channels"]
    hidden = [f"{channels}x{l}{PARITIES[l % 2]}" for l in range(shape["message_l"] + 1)]  # noqa: E741
    residual = modules.RealAgnosticResidualInteractionBlock
    lone = shape["update"]["first_layer"] == "species_linear"
    model: torch.nn.Module = modules.ScaleShiftMACE(
        r_max=shape["cutoff"],
        num_bessel=shape["radial"]["n_basis"],
        num_polynomial_cutoff=shape["radial"]["envelope_exponent"],
        max_ell=shape["l_max"],
        interaction_cls=residual,
        interaction_cls_first=modules.RealAgnosticInteractionBlock if lone else residual,
        num_interactions=shape["layers"],
        num_elements=len(job["species"]),
        hidden_irreps=o3.Irreps("+".join(hidden)),
        MLP_irreps=o3.Irreps(f"{shape['readout']['hidden']}x0e"),
        atomic_energies=np.zeros(len(job["species"])),
        avg_num_neighbors=job["avg_num_neighbors"],
        atomic_numbers=job["species"],
        correlation=shape["product"]["correlation"],
        gate=torch.nn.functional.silu,
        use_reduced_cg=shape["product"]["couplings"] == "reduced",
        radial_MLP=list(shape["radial"]["hidden"]),
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    return model


def accelerated(model: torch.nn.Module, device: str) -> torch.nn.Module:
    """The same model with cuEquivariance's operations.

    Raises:
        ImportError: cuEquivariance, or its kernels, are not installed: it would run without them.
    """
    import cuequivariance_ops_torch  # noqa: F401
    from mace.cli.convert_e3nn_cueq import run

    converted: torch.nn.Module = run(model, device=device, return_model=True)
    return converted.to(device)


def energy_forces(model: torch.nn.Module, batch: Any) -> Callable[[], object]:
    """Energy and forces as its ASE calculator computes them: parameters take no gradient."""
    for parameter in model.parameters():
        parameter.requires_grad = False
    arguments = batch.to_dict()
    return lambda: model(arguments, training=False, compute_force=True)


def training_step(model: torch.nn.Module, batch: Any) -> Callable[[], object]:
    """A step as its training loop does it, with its own loss and AMSGrad."""
    loss_of = modules.WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=1000.0)
    # so small a rate that a thousand steps leave the weights sane
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, amsgrad=True)
    arguments = batch.to_dict()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(batch, model(arguments, training=True, compute_force=True)).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
