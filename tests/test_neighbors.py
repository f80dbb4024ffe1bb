"""The neighbour list equals ASE's for every cell and every periodicity."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import primitive_neighbor_list

from clebsch import neighbors
from clebsch.errors import BackendError, DataError
from clebsch.graph import (
    TENSORS,
    AtomGraph,
    batch_graphs,
    example_graphs,
    lexicographic,
    make_graph,
)
from clebsch.neighbors import (
    complete_cell,
    drawn_together,
    neighbor_graph,
    search_on_device,
    search_place,
)

CELLS = {
    "cubic": np.diag([6.0, 6.0, 6.0]),
    "skewed": np.array([[5.0, 0.3, 0.0], [3.9, 4.0, 0.2], [-2.5, 1.0, 6.0]]),
    "smaller than the cut-off": np.array([[2.1, 0.0, 0.1], [0.4, 2.4, 0.0], [0.0, 0.9, 2.6]]),
    "left-handed": np.array([[0.0, 5.0, 0.0], [5.0, 0.5, 0.0], [0.0, 0.0, 7.0]]),
}


def graph_of(atoms: Atoms, cutoff: float) -> AtomGraph:
    return neighbor_graph(
        torch.from_numpy(atoms.positions),
        torch.from_numpy(atoms.cell.array),
        torch.from_numpy(atoms.pbc),
        torch.zeros(len(atoms), dtype=torch.int64),
        cutoff,
    )


def edge_set(graph: AtomGraph) -> list[tuple[float, ...]]:
    vectors = graph.positions[graph.receivers] - graph.positions[graph.senders]
    vectors = vectors + graph.images @ graph.cell[0]
    rows = torch.cat([graph.senders[:, None], graph.receivers[:, None], vectors], dim=1)
    return sorted(tuple(np.round(row, 8) + 0.0) for row in rows.numpy())


@pytest.mark.parametrize("search", ["vesin", "tree"])
@pytest.mark.parametrize("pbc", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("cell", CELLS)
def test_neighbours_equal_ases(
    cell: str, pbc: tuple[bool, bool, bool], search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if search == "tree":
        monkeypatch.setattr(neighbors, "_too_thin_for_vesin", lambda *_: True)
        monkeypatch.setattr(neighbors.vesin, "NeighborList", None)  # nothing asks vesin
    rng = np.random.default_rng(1)
    fractional = rng.uniform(-0.7, 1.8, (7, 3))  # atoms outside the cell included
    atoms = Atoms("H7", positions=fractional @ CELLS[cell], cell=CELLS[cell], pbc=pbc)
    graph = graph_of(atoms, 3.3)
    i, j, vectors = primitive_neighbor_list("ijD", atoms.pbc, atoms.cell, atoms.positions, 3.3)
    expected = sorted(tuple(np.round(row, 8) + 0.0) for row in np.column_stack([i, j, vectors]))
    assert graph.n_edges > 0
    assert edge_set(graph) == expected


def test_edges_are_sorted_by_receiver_and_pointers_agree() -> None:
    rng = np.random.default_rng(2)
    atoms = Atoms("H9", positions=rng.uniform(0, 4, (9, 3)), cell=CELLS["skewed"], pbc=True)
    single = graph_of(atoms, 4.0)
    for graph in (single, batch_graphs([single, single, single])):
        assert (graph.receivers.diff() >= 0).all()
        counts = torch.bincount(graph.receivers, minlength=graph.n_atoms)
        assert torch.equal(graph.row_ptr.diff(), counts)
        by_sender = graph.senders[graph.sender_order]
        assert (by_sender.diff() >= 0).all()
        assert torch.equal(
            graph.sender_ptr.diff(), torch.bincount(by_sender, minlength=graph.n_atoms)
        )
        assert torch.equal(graph.frame[graph.senders], graph.frame[graph.receivers])
        assert torch.equal(graph.frame_ptr.diff(), torch.bincount(graph.frame))


def test_a_slab_needs_no_third_lattice_vector() -> None:
    with_vacuum = Atoms("H2", [[0, 0, 0], [1, 1, 1.0]], cell=[3, 3, 30], pbc=[True, True, False])
    without = with_vacuum.copy()
    without.cell[2] = 0
    assert edge_set(graph_of(with_vacuum, 4.0)) == edge_set(graph_of(without, 4.0))


def test_no_atoms_within_reach_give_no_edges() -> None:
    graph = graph_of(Atoms("H2", [[0, 0, 0], [9.0, 0, 0]]), 3.0)
    assert graph.n_edges == 0
    assert graph.row_ptr.tolist() == [0, 0, 0]
    assert graph_of(Atoms("H", [[0, 0, 0]]), 3.0).n_edges == 0


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([[3, 0, 0], [0, 3, 0], [0, 0, 0]], "without a lattice vector"),
        ([[3, 0, 0], [6, 0, 0], [0, 0, 3]], "linearly dependent"),
    ],
)
def test_an_impossible_cell_is_refused(cell: list[list[float]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        graph_of(Atoms("H", [[0, 0, 0]], cell=cell, pbc=True), 3.0)


def test_a_position_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(DataError, match="atom 1"):
        graph_of(Atoms("H2", [[0, 0, 0], [np.nan, 0, 0]]), 3.0)


@pytest.mark.parametrize("far", [(1e6, 0, 0), (0, 1700, 1700), (0, 1e5, 1e12), (1e12, 1e12, 1e12)])
def test_atoms_far_apart_are_no_neighbours(far: tuple[float, float, float]) -> None:
    """vesin would divide by zero there, which ends the process."""
    assert graph_of(Atoms("H3", [[0, 0, 0], [1, 0, 0], far]), 5.0).n_edges == 2


@pytest.mark.parametrize("pbc", [(True, True, True), (False, True, True), (True, False, False)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thin_boxes_have_the_pairs_of_thick_ones(axis: int, pbc: tuple[bool, bool, bool]) -> None:
    """vesin would divide by zero here, too; atoms lie around a corner of the cell."""
    positions = np.random.default_rng(3).uniform(-2.5, 2.5, (20, 3))
    short, long = np.diag([4.0, 30.0, 30.0]), np.diag([4.0, 2000.0, 2000.0])
    if pbc == (True, False, False):  # a thread
        short, long = np.diag([30.0, 1.0, 1.0]), np.diag([6e5, 1.0, 1.0])
    turn = np.roll(np.eye(3), axis, axis=1)
    periodic = np.roll(pbc, axis)
    thick = Atoms("H20", positions @ turn, cell=turn.T @ short @ turn, pbc=periodic)
    thin = Atoms("H20", positions @ turn, cell=turn.T @ long @ turn, pbc=periodic)
    thin.wrap()
    expected = edge_set(graph_of(thick, 3.3))
    assert len(expected) > 40
    np.testing.assert_allclose(edge_set(graph_of(thin, 3.3)), expected, atol=1e-7)


@pytest.mark.parametrize("direction", [(1, 0, 0), (1, 1, 0)])
def test_a_long_thread_in_no_cell_has_its_pairs(direction: tuple[float, float, float]) -> None:
    along = 3.0 * np.arange(100_000)[:, None] * np.array(direction) / np.linalg.norm(direction)
    graph = graph_of(Atoms(np.ones(len(along)), along), 3.3)
    assert graph.n_edges == 2 * (len(along) - 1)
    assert ((graph.senders - graph.receivers).abs() == 1).all()


def test_empty_space_changes_no_pair() -> None:
    """Clusters far apart in directions that are not periodic; some of them just within reach."""
    rng = np.random.default_rng(3)
    for pbc in itertools.product((False, True), repeat=3):
        cell = np.diag([6.0, 7.0, 8.0]) + rng.uniform(-1, 1, (3, 3))
        positions = rng.uniform(0, 6, (12, 3))
        centres = rng.choice([0.0, 9.9, 10.1, 40.0, 1000.0], (12, 3)) * ~np.array(pbc)
        atoms = Atoms("H12", positions + centres, cell=cell, pbc=pbc)
        box = complete_cell(np.array(cell), np.array(pbc))
        moved = drawn_together(atoms.positions, box, np.array(pbc), 5.0)
        assert all(np.ptp(moved @ direction) <= 12 * 10 for direction in box[~np.array(pbc)])
        found, expected = (
            {(i, j, *s) for i, j, s in zip(*pairs, strict=True)}
            for pairs in (
                primitive_neighbor_list("ijS", pbc, box, moved, 5.0),
                primitive_neighbor_list("ijS", pbc, box, atoms.positions, 5.0),
            )
        )
        assert found == expected


# --- the search on GPUs, whose package takes tensors of CPUs as well ---


def graph_by_device_search(atoms: Atoms, cutoff: float) -> AtomGraph:
    positions, cell = torch.from_numpy(atoms.positions), torch.from_numpy(atoms.cell.array)
    pbc, species = torch.from_numpy(atoms.pbc), torch.zeros(len(atoms), dtype=torch.int64)
    box = complete_cell(atoms.cell.array, atoms.pbc)
    found = search_on_device(positions, box, pbc, cutoff)
    return make_graph(positions, cell, pbc, species, *found)


@pytest.mark.parametrize("room", [1, 64])
@pytest.mark.parametrize("pbc", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("cell", CELLS)
def test_the_search_on_devices_gives_the_same_graph(
    cell: str, pbc: tuple[bool, bool, bool], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same edges in the same order; with room for all neighbours, and with too little."""
    pytest.importorskip("nvalchemiops")
    monkeypatch.setattr(neighbors, "ROOM", room)
    fractional = np.random.default_rng(1).uniform(-0.7, 1.8, (7, 3))
    atoms = Atoms("H7", positions=fractional @ CELLS[cell], cell=CELLS[cell], pbc=pbc)
    found, expected = graph_by_device_search(atoms, 3.3), graph_of(atoms, 3.3)
    assert expected.n_edges > 0
    for name in TENSORS:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("n_atoms", [0, 1, 400])
def test_the_search_on_devices_of_molecules_without_a_cell(n_atoms: int) -> None:
    pytest.importorskip("nvalchemiops")
    positions = np.random.default_rng(3).uniform(-20, 5, (n_atoms, 3))
    atoms = Atoms(["H"] * n_atoms, positions=positions)
    found, expected = graph_by_device_search(atoms, 3.0), graph_of(atoms, 3.0)
    for name in TENSORS:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_orders_by_several_keys_are_numpys() -> None:
    rng = np.random.default_rng(4)
    keys = [torch.from_numpy(rng.integers(-1, 2, 200)) for _ in range(4)]
    expected = np.lexsort([key.numpy() for key in keys])
    assert torch.equal(lexicographic(keys), torch.from_numpy(expected))


def test_without_its_package_gpus_are_searched_for_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(neighbors, "GPU_MODULE", "math")
    assert search_place(gpu) == gpu
    assert search_place(torch.device("cpu")).type == "cpu"
    monkeypatch.setattr(neighbors, "GPU_MODULE", "no_such_module")
    assert search_place(gpu).type == "cpu"


def test_tensors_on_a_device_without_a_search_are_an_error_that_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "nvalchemiops.torch.neighbors", None)
    with pytest.raises(BackendError, match="pip install nvalchemi-toolkit-ops"):
        search_on_device(torch.rand(2, 3), np.eye(3), torch.zeros(3, dtype=torch.bool), 1.0)


def test_indices_of_another_precision_are_refused() -> None:
    """Kernels would read memory that is not theirs."""
    graph = example_graphs(torch.device("cpu"))[0]
    for name in ("senders", "row_ptr", "species"):
        with pytest.raises(DataError, match=f"{name} of a graph are int64, not int32"):
            replace(graph, **{name: getattr(graph, name).int()})
