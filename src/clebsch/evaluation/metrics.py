"""Errors of predictions against labels: sums in float64 that do not depend on how data are batched.

Definitions, with N structures of n atoms each:

    energy            E_pred - E_ref, per structure                              eV
    energy_per_atom   (E_pred - E_ref) / n, per structure                        eV/atom
    forces            F_pred - F_ref, over all 3 n components of all structures  eV/Angstrom
    stress            over the six Voigt components of all structures            eV/Angstrom^3

MAE is the mean of the absolute values, RMSE the root of the mean of the squares. Every labelled
structure (energies, stress) or component (forces) counts once; weights of the loss do not enter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import ArrayLike

from clebsch.conventions import VOIGT

#: The quantities that are judged, in the order of tables.
QUANTITIES = ("energy", "energy_per_atom", "forces", "stress")

_VOIGT_ROWS, _VOIGT_COLUMNS = (list(indices) for indices in zip(*VOIGT, strict=True))


@dataclass
class ErrorSums:
    """Count, sum of absolute values and sum of squares of one kind of error."""

    n: int = 0
    absolute: float = 0.0
    squared: float = 0.0

    def add(self, errors: np.ndarray) -> None:
        """Take in errors of any shape."""
        self.n += errors.size
        self.absolute += float(np.abs(errors).sum())
        self.squared += float(np.square(errors).sum())

    @property
    def mae(self) -> float:
        """Mean absolute error; there must be at least one error."""
        return self.absolute / self.n

    @property
    def rmse(self) -> float:
        """Root mean square error; there must be at least one error."""
        return math.sqrt(self.squared / self.n)


class ErrorAccumulator:
    """Errors of any number of batches; training's validation and ``evaluate`` both use it.

    Arrays may be numpy arrays, lists or tensors (of any device and dtype). A ``mask`` is True
    where a label exists; what stands elsewhere, NaN included, is not looked at.
    """

    def __init__(self) -> None:
        self._sums = {quantity: ErrorSums() for quantity in QUANTITIES}
        self._elements: dict[int, ErrorSums] = {}

    def add_energy(
        self,
        predicted: ArrayLike,
        reference: ArrayLike,
        n_atoms: ArrayLike,
        mask: ArrayLike | None = None,
    ) -> None:
        """Total energies.

        Args:
            predicted, reference: [n_frames], eV.
            n_atoms: [n_frames], atoms per structure.
            mask: [n_frames] bool.
        """
        errors = _errors(predicted, reference, mask)
        self._sums["energy"].add(errors)
        self._sums["energy_per_atom"].add(errors / _masked(n_atoms, mask))

    def add_forces(
        self,
        predicted: ArrayLike,
        reference: ArrayLike,
        mask: ArrayLike | None = None,
        numbers: ArrayLike | None = None,
    ) -> None:
        """Forces, and their errors per element where ``numbers`` are given.

        Args:
            predicted, reference: [n_atoms, 3], eV/Angstrom.
            mask: [n_atoms] bool.
            numbers: [n_atoms], atomic numbers.
        """
        errors = _errors(predicted, reference, mask)
        self._sums["forces"].add(errors)
        if numbers is not None:
            kept = _masked(numbers, mask)
            for number in np.unique(kept):
                sums = self._elements.setdefault(int(number), ErrorSums())
                sums.add(errors[kept == number])

    def add_stress(
        self, predicted: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None
    ) -> None:
        """Stress tensors; the six Voigt components count once each.

        Args:
            predicted, reference: [n_frames, 3, 3], eV/Angstrom^3.
            mask: [n_frames] bool.
        """
        errors = _errors(predicted, reference, mask)
        self._sums["stress"].add(errors[:, _VOIGT_ROWS, _VOIGT_COLUMNS])

    def result(self) -> dict[str, float]:
        """``{quantity}_mae`` and ``{quantity}_rmse`` of every quantity that had a label.

        A quantity without labels is absent, never zero or NaN.
        """
        metrics = {}
        for quantity, sums in self._sums.items():
            if sums.n:
                metrics[f"{quantity}_mae"] = sums.mae
                metrics[f"{quantity}_rmse"] = sums.rmse
        return metrics

    def counts(self) -> dict[str, int]:
        """How many errors each quantity of ``result`` is a mean of (forces, stress: components)."""
        return {quantity: sums.n for quantity, sums in self._sums.items() if sums.n}

    def per_element(self) -> dict[str, dict[str, float]]:
        """``{symbol: {"forces_mae", "forces_rmse", "n": components}}``, by atomic number."""
        return {
            chemical_symbols[number]: {
                "forces_mae": sums.mae,
                "forces_rmse": sums.rmse,
                "n": sums.n,
            }
            for number, sums in sorted(self._elements.items())
        }


def _array(values: ArrayLike | torch.Tensor) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def _masked(values: ArrayLike, mask: ArrayLike | None) -> np.ndarray:
    array = _array(values)
    return array if mask is None else array[_array(mask).astype(bool)]


def _errors(predicted: ArrayLike, reference: ArrayLike, mask: ArrayLike | None) -> np.ndarray:
    """predicted - reference in float64, where there is a label."""
    left = _masked(predicted, mask).astype(np.float64)
    right = _masked(reference, mask).astype(np.float64)
    if left.shape != right.shape:
        raise ValueError(f"predictions {left.shape} and labels {right.shape} differ in shape")
    return left - right
