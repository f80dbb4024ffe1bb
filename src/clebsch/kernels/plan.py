"""Coupling structures: which irreps meet, with which coefficients, in which order.

A plan is data. ``clebsch.kernels.reference`` evaluates it with torch, the faster backends by their
own means from the same plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from clebsch.algebra import CouplingBasis, Irreps, clebsch_gordan, coupling_basis


@dataclass(frozen=True)
class CouplingPath:
    """One way to couple a node irrep with an edge harmonic: indices into the plan's irreps."""

    node: int
    harmonic: int
    out: int


@dataclass(frozen=True, eq=False)
class ConvolutionPlan:
    """The paths of a convolution (equation 8): node irrep x edge harmonic -> output irrep.

    Paths are found by looping over node irreps, then harmonics, then the irreps their product
    holds, and sorted stably by output irrep. Path p owns weight row p.

    The output of a convolution has, for every output irrep that is reached, a block of
    2l+1 components x its paths: component m of path p of irrep l sits at
    ``block.start + m * copies(l) + p``, so that the linear map over paths and channels that
    follows is one matrix product per irrep. With ``summed`` the paths of an irrep share one copy:
    their sum, divided by the square root of their number.
    """

    node_irreps: Irreps
    harmonic_irreps: Irreps
    out_irreps: Irreps
    summed: bool
    paths: tuple[CouplingPath, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are the one plan again, and share what is cached for it."""
        return _convolution_plan, (
            self.node_irreps,
            self.harmonic_irreps,
            self.out_irreps,
            self.summed,
        )

    @cached_property
    def key(self) -> str:
        """Names the plan, for operators, whose arguments are tensors and simple values."""
        return f"{self.node_irreps}|{self.harmonic_irreps}|{self.out_irreps}|{int(self.summed)}"

    @property
    def n_paths(self) -> int:
        """Number of paths: rows of path weights per edge."""
        return len(self.paths)

    @cached_property
    def paths_per_out(self) -> tuple[int, ...]:
        """How many paths end in each output irrep."""
        return tuple(
            sum(path.out == out for path in self.paths) for out in range(len(self.out_irreps))
        )

    @property
    def copies(self) -> tuple[int, ...]:
        """How many features of each output irrep come out: one for each path, or their sum."""
        return (1,) * len(self.out_irreps) if self.summed else self.paths_per_out

    @cached_property
    def out_blocks(self) -> tuple[slice, ...]:
        """Each output irrep's components x copies in the output."""
        blocks, start = [], 0
        for irrep, copies in zip(self.out_irreps, self.copies, strict=True):
            blocks.append(slice(start, start + irrep.dim * copies))
            start = blocks[-1].stop
        return tuple(blocks)

    @cached_property
    def out_components(self) -> tuple[tuple[int, ...], ...]:
        """The output components of each path, m ascending."""
        seen = [0] * len(self.out_irreps)
        components = []
        for path in self.paths:
            start, copies = self.out_blocks[path.out].start, self.copies[path.out]
            copy = 0 if self.summed else seen[path.out]
            dim = self.out_irreps[path.out].dim
            components.append(tuple(start + m * copies + copy for m in range(dim)))
            seen[path.out] += 1
        return tuple(components)

    @property
    def out_dim(self) -> int:
        """Number of output components, all copies counted."""
        return self.out_blocks[-1].stop

    def coefficients(self, path: CouplingPath) -> np.ndarray:
        """[harmonic m, node m, out m] float64: Clebsch-Gordan coefficients times sqrt(2 l_out + 1).

        With this factor inputs of unit variance give outputs of unit variance; where paths are
        summed, over the square root of the number of paths that end in the same irrep.
        """
        harmonic, node, out = (
            self.harmonic_irreps[path.harmonic],
            self.node_irreps[path.node],
            self.out_irreps[path.out],
        )
        shared = self.paths_per_out[path.out] if self.summed else 1
        table = clebsch_gordan(node.l, harmonic.l, out.l) * np.sqrt(out.dim / shared)
        return np.ascontiguousarray(table.transpose(1, 0, 2))

    @cached_property
    def entries(self) -> dict[tuple[int, int, int], list[tuple[int, float]]]:
        """(path, m2, m3) -> [(harmonic component, coefficient)], without what is zero.

        Of an edge with harmonics Y, the sum of coefficients times Y is G[m2, m3] of the path: by
        what the sender's component m2 adds to the output's m3.
        """
        found = {}
        for index, path in enumerate(self.paths):
            table = self.coefficients(path)
            start = self.harmonic_irreps.slices[path.harmonic].start
            for m2 in range(table.shape[1]):
                for m3 in range(table.shape[2]):
                    nonzero = np.flatnonzero(np.abs(table[:, m2, m3]) > 1e-14)
                    if len(nonzero):
                        terms = [(start + int(m), float(table[m, m2, m3])) for m in nonzero]
                        found[index, m2, m3] = terms
        return found


def convolution_plan(
    node_irreps: Irreps, harmonic_irreps: Irreps, out_irreps: Irreps, summed: bool = False
) -> ConvolutionPlan:
    """All paths that symmetry allows; output irreps that no path reaches are left out.

    Args:
        node_irreps: of the senders' features.
        harmonic_irreps: of the edge harmonics.
        out_irreps: those wanted.
        summed: add the paths of an irrep up, instead of keeping them apart.
    """
    products = {p for node in node_irreps for harmonic in harmonic_irreps for p in node * harmonic}
    reached = Irreps(irrep for irrep in out_irreps if irrep in products)
    return _convolution_plan(node_irreps, harmonic_irreps, reached, summed)


@lru_cache(maxsize=256)
def convolution_plan_of(key: str) -> ConvolutionPlan:
    """The plan of that key."""
    *irreps, summed = key.split("|")
    return _convolution_plan(*(Irreps.parse(each) for each in irreps), bool(int(summed)))


@lru_cache(maxsize=256)
def _convolution_plan(node: Irreps, harmonic: Irreps, out: Irreps, summed: bool) -> ConvolutionPlan:
    paths = [
        CouplingPath(i, j, out.index(product))
        for i, node_irrep in enumerate(node)
        for j, harmonic_irrep in enumerate(harmonic)
        for product in node_irrep * harmonic_irrep
        if product in out
    ]
    paths.sort(key=lambda path: path.out)
    return ConvolutionPlan(node, harmonic, out, summed, tuple(paths))


@dataclass(frozen=True, eq=False)
class ContractionPlan:
    """The couplings of a product basis (equations 10 and 11), orders 1 to ``correlation``.

    Couplings are numbered by target irrep, then by order, then as in the coupling basis;
    ``weights`` of an evaluation have one row for each.
    """

    irreps: Irreps
    targets: Irreps
    correlation: int
    reduced: bool
    bases: tuple[tuple[CouplingBasis, ...], ...]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are the one plan again, and share what is cached for it."""
        return contraction_plan, (self.irreps, self.targets, self.correlation, self.reduced)

    @cached_property
    def key(self) -> str:
        """Names the plan, for operators, whose arguments are tensors and simple values."""
        return f"{self.irreps}|{self.targets}|{self.correlation}|{int(self.reduced)}"

    @property
    def n_couplings(self) -> int:
        """Number of weight rows."""
        return sum(basis.n_couplings for per_target in self.bases for basis in per_target)

    @cached_property
    def weight_slices(self) -> tuple[tuple[slice, ...], ...]:
        """Rows of the weights for each target and order."""
        slices, start = [], 0
        for per_target in self.bases:
            row = []
            for basis in per_target:
                row.append(slice(start, start + basis.n_couplings))
                start += basis.n_couplings
            slices.append(tuple(row))
        return tuple(slices)


@lru_cache(maxsize=64)
def contraction_plan_of(key: str) -> ContractionPlan:
    """The plan of that key."""
    irreps, targets, correlation, reduced = key.split("|")
    return contraction_plan(
        Irreps.parse(irreps), Irreps.parse(targets), int(correlation), bool(int(reduced))
    )


@lru_cache(maxsize=64)
def contraction_plan(
    irreps: Irreps, targets: Irreps, correlation: int, reduced: bool = True
) -> ContractionPlan:
    """The plan of a product basis; targets that no coupling reaches are left out.

    Args:
        irreps: of the one-particle basis A.
        targets: irreps of the messages.
        correlation: highest order of the product.
        reduced: linearly independent symmetrised couplings only; otherwise the table of
            sequential couplings, redundant where all slots hold the same A.
    """
    bases = {
        target: tuple(
            coupling_basis(irreps, order, target, reduced=reduced)
            for order in range(1, correlation + 1)
        )
        for target in targets
    }
    reached = Irreps(t for t in targets if any(basis.n_couplings for basis in bases[t]))
    per_target = tuple(bases[target] for target in reached)
    return ContractionPlan(irreps, reached, correlation, reduced, per_target)
