"""Real Clebsch-Gordan coefficients.

The tables belong to the real spherical harmonics of ``clebsch.algebra.spherical`` (y is the polar
axis, components m = -l..l) and have unit Frobenius norm over their three indices, which makes
them symmetric in the three irreps up to a sign. The sign is that of e3nn 0.4.4:

* for l1 <= l2 <= l3 with an even sum the entry m1 = m2 = m3 = 0 is positive, with an odd sum
  (where that entry vanishes) the first non-zero entry in row-major order is;
* for other orders the axes are permuted, with a factor (-1)^(l1+l2+l3) for odd permutations.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from math import comb, factorial, sqrt

import numpy as np

# Entries are sums of at most eight numbers below one: what is smaller than this is rounding.
_ROUNDING = 1e-14


def _complex_coefficient(l1: int, m1: int, l2: int, m2: int, l3: int) -> float:
    """<l1 m1 l2 m2 | l3 m1+m2> / sqrt(2 l3 + 1) with Condon-Shortley phases.

    Racah's formula with its factorials gathered into binomial coefficients: integers and one
    fraction, rounded once before the square root.
    """
    m3 = m1 + m2
    a, b, c = l1 + l2 - l3, l1 - l2 + l3, l2 - l1 + l3
    total = 0
    for k in range(max(0, l1 - m1 - b, l2 + m2 - c), min(a, l1 - m1, l2 + m2) + 1):
        total += (-1) ** k * comb(a, k) * comb(b, l1 - m1 - k) * comb(c, l2 + m2 - k)
    square = total**2
    for degree, m in ((l1, m1), (l2, m2), (l3, m3)):
        square *= factorial(degree + m) * factorial(degree - m)
    denominator = factorial(a) * factorial(b) * factorial(c) * factorial(l1 + l2 + l3 + 1)
    magnitude = sqrt(Fraction(square, denominator))
    return magnitude if total > 0 else -magnitude


def _complex_table(l1: int, l2: int, l3: int) -> np.ndarray:
    """[2l1+1, 2l2+1, 2l3+1] coefficients between complex spherical harmonics."""
    table = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l3 - m1), min(l2, l3 - m1) + 1):
            table[l1 + m1, l2 + m2, l3 + m1 + m2] = _complex_coefficient(l1, m1, l2, m2, l3)
    return table


@cache
def _real_from_complex(degree: int) -> np.ndarray:
    """Unitary matrix [real m, complex m] from complex to real spherical harmonics."""
    matrix = np.zeros((2 * degree + 1, 2 * degree + 1), dtype=np.complex128)
    matrix[degree, degree] = 1.0
    for m in range(1, degree + 1):
        sign = (-1) ** m
        matrix[degree + m, [degree + m, degree - m]] = np.array([sign, 1]) / sqrt(2)
        matrix[degree - m, [degree + m, degree - m]] = np.array([-1j * sign, 1j]) / sqrt(2)
    return matrix


@cache
def _sorted_table(l1: int, l2: int, l3: int) -> np.ndarray:
    """The real table for l1 <= l2 <= l3."""
    table = np.einsum(
        "ia,jb,kc,abc->ijk",
        _real_from_complex(l1).conj(),
        _real_from_complex(l2).conj(),
        _real_from_complex(l3),
        _complex_table(l1, l2, l3),
        optimize=True,
    )
    even = (l1 + l2 + l3) % 2 == 0
    # The phase is common to all entries: real for an even sum, imaginary for an odd one.
    real = np.ascontiguousarray(table.real if even else table.imag)
    real[np.abs(real) < _ROUNDING] = 0.0
    leading = real[l1, l2, l3] if even else real.ravel()[np.flatnonzero(real)[0]]
    return real if leading > 0 else -real


@cache
def clebsch_gordan(l1: int, l2: int, l3: int) -> np.ndarray:
    """Real Clebsch-Gordan coefficients of three irreps.

    With x of degree l1 and y of degree l2, ``einsum("ijk,i,j->k", C, x, y)`` is of degree l3, and
    ``sqrt(2 l3 + 1) C`` is an isometry from degree l3 into the product. The signs are told in
    the module's docstring.

    Returns:
        [2l1+1, 2l2+1, 2l3+1] float64, read-only, of unit Frobenius norm.

    Raises:
        ValueError: a degree is negative or |l1-l2| <= l3 <= l1+l2 is violated: there is nothing
            to couple, and asking for it is a mistake in the selection rule.
    """
    degrees = (l1, l2, l3)
    if min(degrees) < 0 or not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"degrees {l1}, {l2}, {l3} do not couple: |l1-l2| <= l3 <= l1+l2 fails")
    order = np.argsort(degrees, kind="stable")
    table = _sorted_table(*sorted(degrees)).transpose(np.argsort(order))
    inversions = (l1 > l2) + (l1 > l3) + (l2 > l3)
    if inversions * sum(degrees) % 2:
        table = -table
    table = np.ascontiguousarray(table)
    table.flags.writeable = False
    return table
