"""References or the mean energy, fitted to what a trained model says of validation structures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from clebsch.data.loader import LabelledGraphs
from clebsch.potential import Potential


def energy_residuals(
    potential: Potential, graphs: LabelledGraphs, batches: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compositions, and label less prediction, of the structures that have an energy.

    Returns:
        Counts [n, n_species], residuals [n] in eV, and weights [n] as in the loss.
    """
    counts, residuals, weights = [], [], []
    n_species = len(potential.species)
    for indices in batches:
        batch = graphs.batch(indices).to(potential.device)
        if not batch.counts.energy:
            continue
        energy = potential(batch.graph, ("energy",)).energy
        assert energy is not None
        labelled = batch.labels.has_energy.cpu().numpy()
        residuals.append((batch.labels.energy - energy).cpu().numpy()[labelled])
        weights.append(batch.labels.energy_weight.cpu().numpy()[labelled])
        atoms = torch.stack([batch.graph.frame, batch.graph.species]).cpu().numpy()
        table = np.zeros((batch.graph.n_frames, n_species))
        np.add.at(table, tuple(atoms), 1.0)
        counts.append(table[labelled])
    if not counts:
        return np.zeros((0, n_species)), np.zeros(0), np.zeros(0)
    return np.concatenate(counts), np.concatenate(residuals), np.concatenate(weights)


def reference_shift(
    counts: np.ndarray, residuals: np.ndarray, weights: np.ndarray, fitted: Sequence[bool]
) -> np.ndarray | None:
    """What to add to references so that they leave the least of some residuals.

    The squared residual of a structure with N atoms and weight w counts w/N. Where compositions
    leave a direction undetermined, the shortest shift is taken. Akaike's criterion, corrected for
    few structures (Hurvich and Tsai 1989), decides whether residuals shrink by more than they would
    by chance.

    Args:
        counts: [n, n_species] of structures that were not trained on; with a single column, of all
            their atoms, for the mean energy.
        residuals: [n], eV.
        weights: [n], above 0; unequal ones count as fewer structures (Kish 1965).
        fitted: [n_species], the references that may change.

    Returns:
        [n_species] in eV; None if references are as good as these structures can tell.
    """
    if not len(residuals):
        return None
    n = round(weights.sum() ** 2 / np.square(weights).sum(), 6)  # whole where they are equal
    factors = np.sqrt(weights / weights.mean() / counts.sum(axis=1))
    matrix, target = counts * np.asarray(fitted) * factors[:, None], residuals * factors
    shift, _, rank, _ = np.linalg.lstsq(matrix, target, rcond=1e-10)
    before, after = np.square(target).sum(), np.square(target - matrix @ shift).sum()
    if n <= rank + 2 or after >= before:
        return None
    gain = n * math.log(before / after) if after > 0 else math.inf
    # the variance of residuals is a parameter as well, the only one if nothing is shifted
    price = 2 * n * ((rank + 1) / (n - rank - 2) - 1 / (n - 2))
    return shift if gain > price else None
