"""Errors and loss on a set of structures: sums over all of it, however it is cut into batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clebsch.data.loader import Batch, LabelledGraphs
from clebsch.evaluation.metrics import ErrorAccumulator
from clebsch.potential import Potential, Prediction
from clebsch.training.config import LossConfig
from clebsch.training.loss import LossSums, labelled_outputs, loss_sums, volumes


def validate(
    potential: Potential,
    graphs: LabelledGraphs,
    batches: Sequence[Sequence[int]],
    config: LossConfig,
) -> dict[str, float]:
    """The loss and the errors of every quantity that has labels; units eV and Angstrom.

    Returns:
        ``loss``, its terms without their weights (``loss_energy`` ...), and what
        ``clebsch.evaluation.metrics.ErrorAccumulator`` reports.
    """
    sums = LossSums()
    errors = ErrorAccumulator()
    for indices in batches:
        batch = graphs.batch(indices).to(potential.device)
        outputs = labelled_outputs(batch.counts)
        if outputs:
            prediction = potential(batch.graph, outputs)
            sums = sums + loss_sums(prediction, batch, config).numbers()
            _add(errors, prediction, batch)
    return loss_metrics(sums, config) | errors.result()


def loss_metrics(sums: LossSums, config: LossConfig) -> dict[str, float]:
    """The loss and those of its terms that have labels; nothing if none has."""
    terms = {
        "loss_energy": (sums.energy, sums.n_energy),
        "loss_forces": (sums.forces, sums.n_forces),
        "loss_stress": (sums.stress, sums.n_stress),
    }
    means = {name: float(total) / n for name, (total, n) in terms.items() if n}
    return {"loss": float(sums.loss(config))} | means if means else {}


def _add(errors: ErrorAccumulator, prediction: Prediction, batch: Batch) -> None:
    labels, graph = batch.labels, batch.graph
    if prediction.energy is not None:
        errors.add_energy(
            prediction.energy, labels.energy, graph.atoms_per_frame, labels.has_energy
        )
    if prediction.forces is not None:
        errors.add_forces(prediction.forces, labels.forces, labels.has_forces[graph.frame])
    if prediction.virial is not None:
        mask = labels.has_stress
        stress = -prediction.virial[mask] / volumes(batch)[mask][:, None, None]
        errors.add_stress(stress, labels.stress[mask], torch.ones(len(stress), dtype=torch.bool))
