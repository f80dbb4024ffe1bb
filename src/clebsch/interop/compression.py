"""From mace-torch's couplings to ours: exact, though ours are three to five times fewer.

mace-torch keeps the tensors U of its product basis in the file, in whichever basis it was made
with. All factors of a product hold the same A, so that only the part of U that is symmetric in
them counts, and that part is a combination of our orthonormal symmetric couplings B:

    sym U[p] = sum over eta of R[eta, p] B[eta],   and so   W'[eta] = sum over p of R[eta, p] W[p].
"""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from math import factorial, prod
from typing import Any

import numpy as np

from clebsch.algebra import CouplingBasis
from clebsch.errors import ModelFileError

#: Largest part of U that our couplings may miss: the rounding of a file in float32.
MISSED = 1e-5


def compression(basis: CouplingBasis, couplings: np.ndarray, place: str) -> np.ndarray:
    """R, from couplings of one order and target to ours.

    Args:
        basis: our symmetric couplings.
        couplings: [2L + 1, Q, ..., Q, P], with the components of A in our order.
        place: names the file in errors.

    Returns:
        [n_couplings, P] float64.

    Raises:
        ModelFileError: the couplings are no equivariant ones, in our conventions.
    """
    couplings = couplings.astype(np.float64)
    weights = np.array([_factorials(row) for row in basis.monomials.tolist()])
    # sums over all orders of factors, each different one counted once
    symmetric = np.zeros((basis.target.dim, len(weights), couplings.shape[-1]))
    for order in permutations(range(basis.order)):
        index: Any = (slice(None), *(basis.monomials[:, slot] for slot in order))
        symmetric += couplings[index]
    symmetric /= weights[:, None]
    coupling, component, monomial, coefficient = basis.terms
    products = (weights[monomial] * coefficient)[:, None] * symmetric[component, monomial]
    result = np.zeros((basis.n_couplings, couplings.shape[-1]))
    np.add.at(result, coupling, products)
    result /= basis.target.dim
    _check(basis, couplings, result, place)
    return result


def _check(basis: CouplingBasis, couplings: np.ndarray, result: np.ndarray, place: str) -> None:
    """Evaluate both on a few random A: polynomials that agree there agree."""
    rng = np.random.default_rng(0)
    for features in rng.normal(size=(3, basis.irreps.dim)):
        expected = couplings
        for _ in range(basis.order):
            expected = np.einsum("mq...,q->m...", expected, features)
        products = prod(features[column] for column in basis.monomials.T)
        found = np.zeros((basis.target.dim, couplings.shape[-1]))
        coupling, component, monomial, coefficient = basis.terms
        parts = (coefficient * np.asarray(products)[monomial])[:, None] * result[coupling]
        np.add.at(found, component, parts)
        if np.abs(found - expected).max(initial=0) > MISSED * (1 + np.abs(expected).max(initial=0)):
            raise ModelFileError(
                f"{place}: its couplings to {basis.target} of order {basis.order} are not spanned "
                "by the symmetric equivariant ones"
            )


def _factorials(monomial: list[int]) -> int:
    """Product of the factorials of the multiplicities in a monomial."""
    return prod(factorial(count) for count in Counter(monomial).values())
