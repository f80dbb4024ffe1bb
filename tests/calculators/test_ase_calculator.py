"""The ASE calculator: the potential's numbers, nothing nobody asked for, a safe Verlet list."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.fd import calculate_numerical_stress
from ase.md.verlet import VelocityVerlet

import clebsch
from clebsch.calculators.verlet import VerletList, within_cutoff
from clebsch.errors import ClebschError, DataError, UnknownElementError
from clebsch.graph import AtomGraph
from clebsch.neighbors import neighbor_graph
from clebsch.potential import Potential, Prediction

GRAPH_TENSORS = (
    "senders",
    "receivers",
    "images",
    "row_ptr",
    "sender_order",
    "sender_ptr",
)


@pytest.fixture(scope="module")
def potential() -> Potential:
    config = {"preset": "mace_tiny", "channels": 4, "cutoff": 3.0}
    built = clebsch.build(config, ["H", "C", "O", "Cu"], dtype=torch.float64, seed=3)
    return built.requires_grad_(False)


class Spy:
    """A potential that writes down what it is asked for."""

    def __init__(self, potential: Potential) -> None:
        self.potential = potential
        self.asked: list[set[str]] = []
        self.cutoff = potential.cutoff
        self.graph = potential.graph
        self.replays = potential.replays

    def __call__(self, graph: AtomGraph, outputs: Sequence[str]) -> Prediction:
        self.asked.append(set(outputs))
        return self.potential(graph, outputs)


def crystal(seed: int = 0) -> Atoms:
    """A skewed cell of copper with everything displaced, smaller than twice the cutoff."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.set_cell(
        atoms.cell.array @ (np.eye(3) + 0.1 * rng.standard_normal((3, 3))), scale_atoms=True
    )
    atoms.positions += 0.2 * rng.standard_normal((len(atoms), 3))
    return atoms


def direct(potential: Potential, atoms: Atoms) -> Prediction:
    return potential(potential.graph(atoms), ("energy", "forces"))


def test_a_calculator_of_something_else_is_refused() -> None:
    with pytest.raises(ClebschError, match="needs a potential or its model file, not 3"):
        clebsch.calculator(3)  # type: ignore[arg-type]


def test_the_calculator_gives_what_the_potential_gives(potential: Potential) -> None:
    atoms = crystal()
    atoms.calc = clebsch.calculator(potential)
    expected = potential(potential.graph(atoms), ("energy", "forces", "stress", "site_energies"))
    assert atoms.get_potential_energy() == pytest.approx(float(expected.energy), abs=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-12)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), expected.stress[0], atol=1e-12)
    np.testing.assert_allclose(atoms.get_potential_energies(), expected.site_energies, atol=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()


def test_the_stress_has_ases_sign_and_voigt_order(potential: Potential) -> None:
    atoms = crystal()
    atoms.calc = clebsch.calculator(potential)
    numerical = calculate_numerical_stress(atoms, eps=1e-5)
    assert np.abs(numerical).max() > 1e-4
    np.testing.assert_allclose(atoms.get_stress(), numerical, rtol=1e-6, atol=1e-9)


def test_only_what_is_asked_for_is_computed(potential: Potential) -> None:
    spy = Spy(potential)
    atoms = crystal()
    atoms.calc = clebsch.calculator(spy)
    atoms.get_potential_energy()
    atoms.get_potential_energy()
    assert spy.asked == [{"energy"}]
    atoms.get_forces()
    atoms.get_potential_energy()
    assert spy.asked == [{"energy"}, {"energy", "forces"}]


def test_a_barostat_pays_once_a_step(potential: Potential) -> None:
    spy = Spy(potential)
    atoms = crystal()
    atoms.calc = clebsch.calculator(spy)
    for _ in range(3):
        atoms.positions[0, 0] += 0.01
        atoms.get_forces()
        atoms.get_stress()
    assert len(spy.asked) == 4  # the first step does not know yet
    assert spy.asked[-1] == {"energy", "forces", "stress"}
    for _ in range(2):  # and the habit is lost when nobody asks for stress any more
        atoms.positions[0, 0] += 0.01
        atoms.get_forces()
    assert spy.asked[-1] == {"energy", "forces"}


def test_a_habit_of_stress_does_not_fall_upon_a_molecule(potential: Potential) -> None:
    calculator = clebsch.calculator(potential)
    crystal_atoms, ethanol = crystal(), molecule("CH3CH2OH")
    crystal_atoms.calc = ethanol.calc = calculator
    crystal_atoms.get_stress()
    assert np.isfinite(ethanol.get_forces()).all()
    with pytest.raises(ClebschError, match="no cell"):
        ethanol.get_stress()
    assert np.isfinite(ethanol.get_potential_energy())  # an error leaves it usable


def test_a_lone_atom_nowhere_is_refused_whatever_was_asked_before(potential: Potential) -> None:
    calculator = clebsch.calculator(potential)
    atoms = crystal()[:1]
    atoms.calc = calculator
    atoms.get_potential_energy()
    atoms.positions[0, 1] = np.nan
    with pytest.raises(DataError, match="atom 0 is not a finite number"):
        atoms.get_potential_energy()


def test_atoms_at_one_place_and_energies_that_are_no_numbers_are_refused(
    potential: Potential,
) -> None:
    atoms = crystal()
    atoms.calc = clebsch.calculator(potential)
    where = atoms.positions[3].copy()
    atoms.positions[3] = atoms.positions[1] + atoms.cell[0]
    for ask in (atoms.get_forces, atoms.get_potential_energy):
        with pytest.raises(DataError, match="atoms 1 and 3 are at one place"):
            ask()
    atoms.positions[3] = where
    assert np.isfinite(atoms.get_potential_energy())
    atoms.positions[3] = atoms.positions[1] + 0.001
    # now within the skin: the neighbours stay listed
    assert np.isfinite(atoms.get_potential_energy())
    atoms.positions[3] = atoms.positions[1]
    with pytest.raises(DataError, match="atoms 1 and 3 are at one place"):
        atoms.get_forces()
    atoms.positions[3] = where
    broken = copy.deepcopy(potential)
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(np.nan)
    atoms.calc = clebsch.calculator(broken)
    with pytest.raises(ClebschError, match="energy of this structure is not a finite number"):
        atoms.get_forces()


def test_md_with_a_skin_equals_md_without(potential: Potential) -> None:
    trajectories, builds = [], []
    for skin in (0.0, 0.8):
        atoms = crystal()
        rng = np.random.default_rng(5)
        atoms.set_momenta(12 * rng.standard_normal((len(atoms), 3)))
        atoms.calc = clebsch.calculator(potential, skin=skin)
        dynamics = VelocityVerlet(atoms, 2 * units.fs)
        positions = []
        for _ in range(40):
            dynamics.run(1)
            positions.append(atoms.get_positions())
        trajectories.append(np.array(positions))
        builds.append(atoms.calc.n_builds)
    assert np.abs(trajectories[0][-1] - trajectories[0][0]).max() > 1
    np.testing.assert_allclose(trajectories[0], trajectories[1], atol=1e-10, rtol=0)
    assert builds[0] > 40
    assert 1 < builds[1] < 20


def test_a_pair_that_comes_inside_the_cutoff_is_seen(potential: Potential) -> None:
    atoms = Atoms("OHHO", [[0, 0, 0], [0.9, 0, 0], [6.0, 0, 0], [6.9, 0, 0]])
    atoms.calc = clebsch.calculator(potential, skin=0.5)
    energies = []
    for _ in range(60):
        atoms.positions[2:, 0] -= 0.07
        atoms.positions[:, 1] += 0.3  # a drift of the whole is no reason to search again
        energies.append(atoms.get_potential_energy())
        expected = float(direct(potential, atoms).energy)
        assert energies[-1] == pytest.approx(expected, abs=1e-12)
    assert abs(energies[-1] - energies[0]) > 1e-4
    assert 3 < atoms.calc.n_builds < 25


def assert_same_graph(kept: AtomGraph, fresh: AtomGraph) -> None:
    for name in GRAPH_TENSORS:
        assert torch.equal(getattr(kept, name), getattr(fresh, name)), name


@pytest.mark.parametrize("scale_atoms", [True, False])
def test_a_compression_brings_in_edges(potential: Potential, scale_atoms: bool) -> None:
    atoms = crystal()
    lists = VerletList(potential, skin=0.5)
    n_edges = lists.graph(atoms).n_edges
    for _ in range(60):
        atoms.set_cell(atoms.cell.array * 0.997, scale_atoms=scale_atoms)
        assert_same_graph(lists.graph(atoms), potential.graph(atoms))
    assert lists.graph(atoms).n_edges > n_edges
    assert lists.n_builds < 30


def test_displacements_count_while_the_cell_changes(potential: Potential) -> None:
    rng = np.random.default_rng(2)
    atoms = crystal()
    lists = VerletList(potential, skin=0.5)
    for _ in range(60):
        atoms.set_cell(atoms.cell.array * 1.0001, scale_atoms=True)
        atoms.positions += 0.05 * rng.standard_normal((len(atoms), 3))
        assert_same_graph(lists.graph(atoms), potential.graph(atoms))
    assert 5 < lists.n_builds < 50


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (0, 1, 1), (1, 0, 0), (0, 0, 1), (0, 0, 0)])
def test_changing_cells_and_positions_never_miss_an_edge(
    potential: Potential, pbc: tuple[int, int, int]
) -> None:
    rng = np.random.default_rng(11)
    atoms = crystal()
    atoms.pbc = pbc
    lists = VerletList(potential, skin=0.5)
    for step in range(120):
        strain = np.eye(3) + 0.004 * rng.standard_normal((3, 3))
        if step % 30 < 15:  # a steady compression, which brings in pairs without any motion
            strain *= 0.995
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += 0.01 * rng.standard_normal((len(atoms), 3))
        assert_same_graph(lists.graph(atoms), potential.graph(atoms))
        if step == 60:
            atoms.set_cell(atoms.cell.array * 1.3, scale_atoms=True)
    assert lists.n_builds < 100


def test_where_evaluations_are_captured_edges_of_the_skin_stay(
    potential: Potential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their number then stays between two searches; they change no result."""
    rng = np.random.default_rng(3)
    monkeypatch.setattr(type(potential), "replays", lambda self, graph: True)
    atoms = crystal()
    lists = VerletList(potential, skin=0.5)
    n_edges = lists.graph(atoms).n_edges
    for _ in range(5):
        atoms.positions += 0.02 * rng.standard_normal((len(atoms), 3))
        graph, fresh = lists.graph(atoms), potential.graph(atoms)
        assert graph.n_edges == n_edges > fresh.n_edges
        forces, expected = potential(graph).forces, potential(fresh).forces
        assert forces is not None
        assert expected is not None
        torch.testing.assert_close(forces, expected, rtol=1e-9, atol=1e-9)
    assert lists.n_builds == 1


def test_wrapping_atoms_changes_nothing(potential: Potential) -> None:
    atoms = crystal()
    atoms.calc = clebsch.calculator(potential)
    atoms.positions += 2.6
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    positions = atoms.get_positions()
    atoms.wrap()
    assert np.abs(atoms.positions - positions).max() > 1
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-10)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-10)


def test_other_atoms_other_elements_and_other_periodicity_are_noticed(
    potential: Potential,
) -> None:
    calculator = clebsch.calculator(potential)
    atoms = crystal()
    for change in ("nothing", "element", "periodicity", "fewer"):
        if change == "element":
            atoms.symbols[0] = "O"
        elif change == "periodicity":
            atoms.pbc = (True, False, True)
        elif change == "fewer":
            del atoms[2]
        atoms.calc = calculator
        expected = direct(potential, atoms)
        assert atoms.get_potential_energy() == pytest.approx(float(expected.energy), abs=1e-12)
        np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-12)


def test_one_atom_with_its_own_images(potential: Potential) -> None:
    atoms = bulk("Cu")
    atoms.calc = clebsch.calculator(potential)
    for _ in range(5):
        atoms.positions += 0.7
        atoms.set_cell(atoms.cell.array * 0.99)
        expected = float(direct(potential, atoms).energy)
        assert atoms.get_potential_energy() == pytest.approx(expected, abs=1e-12)


def test_edges_are_pruned_as_if_never_found() -> None:
    atoms = crystal()
    arguments = (
        torch.tensor(atoms.positions),
        torch.tensor(atoms.cell.array),
        torch.tensor(atoms.pbc),
        torch.zeros(len(atoms), dtype=torch.int64),
    )
    pruned = within_cutoff(neighbor_graph(*arguments, 4.5), 3.0)
    fresh = neighbor_graph(*arguments, 3.0)
    assert 0 < fresh.n_edges < neighbor_graph(*arguments, 4.5).n_edges
    assert_same_graph(pruned, fresh)


def test_errors_name_what_is_wrong(potential: Potential) -> None:
    gold = Atoms("Au2", [[0, 0, 0], [0, 0, 2.5]], calculator=clebsch.calculator(potential))
    with pytest.raises(UnknownElementError, match="Au"):
        gold.get_potential_energy()
    atoms = crystal()
    atoms.calc = clebsch.calculator(potential)
    atoms.get_potential_energy()
    atoms.positions[3, 1] = np.nan
    with pytest.raises(DataError, match="atom 3"):
        atoms.get_potential_energy()
    with pytest.raises(ClebschError, match="skin"):
        clebsch.calculator(potential, skin=-0.1)


def test_after_an_error_there_is_no_answer_for_the_structure_before(potential: Potential) -> None:
    atoms = crystal()
    atoms.calc = calculator = clebsch.calculator(potential)
    energy = atoms.get_potential_energy()
    symbol, atoms.symbols[0] = atoms.symbols[0], "Au"
    for _ in range(2):
        with pytest.raises(UnknownElementError):
            atoms.get_potential_energy()
    with pytest.raises(ClebschError, match="no structure"):
        calculator.get_potential_energy()
    atoms.symbols[0] = symbol
    assert atoms.get_potential_energy() == calculator.get_potential_energy() == energy


def test_a_model_file_will_do(potential: Potential, tmp_path: Path) -> None:
    potential.save(tmp_path / "model.safetensors")
    atoms = molecule("H2O")
    found = []
    for source in (potential, tmp_path / "model.safetensors", str(tmp_path / "model.safetensors")):
        atoms.calc = clebsch.calculator(source)
        found.append(atoms.get_forces())
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
