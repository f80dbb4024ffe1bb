"""report.html: one page that shows what a potential is worth, from history and evaluations."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import atomic_numbers

import clebsch
from clebsch.conventions import VOIGT
from clebsch.data.frame import Frame
from clebsch.evaluation.evaluate import Evaluation, FrameErrors
from clebsch.evaluation.page import Grid, Heading, Part, Plot, Section, Table, Text, render_page
from clebsch.evaluation.plots import (
    element_figure,
    histogram_figure,
    learning_curves,
    parity_figure,
)
from clebsch.evaluation.predict import FramePrediction, wants_stress
from clebsch.evaluation.tables import (
    CALIBRATION_COLUMNS,
    calibration_rows,
    milli,
    short_source,
    worst_atom_text,
)
from clebsch.evaluation.uncertainty import Calibration
from clebsch.evaluation.viewer import StructureView
from clebsch.files import atomic_write, check_suffix
from clebsch.processor import processor_name, usable_cores

if TYPE_CHECKING:
    from clebsch.potential import Potential

#: Suffixes of the file, and what it is: see ``check_suffix``.
FORMAT = ((".html",), "a report is written as HTML")

#: Frames and what was found on them, by the name of the set.
EvaluatedSets = Mapping[str, tuple[Sequence[Frame], Evaluation]]

#: Structures per set that are drawn in 3D, and the most atoms that such a drawing may have.
_N_DRAWN = 3
_MAX_DRAWN_ATOMS = 1000


def write_report(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    history: Sequence[Mapping[str, Any]] = (),
    evaluations: EvaluatedSets | None = None,
    extra: Sequence[Section] = (),
) -> Path:
    """Write one self-contained HTML page.

    Args:
        path: ends in .html; usually RUN/report.html.
        title: heading.
        facts: name and value of what the reader should know, see ``potential_facts``.
        history: the lines of metrics.jsonl, for learning curves.
        evaluations: ``{name: (frames, evaluation)}`` of each judged set.
        extra: further sections, set after the errors and before the worst structures.

    Returns:
        ``path``.

    Raises:
        ClebschError: the name has another suffix than .html.
    """
    path = Path(path)
    check_suffix(path, *FORMAT)
    evaluations = evaluations or {}
    sections = []
    if evaluations:
        sections.append(Section("Errors", _summary(evaluations)))
    curves = [Plot(figure, caption) for figure, caption in learning_curves(history)]
    if curves:
        sections.append(Section("Learning curves", [Grid(curves)]))
    predictions = _per_set(evaluations, _error_plots)
    if predictions:
        sections.append(Section("Predictions", predictions))
    sections.extend(extra)
    worst = _per_set(evaluations, _worst_structures)
    if worst:
        sections.append(Section("Worst structures", worst))
    atomic_write(path, render_page(title, facts, sections))
    return path


def potential_facts(potential: Potential) -> dict[str, str]:
    """What a reader must know of the model and of where the numbers were made."""
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    n_parameters = sum(p.numel() for p in potential.parameters())
    return {
        "Elements": ", ".join(potential.species),
        "Parameters": f"{n_parameters:,}".replace(",", "\u202f"),
        "Cut-off": f"{potential.cutoff:g} Å",
        "Precision": str(potential.dtype).removeprefix("torch."),
        "Judged": f"{now}, clebsch {clebsch.__version__}, {machine()}",
    }


def machine() -> str:
    """Processor, usable cores and Python, in one line."""
    system, python = platform.system(), platform.python_version()
    return f"{processor_name()}, {usable_cores()} cores, {system}, Python {python}"


def _per_set(
    evaluations: EvaluatedSets,
    make: Callable[[Sequence[Frame], Evaluation], list[Part]],
) -> list[Part]:
    """What ``make`` has to say of each set, under its name."""
    parts: list[Part] = []
    for name, (frames, evaluation) in evaluations.items():
        made = make(frames, evaluation)
        if made:
            parts.extend([Heading(name), *made])
    return parts


def _summary(evaluations: EvaluatedSets) -> list[Part]:
    columns = {
        "Energy MAE\nmeV/atom": "energy_per_atom_mae",
        "Energy RMSE\nmeV/atom": "energy_per_atom_rmse",
        "Energy RMSE\nmeV": "energy_rmse",
        "Forces MAE\nmeV/Å": "forces_mae",
        "Forces RMSE\nmeV/Å": "forces_rmse",
        "Stress MAE\nmeV/Å³": "stress_mae",
        "Stress RMSE\nmeV/Å³": "stress_rmse",
    }
    rows = [
        (name, evaluation.n_frames, evaluation) for name, (_, evaluation) in evaluations.items()
    ]
    present = {
        header: key for header, key in columns.items() if any(key in e.metrics for *_, e in rows)
    }
    parts: list[Part] = [
        Table(
            ["Set", "Structures", *present],
            [
                [name, str(n), *(milli(e.metrics.get(key)) for key in present.values())]
                for name, n, e in rows
            ],
        )
    ]
    parts.extend(Text(f"{name}: {note}") for name, _, e in rows for note in e.notes)
    grouped = {name: e for name, _, e in rows if len(e.groups) > 1}
    if grouped:
        parts.append(_groups_table(grouped))
    calibrated = {name: e.calibration for name, _, e in rows if e.calibration is not None}
    if calibrated:
        parts.append(_calibration_table(calibrated))
    per_element = {name: e.per_element for name, _, e in rows if e.per_element}
    if per_element:
        plot = Plot(element_figure(per_element), "Force errors by element")
        parts.append(Grid([plot, _elements_table(per_element)]))
    return parts


def _groups_table(evaluations: Mapping[str, Evaluation]) -> Table:
    return Table(
        ["Set", "config_type", "Structures", "Energy RMSE\nmeV/atom", "Forces RMSE\nmeV/Å"],
        [
            [
                name,
                group_name,
                str(group.n_frames),
                milli(group.metrics.get("energy_per_atom_rmse")),
                milli(group.metrics.get("forces_rmse")),
            ]
            for name, evaluation in evaluations.items()
            for group_name, group in evaluation.groups.items()
        ],
        caption="By config_type",
        left=2,
    )


def _calibration_table(calibrated: Mapping[str, Calibration]) -> Table:
    return Table(
        ["Set", *CALIBRATION_COLUMNS],
        [[name, *row] for name, each in calibrated.items() for row in calibration_rows(each)],
        caption="What the committee says",
        left=3,
    )


def _elements_table(per_element: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    symbols = {symbol for errors in per_element.values() for symbol in errors}
    ordered = sorted(symbols, key=atomic_numbers.__getitem__)
    rows = [
        [name, *(_rmse_and_mae(errors.get(symbol)) for symbol in ordered)]
        for name, errors in per_element.items()
    ]
    return Table(["Set", *ordered], rows, caption="RMSE (MAE) of forces, meV/Å")


def _rmse_and_mae(errors: Mapping[str, float] | None) -> str:
    if errors is None:
        return "-"
    return f"{milli(errors['forces_rmse'])} ({milli(errors['forces_mae'])})"


def _error_plots(frames: Sequence[Frame], evaluation: Evaluation) -> list[Part]:
    """Parity plots of the labelled quantities in one row, error histograms below them."""
    pairs = list(zip(frames, evaluation.predictions, strict=True))
    rows = [_energy_plots(pairs), _forces_plots(pairs), _stress_plots(pairs)]
    present = [plots for plots in rows if plots]
    if len(present) == 1:
        return [Grid(present[0])]
    return [Grid(plots) for plots in zip(*present, strict=True)]


def _energy_plots(pairs: Sequence[tuple[Frame, FramePrediction]]) -> list[Plot]:
    """Energies per atom around their mean: a total of -1000 eV/atom would hide every digit."""
    energies = [(f.energy / len(f), p.energy / len(f)) for f, p in pairs if f.energy is not None]
    if not energies:
        return []
    reference, predicted = np.array(energies).T
    mean = reference.mean()
    factor, unit = (1.0, "eV/atom") if np.ptp(reference) > 2.0 else (1000.0, "meV/atom")
    caption = f"Energy per atom, around {mean:.3f} eV/atom"
    return [
        Plot(
            parity_figure(factor * (reference - mean), factor * (predicted - mean), "energy", unit),
            caption,
        ),
        Plot(
            histogram_figure(1000 * (predicted - reference), "Energy", "meV/atom"),
            "Energy errors per atom",
        ),
    ]


def _forces_plots(pairs: Sequence[tuple[Frame, FramePrediction]]) -> list[Plot]:
    labelled = [(f.numbers, f.forces, p.forces) for f, p in pairs if f.forces is not None]
    if not labelled:
        return []
    numbers, reference, predicted = (np.concatenate(parts) for parts in zip(*labelled, strict=True))
    reference, predicted = reference.ravel(), predicted.ravel()
    return [
        Plot(
            parity_figure(reference, predicted, "force component", "eV/Å", np.repeat(numbers, 3)),
            "Force components",
        ),
        Plot(
            histogram_figure(1000 * (predicted - reference), "Force component", "meV/Å"),
            "Force component errors",
        ),
    ]


def _stress_plots(pairs: Sequence[tuple[Frame, FramePrediction]]) -> list[Plot]:
    labelled = [
        (f.stress, p.stress)
        for f, p in pairs
        if wants_stress(f) and f.stress is not None and p.stress is not None
    ]
    if not labelled:
        return []
    rows, columns = zip(*VOIGT, strict=True)
    components = 1000 * np.array(labelled)[:, :, rows, columns]  # [frames, 2, 6]
    reference, predicted = components.transpose(1, 0, 2).reshape(2, -1)
    return [
        Plot(
            parity_figure(reference, predicted, "stress component", "meV/Å³"), "Stress components"
        ),
        Plot(
            histogram_figure(predicted - reference, "Stress component", "meV/Å³"),
            "Stress component errors",
        ),
    ]


def _worst_structures(frames: Sequence[Frame], evaluation: Evaluation) -> list[Part]:
    parts: list[Part] = []
    drawn = []
    for errors in evaluation.worst_forces[:_N_DRAWN]:
        frame, prediction = frames[errors.index], evaluation.predictions[errors.index]
        if len(frame) <= _MAX_DRAWN_ATOMS and frame.forces is not None:
            arrows = prediction.forces - frame.forces
            title = (
                f"{short_source(errors)}: force RMSE {milli(errors.forces_rmse)} meV/Å, "
                f"longest arrow {milli(errors.worst_atom_error)} meV/Å "
                f"({errors.worst_atom_element} {errors.worst_atom})"
            )
            drawn.append(StructureView(frame, arrows, title))
    if drawn:
        parts.append(
            Text(
                "Arrows are force errors, predicted minus reference. Drag to turn; "
                "point at an atom to read its error."
            )
        )
        parts.append(Grid(drawn))
    if evaluation.worst_forces:
        parts.append(_worst_table("By force RMSE", evaluation.worst_forces))
    if evaluation.worst_energies:
        parts.append(_worst_table("By energy error per atom", evaluation.worst_energies))
    return parts


def _worst_table(caption: str, worst: Sequence[FrameErrors]) -> Table:
    return Table(
        [
            "Structure",
            "Formula",
            "Atoms",
            "Energy error\nmeV/atom",
            "Force RMSE\nmeV/Å",
            "Worst atom\nmeV/Å",
        ],
        [
            [
                short_source(e),
                e.formula,
                str(e.n_atoms),
                milli(e.energy_per_atom),
                milli(e.forces_rmse),
                worst_atom_text(e),
            ]
            for e in worst
        ],
        caption=caption,
        left=2,
    )
