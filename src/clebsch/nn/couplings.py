"""Couplings times coefficients: from one number per basis function to one per monomial."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clebsch.nn.float64 import Float64Module


class FoldedCouplings(Float64Module):
    """out[t] = sum over coefficients p of c[p] C[p, t], C sparse and kept in float64.

    Args:
        coefficients, terms: [n_entries] int64, p and t of every entry of C.
        values: [n_entries].
        n_terms: number of monomials.
    """

    coefficients: Tensor
    terms: Tensor
    values: Tensor

    def __init__(
        self, coefficients: np.ndarray, terms: np.ndarray, values: np.ndarray, n_terms: int
    ) -> None:
        super().__init__()
        self.n_terms = n_terms
        self.register_buffer("coefficients", torch.tensor(coefficients), persistent=False)
        self.register_buffer("terms", torch.tensor(terms), persistent=False)
        self.register_buffer("values", torch.tensor(values, dtype=torch.float64), persistent=False)

    def forward(self, c: Tensor) -> Tensor:
        """Args: c [n_coefficients]. Returns: [n_terms], in the same dtype."""
        weighted = c[self.coefficients] * self.values.to(c.dtype)
        return c.new_zeros(self.n_terms).index_add(0, self.terms, weighted)
