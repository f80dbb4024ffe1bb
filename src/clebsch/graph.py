"""The graph of a structure, or of a batch of structures: tensors, and no physics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from clebsch.errors import ClebschError, DataError

_INDICES = (
    "species",
    "senders",
    "receivers",
    "row_ptr",
    "sender_order",
    "sender_ptr",
    "frame",
    "frame_ptr",
)


@dataclass(frozen=True)
class GraphScope:
    """What a graph can be used for.

    Attributes:
        cutoff: Angstrom; all pairs closer than this are edges.
        elements: symbols, which the graph's species are indices into.
    """

    cutoff: float
    elements: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class AtomGraph:
    """Atoms of one or several structures and the edges between neighbours.

    Edges are sorted by receiver, so that the edges of atom i are ``row_ptr[i]:row_ptr[i + 1]``;
    ``sender_order`` sorts them by sender, with ``sender_ptr`` as its row pointer. Geometry is kept
    in float64 whatever the model runs in; see ``clebsch.conventions`` for directions and signs.

    Attributes:
        positions: [n_atoms, 3] float64, Angstrom.
        cell: [n_frames, 3, 3] float64, rows are lattice vectors; zeros without a cell.
        pbc: [n_frames, 3] bool.
        species: [n_atoms] int64, index into the model's species table.
        senders: [n_edges] int64.
        receivers: [n_edges] int64, ascending.
        images: [n_edges, 3] float64 whole numbers: the receiver's displacement in lattice vectors.
        row_ptr: [n_atoms + 1] int64.
        sender_order: [n_edges] int64.
        sender_ptr: [n_atoms + 1] int64.
        frame: [n_atoms] int64, which structure an atom belongs to, ascending.
        frame_ptr: [n_frames + 1] int64.
        counted: [n_atoms] float64: 1, or 0 for a ghost, an atom whose own energy is counted by
            another process. Energies of counted atoms alone are summed and differentiated.
        scope: what it can be used for, if whoever made it said so.

    Raises:
        DataError: indices of another precision.
    """

    positions: Tensor
    cell: Tensor
    pbc: Tensor
    species: Tensor
    senders: Tensor
    receivers: Tensor
    images: Tensor
    row_ptr: Tensor
    sender_order: Tensor
    sender_ptr: Tensor
    frame: Tensor
    frame_ptr: Tensor
    counted: Tensor
    scope: GraphScope | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in _INDICES:  # kernels read memory as it is
            dtype = getattr(self, name).dtype
            if dtype != torch.int64:
                raise DataError(f"{name} of a graph are int64, not {str(dtype).partition('.')[2]}")

    def __repr__(self) -> str:
        sizes = f"{self.n_frames} structures, {self.n_atoms} atoms, {self.n_edges} edges"
        return f"AtomGraph({sizes}, {self.positions.device})"

    @property
    def n_atoms(self) -> int:
        """Number of atoms over all structures."""
        return self.positions.shape[0]

    @property
    def n_edges(self) -> int:
        """Number of directed edges."""
        return self.senders.shape[0]

    @property
    def n_frames(self) -> int:
        """Number of structures."""
        return self.cell.shape[0]

    @property
    def atoms_per_frame(self) -> Tensor:
        """[n_frames] int64."""
        return self.frame_ptr.diff()

    def to(self, device: torch.device | str) -> AtomGraph:
        """The same graph on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, function: Callable[[Tensor], Tensor]) -> AtomGraph:
        """The graph with something else in place of each tensor, its copy on a device perhaps."""
        mapped = {name: function(getattr(self, name)) for name in TENSORS}
        return AtomGraph(**mapped, scope=self.scope)

    def with_positions(self, positions: Tensor, cell: Tensor | None = None) -> AtomGraph:
        """The same edges over other positions (and cells), as a neighbour list with a skin needs.

        Edges longer than the cut-off contribute nothing: every model's envelope is zero there.
        """
        return replace(self, positions=positions, cell=self.cell if cell is None else cell)


#: Names of a graph's tensors, in the order in which ``AtomGraph`` takes them.
TENSORS = tuple(one.name for one in fields(AtomGraph) if one.name != "scope")


def edge_vectors(graph: AtomGraph, positions: Tensor) -> Tensor:
    """[E, 3] float64: from sender to receiver, across periodic images."""
    vectors = positions[graph.receivers] - positions[graph.senders]
    cells = graph.cell[graph.frame[graph.receivers]]
    return vectors + torch.einsum("ea,eab->eb", graph.images, cells)


def make_graph(
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    species: Tensor,
    senders: Tensor,
    receivers: Tensor,
    images: Tensor,
    counted: Tensor | None = None,
) -> AtomGraph:
    """One structure's graph from its edges in any order.

    Args:
        positions: [n_atoms, 3] float64.
        cell: [3, 3] float64.
        pbc: [3] bool.
        species: [n_atoms] int64.
        senders, receivers: [n_edges] int64.
        images: [n_edges, 3] whole numbers.
        counted: [n_atoms] float64; all atoms are if None.
    """
    n_atoms = positions.shape[0]
    order = _lexicographic_order(receivers, senders, images)
    senders, receivers, images = senders[order], receivers[order], images[order]
    return AtomGraph(
        positions=positions,
        cell=cell.reshape(1, 3, 3),
        pbc=pbc.reshape(1, 3),
        species=species,
        senders=senders,
        receivers=receivers,
        images=images.to(torch.float64),
        row_ptr=_row_pointer(receivers, n_atoms),
        sender_order=torch.argsort(senders, stable=True),
        sender_ptr=_row_pointer(senders, n_atoms),
        frame=torch.zeros(n_atoms, dtype=torch.int64, device=positions.device),
        frame_ptr=torch.tensor([0, n_atoms], device=positions.device),
        counted=positions.new_ones(n_atoms) if counted is None else counted,
    )


def neighborhood(graph: AtomGraph, own: Tensor, hops: int) -> tuple[AtomGraph, Tensor]:
    """The part of a structure's graph that the energies of some of its atoms depend on.

    Other atoms within so many edges of them are its ghosts. The last of these have no edges of
    their own: what they receive comes too late.

    Args:
        graph: of one structure.
        own: [n_own] int64, the atoms whose energies are to be counted, ascending.
        hops: over how many edges an atom's energy depends on others (``Potential.hops``).

    Returns:
        The part: these atoms in the order given, then ghosts; and which atom of ``graph`` each of
        its atoms is, [n_part] int64, the ghosts' ascending.
    """
    hop = torch.full_like(graph.species, hops + 1)  # edges from the nearest of these atoms
    hop[own] = 0
    for reached in range(1, hops + 1):
        senders = graph.senders[hop[graph.receivers] == reached - 1]
        hop[senders] = hop[senders].clamp(max=reached)
    ghosts = ((hop > 0) & (hop <= hops)).nonzero()[:, 0]
    atoms = torch.cat([own, ghosts])
    place = torch.empty_like(hop)
    place[atoms] = torch.arange(len(atoms), device=atoms.device)
    edges = (hop[graph.receivers] < hops).nonzero()[:, 0]
    part = make_graph(
        positions=graph.positions[atoms],
        cell=graph.cell[0],
        pbc=graph.pbc[0],
        species=graph.species[atoms],
        senders=place[graph.senders[edges]],
        receivers=place[graph.receivers[edges]],
        images=graph.images[edges],
        counted=graph.counted[atoms] * (hop[atoms] == 0),
    )
    return replace(part, scope=graph.scope), atoms


def batch_graphs(graphs: Sequence[AtomGraph]) -> AtomGraph:
    """Several graphs as one, atoms and edges in the order given.

    Raises:
        ValueError: nothing to batch.
        ClebschError: they were made for different cut-offs or elements.
    """
    if not graphs:
        raise ValueError("batch_graphs needs at least one graph")
    scope = graphs[0].scope
    if any(graph.scope != scope for graph in graphs):
        raise ClebschError("graphs for different cut-offs or elements cannot be batched")
    if len(graphs) == 1:
        return graphs[0]
    atom_offset = _offsets([g.n_atoms for g in graphs])
    edge_offset = _offsets([g.n_edges for g in graphs])
    frame_offset = _offsets([g.n_frames for g in graphs])

    def joined(name: str, offsets: list[int] | None = None) -> Tensor:
        parts = [getattr(g, name) for g in graphs]
        if offsets is not None:
            parts = [part + offset for part, offset in zip(parts, offsets, strict=True)]
        return torch.cat(parts)

    def joined_ptr(name: str, offsets: list[int]) -> Tensor:
        parts = [getattr(g, name)[1:] + offset for g, offset in zip(graphs, offsets, strict=True)]
        return torch.cat([getattr(graphs[0], name)[:1], *parts])

    return AtomGraph(
        positions=joined("positions"),
        cell=joined("cell"),
        pbc=joined("pbc"),
        species=joined("species"),
        senders=joined("senders", atom_offset),
        receivers=joined("receivers", atom_offset),
        images=joined("images"),
        row_ptr=joined_ptr("row_ptr", edge_offset),
        sender_order=joined("sender_order", edge_offset),
        sender_ptr=joined_ptr("sender_ptr", edge_offset),
        frame=joined("frame", frame_offset),
        frame_ptr=joined_ptr("frame_ptr", atom_offset),
        counted=joined("counted"),
        scope=scope,
    )


def example_graphs(device: torch.device) -> list[AtomGraph]:
    """Graphs to record evaluations with; as structures they mean nothing.

    Numbers of atoms, edges and structures differ independently of each other.
    """
    sizes = [(4, 12, 2), (5, 12, 2), (4, 15, 2), (4, 12, 3), (19, 70, 7)]
    return [_example_graph(*each).to(device) for each in sizes]


def _example_graph(atoms: int, edges: int, frames: int) -> AtomGraph:
    """Lone atoms, and the others, joined to themselves, as the last structure."""
    lone, rest = _joined_to_themselves(1, 0), _joined_to_themselves(atoms - frames + 1, edges)
    return batch_graphs([*[lone] * (frames - 1), rest])


def _joined_to_themselves(atoms: int, edges: int) -> AtomGraph:
    ends = torch.arange(edges) * atoms // max(edges, 1)
    return make_graph(
        positions=torch.zeros(atoms, 3, dtype=torch.float64),
        cell=torch.eye(3, dtype=torch.float64),
        pbc=torch.zeros(3, dtype=torch.bool),
        species=torch.zeros(atoms, dtype=torch.int64),
        senders=ends,
        receivers=ends,
        images=torch.eye(3)[ends % 3],
    )


def _offsets(sizes: Sequence[int]) -> list[int]:
    total, offsets = 0, []
    for size in sizes:
        offsets.append(total)
        total += size
    return offsets


def _row_pointer(sorted_or_not: Tensor, n_rows: int) -> Tensor:
    counts = torch.bincount(sorted_or_not, minlength=n_rows)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _lexicographic_order(receivers: Tensor, senders: Tensor, images: Tensor) -> Tensor:
    """The order of edges by receiver, sender, image: the same whatever found the neighbours."""
    keys = (images[:, 2], images[:, 1], images[:, 0], senders, receivers)
    if receivers.device.type == "cpu":
        return torch.from_numpy(np.lexsort([key.numpy() for key in keys]))
    return lexicographic(keys)


def lexicographic(keys: Sequence[Tensor]) -> Tensor:
    """The order by the last key, then by the one before it, and so on, on any device."""
    first, *others = keys
    order = torch.argsort(first, stable=True)
    for key in others:
        order = order[torch.argsort(key[order], stable=True)]
    return order
