"""Splits that never lose a frame, statistics that count only what is labelled."""

from __future__ import annotations

import numpy as np
import pytest
from ase.neighborlist import neighbor_list
from data_builders import copper, frame

from clebsch.data.split import draw_frames, split_frames
from clebsch.data.statistics import compute_statistics, neighbor_pairs
from clebsch.errors import ConfigError, DataError

FRAMES = [frame("OH2", source=f"w.xyz:{index}") for index in range(20)]


def test_a_split_is_a_partition_in_order() -> None:
    for train, valid in (
        split_frames(FRAMES, fraction=0.25, seed=0),
        split_frames(FRAMES, count=5, seed=0),
    ):
        assert (len(train), len(valid)) == (15, 5)
        assert {f.source for f in [*train, *valid]} == {f.source for f in FRAMES}
        assert [FRAMES.index(f) for f in valid] == sorted(FRAMES.index(f) for f in valid)


def test_the_seed_decides_the_split() -> None:
    sources = [
        [f.source for f in split_frames(FRAMES, count=5, seed=seed)[1]] for seed in (0, 0, 1)
    ]
    assert sources[0] == sources[1]
    assert sources[0] != sources[2]


def test_a_small_fraction_gives_one_frame_and_zero_none() -> None:
    assert len(split_frames(FRAMES, fraction=0.001, seed=0)[1]) == 1
    assert split_frames(FRAMES, fraction=0.0, seed=0)[1] == []


@pytest.mark.parametrize("count", [20, 21])
def test_a_split_without_training_frames_is_refused(count: int) -> None:
    with pytest.raises(DataError, match="none is left to train on"):
        split_frames(FRAMES, count=count, seed=0)
    with pytest.raises(DataError, match="none is left"):
        split_frames(FRAMES[:1], fraction=0.1, seed=0)


def test_a_split_that_makes_no_sense_is_refused() -> None:
    for arguments in ({}, {"fraction": 0.1, "count": 1}, {"fraction": 1.0}, {"count": -1}):
        with pytest.raises(ConfigError):
            split_frames(FRAMES, seed=0, **arguments)


def test_a_larger_draw_holds_the_frames_of_a_smaller_one_in_their_order() -> None:
    few, many = ([f.source for f in draw_frames(FRAMES, n, 1, "data.train_count")] for n in (4, 9))
    assert (len(few), len(many)) == (4, 9)
    assert set(few) < set(many)
    assert many == [f.source for f in FRAMES if f.source in set(many)]
    assert few != [f.source for f in draw_frames(FRAMES, 4, 2, "data.train_count")]
    assert draw_frames(FRAMES, len(FRAMES), 3, "data.train_count") == FRAMES
    with pytest.raises(DataError, match="21 structures were asked for, but there are 20"):
        draw_frames(FRAMES, 21, 0, "data.train_count")


def test_neighbors_are_those_of_ase() -> None:
    atoms = copper(3)
    for cutoff in (2.0, 3.5, 6.0):
        built = frame("Cu4", atoms.positions, cell=atoms.cell.array)
        assert len(neighbor_pairs(built, cutoff)[0]) == len(neighbor_list("i", atoms, cutoff))


def test_atoms_far_apart_are_no_neighbours() -> None:
    far = frame(["Cu"] * 3, np.array([[0, 0, 0], [2, 0, 0], [1e7, 0, 0]]))
    _, _, distances = neighbor_pairs(far, 4.0)
    assert distances.tolist() == [2.0, 2.0]


def test_statistics_count_labelled_entries_only() -> None:
    forces = np.full((3, 3), 2.0)
    frames = [
        frame("OH2", energy=-10.0, forces=forces),
        frame("OH2", energy=-16.0),
        frame("OH2"),
    ]
    found = compute_statistics(frames, {"H": -1.0, "O": -2.0}, cutoff=1.6)
    # the grid of atoms 1.5 A apart: two pairs, both directions, three atoms
    assert found.avg_num_neighbors == pytest.approx(4 / 3)
    assert found.forces_rms == pytest.approx(2.0)
    assert found.mean_interaction_energy == pytest.approx((-2.0 - 4.0) / 2)
    assert found.interaction_energy_std == pytest.approx(1.0)
    assert found.assumed == ()


def test_statistics_of_energies_are_weighted() -> None:
    frames = [
        frame("OH2", energy=-10.0),
        frame("OH2", energy=-16.0),
        frame("OH2", energy=500.0, weight=1e-12),
    ]
    found = compute_statistics(frames, {"H": -1.0, "O": -2.0}, cutoff=1.6)
    assert found.mean_interaction_energy == pytest.approx(-3.0, abs=1e-6)
    assert found.interaction_energy_std == pytest.approx(1.0, abs=1e-6)


def test_equal_energies_are_no_scale() -> None:
    equal = compute_statistics([frame("OH2", energy=-10.0)] * 3, {"H": -1.0, "O": -2.0}, cutoff=1.6)
    assert (equal.interaction_energy_std, equal.mean_interaction_energy) == (1.0, -2.0)
    assert "interaction_energy_std" in equal.assumed


def test_statistics_without_labels_are_safe_and_say_so() -> None:
    found = compute_statistics([frame("H")], {}, cutoff=5.0)
    assert (found.avg_num_neighbors, found.forces_rms) == (1.0, 1.0)
    assert found.mean_interaction_energy == 0.0
    assert set(found.assumed) == {
        "avg_num_neighbors",
        "forces_rms",
        "mean_interaction_energy",
        "interaction_energy_std",
    }
    zero = compute_statistics([frame("H2", forces=np.zeros((2, 3)))], {}, cutoff=5.0)
    assert zero.forces_rms == 1.0
    assert "forces_rms" in zero.assumed


def test_statistics_need_frames_and_references() -> None:
    with pytest.raises(DataError, match="no frames"):
        compute_statistics([], {}, 5.0)
    with pytest.raises(DataError, match=r"a\.xyz: frame 2: no reference energy for O"):
        compute_statistics([frame("OH2", energy=-1.0, source="a.xyz:2")], {"H": -1.0}, 5.0)
