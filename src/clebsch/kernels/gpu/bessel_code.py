"""The kernels of Bessel functions times a polynomial envelope, and of their derivatives.

With c = sqrt(2 / r_c) and w = n pi / r_c, the functions s(r) = c sin(w r) / r have derivatives that
follow from each other: from r s = c sin(w r),

    s_k = (c w^k sin(w r + k pi / 2) - k s_(k-1)) / r,

the envelope is a polynomial, and the product's derivatives are Leibniz's.
"""

from __future__ import annotations

import math

from clebsch.kernels.gpu.source import Source, products

#: sin(x + k pi / 2) for k = 0, 1, 2, 3.
_TURNED = ("sine", "cosine", "-sine", "-cosine")


def write_basis(cutoff: float, exponent: int, order: int) -> str:
    """out [E, N_BASIS], the derivative of this order by lengths [E]."""
    doc = f"Bessel functions to {cutoff!r} with an envelope of exponent {exponent}, order {order}."
    k = Source("bessel", doc, ("lengths", "out", "n_edges"), ("N_BASIS", "FILLED", "BLOCK"))
    k.add("edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]")
    k.add("column = tl.arange(0, FILLED)[None, :]")
    k.add("inside = edge < n_edges")
    k.add("r = tl.load(lengths + edge, mask=inside, other=1.0)")
    k.add(f"t = r / {cutoff!r}")
    k.add(f"w = (column + 1).to(r.dtype) * {math.pi / cutoff!r}")
    k.add("sine = tl.sin(w * r)")
    k.add("cosine = tl.cos(w * r)")
    k.add("inverse = 1.0 / r")
    k.add(f"p0 = r * 0.0 + {math.sqrt(2 / cutoff)!r}")
    k.add("s0 = p0 * sine * inverse")
    for n in range(1, order + 1):
        k.add(f"p{n} = p{n - 1} * w")
        k.add(f"s{n} = (p{n} * ({_TURNED[n % 4]}) - {float(n)!r} * s{n - 1}) * inverse")
    for n in range(order + 1):
        k.add(f"e{n} = {_envelope(exponent, n, cutoff)}")
    terms = [(f"{math.comb(order, n)}.0 * s{n}", f"e{order - n}") for n in range(order + 1)]
    k.add(f"value = tl.where(t < 1.0, {products(terms)}, 0.0)")
    k.add("tl.store(out + edge * N_BASIS + column, value, mask=inside & (column < N_BASIS))")
    return str(k)


def _envelope(p: int, order: int, cutoff: float) -> str:
    """A derivative by r of the envelope, as a polynomial of t."""
    coefficients = {
        0: 1.0,
        p: -(p + 1) * (p + 2) / 2,
        p + 1: float(p * (p + 2)),
        p + 2: -p * (p + 1) / 2,
    }
    terms = ["t * 0.0"]
    for power, coefficient in coefficients.items():
        factor = coefficient * math.perm(power, order) / cutoff**order
        if factor:
            terms.append(" * ".join([repr(factor), *["t"] * (power - order)]))
    return " + ".join(terms)
