"""A trained potential on the tests of a task, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clebsch.data.frame import Frame
from clebsch.data.read import read_frames
from clebsch.errors import DataError
from clebsch.evaluation.evaluate import evaluate
from clebsch.potential import Potential
from clebsch.reproduce.suites import HeldOut
from clebsch.simulation.scan import run_scan


def judge(
    potential: Potential, tests: Sequence[HeldOut], files: dict[str, Path]
) -> dict[str, dict[str, float]]:
    """Metrics of each test whose file is there, and ``n``, its structures.

    Args:
        potential: the trained model.
        tests: what to judge it by.
        files: paths by name in the data set.

    Returns:
        By name of the test, in eV and eV/Angstrom. "errors": as ``clebsch.evaluation.metrics``
        defines them. "scan": ``relative_energy_rmse``, ``max_error``, ``barrier``,
        ``reference_barrier``. "curves": ``relative_energy_rmse`` over all curves (where one has
        two points), and ``energy_rmse`` of total energies.
    """
    judges = {"errors": _errors, "scan": _scan, "curves": _curves}
    results = {}
    for test in tests:
        if test.file in files:
            frames = read_frames(files[test.file], pbc="none")
            results[test.name] = {"n": len(frames), **judges[test.kind](potential, frames)}
    return results


def _errors(potential: Potential, frames: Sequence[Frame]) -> dict[str, float]:
    return evaluate(potential, frames).metrics


def _scan(potential: Potential, frames: Sequence[Frame]) -> dict[str, float]:
    scan = run_scan(potential, frames)
    values = {
        "relative_energy_rmse": scan.rmse,
        "max_error": scan.max_error,
        "barrier": scan.barrier,
        "reference_barrier": scan.reference_barrier,
    }
    return {key: value for key, value in values.items() if value is not None}


def _curves(potential: Potential, frames: Sequence[Frame]) -> dict[str, float]:
    judged = evaluate(potential, frames)
    curves: dict[str, list[tuple[float, float]]] = {}
    for frame, prediction in zip(frames, judged.predictions, strict=True):
        if frame.energy is None:
            raise DataError(f"{frame.source}: has no energy")
        curve = curves.setdefault(str(frame.info.get("config_type", "")), [])
        curve.append((prediction.energy, frame.energy))
    errors = []
    for curve in curves.values():
        predicted, reference = np.array(curve).T
        errors.append(((predicted - predicted[-1]) - (reference - reference[-1]))[:-1])
    relative = np.concatenate(errors)
    metrics = {"energy_rmse": judged.metrics["energy_rmse"]}
    if len(relative):
        metrics["relative_energy_rmse"] = float(np.sqrt(np.mean(relative**2)))
    return metrics
