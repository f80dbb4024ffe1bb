"""Which operators of a backend are called, and with what."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """Notes every call of an operator of a namespace, with its arguments."""

    def __init__(self, namespace: str) -> None:
        super().__init__()
        self.namespace = namespace
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == self.namespace:
            self.seen.append((func._opname, args))
        return func(*args, **(kwargs or {}))

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """Arguments of all calls of an operator."""
        return [args for seen, args in self.seen if seen == name]
