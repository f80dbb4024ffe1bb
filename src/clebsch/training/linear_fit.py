"""Fitting a linear potential in closed form: regularised least squares with a posterior.

Rows are energies, force components and virial components of labelled structures, with the weights
of ``FitConfig`` (and of the structures); what references and repulsion give is subtracted from the
labels. The prior expects coefficients to be smaller where functions are rough, and larger where
they are small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from clebsch.data.loader import Batch, LabelledGraphs
from clebsch.errors import DataError
from clebsch.graph import AtomGraph
from clebsch.models.ace import ACE
from clebsch.models.network import Network
from clebsch.potential import Potential
from clebsch.training.config import FitConfig
from clebsch.training.design import Design
from clebsch.training.evidence import Posterior, posterior
from clebsch.training.normal_equations import NormalEquations

#: Size of a column relative to the largest, below which its coefficient's prior grows no more.
SMALLEST = 1e-6


@dataclass(frozen=True)
class LinearFit:
    """What a fit found.

    Attributes:
        n_rows: labels.
        n_coefficients: of all central species.
        strength: lambda, the chosen strength of the prior against the noise.
        effective_parameters: how many coefficients the labels determine.
        log_evidence: of the chosen strength.
        forces_noise: eV/Angstrom, standard deviation of force residuals as the evidence has it.
        energy_noise: eV, that of energies per square root of the number of atoms.
    """

    n_rows: int
    n_coefficients: int
    strength: float
    effective_parameters: float
    log_evidence: float
    forces_noise: float | None
    energy_noise: float | None

    def numbers(self) -> dict[str, float | None]:
        """All of it, for JSON."""
        return asdict(self)


class Rows(NamedTuple):
    """Labelled rows of one structure's design matrix."""

    design: np.ndarray
    """[n, P]; eV over the coefficients' unit, by Angstrom for forces."""
    targets: np.ndarray
    """[n]: labels minus what references and repulsion give."""
    weights: np.ndarray
    """[n]: of the squared residuals."""


def fit(
    potential: Potential, graphs: LabelledGraphs, config: FitConfig, seed: int = 0
) -> tuple[LinearFit, Posterior]:
    """Set a linear potential's coefficients and committee to the posterior of the labels.

    Args:
        potential: a linear ACE; its network changes.
        graphs: the labelled structures.
        config: weights and prior.
        seed: of the committee's draws.

    Raises:
        DataError: no structure has a label that has a weight, or no atom has a neighbour.
        ClebschError: the equations cannot be solved.
    """
    equations = empty_equations(potential)
    for rows in labelled_rows(potential, graphs, config):
        equations.add(*rows)
    return solve(potential, equations, config, seed)


def empty_equations(potential: Potential) -> NormalEquations:
    """For all coefficients of a linear ACE."""
    network = potential.model
    assert isinstance(network, ACE)
    return NormalEquations(len(network.coefficients))


def solve(
    potential: Potential,
    equations: NormalEquations,
    config: FitConfig,
    seed: int = 0,
    tell: Callable[[float, float], None] = lambda strength, log_evidence: None,
) -> tuple[LinearFit, Posterior]:
    """Set a linear potential's coefficients and committee to the posterior of the labels.

    Args:
        potential: a linear ACE; its network changes.
        equations: of all labels; no more of them can be added then.
        config: weights and prior.
        seed: of the committee's draws.
        tell: told of every strength of the prior that is tried, and its log evidence.

    Raises:
        DataError: no structure has a label that has a weight, or no atom has a neighbour.
        ClebschError: the equations cannot be solved.
    """
    network = potential.model
    assert isinstance(network, ACE)
    gram = equations.close()
    if not equations.n_rows:
        raise DataError("no structure has a label that the fit has a weight for")
    if not gram.diagonal().any():
        raise DataError(
            f"no labelled structure has two atoms within the cut-off of {network.config.cutoff:g} "
            "Angstrom: there is nothing to fit"
        )
    found = posterior(
        gram,
        equations.moment,
        equations.square,
        equations.n_rows,
        prior_std(network, config, gram.diagonal()),
        None if config.regularization == "evidence" else config.regularization,
        tell,
    )
    draws = found.draws(len(network.committee), seed)
    with torch.no_grad():
        network.coefficients.copy_(torch.from_numpy(found.mean))
        network.committee.copy_(torch.from_numpy(draws))
    fitted = LinearFit(
        equations.n_rows,
        len(network.coefficients),
        found.strength,
        found.effective_parameters(),
        found.log_evidence,
        _noise(found.beta, config.forces),
        _noise(found.beta, config.energy),
    )
    return fitted, found


def prior_std(network: ACE, config: FitConfig, squares: np.ndarray) -> np.ndarray:
    """s of every coefficient: (1 + degree)^-smoothness (size / largest size)^-standardization.

    The size of a function is the norm of its column, what it contributes to all labels. A
    coefficient of one that the labels hardly know stays finite.

    Args:
        network: whose functions they are.
        config: smoothness and standardization.
        squares: [P] squared norms of the columns.

    Returns:
        [P].
    """
    sizes = np.sqrt(squares / squares.max())
    smooth = (1 + network.basis.degrees[np.concatenate(network.functions)]) ** -config.smoothness
    return smooth * np.maximum(sizes, SMALLEST) ** -config.standardization


def labelled_rows(
    potential: Potential,
    graphs: LabelledGraphs,
    config: FitConfig,
    start: int = 0,
    design: Design | None = None,
) -> Iterator[Rows]:
    """The rows of each structure, one structure after the other, from the ``start``-th on."""
    network = potential.model
    assert isinstance(network, ACE)
    design = design or Design(network)
    nothing = _without_network(potential)
    scale = float(potential.head.scale)
    for index in range(start, len(graphs)):
        batch = graphs.batch([index])
        rows = design(batch.graph, virial=bool(batch.labels.has_stress))
        yield _rows(batch, scale * rows, nothing, config)


def _rows(batch: Batch, design: np.ndarray, nothing: Potential, config: FitConfig) -> Rows:
    labels, n_atoms = batch.labels, batch.graph.n_atoms
    known = nothing(batch.graph, ("energy", "forces", "virial"))
    volume = torch.linalg.det(batch.graph.cell).abs()
    kinds: list[tuple[slice, Tensor, Tensor, float, bool]] = [
        (
            slice(0, 1),
            labels.energy,
            known.energy,
            config.energy / n_atoms * float(labels.energy_weight),
            bool(labels.has_energy),
        ),
        (
            slice(1, 1 + 3 * n_atoms),
            labels.forces,
            known.forces,
            config.forces * float(labels.forces_weight),
            bool(labels.has_forces),
        ),
        (
            slice(1 + 3 * n_atoms, None),
            -labels.stress * volume,
            known.virial,
            config.stress / n_atoms * float(labels.stress_weight),
            bool(labels.has_stress),
        ),
    ]
    chosen = [kind for kind in kinds if kind[4] and kind[3] > 0]
    parts = [design[place] for place, *_ in chosen]
    targets = [(label - expected).flatten().numpy() for _, label, expected, *_ in chosen]
    weights = [
        np.full(len(target), weight)
        for target, (_, _, _, weight, _) in zip(targets, chosen, strict=True)
    ]
    empty = np.zeros(0)
    return Rows(
        np.concatenate([design[:0], *parts]),
        np.concatenate([empty, *targets]),
        np.concatenate([empty, *weights]),
    )


def _noise(beta: float, weight: float) -> float | None:
    return (beta * weight) ** -0.5 if weight > 0 else None


class _Nothing(Network):
    """No energy at all: leaves references and repulsion."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros((), dtype=torch.float64), requires_grad=False)

    def forward(self, vectors: Tensor, graph: AtomGraph) -> Tensor:
        return (0 * vectors.sum()).expand(graph.n_atoms, 1)  # differentiable, as forces ask for

    def tabulate(self, spacing: float) -> None:
        pass

    def decayed_parameters(self) -> Iterator[nn.Parameter]:
        yield from ()


def _without_network(potential: Potential) -> Potential:
    return Potential(
        potential.config, potential.species, _Nothing(), potential.head, potential.prior
    )
