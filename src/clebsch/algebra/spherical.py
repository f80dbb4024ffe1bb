"""Real spherical harmonics of vectors, as polynomials in x, y and z.

y is the polar axis and the plane of the azimuth is (z, x), so that the components m = -l..l begin

    Y_0 = 1
    Y_1 = sqrt(3) (x, y, z)
    Y_2 = sqrt(15) (xz, xy, (2 y^2 - x^2 - z^2) / sqrt(12), yz, (z^2 - x^2) / 2)

in component normalisation, |Y_l|^2 = 2l+1 on the unit sphere: the axes, order, signs and
normalisation "component" of e3nn.
"""

from __future__ import annotations

from functools import cache
from math import sqrt

import torch
from torch import Tensor


@cache
def _recurrence(degree: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The factors [2l-1, 1] of y Y_(l-1) and [2l-3, 1] of Y_(l-2), m ascending."""
    # Built outside inference mode: a tensor born inside it could never be used in training.
    with torch.inference_mode(False):
        m = torch.arange(1 - degree, degree, dtype=torch.float64)[:, None]
        previous = degree - 1
        upper = ((4 * degree**2 - 1) / (degree**2 - m**2)).sqrt()
        lower = upper * ((previous**2 - m**2) / (4 * previous**2 - 1)).sqrt()
        return upper.to(device, dtype), lower[1:-1].to(device, dtype)


def spherical_harmonics(vectors: Tensor, l_max: int) -> Tensor:
    """Real spherical harmonics Y_lm of degrees 0 to ``l_max``, of the directions of vectors.

    Only torch operations, differentiable any number of times; everything is polynomial, so the
    polar axis is no special place. Of vectors divided by their length, so that r = 1, at fixed m

        Y_lm = a_lm (y Y_(l-1)m - b_lm r^2 Y_(l-2)m),
        a_lm^2 = (4 l^2 - 1) / (l^2 - m^2),  b_lm^2 = ((l-1)^2 - m^2) / (4 (l-1)^2 - 1),

    and the two outermost components are the imaginary and real part of (z + i x)^l.

    Args:
        vectors: [..., 3] x, y, z in any unit; float32 or float64. The zero vector gives NaN.
        l_max: highest degree, 0 or more.

    Returns:
        [..., (l_max+1)^2], degree l at ``l**2:(l+1)**2``, contiguous, in the dtype of ``vectors``.

    Raises:
        ValueError: the last dimension is not 3 or ``l_max`` is negative.
    """
    if vectors.shape[-1:] != (3,):
        raise ValueError(f"vectors must be [..., 3], not {tuple(vectors.shape)}")
    if l_max < 0:
        raise ValueError(f"l_max must be 0 or more, not {l_max}")
    vectors = vectors * vectors.square().sum(-1, keepdim=True).rsqrt()
    # Components lead inside, so that every operation runs along contiguous vectors.
    xyz = vectors.reshape(-1, 3).t().contiguous()  # [3, n]
    degrees = _degrees(xyz, l_max)
    harmonics = torch.cat(degrees).t().contiguous()  # [n, (l_max+1)^2]
    return harmonics.reshape(*vectors.shape[:-1], (l_max + 1) ** 2)


def _degrees(xyz: Tensor, l_max: int) -> list[Tensor]:
    """[2l+1, n] of each degree, for x, y and z of unit vectors, [3, n]."""
    degrees = [torch.ones_like(xyz[:1])]
    if l_max == 0:
        return degrees
    degrees.append(sqrt(3) * xyz)
    x, y, z = xyz.split(1)
    nothing = torch.zeros_like(x)
    for degree in range(2, l_max + 1):
        upper, lower = _recurrence(degree, xyz.dtype, xyz.device)
        previous, before = degrees[-1], degrees[-2]
        inner = upper * (y * previous)  # [2l-1, n]: |m| < l
        # not torch's ``pad``: that of torch 2.8 refuses tensors without columns, where no edges are
        inner = inner - torch.cat([nothing, lower * before, nothing])
        outermost = sqrt(1 + 1 / (2 * degree))
        sine, cosine = outermost * previous[:1], outermost * previous[-1:]
        degrees.append(torch.cat([z * sine + x * cosine, inner, z * cosine - x * sine]))
    return degrees
