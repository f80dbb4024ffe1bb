"""Whether a backend gives the reference's numbers for a potential, on this machine."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from clebsch.errors import BackendError
from clebsch.graph import AtomGraph
from clebsch.kernels.backend import Kernels
from clebsch.kernels.dispatch import load_backend
from clebsch.rounding import allow_tf32

if TYPE_CHECKING:
    from clebsch.potential import Potential


def example_structure(potential: Potential) -> Atoms:
    """At least eight atoms, every element among them, on a rattled grid in a periodic box."""
    side = max(2, math.ceil(len(potential.species) ** (1 / 3)))
    sites = np.array(list(np.ndindex(side, side, side)), dtype=float)
    symbols = [potential.species[i % len(potential.species)] for i in range(len(sites))]
    offsets = 0.2 * np.sin(np.arange(3.0 * len(sites))).reshape(-1, 3)
    spacing = potential.cutoff / 3
    cell = [1.1 * side * spacing] * 3
    return Atoms(symbols, spacing * (1.1 * sites + offsets), cell=cell, pbc=True)


@contextmanager
def without_guards(potential: Potential) -> Iterator[None]:
    """Have neither contact repulsion nor energy floor for a while: what the network says alone.

    The small structures that models are compared on are nothing like those of training, and of what
    is held there, or dwarfed by repulsion, a comparison would tell little.
    """
    guards = potential.contact, potential.floor
    potential.contact = potential.floor = None
    try:
        yield
    finally:
        potential.contact, potential.floor = guards


# Whoever builds or casts a potential may do so where nothing is differentiated.
@torch.inference_mode(False)
@torch.enable_grad()
def check_backend(potential: Potential, kernels: Kernels) -> None:
    """Compare energies, forces and the gradient of a loss on the forces, on a small structure.

    Args:
        potential: it has the reference, before and afterwards.
        kernels: the backend.

    Raises:
        BackendError: they differ by more than rounding explains, or are not finite.
    """
    graph = potential.graph(example_structure(potential))
    with allow_tf32(False), without_guards(potential):
        expected = answers(potential, graph)
        potential.compute_with(kernels)
        try:
            found = answers(potential, graph)
        finally:
            potential.compute_with(load_backend("reference"))
    off, allowed = _largest_deviation(found, expected), 1e-3
    if potential.dtype == torch.float64:
        allowed = 1e-9
    elif not off <= allowed:  # where the model itself is that sensitive to rounding
        exact = answers(copy.deepcopy(potential).double(), graph)
        off, rounding = _largest_deviation(found, exact), _largest_deviation(expected, exact)
        allowed = max(allowed, min(10 * rounding, 0.01))
    if off <= allowed:
        return
    if not _are_finite(expected):
        raise BackendError(
            "the model's energies or their derivatives are not finite numbers, whatever "
            f"computes them; of its weights {potential.tensor_not_finite() or 'none'} holds NaN or "
            "infinity. If its training diverged, use a model of before"
        )
    if not _are_finite(found):
        raise BackendError(
            f"the {kernels.name} backend gives numbers that are not finite on this machine, "
            "where the reference gives finite ones"
        )
    raise BackendError(
        f"the {kernels.name} backend disagrees with the reference on this machine: "
        f"off by {off:.2g}, allowed {allowed:.2g}"
    )


def answers(potential: Potential, graph: AtomGraph) -> list[Tensor]:
    """Energies by atom and layer, forces, and the derivatives of a loss on them by weights."""
    parameters = [p for p in potential.model.parameters() if p.requires_grad]
    prediction = potential(graph, ("layer_energies", "forces"), differentiable=bool(parameters))
    found = [prediction.layer_energies[:, 1:], prediction.forces]
    if parameters:
        loss = prediction.forces.square().sum()
        found += torch.autograd.grad(loss, parameters, materialize_grads=True)
    return [tensor.detach() for tensor in found]


def _largest_deviation(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Relative to the largest number of each tensor; not a number if something found is none."""
    deviations = [
        float((here - there).abs().max() / (1e-6 + there.abs().max()))
        for here, there in zip(found, expected, strict=True)
    ]
    return math.nan if any(map(math.isnan, deviations)) else max(deviations)


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
