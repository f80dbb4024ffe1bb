"""Couplings times coefficients: from one number per basis function to one per monomial."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clebsch.nn.energy import Float64Module


class FoldedCouplings(Float64Module):
    """out[s, t] = sum over functions p of coefficients[s, p] C[p, t], C sparse and kept in float64.

    Args:
        functions, terms: [n_entries] int64, p and t of every entry of C.
        values: [n_entries].
        n_terms: number of monomials.
    """

    functions: Tensor
    terms: Tensor
    values: Tensor

    def __init__(
        self, functions: np.ndarray, terms: np.ndarray, values: np.ndarray, n_terms: int
    ) -> None:
        super().__init__()
        self.n_terms = n_terms
        self.register_buffer("functions", torch.tensor(functions), persistent=False)
        self.register_buffer("terms", torch.tensor(terms), persistent=False)
        self.register_buffer("values", torch.tensor(values, dtype=torch.float64), persistent=False)

    def forward(self, coefficients: Tensor) -> Tensor:
        """Args: coefficients [S, n_functions]. Returns: [S, n_terms], in the same dtype."""
        weighted = coefficients[:, self.functions] * self.values.to(coefficients.dtype)
        out = coefficients.new_zeros((len(coefficients), self.n_terms))
        return out.index_add(1, self.terms, weighted)
