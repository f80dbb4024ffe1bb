"""From the weights of a mace-torch model to those of ours, block by block.

Both follow the same equations and conventions; what differs is stated where it is mended. Numbers
are converted in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from clebsch.algebra import SCALAR, Irreps
from clebsch.errors import ModelFileError
from clebsch.interop.blocks import (
    REPULSION_CONSTANTS,
    TRANSFORM_CONSTANTS,
    Path,
    convolution_paths,
    linear_blocks,
    radial_weights,
    silu_gain,
    species_blocks,
)
from clebsch.interop.compression import compression
from clebsch.interop.inert import Stub
from clebsch.interop.mace_config import basis_irreps, heads_of, self_connection
from clebsch.interop.mace_embedding import initial_features
from clebsch.interop.mace_gated import copy_gated
from clebsch.interop.modules import Module, refuse
from clebsch.kernels.plan import ConvolutionPlan
from clebsch.kernels.reference import SILU_GAIN
from clebsch.models.message_passing import AtomicBasis, Layer, MessagePassing
from clebsch.nn.energy import StoredZBLRepulsion
from clebsch.nn.gated_basis import GatedAtomicBasis
from clebsch.nn.linear import IrrepsLinear, SpeciesLinear
from clebsch.nn.path_weights import RadialNetwork
from clebsch.nn.radial import BesselBasis
from clebsch.nn.readout import BiasedMLPReadout, LinearReadout, MLPReadout, TwoLinearReadout
from clebsch.nn.transform import DistanceTransform


def copy_network(
    model: Module,
    network: MessagePassing,
    elements: Sequence[int],
    head: int,
    properties: Mapping[str, float],
) -> None:
    """Fill a network of the model's configuration, in float64, with its weights.

    Args:
        model: the model.
        network: changed.
        elements: of the network, as indices into those of the model.
        head: which head's readouts to take.
        properties: values of the properties that the model embeds.
    """
    n_species = len(model.tensor("atomic_numbers"))
    _fill(network.embedding, initial_features(model, properties)[list(elements)], model)
    _copy_radial(model.child("radial_embedding"), network, elements, model)
    interactions = model.child("interactions").children()
    products = model.child("products").children()
    for layer, interaction, product in zip(network.layers, interactions, products, strict=True):
        assert isinstance(layer, Layer)
        basis = layer.atomic_basis
        paths = convolution_paths(interaction.child("conv_tp"))
        chosen = _chosen(paths, basis.plan, interaction)
        if isinstance(basis, GatedAtomicBasis):
            copy_gated(interaction, basis, paths, chosen, elements)
        else:
            _copy_atomic_basis(interaction, basis, paths, chosen, network.avg_num_neighbors)
        if layer.species_linear is not None:
            _copy_species(self_connection(interaction), layer.species_linear, elements, n_species)
        _copy_product(interaction, product, layer, elements)
    n_heads = len(heads_of(model))
    for readout, theirs in zip(network.readouts, model.child("readouts").children(), strict=True):
        _copy_readout(theirs, readout, head, n_heads)


def copy_repulsion(
    model: Module, prior: StoredZBLRepulsion, elements: Sequence[int], scale: float
) -> None:
    """Constants of the ZBL repulsion; mace-torch multiplies it by the network's scale."""
    theirs = model.child("pair_repulsion_fn")
    numbers = model.tensor("atomic_numbers")[list(elements)]
    prior.coefficients.copy_(theirs.tensor("c"))
    constants = [theirs.number(name) for name in REPULSION_CONSTANTS]
    prior.screening.copy_(torch.tensor(constants, dtype=torch.float64))
    prior.radii.copy_(theirs.tensor("covalent_radii")[numbers])
    prior.scale.fill_(scale)


def average_neighbors(interaction: Module) -> float:
    """What a layer's sum over neighbours is divided by.

    Raises:
        ModelFileError: it is no positive number.
    """
    average = interaction.get("avg_num_neighbors", 1.0)
    if isinstance(average, Tensor) and average.numel() == 1:
        average = float(average)
    if isinstance(average, Stub) and average.kind.name == "scalar":  # a number of numpy
        kind, raw = average.args
        average = float(np.frombuffer(raw, _numpy_type(kind, interaction))[0])
    if not isinstance(average, int | float) or not 0 < average < math.inf:
        raise ModelFileError(f"{interaction.place}: avg_num_neighbors is {average}")
    return float(average)


def _numpy_type(stub: Stub, module: Module) -> str:
    kind = stub.args[0]
    if kind not in ("f8", "f4", "i8", "i4"):
        raise ModelFileError(f"{module.place}: avg_num_neighbors of numpy's type {kind!r}")
    return f"<{kind}"


def _fill(parameter: Tensor, values: Tensor, module: Module) -> None:
    if parameter.shape != values.shape:
        raise ModelFileError(
            f"{module.place}: weights of shape {tuple(values.shape)} where the architecture has "
            f"{tuple(parameter.shape)}"
        )
    parameter.data.copy_(values)


def _copy_radial(
    embedding: Module, network: MessagePassing, elements: Sequence[int], model: Module
) -> None:
    basis = network.radial_basis
    if isinstance(basis, BesselBasis) and basis.frequencies is not None:
        weights = embedding.child("bessel_fn").tensor("bessel_weights") * basis.cutoff
        _fill(basis.frequencies, weights, embedding)
    if isinstance(network.transform, DistanceTransform):
        theirs = embedding.child("distance_transform")
        names = TRANSFORM_CONSTANTS[network.transform.form]
        constants = torch.tensor([theirs.number(n) for n in names], dtype=torch.float64)
        network.transform.constants.copy_(constants)
        numbers = model.tensor("atomic_numbers")[list(elements)]
        network.transform.radii.copy_(theirs.tensor("covalent_radii")[numbers])


def _chosen(paths: list[Path], plan: ConvolutionPlan, interaction: Module) -> list[int]:
    """Of the file's paths those that ours has, in its order.

    Theirs may be more: paths from irreps that are always zero are left out.
    """
    place = {(path.node, path.harmonic, path.out): index for index, path in enumerate(paths)}
    try:
        return [
            place[
                plan.node_irreps[path.node],
                plan.harmonic_irreps[path.harmonic],
                plan.out_irreps[path.out],
            ]
            for path in plan.paths
        ]
    except KeyError:
        raise ModelFileError(
            f"{interaction.place}: its convolution lacks a path that symmetry allows"
        ) from None


def _copy_atomic_basis(
    interaction: Module,
    ours: AtomicBasis,
    paths: list[Path],
    chosen: list[int],
    avg_num_neighbors: float,
) -> None:
    """Linear maps, radial network and normalisation of the sum over neighbours."""
    assert isinstance(ours.linear_up, IrrepsLinear)
    _copy_linear(interaction.child("linear_up"), ours.linear_up)
    if ours.attention is not None:
        down = linear_blocks(interaction.child("linear_down"))[SCALAR]
        _fill(ours.attention.weight, down, interaction)
    assert isinstance(ours.radial, RadialNetwork)
    *inner, last = radial_weights(interaction.child("conv_tp_weights"))
    for parameter, weight in zip(ours.radial.weights, inner, strict=True):
        _fill(parameter, weight, interaction)
    shaped = last.unflatten(1, (len(paths), -1))
    _fill(ours.radial.last, shaped[:, chosen], interaction)
    (linear,) = ours.linears
    assert isinstance(linear, IrrepsLinear)
    blocks = linear_blocks(interaction.child("linear"))
    factor = 1.0
    if ours.density is None:
        factor = avg_num_neighbors / average_neighbors(interaction)
    else:
        layers = interaction.child("density_fn").children()
        _fill(ours.density.weight, layers[0].tensor("weight")[:, 0], interaction)
    for irrep, parameter in zip(linear.irreps, linear.weights, strict=True):
        copies = [paths[index].copy for index in chosen if paths[index].out == irrep]
        channels = parameter.shape[1]
        block = blocks[irrep].reshape(-1, channels, channels)
        # both divide by the root of their own number of inputs
        kept = block[copies] * (factor * math.sqrt(len(copies) / len(block)))
        _fill(parameter, kept.flatten(0, 1), interaction)


def _copy_linear(theirs: Module, ours: IrrepsLinear) -> None:
    blocks = linear_blocks(theirs)
    for irrep, parameter in zip(ours.irreps, ours.weights, strict=True):
        _fill(parameter, blocks[irrep], theirs)


def _copy_species(
    theirs: Module, ours: SpeciesLinear, elements: Sequence[int], n_species: int
) -> None:
    if len(ours.weights[0]) == 1 and theirs.kind == "Linear":  # the same for all elements
        shared = linear_blocks(theirs)
        blocks = {irrep: block[None] for irrep, block in shared.items()}
        elements = [0]
    else:
        blocks = species_blocks(theirs, n_species)
    present = [irrep for irrep, n in zip(ours.irreps_out, ours.copies, strict=True) if n]
    for irrep, parameter in zip(present, ours.weights, strict=True):
        _fill(parameter, blocks[irrep][list(elements)], theirs)


def _copy_product(
    interaction: Module, product: Module, layer: Layer, elements: Sequence[int]
) -> None:
    assert layer.product is not None
    plan = layer.product.plan
    theirs = Irreps(irrep for _, irrep in basis_irreps(interaction))
    if not set(plan.irreps) <= set(theirs):
        raise ModelFileError(f"{interaction.place}: a one-particle basis of irreps {theirs}")
    # Their components in our order of irreps; those that are always zero are not among ours.
    parts = [theirs.slices[theirs.index(irrep)] for irrep in plan.irreps]
    order = np.concatenate([np.arange(part.start, part.stop) for part in parts])
    linear = product.child("linear")
    contractions = product.child("symmetric_contractions").child("contractions").children()
    targets = [irrep for _, irrep in linear.irreps("irreps_in")]
    weights = layer.product.weights
    for target, bases, slices in zip(plan.targets, plan.bases, plan.weight_slices, strict=True):
        contraction = contractions[targets.index(target)]
        for basis, rows in zip(bases, slices, strict=True):
            couplings = _couplings(contraction, basis.order, target.dim, theirs.dim)
            for axis in range(1, basis.order + 1):
                couplings = couplings.take(order, axis=axis)
            matrix = torch.from_numpy(compression(basis, couplings, contraction.place))
            table = _product_weights(contraction, plan.correlation - basis.order)
            if len(table) > 1:  # else it is shared by all elements
                table = table[list(elements)]
            values = torch.einsum("ep,zpk->zek", matrix, table)
            _fill(weights.data[:, rows], values.expand(len(weights), -1, -1), contraction)
    _copy_linear(linear, layer.linear)


def _product_weights(contraction: Module, below: int) -> Tensor:
    """[Z, P, K], or one for all elements: of the highest order, or of one ``below`` it."""
    if below == 0:
        return contraction.tensor("weights_max")
    return contraction.child("weights").tensor(str(below - 1))


def _couplings(contraction: Module, order: int, dim: int, n_components: int) -> np.ndarray:
    """[2L + 1, Q, ..., Q, P], as in the file."""
    tensor = contraction.tensor(f"U_matrix_{order}").numpy()
    if tensor.ndim == order + 1:  # scalars have no axis of components
        tensor = tensor[None]
    expected = (dim, *[n_components] * order)
    if tensor.shape[:-1] != expected:
        raise ModelFileError(
            f"{contraction.place}: couplings of shape {tensor.shape} where {expected} is expected"
        )
    return tensor


def _copy_readout(theirs: Module, ours: nn.Module, head: int, n_heads: int) -> None:
    """One head's: its column of a linear readout, its block of units of a nonlinear one."""
    if isinstance(ours, LinearReadout):
        _fill(ours.weight, linear_blocks(theirs.child("linear"))[SCALAR][:, head], theirs)
        return
    assert isinstance(ours, MLPReadout | TwoLinearReadout | BiasedMLPReadout)
    acts = theirs.child("non_linearity").child("acts")
    gain = silu_gain(acts.child("0")) / SILU_GAIN if acts.has("0") else 1.0
    inner = linear_blocks(theirs.child("linear_1"))[SCALAR]
    outer = linear_blocks(theirs.child("linear_2"), biased=True)[SCALAR]
    hidden = inner.shape[1] // n_heads
    units = slice(head * hidden, (head + 1) * hidden)
    _fill(ours.inner, inner[:, units], theirs)
    # theirs divides by the root of all heads' units
    factor = gain / math.sqrt(n_heads)
    _fill(ours.outer, outer[units, head] * factor, theirs)
    if isinstance(ours, BiasedMLPReadout):
        middle = linear_blocks(theirs.child("linear_mid"), biased=True)[SCALAR]
        _fill(ours.middle, middle[units, units] * factor, theirs)
        _fill(ours.middle_bias, theirs.child("linear_mid").tensor("bias")[units], theirs)
        _fill(ours.outer_bias, theirs.child("linear_2").tensor("bias")[head], theirs)
    elif theirs.child("linear_2").tensor("bias").numel():
        raise refuse(theirs, "a readout with a bias")
