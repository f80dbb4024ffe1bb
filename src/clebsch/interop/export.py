"""Potentials for mace-torch: weights in its form, and a script that makes its ``.model`` of them.

mace-torch's files can only be written where it is installed. So a folder is written: weights and
settings as safetensors and JSON, and ``build_model.py``, which the other environment runs. It makes
the model, solves for the weights of its redundant couplings, and checks energies and forces of a
structure before it saves anything.
"""

from __future__ import annotations

import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers
from safetensors.torch import save
from torch import Tensor

from clebsch.agreement import example_structure, without_guards
from clebsch.algebra import spherical_irreps
from clebsch.errors import ConfigError
from clebsch.files import atomic_write
from clebsch.interop.blocks import E3NN_SILU_GAIN, REPULSION_CONSTANTS, TRANSFORM_CONSTANTS
from clebsch.kernels.reference import SILU_GAIN
from clebsch.models.config import MessagePassingConfig
from clebsch.models.message_passing import AtomicBasis, Layer, MessagePassing
from clebsch.nn.energy import StoredZBLRepulsion
from clebsch.nn.linear import IrrepsLinear, SpeciesLinear
from clebsch.nn.path_weights import RadialNetwork, RadialTable
from clebsch.nn.product import ProductBasis
from clebsch.nn.radial import BesselBasis
from clebsch.nn.readout import LinearReadout, MLPReadout, TwoLinearReadout
from clebsch.potential import Potential

#: What our SiLU is, in units of e3nn's.
_GAIN = SILU_GAIN / E3NN_SILU_GAIN

#: Settings that mace-torch can follow, with the values that it can.
_EXPRESSIBLE: dict[str, tuple[Any, ...]] = {
    "parity": ("natural",),
    "message_irreps": (None,),
    "radial.weights": ("mlp",),
    "radial.basis": ("bessel", "gaussian"),  # with chebyshev, its forces are of another energy
    "radial.envelope": ("polynomial",),
    "interaction.linear_up": (True,),
    "interaction.paths": ("apart",),
    "interaction.attention": (None,),
    "interaction.gated": (None,),
    "product.slots": ("shared",),
    "update.self_connection": ("species",),
    "update.gate": ("none",),
    "update.last_layer": ("scalars",),
    "readout.inner": ("linear",),
    "zbl": (False, "mace_torch"),
}


def export_mace_torch(potential: Potential, folder: Path | str) -> None:
    """Write a folder from which mace-torch 0.3.x can make a model that gives the same numbers.

    But where atoms are as they never were in training: contact repulsion and energy floor stay
    behind.

    Args:
        potential: a message-passing potential.
        folder: is made if need be; files of an earlier export are replaced.

    Raises:
        ConfigError: mace-torch has nothing like the potential; names the setting.
    """
    config, model = potential.config, potential.model
    if not isinstance(config, MessagePassingConfig) or not isinstance(model, MessagePassing):
        raise ConfigError(f"mace-torch has no model like {config.name}")
    _check_expressible(potential, config)
    if any(isinstance(module, RadialTable) for module in model.modules()):
        raise ConfigError("tabulated path weights are no weights: export the potential itself")
    numbers = [atomic_numbers[symbol] for symbol in potential.species]
    settings = {
        "model": _settings(potential, config, model, numbers),
        "residual": [config.update.first_layer, config.update.later_layers],
        "density": config.interaction.normalization == "density",
        "hidden_irreps": _text(config.channels, config.message_l),
        "readout": config.readout.hidden,
        "gate": config.readout.last == "mlp",
        "dtype": str(potential.dtype).removeprefix("torch."),
        "reference": _answers(potential),
    }
    weights = {name: tensor.detach().double().contiguous() for name, tensor in _weights(model)}
    for name, tensor in _constants(potential, model, numbers):
        weights[name] = tensor.double().contiguous()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "weights.safetensors", save(weights))
    atomic_write(folder / "settings.json", json.dumps(settings, indent=1))
    script = files("clebsch.interop").joinpath("build_model.py").read_text(encoding="utf-8")
    atomic_write(folder / "build_model.py", script)


def _check_expressible(potential: Potential, config: MessagePassingConfig) -> None:
    if config.product is None:
        raise ConfigError("mace-torch has no models without a product basis (model.product: null)")
    if config.l_max == 0:
        raise ConfigError("mace-torch makes no model of model.l_max=0")
    for key, allowed in _EXPRESSIBLE.items():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if value not in allowed:
            shown = ", ".join(str(each) for each in allowed)
            raise ConfigError(f"mace-torch has no model.{key}={value}; it has {shown}")
    last = config.readout.last
    if last == "biased_mlp" or (config.layers == 1) != (last == "linear"):
        raise ConfigError(f"mace-torch has no model.readout.last={last} of {config.layers} layers")
    if potential.head.form == "density" and float(potential.head.mean_energy):
        raise ConfigError("mace-torch has no model.mean_energy=density; it has every_atom, none")
    prior = potential.prior
    if isinstance(prior, StoredZBLRepulsion) and prior.scale != potential.head.scale:
        raise ConfigError("mace-torch's ZBL repulsion is scaled as its network is, not otherwise")


def _settings(
    potential: Potential,
    config: MessagePassingConfig,
    model: MessagePassing,
    numbers: list[int],
) -> dict[str, Any]:
    """Arguments of mace-torch's constructor that are plain values."""
    assert config.product is not None
    divided = {
        "neighbors": model.avg_num_neighbors,
        "sqrt_neighbors": math.sqrt(model.avg_num_neighbors),
    }
    transforms = {"none": "None", "agnesi": "Agnesi", "soft": "Soft"}
    head = potential.head
    shift = float(head.mean_energy) if head.form == "constant" else 0.0
    return {
        "r_max": config.cutoff,
        "num_bessel": config.radial.n_basis,
        "num_polynomial_cutoff": config.radial.envelope_exponent,
        "max_ell": config.l_max,
        "num_interactions": config.layers,
        "num_elements": len(numbers),
        "atomic_numbers": numbers,
        "atomic_energies": potential.references.tolist(),
        "avg_num_neighbors": divided.get(config.interaction.normalization, 1.0),
        "correlation": config.product.correlation,
        "radial_MLP": list(config.radial.hidden),
        "radial_type": config.radial.basis,
        "distance_transform": transforms[config.radial.transform],
        "apply_cutoff": config.radial.envelope_of == "basis",
        "use_agnostic_product": config.product.weights == "shared",
        "use_last_readout_only": config.readout.layers == "last" and config.layers > 1,
        "pair_repulsion": config.zbl == "mace_torch",
        "atomic_inter_scale": float(potential.head.scale),
        "atomic_inter_shift": shift,
    }


def _weights(model: MessagePassing) -> list[tuple[str, Tensor]]:
    """Weights by mace-torch's names, and couplings with their weights under names of our own."""
    n_species = len(model.embedding)
    found = [("node_embedding.linear.weight", model.embedding.flatten() * math.sqrt(n_species))]
    for t, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        basis, place = layer.atomic_basis, f"interactions.{t}"
        assert isinstance(basis, AtomicBasis)
        assert isinstance(basis.radial, RadialNetwork)
        assert isinstance(basis.linear_up, IrrepsLinear)
        assert isinstance(layer.product, ProductBasis)
        found.append((f"{place}.linear_up.weight", _flat(basis.linear_up)))
        matrices = [*basis.radial.weights, basis.radial.last.flatten(1)]
        for k, weight in enumerate(matrices):
            found.append((f"{place}.conv_tp_weights.layer{k}.weight", weight * (_GAIN if k else 1)))
        (linear,) = basis.linears
        assert isinstance(linear, IrrepsLinear)
        found.append((f"{place}.linear.weight", _flat(linear)))
        if basis.density is not None:
            found.append((f"{place}.density_fn.layer0.weight", basis.density.weight[:, None]))
        assert layer.species_linear is not None
        found.append((f"{place}.skip_tp.weight", _flat_species(layer.species_linear)))
        found.append((f"products.{t}.linear.weight", _flat(layer.linear)))
        found += _couplings(layer.product, t)
    for t, readout in enumerate(model.readouts):
        if isinstance(readout, LinearReadout):
            found.append((f"readouts.{t}.linear.weight", readout.weight))
            continue
        assert isinstance(readout, MLPReadout | TwoLinearReadout)
        gain = _GAIN if isinstance(readout, MLPReadout) else 1.0
        found.append((f"readouts.{t}.linear_1.weight", readout.inner.flatten()))
        found.append((f"readouts.{t}.linear_2.weight", readout.outer * gain))
    return found


def _couplings(product: ProductBasis, t: int) -> list[tuple[str, Tensor]]:
    """Couplings [n, 2L + 1, Q, ..., Q] and their weights [Z, n, K]."""
    plan, found = product.plan, []
    for k, (bases, slices) in enumerate(zip(plan.bases, plan.weight_slices, strict=True)):
        for basis, rows in zip(bases, slices, strict=True):
            name = f"couplings.{t}.{k}.{basis.order}"
            found.append((f"{name}.tensor", torch.from_numpy(basis.dense())))
            found.append((f"{name}.weights", product.weights[:, rows]))
    return found


def _constants(
    potential: Potential, model: MessagePassing, numbers: list[int]
) -> list[tuple[str, Tensor]]:
    """Buffers of mace-torch; of its tables of radii, the elements' entries."""
    found = []
    basis, transform, prior = model.radial_basis, model.transform, potential.prior
    if isinstance(basis, BesselBasis) and basis.frequencies is not None:
        weights = basis.frequencies.detach() / basis.cutoff
        found.append(("radial_embedding.bessel_fn.bessel_weights", weights))
    if transform is not None:
        names = TRANSFORM_CONSTANTS[transform.form]
        place = "radial_embedding.distance_transform"
        found += [(f"{place}.{n}", c) for n, c in zip(names, transform.constants, strict=True)]
        found.append((f"{place}.covalent_radii", transform.radii))
    if isinstance(prior, StoredZBLRepulsion):
        place = "pair_repulsion_fn"
        screening = zip(REPULSION_CONSTANTS, prior.screening, strict=True)
        found += [(f"{place}.{n}", c) for n, c in screening]
        found.append((f"{place}.c", prior.coefficients))
        found.append((f"{place}.covalent_radii", prior.radii))
    return found


def _flat(linear: IrrepsLinear) -> Tensor:
    return torch.cat([weight.flatten() for weight in linear.weights])


def _flat_species(linear: SpeciesLinear) -> Tensor:
    """[inputs, Z, outputs] of each irrep, one after another."""
    blocks = [weight.transpose(0, 1) * math.sqrt(len(weight)) for weight in linear.weights]
    return torch.cat([block.flatten() for block in blocks])


def _text(channels: int, message_l: int) -> str:
    return "+".join(f"{channels}x{irrep}" for irrep in spherical_irreps(message_l))


def _answers(potential: Potential) -> dict[str, Any]:
    """A structure, and the energy and forces that the network and its repulsion give for it."""
    atoms = example_structure(potential)
    with without_guards(potential):
        prediction = potential(potential.graph(atoms), ("energy", "forces"))
    assert prediction.energy is not None
    assert prediction.forces is not None
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
        "pbc": atoms.pbc.tolist(),
        "energy": float(prediction.energy),
        "forces": prediction.forces.tolist(),
    }
