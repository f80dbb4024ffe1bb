"""What is computed in float64 whatever the network is cast to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Float64Module(nn.Module):
    """A module whose buffers stay in float64 whatever the network is cast to."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float64Module:
        device = fn(torch.empty(0)).device
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(device)
        return self

    def register_constants(self, *, stored: bool, **constants: float | Sequence[float]) -> None:
        """Register numbers as float64 buffers, which model files contain if they are ``stored``."""
        for name, values in constants.items():
            tensor = torch.tensor(values, dtype=torch.float64)
            self.register_buffer(name, tensor, persistent=stored)
