"""What a potential needs to know about its training data: neighbours, forces, energies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clebsch.data.frame import Frame
from clebsch.data.references import energy_weights, interaction_energy
from clebsch.errors import DataError
from clebsch.neighbors import complete_cell, find_pairs

#: eV/atom: energies that differ by less are the same but for rounding.
NO_SPREAD = 1e-8


@dataclass(frozen=True)
class Statistics:
    """Statistics over the labels that are there; missing ones count nowhere.

    Attributes:
        avg_num_neighbors: mean number of neighbours of an atom within the cut-off.
        forces_rms: root mean square of the force components, eV/Angstrom.
        mean_interaction_energy: mean over structures of (energy - references) per atom, eV/atom,
            weighted as in the loss.
        interaction_energy_std: its standard deviation, eV/atom, likewise.
        assumed: names of the fields above that could not be measured (no such labels, no
            neighbours, or all zero) and hold 1 instead, 0 for the mean energy.
    """

    avg_num_neighbors: float
    forces_rms: float
    mean_interaction_energy: float
    interaction_energy_std: float
    assumed: tuple[str, ...] = ()


def compute_statistics(
    frames: Sequence[Frame], references: Mapping[str, float], cutoff: float
) -> Statistics:
    """Statistics of ``frames`` for a model of this ``cutoff`` (Angstrom).

    Args:
        frames: structures with or without labels.
        references: isolated-atom energies, eV; needed for every element of a labelled energy.
        cutoff: Angstrom.

    Raises:
        DataError: there are no frames, or an element of a frame with an energy has no reference.
    """
    if not frames:
        raise DataError("statistics of no frames were asked for")
    n_atoms = sum(len(frame) for frame in frames)
    labelled = [frame for frame in frames if frame.energy is not None]
    interaction = np.array([interaction_energy(f, references) / len(f) for f in labelled])
    weights = energy_weights(labelled)
    forces = [frame.forces.ravel() for frame in frames if frame.forces is not None]
    components = np.concatenate(forces) if forces else np.zeros(0)
    assumed: list[str] = []

    def measured(name: str, value: float, fallback: float, valid: bool) -> float:
        if valid:
            return value
        assumed.append(name)
        return fallback

    neighbors = sum(len(neighbor_pairs(frame, cutoff)[0]) for frame in frames) / n_atoms
    forces_rms = float(np.sqrt(np.mean(components**2))) if len(components) else 0.0
    mean = float(np.average(interaction, weights=weights)) if labelled else 0.0
    spread = np.average((interaction - mean) ** 2, weights=weights) if labelled else 0.0
    std = float(np.sqrt(spread))
    return Statistics(
        avg_num_neighbors=measured("avg_num_neighbors", neighbors, 1.0, neighbors > 0),
        forces_rms=measured("forces_rms", forces_rms, 1.0, forces_rms > 0),
        mean_interaction_energy=measured("mean_interaction_energy", mean, 0.0, bool(labelled)),
        interaction_energy_std=measured("interaction_energy_std", std, 1.0, std > NO_SPREAD),
        assumed=tuple(assumed),
    )


def neighbor_pairs(frame: Frame, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of atoms closer than ``cutoff`` Angstrom, both directions, images included.

    Returns:
        [n_pairs] first atoms, second atoms, and distances in Angstrom, in no particular order.
    """
    box = complete_cell(frame.cell, frame.pbc)
    first, second, distances = find_pairs(frame.positions, box, frame.pbc, cutoff, "ijd")
    return first.astype(np.int64), second.astype(np.int64), distances
