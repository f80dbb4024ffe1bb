"""How sure a committee says that a model is, and whether errors bear it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import spearmanr

from clebsch.committee import check_committee, graph_maker, uncertainty
from clebsch.data.frame import Frame
from clebsch.evaluation.predict import MAX_EDGES, Batches, FramePrediction
from clebsch.potential import Potential

#: How many of the most uncertain structures are named.
N_NAMED = 10


@dataclass(frozen=True, eq=False)
class FrameUncertainty:
    """What a committee says about one frame; see ``clebsch.committee.Uncertainty``.

    Attributes:
        energy: eV.
        atoms: [n] float64, of the force vector of each atom, eV/Angstrom.
    """

    energy: float
    atoms: np.ndarray


@dataclass(frozen=True)
class UncertainAtom:
    """The most uncertain force of a structure.

    Attributes:
        index: of the structure, in the list of frames.
        source: "path:index" in the file.
        atom: its index.
        element: its symbol.
        uncertainty: of its force vector, eV/Angstrom.
    """

    index: int
    source: str
    atom: int
    element: str
    uncertainty: float


@dataclass(frozen=True)
class Calibration:
    """The uncertainties of a set of structures, and what errors are in comparison.

    Attributes:
        energy_per_atom: root mean square over structures, eV/atom.
        forces: root mean square over components, eV/Angstrom.
        energy_ratio, forces_ratio: root mean square error over root mean square uncertainty, of
            what has labels: 1 if uncertainties are as large as errors, more if they are too small.
            None without labels, or where nothing is uncertain.
        forces_rank_correlation: Spearman's, over atoms, of the error of a force and its
            uncertainty: 1 if the more uncertain is always the more wrong, 0 if they have nothing to
            do with each other. None without labels, or where all are equal.
        most_uncertain: the most uncertain atom of each of the most uncertain structures.
    """

    energy_per_atom: float
    forces: float
    energy_ratio: float | None
    forces_ratio: float | None
    forces_rank_correlation: float | None
    most_uncertain: tuple[UncertainAtom, ...]


def predict_uncertainties(
    members: Sequence[Potential],
    frames: Sequence[Frame],
    *,
    max_edges: int = MAX_EDGES,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[FrameUncertainty], tuple[str, ...]]:
    """How sure a committee is of every frame.

    Args:
        members: see ``clebsch.committee.uncertainty``.
        frames: with or without labels.
        max_edges: edges in a batch, see ``clebsch.evaluation.predict.predict``.
        progress: called as ``progress(done, total)`` after each batch.

    Returns:
        The uncertainties in the order of the frames, and notes on what had to be changed.

    Raises:
        UnknownElementError: a frame has an element that the members do not know.
        ClebschError: no committee, or memory does not suffice for a single frame.
    """
    check_committee(members)
    told: dict[int, FrameUncertainty] = {}
    batches, compute = Batches(max_edges), partial(uncertainty, members)
    maker, everything = graph_maker(members), range(len(frames))
    for indices, found in batches.computed(maker, frames, everything, compute):
        ends = np.cumsum([len(frames[i]) for i in indices])
        atoms = np.split(found.of_atoms.cpu().numpy(), ends[:-1])
        for index, energy, forces in zip(indices, found.energy.tolist(), atoms, strict=True):
            told[index] = FrameUncertainty(energy, forces)
        if progress is not None:
            progress(len(told), len(frames))
    return [told[i] for i in everything], tuple(batches.notes)


def calibrate(
    frames: Sequence[Frame],
    predictions: Sequence[FramePrediction],
    uncertainties: Sequence[FrameUncertainty],
) -> Calibration:
    """How uncertain predictions are, and how wrong in comparison.

    Args:
        frames: at least one.
        predictions: one per frame.
        uncertainties: one per frame.
    """
    sizes = np.array([len(frame) for frame in frames])
    energies = np.array([told.energy for told in uncertainties]) / sizes
    atoms = np.concatenate([told.atoms for told in uncertainties])
    errors = [_errors(*pair) for pair in zip(frames, predictions, strict=True)]
    energy_errors = np.array([energy for energy, _ in errors]) / sizes
    force_errors = np.concatenate([forces for _, forces in errors])
    return Calibration(
        energy_per_atom=_root_mean_square(energies),
        forces=_root_mean_square(atoms) / 3**0.5,
        energy_ratio=_ratio(energy_errors, energies),
        forces_ratio=_ratio(force_errors, atoms),
        forces_rank_correlation=_rank_correlation(force_errors, atoms),
        most_uncertain=_most_uncertain(frames, uncertainties),
    )


def _errors(frame: Frame, prediction: FramePrediction) -> tuple[float, np.ndarray]:
    """Of the energy, eV, and of each atom's force, [n] eV/Angstrom; NaN where there is no label."""
    energy, forces = np.nan, np.full(len(frame), np.nan)
    if frame.energy is not None:
        energy = prediction.energy - frame.energy
    if frame.forces is not None:
        forces = np.linalg.norm(prediction.forces - frame.forces, axis=1)
    return energy, forces


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _ratio(errors: np.ndarray, uncertainties: np.ndarray) -> float | None:
    labelled = ~np.isnan(errors)
    if not uncertainties[labelled].any():
        return None
    return _root_mean_square(errors[labelled]) / _root_mean_square(uncertainties[labelled])


def _rank_correlation(errors: np.ndarray, uncertainties: np.ndarray) -> float | None:
    labelled = ~np.isnan(errors)
    columns = errors[labelled], uncertainties[labelled]
    if any(len(np.unique(column)) < 2 for column in columns):
        return None
    return float(spearmanr(*columns).statistic)


def _most_uncertain(
    frames: Sequence[Frame], uncertainties: Sequence[FrameUncertainty]
) -> tuple[UncertainAtom, ...]:
    """Most uncertain first, ``N_NAMED`` at most."""
    found = []
    for index, (frame, told) in enumerate(zip(frames, uncertainties, strict=True)):
        atom = int(told.atoms.argmax())
        element, uncertainty = frame.symbols[atom], float(told.atoms[atom])
        found.append(UncertainAtom(index, frame.place(index), atom, element, uncertainty))
    return tuple(sorted(found, key=lambda one: -one.uncertainty)[:N_NAMED])
