"""Atoms much closer than any in training: there a model guesses, and often wrongly.

How close atoms came in training is in the model file, for each pair of elements.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clebsch.graph import AtomGraph, edge_vectors

#: Atoms may come this much closer than in training before it is said: dynamics sees more of a
#: vibration than the structures that were trained on.
CLOSER = 0.9


@dataclass(frozen=True)
class Contact:
    """Two atoms much closer than any of their elements in training.

    Attributes:
        pair: their elements, such as "C-H".
        atoms: the indices of both; one index twice is an atom and an image of its own.
        distance: Angstrom.
        trained: the shortest distance of such a pair in training, Angstrom; None if none was
            within the cut-off.
    """

    pair: str
    atoms: list[int]
    distance: float
    trained: float | None


def shortest_distances(graph: AtomGraph, species: Sequence[str]) -> dict[str, float]:
    """The length in Angstrom of the shortest edge of each pair of elements, such as "C-H"."""
    pairs, lengths = _pairs(graph, len(species)), _lengths(graph)
    return {_name(p, species): float(lengths[pairs == p].min()) for p in pairs.unique().tolist()}


def closest(known: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The shortest of several distances of each pair of elements, of those that have the pair."""
    shortest: dict[str, float] = {}
    for distances in known:
        for pair, distance in distances.items():
            shortest[pair] = min(distance, shortest.get(pair, distance))
    return shortest


def pair_table(distances: Mapping[str, float], species: Sequence[str]) -> list[list[float]]:
    """Shortest distances [S, S], Angstrom, by indices of species; inf of pairs that have none."""
    n, inf = len(species), float("inf")
    return [[distances.get(_name(i * n + j, species), inf) for j in range(n)] for i in range(n)]


def find_contacts(
    graph: AtomGraph, species: Sequence[str], trained: Mapping[str, float], cutoff: float
) -> list[Contact]:
    """The closest contact of each pair of elements that has any, in the order of the elements.

    Args:
        graph: of one structure.
        species: element symbols, which the graph's species are indices into.
        trained: shortest distances in training, as ``shortest_distances`` gives them.
        cutoff: Angstrom, of the model; pairs that training had nowhere within it are contacts from
            there on.
    """
    names = [_name(pair, species) for pair in range(len(species) ** 2)]
    limits = [CLOSER * trained[name] if name in trained else cutoff for name in names]
    pairs, lengths = _pairs(graph, len(species)), _lengths(graph)
    close = lengths < torch.tensor(limits, dtype=torch.float64, device=lengths.device)[pairs]
    found = []
    for pair in pairs[close].unique().tolist():
        edge = int(torch.where(pairs == pair, lengths, torch.inf).argmin())
        ends = [int(graph.senders[edge]), int(graph.receivers[edge])]
        name = names[pair]
        found.append(Contact(name, ends, float(lengths[edge]), trained.get(name)))
    return found


def _lengths(graph: AtomGraph) -> Tensor:
    return torch.linalg.vector_norm(edge_vectors(graph, graph.positions), dim=1)


def _pairs(graph: AtomGraph, n_species: int) -> Tensor:
    """[E]: a number for the two elements of each edge, whichever comes first."""
    ends = torch.stack([graph.species[graph.senders], graph.species[graph.receivers]])
    return ends.amin(0) * n_species + ends.amax(0)


def _name(pair: int, species: Sequence[str]) -> str:
    return "-".join(sorted((species[pair // len(species)], species[pair % len(species)])))
