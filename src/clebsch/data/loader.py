"""From frames to batches: graphs built once, labels with masks, shuffles that can be repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from clebsch.contacts import closest, shortest_distances
from clebsch.data.frame import Frame
from clebsch.graph import TENSORS, AtomGraph, batch_graphs


class GraphMaker(Protocol):
    """What a potential offers the loader: it alone knows the cut-off and the species table."""

    def graph(self, structures: Frame) -> AtomGraph: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of a batch; what stands where a mask is False has no meaning.

    Attributes:
        energy: [n_frames] float64, eV.
        forces: [n_atoms, 3] float64, eV/Angstrom.
        stress: [n_frames, 3, 3] float64, eV/Angstrom^3.
        has_energy: [n_frames] bool.
        has_forces: [n_frames] bool.
        has_stress: [n_frames] bool.
        energy_weight: [n_frames] float64, the structure's weight times that of the term.
        forces_weight: [n_frames] float64.
        stress_weight: [n_frames] float64.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor
    has_energy: Tensor
    has_forces: Tensor
    has_stress: Tensor
    energy_weight: Tensor
    forces_weight: Tensor
    stress_weight: Tensor


@dataclass(frozen=True)
class LabelCounts:
    """How many numbers the labels of a batch hold: components of forces and stresses each."""

    energy: int
    forces: int
    stress: int


@dataclass(frozen=True, eq=False)
class Batch:
    """Some structures of a set: their graph, labels, and indices in the set.

    ``counts`` are numbers, so that no one has to ask a device, and wait, for what is labelled.
    """

    graph: AtomGraph
    labels: Labels
    frame_indices: tuple[int, ...]
    counts: LabelCounts

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with something else in place of each tensor, its copy on a device perhaps."""
        labels = {f.name: function(getattr(self.labels, f.name)) for f in fields(Labels)}
        return replace(self, graph=self.graph.map(function), labels=Labels(**labels))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self.map(lambda tensor: tensor.to(device))


def collate(
    graphs: Sequence[AtomGraph], labels: Sequence[Labels], frame_indices: Sequence[int]
) -> Batch:
    """Single structures as one batch, in the order given."""
    joined = {f.name: torch.cat([getattr(x, f.name) for x in labels]) for f in fields(Labels)}
    counts = LabelCounts(
        energy=sum(int(x.has_energy) for x in labels),
        forces=sum(x.forces.numel() for x in labels if x.has_forces),
        stress=sum(x.stress.numel() for x in labels if x.has_stress),
    )
    return Batch(batch_graphs(graphs), Labels(**joined), tuple(frame_indices), counts)


_Item = TypeVar("_Item", AtomGraph, Labels)


def _packed(items: Sequence[_Item], names: Iterable[str]) -> dict[str, tuple[Tensor, list[int]]]:
    """Tensors of some graphs or labels, each as one, and how much of it belongs to each item."""
    columns = {name: [getattr(item, name) for item in items] for name in names}
    return {name: (torch.cat(parts), [len(p) for p in parts]) for name, parts in columns.items()}


def _unpacked(kind: type[_Item], columns: dict[str, tuple[Tensor, list[int]]]) -> list[_Item]:
    """The items that ``_packed`` was given, as views of its tensors."""
    parts = [whole.split(sizes) for whole, sizes in columns.values()]
    return [kind(**dict(zip(columns, values, strict=True))) for values in zip(*parts, strict=True)]


def _labels(frames: Sequence[Frame]) -> list[Labels]:
    """The labels of each frame, as views of a few tensors: thousands of small ones are slow."""

    each = [1] * len(frames)
    sizes = [len(frame) for frame in frames]
    forces = [np.zeros((len(f), 3)) if f.forces is None else f.forces for f in frames]
    stress = [np.zeros((3, 3)) if f.stress is None else f.stress for f in frames]
    columns = {
        "energy": (torch.tensor([f.energy or 0.0 for f in frames], dtype=torch.float64), each),
        "forces": (torch.from_numpy(np.concatenate(forces, dtype=np.float64)), sizes),
        "stress": (torch.from_numpy(np.array(stress, dtype=np.float64)), each),
    }
    for term in ("energy", "forces", "stress"):
        columns[f"has_{term}"] = torch.tensor([getattr(f, term) is not None for f in frames]), each
        weights = [f.weight * getattr(f, f"{term}_weight") for f in frames]
        columns[f"{term}_weight"] = torch.tensor(weights, dtype=torch.float64), each
    return _unpacked(Labels, columns)


class LabelledGraphs:
    """Frames with their graphs, built once and kept in main memory.

    That takes about 48 bytes an edge and 4 kB a frame.

    Attributes:
        frames: the frames, for messages.
        n_edges: edges of each frame.
    """

    def __init__(self, potential: GraphMaker, frames: Sequence[Frame]) -> None:
        """Build all graphs.

        Raises:
            UnknownElementError: an element that the potential does not know.
            DataError: an impossible cell or position, or two atoms at one place.
        """
        self.frames = list(frames)
        self._graphs = [potential.graph(frame).to("cpu") for frame in self.frames]
        self._labels = _labels(self.frames)
        self.n_edges = [graph.n_edges for graph in self._graphs]

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: tensors joined, since each of them is pickled by itself."""
        labels = _packed(self._labels, (f.name for f in fields(Labels)))
        return self.__dict__ | {"_graphs": _packed(self._graphs, TENSORS), "_labels": labels}

    def __setstate__(self, state: dict[str, Any]) -> None:
        graphs, labels = _unpacked(AtomGraph, state["_graphs"]), _unpacked(Labels, state["_labels"])
        self.__dict__ |= state | {"_graphs": graphs, "_labels": labels}

    def __len__(self) -> int:
        return len(self.frames)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The batch of some frames."""
        return collate(
            [self._graphs[i] for i in indices], [self._labels[i] for i in indices], indices
        )

    @property
    def counts(self) -> dict[str, int]:
        """How many frames there are, and how many have each label."""
        return {
            "frames": len(self.frames),
            "energies": sum(frame.energy is not None for frame in self.frames),
            "forces": sum(frame.forces is not None for frame in self.frames),
            "stresses": sum(frame.stress is not None for frame in self.frames),
        }

    @property
    def n_bytes(self) -> int:
        """Main memory that the graphs take."""
        tensors = (getattr(graph, name) for graph in self._graphs for name in TENSORS)
        return sum(tensor.nbytes for tensor in tensors)

    def shortest_distances(self, species: Sequence[str]) -> dict[str, float]:
        """How close atoms come, Angstrom by pair of elements; see ``clebsch.contacts``."""
        return closest(shortest_distances(graph, species) for graph in self._graphs)

    def fingerprint(self) -> str:
        """SHA-256 over structures, labels and weights: equal for equal data in equal order."""
        digest = hashlib.sha256()
        for graph, labels in zip(self._graphs, self._labels, strict=True):
            structure = (graph.positions, graph.cell, graph.pbc, graph.species)
            values = (getattr(labels, f.name) for f in fields(Labels))
            for tensor in (*structure, *values):
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def describe_counts(counts: Mapping[str, int]) -> str:
    """What ``LabelledGraphs.counts`` tells, in words."""
    return (
        f"{counts['frames']} structures with {counts['energies']} energies, "
        f"{counts['forces']} sets of forces, {counts['stresses']} stresses"
    )


@dataclass(frozen=True)
class BatchSampler:
    """Which frames make up each batch: a pure function of the seed and the epoch.

    Nothing else decides it, so a place inside an epoch is two whole numbers, and a run that is
    resumed there sees the batches that it would have seen.

    Attributes:
        n_edges: edges of each frame.
        batch_size: frames in a batch, or None.
        batch_edges: the most edges in a batch, or None; a frame with more makes a batch alone.
        seed: of the shuffles.
    """

    n_edges: Sequence[int]
    batch_size: int | None = None
    batch_edges: int | None = None
    seed: int = 0

    def epoch(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch: every frame once, in a new order each time."""
        digest = hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return self._batches(torch.randperm(len(self.n_edges), generator=generator).tolist())

    def in_order(self) -> list[list[int]]:
        """The batches of the frames as they stand, for validation."""
        return self._batches(list(range(len(self.n_edges))))

    def _batches(self, order: list[int]) -> list[list[int]]:
        if self.batch_size is not None:
            size = self.batch_size
            return [order[start : start + size] for start in range(0, len(order), size)]
        assert self.batch_edges is not None, "a sampler needs batch_size or batch_edges"
        batches: list[list[int]] = []
        room = 0
        for frame in order:
            if not batches or self.n_edges[frame] > room:
                batches.append([])
                room = self.batch_edges
            batches[-1].append(frame)
            room -= self.n_edges[frame]
        return batches
