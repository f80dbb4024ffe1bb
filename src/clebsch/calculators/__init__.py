"""Adapters that let simulation programs use a potential; no physics here."""

from __future__ import annotations

from pathlib import Path

from ase.calculators.calculator import BaseCalculator

from clebsch.calculators.ase import ClebschCalculator
from clebsch.errors import ClebschError
from clebsch.modelfile import load
from clebsch.potential import Potential

__all__ = ["ClebschCalculator", "as_calculator", "calculator"]


def calculator(potential: Potential | Path | str, *, skin: float = 0.5) -> ClebschCalculator:
    """An ASE calculator: ``atoms.calc = clebsch.calculator(potential)``.

    Args:
        potential: what computes, or its model file; see ``clebsch.load`` and ``clebsch.build``.
        skin: Angstrom by which the neighbour list reaches beyond the cut-off, so that it need not
            be rebuilt at every step; it changes the speed, never a result.

    Raises:
        ClebschError: a negative skin, a file that ``clebsch.load`` refuses, or something else.
    """
    if isinstance(potential, Path | str):
        potential = load(potential)
    if not hasattr(potential, "graph"):
        raise ClebschError(f"a calculator needs a potential or its model file, not {potential!r}")
    return ClebschCalculator(potential, skin=skin)


def as_calculator(source: Potential | BaseCalculator) -> BaseCalculator:
    """``source`` itself if it is an ASE calculator, else a calculator around the potential."""
    return source if isinstance(source, BaseCalculator) else calculator(source)
