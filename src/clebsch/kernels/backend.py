"""What a backend is: a name and the heavy operations that it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from clebsch.graph import AtomGraph
from clebsch.kernels.plan import ContractionPlan, ConvolutionPlan
from clebsch.kernels.tree import PolynomialForest


@dataclass(frozen=True)
class Kernels:
    """The operations of one backend; ``clebsch.kernels.reference`` says what each computes.

    They are functions of a module, so that potentials can be copied and pickled.
    """

    name: str
    convolve: Callable[[ConvolutionPlan, Tensor, Tensor, Tensor, AtomGraph], Tensor]
    convolve_radial: Callable[[ConvolutionPlan, Tensor, Tensor, Tensor, Tensor, AtomGraph], Tensor]
    convolve_table: Callable[[ConvolutionPlan, Tensor, Tensor, Tensor, Tensor, AtomGraph], Tensor]
    edge_product: Callable[[ConvolutionPlan, Tensor, Tensor, AtomGraph], Tensor]
    contract: Callable[[ContractionPlan, Tensor, Tensor, Tensor], Tensor]
    contract_slots: Callable[[ContractionPlan, tuple[Tensor, ...], Tensor, Tensor], Tensor]
    silu: Callable[[Tensor], Tensor]
    bessel_basis: Callable[[Tensor, float, int, int], Tensor]
    linear: Callable[[Tensor, Tensor, Tensor | None, Sequence[int], Sequence[int]], Tensor]
    spherical_harmonics: Callable[[Tensor, int], Tensor]
    tree_polynomial: Callable[[PolynomialForest, Tensor, Tensor, Tensor], Tensor]
    segment_sum: Callable[[Tensor, Tensor], Tensor]
    rows: Callable[[Tensor, Tensor], Tensor]
    from_senders: Callable[[Tensor, AtomGraph], Tensor]
    from_receivers: Callable[[Tensor, AtomGraph], Tensor]
    to_senders: Callable[[Tensor, AtomGraph], Tensor]

    def install(self, module: nn.Module) -> None:
        """Have a module, and all within it, compute with these."""
        for one in module.modules():
            if hasattr(one, "kernels"):
                setattr(one, "kernels", self)  # noqa: B010
