"""How irreps transform: real Wigner matrices of rotations and reflections."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from clebsch.algebra.coupling import clebsch_gordan
from clebsch.algebra.irreps import Irrep, Irreps


def _orthogonal(matrix: Tensor) -> Tensor:
    """``matrix`` in float64, checked to be a 3x3 orthogonal matrix to within 1e-4."""
    if matrix.shape != (3, 3):
        raise ValueError(f"expected a [3, 3] matrix, not {tuple(matrix.shape)}")
    matrix = matrix.to(torch.float64)
    deviation = (matrix @ matrix.T - torch.eye(3, dtype=torch.float64, device=matrix.device)).abs()
    if not deviation.max() < 1e-4:
        raise ValueError(f"the matrix is not orthogonal: |R R^T - 1| is up to {deviation.max():g}")
    return matrix


def wigner_d(degree: int, rotation: Tensor) -> Tensor:
    """The matrix D with Y_l(R v) = D(R) Y_l(v).

    Exact by recursion: degree l is the highest degree in the product of degree 1, whose matrix is
    R itself in our component order, and degree l-1.

    Args:
        degree: l, 0 or more.
        rotation: [3, 3] orthogonal. For an improper one the relation holds too: spherical
            harmonics have the natural parity (-1)^l (other parities: ``irrep_matrix``).

    Returns:
        [2l+1, 2l+1] float64, orthogonal.

    Raises:
        ValueError: ``rotation`` is not a 3x3 orthogonal matrix or ``degree`` is negative.
    """
    rotation = _orthogonal(rotation)
    if degree < 0:
        raise ValueError(f"degree must be 0 or more, not {degree}")
    matrix = rotation.new_ones(1, 1)
    for step in range(1, degree + 1):
        table = torch.tensor(clebsch_gordan(1, step - 1, step), device=rotation.device)
        isometry = table * sqrt(2 * step + 1)  # [3, 2l-1, 2l+1]
        matrix = torch.einsum("iam,ij,ab,jbn->mn", isometry, rotation, matrix, isometry)
    return matrix


def irrep_matrix(irrep: Irrep, matrix: Tensor) -> Tensor:
    """How ``irrep`` transforms under a rotation or, with its own parity, a rotoinversion.

    Args:
        irrep: degree and parity.
        matrix: [3, 3] orthogonal, proper or improper.

    Returns:
        [2l+1, 2l+1] float64.

    Raises:
        ValueError: ``matrix`` is not a 3x3 orthogonal matrix.
    """
    natural = wigner_d(irrep.l, matrix)
    if irrep.is_natural:
        return natural
    return natural * torch.sign(torch.linalg.det(matrix.to(torch.float64)))


def irreps_matrix(irreps: Irreps, matrix: Tensor) -> Tensor:
    """Block-diagonal [irreps.dim, irreps.dim] float64 matrix of ``irrep_matrix`` blocks."""
    return torch.block_diag(*(irrep_matrix(irrep, matrix) for irrep in irreps))


def random_rotation(generator: torch.Generator) -> Tensor:
    """A proper rotation [3, 3] float64 on the CPU, uniform over SO(3) (Shoemake's quaternions)."""
    quaternion = torch.randn(4, dtype=torch.float64, generator=generator)
    w, x, y, z = (quaternion / torch.linalg.vector_norm(quaternion)).tolist()
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.tensor(rows, dtype=torch.float64)
