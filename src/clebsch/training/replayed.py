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
from dataclasses import dataclass, replace

import numpy as np

from clebsch.data.frame import Frame
from clebsch.data.labels import ALIASES, NOT_READ, LabelKeys
from clebsch.data.loader import BatchSampler, LabelledGraphs
from clebsch.data.read import read_frames
from clebsch.data.split import draw_frames, split_frames
from clebsch.errors import DataError
from clebsch.evaluation.predict import predict
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
        DataError: files cannot be read, or there are too few structures.
        ClebschError: the initial model's answer for one is no finite number.
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
    none = np.zeros((3, 3))  # a stress is predicted where there is one to compare with
    asked = [replace(frame, stress=none) if frame.pbc.all() else frame for frame in frames]
    with torch_threads(1):  # so that a run which is resumed learns the same bits
        predictions, _ = predict(potential, asked, max_edges=batch_edges)
    labelled = [
        Frame(*frame.structure, told.energy, told.forces, told.stress, source=frame.source)
        for frame, told in zip(frames, predictions, strict=True)
    ]
    return LabelledGraphs(potential, labelled)


def _fingerprint(frames: Sequence[Frame]) -> str:
    digest = hashlib.sha256()
    for frame in frames:
        for array in frame.structure:
            digest.update(array.tobytes())
    return digest.hexdigest()
