"""Makes a mace-torch model of the files beside this script, where mace-torch 0.3.x is installed.

    python build_model.py [OUT.model]

It needs nothing of Clebsch. Energies and forces of a structure are compared with those that the
weights' origin gave, and a model that gives others is not saved.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import permutations
from pathlib import Path
from typing import Any

# e3nn 0.4.4 keeps its constants as a pickle, which torch otherwise refuses to load.
os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")

import numpy as np
import torch
from e3nn import o3
from mace import data, modules, tools
from mace.tools import torch_geometric

HERE = Path(__file__).parent


def main() -> None:
    """Build, check, save."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "mace.model"
    settings = json.loads((HERE / "settings.json").read_text(encoding="utf-8"))
    weights = read_safetensors(HERE / "weights.safetensors")
    torch.set_default_dtype(torch.float64)
    model = build(settings)
    fill(model, weights)
    off_energy, off_forces = deviations(model, settings["reference"])
    # a model of float32 was judged in float32; rounding grows with the numbers that are rounded
    allowed = 1e-8 if settings["dtype"] == "float64" else 1e-3
    allowed *= 1 + np.abs(np.array(settings["reference"]["forces"])).max()
    print(f"energy off by {off_energy:.1e} eV per atom, forces by {off_forces:.1e} eV/Angstrom")
    if not (off_energy < allowed and off_forces < allowed):
        raise SystemExit("these are not the numbers that the weights gave: nothing is saved")
    torch.save(model.to(getattr(torch, settings["dtype"])), out)
    print(f"written: {out}")


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The float64 tensors of a file: a length, a header in JSON, raw numbers."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    found = {}
    for name, entry in json.loads(raw[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            numbers = np.frombuffer(raw[begin:end], np.float64).reshape(entry["shape"])
            found[name] = torch.tensor(numbers)
    return found


def build(settings: dict[str, Any]) -> torch.nn.Module:
    """The model, with random weights."""
    kind = "Density" if settings["density"] else ""
    blocks = [
        modules.interaction_classes[
            f"RealAgnostic{kind}{'Residual' if update == 'residual' else ''}InteractionBlock"
        ]
        for update in settings["residual"]
    ]
    arguments = dict(settings["model"])
    model: torch.nn.Module = modules.ScaleShiftMACE(
        interaction_cls_first=blocks[0],
        interaction_cls=blocks[1],
        hidden_irreps=o3.Irreps(settings["hidden_irreps"]),
        MLP_irreps=o3.Irreps(f"{settings['readout']}x0e"),
        gate=torch.nn.functional.silu if settings["gate"] else None,
        **{**arguments, "atomic_energies": np.array(arguments["atomic_energies"])},
    )
    return model


def fill(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Copy all weights; those of couplings are solved for."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    missing = {name for name, parameter in model.named_parameters() if parameter.numel()}
    for name, value in weights.items():
        if name.startswith("couplings."):
            continue
        target = tensors[name].data
        if name.endswith("covalent_radii"):
            target[model.atomic_numbers] = value
        else:
            target.copy_(value.reshape(target.shape))
        missing.discard(name)
    for t, product in enumerate(model.products):
        contractions = product.symmetric_contractions.contractions
        for k, contraction in enumerate(contractions):
            place = f"products.{t}.symmetric_contractions.contractions.{k}"
            for order in range(1, contraction.correlation + 1):
                below = contraction.correlation - order
                name = f"weights.{below - 1}" if below else "weights_max"
                parameter = contraction.weights[below - 1] if below else contraction.weights_max
                couplings = getattr(contraction, f"U_matrix_{order}")
                ours = f"couplings.{t}.{k}.{order}"
                tensor, wanted = weights[f"{ours}.tensor"], weights[f"{ours}.weights"]
                parameter.data.copy_(solve(couplings, tensor, wanted, order))
                missing.discard(f"{place}.{name}")
    if missing:
        raise SystemExit(f"no weights for {', '.join(sorted(missing))}")


def solve(
    couplings: torch.Tensor, tensor: torch.Tensor, weights: torch.Tensor, order: int
) -> torch.Tensor:
    """Weights of the model's couplings that give what ``weights`` of ``tensor`` give.

    All factors hold the same features: the parts symmetric in them must be equal.

    Args:
        couplings: [(2L + 1,) Q, ..., Q, P], the model's.
        tensor: [n, 2L + 1, Q, ..., Q].
        weights: [Z, n, K].
        order: number of axes Q.

    Returns:
        [Z, P, K], the shortest solution.
    """
    if couplings.ndim == order + 1:
        couplings = couplings[None]
    matrix = symmetric(couplings.movedim(-1, 0), order).flatten(1).T
    wanted = torch.einsum("nq,znk->qzk", symmetric(tensor, order).flatten(1), weights)
    solution = torch.linalg.pinv(matrix, rtol=1e-10) @ wanted.flatten(1)
    if (matrix @ solution - wanted.flatten(1)).abs().max() > 1e-9 * (1 + wanted.abs().max()):
        raise SystemExit(f"the model's couplings of order {order} do not span those of the weights")
    return solution.unflatten(1, wanted.shape[1:]).transpose(0, 1)


def symmetric(tensor: torch.Tensor, order: int) -> torch.Tensor:
    """The mean over all orders of the last axes, ``order`` of them."""
    first = tensor.ndim - order
    orders = permutations(range(first, tensor.ndim))
    return torch.stack([tensor.permute(*range(first), *axes) for axes in orders]).mean(0)


def deviations(model: Any, reference: dict[str, Any]) -> tuple[float, float]:
    """How far energy per atom and forces are from those of the reference structure."""
    numbers = np.array(reference["numbers"])
    configuration = data.Configuration(
        atomic_numbers=numbers,
        positions=np.array(reference["positions"]),
        properties={"energy": 0.0, "forces": np.zeros((len(numbers), 3))},
        property_weights={"energy": 1.0, "forces": 1.0},
        cell=np.array(reference["cell"]),
        pbc=tuple(reference["pbc"]),
    )
    table = tools.AtomicNumberTable([int(z) for z in model.atomic_numbers])
    graph = data.AtomicData.from_config(configuration, z_table=table, cutoff=float(model.r_max))
    batch = next(iter(torch_geometric.dataloader.DataLoader([graph], batch_size=1)))
    out = model(batch.to_dict(), compute_force=True)
    energy = abs(float(out["energy"]) - reference["energy"]) / len(numbers)
    forces = np.abs(out["forces"].detach().numpy() - np.array(reference["forces"])).max()
    return energy, float(forces)


if __name__ == "__main__":
    main()
