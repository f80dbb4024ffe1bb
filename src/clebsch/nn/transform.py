"""Transforms of the distance by the elements of a pair, as mace-torch has them.

They replace the argument of the radial basis, never that of the envelope. Each scales distances by
the covalent radii of both atoms; constants and radii are stored with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from ase.data import covalent_radii
from torch import Tensor

from clebsch.graph import AtomGraph
from clebsch.nn.float64 import Float64Module


class DistanceTransform(Float64Module):
    """x(r; u, v) of the distance r and the elements u, v of an edge.

    ``agnesi``, with t = r / (0.5 (R_u + R_v)) and constants a, q, p (Witt et al., J. Chem. Phys.
    159, 164101, 2023):

        x = 1 / (1 + a t^q / (1 + t^(q - p)))

    ``soft``, with r_0 = R_u + R_v, p_0 = 3 r_0 / 4, p_1 = 4 r_0 / 3 and the constant alpha:

        x = p_0 + (r - p_0) (1 + tanh(alpha / (p_1 - p_0) (r - (p_0 + p_1) / 2))) / 2

    Args:
        form: which of them.
        numbers: atomic numbers of the elements.
    """

    constants: Tensor
    radii: Tensor

    def __init__(self, form: Literal["agnesi", "soft"], numbers: Sequence[int]) -> None:
        super().__init__()
        self.form = form
        constants = {"agnesi": [1.0805, 0.9183, 4.5791], "soft": [4.0]}[form]
        radii = [float(covalent_radii[z]) for z in numbers]
        self.register_constants(stored=True, constants=constants, radii=radii)

    def forward(self, lengths: Tensor, graph: AtomGraph) -> Tensor:
        """Args: lengths [E], Angstrom, positive. Returns: [E], in the dtype of ``lengths``."""
        radii = self.radii[graph.species]
        reach = (radii[graph.senders] + radii[graph.receivers]).to(lengths.dtype)
        constants = self.constants.to(lengths.dtype)
        if self.form == "agnesi":
            a, q, p = constants.unbind()
            t = lengths / (0.5 * reach)
            return 1 / (1 + a * t**q / (1 + t ** (q - p)))
        near, far = 0.75 * reach, 4 / 3 * reach
        steepness = constants[0] / (far - near)
        step = torch.tanh(steepness * (lengths - 0.5 * (near + far)))
        return near + 0.5 * (lengths - near) * (1 + step)
