"""What a convolution's kernels are compiled for, and the numbers that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from clebsch.kernels.cpu import machine
from clebsch.kernels.plan import ConvolutionPlan

#: Edges whose path weights are made at once: a multiple of a vector's numbers, and of the rows of
#: a tile.
BLOCK = 16 if machine.many_registers() else 24
#: In place of a hidden layer's width: path weights come out of a table.
TABLE = -1


def _columns(hidden: int, bits: int) -> int:
    """Two vectors, or one."""
    wide = machine.wide(bits)
    return wide * (2 if hidden % (2 * wide) == 0 else 1)


def turned(weight: Tensor) -> Tensor:
    """W [chunk, P, F, channel] as W^T [chunk, F / columns, P, channel, columns]."""
    columns = _columns(weight.shape[2], weight.dtype.itemsize * 8)
    return weight.unflatten(2, (-1, columns)).permute(0, 2, 1, 4, 3).contiguous()


@dataclass(frozen=True, eq=False)
class ConvolutionSpec(machine.Channels):
    """What a kernel is compiled for.

    Attributes:
        plan: paths and coefficients.
        hidden: F, the width of the radial network's last hidden layer, a multiple of ``wide``;
            0 where path weights are given instead, TABLE where they come out of a table.
    """

    plan: ConvolutionPlan
    hidden: int

    @property
    def wide(self) -> int:
        """Lanes of the machine's vectors."""
        return machine.wide(self.bits)

    @property
    def columns(self) -> int:
        """Columns of W^T that a tile takes."""
        return _columns(self.hidden, self.bits)

    @cached_property
    def n_harmonics(self) -> int:
        """Components of the harmonics, rounded up so that their sums fill whole vectors."""
        return -(-self.plan.harmonic_irreps.dim // self.lanes) * self.lanes

    @cached_property
    def rank(self) -> dict[tuple[int, int, int], int]:
        """Numbers the entries."""
        return {entry: index for index, entry in enumerate(self.plan.entries)}

    def node_component(self, path: int, m2: int) -> int:
        """The component of the sender's features."""
        return self.plan.node_irreps.slices[self.plan.paths[path].node].start + m2

    def node_dim(self, path: int) -> int:
        """Number of m2."""
        return self.plan.node_irreps[self.plan.paths[path].node].dim

    def out_dim(self, path: int) -> int:
        """Number of m3."""
        return self.plan.out_irreps[self.plan.paths[path].out].dim

    @property
    def key(self) -> str:
        """Tells this specification from others."""
        return f"{self.plan.key}|{self.channels}|{self.hidden}|{self.bits}"


@dataclass(frozen=True)
class Wanted:
    """Which derivatives a kernel computes."""

    radial: bool  # d_hidden, or d_weights where path weights are given
    weight: bool  # d_weight, of the last radial layer
    nodes: bool
    harmonics: bool
