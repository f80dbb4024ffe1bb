r"""The loss: energies, forces and stresses with masks and weights.

    L = \lambda_E / n_E  sum_b w_b dE_b^2 / N_b
      + \lambda_F / n_F  sum_i w_b(i) |dF_i|^2
      + \lambda_S / n_S  sum_b w_b |V_b dS_b|^2 / N_b

The sums run over labelled structures b (and their atoms i) alone; n_E counts labelled energies,
n_F force components, n_S stress components (nine a structure), so that a missing label neither
pulls towards zero nor dilutes the others. N_b is the number of atoms. The stress enters as virial,
times the volume V_b: extensive like the energy, so that one weight suits every cell, and it can be
had for batches in which some structures have no cell.

Equation 15 of the MACE paper has dE^2 without 1/N (``energy_form`` "total"); its authors used
dE^2/N with lambda_F = 1000 in practice ("per_sqrt_atoms", the default). "per_atom" is (dE/N)^2.
The form also divides the virials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from clebsch.data.loader import Batch, Labels
from clebsch.potential import Prediction
from clebsch.training.config import LossConfig

#: Power of N that divides the squared error of an extensive quantity.
_POWER = {"per_sqrt_atoms": 1, "per_atom": 2, "total": 0}


@dataclass(frozen=True)
class LossSums:
    """Sums of weighted squared residuals and how many residuals they hold.

    They add up over batches, so that the loss of a set does not depend on how it is cut.
    """

    energy: Tensor | float = 0.0
    forces: Tensor | float = 0.0
    stress: Tensor | float = 0.0
    n_energy: int = 0
    n_forces: int = 0
    n_stress: int = 0

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def n_residuals(self) -> int:
        """Of all terms."""
        return self.n_energy + self.n_forces + self.n_stress

    def numbers(self) -> LossSums:
        """The same without tensors."""
        return LossSums(
            _number(self.energy),
            _number(self.forces),
            _number(self.stress),
            self.n_energy,
            self.n_forces,
            self.n_stress,
        )

    def loss(self, config: LossConfig, counted: LossSums | None = None) -> Tensor | float:
        """The loss, dimensionless.

        Args:
            config: weights of the terms.
            counted: whose numbers of residuals to divide by; these sums' own if None. With those
                of a whole batch, the losses of its parts add up to that of the batch.
        """
        counted = counted or self
        return (
            config.energy * self.energy / max(counted.n_energy, 1)
            + config.forces * self.forces / max(counted.n_forces, 1)
            + config.stress * self.stress / max(counted.n_stress, 1)
        )


def labelled_outputs(labels: Labels) -> tuple[str, ...]:
    """What a potential must be asked for to be compared with these labels."""
    masks = {"energy": labels.has_energy, "forces": labels.has_forces, "virial": labels.has_stress}
    return tuple(name for name, mask in masks.items() if bool(mask.any()))


def trained_outputs(labels: Labels, config: LossConfig) -> tuple[str, ...]:
    """As ``labelled_outputs``, without what has no weight in the loss."""
    weights = {"energy": config.energy, "forces": config.forces, "virial": config.stress}
    return tuple(name for name in labelled_outputs(labels) if weights[name] > 0)


def loss_sums(prediction: Prediction, batch: Batch, config: LossConfig) -> LossSums:
    """Compare a prediction with the labels; terms that were not predicted are left out.

    Args:
        prediction: with the outputs of ``trained_outputs``; differentiable if it was made so.
        batch: the structures and labels it is for.
        config: form of the energy error, squared or Huber.
    """
    labels, graph = batch.labels, batch.graph
    n_atoms = graph.atoms_per_frame.to(torch.float64)
    root = n_atoms ** (0.5 * _POWER[config.energy_form])
    energy: Tensor | float = 0.0
    forces: Tensor | float = 0.0
    stress: Tensor | float = 0.0
    n_energy = n_forces = n_stress = 0
    if prediction.energy is not None:
        mask = labels.has_energy
        residual = _labelled(mask, (prediction.energy - labels.energy) / root)
        energy = (labels.energy_weight * _square(residual, config)).sum()
        n_energy = int(mask.sum())
    if prediction.forces is not None:
        mask = labels.has_forces[graph.frame]
        residual = _labelled(mask, prediction.forces - labels.forces)
        weight = labels.forces_weight[graph.frame]
        forces = (weight[:, None] * _square(residual, config)).sum()
        n_forces = 3 * int(mask.sum())
    if prediction.virial is not None:
        mask = labels.has_stress
        virial = -labels.stress * volumes(batch)[:, None, None]
        residual = _labelled(mask, (prediction.virial - virial) / root[:, None, None])
        weight = labels.stress_weight
        stress = (weight[:, None, None] * _square(residual, config)).sum()
        n_stress = 9 * int(mask.sum())
    return LossSums(energy, forces, stress, n_energy, n_forces, n_stress)


def _labelled(mask: Tensor, residuals: Tensor) -> Tensor:
    """Residuals, zero where there is no label: picking rows out would be undone row by row."""
    shaped = mask.reshape(-1, *[1] * (residuals.dim() - 1))
    return torch.where(shaped, residuals, torch.zeros_like(residuals))


def volumes(batch: Batch) -> Tensor:
    """[n_frames] float64, Angstrom^3; zero without a cell."""
    return torch.linalg.det(batch.graph.cell).abs()


def trainable_counts(counts: dict[str, int], config: LossConfig) -> Sequence[str]:
    """The labels, by their name in ``LabelledGraphs.counts``, that exist and have a weight."""
    weights = {"energies": config.energy, "forces": config.forces, "stresses": config.stress}
    return [name for name, weight in weights.items() if weight > 0 and counts[name] > 0]


def _number(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else value


def _square(residual: Tensor, config: LossConfig) -> Tensor:
    """r^2, or with Huber's delta d: r^2 below d, 2 d |r| - d^2 above, smooth where they meet."""
    if config.huber_delta is None:
        return residual.square()
    delta = config.huber_delta
    size = residual.abs()
    return torch.where(size <= delta, residual.square(), 2 * delta * size - delta**2)
