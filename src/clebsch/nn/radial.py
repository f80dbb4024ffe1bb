"""Radial bases, cut-off envelopes and the radial network that makes path weights from them."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clebsch.graph import AtomGraph
from clebsch.kernels.backend import Kernels
from clebsch.kernels.dispatch import load_backend
from clebsch.kernels.plan import ConvolutionPlan

#: Standard deviation of a radial network's initial weights after its first layer.
#:
#: Values of the radial basis are about 0.2 at the distances of neighbours, where SiLU is nearly
#: linear. From weights of 1, path weights would start at 0.14 and the one-particle basis at 0.04 in
#: the first layer and 0.001 in the second (mace_small on acetylacetone): products of three would
#: not count. Chosen by trial: there, after 2700 steps of Muon on all matrices, the force RMSE of
#: validation was 12.9 meV/Angstrom, and 15.7 without (one run each).
INITIAL_SCALE = 1.6765


class EdgeGeometry(NamedTuple):
    """What convolutions need to know of edges."""

    lengths: Tensor
    """[E], Angstrom."""
    basis: Tensor
    """[E, n_basis], the radial basis."""
    harmonics: Tensor
    """[E, S], spherical harmonics."""


class PolynomialEnvelope(nn.Module):
    """Smooth cut-off of DimeNet (Gasteiger et al. 2020, equation 8), exponent p.

    It is 1 at r = 0 and meets 0 at the cut-off with p-independent smoothness: value, first and
    second derivative vanish there. Beyond the cut-off it is exactly 0.
    """

    def __init__(self, cutoff: float, exponent: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.exponent = exponent

    def forward(self, lengths: Tensor) -> Tensor:
        """Args: lengths [E] in Angstrom. Returns: [E]."""
        p = self.exponent
        t = lengths / self.cutoff
        envelope = 1 - t**p * ((p + 1) * (p + 2) / 2 - t * (p * (p + 2) - t * (p * (p + 1) / 2)))
        return torch.where(t < 1, envelope, torch.zeros_like(envelope))


class BesselBasis(nn.Module):
    """Spherical Bessel functions of order 0 times an envelope: b_n(r) f(r), n = 1..n_basis.

    b_n(r) = sqrt(2 / r_c) sin(n pi r / r_c) / r (Gasteiger et al. 2020, equation 7), with fixed
    frequencies, in Angstrom^-3/2.
    """

    def __init__(self, cutoff: float, n_basis: int, envelope: nn.Module) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.n_basis = n_basis
        self.envelope = envelope

    def forward(self, lengths: Tensor) -> Tensor:
        """Args: lengths [E] in Angstrom, positive. Returns: [E, n_basis]."""
        order = torch.arange(1, self.n_basis + 1, dtype=lengths.dtype, device=lengths.device)
        frequencies = order * (math.pi / self.cutoff)
        scaled = math.sqrt(2 / self.cutoff) * self.envelope(lengths) / lengths
        return torch.sin(lengths[:, None] * frequencies) * scaled[:, None]


class RadialNetwork(nn.Module):
    """The multilayer perceptron from radial basis to path weights, R of equation 8, without biases.

    Without biases and with SiLU(0) = 0 the path weights inherit the envelope's smooth end at the
    cut-off. The last layer is kept apart as ``last_weight``, for the convolution to apply: path
    weights are then made block by block.
    """

    def __init__(self, n_basis: int, hidden: Sequence[int], n_paths: int, channels: int) -> None:
        super().__init__()
        self.kernels: Kernels = load_backend("reference")
        widths = [n_basis, *hidden]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(fan_in, fan_out) * (INITIAL_SCALE if layer else 1.0))
            for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(widths))
        )
        self.last = nn.Parameter(INITIAL_SCALE * torch.randn(widths[-1], n_paths, channels))

    def forward(self, basis: Tensor) -> Tensor:
        """Args: basis [E, n_basis]. Returns: the last hidden layer, [E, width]."""
        hidden = basis
        for weight in self.weights:
            hidden = self.kernels.silu(hidden @ (weight / math.sqrt(len(weight))))
        return hidden

    def convolve(
        self, plan: ConvolutionPlan, edges: EdgeGeometry, nodes: Tensor, graph: AtomGraph
    ) -> Tensor:
        """The convolution of equation 8 with these path weights: [N, C, K]."""
        hidden = self(edges.basis)
        return self.kernels.convolve_radial(
            plan, hidden, self.last_weight, edges.harmonics, nodes, graph
        )

    @property
    def last_weight(self) -> Tensor:
        """[hidden[-1], n_paths, channels], normalised by its fan-in."""
        return self.last / math.sqrt(len(self.last))


class RadialTable(nn.Module):
    """Path weights as a table: cubic Hermite splines of the distance, values and slopes exact.

    It computes what a radial network computed when the table was made; it is for inference.

    Args:
        network: the radial network.
        basis: radial basis that it is evaluated with.
        cutoff: Angstrom, where path weights end at zero.
        spacing: Angstrom between distances of the table.
    """

    table: Tensor

    def __init__(
        self, network: RadialNetwork, basis: nn.Module, cutoff: float, spacing: float
    ) -> None:
        super().__init__()
        self.kernels = network.kernels
        n_intervals = math.ceil(cutoff / spacing)
        self.per_angstrom = n_intervals / cutoff
        double = copy.deepcopy(network).double()
        double.kernels = load_backend("reference")
        lengths = torch.linspace(0, cutoff, n_intervals + 1, dtype=torch.float64)
        lengths[0] = 1e-6  # the basis at 0 is a limit

        def hidden(lengths: Tensor) -> Tensor:
            out: Tensor = double(basis(lengths))
            return out

        # Two reverse passes: torch's forward mode warns of parts of torch that it loads.
        ones = torch.ones_like(lengths)
        pair = torch.autograd.functional.jvp(hidden, lengths, ones)
        values, slopes = (part.detach() @ double.last_weight.detach().flatten(1) for part in pair)
        knots = torch.stack([values, slopes / self.per_angstrom], dim=1)
        shaped = knots.unflatten(2, network.last.shape[1:])
        self.register_buffer("table", shaped.to(network.last.dtype))  # [n_knots, 2, P, K]

    def convolve(
        self, plan: ConvolutionPlan, edges: EdgeGeometry, nodes: Tensor, graph: AtomGraph
    ) -> Tensor:
        """The convolution of equation 8 with these path weights: [N, C, K]."""
        # Just inside the last interval, beyond which nothing changes.
        most = (len(self.table) - 1) * (1 - 1e-6)
        places = (edges.lengths * self.per_angstrom).clamp(max=most)
        return self.kernels.convolve_table(plan, places, self.table, edges.harmonics, nodes, graph)
