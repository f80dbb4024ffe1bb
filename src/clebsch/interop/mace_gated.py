"""mace-torch's nonlinear interaction block: its settings, and its weights in ours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from clebsch.algebra import SCALAR
from clebsch.errors import ModelFileError
from clebsch.interop.blocks import E3NN_SILU_GAIN, Path, linear_blocks
from clebsch.interop.inert import Global
from clebsch.interop.modules import Module, one_multiplicity, refuse
from clebsch.kernels.reference import SILU_GAIN
from clebsch.nn.gated_basis import EdgeNetwork, GatedAtomicBasis
from clebsch.nn.linear import ChannelMap, IrrepsLinear

#: What e3nn multiplies the logistic function by.
E3NN_SIGMOID_GAIN = 1.8467055342154763


def gated_settings(interactions: list[Module]) -> dict[str, Any]:
    """The section ``interaction.gated`` of the blocks of a model.

    Raises:
        ModelFileError: later layers differ from each other.
    """
    sent = [
        one_multiplicity(layer, layer.child("linear_up").irreps("irreps_out"))
        for layer in interactions
    ]
    embeddings = {
        linear_blocks(layer.child(name))[SCALAR].shape[1]
        for layer in interactions
        for name in ("source_embedding", "target_embedding")
    }
    densities = {tuple(hidden_widths(layer.child("density_fn"))) for layer in interactions}
    density = densities.pop()
    if len(set(sent[1:])) > 1 or len(embeddings) > 1 or densities or len(density) != 1:
        raise refuse(interactions[0], "nonlinear blocks that differ from layer to layer")
    return {
        "first_channels": sent[0],
        "channels": sent[-1],
        "embedding": embeddings.pop(),
        "density_hidden": density[0],
    }


def hidden_widths(network: Module) -> list[int]:
    """Widths of the hidden layers of a ``RadialMLP``."""
    shapes = [linear.tensor("weight").shape for linear, _ in _layers(network)]
    check_chain(network, [(n_in, n_out) for n_out, n_in in shapes])
    return [n_out for n_out, _ in shapes]


def check_chain(network: Module, sizes: Sequence[tuple[int, int]]) -> None:
    """Refuse layers, given as inputs and outputs, that do not follow on each other.

    Raises:
        ModelFileError: names the sizes.
    """
    if any(made != taken for (_, made), (taken, _) in itertools.pairwise(sizes)):
        raise refuse(network, f"layers of {', '.join(f'{a} to {b}' for a, b in sizes)}")


def n_inputs(network: Module) -> int:
    """How many numbers a ``RadialMLP`` takes."""
    return network.child("net").child("0").tensor("weight").shape[1]


def copy_gated(
    interaction: Module,
    ours: GatedAtomicBasis,
    paths: list[Path],
    chosen: list[int],
    elements: Sequence[int],
) -> None:
    """Fill a basis with the weights of a nonlinear block.

    Args:
        interaction: the block.
        ours: changed.
        paths: of the block's convolution.
        chosen: those that ours has, in its order.
        elements: of ours, as indices into those of the block.
    """
    _copy_map(interaction.child("linear_up"), ours.linear_up)
    for name, parameter in (("source_embedding", ours.source), ("target_embedding", ours.target)):
        table = linear_blocks(interaction.child(name))[SCALAR]
        parameter.copy_(table[list(elements)] / math.sqrt(len(table)))
    last, bias = _copy_network(interaction.child("conv_tp_weights"), ours.radial)
    both = torch.cat([last.T, bias[None]]).unflatten(1, (len(paths), -1))
    ours.last.copy_(both[:, chosen] * math.sqrt(len(last.T)))
    last, bias = _copy_network(interaction.child("density_fn"), ours.density)
    ours.density_last.copy_(torch.cat([last[0], bias]) * math.sqrt(last.shape[1]))
    ours.alpha.fill_(interaction.number("alpha"))
    ours.beta.fill_(interaction.number("beta"))
    _copy_map(interaction.child("linear_res"), ours.linear_res)
    copies = {
        irrep: [paths[index].copy for index in chosen if paths[index].out == irrep]
        for irrep in ours.plan.out_irreps
    }
    _copy_map(interaction.child("linear_1"), ours.linear_1, copies)
    _copy_after_gate(interaction, ours)


def _copy_after_gate(interaction: Module, ours: GatedAtomicBasis) -> None:
    """W_2, with the factors by which e3nn's nonlinearities differ from ours."""
    gate = interaction.child("equivariant_nonlin")
    for name, expected in (("_act_scalar", "silu"), ("_act_gate", "sigmoid")):
        function = gate.get(name)
        if isinstance(function, Global) and function.name != expected:
            raise refuse(gate, f"the nonlinearity {function}")
    scalar = float(gate.get("_scalar_cst", E3NN_SILU_GAIN)) / SILU_GAIN
    gain = float(gate.get("_gate_cst", E3NN_SIGMOID_GAIN))
    blocks = linear_blocks(interaction.child("linear_2"))
    (linear,) = ours.linears
    assert isinstance(linear, IrrepsLinear)
    for irrep, parameter in zip(linear.irreps, linear.weights, strict=True):
        parameter.copy_(blocks[irrep] * (scalar if irrep == SCALAR else gain))


def _copy_map(theirs: Module, ours: ChannelMap, copies: dict[Any, list[int]] | None = None) -> None:
    """A map's matrices; those of scalars and gates are one wide matrix in the file."""
    blocks = linear_blocks(theirs)
    used: dict[Any, int] = {}
    for irrep, parameter in zip(ours.present, ours.weights, strict=True):
        start = used.get(irrep, 0)
        used[irrep] = start + ours.channels_out
        block = blocks[irrep][:, start : start + ours.channels_out]
        if copies is not None:
            channels = len(parameter) // len(copies[irrep])
            apart = block.unflatten(0, (-1, channels))
            factor = math.sqrt(len(copies[irrep]) / len(apart))
            block = apart[copies[irrep]].flatten(0, 1) * factor
        parameter.copy_(block)


def _copy_network(theirs: Module, ours: EdgeNetwork) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill the hidden layers; the last one's weight [outputs, inputs] and bias are returned."""
    layers = _layers(theirs)
    for (linear, norm), our_map, our_norm in zip(layers, ours.maps, ours.norms, strict=True):
        for source, target in ((linear, our_map), (norm, our_norm)):
            for name in ("weight", "bias"):
                getattr(target, name).copy_(source.tensor(name))
    last = theirs.child("net").child(str(3 * len(layers)))
    return last.tensor("weight"), last.tensor("bias")


def _layers(network: Module) -> list[tuple[Module, Module]]:
    """Linear map and normalisation of each hidden layer.

    Raises:
        ModelFileError: it is another kind of network.
    """
    parts = network.child("net").children()
    kinds = [part.kind for part in parts]
    hidden = len(parts) // 3
    if not 1 <= hidden <= 16 or kinds != ["Linear", "LayerNorm", "SiLU"] * hidden + ["Linear"]:
        raise ModelFileError(f"{network.place}: a network of {', '.join(kinds[:10])}")
    if any(norm.get("eps") != 1e-5 for norm in parts[1::3]):
        raise refuse(network, "layer normalisation with another epsilon than 1e-5")
    return [(parts[3 * i], parts[3 * i + 1]) for i in range(hidden)]
