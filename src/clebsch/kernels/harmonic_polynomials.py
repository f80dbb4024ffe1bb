"""Spherical harmonics as polynomials in the unit vector, and the formulas of their derivatives.

With u = v / r, Y_l(v) = P_l(u) for homogeneous polynomials P_l of degree l. For a cotangent g let
B = sum of g grad P(u) and H = sum of g (second derivatives of P)(u). Then

    derivative of g.Y by v:       (B - u (u.B)) / r
    along a direction t:     S = (t.B - (t.u)(u.B)) / r
    derivative of S by g:         (t.grad P - l P (t.u)) / r
    derivative of S by v:         (D - u (u.D) - s u) / r^2,  s = r S,
                                  D = H t - (u.B) t - (t.u)(B + H u)
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from math import sqrt

Exponents = tuple[int, int, int]
Polynomial = dict[Exponents, float]

_AXES: tuple[Exponents, ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))


def _times(polynomial: Polynomial, factor: Polynomial) -> Polynomial:
    out: Polynomial = defaultdict(float)
    for (a, b, c), value in polynomial.items():
        for (i, j, k), other in factor.items():
            out[a + i, b + j, c + k] += value * other
    return {exponents: value for exponents, value in out.items() if abs(value) > 1e-13}


def _sum(*terms: tuple[float, Polynomial]) -> Polynomial:
    out: Polynomial = defaultdict(float)
    for factor, polynomial in terms:
        for exponents, value in polynomial.items():
            out[exponents] += factor * value
    return {exponents: value for exponents, value in out.items() if abs(value) > 1e-13}


def derivative(polynomial: Polynomial, axis: int) -> Polynomial:
    """The derivative by x, y or z."""
    out = {}
    for exponents, value in polynomial.items():
        if exponents[axis]:
            lower = list(exponents)
            lower[axis] -= 1
            out[lower[0], lower[1], lower[2]] = value * exponents[axis]
    return out


@lru_cache(maxsize=16)
def harmonic_polynomials(l_max: int) -> tuple[Polynomial, ...]:
    """P of every component, by the recurrence of ``clebsch.algebra.spherical_harmonics``."""
    x, y, z = ({axis: 1.0} for axis in _AXES)
    square = {(2, 0, 0): 1.0, (0, 2, 0): 1.0, (0, 0, 2): 1.0}
    degrees: list[list[Polynomial]] = [[{(0, 0, 0): 1.0}]]
    if l_max > 0:
        degrees.append([_sum((sqrt(3), axis)) for axis in (x, y, z)])
    for degree in range(2, l_max + 1):
        previous, before = degrees[-1], degrees[-2]
        outermost = sqrt(1 + 1 / (2 * degree))
        sine, cosine = previous[0], previous[-1]
        row = [_sum((outermost, _times(z, sine)), (outermost, _times(x, cosine)))]
        for m in range(1 - degree, degree):
            upper = sqrt((4 * degree**2 - 1) / (degree**2 - m**2))
            inner = [(upper, _times(y, previous[m + degree - 1]))]
            if abs(m) <= degree - 2:
                lower = sqrt(((degree - 1) ** 2 - m**2) / (4 * (degree - 1) ** 2 - 1))
                inner.append((-upper * lower, _times(square, before[m + degree - 2])))
            row.append(_sum(*inner))
        row.append(_sum((outermost, _times(z, cosine)), (-outermost, _times(x, sine))))
        degrees.append(row)
    return tuple(polynomial for row in degrees for polynomial in row)
