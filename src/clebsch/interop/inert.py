"""What stands for the objects of a pickle: names and attributes, and nothing that could run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Global:
    """The name of a class or function that a pickle mentions; it is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Stub:
    """An object that a pickle would have made: its class, arguments and attributes.

    Attributes:
        kind: the class, or the function that would have been called.
        args: what it would have been called with.
        state: attributes by name; empty where the pickle gives none.
    """

    kind: Global
    args: tuple[Any, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:  # not that of a dataclass, which would follow every reference
        return f"<{self.kind}>"
