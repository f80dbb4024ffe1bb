"""The nonlinear one-particle basis of mace-torch's newer models: elements, densities, gates.

Equations as its models compute them, no paper; s sends, r receives, f is the envelope:

    u     = W_up h
    x_e   = [R(r_e), a_(z_s), b_(z_r)]
    w_e   = network(x_e) f(r_e),   rho_r = sum over e of tanh(network'(x_e)^2) f(r_e)
    m     = W_1 (convolution of u with w) / (alpha + beta rho) + W_res u
    A     = W_2 gate(m)

Where f is on the radial basis instead, it is 1 in the equations above, up to the cut-off. The
networks have biases, so that energies then jump where a neighbour crosses the cut-off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clebsch.algebra import Irreps
from clebsch.graph import AtomGraph
from clebsch.kernels.plan import ConvolutionPlan
from clebsch.nn.gate import Gate, gates
from clebsch.nn.kernel_module import KernelModule
from clebsch.nn.linear import ChannelMap, IrrepsLinear
from clebsch.nn.radial import EdgeGeometry


class EdgeNetwork(nn.Module):
    """Layers of a linear map with bias, layer normalisation and SiLU, on invariants of edges."""

    def __init__(self, n_inputs: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = [n_inputs, *hidden]
        self.maps = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, hidden, strict=False))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in hidden)

    def forward(self, inputs: Tensor) -> Tensor:
        """Args: inputs [E, n_inputs]. Returns: [E, hidden[-1] + 1], the last column one."""
        hidden = inputs
        for linear, norm in zip(self.maps, self.norms, strict=True):
            hidden = nn.functional.silu(norm(linear(hidden)))
        return torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)


class GatedAtomicBasis(KernelModule):
    """See the module's docstring.

    Args:
        plan: of the convolution.
        wanted: irreps of A.
        n_basis: functions of the radial basis.
        hidden: widths of the network of path weights.
        density_hidden: width of the network of the density.
        embedding: width of the elements' embeddings.
        n_species: elements.
        channels: of features.
        sent_channels: of what is sent.
    """

    def __init__(
        self,
        plan: ConvolutionPlan,
        wanted: Irreps,
        n_basis: int,
        hidden: Sequence[int],
        density_hidden: int,
        embedding: int,
        n_species: int,
        channels: int,
        sent_channels: int,
    ) -> None:
        super().__init__()
        self.plan = plan
        nodes, single = plan.node_irreps, (1,) * len(plan.node_irreps)
        gated = Irreps([*wanted, *gates(wanted)])
        self.linear_up = ChannelMap(nodes, single, channels, nodes, sent_channels)
        self.source = nn.Parameter(torch.randn(n_species, embedding))
        self.target = nn.Parameter(torch.randn(n_species, embedding))
        n_inputs = n_basis + 2 * embedding
        self.radial = EdgeNetwork(n_inputs, hidden)
        # the last row is a bias
        self.last = nn.Parameter(torch.randn(hidden[-1] + 1, plan.n_paths, sent_channels))
        self.density = EdgeNetwork(n_inputs, (density_hidden,))
        self.density_last = nn.Parameter(torch.randn(density_hidden + 1))
        self.alpha = nn.Parameter(torch.tensor(20.0))
        self.beta = nn.Parameter(torch.tensor(0.0))
        self.linear_res = ChannelMap(nodes, single, sent_channels, gated, channels)
        self.linear_1 = ChannelMap(plan.out_irreps, plan.copies, sent_channels, gated, channels)
        self.gate = Gate(wanted, "silu_sigmoid")
        self.linears = nn.ModuleList([IrrepsLinear(wanted, channels)])

    def forward(self, nodes: Tensor, edges: EdgeGeometry, graph: AtomGraph) -> tuple[Tensor]:
        """Args: nodes [N, H, K]. Returns: A, [N, Q, K]."""
        sent = self.linear_up(nodes)
        kernels, species = self.kernels, graph.species
        elements = [
            kernels.from_senders(kernels.rows(self.source, species), graph),
            kernels.from_receivers(kernels.rows(self.target, species), graph),
        ]
        inputs = torch.cat([edges.basis, *elements], dim=1)
        assert edges.envelope is not None
        hidden = self.radial(inputs) * edges.envelope[:, None]
        near = torch.tanh(self._density(inputs)) * edges.envelope
        weight = self.last / math.sqrt(len(self.last) - 1)
        summed = self.kernels.convolve_radial(
            self.plan, hidden, weight, edges.harmonics, sent, graph
        )
        divisor = self.alpha + self.beta * self.kernels.segment_sum(near, graph.row_ptr)
        message = self.linear_1(summed) / divisor[:, None, None] + self.linear_res(sent)
        (linear_2,) = self.linears
        return (linear_2(self.gate(message)),)

    def _density(self, inputs: Tensor) -> Tensor:
        """[E], not negative."""
        last = self.density_last / math.sqrt(len(self.density_last) - 1)
        return (self.density(inputs) @ last).square()
