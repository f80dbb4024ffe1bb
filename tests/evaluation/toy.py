"""A pair potential with the interface of ``clebsch.Potential``, and frames labelled by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from clebsch.data.frame import Frame
from clebsch.errors import UnknownElementError
from clebsch.graph import AtomGraph
from clebsch.neighbors import neighbor_graph


class ToyPotential(torch.nn.Module):
    """Gaussian repulsion between all pairs, times a width per element."""

    species = ("H", "C", "O", "Cu")
    cutoff = 3.0
    dtype = torch.float64
    device = torch.device("cpu")

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = torch.nn.Parameter(torch.tensor(strength, dtype=torch.float64))
        self.outputs_asked: list[tuple[str, ...]] = []
        self.batch_sizes: list[int] = []
        self.provenance: dict[str, Any] = {}

    def graph(self, frame: Frame) -> AtomGraph:
        for symbol in frame.symbols:
            if symbol not in self.species:
                raise UnknownElementError(f"{frame.source}: element {symbol} is unknown")
        species = torch.tensor([self.species.index(s) for s in frame.symbols])
        return neighbor_graph(
            torch.from_numpy(frame.positions),
            torch.from_numpy(frame.cell),
            torch.from_numpy(frame.pbc),
            species,
            self.cutoff,
        )

    def forward(
        self, graph: AtomGraph, outputs: Sequence[str] = ("energy", "forces")
    ) -> SimpleNamespace:
        self.outputs_asked.append(tuple(outputs))
        self.batch_sizes.append(graph.n_frames)
        positions = graph.positions.detach().requires_grad_()
        strain = torch.zeros(graph.n_frames, 3, 3, dtype=torch.float64, requires_grad=True)
        symmetric = 0.5 * (strain + strain.transpose(1, 2))
        vectors = positions[graph.receivers] - positions[graph.senders]
        frames = graph.frame[graph.receivers]
        vectors = vectors + torch.einsum("ei,eij->ej", graph.images, graph.cell[frames])
        vectors = vectors + torch.einsum("ei,eij->ej", vectors, symmetric[frames])
        widths = 1.0 + 0.1 * graph.species.to(torch.float64)
        width = widths[graph.receivers] * widths[graph.senders]
        pairs = 0.5 * self.strength * torch.exp(-(vectors**2).sum(1) / width)
        energy = torch.zeros(graph.n_frames, dtype=torch.float64).index_add(0, frames, pairs)
        gradient, virial = torch.autograd.grad(energy.sum(), [positions, strain])
        stress = None
        if "stress" in outputs:
            stress = virial / torch.linalg.det(graph.cell).abs()[:, None, None]
        return SimpleNamespace(energy=energy.detach(), forces=-gradient, stress=stress)


def molecule(seed: int, symbols: Sequence[str] = "HCO", **labels: object) -> Frame:
    """A random cluster without a cell."""
    rng = np.random.default_rng(seed)
    n = len(symbols)
    return Frame(
        numbers=np.array([chemical_symbols.index(s) for s in symbols]),
        positions=rng.normal(scale=0.7 * n ** (1 / 3), size=(n, 3)),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
        source=f"toy.xyz:{seed}",
        **labels,  # type: ignore[arg-type]
    )


def crystal(seed: int, **labels: object) -> Frame:
    """Four copper atoms in a skewed cell."""
    rng = np.random.default_rng(seed)
    cell = 3.6 * np.eye(3) + 0.2 * rng.normal(size=(3, 3))
    points = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    return Frame(
        numbers=np.full(4, 29),
        positions=points @ cell + 0.1 * rng.normal(size=(4, 3)),
        cell=cell,
        pbc=np.ones(3, dtype=bool),
        source=f"crystal.xyz:{seed}",
        **labels,  # type: ignore[arg-type]
    )


def labelled(
    frame: Frame, noise: float = 0.02, seed: int = 0, info: dict[str, object] | None = None
) -> Frame:
    """The frame with labels of the toy potential, off by noise."""
    rng = np.random.default_rng(seed)
    potential = ToyPotential()
    periodic = bool(frame.pbc.any())
    out = potential(potential.graph(frame), ("energy", "forces", *(["stress"] if periodic else [])))
    noisy = out.forces.numpy() + noise * rng.normal(size=(len(frame), 3))
    stress = None
    if periodic:
        bump = noise * 0.01 * rng.normal(size=(3, 3))
        stress = out.stress[0].numpy() + bump + bump.T
    return replace(
        frame,
        energy=float(out.energy[0]) + noise * rng.normal(),
        forces=noisy,
        stress=stress,
        info=info or {},
    )
