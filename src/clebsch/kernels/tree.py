"""Sparse polynomials in many variables as tables: monomials that share their factors in a tree."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class PolynomialTree:
    """Monomials w_t = w_node(t) A_factor(t), whose nodes are lower monomials made the same way.

    Node 0 is the constant 1; node p > 0 is w_p = w_parent(p) A_factor(p), its parent before it.
    Every term is a node times one more factor, terms sorted by node; a polynomial is one
    coefficient for every term.

    Attributes:
        levels: [highest order + 1] int64: nodes of degree d are levels[d]:levels[d + 1].
        parents: [n_nodes] int64; 0 for node 0.
        node_factors: [n_nodes] int64; 0 for node 0.
        term_ptr: [n_nodes + 1] int64: terms of each node.
        term_factors: [n_terms] int64.
        n_variables: number of variables A.
    """

    levels: np.ndarray
    parents: np.ndarray
    node_factors: np.ndarray
    term_ptr: np.ndarray
    term_factors: np.ndarray
    n_variables: int

    @property
    def n_nodes(self) -> int:
        """Number of monomials that are kept while evaluating."""
        return len(self.parents)

    @property
    def n_terms(self) -> int:
        """Number of coefficients of a polynomial."""
        return len(self.term_factors)

    @cached_property
    def term_nodes(self) -> np.ndarray:
        """[n_terms] int64: the node of each term."""
        return np.repeat(np.arange(self.n_nodes), np.diff(self.term_ptr))


@dataclass(frozen=True, eq=False)
class PolynomialForest:
    """A tree for each species of atoms, over the same variables.

    Coefficients of all of them stand together, those of the first species first.
    """

    trees: tuple[PolynomialTree, ...]

    @property
    def n_terms(self) -> int:
        """Number of coefficients of all trees."""
        return sum(tree.n_terms for tree in self.trees)

    @cached_property
    def tables(self) -> tuple[np.ndarray, ...]:
        """The trees one after the other, int64.

        ``node_ptr`` [n_trees + 1]: nodes of each tree; ``parents``, ``node_factors`` of all nodes,
        parents counted within their tree; ``term_ptr`` [nodes of all trees + 1] and
        ``term_factors`` of all terms.
        """
        trees = self.trees
        return (
            np.cumsum([0, *(tree.n_nodes for tree in trees)]),
            np.concatenate([tree.parents for tree in trees]),
            np.concatenate([tree.node_factors for tree in trees]),
            np.cumsum([0, *np.concatenate([np.diff(tree.term_ptr) for tree in trees])]),
            np.concatenate([tree.term_factors for tree in trees]),
        )


def polynomial_tree(monomials: np.ndarray, n_variables: int) -> tuple[PolynomialTree, np.ndarray]:
    """The tree of some monomials.

    Args:
        monomials: [T, highest order] int64: variables, ascending, after as many -1 as are missing;
            no monomial twice, none constant.
        n_variables: number of variables.

    Returns:
        The tree, and [T] which monomial each of its terms is.
    """
    highest = monomials.shape[1]
    lengths = (monomials >= 0).sum(1)
    # prefixes of each length that some monomial multiplies one more factor onto
    prefixes: list[np.ndarray] = [np.zeros((1, 0), dtype=np.int64)]
    for length in range(1, highest):
        parts = [
            monomials[lengths == order][:, highest - order : highest - order + length]
            for order in range(length + 1, highest + 1)
        ]
        prefixes.append(np.unique(np.concatenate(parts), axis=0))
    levels = np.concatenate([[0], np.cumsum([len(rows) for rows in prefixes])])
    parents = [np.zeros(1, dtype=np.int64)]
    factors = [np.zeros(1, dtype=np.int64)]
    for length in range(1, highest):
        rows = prefixes[length]
        parents.append(levels[length - 1] + _find(rows[:, :-1], prefixes[length - 1]))
        factors.append(rows[:, -1])
    nodes = np.zeros(len(monomials), dtype=np.int64)
    for order in range(1, highest + 1):
        mine = lengths == order
        rows = monomials[mine][:, highest - order : highest - 1]
        nodes[mine] = levels[order - 1] + _find(rows, prefixes[order - 1])
    last = monomials[:, -1]
    order_of_terms = np.lexsort((last, nodes))
    counts = np.bincount(nodes, minlength=levels[-1])
    tree = PolynomialTree(
        levels,
        np.concatenate(parents),
        np.ascontiguousarray(np.concatenate(factors)),
        np.concatenate([[0], np.cumsum(counts)]),
        np.ascontiguousarray(last[order_of_terms]),
        n_variables,
    )
    return tree, order_of_terms


def _find(rows: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where each row stands in ``among``, whose rows are unique and sorted."""
    if not len(rows):
        return np.zeros(0, dtype=np.int64)
    _, inverse = np.unique(np.concatenate([among, rows]), axis=0, return_inverse=True)
    # ``among`` holds every row, so the unique rows are its own, in its order
    return inverse.reshape(-1)[len(among) :].astype(np.int64)
