"""Predictions for many frames: batches by edge budget that shrink when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from clebsch.data.frame import Frame
from clebsch.errors import ClebschError
from clebsch.graph import AtomGraph, batch_graphs
from clebsch.memory import is_out_of_memory

if TYPE_CHECKING:
    from clebsch.potential import Potential, Prediction

_Result = TypeVar("_Result")

#: Edges in a batch unless the caller says otherwise: enough for a CPU to run at full speed (from
#: about 4000 edges on), small enough for the published models in a laptop's memory.
MAX_EDGES = 8_192


@dataclass(frozen=True, eq=False)
class FramePrediction:
    """What a potential says about one frame.

    Attributes:
        energy: eV.
        forces: [n, 3] float64, eV/Angstrom.
        stress: [3, 3] float64, eV/Angstrom^3; None where it was not asked for.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None = None


@dataclass
class Batches:
    """Frames by the batch, as many as memory holds.

    Attributes:
        max_edges: edges in a batch; a single frame may have more. It shrinks when memory runs out.
        notes: what was said about that.
    """

    max_edges: int
    notes: list[str] = field(default_factory=list)

    def computed(
        self,
        potential: Potential,
        frames: Sequence[Frame],
        chosen: Sequence[int],
        compute: Callable[[AtomGraph], _Result],
    ) -> Iterator[tuple[list[int], _Result]]:
        """Indices of frames and what is computed of their graphs, for all that are chosen.

        Where memory does not suffice for a batch, its halves, quarters, ... are tried.

        Raises:
            ClebschError: memory does not suffice for a single frame.
        """
        for waiting in self._batched(potential, frames, chosen):
            parts = [waiting]
            while parts:
                indices, graphs = parts.pop()
                # The retry happens outside of the except block: a live traceback holds on to the
                # tensors that filled the memory.
                result = _try(compute, graphs)
                if result is not None:
                    yield indices, result
                    continue
                source = frames[indices[0]].place(indices[0])
                if len(graphs) == 1:
                    raise ClebschError(
                        f"{source}: memory does not suffice for this structure alone "
                        f"({len(frames[indices[0]])} atoms, {graphs[0].n_edges} edges); "
                        "use a smaller model, float32, or a machine with more memory"
                    )
                self._shrink(graphs, source)
                half = len(graphs) // 2
                parts.append((indices[half:], graphs[half:]))
                parts.append((indices[:half], graphs[:half]))

    def _batched(
        self, potential: Potential, frames: Sequence[Frame], chosen: Sequence[int]
    ) -> Iterator[tuple[list[int], list[AtomGraph]]]:
        """Consecutive frames with at most ``max_edges`` edges together, but at least one frame."""
        indices: list[int] = []
        graphs: list[AtomGraph] = []
        edges = 0
        for index in chosen:
            graph = potential.graph(frames[index])
            if graphs and edges + graph.n_edges > self.max_edges:
                yield indices, graphs
                indices, graphs, edges = [], [], 0
            indices.append(index)
            graphs.append(graph)
            edges += graph.n_edges
        if graphs:
            yield indices, graphs

    def _shrink(self, graphs: Sequence[AtomGraph], source: str) -> None:
        edges = sum(graph.n_edges for graph in graphs)
        self.max_edges = max(1, edges // 2)
        self.notes.append(
            f"Memory ran out with a batch of {len(graphs)} structures and {edges} edges "
            f"(at {source}); went on with at most {self.max_edges} edges."
        )


def _try(compute: Callable[[AtomGraph], _Result], graphs: list[AtomGraph]) -> _Result | None:
    """The result, or None where memory ran out."""
    try:
        return compute(batch_graphs(graphs))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def predict(
    potential: Potential,
    frames: Sequence[Frame],
    *,
    max_edges: int = MAX_EDGES,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[FramePrediction], tuple[str, ...]]:
    """Energy and forces of every frame; the stress of those with a stress label and a cell.

    Args:
        potential: the model; frames are sent to its device.
        frames: with or without labels.
        max_edges: edges in a batch; a single frame may have more. On running out of memory it is
            halved and the batch is tried again in parts.
        progress: called as ``progress(done, total)`` after each batch.

    Returns:
        The predictions in the order of the frames, and notes on what had to be changed.

    Raises:
        UnknownElementError: a frame has an element that the model does not know.
        ClebschError: memory does not suffice for a single frame, or a prediction is not finite.
    """
    predictions: dict[int, FramePrediction] = {}
    batches = Batches(max_edges)
    for with_stress in (False, True):
        chosen = [i for i, frame in enumerate(frames) if wants_stress(frame) == with_stress]
        outputs = ("energy", "forces", "stress") if with_stress else ("energy", "forces")
        compute = partial(potential, outputs=outputs)
        for indices, prediction in batches.computed(potential, frames, chosen, compute):
            predictions.update(_split(prediction, frames, indices))
            if progress is not None:
                progress(len(predictions), len(frames))
    return [predictions[i] for i in range(len(frames))], tuple(batches.notes)


def wants_stress(frame: Frame) -> bool:
    """Whether a stress can be judged: there is a label, and a cell that it belongs to."""
    return frame.stress is not None and bool(abs(np.linalg.det(frame.cell)) > 1e-10)


def _split(
    prediction: Prediction, frames: Sequence[Frame], indices: Sequence[int]
) -> dict[int, FramePrediction]:
    """A batch's prediction by frame index, in float64 on the CPU, checked to be finite."""
    energy = _numpy(prediction.energy)
    ends = np.cumsum([len(frames[i]) for i in indices])
    forces = np.split(_numpy(prediction.forces), ends[:-1])
    stress = None if prediction.stress is None else _numpy(prediction.stress)
    parts = {}
    for k, index in enumerate(indices):
        part = FramePrediction(
            energy=float(energy[k]), forces=forces[k], stress=None if stress is None else stress[k]
        )
        numbers = (part.energy, part.forces, 0.0 if part.stress is None else part.stress)
        if not all(np.isfinite(number).all() for number in numbers):
            raise not_finite(frames[index].place(index))
        parts[index] = part
    return parts


def not_finite(name: str) -> ClebschError:
    """The error of a structure for which a model gives no numbers."""
    return ClebschError(
        f"{name}: the model's energy or its derivatives are not finite numbers; look for atoms "
        "that are too close with `clebsch check`"
    )


def _numpy(tensor: torch.Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.detach().cpu().numpy().astype(np.float64)
