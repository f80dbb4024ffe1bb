"""Irreps of O(3): coefficients, harmonics, rotations and symmetric couplings.

Pure functions. Tables are float64 numpy arrays, cached and read-only; what is evaluated on data
is torch.

Conventions, those of e3nn 0.4.4, so that its features, weights and tables map one to one:

* components of an irrep in the order m = -l..l with y as the polar axis: a vector is (x, y, z);
* spherical harmonics in component normalisation, |Y_l|^2 = 2l+1;
* Clebsch-Gordan coefficients of unit Frobenius norm, which are e3nn's ``wigner_3j`` with the
  signs of 0.4.4; versions from 0.5 on have the opposite sign for some triples, up to l = 5 for
  (1, l, l) with l >= 2, (4, 4, 5) and (5, 5, 5);
* irreps sorted by l, odd before even;
* the full coupling table lists couplings in the order of MACE's own up to order 3.
"""

from __future__ import annotations

from clebsch.algebra.coupling import clebsch_gordan
from clebsch.algebra.irreps import (
    SCALAR,
    Irrep,
    Irreps,
    all_irreps,
    spherical_irreps,
)
from clebsch.algebra.rotation import irrep_matrix, irreps_matrix, random_rotation, wigner_d
from clebsch.algebra.spherical import spherical_harmonics
from clebsch.algebra.symmetric import CouplingBasis, Terms, coupling_basis

__all__ = [
    "SCALAR",
    "CouplingBasis",
    "Irrep",
    "Irreps",
    "Terms",
    "all_irreps",
    "clebsch_gordan",
    "coupling_basis",
    "irrep_matrix",
    "irreps_matrix",
    "random_rotation",
    "spherical_harmonics",
    "spherical_irreps",
    "wigner_d",
]
