"""The normalised SiLU's kernels: g x sigma(x), with the factor g that keeps unit variance."""

from __future__ import annotations

import math
from collections.abc import Callable

from llvmlite import ir

from clebsch.kernels.cpu import machine
from clebsch.kernels.cpu.emit import Emitter
from clebsch.kernels.reference import SILU_GAIN

_Lanes = list[ir.Value]


def write(name: str, bits: int) -> str:
    """One kernel over flat arrays, in elements start..stop of them.

    - ``silu``: x, out.
    - ``silu_gradient``: x, cotangent g, out = g s'(x).
    - ``silu_second``: x, g, t, d_x = t g s''(x), d_g = t s'(x).
    """
    formula, n_in, n_out = _FORMULAS[name]
    names = [f"in{i}" for i in range(n_in)] + [f"out{i}" for i in range(n_out)]
    e = Emitter(name, [*names, "work"], ("start", "stop"), bits)
    wide = machine.wide(bits)
    whole = e.minus(e["stop"], e.remainder(e.minus(e["stop"], e["start"]), wide))
    for lanes, start, stop in ((wide, e["start"], whole), (1, whole, e["stop"])):
        with e.loop(start, stop, lanes) as i:
            values = formula(e, [e.load(e.at(e[f"in{k}"], i), lanes) for k in range(n_in)], lanes)
            for k, value in enumerate(values):
                e.store(value, e.at(e[f"out{k}"], i))
    return e.finish(0)


def _silu(e: Emitter, values: _Lanes, lanes: int) -> _Lanes:
    (x,) = values
    return [e.mul(e.mul(e.constant(SILU_GAIN, lanes), x), _sigmoid(e, x, lanes))]


def _gradient(e: Emitter, values: _Lanes, lanes: int) -> _Lanes:
    x, g = values
    return [e.mul(g, _derivatives(e, x, lanes)[0])]


def _second(e: Emitter, values: _Lanes, lanes: int) -> _Lanes:
    x, g, t = values
    first, second = _derivatives(e, x, lanes)
    return [e.mul(e.mul(t, g), second), e.mul(t, first)]


def _derivatives(e: Emitter, x: ir.Value, lanes: int) -> tuple[ir.Value, ir.Value]:
    """s' = sigma (1 + x (1 - sigma)), s'' = sigma (1 - sigma) (2 + x (1 - 2 sigma)), times g."""
    sigma = _sigmoid(e, x, lanes)
    one, two = e.constant(1, lanes), e.constant(2, lanes)
    rest = e.sub(one, sigma)
    scaled = e.mul(e.constant(SILU_GAIN, lanes), sigma)
    first = e.mul(scaled, e.fma(x, rest, one))
    second = e.mul(e.mul(scaled, rest), e.fma(x, e.sub(rest, sigma), two))
    return first, second


def _sigmoid(e: Emitter, x: ir.Value, lanes: int) -> ir.Value:
    """1 / (1 + exp(-x)); arguments so large that exp would overflow are held where it does not."""
    limit = e.constant(87 if e.bytes == 4 else 708, lanes)
    held = e.minimum(e.maximum(e.negative(x), e.negative(limit)), limit)
    return e.divide(e.constant(1, lanes), e.add(e.constant(1, lanes), _exp(e, held, lanes)))


def _exp(e: Emitter, x: ir.Value, lanes: int) -> ir.Value:
    """2^n exp(r) with |r| <= ln(2) / 2; exp(r) by its series, to rounding."""
    terms = 8 if e.bytes == 4 else 14
    n = e.nearest(e.mul(x, e.constant(1 / math.log(2), lanes)))
    # ln 2 in two parts, the first with so few digits that n times it is exact
    coarse = 0.693359375
    r = e.fma(n, e.constant(-coarse, lanes), x)
    r = e.fma(n, e.constant(coarse - math.log(2), lanes), r)
    total = e.constant(1 / math.factorial(terms - 1), lanes)
    for k in reversed(range(terms - 1)):
        total = e.fma(total, r, e.constant(1 / math.factorial(k), lanes))
    return e.mul(total, e.power_of_two(n))


_FORMULAS: dict[str, tuple[Callable[[Emitter, _Lanes, int], _Lanes], int, int]] = {
    "silu": (_silu, 1, 1),
    "silu_gradient": (_gradient, 2, 1),
    "silu_second": (_second, 3, 2),
}
