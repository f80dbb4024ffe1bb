"""The peers' models are ours: as many weights, as many edges. Needs ``make peers``."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from clebsch.benchmarks import jobs, opponents
from clebsch.benchmarks.structures import system_of_size
from clebsch.factory import assemble
from clebsch.models.config import MessagePassingConfig
from clebsch.models.message_passing import Layer, MessagePassing
from clebsch.models.presets import model_config

QUICK = {"min_calls": 1, "min_seconds": 0.0, "max_seconds": 0.0}
SYSTEM = system_of_size(135)


def needs(peer: str) -> pytest.MarkDecorator:
    missing = not (opponents.PEERS_FOLDER / peer / ".installed").exists()
    return pytest.mark.skipif(missing, reason="run make peers")


pytestmark = pytest.mark.peers


def both(
    peer: str, config: MessagePassingConfig, mode: jobs.Mode = "energy_forces"
) -> tuple[MessagePassing, dict[str, Any]]:
    """Our network, and what the peer says of its own after a call; edges are compared here."""
    assert opponents.PEERS[peer].lacks(config) == []
    case = jobs.Case(SYSTEM, config, "small", SYSTEM.species)
    job = case.job(mode, "float32", 1, QUICK)
    theirs = jobs.run_job(opponents.PEERS[peer].contenders()[0], job)
    assert theirs["n_edges"] == SYSTEM.n_edges(config.cutoff)
    assert theirs["n_atoms"] == SYSTEM.n_atoms
    potential = assemble(
        config, SYSTEM.species, avg_num_neighbors=job["avg_num_neighbors"], dtype=torch.float32
    )
    assert isinstance(potential.model, MessagePassing)
    return potential.model, theirs


def n_parameters(network: MessagePassing) -> int:
    return sum(p.numel() for p in network.parameters())


@needs("mace-torch")
@pytest.mark.parametrize("first_layer", ["residual", "species_linear"])
@pytest.mark.parametrize("message_l", [0, 1, 2])
def test_mace_torch_has_the_same_weights_and_edges(
    message_l: int, first_layer: Literal["residual", "species_linear"]
):
    # Without cuequivariance mace-torch has the full table of couplings whatever it is asked for;
    # the reduced one spans the same functions with fewer weights.
    config = MessagePassingConfig(
        channels=8,
        message_l=message_l,
        update={"first_layer": first_layer},
        product={"couplings": "unreduced"},
    )
    network, theirs = both("mace-torch", config)
    assert n_parameters(network) == theirs["n_parameters"]


@needs("nequip")
@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({"preset": "nequip_3bpa"}, "step"),
        ({"preset": "nequip_acac", "layers": 3, "message_l": 2}, "energy_forces"),
        ({"preset": "nequip_small", "parity": "natural", "readout": {"last": "mlp"}}, "step"),
        (
            {
                "preset": "nequip_small",
                "radial": {"hidden": [32]},
                "update": {"self_connection": "none", "gate": "tanh"},
                "readout": {"last": "linear"},
            },
            "energy_forces",
        ),
    ],
)
def test_nequip_has_the_same_edges_and_the_same_weights_after_its_first_layer(
    settings: dict[str, Any], mode: jobs.Mode
):
    config = model_config({**settings, "channels": 8})
    assert isinstance(config, MessagePassingConfig)
    network, theirs = both("nequip", config, mode)
    difference = n_parameters(network) - theirs["n_parameters"]
    assert difference == sum(wider_first_layer(network, config.radial.hidden[-1]).values())


def wider_first_layer(network: MessagePassing, radial_width: int) -> dict[str, int]:
    """How many more weights ours has: nequip begins with a channel for each element.

    Its self-connections are tensor products with the embedding of an atom's element; with as many
    features in it as there are elements they are a matrix for each element, as published. The
    first layer has none.
    """
    first = network.layers[0]
    assert isinstance(first, Layer)
    basis = first.atomic_basis
    narrow, wide = network.embedding.shape
    matrices = [len(linear.weights) for linear in basis.linears]
    connected = first.species_linear
    return {
        "embedding": narrow * (wide - narrow),
        "map of the senders": wide**2 - narrow**2,
        "path weights": radial_width * basis.plan.n_paths * (wide - narrow),
        "map of the sums": matrices[0] * (wide - narrow) * wide,
        "self-connection": 0 if connected is None else sum(w.numel() for w in connected.weights),
    }
