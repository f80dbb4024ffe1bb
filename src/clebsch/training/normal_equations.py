"""Least squares from a stream of rows: memory does not grow with the number of rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

#: Rows that are gathered before they are multiplied, and columns that are multiplied at a time:
#: enough for matrix products at full speed, with few of them above the diagonal.
BLOCK, PANEL = 2048, 1024


class NormalEquations:
    """X^T X, X^T y, y^T y and the number of rows of a weighted design matrix X.

    Attributes:
        moment: [P] X^T y, up to the last ``close``.
        square: y^T y.
        n_rows: independent rows so far.
    """

    def __init__(self, n_columns: int) -> None:
        self._gram = torch.zeros(n_columns, n_columns, dtype=torch.float64)
        self.moment = np.zeros(n_columns)
        self.square = 0.0
        self.n_rows = 0
        self._block = np.zeros((BLOCK, n_columns))
        self._targets = np.zeros(BLOCK)
        self._filled = 0

    def add(
        self, rows: np.ndarray, targets: np.ndarray, weights: np.ndarray, n_independent: int
    ) -> None:
        """Add rows.

        Args:
            rows: [n, P].
            targets: [n].
            weights: [n], of the squared residuals.
            n_independent: how many of them do not follow from others, whatever the coefficients.
        """
        self.n_rows += n_independent
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
        """X^T X, [P, P], its lower triangle; no row can be added then."""
        self._multiply()
        self._block = np.zeros((0, self._gram.shape[1]))
        return self._gram.numpy()

    def state(self) -> dict[str, Tensor]:
        """All of it as tensors; the upper triangle is left out."""
        rows = torch.from_numpy(self._block[: self._filled])
        panels = {f"gram:{panel.start}": gram for panel, gram in self._panels()}
        return panels | {
            "moment": torch.from_numpy(self.moment),
            "square": torch.tensor(self.square, dtype=torch.float64),
            "n_rows": torch.tensor(self.n_rows),
            "rows": rows,
            "targets": torch.from_numpy(self._targets[: self._filled]),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Stand where ``state`` was taken, to the last bit."""
        for panel, gram in self._panels():
            gram.copy_(state[f"gram:{panel.start}"])
        self.moment = state["moment"].numpy()
        self.square = float(state["square"])
        self.n_rows = int(state["n_rows"])
        self._filled = len(state["rows"])
        self._block[: self._filled] = state["rows"].numpy()
        self._targets[: self._filled] = state["targets"].numpy()

    def _panels(self) -> Iterator[tuple[slice, Tensor]]:
        """Columns of the lower triangle from the diagonal on, some at a time."""
        for start in range(0, len(self._gram), PANEL):
            panel = slice(start, start + PANEL)
            yield panel, self._gram[start:, panel]

    def _multiply(self) -> None:
        filled, targets = self._block[: self._filled], self._targets[: self._filled]
        rows = torch.from_numpy(filled)
        for panel, gram in self._panels():
            gram.addmm_(rows[:, panel.start :].T, rows[:, panel])
        self.moment += targets @ filled
        self.square += float(targets @ targets)
        self._filled = 0
