"""Learning without forgetting: a fine-tuned model keeps giving the initial model's answers.

Structures like those that the initial model learnt from are labelled by that model itself, before
the first step, and learnt beside the new data (Li and Hoiem 2016, arXiv 1606.09282, whose responses
are of the new data's structures; pseudo-rehearsal, Robins 1995). So neither the old labels nor
their level of theory have to be at hand. Where the data are of another level, the old answers are
read out of the common features by readouts of their own, as the heads of MACE's fine-tuning are.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clebsch.data.frame import Frame
from clebsch.data.labels import ALIASES, NOT_READ, LabelKeys
from clebsch.data.loader import BatchSampler, LabelledGraphs
from clebsch.data.read import read_frames
from clebsch.data.split import draw_frames, split_frames
from clebsch.errors import DataError
from clebsch.potential import Potential
from clebsch.processor import torch_threads
from clebsch.training.config import ReplayConfig
from clebsch.training.lesson import Lesson

#: The part of the structures that is not learnt, to tell what is forgotten, and the most of them.
HELD_OUT, MOST_HELD_OUT = 0.1, 100


@dataclass(frozen=True, eq=False)
class Replay:
    """Structures with the initial model's answers, and what learns them.

    Attributes:
        potential: with the weights of the potential that learns the data, but for the readouts if
            they are its own.
        train: structures to learn.
        valid: structures that tell what is forgotten.
        weight: of their loss.
        fingerprint: SHA-256 of all structures.
        sampler: of those to learn.
    """

    potential: Potential
    train: LabelledGraphs
    valid: LabelledGraphs
    weight: float
    fingerprint: str
    sampler: BatchSampler

    @property
    def lesson(self) -> Lesson:
        """What a step learns of it."""
        return Lesson(self.potential, self.train, self.weight)

    def batch(self, step: int) -> list[int]:
        """The structures of a step, a pure function of its number: each once, then all anew."""
        size = self.sampler.batch_size
        assert size is not None
        epoch, position = divmod(step, -(-len(self.train) // size))
        return self.sampler.epoch(epoch)[position]


def prepare_replay(
    config: ReplayConfig, potential: Potential, batch_size: int, batch_edges: int, seed: int
) -> Replay:
    """Read the structures and have them labelled.

    Args:
        config: of the replay.
        potential: the initial model, as the training begins.
        batch_size: structures of a step where the configuration does not say.
        batch_edges: of one evaluation at most.
        seed: of draws and shuffles.

    Raises:
        DataError: files cannot be read, there are too few structures, or the initial model's answer
            for one is no finite number.
        UnknownElementError: the initial model does not know an element.
    """
    unread = LabelKeys(**dict.fromkeys(ALIASES, NOT_READ))
    frames = read_frames(config.structures, unread, pbc=config.pbc)
    if config.count is not None:
        frames = draw_frames(frames, config.count, seed, "replay.count")
    if len(frames) < 2:
        raise DataError(f"{frames[0].source}: replay.structures: one structure is too few")
    count = min(max(round(HELD_OUT * len(frames)), 1), MOST_HELD_OUT)
    learnt, held_out = split_frames(frames, count=count, seed=seed)
    own = with_own_readouts(potential) if config.readouts == "own" else potential
    train, valid = (_labelled(own, part, batch_edges) for part in (learnt, held_out))
    size = config.batch_size or batch_size
    return Replay(
        own,
        train,
        valid,
        config.weight,
        _fingerprint(frames),
        BatchSampler(train.n_edges, size, seed=seed),
    )


def with_own_readouts(potential: Potential) -> Potential:
    """A potential with readouts of its own and all other weights in common with another."""
    readouts = {id(parameter) for parameter in potential.model.readout_parameters()}
    other = copy.deepcopy(potential)
    for theirs, ours in zip(other.modules(), potential.modules(), strict=True):
        for name, parameter in ours.named_parameters(recurse=False):
            if id(parameter) not in readouts:
                setattr(theirs, name, parameter)
    return other.use_backend(potential.backend)


def _labelled(potential: Potential, frames: Sequence[Frame], batch_edges: int) -> LabelledGraphs:
    """The structures with what a potential says of them: energy, forces, stress in a crystal."""
    graphs = LabelledGraphs(potential, frames)
    labelled: list[Frame] = []
    with torch_threads(1):  # so that a run which is resumed learns the same bits
        for indices in BatchSampler(graphs.n_edges, batch_edges=batch_edges).in_order():
            graph = graphs.batch(indices).graph.to(potential.device)
            prediction = potential(graph, ("energy", "forces", "virial"))
            energies, virials = (x.cpu().numpy() for x in (prediction.energy, prediction.virial))
            forces = np.split(prediction.forces.cpu().numpy(), graph.frame_ptr.cpu()[1:-1])
            for i, energy, of_atoms, virial in zip(indices, energies, forces, virials, strict=True):
                labelled.append(_with_labels(frames[i], float(energy), of_atoms, virial))
    return LabelledGraphs(potential, labelled)


def _with_labels(frame: Frame, energy: float, forces: np.ndarray, virial: np.ndarray) -> Frame:
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        raise DataError(
            f"{frame.source}: the initial model's energy or a force is no finite number, which "
            "cannot be learnt (replay.structures)"
        )
    volume = abs(np.linalg.det(frame.cell))
    stress = -virial / volume if frame.pbc.all() and volume > 0 else None
    structure = (frame.numbers, frame.positions, frame.cell, frame.pbc)
    return Frame(*structure, energy, forces, stress, source=frame.source)


def _fingerprint(frames: Sequence[Frame]) -> str:
    digest = hashlib.sha256()
    for frame in frames:
        for array in (frame.numbers, frame.positions, frame.cell, frame.pbc):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
