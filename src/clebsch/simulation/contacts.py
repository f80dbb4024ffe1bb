"""Atoms that came much closer than any in training in the course of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from clebsch.calculators import ClebschCalculator
from clebsch.contacts import Contact

#: Pairs of elements in one message, at most.
_MOST_TOLD = 4


@dataclass(frozen=True)
class ClosestContact(Contact):
    """The closest contact of two elements in recorded frames.

    Attributes:
        step: of the first frame in which any two atoms of the pair were too close.
    """

    step: int


def knows_contacts(calculator: BaseCalculator | None) -> bool:
    """Whether it can be told what is closer than in training."""
    if not isinstance(calculator, ClebschCalculator):
        return False
    return calculator.potential.shortest_distances is not None


def contacts_of(atoms: Atoms) -> list[Contact]:
    """What is too close in a structure whose energy was computed; nothing where it is not known."""
    return atoms.calc.contacts() if knows_contacts(atoms.calc) else []


def with_contacts(
    before: Sequence[ClosestContact], contacts: Sequence[Contact], step: int
) -> tuple[ClosestContact, ...]:
    """What is known of a run's contacts after one more frame.

    Args:
        before: what was known.
        contacts: of the frame.
        step: of the frame.
    """
    known = {contact.pair: contact for contact in before}
    for new in contacts:
        old = known.get(new.pair)
        if old is None or new.distance < old.distance:
            known[new.pair] = ClosestContact(**asdict(new), step=step if old is None else old.step)
    return tuple(known.values())


def describe_contacts(contacts: Sequence[Contact]) -> str:
    """What atoms are or were, for people: those of at least one contact."""
    told = []
    for contact in contacts[:_MOST_TOLD]:
        first, second = contact.atoms
        who = f"atoms {first} and {second}" if first != second else f"atom {first} and its image"
        since = f", the first at step {contact.step}" if isinstance(contact, ClosestContact) else ""
        seen = "none within the cut-off" if contact.trained is None else f"{contact.trained:.2f}"
        told.append(
            f"{contact.pair} {contact.distance:.2f} Angstrom ({who}{since}; in training {seen})"
        )
    more = len(contacts) - len(told)
    if more:
        told.append(f"{more} more pairs of elements")
    return "closer than anything that the model was trained on: " + ", ".join(told)
