"""Muon: momentum made orthogonal, for weights that are matrices."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clebsch.training.adam import Adam

#: Coefficients of the quintic iteration (K. Jordan et al. 2024, kellerjordan.github.io/posts/muon).
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95
#: Elements of matrices that CPUs iterate together: few enough to stay in the cache.
_CACHED = 2**17


class Muon(Adam):
    """Muon for matrices and AMSGrad for everything else.

    A matrix moves against its momentum M = U S V^T with the singular values made one: by
    U V^T sqrt(max(rows, columns)), whose elements have a root mean square of about 1, times the
    learning rate (Jordan et al. 2024; the factor as in Liu et al., arXiv 2502.16982, without their
    0.2). All directions of a layer learn at one pace, where Adam follows the few that dominate its
    gradients. Momentum is Nesterov's. Matrices do not decay. One without any gradient, as that of
    an element which the batch lacks, stays as it is with its momentum: made orthogonal, what is
    left of old gradients would move it as far as new ones.

    Args:
        matrices: parameters whose last two dimensions are matrices.
        others: groups of parameters, each with its ``decay``, for AMSGrad.
        lr: learning rate of both kinds.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[dict[str, Any]],
        lr: float,
    ) -> None:
        turned = {"params": list(matrices)}
        super().__init__([turned, *others], lr=lr, amsgrad=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change all parameters that have a gradient."""
        groups = self.param_groups
        self.param_groups = groups[1:]
        try:
            super().step()
        finally:
            self.param_groups = groups
        self._step_matrices(groups[0])

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            gradient, momentum = parameter.grad, state["momentum"]
            has_any = gradient.abs().amax((-2, -1), keepdim=True) != 0
            gradient = torch.where(has_any, gradient, momentum)  # momentum stays equal to it
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            ahead = gradient.lerp(momentum, _MOMENTUM) * has_any
            rows, columns = parameter.shape[-2:]
            lying = ahead.mT if rows > columns else ahead
            lying = lying.reshape(-1, *lying.shape[-2:])
            alike[lying.shape[1:]].append((parameter, lying))
        for (shorter, longer), members in alike.items():
            together = torch.cat([matrices for _, matrices in members])
            parts: Sequence[Tensor] = (together,)
            if together.device.type == "cpu":
                parts = together.split(max(1, _CACHED // (shorter * longer)))
            updates = torch.cat([orthogonal(part) for part in parts])
            counts = [len(matrices) for _, matrices in members]
            for (parameter, _), update in zip(members, updates.split(counts), strict=True):
                rows, columns = parameter.shape[-2:]
                shaped = (update.mT if rows > columns else update).reshape(parameter.shape)
                parameter.add_(shaped, alpha=-group["lr"] * math.sqrt(longer))


def orthogonal(matrices: Tensor) -> Tensor:
    """Roughly U V^T of matrices U S V^T: singular values near 1, zeros stay zero.

    They end between 0.6 and 1.25, but for those below a thousandth of the matrix's norm, which do
    not come that far. Five Newton-Schulz iterations of fifth order,
    X' = (a + b X X^T + c (X X^T)^2) X, which cost matrix products alone. Of wide matrices the
    factors are multiplied first: they need X X^T alone, which follows from itself.

    Args:
        matrices: [n, rows, columns], rows no more than columns.
    """
    a, b, c = _QUINTIC
    _, rows, columns = matrices.shape
    wide = columns >= 2 * rows
    # squares of tiny elements vanish; scaled by a power of two, others keep their bits
    largest = matrices.abs().amax((1, 2), keepdim=True)
    x = torch.ldexp(matrices, -torch.frexp(largest).exponent.clamp(-100, 100))
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-30)
    gram, total = x @ x.mT, None
    for iteration in range(_ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        last = iteration == _ITERATIONS - 1
        if wide:
            total = factor if total is None else factor @ total
            gram = gram if last else factor @ gram @ factor
        else:
            x = factor @ x
            gram = gram if last else x @ x.mT
    return x if total is None else total @ x
