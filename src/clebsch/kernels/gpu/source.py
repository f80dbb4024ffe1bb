"""Writing kernels in Triton's language, as Python source for one plan.

Everything a kernel computes is a vector of ``BLOCK`` channels (or edges), or a number that all of
them share. Python loops over paths, components and terms happen here, while writing: what is
written is straight-line code, in loops over edges or atoms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

_HEAD = '''"""{doc}

Written by clebsch.kernels.gpu. Change nothing here: the file is overwritten.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n_edges"])
'''


class Source:
    """The source of one kernel in the making.

    Args:
        name: of the kernel.
        doc: what it computes.
        arguments: pointers and numbers, in order.
        constants: arguments that follow them and are known when Triton compiles the kernel.
    """

    def __init__(
        self, name: str, doc: str, arguments: Sequence[str], constants: Sequence[str]
    ) -> None:
        listed = (*arguments, *(f"{constant}: tl.constexpr" for constant in constants))
        lines = "".join(f"    {argument},\n" for argument in listed)
        self._text = f"{_HEAD.format(doc=doc)}def {name}(\n{lines}):\n"
        self._depth = 1

    def __str__(self) -> str:
        return self._text

    def add(self, line: str) -> None:
        """A statement."""
        self._text += f"{'    ' * self._depth}{line}\n"

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """A loop or a condition, whose body is what is added within."""
        self.add(f"{head}:")
        self._depth += 1
        yield
        self._depth -= 1


class ChannelSource(Source):
    """The source of a kernel whose vectors are ``BLOCK`` of ``CHANNELS`` channels.

    Args:
        name: of the kernel.
        doc: what it computes.
        arguments: pointers and numbers, in order.
        result: the pointer whose target has the type that is computed in.
        blocked: what is computed are ``EDGES`` such vectors at a time, [EDGES, BLOCK], with a
            radial layer ``WIDTH`` wide that is filled up to ``FILLED``.
    """

    def __init__(
        self, name: str, doc: str, arguments: Sequence[str], result: str, blocked: bool = False
    ) -> None:
        sizes = ("WIDTH", "FILLED", "EDGES", "PRECISION") if blocked else ()
        super().__init__(name, doc, arguments, ("CHANNELS", "BLOCK", *sizes))
        self.blocked = blocked
        row, shape = ("[None, :]", "EDGES, BLOCK") if blocked else ("", "BLOCK,")
        self.add(f"channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK){row}")
        self.add("inside = channel < CHANNELS")
        self.add(f"zero = tl.zeros(({shape}), {result}.dtype.element_ty)")

    def total(self, value: str) -> str:
        """A vector of channels: the sum over the edges of blocks, or what has been summed."""
        return f"tl.sum({value}, 0, keep_dims=True)" if self.blocked else value

    def clear(self, names: Iterable[str]) -> None:
        """Begin sums with zeros."""
        for name in names:
            self.add(f"{name} = zero")

    def row(self, name: str, pointer: str, index: str, rows: int) -> None:
        """The address of the first row of ``pointer[index]``, an array of [..., rows, CHANNELS]."""
        self.add(f"{name} = {pointer} + {index} * ({rows} * CHANNELS) + channel")


def load(address: str, row: int) -> str:
    """A row of channels; zeros beyond the last channel."""
    return f"tl.load({address} + {row} * CHANNELS, mask=inside, other=0.0)"


def store(address: str, row: int, value: str) -> str:
    """Write a row of channels."""
    return f"tl.store({address} + {row} * CHANNELS, {value}, mask=inside)"


def add_to(address: str, row: int, value: str) -> str:
    """Add to a row of channels, which no other program writes to."""
    return store(address, row, f"{load(address, row)} + {value}")


def products(pairs: Iterable[tuple[str, str]]) -> str:
    """A sum of products."""
    return " + ".join(f"{left} * {right}" for left, right in pairs)
