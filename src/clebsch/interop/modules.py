"""Modules of torch and e3nn as a pickle describes them: children, tensors, attributes, irreps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from clebsch.algebra import Irrep
from clebsch.errors import ConfigError, ModelFileError
from clebsch.interop.inert import Stub

#: Irreps with multiplicities, in the order of the file.
Multiplets = list[tuple[int, Irrep]]


class Module:
    """A torch module in a pickle.

    Args:
        stub: what the pickle says of it.
        place: names the file and the module in errors.
    """

    def __init__(self, stub: Any, place: str) -> None:
        if not isinstance(stub, Stub):
            raise ModelFileError(f"{place}: not a module")
        self.place = place
        self.kind = stub.kind.name
        self.module = stub.kind.module
        self._state = stub.state

    def _table(self, name: str) -> dict[str, Any]:
        table = self._state.get(name, {})
        if not isinstance(table, dict):
            raise ModelFileError(f"{self.place}: {name} is no dictionary")
        return table

    def has(self, name: str) -> bool:
        """Whether there is a child of this name."""
        return self._table("_modules").get(name) is not None

    def child(self, name: str) -> Module:
        """A module inside this one.

        Raises:
            ModelFileError: there is none of this name.
        """
        if not self.has(name):
            raise ModelFileError(f"{self.place}: has no module {name!r}")
        return Module(self._table("_modules")[name], f"{self.place}.{name}")

    def names(self) -> list[str]:
        """Names of the modules inside this one, in order."""
        return [str(name) for name in self._table("_modules")]

    def children(self) -> list[Module]:
        """All modules inside this one, in order; of a ``ModuleList``, its items."""
        return [self.child(name) for name in self.names()]

    def has_tensor(self, name: str) -> bool:
        """Whether there is a parameter or buffer of this name."""
        tables = (self._table("_parameters"), self._table("_buffers"))
        return any(isinstance(table.get(name), Tensor) for table in tables)

    def is_parameter(self, name: str) -> bool:
        """Whether the tensor of this name is trained."""
        return isinstance(self._table("_parameters").get(name), Tensor)

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer, in float64 if it is real.

        Raises:
            ModelFileError: there is none of this name, or it holds NaN or infinity.
        """
        tensor = self._found(name)
        if not tensor.isfinite().all():
            raise ModelFileError(
                f"{self.place}: its tensor {name!r} holds NaN or infinity; if its training "
                "diverged, use a model of before"
            )
        return tensor.double() if tensor.is_floating_point() else tensor

    def stored_dtype(self, name: str) -> torch.dtype:
        """The precision that a parameter or buffer has in the file.

        Raises:
            ModelFileError: there is none of this name.
        """
        return self._found(name).dtype

    def _found(self, name: str) -> Tensor:
        for table in (self._table("_parameters"), self._table("_buffers")):
            tensor = table.get(name)
            if isinstance(tensor, Tensor):
                return tensor
        raise ModelFileError(f"{self.place}: has no tensor {name!r}")

    def number(self, name: str) -> float:
        """A number that is kept as a tensor of one element, or as an attribute.

        Raises:
            ModelFileError: there is none of this name, or it is NaN or infinite.
        """
        value = self.tensor(name) if self.has_tensor(name) else self.get(name)
        if isinstance(value, Tensor) and value.numel() == 1:
            return float(value)
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
        raise ModelFileError(f"{self.place}: has no finite number {name!r}")

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; the default where the file, being older, lacks it."""
        return self._state.get(name, default)

    def irreps(self, name: str) -> Multiplets:
        """An attribute that holds irreps of e3nn, or their text.

        Raises:
            ModelFileError: it does not.
        """
        value = self.get(name)
        try:
            if isinstance(value, str):
                return [_of_text(term) for term in value.split("+")]
            return [_of_stub(term) for term in value.args[0]]
        except (AttributeError, IndexError, TypeError, ValueError, ConfigError):
            raise ModelFileError(f"{self.place}: {name} are no irreps") from None


def refuse(module: Module, feature: str) -> ModelFileError:
    """The error for what is not supported."""
    return ModelFileError(f"{module.place}: {feature}: not supported")


def one_multiplicity(module: Module, multiplets: Multiplets) -> int:
    """The channel count that all irreps share.

    Raises:
        ModelFileError: there are several.
    """
    counts = {count for count, _ in multiplets}
    if len(counts) != 1:
        text = "+".join(f"{count}x{irrep}" for count, irrep in multiplets)
        raise refuse(module, f"irreps {text} with different multiplicities")
    return counts.pop()


def _of_text(term: str) -> tuple[int, Irrep]:
    multiplicity, _, irrep = term.strip().rpartition("x")
    return int(multiplicity or 1), Irrep.parse(irrep)


def _of_stub(term: Any) -> tuple[int, Irrep]:
    """e3nn's pairs of a multiplicity and an irrep are tuples of their own classes."""
    multiplicity, irrep = _flat(term)
    degree, parity = _flat(irrep)
    if any(type(number) is not int for number in (multiplicity, degree, parity)):
        raise ValueError("irreps are made of integers")
    return multiplicity, Irrep(degree, parity)


def _flat(stub: Any) -> tuple[Any, ...]:
    args: tuple[Any, ...] = stub.args
    inner = args[0] if len(args) == 1 and isinstance(args[0], tuple) else args
    # without arguments e3nn calls the class itself and keeps the parts as the object's items
    return inner
