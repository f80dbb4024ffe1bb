"""Fitting a linear potential in closed form: regularised least squares with a posterior.

Rows are energies, force components and virial components of labelled structures, with the weights
of ``FitConfig`` (and of the structures); what references and repulsion give is subtracted from the
labels. The prior expects coefficients to be smaller where functions are rough, and larger where
they are small.

The evidence takes residuals for independent, so that labels which follow from others, whatever the
coefficients, must not count. A crystal that moves as a whole, or a molecule that also turns, keeps
its energy: forces add up to nothing, and so do their torques. What is zero by symmetry says
nothing, and a virial has six components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import orth
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components
from torch import Tensor, nn

from clebsch.data.loader import Batch, LabelledGraphs
from clebsch.errors import DataError
from clebsch.graph import AtomGraph, edge_vectors
from clebsch.models.ace import ACE
from clebsch.models.network import Network
from clebsch.potential import Potential
from clebsch.training.config import FitConfig
from clebsch.training.design import Design
from clebsch.training.evidence import Posterior, posterior
from clebsch.training.normal_equations import NormalEquations

#: Size of a column relative to the largest, below which its coefficient's prior grows no more.
SMALLEST = 1e-6
#: Rows smaller than this, relative to the largest number of their structure's, are zero; and so
#: are directions, relative to the longest.
ZERO, RANK = 1e-10, 1e-8
#: Components of a virial in row-major order, xx yy zz yz xz xy, and how often each is in it.
VIRIAL, OCCURRENCES = np.array([0, 4, 8, 5, 2, 1]), np.array([1.0, 1, 1, 2, 2, 2])


@dataclass(frozen=True)
class LinearFit:
    """What a fit found.

    Attributes:
        n_rows: labels, those that follow from others left out.
        n_coefficients: of all central species.
        strength: lambda, the chosen strength of the prior against the noise.
        effective_parameters: how many coefficients the labels determine.
        log_evidence: of the chosen strength.
        forces_noise: eV/Angstrom, standard deviation of force residuals as the evidence has it;
            None without forces to fit.
        energy_noise: eV, that of energies per square root of the number of atoms; None likewise.
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
    n_independent: int
    """How many of them do not follow from others, whatever the coefficients."""


def weights_of_labels(config: FitConfig, counts: Mapping[str, int]) -> FitConfig:
    """The configuration without weights for labels that no structure has: they have no noise.

    Args:
        config: weights and prior.
        counts: as ``LabelledGraphs.counts``.
    """
    names = {"energy": "energies", "forces": "forces", "stress": "stresses"}
    return config.model_copy(update={k: 0.0 for k, name in names.items() if not counts[name]})


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
        config: weights of the labels that there are, and prior.
        seed: of the committee's draws.
        tell: called with every strength of the prior that is tried, and its log evidence.

    Raises:
        DataError: no structure has a label that has a weight, or no atom has a neighbour, or all
            labels are zero.
        ClebschError: the equations cannot be solved.
    """
    network = potential.model
    assert isinstance(network, ACE)
    gram = equations.close()
    if not gram.diagonal().any():
        raise DataError(
            "there is nothing to fit: no structure that has a label of a weight above 0 has two "
            f"atoms within the cut-off of {network.config.cutoff:g} Angstrom"
        )
    if not equations.square > 0:
        raise DataError(
            "there is nothing to fit: all labels are zero, but for references and repulsion"
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
    baseline = _without_network(potential)
    scale = float(potential.head.scale)
    for index in range(start, len(graphs)):
        batch = graphs.batch([index])
        rows = design(batch.graph, virial=bool(batch.labels.has_stress))
        yield _rows(batch, scale * rows, baseline, config)


def _rows(batch: Batch, design: np.ndarray, baseline: Potential, config: FitConfig) -> Rows:
    labels, graph = batch.labels, batch.graph
    n_atoms = graph.n_atoms
    known = baseline(graph, ("energy", "forces", "virial"))
    energy, forces, virial = np.split(design, [1, 1 + 3 * n_atoms])
    zero = ZERO * abs(design).max()
    parts = [Rows(design[:0], np.zeros(0), np.zeros(0), 0)]
    weight = config.energy / n_atoms * float(labels.energy_weight)
    if labels.has_energy and weight > 0:
        parts.append(Rows(energy, _difference(labels.energy, known.energy), np.full(1, weight), 1))
    weight = config.forces * float(labels.forces_weight)
    if labels.has_forces and weight > 0:
        targets, kept = _difference(labels.forces, known.forces), abs(forces).max(axis=1) > zero
        n_independent = n_kept = int(kept.sum())
        for components, motions in rigid_motions(graph):
            moved = components[kept[components]]
            if len(moved):
                basis = orth(motions[kept[components]], rcond=RANK)
                targets[moved] -= basis @ (basis.T @ targets[moved])
                n_independent -= basis.shape[1]
        parts.append(Rows(forces[kept], targets[kept], np.full(n_kept, weight), n_independent))
    weight = config.stress / n_atoms * float(labels.stress_weight)
    if labels.has_stress and weight > 0:
        volume = torch.linalg.det(graph.cell).abs()
        targets = _difference(-labels.stress * volume, known.virial)[VIRIAL]
        kept = abs(virial[VIRIAL]).max(axis=1) > zero
        weights = weight * OCCURRENCES[kept]
        parts.append(Rows(virial[VIRIAL][kept], targets[kept], weights, len(weights)))
    return Rows(
        np.concatenate([part.design for part in parts]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.weights for part in parts]),
        sum(part.n_independent for part in parts),
    )


def rigid_motions(graph: AtomGraph) -> list[tuple[np.ndarray, np.ndarray]]:
    """Displacements that leave the energy as it is, whatever the potential.

    Every part of a structure that has no edge to the others may move by itself, and turn about each
    axis that keeps the lattice vectors along which it is joined to its own images: a molecule, in a
    box or not, about all three, a wire about one, a crystal about none.

    Args:
        graph: of one structure.

    Returns:
        For each part of n atoms: the places [3 n] of its components among all, atom by atom, and
        its motions [3 n, k]; not orthonormal, of linear molecules not even independent.
    """
    senders, receivers = graph.senders.numpy(), graph.receivers.numpy()
    vectors = edge_vectors(graph, graph.positions).numpy()
    links = csr_array((np.ones(len(senders)), (receivers, senders)), shape=(graph.n_atoms,) * 2)
    _, part_of = connected_components(links, directed=False)
    pairs = zip(receivers.tolist(), senders.tolist(), strict=True)
    vector_of = dict(zip(pairs, vectors, strict=True))
    members = [np.flatnonzero(part_of == part) for part in range(part_of.max(initial=-1) + 1)]
    unwrapped = np.zeros((graph.n_atoms, 3))
    for atoms in members:
        order, before = breadth_first_order(links, atoms[0], directed=False)
        for atom in order[1:]:
            unwrapped[atom] = unwrapped[before[atom]] + vector_of[atom, before[atom]]
    # of edges between images: what a vector is more than the way there
    steps = vectors - (unwrapped[receivers] - unwrapped[senders])
    crossing = abs(steps).max(axis=1, initial=0) > RANK * abs(vectors).max(initial=1.0)
    found = []
    for part, atoms in enumerate(members):
        lattice = steps[crossing & (part_of[receivers] == part)]
        along = orth(lattice.T, rcond=RANK) if len(lattice) else np.zeros((3, 0))
        axes = {0: np.eye(3), 1: along}.get(along.shape[1], along[:, :0])
        arms = unwrapped[atoms] - unwrapped[atoms].mean(axis=0)
        shifts = np.broadcast_to(np.eye(3), (len(atoms), 3, 3))
        turns = np.cross(axes.T[:, None], arms).transpose(1, 2, 0)
        motions = np.concatenate([shifts, turns], axis=2).reshape(3 * len(atoms), -1)
        found.append(((3 * atoms[:, None] + np.arange(3)).ravel(), motions))
    return found


def _difference(label: Tensor, known: Tensor | None) -> np.ndarray:
    assert known is not None
    return (label - known).flatten().numpy()


def _noise(beta: float, weight: float) -> float | None:
    return (beta * weight) ** -0.5 if weight > 0 else None


class _ZeroNetwork(Network):
    """A network without energy, so that references and repulsion are left."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros((), dtype=torch.float64), requires_grad=False)

    @property
    def hops(self) -> int:
        return 1

    def forward(self, vectors: Tensor, graph: AtomGraph) -> Tensor:
        return (0 * vectors.sum()).expand(graph.n_atoms, 1)  # differentiable, as forces ask for

    def tabulate(self, spacing: float) -> None:
        pass

    def readout_parameters(self) -> Iterator[nn.Parameter]:
        yield from ()

    def decayed_parameters(self) -> Iterator[nn.Parameter]:
        yield from ()


def _without_network(potential: Potential) -> Potential:
    return Potential(
        potential.config, potential.species, _ZeroNetwork(), potential.head, potential.prior
    )
