"""A Morse potential with a potential's interface, and analytic calculators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from torch import Tensor

from clebsch.graph import AtomGraph, edge_vectors
from clebsch.neighbors import neighbor_graph
from clebsch.potential import Prediction

DEPTH, WIDTH, LENGTH = 0.5, 1.5, 2.5  # eV, 1/A, A


class Morse(torch.nn.Module):
    """Copper atoms bound pairwise, smooth at the cutoff, in float64."""

    species = ("Cu",)
    cutoff = 6.0
    dtype = torch.float64
    device = torch.device("cpu")
    shortest_distances: dict[str, float] | None = None

    def graph(self, atoms: Atoms) -> AtomGraph:
        return neighbor_graph(
            torch.tensor(np.asarray(atoms.positions)),
            torch.tensor(np.asarray(atoms.cell)),
            torch.tensor(np.asarray(atoms.pbc)),
            torch.zeros(len(atoms), dtype=torch.int64),
            self.cutoff,
        )

    def replays(self, graph: AtomGraph) -> bool:
        return False

    def pair_energy(self, distance: Tensor) -> Tensor:
        decay = torch.exp(-WIDTH * (distance - LENGTH))
        envelope = (1 - (distance / self.cutoff).clamp(max=1) ** 2) ** 3
        return DEPTH * (decay**2 - 2 * decay) * envelope

    def forward(self, graph: AtomGraph, outputs: Sequence[str]) -> Prediction:
        vectors = edge_vectors(graph, graph.positions).requires_grad_()
        distances = torch.linalg.vector_norm(vectors, dim=1)
        site = torch.zeros(graph.n_atoms, dtype=torch.float64)
        site = site.index_add(0, graph.receivers, 0.5 * self.pair_energy(distances))
        (gradient,) = torch.autograd.grad(site.sum(), vectors)
        forces = torch.zeros_like(graph.positions)
        forces.index_add_(0, graph.senders, gradient).index_add_(0, graph.receivers, -gradient)
        virial = -(vectors.detach().T @ gradient)[None]
        volume = torch.linalg.det(graph.cell).abs()[:, None, None]
        results = {
            "energy": site.detach().sum()[None],
            "forces": forces,
            "stress": -virial / volume if "stress" in outputs else None,
            "site_energies": site.detach(),
        }
        return Prediction(**{name: results[name] for name in outputs})


class Analytic(Calculator):
    """Independent atoms: an ideal gas (spring 0), or each held by a spring (eV/A^2)."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, spring: float = 0.0, sites: np.ndarray | float = 0.0) -> None:
        super().__init__()
        self.spring, self.sites = spring, sites

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        self.atoms = atoms.copy()
        moved = atoms.positions - self.sites
        self.results = {
            "energy": 0.5 * self.spring * float(np.sum(moved**2)),
            "forces": -self.spring * moved,
            "stress": np.zeros(6),
        }


def cluster() -> Atoms:
    """Seven copper atoms near a minimum of the Morse potential."""
    ring = [[np.cos(a) * 2.1, np.sin(a) * 2.1, 0.0] for a in np.linspace(0, 2 * np.pi, 6)[:-1]]
    return Atoms("Cu7", [*ring, [0, 0, 1.25], [0, 0, -1.25]])


def thermal_energy(temperature: float) -> float:
    return units.kB * temperature
