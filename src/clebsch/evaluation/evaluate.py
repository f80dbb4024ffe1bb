"""Judging a potential on labelled frames: errors, where they sit, and the worst structures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clebsch.data.frame import Frame, describe_left_out
from clebsch.data.references import undetermined
from clebsch.evaluation.metrics import ErrorAccumulator
from clebsch.evaluation.predict import MAX_EDGES, FramePrediction, predict, wants_stress
from clebsch.evaluation.uncertainty import (
    Calibration,
    FrameUncertainty,
    calibrate,
    predict_uncertainties,
)

if TYPE_CHECKING:
    from clebsch.potential import Potential

#: How many structures are named in each list of the worst.
N_WORST = 10


@dataclass(frozen=True)
class FrameErrors:
    """The errors of one structure; None where there is no label.

    Attributes:
        index: position in the list of frames.
        source: "path:index" in the file.
        formula: like "C2H6O".
        n_atoms: number of atoms.
        energy_per_atom: (E_pred - E_ref) / n_atoms, eV/atom.
        forces_rmse: over the 3 n components, eV/Angstrom.
        worst_atom: index of the atom with the longest force error vector.
        worst_atom_element: its symbol.
        worst_atom_error: length of that vector, eV/Angstrom.
    """

    index: int
    source: str
    formula: str
    n_atoms: int
    energy_per_atom: float | None = None
    forces_rmse: float | None = None
    worst_atom: int | None = None
    worst_atom_element: str | None = None
    worst_atom_error: float | None = None


@dataclass(frozen=True)
class GroupErrors:
    """The errors over the structures of one ``config_type``."""

    n_frames: int
    metrics: dict[str, float]
    counts: dict[str, int]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a potential is worth on a set of frames.

    Attributes:
        n_frames, n_atoms: size of the set, labelled or not.
        metrics: see ``clebsch.evaluation.metrics``; only quantities that have labels, in eV,
            eV/Angstrom, eV/Angstrom^3.
        counts: errors that each metric is a mean of.
        per_element: ``{symbol: {"forces_mae", "forces_rmse", "n"}}``.
        groups: errors per ``config_type``, where the frames have one.
        worst_forces: structures by descending force RMSE.
        worst_energies: structures by descending absolute energy error per atom.
        predictions: one per frame, in their order.
        uncertainties: likewise, empty without a committee.
        calibration: of the uncertainties; None without a committee or without frames.
        seconds: wall time.
        notes: what had to be changed on the way (batches made smaller), labels that were left out,
            and energies that mean little.
    """

    n_frames: int
    n_atoms: int
    metrics: dict[str, float]
    counts: dict[str, int]
    per_element: dict[str, dict[str, float]]
    groups: dict[str, GroupErrors]
    worst_forces: tuple[FrameErrors, ...]
    worst_energies: tuple[FrameErrors, ...]
    predictions: tuple[FramePrediction, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    uncertainties: tuple[FrameUncertainty, ...] = ()
    calibration: Calibration | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything but predictions and uncertainties, ready for ``json.dumps``."""
        return {
            "n_frames": self.n_frames,
            "n_atoms": self.n_atoms,
            "units": {
                "energy": "eV",
                "energy_per_atom": "eV/atom",
                "forces": "eV/Angstrom",
                "stress": "eV/Angstrom^3",
            },
            "metrics": self.metrics,
            "counts": self.counts,
            "per_element": self.per_element,
            "groups": {name: asdict(group) for name, group in self.groups.items()},
            "worst_forces": [asdict(errors) for errors in self.worst_forces],
            "worst_energies": [asdict(errors) for errors in self.worst_energies],
            "calibration": self.calibration and asdict(self.calibration),
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


def evaluate(
    potential: Potential,
    frames: Sequence[Frame],
    *,
    committee: Sequence[Potential] | None = None,
    max_edges: int = MAX_EDGES,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Predict every frame and compare with the labels that it has.

    Frames without labels are predicted too. Metrics are the same whatever the batches, up to the
    rounding of the model itself.

    Args:
        potential: the model to judge.
        frames: may be empty, partly labelled, or without any label.
        committee: potentials to tell with ``potential`` how sure it is (``clebsch.committee``): one
            that was trained apart, or several; none for a linear ACE with draws of its own. Errors
            are those of ``potential`` alone. Nothing is told of uncertainties if None.
        max_edges: edges in a batch, see ``clebsch.evaluation.predict.predict``.
        progress: called as ``progress(done, total)`` after each batch.

    Raises:
        UnknownElementError: a frame has an element that the model does not know.
        ClebschError: memory does not suffice for a single frame, a prediction is not finite, or
            the committee tells nothing (``clebsch.committee.check_committee``).
    """
    start = time.perf_counter()
    predictions, notes = predict(potential, frames, max_edges=max_edges, progress=progress)
    uncertainties: list[FrameUncertainty] = []
    if committee is not None:
        uncertainties, more_notes = predict_uncertainties(
            [potential, *committee], frames, max_edges=max_edges, progress=progress
        )
        notes += more_notes
    pairs = list(zip(frames, predictions, strict=True))
    total = _accumulate(pairs)
    errors = [_frame_errors(i, *pair) for i, pair in enumerate(pairs)]
    return Evaluation(
        n_frames=len(frames),
        n_atoms=sum(len(frame) for frame in frames),
        metrics=total.result(),
        counts=total.counts(),
        per_element=total.per_element(),
        groups=_groups(pairs),
        worst_forces=_worst(errors, lambda e: e.forces_rmse),
        worst_energies=_worst(errors, lambda e: e.energy_per_atom),
        predictions=tuple(predictions),
        uncertainties=tuple(uncertainties),
        calibration=calibrate(frames, predictions, uncertainties) if uncertainties else None,
        seconds=time.perf_counter() - start,
        notes=(*notes, *_note_of_weights(frames), *_note_of_formulas(potential, frames)),
    )


def _note_of_weights(frames: Sequence[Frame]) -> list[str]:
    """Whether there are labels that nothing was compared with."""
    left_out = describe_left_out(frames)
    return [f"Labels of weight 0 count as missing: {left_out}."] if left_out else []


def _note_of_formulas(potential: Potential, frames: Sequence[Frame]) -> list[str]:
    """Whether there are compositions whose energies fitted references leave open."""
    formulas = potential.provenance.get("data", {}).get("formulas")
    if formulas is None:
        return []
    found = undetermined(frames, formulas)
    if not found:
        return []
    shown = ", ".join(list(found)[:5]) + (", ..." if len(found) > 5 else "")
    return [
        f"{sum(found.values())} of {len(frames)} structures have compositions ({shown}) that "
        f"references fitted to {', '.join(formulas)} do not determine: energies of each "
        "composition may all be off by the same amount. Forces are not concerned. Training with "
        "isolated atoms' energies settles it."
    ]


def _accumulate(pairs: Iterable[tuple[Frame, FramePrediction]]) -> ErrorAccumulator:
    accumulator = ErrorAccumulator()
    for frame, prediction in pairs:
        if frame.energy is not None:
            accumulator.add_energy([prediction.energy], [frame.energy], [len(frame)])
        if frame.forces is not None:
            accumulator.add_forces(prediction.forces, frame.forces, numbers=frame.numbers)
        if wants_stress(frame):
            assert prediction.stress is not None
            assert frame.stress is not None
            accumulator.add_stress(prediction.stress[None], frame.stress[None])
    return accumulator


def _groups(pairs: Sequence[tuple[Frame, FramePrediction]]) -> dict[str, GroupErrors]:
    members: dict[str, list[tuple[Frame, FramePrediction]]] = {}
    for pair in pairs:
        if "config_type" in pair[0].info:
            members.setdefault(str(pair[0].info["config_type"]), []).append(pair)
    groups = {}
    for name in sorted(members):
        sums = _accumulate(members[name])
        groups[name] = GroupErrors(len(members[name]), sums.result(), sums.counts())
    return groups


def _frame_errors(index: int, frame: Frame, prediction: FramePrediction) -> FrameErrors:
    energy = forces_rmse = worst_atom = worst_error = None
    if frame.energy is not None:
        energy = (prediction.energy - frame.energy) / len(frame)
    if frame.forces is not None:
        errors = prediction.forces - frame.forces
        lengths = np.linalg.norm(errors, axis=1)
        forces_rmse = float(np.sqrt(np.mean(errors**2)))
        worst_atom = int(lengths.argmax())
        worst_error = float(lengths[worst_atom])
    return FrameErrors(
        index=index,
        source=frame.place(index),
        formula=frame.formula,
        n_atoms=len(frame),
        energy_per_atom=energy,
        forces_rmse=forces_rmse,
        worst_atom=worst_atom,
        worst_atom_element=None if worst_atom is None else frame.symbols[worst_atom],
        worst_atom_error=worst_error,
    )


def _worst(
    errors: Iterable[FrameErrors], key: Callable[[FrameErrors], float | None]
) -> tuple[FrameErrors, ...]:
    """The ``N_WORST`` structures with the largest absolute error, largest first."""
    ranked = [(abs(value), e) for e in errors if (value := key(e)) is not None]
    ranked.sort(key=lambda pair: (-pair[0], pair[1].index))
    return tuple(e for _, e in ranked[:N_WORST])
