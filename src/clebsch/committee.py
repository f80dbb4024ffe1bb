"""How sure a linear potential is: the spread of draws from its posterior.

The network is linear in its coefficients, so the difference between a draw and the mean is itself
a linear potential. Its energies and forces are computed directly, without subtracting large
numbers, and their root mean square over the draws is the standard deviation. The noise of labels
is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clebsch.errors import ClebschError
from clebsch.graph import AtomGraph, edge_vectors
from clebsch.models.ace import ACE
from clebsch.potential import Potential, edge_forces, refuse_inference_mode


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Standard deviations of the posterior.

    Attributes:
        energy: [n_frames] float64, eV.
        forces: [n_atoms, 3] float64, eV/Angstrom, of each component.
    """

    energy: Tensor
    forces: Tensor


def uncertainty(potential: Potential, graph: AtomGraph) -> Uncertainty:
    """Standard deviations of energies and forces, from the committee that a fit left behind.

    With D draws an estimate is off by a factor of about 1 +- 1/sqrt(2 D).

    Args:
        potential: a fitted linear ACE.
        graph: one structure or several.

    Raises:
        ClebschError: the potential has no committee, ``torch.inference_mode`` is on, structures in
            place of their graph, or the graph of another potential.
    """
    potential.demand_graph(graph, "uncertainty(potential, potential.graph(structures))")
    network = potential.model
    if not isinstance(network, ACE) or not network.committee.any():
        raise ClebschError(
            "this potential has no committee to tell an uncertainty from: it takes a linear ACE "
            "(model=ace_3bpa, or model.name=ace) fitted with model.committee of 2 or more"
        )
    refuse_inference_mode("uncertainties of forces")
    vectors = edge_vectors(graph, graph.positions).detach().requires_grad_()
    with torch.enable_grad():
        energies = network.committee_energies(vectors.to(potential.dtype), graph)
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
