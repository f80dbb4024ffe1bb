"""Atoms closer than any in training: repulsion in place of what a network makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import ase.data
import torch
from torch import Tensor

from clebsch.graph import AtomGraph, edge_vectors
from clebsch.nn.energy import zbl_energy
from clebsch.nn.float64 import Float64Module
from clebsch.nn.hold import held
from clebsch.nn.kernel_module import KernelModule

#: Where repulsion begins and over which length the network's share ends, in units of d of
#: ``ContactRepulsion``.
BEGIN, WIDTH = 0.95, 0.1


class ContactRepulsion(Float64Module, KernelModule):
    """Repulsion between atoms that are closer than any of their elements in training.

    A network that was never shown such atoms may make anything of them. So all that was trained
    sees them no closer than it knows: two atoms at a distance r < b are seen at

        s(r) = b - w x / (1 + x^4)^(1/4),  x = (b - r) / w,  b = 0.95 d,  w = 0.1 d,

    which is above 0.85 d, in the direction in which they are. The pair's energy gains V(r) - V(s),
    V the repulsion of Ziegler, Biersack and Littmark (``zbl_energy``), so that its force passes
    from the network's to V's. s differs from r in the fifth order of x: energies have four
    continuous derivatives. Where no atoms are closer than b, nothing changes.

    d of two elements is their shortest distance in training. Where that is longer than the sum of
    their covalent radii, or training had none, it is that sum: such atoms may yet form a bond. It
    is the cut-off at most, beyond which nothing is seen.

    Args:
        numbers: atomic numbers by species.
        cutoff: Angstrom.

    Attributes:
        distances: [S, S] float64, d in Angstrom; 0 where training is not known, and nothing is
            closer then.
    """

    distances: Tensor
    radii: Tensor
    numbers: Tensor

    def __init__(self, numbers: Sequence[int], cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        unknown = torch.zeros(len(numbers), len(numbers), dtype=torch.float64)
        self.register_buffer("distances", unknown)
        self.register_constants(
            stored=False,
            radii=[float(ase.data.covalent_radii[z]) for z in numbers],
            numbers=[float(z) for z in numbers],
        )

    def learn(self, trained: Sequence[Sequence[float]]) -> None:
        """Take d from shortest distances in training, [S, S], Angstrom; inf where it had none."""
        bonds = (self.radii[:, None] + self.radii).clamp(max=self.cutoff)
        self.distances.copy_(torch.minimum(self.distances.new_tensor(trained), bonds))

    @torch.no_grad()
    def is_reached(self, graph: AtomGraph) -> bool:
        """Whether there is any repulsion in the graph. It is asked of every one: it is quick."""
        if graph.n_frames == 1:  # the periodic images of one cell are a matrix product
            senders, receivers = (
                graph.positions.index_select(0, ends) for ends in (graph.senders, graph.receivers)
            )
            vectors = receivers - senders + graph.images @ graph.cell[0]
        else:
            vectors = edge_vectors(graph, graph.positions)
        squares = vectors.square() @ vectors.new_ones(3)
        return bool((squares < self._of_edges((BEGIN * self.distances).square(), graph)).any())

    def forward(self, vectors: Tensor, graph: AtomGraph) -> tuple[Tensor, Tensor]:
        """Edges as they are seen, and the repulsion; for graphs in which ``is_reached``.

        Args:
            vectors: [E, 3] float64, Angstrom.
            graph: the graph.

        Returns:
            [E, 3] float64, Angstrom, and [N] float64, eV: half of each pair's energy is either
            atom's.
        """
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        d = self._of_edges(self.distances, graph)
        close = lengths < BEGIN * d
        seen = held(lengths, BEGIN * d, torch.where(close, WIDTH * d, 1.0))
        shrinks = torch.where(close, seen / lengths, 1.0)
        charges = self.numbers[graph.species]
        z1, z2 = charges[graph.senders], charges[graph.receivers]
        gained = zbl_energy(lengths, z1, z2) - zbl_energy(seen, z1, z2)
        energy = self.kernels.segment_sum(torch.where(close, 0.5 * gained, 0.0), graph.row_ptr)
        return vectors * shrinks[:, None], energy

    @staticmethod
    def _of_edges(table: Tensor, graph: AtomGraph) -> Tensor:
        """[E] of a symmetric [S, S]."""
        species = graph.species
        senders, receivers = (species.index_select(0, e) for e in (graph.senders, graph.receivers))
        pairs = torch.add(receivers, senders, alpha=len(table))
        return table.flatten().index_select(0, pairs)
