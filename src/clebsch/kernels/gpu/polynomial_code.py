"""The product basis' kernels, written out for one set of couplings.

``clebsch.kernels.polynomial`` says what they evaluate. A program takes a block of atoms of one
species and a block of channels. The terms are divided into parts, each small enough that its
coefficients stay in registers while the atoms pass by, one after the other; what a part gives is
added to the atom's row in memory, to which nobody else adds meanwhile. The time in which Triton
compiles a kernel grows with the square of its length (its pass that coalesces accesses to memory
follows everything that each of them is connected to). So each output component has its own kernels,
and in what trainings alone need, which is longest, each part has.

Derivatives walk the tree of Horner's scheme with w, the product of a node's factors (and of the
cotangent g of the output), on the way down and q, the value of what stands in its brackets, on the
way up: that by a factor x is w q, that by a coefficient c is w. A leading ``t_`` is a direction
(tangent), a leading ``d_`` a derivative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clebsch.kernels.gpu.source import ChannelSource, add_to, load, store
from clebsch.kernels.polynomial import Node, Polynomial, parts

#: Terms of a part, whose coefficients lie in registers, and with their derivatives beside them.
PART, WEIGHTED_PART = 64, 32

_INPUTS = ("order", "bounds", "species", "coefficients", "variables")


def kernels_of(polynomial: Polynomial, most: int, apart: bool) -> list[tuple[int, list[Node]]]:
    """What each kernel computes: an output component that has terms, and parts of these.

    Args:
        polynomial: all of it.
        most: terms of a part.
        apart: each part is a kernel of its own.
    """
    found = parts(polynomial.terms, most)
    if apart:
        return [(output, [root]) for output, root in found]
    outputs = sorted({output for output, _ in found})
    return [(output, [root for of, root in found if of == output]) for output in outputs]


def write_forward(polynomial: Polynomial, output: int, roots: Sequence[Node]) -> str:
    """The values of parts of an output component, added to out [N, O, K]."""
    k = ChannelSource("polynomial", f"{_title(output)}.", (*_INPUTS, "out"), "out")
    with _atoms_of_block(k, polynomial):
        for root in roots:
            walk = _Walk(k, root)
            walk.load_coefficients()
            with walk.passing_atoms(polynomial):
                q, _ = walk.value(root, None, None)
                k.row("target", "out", "atom", polynomial.n_outputs)
                k.add(add_to("target", output, q))
    return str(k)


def write_gradients(
    polynomial: Polynomial, output: int, roots: Sequence[Node], weighted: bool
) -> str:
    """First derivatives of ``cotangent . polynomial``: what parts of an output component add.

    Those by variables are added to d_variables [N, V, K]; if ``weighted``, those by coefficients
    are written to d_coefficients [blocks of atoms, T, K], to be summed over a species' blocks.
    """
    arguments = (*_INPUTS, "cotangent", "d_variables", "d_coefficients")
    doc = f"{_title(output)}: first derivatives."
    k = ChannelSource("polynomial_gradients", doc, arguments, "d_variables")
    with _atoms_of_block(k, polynomial):
        for root in roots:
            walk = _Walk(k, root, weighted=weighted)
            walk.load_coefficients()
            with walk.passing_atoms(polynomial):
                k.row("given", "cotangent", "atom", polynomial.n_outputs)
                k.add(f"g = {load('given', output)}")
                walk.value(root, "g", None)
                walk.add_to_variables(polynomial)
            walk.store_coefficients(polynomial)
    return str(k)


def write_second(polynomial: Polynomial, output: int, roots: Sequence[Node], weighted: bool) -> str:
    """Derivatives of ``t_variables . (derivative by variables)``, of parts of an output component.

    As in ``write_gradients``, and that by the cotangent is added to d_cotangent [N, O, K].
    """
    results = ("d_variables", "d_coefficients", "d_cotangent")
    arguments = (*_INPUTS, "cotangent", "t_variables", *results)
    doc = f"{_title(output)}: second derivatives."
    k = ChannelSource("polynomial_second", doc, arguments, "d_variables")
    with _atoms_of_block(k, polynomial):
        for root in roots:
            walk = _Walk(k, root, weighted=weighted, moving=True)
            walk.load_coefficients()
            with walk.passing_atoms(polynomial):
                k.row("given", "cotangent", "atom", polynomial.n_outputs)
                k.add(f"g = {load('given', output)}")
                _, t_q = walk.value(root, "g", None)
                walk.add_to_variables(polynomial)
                if t_q is not None:
                    k.row("target", "d_cotangent", "atom", polynomial.n_outputs)
                    k.add(add_to("target", output, t_q))
            walk.store_coefficients(polynomial)
    return str(k)


def _title(output: int) -> str:
    return f"Product basis as a polynomial, output component {output}"


@contextmanager
def _atoms_of_block(k: ChannelSource, polynomial: Polynomial) -> Iterator[None]:
    """A program's atoms are ``order[first:last]``; nothing is done where there are none."""
    k.add("block = tl.program_id(0).to(tl.int64)")
    k.add("first = tl.load(bounds + block)")
    k.add("last = tl.load(bounds + block + 1)")
    with k.block("if first < last"):
        k.add("kind = tl.load(species + tl.load(order + first))")
        k.row("panel", "coefficients", "kind", len(polynomial.terms))
        yield


class _Walk:
    """Writes one part: its Horner scheme and, where w is given, derivatives, for one atom.

    Args:
        k: where to write.
        root: of the part's scheme.
        weighted: derivatives by coefficients are wanted.
        moving: what is differentiated is the change along a direction of the variables.
    """

    def __init__(
        self, k: ChannelSource, root: Node, *, weighted: bool = False, moving: bool = False
    ) -> None:
        self.k, self.weighted, self.moving = k, weighted, moving
        self.terms = sorted(_terms(root))
        self.factors = sorted(_factors(root))
        self._moved: set[int] = set()
        self._names = 0

    # --- before, around and after the loop over atoms ---

    def load_coefficients(self) -> None:
        """Read the part's coefficients; begin sums for their derivatives."""
        for term in self.terms:
            self.k.add(f"c{term} = {load('panel', term)}")
        if self.weighted:
            self.k.clear(f"d_c{term}" for term in self.terms)

    @contextmanager
    def passing_atoms(self, polynomial: Polynomial) -> Iterator[None]:
        """The loop over atoms, with their variables loaded."""
        k = self.k
        with k.block("for place in range(first, last)"):
            k.add("atom = tl.load(order + place)")
            for tangent in ("", "t_") if self.moving else ("",):
                k.row(f"{tangent}row", f"{tangent}variables", "atom", polynomial.n_variables)
                for factor in self.factors:
                    k.add(f"{tangent}x{factor} = {load(f'{tangent}row', factor)}")
            yield

    def add_to_variables(self, polynomial: Polynomial) -> None:
        """Add the part's derivatives by variables to those of the parts before."""
        self.k.row("moved", "d_variables", "atom", polynomial.n_variables)
        for factor in sorted(self._moved):
            self.k.add(add_to("moved", factor, f"d_x{factor}"))

    def store_coefficients(self, polynomial: Polynomial) -> None:
        """Write the derivatives by the part's coefficients."""
        if not self.weighted:
            return
        self.k.row("sums", "d_coefficients", "block", len(polynomial.terms))
        for term in self.terms:
            self.k.add(store("sums", term, f"d_c{term}"))

    # --- the walk ---

    def value(self, node: Node, w: str | None, t_w: str | None) -> tuple[str, str | None]:
        """q of a node and its change, None where it is zero; w is None where it is not needed."""
        q, t_q = [], []
        if node.term is not None:
            q.append(f"c{node.term}")
            own = t_w if self.moving else w
            if own is not None:
                self._add_to_coefficient(node.term, [own])
        for factor, child in node.children.items():
            x, t_x = f"x{factor}", f"t_x{factor}" if self.moving else None
            t_inner = None
            if child.children:
                inner, t_inner = self.value(child, *self._below(w, t_w, x, t_x))
            else:  # a coefficient, whose w need not be made
                assert child.term is not None
                inner = f"c{child.term}"
                pairs = [(t_w, x), (w, t_x)] if self.moving else [(w, x)]
                self._add_to_coefficient(child.term, _products(pairs))
            q.append(f"{inner} * {x}")
            t_q += _products([(inner, t_x), (t_inner, x)])
            pairs = [(t_w, inner), (w, t_inner)] if self.moving else [(w, inner)]
            self._add_to_variable(factor, _products(pairs))
        named = self._named("q", q)
        assert named is not None
        return named, self._named("t_q", t_q)

    def _below(
        self, w: str | None, t_w: str | None, x: str, t_x: str | None
    ) -> tuple[str | None, str | None]:
        """w of a child and its change."""
        below = self._named("w", _products([(w, x)]))
        return below, self._named("t_w", _products([(t_w, x), (w, t_x)]))

    def _add_to_variable(self, factor: int, terms: Sequence[str]) -> None:
        if terms:
            assign = "+=" if factor in self._moved else "="
            self.k.add(f"d_x{factor} {assign} {' + '.join(terms)}")
            self._moved.add(factor)

    def _add_to_coefficient(self, term: int, terms: Sequence[str]) -> None:
        if self.weighted and terms:
            self.k.add(f"d_c{term} += {' + '.join(terms)}")

    def _named(self, kind: str, terms: Sequence[str]) -> str | None:
        """A sum under a name of its own; None where there is nothing to add."""
        if not terms:
            return None
        self._names += 1
        name = f"{kind}_{self._names}"
        self.k.add(f"{name} = {' + '.join(terms)}")
        return name


def _products(pairs: Sequence[tuple[str | None, str | None]]) -> list[str]:
    """Products of factors that are both there, and so not zero."""
    return [f"{left} * {right}" for left, right in pairs if left and right]


def _terms(node: Node) -> set[int]:
    """The terms of a node and of those below it."""
    own = set() if node.term is None else {node.term}
    return own.union(*(_terms(child) for child in node.children.values()))


def _factors(node: Node) -> set[int]:
    """The variables that a node and those below it multiply by."""
    return set(node.children).union(*(_factors(child) for child in node.children.values()))
