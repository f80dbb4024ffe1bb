"""Structures and potentials that many tests share."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule

import clebsch
from clebsch.data.statistics import Statistics
from clebsch.models.config import ACEConfig, AllegroConfig, MessagePassingConfig, ModelConfig
from clebsch.models.presets import model_config

SPECIES = ["H", "C", "O", "Cu", "Au"]
#: Where ``potential`` puts them: pytest's --device.
DEVICE = "cpu"
REFERENCES = {"H": -13.6, "C": -1027.0, "O": -2042.0, "Cu": -3.5, "Au": -3.2}


def _smaller(preset: str, **settings: Any) -> MessagePassingConfig:
    """A preset small enough to be tested on everything."""
    small = {"channels": 4, "l_max": 2, "message_l": 1, "cutoff": 3.5}
    return model_config({"preset": preset, **small, **settings})


def stretched_energies(
    potential: clebsch.Potential, atoms: Atoms, factors: Sequence[float]
) -> list[float]:
    """Energies with the edges of ``atoms``, and positions times each factor: pairs in a skin."""
    graph = potential.graph(atoms)
    return [
        float(potential(graph.with_positions(graph.positions * factor), "energy").energy)
        for factor in factors
    ]


#: Every architecture in the battery: a new model adds its line here.
MODELS: dict[str, ModelConfig] = {
    "mace": MessagePassingConfig(
        channels=4, l_max=2, message_l=1, cutoff=3.5, radial={"hidden": (8,)}
    ),
    "mace published form": MessagePassingConfig(
        channels=4,
        l_max=2,
        message_l=2,
        cutoff=3.5,
        update={"first_layer": "residual"},
        radial={"hidden": (8,)},
    ),
    "mace three layers with ZBL": MessagePassingConfig(
        channels=3,
        layers=3,
        l_max=1,
        message_l=1,
        product={"correlation": 2},
        cutoff=3.0,
        zbl=True,
    ),
    "mace with densities, Gaussians and the Agnesi transform": MessagePassingConfig(
        channels=3,
        layers=3,
        l_max=2,
        message_l=1,
        message_irreps="0e+1o+1e",
        cutoff=3.0,
        radial={
            "basis": "gaussian",
            "transform": "agnesi",
            "envelope_of": "path_weights",
            "hidden": (8,),
        },
        interaction={"normalization": "density"},
        product={"weights": "shared"},
        update={"later_layers": "species_linear"},
        mean_energy="every_atom",
        zbl="mace_torch",
    ),
    "mace with gates of neighbours": MessagePassingConfig(
        channels=3,
        l_max=1,
        message_l=1,
        cutoff=3.0,
        radial={"envelope_of": "path_weights", "n_basis": 4, "hidden": (8,)},
        interaction={"gated": {"channels": 2, "embedding": 3, "density_hidden": 4}},
        product={"correlation": 2},
        update={"first_layer": "residual", "self_connection": "linear"},
    ),
    "mace with attention": MessagePassingConfig(
        channels=3,
        l_max=1,
        message_l=1,
        cutoff=3.0,
        radial={"envelope_of": "path_weights", "n_basis": 4, "hidden": (8,)},
        interaction={"attention": 3},
        product={"correlation": 2},
        update={"first_layer": "residual", "self_connection": "linear"},
    ),
    "mace with Chebyshev polynomials and the soft transform": MessagePassingConfig(
        channels=3,
        layers=1,
        l_max=1,
        message_l=0,
        cutoff=3.0,
        radial={"basis": "chebyshev", "n_basis": 4, "transform": "soft", "hidden": (8,)},
    ),
    "nequip": _smaller("nequip_acac", layers=3, radial={"hidden": (8,)}),
    "botnet": _smaller("botnet_acac", layers=3),
    "pace": _smaller("pace_acac", radial={"hidden": (8,)}),
    "pace with smooth Bernstein polynomials": _smaller(
        "pace_ethanol", l_max=1, message_l=1, radial={"hidden": (8,), "n_basis": 6}
    ),
    "mace with gates, both parities and summed paths": _smaller(
        "mace_small",
        parity="full",
        interaction={"paths": "summed", "normalization": "sqrt_neighbors"},
        product={"correlation": 2},
        update={"gate": "tanh", "self_connection": "linear"},
        radial={"hidden": (8,)},
    ),
    "allegro": AllegroConfig(
        channels=4, cutoff=3.5, latent=8, two_body_hidden=(8,), latent_hidden=(8,)
    ),
    "allegro three layers, natural, linear latents": AllegroConfig(
        channels=3,
        layers=3,
        l_max=1,
        parity="natural",
        cutoff=3.0,
        latent=5,
        two_body_hidden=(6, 7),
        latent_hidden=(4,),
        latent_nonlinearity="none",
        readout_hidden=3,
        mean_energy="constant",
    ),
    "allegro three layers, full": AllegroConfig(
        channels=2, layers=3, l_max=2, cutoff=3.0, latent=6, two_body_hidden=(), latent_hidden=()
    ),
    "ace": ACEConfig(
        cutoff=3.5,
        max_degree=(5, 3, 2),
        max_degree_of={"C": (4, 4, 2), "H": 1.5},
        neighbor_degree={"O": 0.5},
        committee=2,
    ),
    "ace order four with ZBL": ACEConfig(
        cutoff=3.0, correlation=4, max_degree=(4, 3, 2, 2), l_weight=1.5, committee=0, zbl=True
    ),
}


#: One of each of their architectures, with a repulsion of its own and without.
ARCHITECTURES = ["mace", "mace three layers with ZBL", "allegro", "ace order four with ZBL"]


def statistics() -> Statistics:
    """As a data set would give them."""
    return Statistics(
        avg_num_neighbors=6.0,
        forces_rms=1.3,
        mean_interaction_energy=-2.0,
        interaction_energy_std=1.0,
    )


def potential(
    model: str = "mace", dtype: torch.dtype = torch.float64, backend: str = "auto", seed: int = 0
) -> clebsch.Potential:
    """A random potential that knows all elements used in tests."""
    built = clebsch.build(
        MODELS[model],
        SPECIES,
        references=REFERENCES,
        statistics=statistics(),
        dtype=dtype,
        seed=seed,
    )
    return built.to(DEVICE).use_backend(backend)


def copied_potential(
    model: str = "mace", dtype: torch.dtype = torch.float64, backend: str = "auto"
) -> clebsch.Potential:
    """What ``potential`` returns, copied from one that each process builds and checks once.

    A copy costs a twentieth. It has its own weights, counts and recordings. What is tested of
    building itself needs ``potential``.
    """
    return copy.deepcopy(_built_once(model, dtype, backend, DEVICE))


@functools.cache
def _built_once(model: str, dtype: torch.dtype, backend: str, device: str) -> clebsch.Potential:
    return potential(model, dtype, backend)


def tiny(
    elements: str, seed: int = 0, dtype: torch.dtype = torch.float64, **settings: Any
) -> clebsch.Potential:
    """A MACE of two channels with random weights, of a cut-off of 4 Angstrom."""
    config = {"channels": 2, "l_max": 1, "cutoff": 4.0} | settings
    return clebsch.build(config, elements.split(), dtype=dtype, seed=seed)


def rattled(atoms: Atoms, seed: int = 0, by: float = 0.1) -> Atoms:
    """A copy with random displacements."""
    copy = atoms.copy()
    copy.positions += by * np.random.default_rng(seed).normal(size=(len(atoms), 3))
    return copy


def ethanol(seed: int = 0) -> Atoms:
    """A rattled molecule without a cell."""
    return rattled(molecule("CH3CH2OH"), seed)


def skewed_cell() -> Atoms:
    """A small, strongly skewed periodic cell with self-images within the cut-off."""
    atoms = bulk("Cu", cubic=False) * (2, 1, 1)
    atoms.symbols[0] = "Au"
    skew = np.array([[1.0, 0.35, 0], [0, 1, -0.2], [0.1, 0, 1.1]])
    atoms.set_cell(atoms.cell.array @ skew, scale_atoms=True)
    return rattled(atoms)


def slab() -> Atoms:
    """Two periodic directions, no third lattice vector."""
    atoms = fcc111("Cu", (2, 2, 2), vacuum=None, periodic=False)
    atoms.pbc = [True, True, False]
    atoms.cell[2] = 0
    return rattled(atoms)


STRUCTURES = {"molecule": ethanol, "skewed cell": skewed_cell, "slab": slab}


def central_difference(function, step: float) -> float:  # type: ignore[no-untyped-def]
    """Fourth order, so that steps large against rounding can be taken."""
    near = function(step) - function(-step)
    far = function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)


def body_order_remainder(energy_of: Callable[[Atoms], float], n_bodies: int) -> float:
    """Inclusion-exclusion over the neighbours of a central atom: the n-body remainder."""
    rng = np.random.default_rng(3)
    directions = rng.normal(size=(n_bodies - 1, 3))
    directions *= 1.3 / np.linalg.norm(directions, axis=1)[:, None]
    total = 0.0
    for subset in range(2 ** (n_bodies - 1)):
        chosen = [i for i in range(n_bodies - 1) if subset >> i & 1]
        atoms = Atoms(["O", *["H"] * len(chosen)], [[0, 0, 0], *directions[chosen]])
        total += (-1) ** (n_bodies - 1 - len(chosen)) * energy_of(atoms)
    return total
