"""Predictions as extended XYZ: what the model says beside what the labels said."""

from __future__ import annotations

import io
import numbers
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from clebsch.data.frame import Frame
from clebsch.data.units import DECLARED
from clebsch.evaluation.evaluate import Evaluation
from clebsch.evaluation.predict import FramePrediction
from clebsch.files import atomic_write, check_suffix

#: Suffixes of the file, and what it is: see ``check_suffix``.
FORMAT = ((".xyz", ".extxyz"), "predictions are written as extended XYZ")


def write_predictions(path: Path, sets: Iterable[tuple[Sequence[Frame], Evaluation]]) -> None:
    """Write one or several sets of frames with their predictions to one file.

    ASE reads the predictions back as ``atoms.get_potential_energy()``, ``get_forces()`` and, where
    one was asked for, ``get_stress()``; the labels as ``atoms.info["reference_energy"]``,
    ``atoms.arrays["reference_forces"]`` and ``atoms.info["reference_stress"]`` ([3, 3]). A label
    that a frame does not have is not written. ``atoms.info["source"]`` tells where the frame came
    from. With a committee ``atoms.info["uncertainty_energy"]`` and
    ``atoms.arrays["uncertainty_forces"]`` ([n], of force vectors) are what it says. Units are eV,
    Angstrom, eV/Angstrom and eV/Angstrom^3, and the file declares them.

    Args:
        path: ends in .xyz or .extxyz.
        sets: frames, and the evaluation that was made of them.

    Raises:
        ClebschError: the name has another suffix.
    """
    path = Path(path)
    check_suffix(path, *FORMAT)
    structures = []
    for frames, evaluation in sets:
        annotated = [_annotated(*pair) for pair in zip(frames, evaluation.predictions, strict=True)]
        if evaluation.uncertainties:
            for atoms, told in zip(annotated, evaluation.uncertainties, strict=True):
                atoms.info["uncertainty_energy"] = told.energy
                atoms.arrays["uncertainty_forces"] = told.atoms
        structures += annotated
    text = io.StringIO()
    if structures:
        ase.io.write(text, structures, format="extxyz")
    atomic_write(path, text.getvalue())


def _annotated(frame: Frame, prediction: FramePrediction) -> Atoms:
    atoms = Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
    atoms.info = {key: value for key, value in frame.info.items() if _writable(key, value)}
    if frame.source:
        atoms.info["source"] = frame.source
    if frame.energy is not None:
        atoms.info["reference_energy"] = frame.energy
    if frame.forces is not None:
        atoms.arrays["reference_forces"] = frame.forces
    if frame.stress is not None:
        atoms.info["reference_stress"] = frame.stress
    atoms.info |= DECLARED  # whoever reads them may have been told that data are in others
    results: dict[str, Any] = {"energy": prediction.energy, "forces": prediction.forces}
    if prediction.stress is not None:
        results["stress"] = full_3x3_to_voigt_6_stress(prediction.stress)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def _writable(key: str, value: Any) -> bool:
    """Whether extended XYZ can hold an entry, and none of ours has its name."""
    ours = {"energy", "forces", "stress", "free_energy", "virial", "virials"}
    if key.lower() in ours or key.startswith(("reference_", "uncertainty_")):
        return False
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "bif" and value.ndim <= 2 and value.size > 0
    return isinstance(value, str | bool | np.bool_ | numbers.Real)
