"""Units, signs, index orders and the edge direction: written down here and nowhere else.

Units
    Length in Angstrom, energy in eV, force in eV/Angstrom, stress in eV/Angstrom^3, mass in
    atomic mass units, time in femtoseconds at the command line (ASE's unit inside ASE).

Cells
    Rows are the lattice vectors: ``positions = fractional @ cell``. A structure without a cell
    has a cell of zeros.

Edges
    An edge points from a *sender* j to a *receiver* i, one edge per direction and per periodic
    image; messages are summed at receivers. Its vector is

        edge_vector = positions[receiver] - positions[sender] + image @ cell

    with the integer ``image`` telling by how many lattice vectors the receiver is displaced.
    Edges are sorted by receiver, then sender, then image.

Features
    ``[n_nodes, components, channels]``: the components of all irreps one after another, each
    irrep's 2l+1 components in the order m = -l..l, channels last and contiguous, the same number
    of channels for every irrep.

Real spherical harmonics
    Component normalisation, |Y_l|^2 = 2l+1, of the unit edge vector, with e3nn's axes: y is the
    polar axis, so Y_1 = sqrt(3) (x, y, z). See ``clebsch.algebra.spherical``.

Clebsch-Gordan coefficients
    Real, unit Frobenius norm over all three indices, with the signs of e3nn 0.4.4.
    See ``clebsch.algebra.coupling``.

Derivatives
    forces = -dE/dpositions. With a symmetric strain e (positions -> positions (1 + e), likewise
    the cell): virial = -dE/de in eV, stress = +(dE/de)/volume, which is ASE's sign.
    Voigt order xx, yy, zz, yz, xz, xy. Labels in other conventions are converted while reading.
"""

from __future__ import annotations

#: (row, column) of each entry of a symmetric 3x3 tensor in Voigt order (xx, yy, zz, yz, xz, xy).
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))

#: What a potential can be asked for.
OUTPUTS = (
    "energy",
    "forces",
    "virial",
    "stress",
    "site_energies",
    "layer_energies",
    "hessian",
)
