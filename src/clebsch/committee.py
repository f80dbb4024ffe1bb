"""How sure potentials are: the spread of a committee.

The members are potentials that were trained apart, or draws from the posterior of a linear one. A
linear potential's difference between a draw and the mean is itself a linear potential: its energies
and forces are computed directly, without subtracting large numbers, and their root mean square over
the draws is the standard deviation. The noise of labels is not in either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clebsch.errors import ClebschError
from clebsch.graph import AtomGraph, edge_vectors
from clebsch.models.ace import ACE
from clebsch.potential import Potential, edge_forces, refuse_inference_mode


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Standard deviations over a committee.

    Attributes:
        energy: [n_frames] float64, eV.
        forces: [n_atoms, 3] float64, eV/Angstrom, of each component.
    """

    energy: Tensor
    forces: Tensor

    @property
    def of_atoms(self) -> Tensor:
        """[n_atoms] float64, eV/Angstrom: root mean square distance of an atom's force from the
        committee's mean.
        """
        return torch.linalg.vector_norm(self.forces, dim=1)


def uncertainty(potential: Potential | Sequence[Potential], graph: AtomGraph) -> Uncertainty:
    """Standard deviations of energies and forces.

    Of several potentials it is the sample standard deviation of their answers; of one linear ACE
    that of the draws which its fit left behind. With D members or draws an estimate is off by a
    factor of about 1 +- 1/sqrt(2 D).

    Args:
        potential: a committee, best trained alike from different seeds; or one fitted linear ACE.
        graph: one structure or several; for a committee, from ``graph_maker`` of it.

    Raises:
        ClebschError: no committee; ``torch.inference_mode`` is on; structures in place of their
            graph, or a graph for other elements or a shorter cut-off.
    """
    members = [potential] if isinstance(potential, Potential) else list(potential)
    check_committee(members)
    call = "uncertainty(potential, potential.graph(structures))"
    if len(members) > 1:
        call = "uncertainty(potentials, graph_maker(potentials).graph(structures))"
    for member in members:
        member.demand_graph(graph, call)
    refuse_inference_mode("uncertainties of forces")
    if len(members) == 1:
        return _spread_of_draws(members[0], graph)
    told = [member(graph, ("energy", "forces")) for member in members]
    return Uncertainty(
        torch.stack([one.energy for one in told if one.energy is not None]).std(0),
        torch.stack([one.forces for one in told if one.forces is not None]).std(0),
    )


def n_draws(potential: Potential) -> int:
    """How many draws from its posterior a potential holds; none but fitted linear ones do."""
    network = potential.model
    return len(network.committee) if isinstance(network, ACE) and network.committee.any() else 0


def check_committee(members: Sequence[Potential]) -> None:
    """Whether their spread tells an uncertainty.

    Raises:
        ClebschError: there is none, or one without draws; members know different elements.
    """
    if not members:
        raise ClebschError("a committee has two potentials or more")
    first, *others = members
    if not others and not n_draws(first):
        raise ClebschError(
            "this potential alone has no committee to tell an uncertainty from: it takes others, "
            "trained from other seeds, or a linear ACE (model=ace_3bpa, or model.name=ace) fitted "
            "with model.committee of 2 or more"
        )
    for other in others:
        if other.species != first.species:
            raise ClebschError(
                "the potentials of a committee know the same elements, not "
                f"{', '.join(first.species)} and {', '.join(other.species)}"
            )


def graph_maker(members: Sequence[Potential]) -> Potential:
    """Whose graphs all members of a committee take: the one with the longest cut-off."""
    return max(members, key=lambda member: member.cutoff)


def _spread_of_draws(potential: Potential, graph: AtomGraph) -> Uncertainty:
    network = potential.model
    assert isinstance(network, ACE)
    vectors = edge_vectors(graph, graph.positions).detach().requires_grad_()
    with torch.enable_grad():
        seen = vectors
        if potential.contact is not None and potential.is_in_contact(graph):
            seen, _ = potential.contact(vectors, graph)
        energies = network.committee_energies(seen.to(potential.dtype), graph)
        scaled = [potential.head.scale * draw.to(torch.float64) for draw in energies]
        forces = []
        for draw in scaled:
            (gradient,) = torch.autograd.grad(
                draw.sum(), vectors, retain_graph=True, materialize_grads=True
            )
            forces.append(edge_forces(gradient, graph, network.kernels))
    by_atom = torch.stack(scaled, dim=1).detach()  # [N, draws]
    totals = network.kernels.segment_sum(by_atom, graph.frame_ptr)
    return Uncertainty(totals.square().mean(1).sqrt(), torch.stack(forces).square().mean(0).sqrt())
