"""The neighbour list equals ASE's for every cell and every periodicity."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import primitive_neighbor_list

from clebsch.errors import DataError
from clebsch.graph import AtomGraph, batch_graphs
from clebsch.neighbors import neighbor_graph

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


@pytest.mark.parametrize("pbc", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("cell", CELLS)
def test_neighbours_equal_ases(cell: str, pbc: tuple[bool, bool, bool]) -> None:
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
