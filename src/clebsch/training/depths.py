"""How strongly atoms are bound in training structures, for a potential's ``EnergyFloor``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from clebsch.data.loader import BatchSampler, LabelledGraphs
from clebsch.potential import Potential
from clebsch.training.prepare import BATCH_EDGES, Prepared

#: Structures that are asked, at most: the floor lies well below the lowest of them.
MOST_ASKED = 1000


@contextmanager
def with_floor(prepared: Prepared) -> Iterator[None]:
    """Have the potential's floor for a while, under its energies as they are now."""
    potential, floor = prepared.potential, prepared.potential.floor
    if floor is None or prepared.depths is None:
        yield
        return
    floor.depths.copy_(torch.maximum(prepared.depths, deepest(potential, prepared.train)))
    try:
        yield
    finally:
        floor.depths.zero_()


@torch.no_grad()
def deepest(potential: Potential, graphs: LabelledGraphs) -> Tensor:
    """The most by which an atom's energy is below its reference, by species: [S] float64, eV.

    Args:
        potential: what gives the energies.
        graphs: the structures; of more than ``MOST_ASKED`` some, evenly spaced.
    """
    depths = torch.zeros_like(potential.references)
    chosen = range(0, len(graphs), math.ceil(len(graphs) / MOST_ASKED))
    sampler = BatchSampler([graphs.n_edges[i] for i in chosen], batch_edges=BATCH_EDGES)
    for batch in sampler.in_order():
        graph = graphs.batch([chosen[i] for i in batch]).graph.to(potential.device)
        energies = potential(graph, "site_energies").site_energies
        assert energies is not None
        below = potential.references[graph.species] - energies
        depths.scatter_reduce_(0, graph.species, below, "amax")
    return depths
