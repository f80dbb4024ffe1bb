"""Isolated-atom energies: taken from the data, or fitted to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula

from clebsch.data.frame import Frame
from clebsch.data.rawframe import where
from clebsch.errors import DataError
from clebsch.neighbors import complete_cell, find_pairs

#: ``config_type`` of a frame that is meant as a reference, without case and underscores.
ISOLATED_ATOM = "isolatedatom"

#: A periodic lone atom is isolated if its images are at least this far away, Angstrom.
ISOLATED_BOX = 8.0

#: Energies of the same isolated atom may differ by this much, eV.
SAME_ENERGY = 1e-4

#: Directions of compositions with singular values below this part of the largest are undetermined.
RCOND = 1e-10


def isolated_atoms(frames: Sequence[Frame]) -> tuple[dict[str, float], list[Frame]]:
    """Sets the isolated atoms among ``frames`` apart as reference energies.

    A frame is one if it has a single atom and an energy, and ``config_type`` says isolated_atom,
    or it is not periodic, or its images are at least 8 Angstrom away.

    Returns:
        The energy of each element found, eV, and the other frames in their order.

    Raises:
        DataError: two frames give an element energies that differ by more than 0.1 meV; or a
            frame of several atoms calls itself an isolated atom.
    """
    references: dict[str, float] = {}
    sources: dict[str, str] = {}
    rest: list[Frame] = []
    for frame in frames:
        if not is_isolated_atom(frame) or frame.energy is None:
            rest.append(frame)
            continue
        symbol = frame.symbols[0]
        if symbol not in references:
            references[symbol], sources[symbol] = frame.energy, frame.source
        elif abs(references[symbol] - frame.energy) > SAME_ENERGY:
            raise DataError(
                f"two different energies of the isolated atom {symbol}: {references[symbol]} eV "
                f"in {where(sources[symbol])}, {frame.energy} eV in {where(frame.source)}"
            )
    return references, rest


def is_isolated_atom(frame: Frame) -> bool:
    """Whether a frame is a lone atom without images nearby.

    Raises:
        DataError: it has several atoms, yet its ``config_type`` says isolated_atom.
    """
    named = calls_itself_isolated(frame.info)
    if len(frame) != 1:
        if named:
            raise DataError(
                f"{where(frame.source)}: config_type says isolated_atom, but it has "
                f"{len(frame)} atoms"
            )
        return False
    return named or nearest_image(frame) >= ISOLATED_BOX


def calls_itself_isolated(info: Mapping[str, Any]) -> bool:
    """Whether a frame's ``config_type`` says isolated_atom."""
    letters = filter(str.isalpha, str(info.get("config_type", "")))
    return "".join(letters).lower() == ISOLATED_ATOM


def nearest_image(frame: Frame) -> float:
    """Distance from an atom to its nearest periodic image, Angstrom; infinity without any."""
    periodic = frame.cell[frame.pbc]
    if len(periodic) == 0:
        return float("inf")
    # the shortest of the given vectors is an upper bound; a skewed cell has shorter combinations
    bound = float(np.linalg.norm(periodic, axis=1).min())
    box = complete_cell(frame.cell, frame.pbc)
    (distances,) = find_pairs(np.zeros((1, 3)), box, frame.pbc, bound * 1.001, "d")
    return float(np.min(distances, initial=bound))


@dataclass(frozen=True)
class ReferenceFit:
    """Isolated-atom energies from a least-squares fit of total energies to compositions.

    Attributes:
        energies: eV, one per element.
        rank: rank of the composition matrix over the fitted elements.
        n_species: number of fitted elements.
        determined: the data tell the energies of the elements apart (rank == n_species), and from
            what binds atoms where some references are known. If not the former, those nearest to a
            common value are taken.
        residual_rms: what the fit leaves of the energies, root mean square, eV per atom.
        binding: what was found beside the references and is no part of them, eV per atom; 0 where
            all elements were fitted.
    """

    energies: dict[str, float]
    rank: int
    n_species: int
    determined: bool
    residual_rms: float
    binding: float

    def describe(self) -> str:
        """One sentence on how far the energies can be trusted."""
        if self.determined:
            verdict = "compositions determine every element"
        elif self.rank == self.n_species:
            verdict = "compositions do not tell them from what binds atoms, which is part of them"
        else:
            verdict = (
                f"compositions have rank {self.rank} for {self.n_species} elements: the energies "
                "of single elements are arbitrary, only their sums over these compositions count"
            )
        if abs(self.binding) > SAME_ENERGY:
            verdict += f", beside {self.binding:.4g} eV that bind an atom"
        return f"references fitted, {verdict}; residual {1e3 * self.residual_rms:.3g} meV/atom rms"


def fit_references(
    frames: Sequence[Frame], known: Mapping[str, float] | None = None
) -> ReferenceFit:
    """Fits E = sum over elements of count x reference energy to the frames that have an energy.

    Least squares in float64, structures weighted as in the loss. Where compositions leave
    directions undetermined (a single molecule has rank 1), the solution with the least deviation
    from the mean energy per atom is taken, zero where no labelled frame has a fitted element.

    Known references are those of isolated atoms. Then the energy that binds an atom is fitted as
    well, one for all elements, where compositions tell it apart: else the elements that are not
    known would bind for the others.

    Args:
        frames: those without an energy only contribute their elements.
        known: references that are kept as they are, eV; the fit is of the other elements.

    Raises:
        DataError: no frame has an energy, or one is not finite.
    """
    known = dict(known or {})
    numbers = sorted({int(z) for frame in frames for z in np.unique(frame.numbers)})
    symbols = [chemical_symbols[z] for z in numbers]
    labelled = [frame for frame in frames if frame.energy is not None]
    if not labelled:
        raise DataError("references cannot be fitted: no frame has an energy")
    counts = np.array([[np.sum(f.numbers == z) for z in numbers] for f in labelled], dtype=float)
    energies = np.array([frame.energy for frame in labelled], dtype=np.float64)
    if not np.isfinite(energies).all():
        frame = labelled[int(np.argmin(np.isfinite(energies)))]
        raise DataError(f"{where(frame.source)}: the energy is {frame.energy}")
    fixed = np.array([symbol in known for symbol in symbols])
    target = energies - counts[:, fixed] @ np.array([known[s] for s in symbols if s in known])
    free = counts[:, ~fixed]
    weights = energy_weights(labelled)
    weights /= weights.mean()
    n_free = weights @ free.sum(axis=1)
    root, atoms = np.sqrt(weights), counts.sum(axis=1)
    columns = root[:, None] * free
    binding, told_apart = 0.0, True
    if fixed.any():
        both = np.column_stack([columns, root * atoms])
        solution, rank_of_both = _least_squares(both, root * target)
        told_apart = rank_of_both > _least_squares(columns, root * target)[1]
        binding = float(solution[-1]) if told_apart else 0.0
    target = target - binding * atoms
    # an element that is in no labelled frame gets the mean
    mean = weights @ target / n_free if n_free > 0 else 0.0
    rest = target - mean * free.sum(axis=1)
    deviation, rank = _least_squares(columns, root * rest)
    fitted = mean + deviation
    residual = root * (target - free @ fitted) / atoms
    found = dict(zip([s for s in symbols if s not in known], fitted.tolist(), strict=True))
    return ReferenceFit(
        energies={symbol: (known | found)[symbol] for symbol in symbols},
        rank=rank,
        n_species=int((~fixed).sum()),
        determined=rank == int((~fixed).sum()) and told_apart,
        residual_rms=float(np.sqrt(np.mean(residual**2))),
        binding=binding,
    )


def _least_squares(columns: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, int]:
    """The shortest solution, and the rank."""
    solution, _, rank, _ = np.linalg.lstsq(columns, target, rcond=RCOND)
    return solution, int(rank)


def energy_weights(frames: Sequence[Frame]) -> np.ndarray:
    """[n] float64: what energies of frames count in the loss."""
    return np.array([frame.weight * frame.energy_weight for frame in frames])


def spanning_formulas(frames: Sequence[Frame], known: Iterable[str] = ()) -> list[str]:
    """Formulas of which the compositions of all frames with energies are linear combinations.

    Args:
        frames: those without an energy do not count.
        known: elements that are among the formulas by themselves.
    """
    formulas = list(known)
    for formula in dict.fromkeys(f.formula for f in frames if f.energy is not None):
        if _rank([*formulas, formula]) > len(formulas):
            formulas.append(formula)
    return formulas


def undetermined(frames: Sequence[Frame], formulas: Sequence[str]) -> dict[str, int]:
    """How many frames have which formulas that are no linear combinations of given ones.

    References that were fitted to the given ones say nothing of the energies of these.
    """
    counted = Counter(frame.formula for frame in frames)
    rank = _rank(formulas)
    return {one: n for one, n in counted.items() if _rank([*formulas, one]) > rank}


def _rank(formulas: Sequence[str]) -> int:
    counts = [Formula(formula).count() for formula in formulas]
    symbols = sorted({symbol for count in counts for symbol in count})
    return int(np.linalg.matrix_rank([[count.get(s, 0) for s in symbols] for count in counts]))


def interaction_energy(frame: Frame, references: Mapping[str, float]) -> float:
    """Energy of a labelled frame less its references, summed in float64, eV.

    Raises:
        DataError: the frame has no energy, or an element of it has no reference.
    """
    if frame.energy is None:
        raise DataError(f"{where(frame.source)}: has no energy")
    elements, counts = np.unique(frame.numbers, return_counts=True)
    total = 0.0
    for z, count in zip(elements, counts, strict=True):
        symbol = chemical_symbols[z]
        if symbol not in references:
            known = ", ".join(references) or "none"
            raise DataError(
                f"{where(frame.source)}: no reference energy for {symbol} (there are: {known})"
            )
        total += float(count) * references[symbol]
    return frame.energy - total
