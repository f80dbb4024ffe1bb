"""Several potentials together tell how sure they are; see test_linear_fit.py for draws of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms

import clebsch
from builders import ethanol, rattled, tiny
from clebsch.committee import graph_maker
from clebsch.errors import ClebschError


def member(seed: int, elements: str = "H C O", **settings: Any) -> clebsch.Potential:
    return tiny(elements, seed, **settings)


@pytest.mark.parametrize("n_members", [2, 3])
def test_uncertainties_are_the_spread_of_all_answers(n_members: int) -> None:
    """Against NumPy, each member on a graph of its own, for two structures of different size."""
    members = [member(0), member(1, cutoff=4.5), member(2)][:n_members]
    structures = [ethanol(), rattled(Atoms("CO", [[0, 0, 0], [0, 0, 1.2]]))]
    told = clebsch.uncertainty(members, graph_maker(members).graph(structures))
    answers = [one(one.graph(structures)) for one in members]
    energies = np.array([answer.energy.numpy() for answer in answers])
    forces = np.array([answer.forces.numpy() for answer in answers])
    np.testing.assert_allclose(told.energy, energies.std(0, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(told.forces, forces.std(0, ddof=1), rtol=1e-6, atol=1e-12)
    away = ((forces - forces.mean(0)) ** 2).sum((0, 2)) / (n_members - 1)
    np.testing.assert_allclose(told.of_atoms, np.sqrt(away), rtol=1e-6)
    assert told.of_atoms.shape == (11,)


def test_equal_members_are_sure() -> None:
    told = clebsch.uncertainty([member(0), member(0)], member(0).graph(ethanol()))
    assert not told.energy.any()
    assert not told.forces.any()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "two potentials or more"),
        ([member(0)], "alone has no committee"),
        ([member(0), member(1, "H C N O")], "the same elements, not H, C, O and H, C, N, O"),
    ],
)
def test_what_is_no_committee_says_so(members: list[clebsch.Potential], message: str) -> None:
    with pytest.raises(ClebschError, match=message):
        clebsch.uncertainty(members, member(0).graph(ethanol()))


def test_a_graph_that_is_too_short_for_a_member_is_refused() -> None:
    members = [member(0), member(1, cutoff=4.5)]
    with pytest.raises(ClebschError, match=r"cut-off of 4 .*graph_maker\(potentials\)\.graph"):
        clebsch.uncertainty(members, members[0].graph(ethanol()))
