"""Least squares from a stream of rows: memory does not grow with the number of rows."""

from __future__ import annotations

import numpy as np
import torch

#: Rows that are gathered before they are multiplied, and columns that are multiplied at a time:
#: enough for matrix products at full speed, with few of them above the diagonal.
BLOCK, PANEL = 2048, 1024


class NormalEquations:
    """X^T X, X^T y, y^T y and the number of rows of a weighted design matrix X.

    Attributes:
        moment: [P] X^T y, up to the last ``close``.
        square: y^T y.
        n_rows: rows so far.
    """

    def __init__(self, n_columns: int) -> None:
        self._gram = torch.zeros(n_columns, n_columns, dtype=torch.float64)
        self.moment = np.zeros(n_columns)
        self.square = 0.0
        self.n_rows = 0
        self._block = np.zeros((BLOCK, n_columns))
        self._targets = np.zeros(BLOCK)
        self._filled = 0

    def add(self, rows: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> None:
        """Add rows.

        Args:
            rows: [n, P].
            targets: [n].
            weights: [n], of the squared residuals.
        """
        root = np.sqrt(weights)
        start = 0
        while start < len(targets):
            stop = min(len(targets), start + BLOCK - self._filled)
            place = slice(self._filled, self._filled + stop - start)
            np.multiply(rows[start:stop], root[start:stop, None], out=self._block[place])
            self._targets[place] = targets[start:stop] * root[start:stop]
            self._filled, start = place.stop, stop
            if self._filled == BLOCK:
                self._multiply()

    def close(self) -> np.ndarray:
        """X^T X, [P, P], its lower triangle; the object is spent then."""
        self._multiply()
        gram, self._gram = self._gram, torch.zeros(0, 0)
        self._block = np.zeros((0, 0))
        return gram.numpy()

    def _multiply(self) -> None:
        filled, targets = self._block[: self._filled], self._targets[: self._filled]
        rows = torch.from_numpy(filled)
        for start in range(0, len(self._gram), PANEL):
            panel = slice(start, start + PANEL)
            self._gram[start:, panel].addmm_(rows[:, start:].T, rows[:, panel])
        self.moment += targets @ filled
        self.square += float(targets @ targets)
        self.n_rows += self._filled
        self._filled = 0
