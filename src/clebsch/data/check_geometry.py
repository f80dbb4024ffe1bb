"""Checks of structures: atoms too close or lost, duplicates, dummy boxes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from clebsch.data.finding import Finding
from clebsch.data.frame import Frame
from clebsch.data.rawframe import where
from clebsch.data.references import nearest_image
from clebsch.data.statistics import neighbor_pairs
from clebsch.neighbors import ONE_PLACE

#: Atoms are too close below this fraction of the sum of their covalent radii.
CLOSE = 0.65

#: An atom is detached if no other is within this multiple of the sum of their covalent radii.
DETACHED = 2.5

#: No element's crystal of one atom has its nearest image so far away, Angstrom.
LONE = 5.5

#: Atom pairs are looked for up to this distance, Angstrom.
REACH = 6.0

#: Cells whose volumes differ by less than this fraction look alike.
ALIKE = 0.05

#: Structures are the same if no interatomic distance differs by more than this, Angstrom,
SAME = 1e-4

#: and nearly the same within this.
NEARLY_SAME = 1e-2

#: Lengths over which the environment of an atom is measured, Angstrom.
LENGTHS = np.array([0.7, 1.3, 2.0, 3.0, 5.0])

#: Molecules up to this size are compared by all their distances, larger ones within REACH.
ALL_DISTANCES = 200


def check_contacts(frames: Sequence[Frame]) -> list[Finding]:
    """Atoms at one place, pairs that are too close, and atoms far from all others."""
    contacts: list[tuple[float, float, list[int], Frame]] = []
    detached: list[Frame] = []
    for frame in frames:
        first, second, distances = neighbor_pairs(frame, REACH)
        radii = covalent_radii[frame.numbers]
        ratio = distances / (radii[first] + radii[second])
        nearest = np.full(len(frame), np.inf)
        np.minimum.at(nearest, first, ratio)
        if len(frame) > 1 and nearest.max() > DETACHED:
            detached.append(frame)
        if len(ratio) and ratio.min() < CLOSE:
            pair = int(ratio.argmin())
            atoms = sorted((int(first[pair]), int(second[pair])))
            contacts.append((float(ratio[pair]), float(distances[pair]), atoms, frame))
    contacts.sort(key=lambda contact: contact[0])
    together = [contact for contact in contacts if contact[1] < ONE_PLACE]
    close = [contact for contact in contacts if contact[1] >= ONE_PLACE]
    findings = []
    if together:
        one, other = together[0][2]
        text = (
            f"{len(together)} structures have atoms at one place, the first one atoms {one} and "
            f"{other}; training refuses them"
        )
        findings.append(Finding.about("error", "one place", [f for *_, f in together], text))
    if close:
        _, distance, atoms, worst = close[0]
        pair_name = "-".join(chemical_symbols[worst.numbers[atom]] for atom in atoms)
        text = (
            f"{len(close)} structures with atoms closer than {CLOSE} of the sum of their covalent "
            f"radii, worst first ({pair_name} at {distance:.3f} A)"
        )
        findings.append(Finding.about("warning", "close contacts", [f for *_, f in close], text))
    if detached:
        text = f"{len(detached)} structures with an atom far from all others"
        findings.append(Finding.about("info", "detached atoms", detached, text))
    return findings


def check_boxes(frames: Sequence[Frame]) -> list[Finding]:
    """Periodic boxes with much vacuum on all sides: molecules that a writer put in a box."""
    boxed = [frame for frame in frames if is_boxed_molecule(frame)]
    if not boxed:
        return []
    text = (
        f"{len(boxed)} structures are periodic in a box far larger than themselves (vacuum of "
        f"{min(_vacuum(f) for f in boxed):.0f} A or more on every side): if they are molecules, "
        "read them with pbc=none; a stress of such a box means nothing"
    )
    return [Finding.about("warning", "dummy box", boxed, text)]


def is_boxed_molecule(frame: Frame) -> bool:
    """Whether a periodic structure has more vacuum than any cut-off reaches on all sides."""
    return bool(frame.pbc.all()) and _vacuum(frame) > 2 * REACH


def _vacuum(frame: Frame) -> float:
    """The smallest gap between an atom layer and its image along any lattice direction, A."""
    heights = 1 / np.linalg.norm(np.linalg.inv(frame.cell), axis=0)
    fractional = np.sort(np.linalg.solve(frame.cell.T, frame.positions.T).T % 1.0, axis=0)
    gaps = np.diff(np.vstack([fractional, fractional[:1] + 1]), axis=0).max(axis=0)
    return float((gaps * heights).min())


def check_lone_atoms(frames: Sequence[Frame]) -> list[Finding]:
    """Single atoms in boxes that are rather large for a crystal and too small to say it all."""
    lone = [f for f in frames if len(f) == 1 and f.energy is not None and nearest_image(f) > LONE]
    if not lone or len(lone) == len(frames):
        return []
    text = (
        f"{len(lone)} structures are a single atom with images more than {LONE:g} A away: isolated "
        "atoms, whose energies are references, say config_type=isolated_atom"
    )
    return [Finding.about("warning", "lone atoms", lone, text)]


def check_periodicity(frames: Sequence[Frame]) -> list[Finding]:
    """Structures periodic in other directions than those of their file that look like them."""
    groups: dict[tuple[str, bytes], list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[_file(frame), np.sort(frame.numbers).tobytes()].append(frame)
    odd: list[Frame] = []
    for group in groups.values():
        counts = Counter(_directions(frame) for frame in group)
        if len(counts) == 1:
            continue
        usual = max(counts, key=lambda directions: (counts[directions], directions))
        volumes = np.sort([_volume(frame) for frame in group if _directions(frame) == usual])
        for frame in group:
            volume = _volume(frame)  # 0 without a cell: like none
            low, high = np.searchsorted(volumes, [(1 - ALIKE) * volume, (1 + ALIKE) * volume])
            if low < high and _directions(frame) != usual:
                odd.append(frame)
    if not odd:
        return []
    text = (
        f"{len(odd)} structures are periodic in other directions than others of the same file, "
        f"composition and volume (pbc {_directions(odd[0])} in the first)"
    )
    return [Finding.about("warning", "periodicity", odd, text)]


def _directions(frame: Frame) -> str:
    """Periodicity as files say it: "T T F"."""
    return " ".join("FT"[int(periodic)] for periodic in frame.pbc)


def _volume(frame: Frame) -> float:
    return abs(float(np.linalg.det(frame.cell)))


# --- duplicates -----------------------------------------------------------------------------------


def check_duplicates(frames: Sequence[Frame]) -> list[Finding]:
    """Structures that are there twice, exactly or nearly, however turned, moved or renumbered."""
    groups: dict[bytes, list[Frame]] = defaultdict(list)
    for frame in frames:
        periodic = frame.pbc.tobytes()
        groups[periodic + np.sort(frame.numbers).tobytes()].append(frame)
    same: list[tuple[Frame, Frame]] = []
    nearly: list[tuple[Frame, Frame]] = []
    for group in groups.values():
        for one, other, difference in _nearest_pairs(group):
            if difference < NEARLY_SAME:
                (same if difference < SAME else nearly).append((one, other))
    findings = []
    conflicting = [pair for pair in same if _energies_differ(*pair)]
    if conflicting:
        one, other = conflicting[0]
        sources = tuple(dict.fromkeys(frame.source for pair in conflicting for frame in pair))
        text = (
            f"{len(sources)} structures are there more than once with different energies, such as "
            f"{one.energy} eV in {where(one.source)} and {other.energy} eV in {where(other.source)}"
        )
        findings.append(Finding("error", "conflicting labels", text, sources))
    for pairs, code, what in (
        (same, "duplicates", "are there more than once"),
        (nearly, "near duplicates", f"differ by less than {NEARLY_SAME} A from another"),
    ):
        if pairs:
            sources = tuple(dict.fromkeys(frame.source for pair in pairs for frame in pair))
            between = sum(_file(one) != _file(other) for one, other in pairs)
            across = f" ({between} pairs across files)" if between else ""
            examples = ", ".join(f"{a.source} = {b.source}" for a, b in pairs[:3])
            text = f"{len(sources)} structures {what}{across}: {examples}"
            findings.append(Finding("warning", code, text, sources))
    return findings


def _file(frame: Frame) -> str:
    return frame.source.rpartition(":")[0]


def _energies_differ(one: Frame, other: Frame) -> bool:
    if one.energy is None or other.energy is None:
        return False
    return abs(one.energy - other.energy) > 1e-3 * len(one)


def _nearest_pairs(group: list[Frame]) -> list[tuple[Frame, Frame, float]]:
    """Each frame that has one like it earlier or later, once per pair, with their difference."""
    if len(group) < 2:
        return []
    shapes = [_shape_of(frame) for frame in group]
    features = np.array([_features(shape, shape.environments) for shape in shapes])
    moved = np.array([_features(shape, shape.moved) for shape in shapes])
    scale = np.abs(moved - features).max(axis=0) + 1e-12
    tree = cKDTree(features / scale)
    _, nearest = tree.query(features / scale, k=2, p=np.inf, distance_upper_bound=1.0)
    pairs = set()
    for index, candidates in enumerate(nearest):
        for candidate in candidates:
            if candidate < len(group) and candidate != index:
                pairs.add((min(index, int(candidate)), max(index, int(candidate))))
    return [(group[i], group[j], _difference(shapes[i], shapes[j])) for i, j in sorted(pairs)]


@dataclass(frozen=True, eq=False)
class _Shape:
    """What stays of a structure when it is turned, moved or renumbered.

    Attributes:
        elements: [n], the place of each atom's element in the composition.
        distances: sorted, for one ordered pair of elements after the other: all of a small
            molecule, otherwise those within REACH.
        ends: where each pair of elements but the last ends in ``distances``.
        environments: [n, 5 x elements], smooth functions of the distances of each atom to those of
            each element.
        moved: the same if all distances were longer by NEARLY_SAME.
    """

    elements: np.ndarray
    distances: np.ndarray
    ends: np.ndarray
    environments: np.ndarray
    moved: np.ndarray


def _shape_of(frame: Frame) -> _Shape:
    if len(frame) <= ALL_DISTANCES and not frame.pbc.any():
        first, second = np.nonzero(~np.eye(len(frame), dtype=bool))
        distances = np.linalg.norm(frame.positions[first] - frame.positions[second], axis=1)
        reach = np.inf
    else:
        first, second, distances = neighbor_pairs(frame, REACH)
        reach = REACH
    present, elements = np.unique(frame.numbers, return_inverse=True)
    n_elements = len(present)
    pair = elements[first] * n_elements + elements[second]
    order = np.lexsort((distances, pair))
    ends = np.searchsorted(pair[order], np.arange(1, n_elements**2))
    n_lengths = len(LENGTHS)
    place = (first * n_elements + elements[second])[:, None] * n_lengths + np.arange(n_lengths)
    place = place.ravel()

    def environments(distances: np.ndarray) -> np.ndarray:
        # a pair that enters at the reach weighs nothing
        tail = np.maximum(1 - distances / reach, 0) ** 2
        values = np.exp(-distances[:, None] / LENGTHS) * tail[:, None]
        size = len(frame) * n_elements * n_lengths
        return np.bincount(place, values.ravel(), size).reshape(len(frame), -1)

    return _Shape(
        elements,
        distances[order],
        ends,
        environments(distances),
        environments(distances + NEARLY_SAME),
    )


def _features(shape: _Shape, environments: np.ndarray) -> np.ndarray:
    """Numbers that change smoothly with the distances, for a quick search of candidates.

    Squares tell decorations of one lattice apart, whose pairs of elements may have equal distances.
    """
    of_element = np.eye(shape.elements.max() + 1)[shape.elements]
    return (of_element.T @ np.hstack([environments, environments**2])).ravel()


def _difference(one: _Shape, other: _Shape) -> float:
    """Largest difference of distances; infinity where atoms have other surroundings."""
    alike = len(one.distances) == len(other.distances) and np.array_equal(one.ends, other.ends)
    pairs = [(one.distances, other.distances)]
    if not alike:
        split = [np.split(shape.distances, shape.ends) for shape in (one, other)]
        pairs = list(zip(*split, strict=True))
    difference = max(_difference_of_distances(*pair) for pair in pairs)
    if difference >= NEARLY_SAME or _same_environments(one, other):
        return difference
    return float("inf")


def _same_environments(one: _Shape, other: _Shape) -> bool:
    """Whether each atom has a partner with as good as the same distances to each element."""
    scale = np.abs(one.moved - one.environments).max(axis=0) + 1e-12
    for element in range(one.elements.max() + 1):
        mine = one.environments[one.elements == element] / scale
        theirs = other.environments[other.elements == element] / scale
        apart = cdist(mine, theirs, "chebyshev") > 1
        if apart[linear_sum_assignment(apart)].any():
            return False
    return True


def _difference_of_distances(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference of sorted distances; pairs about to enter or leave do not count."""
    if len(one) != len(other):
        edge = REACH - NEARLY_SAME
        inner = min(int(np.sum(one < edge)), int(np.sum(other < edge)))
        if min(one[inner:].min(initial=REACH), other[inner:].min(initial=REACH)) < (
            edge - NEARLY_SAME
        ):
            return float("inf")
        one, other = one[:inner], other[:inner]
    return float(np.abs(one - other).max(initial=0.0))
