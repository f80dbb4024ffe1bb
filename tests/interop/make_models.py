"""Run by ``.peers/mace-torch/bin/python``: makes models of mace-torch and computes with them.

Reads a job as JSON from standard input: variants, structures and a folder. Writes a ``.model`` for
each variant and prints what mace-torch says of every structure, per head, as JSON in the last line.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

# e3nn 0.4.4 keeps its constants as a pickle, which torch otherwise refuses to load.
os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")

import numpy as np
import torch
from e3nn import o3
from mace import modules

#: As ``clebsch doctor`` asks mace-torch.
SCRIPT = Path(__file__).parents[2] / "src/clebsch/interop/peer_answers.py"
ANSWERS = runpy.run_path(str(SCRIPT))["answers"]


def main() -> None:
    job = json.load(sys.stdin)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    folder = Path(job["folder"])
    print(json.dumps({name: run(folder, name, job) for name in job["variants"]}))


def run(folder: Path, name: str, job: dict[str, Any]) -> dict[str, Any]:
    """Answers of the model in float64, and of what is left of it in a file of float32."""
    torch.manual_seed(7)
    model = build(dict(job["variants"][name]), job["numbers"])
    properties = job["properties"] if "embedding_specs" in job["variants"][name] else {}
    found = {}
    for dtype in (torch.float64, torch.float32):
        kind = str(dtype).removeprefix("torch.")
        model = model.to(dtype)
        torch.save(model, folder / f"{name}-{kind}.model")
        model = model.double()
        found[kind] = [
            {place: ANSWERS(model, s, head, properties) for place, s in job["structures"].items()}
            for head in model.heads
        ]
    return found


def build(variant: dict[str, Any], numbers: list[int]) -> torch.nn.Module:
    cls = getattr(modules, variant.pop("cls", "ScaleShiftMACE"))
    residual = "RealAgnosticResidualInteractionBlock"
    first = modules.interaction_classes[variant.pop("first", residual)]
    later = modules.interaction_classes[variant.pop("later", residual)]
    hidden = o3.Irreps(variant.pop("hidden", "6x0e+6x1o"))
    readout = variant.pop("readout_cls", None)
    if readout is not None:
        variant["readout_cls"] = getattr(modules, readout)
    if "edge_irreps" in variant:
        variant["edge_irreps"] = o3.Irreps(variant["edge_irreps"])
    gates = {"silu": torch.nn.functional.silu, "tanh": torch.tanh, "none": None}
    gate = gates[variant.pop("gate", "silu")]
    settings: dict[str, Any] = {
        "r_max": 4.1,
        "num_bessel": 6,
        "num_polynomial_cutoff": 5,
        "max_ell": 2,
        "num_interactions": 2,
        "MLP_irreps": o3.Irreps("16x0e"),
        "atomic_energies": [-13.6, -1027.3, -2042.1],
        "avg_num_neighbors": 9.3,
        "correlation": 3,
        "radial_MLP": [16, 16],
        **variant,
    }
    if cls is modules.ScaleShiftMACE:
        settings = {"atomic_inter_scale": 0.7, "atomic_inter_shift": 0.3, **settings}
    frequencies = settings.pop("trained_frequencies", False)
    model = cls(
        interaction_cls=later,
        interaction_cls_first=first,
        hidden_irreps=hidden,
        num_elements=len(numbers),
        atomic_numbers=numbers,
        gate=gate,
        **{**settings, "atomic_energies": np.array(settings["atomic_energies"])},
    )
    if frequencies:
        model.radial_embedding.bessel_fn.bessel_weights *= 1.03
    for parameter in model.parameters():  # what starts as zeros or ones shall count
        if parameter.numel() and (parameter == parameter.flatten()[0]).all():
            parameter.data += 0.1 * torch.rand_like(parameter)
    return model


if __name__ == "__main__":
    main()
