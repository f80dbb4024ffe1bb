"""Benchmark structures: as many atoms as they say, the same every time, from nothing but code."""

from __future__ import annotations

import numpy as np
import pytest
from ase.neighborlist import neighbor_list

from clebsch.benchmarks import structures
from clebsch.errors import ConfigError


@pytest.mark.parametrize(
    ("asked", "atoms"), [(8, 8), (64, 64), (216, 216), (250, 256), (1000, 1000), (10_000, 9984)]
)
def test_silicon_comes_in_the_nearest_supercell(asked: int, atoms: int):
    assert len(structures.diamond(asked)) == atoms


def test_silicon_is_the_same_every_time_and_near_its_lattice():
    first, again = structures.diamond(64), structures.diamond(64)
    assert np.array_equal(first.positions, again.positions)
    assert not np.array_equal(first.positions, structures.diamond(64, seed=1).positions)
    # four bonds an atom: nothing was displaced far
    assert len(neighbor_list("i", first, 2.8)) == 4 * 64


def test_silicon_has_the_edges_that_ase_finds():
    system = structures.system_of_size(216)
    assert system.n_edges(5.0) == len(neighbor_list("i", system.frames[0], 5.0))
    # 28 neighbours of the perfect lattice; displacements move none of its shells across 5 Angstrom
    assert abs(system.n_edges(5.0) - 28 * 216) <= 28


def test_3bpa_is_five_molecules_of_c12_h12_n2_o():
    system = structures.paper_systems()["5 x 3BPA"]
    assert [str(frame.symbols.formula.convert("hill")) for frame in system.frames] == [
        "C12H12N2O"
    ] * 5
    assert system.species == ("H", "C", "N", "O")
    assert system.n_atoms == 135
    assert not any(frame.pbc.any() for frame in system.frames)
    assert system.n_edges(5.0) == 2302


def test_3bpa_frames_are_unbroken_and_differ():
    frames = structures.benzyloxypyridine()
    bonds = [{(i, j) for i, j in zip(*neighbor_list("ij", f, 1.7), strict=True)} for f in frames]
    heavy = [i for i, number in enumerate(frames[0].numbers) if number > 1]
    for found in bonds:
        # 28 bonds, 16 between heavy atoms: two rings and what links them
        assert len([1 for i, j in found if i in heavy and j in heavy]) == 2 * 16
    assert np.abs(frames[0].get_all_distances() - frames[1].get_all_distances()).max() > 0.1


def test_nine_atoms_are_ethanol_where_the_model_knows_its_elements():
    assert structures.system_of_size(9).name == "ethanol"
    assert structures.system_of_size(9, ["H", "C", "N", "O"]).n_atoms == 9
    assert structures.system_of_size(9, ["Si"]).name == "Si 8"


def test_135_atoms_are_3bpa_where_the_model_knows_its_elements():
    assert structures.system_of_size(135).n_atoms == 135
    assert structures.system_of_size(135).name == "5 x 3BPA"
    assert structures.system_of_size(135, ["H", "C", "O"]).name == "O 128"


def test_27_atoms_are_one_molecule_of_3bpa():
    assert structures.system_of_size(27).name == "3BPA"
    assert len(structures.system_of_size(27).frames) == 1
    assert structures.system_of_size(27, ["H", "C", "O"]).name == "O 32"


def test_a_model_without_silicon_gets_its_heaviest_element_on_the_lattice():
    assert structures.system_of_size(64, ["H", "Cu", "O"]).species == ("Cu",)


def test_no_atoms_are_refused():
    with pytest.raises(ConfigError, match="1 or more"):
        structures.system_of_size(0)
