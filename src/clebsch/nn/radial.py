"""Radial bases, cut-off envelopes, and what convolutions know of edges."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clebsch.kernels.reference import bessel_functions, polynomial_envelope
from clebsch.nn.kernel_module import KernelModule


class EdgeGeometry(NamedTuple):
    """What convolutions need to know of edges."""

    lengths: Tensor
    """[E], Angstrom."""
    basis: Tensor
    """[E, n_basis], the radial basis."""
    harmonics: Tensor
    """[E, S], spherical harmonics."""
    amplitudes: Tensor | None = None
    """[E, l_max + 1, K], radial functions of each degree and pair of elements (PACE)."""
    envelope: Tensor | None = None
    """[E], what path weights are multiplied by, where the radial basis has no envelope."""


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
        return polynomial_envelope(lengths / self.cutoff, self.exponent)


class SmoothEnvelope(nn.Module):
    """exp(-r^2 / ((r_c - r) (r_c + r))): all derivatives vanish at the cut-off.

    (Unke et al. 2021, SpookyNet, equation 18.) Beyond the cut-off it is exactly 0.
    """

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(self, lengths: Tensor) -> Tensor:
        """Args: lengths [E] in Angstrom. Returns: [E]."""
        square = (lengths / self.cutoff).square()
        # Where the value is 0 to rounding, its derivatives are kept finite.
        inside = square < 0.99
        square = torch.where(inside, square, torch.zeros_like(square))
        return torch.where(inside, torch.exp(-square / (1 - square)), torch.zeros_like(square))


class HardEnvelope(nn.Module):
    """1 within the cut-off and 0 beyond: a jump, for models of others that have it."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(self, lengths: Tensor) -> Tensor:
        """Args: lengths [E] in Angstrom. Returns: [E]."""
        return (lengths < self.cutoff).to(lengths.dtype)


class RadialBasis(nn.Module, ABC):
    """Functions of the distance, or of a transform of it, times an envelope of the distance.

    Args:
        n_basis: number of functions.
        envelope: of the distance; none if None.
    """

    def __init__(self, n_basis: int, envelope: nn.Module | None) -> None:
        super().__init__()
        self.n_basis = n_basis
        self.envelope = envelope

    @abstractmethod
    def functions(self, x: Tensor) -> Tensor:
        """Args: x [E], positive. Returns: [E, n_basis], without the envelope."""

    def forward(self, lengths: Tensor, transformed: Tensor | None = None) -> Tensor:
        """The radial basis.

        Args:
            lengths: [E] in Angstrom, positive.
            transformed: [E], what the functions are taken of; the lengths if None.

        Returns:
            [E, n_basis].
        """
        values = self.functions(lengths if transformed is None else transformed)
        return values if self.envelope is None else values * self.envelope(lengths)[:, None]


class BesselBasis(RadialBasis, KernelModule):
    """Spherical Bessel functions of order 0 times an envelope: b_n(r) f(r), n = 1..n_basis.

    b_n(r) = sqrt(2 / r_c) sin(n pi r / r_c) / r (Gasteiger et al. 2020, equation 7), in
    Angstrom^-3/2. Where they are trainable the frequencies n pi start there.
    """

    def __init__(
        self, cutoff: float, n_basis: int, envelope: nn.Module | None, trainable: bool = False
    ) -> None:
        super().__init__(n_basis, envelope)
        self.cutoff = cutoff
        self.frequencies: nn.Parameter | None = None
        if trainable:
            self.frequencies = nn.Parameter(math.pi * torch.arange(1.0, n_basis + 1))

    def forward(self, lengths: Tensor, transformed: Tensor | None = None) -> Tensor:
        """See ``RadialBasis``."""
        cut = self.envelope
        fixed = transformed is None and self.frequencies is None
        if fixed and isinstance(cut, PolynomialEnvelope) and cut.cutoff == self.cutoff:
            return self.kernels.bessel_basis(lengths, self.cutoff, self.n_basis, cut.exponent)
        return super().forward(lengths, transformed)

    def functions(self, x: Tensor) -> Tensor:
        """Args: x [E], positive. Returns: [E, n_basis], without the envelope."""
        return bessel_functions(x, self.cutoff, self.n_basis, self.frequencies)


class GaussianBasis(RadialBasis):
    """Gaussians times an envelope: exp(-(x - mu_n)^2 / (2 d^2)), n = 1..n_basis.

    The centres mu_n divide the way from 0 to the cut-off evenly, d apart, as mace-torch has it.
    """

    def __init__(self, cutoff: float, n_basis: int, envelope: nn.Module | None) -> None:
        super().__init__(n_basis, envelope)
        self.cutoff = cutoff

    def functions(self, x: Tensor) -> Tensor:
        """Args: x [E]. Returns: [E, n_basis], without the envelope."""
        step = self.cutoff / (self.n_basis - 1)
        centres = step * torch.arange(self.n_basis, dtype=x.dtype, device=x.device)
        return torch.exp(-0.5 * ((x[:, None] - centres) / step).square())


class ChebyshevBasis(RadialBasis):
    """Chebyshev polynomials of the first kind times an envelope: T_n(x), n = 1..n_basis.

    As mace-torch has it, x is not scaled to -1..1: it is meant to come from a transform. Of a bare
    distance of several Angstrom the polynomials are huge.
    """

    def functions(self, x: Tensor) -> Tensor:
        """Args: x [E]. Returns: [E, n_basis], without the envelope."""
        before, current = torch.ones_like(x), x
        values = []
        for _ in range(self.n_basis):
            values.append(current)
            before, current = current, 2 * x * current - before
        return torch.stack(values, dim=1)


class BernsteinBasis(RadialBasis):
    """Exponential Bernstein polynomials times an envelope.

    b_n(r) = binomial(N, n) x^n (1 - x)^(N - n) f(r), x = exp(-alpha r), n = 0..N = n_basis - 1
    (Unke et al. 2021, SpookyNet, equation 17). alpha is trained from 0.5 per Angstrom on.
    """

    binomials: Tensor
    powers: Tensor

    def __init__(self, n_basis: int, envelope: nn.Module | None) -> None:
        super().__init__(n_basis, envelope)
        self.raw_decay = nn.Parameter(torch.tensor(math.log(math.expm1(0.5))))
        highest = n_basis - 1
        binomials = [float(math.comb(highest, n)) for n in range(n_basis)]
        self.register_buffer("binomials", torch.tensor(binomials), persistent=False)
        self.register_buffer("powers", torch.arange(float(n_basis)), persistent=False)

    def functions(self, x: Tensor) -> Tensor:
        """Args: x [E], positive. Returns: [E, n_basis], without the envelope."""
        exponents = -torch.nn.functional.softplus(self.raw_decay) * x[:, None]
        rising = torch.exp(exponents * self.powers)
        falling = (-torch.expm1(exponents)) ** self.powers.flip(0)
        return self.binomials * rising * falling
