"""Errors as tables for people, in meV and Angstrom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clebsch.evaluation.evaluate import Evaluation, FrameErrors
from clebsch.evaluation.metrics import QUANTITIES
from clebsch.evaluation.uncertainty import Calibration, UncertainAtom

#: (name, unit) of each quantity as people read them.
LABELS = {
    "energy": ("Energy", "meV"),
    "energy_per_atom": ("Energy per atom", "meV/atom"),
    "forces": ("Forces", "meV/Å"),
    "stress": ("Stress", "meV/Å³"),
}

#: What uncertainties are shown beside.
CALIBRATION_COLUMNS = ("Uncertainty", "Unit", "RMS", "Error / uncertainty", "Rank correlation")


def milli(value: float | None) -> str:
    """A value in eV-units as text in milli-units with three or four significant digits."""
    if value is None:
        return "-"
    scaled = 1000.0 * value
    size = abs(scaled)
    decimals = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{scaled:.{decimals}f}"


def print_table(console: Console, name: str, evaluation: Evaluation) -> None:
    """Print the errors of one set, per element, per ``config_type``, and the worst structures.

    Args:
        console: where to print.
        name: the set's name.
        evaluation: its errors.
    """
    title = f"{name}: {evaluation.n_frames} structures, {evaluation.n_atoms} atoms"
    if not evaluation.metrics:
        console.print(
            f"{escape(title)}; nothing to compare with: no labels under a usual name. clebsch "
            "check tells what the file has; --energy-key, --forces-key and --stress-key name it."
        )
    else:
        console.print(_metrics_table(title, evaluation.metrics, evaluation.counts))
    if len(evaluation.per_element) > 1:
        console.print(_elements_table(evaluation.per_element))
    if len(evaluation.groups) > 1:
        console.print(_groups_table(evaluation))
    if evaluation.worst_forces:
        console.print(_worst_table("Worst structures by force RMSE", evaluation.worst_forces[:3]))
    if evaluation.worst_energies:
        console.print(
            _worst_table("Worst structures by energy per atom", evaluation.worst_energies[:3])
        )
    if evaluation.calibration is not None:
        console.print(_calibration_table(evaluation.calibration))
        console.print(_most_uncertain_table(evaluation.calibration.most_uncertain[:3]))
    for note in evaluation.notes:
        console.print(f"[yellow]Note:[/yellow] {escape(note)}")


def _table(title: str, columns: Iterable[str], left: int = 1) -> Table:
    """An empty table whose first ``left`` columns hold text and the others numbers."""
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k < left else "right", overflow="fold")
    return table


def _metrics_table(title: str, metrics: Mapping[str, float], counts: Mapping[str, int]) -> Table:
    table = _table(title, ("Quantity", "Unit", "MAE", "RMSE", "n"), left=2)
    for quantity in QUANTITIES:
        if quantity in counts:
            mae, rmse = metrics[f"{quantity}_mae"], metrics[f"{quantity}_rmse"]
            table.add_row(*LABELS[quantity], milli(mae), milli(rmse), str(counts[quantity]))
    return table


def _elements_table(per_element: Mapping[str, Mapping[str, float]]) -> Table:
    table = _table("Forces per element (meV/Å)", ("Element", "MAE", "RMSE", "n"))
    for symbol, errors in per_element.items():
        table.add_row(
            symbol, milli(errors["forces_mae"]), milli(errors["forces_rmse"]), str(errors["n"])
        )
    return table


def _groups_table(evaluation: Evaluation) -> Table:
    columns = ("config_type", "Structures", "Energy RMSE\nmeV/atom", "Forces RMSE\nmeV/Å")
    table = _table("Per config_type", columns)
    for name, group in evaluation.groups.items():
        table.add_row(
            escape(name),
            str(group.n_frames),
            milli(group.metrics.get("energy_per_atom_rmse")),
            milli(group.metrics.get("forces_rmse")),
        )
    return table


def _worst_table(title: str, worst: Iterable[FrameErrors]) -> Table:
    columns = ("Structure", "Formula", "Energy\nmeV/atom", "Force RMSE\nmeV/Å", "Worst atom\nmeV/Å")
    table = _table(title, columns, left=2)
    for errors in worst:
        table.add_row(
            escape(short_source(errors)),
            errors.formula,
            milli(errors.energy_per_atom),
            milli(errors.forces_rmse),
            worst_atom_text(errors),
        )
    return table


def _calibration_table(calibration: Calibration) -> Table:
    table = _table("What the committee says", CALIBRATION_COLUMNS, left=2)
    for row in calibration_rows(calibration):
        table.add_row(*row)
    return table


def calibration_rows(calibration: Calibration) -> list[list[str]]:
    """Uncertainties of energies and forces beside errors, under ``CALIBRATION_COLUMNS``."""
    rows = [
        ("energy_per_atom", calibration.energy_per_atom, calibration.energy_ratio, None),
        (
            "forces",
            calibration.forces,
            calibration.forces_ratio,
            calibration.forces_rank_correlation,
        ),
    ]
    return [
        [*LABELS[quantity], milli(size), *("-" if x is None else f"{x:.2f}" for x in comparisons)]
        for quantity, size, *comparisons in rows
    ]


def _most_uncertain_table(most: Iterable[UncertainAtom]) -> Table:
    table = _table("Most uncertain structures", ("Structure", "Most uncertain atom\nmeV/Å"))
    for one in most:
        table.add_row(
            escape(short_source(one)), f"{one.element} {one.atom}: {milli(one.uncertainty)}"
        )
    return table


def short_source(named: FrameErrors | UncertainAtom) -> str:
    """The file's name and the frame's index, without the folder."""
    return named.source.rpartition("/")[2]


def worst_atom_text(errors: FrameErrors) -> str:
    """Element, index and force error of the worst atom: "O 8: 512.3"."""
    if errors.worst_atom is None:
        return "-"
    return f"{errors.worst_atom_element} {errors.worst_atom}: {milli(errors.worst_atom_error)}"
