"""The product basis as a sparse polynomial: its terms, in the order of a Horner scheme.

With couplings and weights contracted, a message is a sparse polynomial in the components of A, with
one coefficient c for every term, species and channel. Each output component is evaluated by a
Horner scheme: a tree whose nodes take out one factor each,

    out = sum over i of A_i (c_i + sum over j of A_j (c_ij + sum over k of A_k c_ijk)),

so that a term costs one multiply-add.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby

import numpy as np

from clebsch.kernels.plan import contraction_plan_of

#: The output component of a term, and its factors.
Term = tuple[int, tuple[int, ...]]


def horner(monomials: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The monomials, and their factors, in the order of a Horner scheme with few nodes.

    The factor that most monomials have is taken out first, of those that have it and of the rest
    likewise (Ceberio and Kreinovich 2004, greedy multivariate Horner schemes).

    Args:
        monomials: factors of each, all different.
    """
    rest = [monomial for monomial in monomials if monomial]
    ordered: list[tuple[int, ...]] = [()] * (len(monomials) - len(rest))
    while rest:
        counts = Counter(factor for monomial in rest for factor in set(monomial))
        common = min(counts, key=lambda factor: (-counts[factor], factor))
        inside = []
        for monomial in rest:
            if common in monomial:
                place = monomial.index(common)
                inside.append(monomial[:place] + monomial[place + 1 :])
        ordered += [(common, *factors) for factors in horner(inside)]
        rest = [monomial for monomial in rest if common not in monomial]
    return ordered


@dataclass
class Node:
    """What stands in brackets: the number of a term, and sub-nodes by the factor they multiply."""

    term: int | None = None
    children: dict[int, Node] = field(default_factory=dict)

    def find(self, factors: Sequence[int]) -> Node:
        """The descendant behind these factors; made where it is missing."""
        node = self
        for factor in factors:
            node = node.children.setdefault(factor, Node())
        return node


def parts(terms: Sequence[Term], most: int) -> list[tuple[int, Node]]:
    """Horner schemes of at most ``most`` terms of one output component each, which are to be added.

    Args:
        terms: by output component, and for each as ``horner`` orders them.
        most: terms of a part.
    """
    found = []
    for output, group in groupby(enumerate(terms), key=lambda item: item[1][0]):
        numbered = list(group)
        for start in range(0, len(numbered), most):
            root = Node()
            for number, (_, factors) in numbered[start : start + most]:
                root.find(factors).term = number
            found.append((output, root))
    return found


@dataclass(frozen=True, eq=False)
class Polynomial:
    """A product basis as a polynomial in the components of all its slots.

    Attributes:
        terms: in the order of their coefficients: by output, and for each as ``horner`` orders
            them.
        table: [n_terms, n_couplings] float64: coefficients are ``table @ weights``.
        n_variables: V, number of components of A, all slots counted.
        n_outputs: O.
    """

    terms: tuple[Term, ...]
    table: np.ndarray
    n_variables: int
    n_outputs: int


@lru_cache(maxsize=64)
def polynomial(key: str) -> Polynomial:
    """The polynomial of a plan.

    Args:
        key: the plan's, then "|" and the number of slots, 1 where all factors share one.
    """
    plan_key, _, slots = key.rpartition("|")
    plan, n_slots = contraction_plan_of(plan_key), int(slots)
    shared = n_slots == 1
    found: dict[Term, list[tuple[int, float]]] = {}
    start = 0
    for target, per_order, rows in zip(plan.targets, plan.bases, plan.weight_slices, strict=True):
        for basis, row in zip(per_order, rows, strict=True):
            for coupling, component, monomial, value in zip(*basis.terms, strict=True):
                factors = [int(q) for q in basis.monomials[monomial]]
                if shared:
                    factors.sort()
                else:
                    factors = [slot * plan.irreps.dim + q for slot, q in enumerate(factors)]
                term = (start + int(component), tuple(factors))
                found.setdefault(term, []).append((row.start + int(coupling), float(value)))
        start += target.dim
    ordered = [
        (output, path)
        for output in range(plan.targets.dim)
        for path in horner(sorted(term[1] for term in found if term[0] == output))
    ]
    table = np.zeros((len(ordered), plan.n_couplings))
    for number, (output, path) in enumerate(ordered):
        for coupling, value in found[output, tuple(sorted(path))]:
            table[number, coupling] += value
    return Polynomial(tuple(ordered), table, n_slots * plan.irreps.dim, plan.targets.dim)


@lru_cache(maxsize=64)
def coefficient_table(key: str, bits: int) -> np.ndarray:
    """``Polynomial.table`` in a precision.

    An array: a tensor born while recording, or in inference mode, could not serve elsewhere.
    """
    return polynomial(key).table.astype(np.float32 if bits == 32 else np.float64)
