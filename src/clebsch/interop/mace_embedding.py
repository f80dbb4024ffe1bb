"""Embeddings of total charge, spin and the like in mace-torch's models, for fixed values of them.

Such a model adds to the features of every atom a vector that depends on properties of the whole
structure, and to every atom's energy a number. With the properties fixed both are constants of the
elements: the model becomes one without these embeddings, for structures of that charge and spin.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import silu

from clebsch.algebra import SCALAR
from clebsch.errors import ConfigError, did_you_mean
from clebsch.interop.blocks import linear_blocks
from clebsch.interop.modules import Module, refuse


def embedded_properties(model: Module) -> list[str]:
    """Names of the properties that a model embeds; none of most."""
    if not model.has("joint_embedding"):
        return []
    return list(model.child("joint_embedding").child("embedders").names())


def check_properties(model: Module, properties: Mapping[str, float]) -> None:
    """Refuse values that are none or of what is not embedded, and embeddings without a value.

    Raises:
        ConfigError: names the property.
    """
    known = embedded_properties(model)
    for name in properties:
        if name not in known:
            hint = did_you_mean(name, known) if known else "It embeds none."
            raise ConfigError(f"{model.place}: the model embeds no property {name!r}. {hint}")
        if not math.isfinite(properties[name]):
            raise ConfigError(f"{model.place}: {name} is a finite number, not {properties[name]}")
    missing = [name for name in known if name not in properties]
    if missing:
        example = ",".join(f"{name}=0" for name in known)
        raise ConfigError(
            f"{model.place}: the model embeds {', '.join(known)} of a structure; fix a value of "
            f"{', '.join(missing)}: clebsch convert {shlex.quote(model.place)} NEW.safetensors "
            f"--fix={shlex.quote(example)}, "
            "or clebsch.load(..., properties={...})"
        )


def initial_features(model: Module, properties: Mapping[str, float]) -> Tensor:
    """[Z, K] float64: what every element's features begin with."""
    table = linear_blocks(model.child("node_embedding").child("linear"))[SCALAR]
    features = table / len(table) ** 0.5
    if not model.has("joint_embedding"):
        return features
    joint = model.child("joint_embedding")
    parts = [
        _embedded(joint.child("embedders").child(name), joint, name, properties[name])
        for name in embedded_properties(model)
    ]
    weight = joint.child("project").child("0").tensor("weight")
    return features + silu(weight @ torch.cat(parts))


def embedding_energies(model: Module, properties: Mapping[str, float], head: int) -> Tensor:
    """[Z] float64, eV: what is added to every element's reference energy."""
    features = initial_features(model, properties)
    if not model.has("embedding_readout"):
        return features.new_zeros(len(features))
    weight = linear_blocks(model.child("embedding_readout").child("linear"))[SCALAR]
    return features @ weight[:, head] / len(weight) ** 0.5


def _embedded(embedder: Module, joint: Module, name: str, value: float) -> Tensor:
    """The vector of one property: out of a table, or made by a network of the number."""
    specification = joint.get("specs", {}).get(name, {})
    if specification.get("per", "graph") != "graph":
        raise refuse(embedder, f"the embedding of a property of atoms ({name})")
    if embedder.kind == "Embedding":
        table = embedder.tensor("weight")
        row = value + (specification.get("offset") or 0)
        if row != int(row) or not 0 <= row < len(table):
            lowest = -int(specification.get("offset") or 0)
            raise ConfigError(
                f"{embedder.place}: {name} is a whole number from {lowest} to "
                f"{lowest + len(table) - 1}, not {value:g}"
            )
        return table[int(row)]
    first, last = embedder.child("0"), embedder.child("2")
    inputs = torch.full((first.tensor("weight").shape[1],), float(value), dtype=torch.float64)
    hidden = silu(first.tensor("weight") @ inputs + first.tensor("bias"))
    return last.tensor("weight") @ hidden + last.tensor("bias")
