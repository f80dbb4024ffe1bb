"""Adam with a weight decay that leaves alone what a batch says nothing about."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class Adam(torch.optim.Adam):
    """torch's Adam, AMSGrad or AdamW; weights decay in steps that give them a gradient.

    Adam brings any gradient to a step of about the learning rate. Where decay is all of the
    gradient, as for an element that the data lack, it would take the weights to zero within some
    hundred steps. So a decayed parameter's part (of its first dimension, where elements are) whose
    gradient is zero does not decay in that step; others decay as torch has it.

    Args:
        groups: of parameters, each with its ``decay`` (0 if it says none).
        lr: learning rate.
        amsgrad: divide by the largest second moment so far.
        decoupled: the decay is not part of the gradient (AdamW).
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        *,
        amsgrad: bool = False,
        decoupled: bool = False,
    ) -> None:
        self._decoupled = decoupled
        super().__init__(groups, lr=lr, amsgrad=amsgrad, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change all parameters that have a gradient."""
        for group in self.param_groups:
            decay = group.get("decay", 0.0)
            decayed = group["params"] if decay else ()
            for parameter in decayed:
                if parameter.grad is None:
                    continue
                largest = parameter.grad.abs().reshape(len(parameter), -1).amax(1)
                decaying = (largest != 0).to(parameter.dtype)
                decaying = decaying.reshape(-1, *[1] * (parameter.dim() - 1))
                if self._decoupled:
                    parameter.mul_(1 - group["lr"] * decay * decaying)
                else:
                    parameter.grad.add_(parameter * decaying, alpha=decay)
        super().step()
