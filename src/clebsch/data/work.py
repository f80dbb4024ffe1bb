"""Energy differences between similar structures, and the work that forces and stress predict.

By the trapezoid rule, which is exact for a harmonic energy, structures a and b of a crystal have

    E_b - E_a = -1/2 (F_a + F_b) . (r_b - r_a) + 1/2 (V_a s_a + V_b s_b) : strain

and molecules, whose parts turn against each other,

    E_b - E_a = 1/2 (g_a + g_b) . (q_b - q_a)

with the inverse interatomic distances q and the smallest g with g . dq/dr = -F. The factor by
which both sides differ betrays wrong units and signs of labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from clebsch.data.check_geometry import is_boxed_molecule
from clebsch.data.frame import Frame

#: Structures of one kind that are compared, and how many of them look for their nearest one.
COMPARED, ANCHORS = 300, 60

#: So many pairs tell enough: further kinds of structures are not looked at.
ENOUGH = 1000

#: Larger molecules have too many distances.
LARGEST_MOLECULE = 100

#: Crystals that differ by more, in strain or in Angstrom, are not alike.
FARTHEST_STRAIN, FARTHEST_MOVE = 0.04, 0.4

_Item = TypeVar("_Item")


def work_and_energy(frames: Sequence[Frame]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of similar structures with energies and forces.

    Returns:
        [n_pairs] each: energy difference in eV, work of the forces, work of the stress (zero
        where the cell does not change; pairs whose cells differ are left out without stresses).
    """
    groups: dict[bytes, list[Frame]] = defaultdict(list)
    for frame in frames:
        if frame.energy is not None and frame.forces is not None and len(frame) > 1:
            groups[frame.pbc.tobytes() + frame.numbers.tobytes()].append(frame)
    rows: list[tuple[float, float, float]] = []
    for group in groups.values():
        if len(rows) >= ENOUGH:
            break
        if len(group) < 2:
            continue
        chosen = _spread(group, COMPARED)
        if group[0].pbc.any() and not all(is_boxed_molecule(frame) for frame in chosen):
            rows += _crystals(chosen)
        elif len(group[0]) <= LARGEST_MOLECULE:
            rows += _molecules(chosen)
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


def _spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """At most ``count`` of ``items``, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _molecules(frames: list[Frame]) -> list[tuple[float, float, float]]:
    distances = np.array([np.linalg.norm(_vectors(frame), axis=1) for frame in frames])
    frames = [f for f, d in zip(frames, distances, strict=True) if d.min() > 0]
    inverse = 1 / distances[distances.min(axis=1) > 0]
    rows = []
    for index in _spread(range(len(frames)), ANCHORS):
        other = _nearest(np.sum((inverse - inverse[index]) ** 2, axis=1))
        if other is None:
            continue
        one, two = frames[index], frames[other]
        gradient = (_inverse_gradient(one) + _inverse_gradient(two)) / 2
        work = float(gradient @ (inverse[other] - inverse[index]))
        rows.append((_energy(two) - _energy(one), work, 0.0))
    return rows


def _vectors(frame: Frame) -> np.ndarray:
    """[n_pairs, 3] between all pairs of atoms; to the nearest image in a box."""
    first, second = np.triu_indices(len(frame), 1)
    vectors = frame.positions[first] - frame.positions[second]
    if frame.pbc.any():
        vectors -= np.round(vectors @ np.linalg.inv(frame.cell)) @ frame.cell
    return vectors


def _inverse_gradient(frame: Frame) -> np.ndarray:
    """[n_pairs] smallest derivative to inverse distances that gives the forces of ``frame``."""
    n = len(frame)
    first, second = np.triu_indices(n, 1)
    pairs = np.arange(len(first))
    vectors = _vectors(frame)
    slope = -vectors / np.linalg.norm(vectors, axis=1)[:, None] ** 3
    jacobian = np.zeros((len(first), n, 3))
    jacobian[pairs, first] = slope
    jacobian[pairs, second] = -slope
    matrix = jacobian.reshape(len(first), 3 * n)
    square = np.linalg.pinv(matrix.T @ matrix, rcond=1e-10, hermitian=True)
    return -matrix @ (square @ _forces(frame).ravel())


def _crystals(frames: list[Frame]) -> list[tuple[float, float, float]]:
    frames = [f for f in frames if abs(np.linalg.det(f.cell)) > 1e-6]
    cells = np.array([f.cell for f in frames])
    fractional = np.array([f.positions @ np.linalg.inv(f.cell) for f in frames])
    rows = []
    for index in _spread(range(len(frames)), ANCHORS):
        one = frames[index]
        middle = (cells + cells[index]) / 2
        if np.abs(np.linalg.det(middle)).min() < 1e-6:
            continue
        step = fractional - fractional[index]
        step -= np.round(step) * one.pbc
        moved = step @ middle
        moved -= moved.mean(axis=1, keepdims=True)
        strain = np.linalg.solve(middle, cells - cells[index])  # middle @ strain = difference
        strain = (strain + strain.transpose(0, 2, 1)) / 2
        far = np.sum(moved**2, axis=(1, 2)) + 10 * len(one) * np.sum(strain**2, axis=(1, 2))
        strained = np.abs(strain).max(axis=(1, 2)) > 1e-6
        stressed = np.array([f.stress is not None for f in frames]) & (one.stress is not None)
        far[strained & ~stressed] = np.inf
        far[np.abs(strain).max(axis=(1, 2)) > FARTHEST_STRAIN] = np.inf
        far[np.abs(moved).max(axis=(1, 2)) > FARTHEST_MOVE] = np.inf
        other = _nearest(far)
        if other is None:
            continue
        two = frames[other]
        work = -float(np.sum((_forces(one) + _forces(two)) / 2 * moved[other]))
        stretch = (_strain_gradient(one) + _strain_gradient(two)) / 2 if strained[other] else 0.0
        rows.append((_energy(two) - _energy(one), work, float(np.sum(stretch * strain[other]))))
    return rows


def _nearest(distances: np.ndarray) -> int | None:
    """Index of the smallest distance that is not that of a duplicate."""
    distances = np.where(distances < 1e-8, np.inf, distances)
    nearest = int(distances.argmin())
    return nearest if np.isfinite(distances[nearest]) else None


def _energy(frame: Frame) -> float:
    assert frame.energy is not None
    return frame.energy


def _forces(frame: Frame) -> np.ndarray:
    assert frame.forces is not None
    return frame.forces


def _strain_gradient(frame: Frame) -> np.ndarray:
    """[3, 3] dE/d strain, eV."""
    assert frame.stress is not None
    return frame.stress * abs(np.linalg.det(frame.cell))
