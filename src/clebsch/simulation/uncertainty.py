"""How uncertain forces were in the course of a run, as a committee tells it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from clebsch.calculators import ClebschCalculator
from clebsch.committee import check_committee, graph_maker, uncertainty
from clebsch.errors import ClebschError
from clebsch.potential import Potential


@dataclass(frozen=True)
class UncertainForce:
    """The most uncertain force of a frame, or of all recorded frames of a run.

    Attributes:
        uncertainty: root mean square distance of the atom's force from the committee's mean,
            eV/Angstrom.
        atom: its index.
        step: of the frame.
    """

    uncertainty: float
    atom: int
    step: int

    def describe(self, atoms: Atoms) -> str:
        """A phrase for people; ``atoms`` are those of the run."""
        return (
            f"{self.uncertainty:.3f} eV/Angstrom for atom {self.atom} ({atoms.symbols[self.atom]}) "
            f"at step {self.step}"
        )


def more_uncertain(
    first: UncertainForce | None, second: UncertainForce | None
) -> UncertainForce | None:
    """The more uncertain of two; the first of equal ones, the other of none."""
    known = [one for one in (first, second) if one is not None]
    return max(known, key=lambda one: one.uncertainty, default=None)


class Watch:
    """Asks a committee how uncertain forces are, and whether that is too much.

    Args:
        source: what moves the atoms; it is a member, too.
        others: the other members; none where the source is a linear ACE with draws of its own.
        limit: eV/Angstrom, above which a force is too uncertain; None if none is.

    Raises:
        ClebschError: the source is no potential of Clebsch, the committee tells nothing, or the
            limit is not above 0.
    """

    def __init__(
        self,
        source: Potential | BaseCalculator,
        others: Sequence[Potential],
        limit: float | None = None,
    ) -> None:
        self._limit = math.inf if limit is None else limit
        if not self._limit > 0:
            raise ClebschError(f"a limit of uncertainty, eV/Angstrom, is above 0, not {limit}")
        potential = source.potential if isinstance(source, ClebschCalculator) else source
        if not isinstance(potential, Potential):
            raise ClebschError(
                f"uncertainties are told of Clebsch's potentials, not of {type(source).__name__}"
            )
        self._members = [potential, *others]
        check_committee(self._members)

    def trouble(self, told: UncertainForce, atoms: Atoms) -> str | None:
        """A phrase about a force that is too uncertain; None if it is not."""
        if told.uncertainty <= self._limit:
            return None
        return f"a force is more uncertain than {self._limit:g} eV/Angstrom: {told.describe(atoms)}"

    def ask(self, atoms: Atoms, step: int) -> UncertainForce:
        """The most uncertain force of a frame."""
        told = uncertainty(self._members, graph_maker(self._members).graph(atoms)).of_atoms
        atom = int(told.argmax())
        return UncertainForce(float(told[atom]), atom, step)
