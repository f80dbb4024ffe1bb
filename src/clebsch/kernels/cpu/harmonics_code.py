"""The kernels of spherical harmonics: polynomials in the unit vector, edges side by side.

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

from llvmlite import ir

from clebsch.kernels.cpu import machine
from clebsch.kernels.cpu.emit import Emitter

Exponents = tuple[int, int, int]
Polynomial = dict[Exponents, float]
Vector = list[ir.Value]

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


class _Point:
    """Unit vectors of some edges and the values of polynomials there."""

    def __init__(self, e: Emitter, l_max: int, edge: ir.Value, lanes: int) -> None:
        self.e, self.l_max, self.edge, self.lanes = e, l_max, edge, lanes
        vector = self.rows("xyz", 3)
        length_squared = e.fma(vector[2], vector[2], self.dot(vector[:2], vector[:2]))
        self.inverse = e.divide(e.constant(1, lanes), e.square_root(length_squared))
        self.u = [e.mul(component, self.inverse) for component in vector]
        self._powers: dict[Exponents, ir.Value] = {}

    def rows(self, name: str, n_rows: int) -> Vector:
        """These edges' entries of [n_rows, n_edges]."""
        e = self.e
        return [
            e.load(e.at(e[name], e.times(e["n_edges"], row), self.edge), self.lanes)
            for row in range(n_rows)
        ]

    def write(self, name: str, row: int, value: ir.Value) -> None:
        """Store one row of these edges."""
        e = self.e
        e.store(value, e.at(e[name], e.times(e["n_edges"], row), self.edge))

    def dot(self, a: Vector, b: Vector) -> ir.Value:
        """The scalar product."""
        total = None
        for x, y in zip(a, b, strict=True):
            total = self.e.fma(x, y, total)
        return total

    def along(self, number: ir.Value, a: Vector, b: Vector) -> Vector:
        """number a + b."""
        return [self.e.fma(number, x, y) for x, y in zip(a, b, strict=True)]

    def monomial(self, exponents: Exponents) -> ir.Value:
        """x^a y^b z^c of the unit vector."""
        if exponents not in self._powers:
            axis = next((i for i in range(3) if exponents[i]), None)
            if axis is None:
                value = self.e.constant(1, self.lanes)
            else:
                lower = list(exponents)
                lower[axis] -= 1
                below = self.monomial((lower[0], lower[1], lower[2]))
                value = self.u[axis] if not any(lower) else self.e.mul(below, self.u[axis])
            self._powers[exponents] = value
        return self._powers[exponents]

    def value(self, polynomial: Polynomial) -> ir.Value | None:
        """The polynomial's value; None where it is zero everywhere."""
        total = None
        for exponents, coefficient in polynomial.items():
            number = self.e.constant(coefficient, self.lanes)
            total = self.e.fma(number, self.monomial(exponents), total)
        return total

    def accumulate(self, total: ir.Value | None, g: ir.Value, p: Polynomial) -> ir.Value | None:
        """total + g p."""
        value = self.value(p)
        return total if value is None else self.e.fma(g, value, total)


def write(name: str, l_max: int, bits: int) -> str:
    """One kernel over edges start..stop; all arrays are [rows, n_edges].

    - ``harmonics``: xyz, out.
    - ``harmonics_gradient``: xyz, cotangent, d_xyz.
    - ``harmonics_second``: xyz, cotangent, t_xyz, d_xyz, d_cotangent.
    """
    body, pointers = {
        "harmonics": (_values, ("xyz", "out")),
        "harmonics_gradient": (_gradient, ("xyz", "cotangent", "d_xyz")),
        "harmonics_second": (_second, ("xyz", "cotangent", "t_xyz", "d_xyz", "d_cotangent")),
    }[name]
    e = Emitter(name, [*pointers, "work"], ("start", "stop", "n_edges"), bits)
    wide = machine.wide(bits)
    whole = e.minus(e["stop"], e.remainder(e.minus(e["stop"], e["start"]), wide))
    for lanes, start, stop in ((wide, e["start"], whole), (1, whole, e["stop"])):
        with e.loop(start, stop, lanes) as edge:
            body(_Point(e, l_max, edge, lanes))
    return e.finish(0)


def _values(point: _Point) -> None:
    for row, polynomial in enumerate(harmonic_polynomials(point.l_max)):
        value = point.value(polynomial)
        assert value is not None
        point.write("out", row, value)


def _weighted_gradient(point: _Point, cotangent: Vector) -> Vector:
    """B."""
    e = point.e
    sums: list[ir.Value | None] = [None] * 3
    for g, polynomial in zip(cotangent, harmonic_polynomials(point.l_max), strict=True):
        sums = [point.accumulate(sums[i], g, derivative(polynomial, i)) for i in range(3)]
    return [e.zero(point.lanes) if total is None else total for total in sums]


def _gradient(point: _Point) -> None:
    e = point.e
    b = _weighted_gradient(point, point.rows("cotangent", (point.l_max + 1) ** 2))
    across = point.along(e.negative(point.dot(point.u, b)), point.u, b)
    for row, value in enumerate(across):
        point.write("d_xyz", row, e.mul(value, point.inverse))


def _second(point: _Point) -> None:
    e, u = point.e, point.u
    cotangent, t = point.rows("cotangent", (point.l_max + 1) ** 2), point.rows("t_xyz", 3)
    b = _weighted_gradient(point, cotangent)
    t_u, u_b = point.dot(t, u), point.dot(u, b)
    hessian: dict[tuple[int, int], ir.Value | None] = {}
    for row, (g, p) in enumerate(zip(cotangent, harmonic_polynomials(point.l_max), strict=True)):
        change = None  # t . grad P - l P (t . u)
        for i in range(3):
            first = derivative(p, i)
            change = point.accumulate(change, t[i], first)
            for j in range(i, 3):
                held = hessian.get((i, j))
                hessian[i, j] = point.accumulate(held, g, derivative(first, j))
        degree = sum(next(iter(p)))
        if change is None:
            change = e.zero(point.lanes)
        else:
            scaled = e.mul(e.constant(-degree, point.lanes), t_u)
            change = point.accumulate(change, scaled, p)
        point.write("d_cotangent", row, e.mul(change, point.inverse))
    s = e.sub(point.dot(t, b), e.mul(t_u, u_b))
    d = point.along(e.negative(u_b), t, _applied(point, hessian, t))
    d = point.along(
        e.negative(t_u), point.along(e.constant(1, point.lanes), b, _applied(point, hessian, u)), d
    )
    inward = e.negative(e.add(point.dot(u, d), s))
    for row, value in enumerate(point.along(inward, u, d)):
        point.write("d_xyz", row, e.mul(value, e.mul(point.inverse, point.inverse)))


def _applied(
    point: _Point, hessian: dict[tuple[int, int], ir.Value | None], vector: Vector
) -> Vector:
    """H times a vector."""
    out = []
    for i in range(3):
        total = point.e.zero(point.lanes)
        for j in range(3):
            entry = hessian[min(i, j), max(i, j)]
            if entry is not None:
                total = point.e.fma(entry, vector[j], total)
        out.append(total)
    return out
