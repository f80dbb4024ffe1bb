r"""Bayesian linear regression from normal equations: the strength of the prior by the evidence.

With coefficients c_p = s_p w_p, a prior w ~ N(0, 1/alpha), residuals of variance 1/(beta weight)
and \lambda = alpha / beta, the posterior of w is normal with

    mean = K^-1 b,  covariance = K^-1 / beta,  K = S X^T X S + \lambda,  b = S X^T y.

The logarithm of the evidence p(y | alpha, beta) (MacKay, Neural Computation 4, 415, 1992; Bishop,
Pattern Recognition and Machine Learning, section 3.5) is, with beta at its maximum n / E,
E = y^T y - b . mean the regularised sum of squares, and up to constants of the data

    P/2 log \lambda - 1/2 log det K - n/2 log E - n/2 (1 + log(2 pi / n)).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from clebsch.errors import ClebschError

#: The least strength that is tried, relative to the mean diagonal of S X^T X S: what rounding
#: allows in float64. The greatest is its trace, above all eigenvalues, where nothing is learned.
LEAST = 1e-14
#: How well log10 of the best is found.
PRECISION = 0.3
#: Columns of a triangular inverse that are held at a time.
COLUMNS = 512


@dataclass(frozen=True, eq=False)
class Posterior:
    """The normal distribution of the coefficients.

    Attributes:
        mean: [P].
        prior_std: [P], s, in units of 1 / sqrt(alpha).
        factor: [P, P] lower Cholesky factor of K, a tensor.
        strength: lambda.
        beta: inverse variance of residuals of weight 1.
        log_evidence: natural logarithm.
    """

    mean: np.ndarray
    prior_std: np.ndarray
    factor: Tensor
    strength: float
    beta: float
    log_evidence: float

    def draws(self, n: int, seed: int) -> np.ndarray:
        """[n, P] draws from the posterior minus its mean: s L^-T z / sqrt(beta)."""
        normal = np.random.default_rng(seed).standard_normal((len(self.mean), n))
        solved = torch.linalg.solve_triangular(self.factor.T, torch.tensor(normal), upper=True)
        return (self.prior_std[:, None] * solved.numpy()).T / math.sqrt(self.beta)

    def variance(self, rows: np.ndarray) -> np.ndarray:
        """[n] variance of x . c for rows x [n, P]; noise is not in it."""
        scaled = torch.tensor((rows * self.prior_std).T)
        solved = torch.linalg.solve_triangular(self.factor, scaled, upper=False)
        return (solved.square().sum(0) / self.beta).numpy()

    def effective_parameters(self) -> float:
        """P - lambda tr K^-1: how many coefficients the data determine."""
        size, trace = len(self.mean), 0.0
        for start in range(0, size, COLUMNS):  # the rows above a column of L^-1's diagonal are zero
            unit = torch.eye(size - start, min(COLUMNS, size - start), dtype=torch.float64)
            below = self.factor[start:, start:]
            inverse = torch.linalg.solve_triangular(below, unit, upper=False)
            trace += float(inverse.square().sum())
        return size - self.strength * trace


def posterior(
    gram: np.ndarray,
    moment: np.ndarray,
    square: float,
    n_rows: int,
    prior_std: np.ndarray,
    strength: float | None = None,
    tell: Callable[[float, float], None] = lambda strength, log_evidence: None,
) -> Posterior:
    """The posterior of a linear fit.

    Args:
        gram: [P, P] X^T X with weights, lower triangle.
        moment: [P] X^T y.
        square: y^T y.
        n_rows: number of rows, n.
        prior_std: [P] s.
        strength: lambda; the one of greatest evidence if None.
        tell: called with every strength that is tried, and its log evidence.

    Raises:
        ClebschError: K is not positive definite to rounding.
    """
    moment = prior_std * moment
    problem = _Problem(
        torch.from_numpy(gram), torch.tensor(prior_std), torch.tensor(moment), square, n_rows
    )
    if strength is None:
        diagonal = gram.diagonal() * prior_std**2
        low, high = math.log10(LEAST * diagonal.mean()), math.log10(diagonal.sum())
        strength, solved = _most_probable(problem, low, high, tell)
    else:
        solved = problem.solve(strength)
    if solved is None:
        raise ClebschError(
            f"the fit's equations are singular to rounding with fit.regularization {strength:.3g}; "
            "a larger one is needed"
        )
    weights, factor, log_evidence, beta = solved
    return Posterior(prior_std * weights, prior_std, factor, strength, beta, log_evidence)


_Solution = tuple[np.ndarray, Tensor, float, float]  # mean, factor, log evidence, beta


def _most_probable(
    problem: _Problem, low: float, high: float, tell: Callable[[float, float], None]
) -> tuple[float, _Solution | None]:
    """The strength of greatest evidence between two powers of ten, and its solution."""
    best: tuple[float, _Solution | None] = (10.0**high, None)

    def loss(exponent: float) -> float:
        nonlocal best
        found = problem.solve(10.0**exponent)
        tell(10.0**exponent, -math.inf if found is None else found[2])
        if found is None:
            return 1e300
        if best[1] is None or found[2] > best[1][2]:
            best = (10.0**exponent, found)
        return -found[2]

    minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": PRECISION})
    return best


@dataclass(frozen=True, eq=False)
class _Problem:
    gram: Tensor
    prior_std: Tensor
    moment: Tensor
    square: float
    n_rows: int

    def solve(self, strength: float) -> _Solution | None:
        """Mean, factor, log evidence, beta; None where K is not positive definite to rounding."""
        n, size = self.n_rows, len(self.gram)
        matrix = self.gram * self.prior_std
        matrix *= self.prior_std[:, None]
        matrix.diagonal().add_(strength)
        factor, info = torch.linalg.cholesky_ex(matrix)
        if info != 0:
            return None
        mean = torch.cholesky_solve(self.moment[:, None], factor)[:, 0]
        left = self.square - float(self.moment @ mean)
        if not left > 0:
            return None
        log_evidence = 0.5 * (size * math.log(strength) - n * math.log(left))
        log_evidence -= float(factor.diagonal().log().sum())
        log_evidence -= 0.5 * n * (1 + math.log(2 * math.pi / n))
        return mean.numpy(), factor, log_evidence, n / left
