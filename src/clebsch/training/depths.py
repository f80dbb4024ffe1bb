"""How strongly atoms are bound in training structures, for a potential's ``EnergyFloor``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from clebsch.data.loader import BatchSampler, LabelledGraphs
from clebsch.nn.floor import UNKNOWN
from clebsch.potential import Potential
from clebsch.training.prepare import BATCH_EDGES, Prepared

#: Structures that are asked, at most: the floor lies 0.5 eV below the lowest of them.
MOST_ASKED = 1000


@contextmanager
def with_floor(prepared: Prepared, batch_edges: int = BATCH_EDGES) -> Iterator[None]:
    """Have the potential's floor for a while, under its energies as they are now.

    Args:
        prepared: the potential, and the structures that it is trained on.
        batch_edges: edges of one evaluation at most.
    """
    potential, floor = prepared.potential, prepared.potential.floor
    if floor is None or prepared.depths is None:
        yield
        return
    now = deepest(potential, prepared.train, batch_edges)
    floor.depths.copy_(torch.maximum(prepared.depths.to(now.device), now))
    try:
        yield
    finally:
        floor.depths.fill_(UNKNOWN)


@torch.no_grad()
def deepest(potential: Potential, graphs: LabelledGraphs, batch_edges: int = BATCH_EDGES) -> Tensor:
    """The most by which an atom's energy is below its reference, by species: [S] float64, eV.

    Args:
        potential: what gives the energies.
        graphs: the structures; of more than ``MOST_ASKED`` so many, drawn at random.
        batch_edges: edges of one evaluation at most.

    Returns:
        0 where no atom's is, ``clebsch.nn.floor.UNKNOWN`` of species that no structure has.
    """
    depths = torch.full_like(potential.references, UNKNOWN)
    drawn = torch.randperm(len(graphs), generator=torch.Generator().manual_seed(0))
    chosen = sorted(drawn[:MOST_ASKED].tolist())
    sampler = BatchSampler([graphs.n_edges[i] for i in chosen], batch_edges=batch_edges)
    for batch in sampler.in_order():
        graph = graphs.batch([chosen[i] for i in batch]).graph.to(potential.device)
        energies = potential(graph, "site_energies").site_energies
        assert energies is not None
        below = (potential.references[graph.species] - energies).clamp(min=0)
        depths.scatter_reduce_(0, graph.species, below, "amax")
    return depths
