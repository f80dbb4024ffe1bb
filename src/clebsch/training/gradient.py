"""The gradient of a batch's loss, or of the part of it that some of its structures make up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from clebsch.data.loader import LabelledGraphs
from clebsch.data.prefetch import BatchPrefetcher
from clebsch.errors import ClebschError
from clebsch.memory import is_out_of_memory
from clebsch.training.config import LossConfig
from clebsch.training.lesson import Lesson
from clebsch.training.loss import LossSums, loss_sums, trained_outputs

#: Structures of a batch, by their place in the graphs of each lesson.
Indices = Sequence[Sequence[int]]


def divided(batch: Indices, n_edges: Indices, n_parts: int) -> list[list[list[int]]]:
    """A batch in parts of about equal edges, some empty if there are not enough structures.

    The largest structures are dealt first, each to the part with the fewest edges; within a part
    they stand in the batch's order. The first part has the fewest edges: its process has the
    optimiser's work to do as well.

    Args:
        batch: the structures, by lesson.
        n_edges: of every structure of each lesson.
        n_parts: how many parts.
    """
    if n_parts == 1:
        return [[list(indices) for indices in batch]]
    edges = {
        (lesson, place): n_edges[lesson][index]
        for lesson, indices in enumerate(batch)
        for place, index in enumerate(indices)
    }
    parts: list[list[tuple[int, int]]] = [[] for _ in range(n_parts)]
    loads = [0] * n_parts
    for dealt in sorted(edges, key=lambda key: (-edges[key], key)):
        part = loads.index(min(loads))
        parts[part].append(dealt)
        loads[part] += edges[dealt]
    return [
        [[batch[n][place] for m, place in sorted(parts[part]) if m == n] for n in range(len(batch))]
        for part in sorted(range(n_parts), key=loads.__getitem__)
    ]


def add_gradient(
    lessons: Sequence[Lesson], part: Indices, batch: Indices, config: LossConfig
) -> list[LossSums]:
    """Add the part of a batch's gradient that some of its structures make up to ``.grad``.

    Over all parts of a batch the gradients add up to that of its loss.

    Args:
        lessons: what the batch is made of.
        part: the structures.
        batch: all structures of the batch.
        config: weights and forms.

    Returns:
        The loss sums of these structures, as numbers, of each lesson.

    Raises:
        ClebschError: memory ran out.
    """
    return [
        _add_gradient(lesson, indices, all_indices, config)
        for lesson, indices, all_indices in zip(lessons, part, batch, strict=True)
    ]


def _add_gradient(
    lesson: Lesson, indices: Sequence[int], batch_indices: Sequence[int], config: LossConfig
) -> LossSums:
    potential, graphs = lesson.potential, lesson.graphs
    if not indices:
        return LossSums()
    with _memory_explained(indices, graphs.n_edges):
        batch = graphs.batch(indices).to(potential.device)
        outputs = trained_outputs(batch.counts, config)
        if not outputs:
            return LossSums()
        sums = loss_sums(potential(batch.graph, outputs, differentiable=True), batch, config)
        loss = sums.loss(config, counted=label_counts(graphs, batch_indices, config))
        assert isinstance(loss, Tensor)
        (lesson.weight * loss).backward()
        return sums.numbers()


@contextmanager
def _memory_explained(indices: Sequence[int], n_edges: Sequence[int]) -> Iterator[None]:
    """Says what to change where memory runs out with these structures."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ClebschError(
            f"memory ran out with {len(indices)} structures and "
            f"{sum(n_edges[i] for i in indices)} edges at a time; set a smaller "
            "training.batch_size or training.batch_edges"
        ) from None


def label_counts(
    graphs: LabelledGraphs | BatchPrefetcher, indices: Sequence[int], config: LossConfig
) -> LossSums:
    """How many residuals the labels of some structures give that have a weight in the loss."""
    frames = [graphs.frames[i] for i in indices]
    return LossSums(
        n_energy=sum(f.energy is not None for f in frames) if config.energy else 0,
        n_forces=sum(3 * len(f) for f in frames if f.forces is not None) if config.forces else 0,
        n_stress=sum(9 for f in frames if f.stress is not None) if config.stress else 0,
    )
