"""Building potentials from a preset or configuration, elements and a data set's statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from ase.data import atomic_numbers
from torch import nn

from clebsch.elements import not_an_element
from clebsch.errors import ConfigError
from clebsch.models.ace import ACE
from clebsch.models.allegro import Allegro
from clebsch.models.config import ACEConfig, AllegroConfig, ModelConfig
from clebsch.models.message_passing import MessagePassing
from clebsch.models.network import Network
from clebsch.models.presets import model_config
from clebsch.nn.contact import ContactRepulsion
from clebsch.nn.energy import EnergyHead, StoredZBLRepulsion, ZBLRepulsion
from clebsch.nn.floor import EnergyFloor
from clebsch.potential import Potential

if TYPE_CHECKING:
    from clebsch.data.statistics import Statistics

#: Average number of neighbours assumed without data: typical of molecules and solids within 5
#: Angstrom.
TYPICAL_NEIGHBORS = 16.0


def build(
    model: str | Mapping[str, Any] | ModelConfig,
    species: Sequence[str],
    *,
    references: Mapping[str, float] | None = None,
    statistics: Statistics | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Potential:
    """A potential with random weights.

    Args:
        model: a preset's name (``clebsch.PRESETS``), a configuration, or a mapping of settings.
        species: element symbols; kept in order of atomic number.
        references: the energy of each element's isolated atom in eV; zero if None.
        statistics: sets the average number of neighbours, the scale (as the configuration says)
            and the mean interaction energy; without it they are 16, 1 and 0.
        dtype: what the network computes in, torch.float32 or torch.float64.
        seed: of the weights; torch's global generator is left as it was.

    Raises:
        ConfigError: an unknown preset, setting, element or dtype, or references that miss an
            element or are not finite numbers.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ConfigError(f"dtype is torch.float32 or torch.float64, not {dtype!r}")
    symbols = _sorted_species(species)
    if references is not None:
        _check_references(references, symbols)
    config = model_config(model)
    potential = assemble(
        config,
        symbols,
        references=[0.0 if references is None else references[s] for s in symbols],
        avg_num_neighbors=TYPICAL_NEIGHBORS if statistics is None else statistics.avg_num_neighbors,
        scale=1.0 if statistics is None else _scale(config, statistics),
        mean_energy=0.0 if statistics is None else statistics.mean_interaction_energy,
        dtype=dtype,
        seed=seed,
    )
    return potential.use_backend()


def _check_references(references: Mapping[str, float], symbols: Sequence[str]) -> None:
    if not isinstance(references, Mapping):
        raise ConfigError(
            f"references are energies by element, such as {{{symbols[0]!r}: -13.6}}, not "
            f"{references!r}"
        )
    for symbol, energy in references.items():
        if problem := not_an_element(symbol):
            raise ConfigError(f"references: {problem}")
        try:
            is_finite = math.isfinite(energy)
        except TypeError:  # no number at all
            is_finite = False
        if not is_finite:
            raise ConfigError(f"the reference energy of {symbol} is {energy!r}")
    missing = [symbol for symbol in symbols if symbol not in references]
    if missing:
        raise ConfigError(
            f"no reference energy for {', '.join(missing)}; given for {', '.join(references)}"
        )


@torch.inference_mode(False)  # parameters must be usable outside of it
def assemble(
    config: ModelConfig,
    species: Sequence[str],
    *,
    references: Sequence[float] | None = None,
    avg_num_neighbors: float = TYPICAL_NEIGHBORS,
    scale: float = 1.0,
    mean_energy: float = 0.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Potential:
    """Assemble a potential from numbers; ``build`` and the reader of model files call this."""
    with torch.random.fork_rng(devices=[]), _default_dtype(torch.float32):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs too
        model = _network(config, species, float(avg_num_neighbors)).to(dtype)
    head = EnergyHead(
        references or [0.0] * len(species),
        scale,
        mean_energy,
        config.mean_energy_form,
        config.cutoff,
    )
    numbers = [atomic_numbers[symbol] for symbol in species]
    prior: nn.Module | None = None
    if config.zbl == "mace_torch":
        prior = StoredZBLRepulsion(numbers, config.cutoff)
        prior.scale.fill_(scale)
    elif config.zbl:
        prior = ZBLRepulsion(numbers, config.cutoff)
    contact = ContactRepulsion(numbers, config.cutoff) if config.contact_repulsion else None
    floor = EnergyFloor(len(species)) if config.energy_floor else None
    return Potential(config, species, model, head, prior, contact, floor)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set the dtype in which torch draws numbers, so that a seed always gives the same weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _scale(config: ModelConfig, statistics: Statistics) -> float:
    """The unit of the network's energies, eV."""
    if config.scale == "forces_rms":
        return statistics.forces_rms
    return statistics.interaction_energy_std if config.scale == "energy_std" else 1.0


def _network(config: ModelConfig, species: Sequence[str], avg_num_neighbors: float) -> Network:
    if isinstance(config, ACEConfig):
        return ACE(config, species, avg_num_neighbors)
    if isinstance(config, AllegroConfig):
        return Allegro(config, len(species), avg_num_neighbors)
    numbers = [atomic_numbers[symbol] for symbol in species]
    return MessagePassing(config, numbers, avg_num_neighbors)


def _sorted_species(species: Sequence[str]) -> list[str]:
    if isinstance(species, str):  # a sequence of letters, some of which are elements
        raise ConfigError(f"species is a list of element symbols, such as [{species!r}]")
    for symbol in species:
        if problem := not_an_element(symbol):
            raise ConfigError(problem)
    if not species:
        raise ConfigError("a potential needs at least one element")
    return sorted(set(species), key=lambda symbol: atomic_numbers[symbol])
