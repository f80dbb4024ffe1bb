"""The kernels of spherical harmonics, a block of edges side by side.

``clebsch.kernels.harmonic_polynomials`` has the formulas and says what the letters mean. B is ``b``
here, and numbers follow letters for x, y and z.
"""

from __future__ import annotations

from collections.abc import Sequence

from clebsch.kernels.gpu.source import Source, products
from clebsch.kernels.harmonic_polynomials import (
    Exponents,
    Polynomial,
    derivative,
    harmonic_polynomials,
)

_AXES = range(3)


def write_values(l_max: int) -> str:
    """out [E, (l_max + 1)^2] of vectors [E, 3]."""
    k = _EdgeSource("harmonics", f"Spherical harmonics to degree {l_max}.", ("vectors", "out"))
    polynomials = harmonic_polynomials(l_max)
    for row, polynomial in enumerate(polynomials):
        k.store("out", row, len(polynomials), k.value(polynomial))
    return str(k)


def write_gradient(l_max: int) -> str:
    """d_vectors [E, 3], the derivative of ``cotangent . harmonics``."""
    arguments = ("vectors", "cotangent", "d_vectors")
    doc = f"First derivative of spherical harmonics to degree {l_max}."
    k = _EdgeSource("harmonics_gradient", doc, arguments)
    k.weighted_gradient(l_max)
    k.add(f"u_b = {_dot('u', 'b')}")
    for axis in _AXES:
        k.store("d_vectors", axis, 3, f"(b{axis} - u_b * u{axis}) * inverse")
    return str(k)


def write_second(l_max: int) -> str:
    """Derivatives of ``t_vectors . (first derivative)`` by vectors and cotangent."""
    arguments = ("vectors", "cotangent", "t_vectors", "d_vectors", "d_cotangent")
    doc = f"Second derivative of spherical harmonics to degree {l_max}."
    k = _EdgeSource("harmonics_second", doc, arguments)
    k.weighted_gradient(l_max)
    for axis in _AXES:
        k.load(f"t{axis}", "t_vectors", axis, 3)
    k.add(f"t_u = {_dot('t', 'u')}")
    k.add(f"u_b = {_dot('u', 'b')}")
    polynomials = harmonic_polynomials(l_max)
    for row, polynomial in enumerate(polynomials):
        degree = sum(next(iter(polynomial)))
        firsts = [(f"t{axis}", k.value(derivative(polynomial, axis))) for axis in _AXES]
        change = products((t, f"({first})") for t, first in firsts if first)
        inward = f"{degree}.0 * t_u * ({k.value(polynomial)})"
        value = f"({change} - {inward}) * inverse" if change else "zero"  # of degree 0
        k.store("d_cotangent", row, len(polynomials), value)
    k.weighted_hessian(l_max)
    for axis in _AXES:
        k.add(f"Ht{axis} = {_applied(axis, 't')}")
        k.add(f"Hu{axis} = {_applied(axis, 'u')}")
        k.add(f"d{axis} = Ht{axis} - u_b * t{axis} - t_u * (b{axis} + Hu{axis})")
    k.add(f"s = {_dot('t', 'b')} - t_u * u_b")
    k.add(f"u_d = {_dot('u', 'd')}")
    for axis in _AXES:
        k.store("d_vectors", axis, 3, f"(d{axis} - (u_d + s) * u{axis}) * (inverse * inverse)")
    return str(k)


def _dot(left: str, right: str) -> str:
    return products((f"{left}{axis}", f"{right}{axis}") for axis in _AXES)


def _applied(axis: int, vector: str) -> str:
    """A component of H times a vector."""
    entries = (f"H{min(axis, other)}{max(axis, other)}" for other in _AXES)
    return products((entry, f"{vector}{other}") for other, entry in enumerate(entries))


class _EdgeSource(Source):
    """A kernel that knows its edges' unit vectors u and the inverse of their lengths."""

    def __init__(self, name: str, doc: str, arguments: Sequence[str]) -> None:
        super().__init__(name, doc, (*arguments, "n_edges"), ("BLOCK",))
        self._named: set[Exponents] = set()
        self.add("edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)")
        self.add("inside = edge < n_edges")
        self.add("zero = tl.zeros((BLOCK,), vectors.dtype.element_ty)")
        for axis in _AXES:
            self.load(f"v{axis}", "vectors", axis, 3)
        self.add(f"inverse = 1.0 / tl.sqrt({_dot('v', 'v')})")
        for axis in _AXES:
            self.add(f"u{axis} = v{axis} * inverse")

    def load(self, name: str, pointer: str, row: int, rows: int) -> None:
        """Read a component of every edge; 1 beyond the last edge, which divides nothing by 0."""
        self.add(f"{name} = tl.load({pointer} + edge * {rows} + {row}, mask=inside, other=1.0)")

    def store(self, pointer: str, row: int, rows: int, value: str) -> None:
        """Write a component of every edge."""
        self.add(f"tl.store({pointer} + edge * {rows} + {row}, {value}, mask=inside)")

    def value(self, polynomial: Polynomial) -> str:
        """A polynomial of u, whose monomials are named; empty where it is zero."""
        return " + ".join(self._term(*term) for term in polynomial.items())

    def _term(self, exponents: Exponents, coefficient: float) -> str:
        name = self._monomial(exponents)
        return f"{coefficient!r} * {name}" if name else repr(coefficient)

    def _monomial(self, exponents: Exponents) -> str:
        """The name of x^a y^b z^c of the unit vector; empty if that is 1."""
        axis = next((i for i in _AXES if exponents[i]), None)
        if axis is None:
            return ""
        lower = [power - (i == axis) for i, power in enumerate(exponents)]
        if not any(lower):
            return f"u{axis}"
        name = "m" + "".join(map(str, exponents))
        if exponents not in self._named:
            below = self._monomial((lower[0], lower[1], lower[2]))
            self.add(f"{name} = {below} * u{axis}")
            self._named.add(exponents)
        return name

    def weighted_gradient(self, l_max: int) -> None:
        """The cotangent g, and b."""
        polynomials = harmonic_polynomials(l_max)
        for row in range(len(polynomials)):
            self.load(f"g{row}", "cotangent", row, len(polynomials))
        for axis in _AXES:
            firsts = [derivative(polynomial, axis) for polynomial in polynomials]
            self._contract(f"b{axis}", firsts)

    def weighted_hessian(self, l_max: int) -> None:
        """H, which is symmetric."""
        for i in _AXES:
            for j in range(i, 3):
                seconds = [derivative(derivative(p, i), j) for p in harmonic_polynomials(l_max)]
                self._contract(f"H{i}{j}", seconds)

    def _contract(self, name: str, polynomials: Sequence[Polynomial]) -> None:
        """The sum of g times a polynomial for each component."""
        self.add(f"{name} = zero")
        for row, polynomial in enumerate(polynomials):
            value = self.value(polynomial)
            if value:
                self.add(f"{name} += g{row} * ({value})")
