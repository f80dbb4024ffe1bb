"""The architecture of a mace-torch model as a configuration of ours; what has none is refused."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import torch

from clebsch.algebra import SCALAR, Irrep, Irreps, all_irreps, spherical_irreps
from clebsch.errors import ConfigError, ModelFileError, did_you_mean
from clebsch.interop.blocks import linear_blocks, species_blocks
from clebsch.interop.inert import Stub
from clebsch.interop.mace_gated import check_chain, gated_settings, hidden_widths, n_inputs
from clebsch.interop.modules import Module, Multiplets, one_multiplicity, refuse
from clebsch.models.config import MessagePassingConfig

MODELS = ("MACE", "ScaleShiftMACE")

Update: TypeAlias = Literal["species_linear", "residual"]
Kind: TypeAlias = Literal["neighbors", "density", "attention", "gated"]

#: Interaction blocks: how they update features, and what they divide the sum over neighbours by
#: ("attention" divides by neighbours, and "gated" is the nonlinear block; they do more than that).
BLOCKS: dict[str, tuple[Update, Kind]] = {
    "RealAgnosticInteractionBlock": ("species_linear", "neighbors"),
    "RealAgnosticResidualInteractionBlock": ("residual", "neighbors"),
    "RealAgnosticDensityInteractionBlock": ("species_linear", "density"),
    "RealAgnosticDensityResidualInteractionBlock": ("residual", "density"),
    "RealAgnosticAttResidualInteractionBlock": ("residual", "attention"),
    "RealAgnosticResidualNonLinearInteractionBlock": ("residual", "gated"),
}

#: Layers of a model, and of a radial network: what a small file could claim to have many of.
MAX_LAYERS = 16

_BASES = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}
_TRANSFORMS = {"AgnesiTransform": "agnesi", "SoftTransform": "soft"}


def mace_config(model: Module) -> MessagePassingConfig:
    """The configuration of a MACE or ScaleShiftMACE.

    Raises:
        ModelFileError: a feature of it is not supported; the error names it.
    """
    _check_supported(model)
    interactions = model.child("interactions").children()
    products = model.child("products").children()
    if not 1 <= len(interactions) <= MAX_LAYERS or len(products) != len(interactions):
        raise refuse(model, f"{len(interactions)} layers with {len(products)} product bases")
    first, later = _updates(interactions)
    channels, messages = _messages(interactions, products)
    l_max = _l_max(interactions[0])
    _check_sizes(model, interactions, products, channels)
    whole = basis_irreps(interactions[min(1, len(interactions) - 1)])
    natural = {irrep for _, irrep in whole} <= set(spherical_irreps(l_max))
    regular = set(messages) == set(
        (spherical_irreps if natural else all_irreps)(messages.l_max).irreps
    )
    settings: dict[str, Any] = {
        "cutoff": model.number("r_max"),
        "layers": len(interactions),
        "channels": channels,
        "l_max": l_max,
        "message_l": messages.l_max,
        "message_irreps": None if regular else str(messages),
        "parity": "natural" if natural else "full",
        "radial": _radial(model, interactions),
        "interaction": _interaction(interactions),
        "product": _product(model, products),
        "update": {
            "first_layer": first,
            "later_layers": later,
            "self_connection": "linear" if is_shared(interactions[0]) else "species",
        },
        "readout": _readout(model, len(interactions)),
        "mean_energy": "none",
        "scale": "none",
        "zbl": "mace_torch" if model.has("pair_repulsion_fn") else False,
        "contact_repulsion": False,
        "energy_floor": False,
    }
    if model.has("scale_shift") and bool(model.child("scale_shift").tensor("shift").any()):
        settings["mean_energy"] = "every_atom"
    try:
        return MessagePassingConfig.model_validate(settings)
    except (ValueError, ConfigError) as error:
        raise ModelFileError(f"{model.place}: its architecture is not supported: {error}") from None


def is_gated(interaction: Module) -> bool:
    """Whether it is the nonlinear block."""
    return BLOCKS[interaction.kind][1] == "gated"


def has_attention(interaction: Module) -> bool:
    """Whether path weights know the scalars of both atoms."""
    return BLOCKS[interaction.kind][1] == "attention"


def is_shared(interaction: Module) -> bool:
    """Whether the self-connection is one map for all elements."""
    return is_gated(interaction) or has_attention(interaction)


def self_connection(interaction: Module) -> Module:
    """The map of an atom's own features, or of the sum over its neighbours."""
    return interaction.child("skip_linear" if has_attention(interaction) else "skip_tp")


def basis_irreps(interaction: Module) -> Multiplets:
    """Irreps of the one-particle basis that an interaction block makes, in the file's order."""
    return interaction.child("linear_2" if is_gated(interaction) else "linear").irreps("irreps_out")


def check_class(model: Module) -> None:
    """Refuse what is no model of energies.

    Raises:
        ModelFileError: another class than MACE or ScaleShiftMACE.
    """
    if model.kind not in MODELS:
        raise ModelFileError(
            f"{model.place}: a model of class {model.kind}, which is not supported: models of "
            f"energies are, of class {' or '.join(MODELS)}; dipoles and polarisabilities are not "
            "read"
        )


def _check_supported(model: Module) -> None:
    if model.get("use_so3", False):
        raise refuse(model, "use_so3 (irreps without parity)")
    for interaction in model.child("interactions").children():
        if interaction.kind not in BLOCKS:
            raise ModelFileError(
                f"{interaction.place}: interaction blocks of class {interaction.kind} are not "
                f"supported. {did_you_mean(interaction.kind, BLOCKS)}"
            )
        for accelerated in ("cueq_config", "oeq_config"):
            config = interaction.get(accelerated)
            if isinstance(config, Stub) and config.state.get("enabled", False):
                raise refuse(interaction, f"weights converted for an accelerator ({accelerated})")
    for product in model.child("products").children():
        contraction = product.child("symmetric_contractions")
        if contraction.module.startswith("torch.fx"):
            raise ModelFileError(
                f"{contraction.place}: traced into a graph, as mace-torch prepares models for "
                "torch.compile; use the model that it was prepared from"
            )


def _check_sizes(
    model: Module, interactions: list[Module], products: list[Module], channels: int
) -> None:
    """Refuse a file that claims a larger model than it has numbers for.

    Raises:
        ModelFileError: channels, layers or couplings are not what the tensors have.
    """
    embedding = model.child("node_embedding").child("linear").tensor("weight")
    n_species = len(model.tensor("atomic_numbers"))
    if embedding.numel() != n_species * channels:
        raise refuse(model, f"an embedding of {embedding.numel()} numbers for {channels} channels")
    for interaction, product in zip(interactions, products, strict=True):
        maps = ("linear_1", "linear_res") if is_gated(interaction) else ("linear",)
        for name in ("linear_up", *maps):
            linear_blocks(interaction.child(name))  # compares weights with irreps
        skip = self_connection(interaction)
        linear_blocks(skip) if is_shared(interaction) else species_blocks(skip, n_species)
        dim = sum(irrep.dim for _, irrep in basis_irreps(interaction))
        for contraction in product.child("symmetric_contractions").child("contractions").children():
            order = contraction.get("correlation")
            if type(order) is not int or not 1 <= order <= 4:
                raise refuse(contraction, f"products of order {order}")
            shape = contraction.tensor(f"U_matrix_{order}").shape
            if tuple(shape[-1 - order : -1]) != (dim,) * order:
                raise refuse(contraction, f"couplings of shape {tuple(shape)} for {dim} components")


def _interaction(interactions: list[Module]) -> dict[str, Any]:
    """The section ``interaction``."""
    first = interactions[0]
    if is_gated(first):
        return {"gated": gated_settings(interactions)}
    if not has_attention(first):
        return {"normalization": BLOCKS[first.kind][1]}
    widths = {_attention(interaction) for interaction in interactions}
    if len(widths) > 1:
        raise refuse(first, "attention blocks that differ from layer to layer")
    return {"attention": widths.pop()}


def _attention(interaction: Module) -> int:
    """How many numbers path weights know of each atom."""
    return linear_blocks(interaction.child("linear_down"))[SCALAR].shape[1]


def _updates(interactions: list[Module]) -> tuple[Update, Update]:
    """What the first layer does with features, and what later ones do."""
    kinds = [BLOCKS[interaction.kind] for interaction in interactions]
    if len(set(kinds[1:])) > 1 or len({normalization for _, normalization in kinds}) > 1:
        names = ", ".join(interaction.kind for interaction in interactions)
        raise refuse(interactions[0], f"layers of different kinds ({names})")
    return kinds[0][0], kinds[-1][0] if len(kinds) > 1 else "residual"


def _messages(interactions: list[Module], products: list[Module]) -> tuple[int, Irreps]:
    """Channels and irreps of the messages; of the last layer scalars alone are read."""
    made = [product.child("linear").irreps("irreps_out") for product in products]
    if SCALAR not in (irrep for _, irrep in made[-1]):
        last = "+".join(f"{count}x{irrep}" for count, irrep in made[-1])
        raise refuse(
            products[-1],
            f"a last layer of irreps {last}, without scalars (0e) to read energies from; "
            "mace-torch keeps the first of hidden_irreps there",
        )
    channels = {
        one_multiplicity(module, multiplets)
        for module, multiplets in zip(products, made, strict=True)
    }
    of_nodes = {
        one_multiplicity(layer, layer.child("linear_up").irreps("irreps_in"))
        for layer in interactions
    }
    if len(channels | of_nodes) > 1:
        raise refuse(products[0], "numbers of channels that differ from layer to layer")
    inner = [frozenset(irrep for _, irrep in multiplets) for multiplets in made[:-1]]
    if len(set(inner)) > 1:
        raise refuse(products[0], "messages that differ from layer to layer")
    found = inner[0] if inner else frozenset([SCALAR])
    return channels.pop(), Irreps(sorted(found, key=_natural_first))


def _natural_first(irrep: Irrep) -> tuple[int, bool]:
    return irrep.l, not irrep.is_natural


def _l_max(interaction: Module) -> int:
    harmonics = [irrep for _, irrep in interaction.child("conv_tp").irreps("irreps_in2")]
    if harmonics != list(spherical_irreps(len(harmonics) - 1)):
        raise refuse(interaction, "edge harmonics other than 0e+1o+2e+...")
    return len(harmonics) - 1


def _check_radial(model: Module, basis: Module, cutoff: Module) -> None:
    """Refuse constants that contradict each other: mace-torch computes with its copies.

    Raises:
        ModelFileError: names the constant.
    """
    r_max, p = model.number("r_max"), cutoff.number("p")
    if not r_max > 0:
        raise refuse(model, f"a cut-off r_max of {r_max:g}")
    if p != int(p):
        raise refuse(cutoff, f"an exponent p of {p:g}, no whole number")
    implied = ((cutoff, "r_max", r_max), (basis, "r_max", r_max))
    for module, name, expected in (*implied, (basis, "prefactor", math.sqrt(2 / r_max))):
        if not module.has_tensor(name):
            continue
        # files of float64 may carry the rounding of float32
        rounding = max(1e-6, 8 * torch.finfo(model.stored_dtype("r_max")).eps)
        if not math.isclose(module.number(name), expected, rel_tol=rounding):
            raise refuse(
                module,
                f"{name} is {module.number(name):.7g}, where the model's r_max of {r_max:.7g} "
                f"makes it {expected:.7g}",
            )


def _radial(model: Module, interactions: list[Module]) -> dict[str, Any]:
    embedding = model.child("radial_embedding")
    basis, cutoff = embedding.child("bessel_fn"), embedding.child("cutoff_fn")
    if basis.kind not in _BASES:
        raise refuse(basis, f"the radial basis {basis.kind}")
    _check_radial(model, basis, cutoff)
    shapes = {_radial_widths(interaction) for interaction in interactions}
    n_basis, *hidden = next(iter(shapes))
    if len(shapes) > 1 or not 1 <= len(hidden) < MAX_LAYERS:
        raise refuse(model, f"radial networks of widths {sorted(shapes)}")
    radial: dict[str, Any] = {
        "basis": _BASES[basis.kind],
        "n_basis": n_basis,
        "envelope_exponent": int(cutoff.number("p")),
        "hidden": hidden,
        "envelope_of": "basis" if model.get("apply_cutoff", True) else "path_weights",
    }
    if basis.kind == "BesselBasis":
        radial["trainable"] = _has_own_frequencies(model, basis, n_basis)
    elif basis.kind == "GaussianBasis":
        centres = torch.linspace(0, model.number("r_max"), n_basis, dtype=torch.float64)
        if not torch.allclose(basis.tensor("gaussian_weights"), centres, rtol=1e-6, atol=1e-6):
            raise refuse(basis, "Gaussians with trained centres")
    if embedding.has("distance_transform"):
        transform = embedding.child("distance_transform")
        if transform.kind not in _TRANSFORMS:
            raise refuse(transform, f"the distance transform {transform.kind}")
        radial["transform"] = _TRANSFORMS[transform.kind]
    return radial


def _radial_widths(interaction: Module) -> tuple[int, ...]:
    """Functions of the radial basis, and hidden widths of the network of path weights."""
    network = interaction.child("conv_tp_weights")
    if is_gated(interaction):
        embeddings = [interaction.child(f"{end}_embedding") for end in ("source", "target")]
        widths = [linear_blocks(embedding)[SCALAR].shape[1] for embedding in embeddings]
        return n_inputs(network) - sum(widths), *hidden_widths(network)
    shapes = [tuple(layer.tensor("weight").shape) for layer in network.children()]
    check_chain(network, [(n_in, n_out) for n_in, n_out in shapes])
    n_basis, *hidden = (n_in for n_in, _ in shapes)
    if has_attention(interaction):
        n_basis -= 2 * _attention(interaction)
    return n_basis, *hidden


def _has_own_frequencies(model: Module, basis: Module, n_basis: int) -> bool:
    """Whether Bessel functions have other frequencies than n pi / r_c."""
    usual = math.pi / model.number("r_max") * torch.arange(1, n_basis + 1, dtype=torch.float64)
    rounding = 8 * torch.finfo(basis.stored_dtype("bessel_weights")).eps
    same = torch.allclose(basis.tensor("bessel_weights"), usual, rtol=rounding, atol=0)
    return basis.is_parameter("bessel_weights") or not same


def _product(model: Module, products: list[Module]) -> dict[str, Any]:
    contractions = [
        contraction
        for product in products
        for contraction in product.child("symmetric_contractions").child("contractions").children()
    ]
    orders = {contraction.get("correlation") for contraction in contractions}
    if len(orders) != 1:
        raise refuse(model, f"correlation orders that differ from layer to layer ({orders})")
    shared = {len(contraction.tensor("weights_max")) == 1 for contraction in contractions}
    one_element = len(model.tensor("atomic_numbers")) == 1
    return {
        "correlation": orders.pop(),
        "weights": "shared" if shared == {True} and not one_element else "species",
    }


def _readout(model: Module, n_layers: int) -> dict[str, Any]:
    readouts = model.child("readouts").children()
    if len(readouts) not in (1, n_layers):
        raise refuse(model, f"{len(readouts)} readouts of {n_layers} layers")
    *inner, last = readouts
    for readout in inner:
        if readout.kind != "LinearReadoutBlock":
            raise refuse(readout, f"the readout {readout.kind} before the last")
    settings: dict[str, Any] = {"layers": "last" if len(readouts) < n_layers else "every"}
    if last.kind == "LinearReadoutBlock":
        return {**settings, "last": "linear"}
    kinds = {"NonLinearReadoutBlock": "mlp", "NonLinearBiasReadoutBlock": "biased_mlp"}
    if last.kind not in kinds:
        raise refuse(last, f"the readout {last.kind}")
    hidden = linear_blocks(last.child("linear_1"))[SCALAR].shape[1]
    plain = not last.child("non_linearity").child("acts").has("0")
    n_heads = len(heads_of(model))
    if hidden % n_heads:
        raise refuse(last, f"a readout of width {hidden} for {n_heads} heads")
    if plain and last.kind != "NonLinearReadoutBlock":
        raise refuse(last, f"the readout {last.kind} without a nonlinearity")
    kind = "two_linear" if plain else kinds[last.kind]
    return {**settings, "last": kind, "hidden": hidden // n_heads}


def heads_of(model: Module) -> list[str]:
    """Names of a model's heads; older files have one and do not say so.

    Raises:
        ModelFileError: two have the same name, or one has none.
    """
    heads = model.get("heads")
    if not isinstance(heads, list | tuple) or not heads:
        return ["Default"]
    if not all(isinstance(head, str | int) for head in heads):
        raise refuse(model, "heads whose names are no texts")
    names = [str(head) for head in heads]
    if len(set(names)) < len(names):
        raise refuse(model, f"heads of one name ({', '.join(names)})")
    return names
