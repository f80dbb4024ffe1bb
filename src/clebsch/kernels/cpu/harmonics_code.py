"""The kernels of spherical harmonics, edges side by side.

``clebsch.kernels.harmonic_polynomials`` has the formulas and says what the letters mean.
"""

from __future__ import annotations

from llvmlite import ir

from clebsch.kernels.cpu import machine
from clebsch.kernels.cpu.emit import Emitter
from clebsch.kernels.harmonic_polynomials import (
    Exponents,
    Polynomial,
    derivative,
    harmonic_polynomials,
)

Vector = list[ir.Value]


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
