"""What is closer than in training, against distances that ASE computes."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list

import clebsch
from clebsch.contacts import CLOSER, Contact, find_contacts
from clebsch.data.frame import Frame
from clebsch.data.loader import LabelledGraphs
from clebsch.errors import ClebschError
from clebsch.potential import Potential

from builders import copied_potential  # isort: skip


def alloy(seed: int) -> Atoms:
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True) * (1, 1, 2)
    atoms.symbols[rng.choice(8, 3, replace=False)] = "O"
    atoms.positions += rng.normal(0, 0.2, (8, 3))
    return atoms


def brute_force(atoms: Atoms, cutoff: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for i, j, distance in zip(*neighbor_list("ijd", atoms, cutoff), strict=True):
        pair = "-".join(sorted((atoms.symbols[i], atoms.symbols[j])))
        found[pair] = min(distance, found.get(pair, np.inf))
    return found


def known(potential: Potential, trained: dict[str, float]) -> Potential:
    potential.provenance = {"data": {"shortest_distances": trained}}
    return potential


def test_the_shortest_distances_of_a_set_are_those_of_all_its_structures() -> None:
    potential = copied_potential()
    structures = [*(alloy(seed) for seed in range(4)), Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])]
    expected: dict[str, float] = {}
    for atoms in structures:
        for pair, distance in brute_force(atoms, potential.cutoff).items():
            expected[pair] = min(distance, expected.get(pair, np.inf))
    frames = [Frame(a.numbers, a.positions, a.cell.array, a.pbc) for a in structures]
    found = LabelledGraphs(potential, frames).shortest_distances(potential.species)
    assert found == pytest.approx(expected)
    assert set(found) == {"Cu-Cu", "Cu-O", "O-O", "C-O"}


def test_the_closest_contact_of_each_pair_is_found() -> None:
    potential = copied_potential()
    atoms = alloy(7)
    shortest = brute_force(atoms, potential.cutoff)
    trained = {
        "Cu-Cu": shortest["Cu-Cu"] / CLOSER + 0.01,
        "O-O": shortest["O-O"] / CLOSER - 0.01,
    }
    graph = potential.graph(atoms)
    found = find_contacts(graph, potential.species, trained, potential.cutoff)
    assert [contact.pair for contact in sorted(found, key=lambda c: c.pair)] == ["Cu-Cu", "Cu-O"]
    for contact in found:
        assert contact.distance == pytest.approx(shortest[contact.pair])
        assert contact.trained == trained.get(contact.pair)
        assert atoms.get_distance(*contact.atoms, mic=True) == pytest.approx(contact.distance)


def test_an_atom_may_be_too_close_to_its_own_image() -> None:
    potential = copied_potential()
    chain = Atoms("Cu", [[1, 1, 1]], cell=[1.9, 20, 20], pbc=(True, False, False))
    found = find_contacts(potential.graph(chain), potential.species, {"Cu-Cu": 2.3}, 3.0)
    assert found == [Contact("Cu-Cu", [0, 0], pytest.approx(1.9), 2.3)]


def test_the_calculator_tells_contacts_of_the_last_geometry() -> None:
    """Nothing of the skin, in which pairs that training had nowhere would be contacts."""
    potential = known(copied_potential(), {"C-C": 1.2})
    carbon = Atoms("COC", [[0, 0, 0], [0, 0, potential.cutoff + 0.2], [1.1, 0, 0]])
    carbon.calc = clebsch.calculator(potential)
    with pytest.raises(ClebschError, match="no structure whose neighbours"):
        carbon.calc.contacts()
    carbon.get_forces()
    assert carbon.calc.contacts() == []
    carbon.positions[2, 0] = 1.0
    carbon.positions[1, 2] = potential.cutoff - 0.1
    carbon.get_forces()
    told = {c.pair: (c.trained, pytest.approx(c.distance)) for c in carbon.calc.contacts()}
    assert told == {"C-C": (1.2, 1.0), "C-O": (None, potential.cutoff - 0.1)}


def test_a_model_that_does_not_know_its_training_says_so() -> None:
    potential = copied_potential()
    assert potential.shortest_distances is None
    molecule = Atoms("CO", [[0, 0, 0], [0, 0, 1.1]], calculator=clebsch.calculator(potential))
    molecule.get_forces()
    with pytest.raises(ClebschError, match="does not tell how close atoms came"):
        molecule.calc.contacts()
