"""Atoms that came much closer than any in training in the course of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from clebsch.calculators import ClebschCalculator

#: Pairs of elements in one message, at most.
_MOST_TOLD = 4


@dataclass(frozen=True)
class ClosestContact:
    """The closest contact of two elements in recorded frames; see ``clebsch.contacts.Contact``.

    Attributes:
        pair: their elements, such as "C-H".
        atoms: indices of the two.
        distance: Angstrom.
        trained: the shortest distance of the pair in training, Angstrom; None if none was within
            the cut-off.
        step: of the first frame in which any two atoms of the pair were too close.
    """

    pair: str
    atoms: tuple[int, int]
    distance: float
    trained: float | None
    step: int


def knows_contacts(calculator: BaseCalculator | None) -> bool:
    """Whether it can be told what is closer than in training."""
    if not isinstance(calculator, ClebschCalculator):
        return False
    return calculator.potential.shortest_distances is not None


def with_contacts(
    before: Sequence[ClosestContact], atoms: Atoms, step: int
) -> tuple[ClosestContact, ...]:
    """What is known of contacts after one more frame, whose energy was computed.

    Args:
        before: what was known.
        atoms: the frame; nothing is found where its calculator does not know.
        step: of the frame.
    """
    known = {contact.pair: contact for contact in before}
    if knows_contacts(atoms.calc):
        for new in atoms.calc.contacts():
            old = known.get(new.pair)
            if old is None or new.distance < old.distance:
                first = step if old is None else old.step
                known[new.pair] = ClosestContact(
                    new.pair, new.atoms, new.distance, new.trained, first
                )
    return tuple(known.values())


def describe_contacts(contacts: Sequence[ClosestContact]) -> str:
    """A sentence for people about some contacts, at least one."""
    told = []
    for contact in contacts[:_MOST_TOLD]:
        first, second = contact.atoms
        who = f"atoms {first} and {second}" if first != second else f"atom {first} and its image"
        seen = "none within the cut-off" if contact.trained is None else f"{contact.trained:.2f}"
        told.append(
            f"{contact.pair} {contact.distance:.2f} Angstrom ({who}, the first at step "
            f"{contact.step}; in training {seen})"
        )
    more = len(contacts) - len(told)
    if more:
        told.append(f"{more} more pairs of elements")
    return "closer than anything that the model was trained on: " + ", ".join(told)
