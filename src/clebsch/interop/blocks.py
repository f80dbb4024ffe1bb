"""Weights of mace-torch's building blocks by irrep: what its flat tensors hold, and in which order.

e3nn lists the weights of a linear map input irrep by input irrep, each with every output irrep of
its kind. In mace-torch's models an output irrep occurs once, so that a map is one matrix for each
irrep, and repeated inputs are its rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clebsch.algebra import Irrep
from clebsch.errors import ModelFileError
from clebsch.interop.inert import Global, Stub
from clebsch.interop.modules import Module
from clebsch.kernels.reference import SILU_GAIN

#: What e3nn multiplies SiLU by, which it found with a million random numbers.
E3NN_SILU_GAIN = 1.6791767923989418

#: Constants of distance transforms and of the ZBL repulsion, by mace-torch's names, in the order in
#: which ``DistanceTransform.constants`` and ``StoredZBLRepulsion.screening`` hold them.
TRANSFORM_CONSTANTS = {"agnesi": ("a", "q", "p"), "soft": ("alpha",)}
REPULSION_CONSTANTS = ("a_prefactor", "a_exp", "p")


def linear_blocks(module: Module, biased: bool = False) -> dict[Irrep, Tensor]:
    """A ``Linear`` of e3nn: [inputs, outputs] for each irrep; 1 / sqrt(inputs) is its norm.

    Raises:
        ModelFileError: it has a bias though it should not, or weights that its irreps do not
            account for.
    """
    if not biased and module.has_tensor("bias") and module.tensor("bias").numel():
        raise ModelFileError(f"{module.place}: linear maps with biases are not supported")
    return _blocks(module, "irreps_in", ())


def species_blocks(module: Module, n_species: int) -> dict[Irrep, Tensor]:
    """A ``FullyConnectedTensorProduct`` with elements: [n_species, inputs, outputs] by irrep.

    What it divides by beyond the root of its inputs is divided by here.
    """
    blocks = _blocks(module, "irreps_in1", (n_species,))
    return {irrep: block.transpose(0, 1) / math.sqrt(n_species) for irrep, block in blocks.items()}


def _blocks(module: Module, irreps_in: str, between: tuple[int, ...]) -> dict[Irrep, Tensor]:
    flat = module.tensor("weight")
    outputs = module.irreps("irreps_out")
    if len({irrep for _, irrep in outputs}) != len(outputs):
        raise ModelFileError(f"{module.place}: an output irrep occurs twice")
    parts: dict[Irrep, list[Tensor]] = {}
    start = 0
    for n_in, irrep in module.irreps(irreps_in):
        for n_out, made in outputs:
            if made != irrep:
                continue
            size = n_in * math.prod(between) * n_out
            if start + size > flat.numel():
                raise ModelFileError(f"{module.place}: too few weights for its irreps")
            part = flat[start : start + size].reshape(n_in, *between, n_out)
            parts.setdefault(irrep, []).append(part)
            start += size
    if start != flat.numel():
        raise ModelFileError(f"{module.place}: more weights than its irreps account for")
    return {irrep: torch.cat(found) for irrep, found in parts.items()}


class Path(NamedTuple):
    """A coupling path of a convolution in the file: irreps, and which copy of its output it is."""

    node: Irrep
    harmonic: Irrep
    out: Irrep
    copy: int


def convolution_paths(module: Module) -> list[Path]:
    """The paths of a convolution's tensor product, in the order of its weights.

    Raises:
        ModelFileError: it is not such a product.
    """
    nodes, harmonics = module.irreps("irreps_in1"), module.irreps("irreps_in2")
    outputs = module.irreps("irreps_out")
    copies: dict[Irrep, list[int]] = {}
    for place, (_, irrep) in enumerate(outputs):
        copies.setdefault(irrep, []).append(place)
    paths = []
    try:
        for instruction in module.get("instructions", []):
            node, harmonic, out, mode = instruction.args[:4]
            irrep = outputs[out][1]
            if mode != "uvu":
                raise ValueError(mode)
            copy = copies[irrep].index(out)
            paths.append(Path(nodes[node][1], harmonics[harmonic][1], irrep, copy))
    except (AttributeError, IndexError, TypeError, ValueError):
        raise ModelFileError(f"{module.place}: not a convolution of mace-torch") from None
    return paths


def radial_weights(module: Module) -> list[Tensor]:
    """A ``FullyConnectedNet``: matrices [inputs, outputs], with our SiLU between them.

    The two normalisations of SiLU differ by a factor, which goes into the matrix that follows.
    """
    weights, factor = [], 1.0
    layers = module.children()
    for layer in layers:
        weights.append(layer.tensor("weight") * factor)
        if layer is not layers[-1]:
            factor = silu_gain(layer.child("act") if layer.has("act") else None) / SILU_GAIN
    return weights


def silu_gain(activation: Module | None) -> float:
    """The factor of a normalised SiLU.

    Raises:
        ModelFileError: it is another nonlinearity.
    """
    if activation is None:  # files of before it was kept
        return E3NN_SILU_GAIN
    function = activation.get("f")
    names = [function] if isinstance(function, Global) else []
    if isinstance(function, Stub):  # an instance of torch.nn.SiLU
        names = [function.kind]
    if not names or names[0].name.lower() != "silu":
        found = names[0] if names else activation.kind
        raise ModelFileError(
            f"{activation.place}: the nonlinearity {found} is not supported; silu is"
        )
    return float(activation.get("cst", E3NN_SILU_GAIN))
