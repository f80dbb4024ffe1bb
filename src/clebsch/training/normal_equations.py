"""Least squares from a stream of rows: memory does not grow with the number of rows."""

from __future__ import annotations

import numpy as np
from scipy.linalg import blas

#: Rows that are gathered before they are multiplied: enough for matrix products at full speed.
BLOCK = 2048


class NormalEquations:
    """X^T X, X^T y, y^T y and the number of rows of a weighted design matrix X.

    Attributes:
        moment: [P] X^T y, up to the last ``close``.
        square: y^T y.
        n_rows: rows so far.
    """

    def __init__(self, n_columns: int) -> None:
        self._gram = np.zeros((n_columns, n_columns), order="F")
        self.moment = np.zeros(n_columns)
        self.square = 0.0
        self.n_rows = 0
        self._block = np.zeros((BLOCK, n_columns)).T  # [P, BLOCK], each row of X together
        self._targets = np.zeros(BLOCK)
        self._filled = 0

    def add(self, rows: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> None:
        """Add rows.

        Args:
            rows: [P, n], transposed.
            targets: [n].
            weights: [n], of the squared residuals.
        """
        root = np.sqrt(weights)
        start = 0
        while start < len(targets):
            stop = min(len(targets), start + BLOCK - self._filled)
            place = slice(self._filled, self._filled + stop - start)
            np.multiply(rows[:, start:stop], root[start:stop], out=self._block[:, place])
            self._targets[place] = targets[start:stop] * root[start:stop]
            self._filled, start = place.stop, stop
            if self._filled == BLOCK:
                self._multiply()

    def close(self) -> np.ndarray:
        """X^T X, [P, P] in Fortran's order, its lower triangle; the object is spent then."""
        self._multiply()
        gram, self._gram = self._gram, np.zeros((0, 0))
        self._block = np.zeros((0, 0))
        return gram

    def _multiply(self) -> None:
        filled, targets = self._block[:, : self._filled], self._targets[: self._filled]
        self._gram = blas.dsyrk(1.0, filled, beta=1.0, c=self._gram, lower=1, overwrite_c=1)
        self.moment += filled @ targets
        self.square += float(targets @ targets)
        self.n_rows += self._filled
        self._filled = 0
