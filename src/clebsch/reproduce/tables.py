"""Tables of a suite: our numbers beside the published ones, as Markdown, HTML and figures."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from clebsch.evaluation.page import Part, Plot, Section, Table, Text, render_page
from clebsch.evaluation.plots import line_figure
from clebsch.reproduce.results import Row, plain_settings
from clebsch.reproduce.suites import MOLECULES, Suite
from clebsch.training.log import duration

BEST, UNFINISHED = "★", "†"
_UNITS = {"energy": "E, meV", "forces": "F, meV/Å", "milliseconds": "ms"}


class Column(NamedTuple):
    """What a number is of: energies in meV, forces in meV/Angstrom, or milliseconds."""

    task: str
    test: str
    quantity: str


@dataclass(frozen=True)
class Entry:
    """A number of a table.

    Attributes:
        value: mean over seeds.
        spread: standard deviation over them; None for one.
        finished: whether all runs were over.
    """

    value: float
    spread: float | None = None
    finished: bool = True


@dataclass
class Model:
    """A model's numbers.

    Attributes:
        label: for tables.
        entries: by column.
        ours: the rows they are from; none for published ones.
        sources: where they are published, with the tasks of each place.
        pretrained: whether it saw other data before.
    """

    label: str
    entries: dict[Column, Entry] = field(default_factory=dict)
    ours: list[Row] = field(default_factory=list)
    sources: dict[str, list[str]] = field(default_factory=dict)
    pretrained: bool = False


@dataclass(frozen=True)
class Document:
    """A suite's results.

    Attributes:
        title: of all.
        tables: caption, headers and rows.
        notes: below the tables.
        figures: by name of their file.
    """

    title: str
    tables: Sequence[Table]
    notes: Sequence[str]
    figures: Mapping[str, Figure]


def make_document(suite: Suite, rows: Sequence[Row]) -> Document:
    """Everything that is measured of a suite, and everything published.

    Args:
        suite: which.
        rows: our results, of any suite.
    """
    own = our_models(suite, [row for row in rows if row.suite == suite.name])
    published = published_models(suite)
    tables = [*_main_tables(suite, own, published), _runs_table(own)]
    shown = [table for table in tables if table.rows]
    return Document(suite.title, shown, _notes(suite, own, published), _figures(suite, own))


def our_models(suite: Suite, rows: Iterable[Row]) -> list[Model]:
    """Means and standard deviations over the seeds of each kind of run."""
    values_of: dict[str, dict[Column, list[tuple[float, bool]]]] = {}
    models: dict[str, Model] = {}
    labels: dict[tuple[str, ...], str] = {}
    for row in rows:
        kind = (row.model, row.recipe, *plain_settings(row.settings))
        label = labels.setdefault(kind, " ".join((row.model, *_described(row))))
        model = models.setdefault(label, Model(label))
        model.ours.append(row)
        for column, value in _values(suite, row):
            values_of.setdefault(label, {}).setdefault(column, []).append((value, row.finished))
    for label, columns in values_of.items():
        for column, found in columns.items():
            values = [value for value, _ in found]
            spread = statistics.stdev(values) if len(values) > 1 else None
            finished = all(done for _, done in found)
            models[label].entries[column] = Entry(statistics.fmean(values), spread, finished)
    return list(models.values())


@cache
def _published() -> list[dict[str, object]]:
    path = Path(__file__).with_name("published.json")
    entries: list[dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))
    return entries


def published_models(suite: Suite) -> list[Model]:
    """What the papers have for a suite, each number with its source."""
    models: dict[str, Model] = {}
    for entry in _published():
        if entry["suite"] != suite.name:
            continue
        model = models.setdefault(str(entry["model"]), Model(str(entry["model"])))
        tasks = model.sources.setdefault(str(entry["source"]), [])
        if entry["task"] not in tasks:
            tasks.append(str(entry["task"]))
        model.pretrained = bool(entry.get("pretrained", False))
        for quantity in _UNITS:
            values = entry.get(quantity)
            if isinstance(values, list):
                column = Column(str(entry["task"]), str(entry["test"]), quantity)
                model.entries[column] = Entry(*values)
    return list(models.values())


def to_markdown(document: Document) -> str:
    """The document as Markdown; figures by the names of their files."""
    lines = [f"# {document.title}"]
    for table in document.tables:
        lines += ["", f"## {table.caption}", "", _line(table.headers)]
        lines.append(_line(["---"] * len(table.headers)))
        lines += [_line(row) for row in table.rows]
    lines += ["", *(f"- {note}" for note in document.notes)]
    lines += [f"\n![{name}]({name}.svg)" for name in document.figures]
    return "\n".join(lines) + "\n"


def to_html(document: Document) -> str:
    """The document as one page that needs nothing else."""
    sections = [Section(table.caption, [_uncaptioned(table)]) for table in document.tables]
    if document.figures:
        plots: list[Part] = [Plot(figure, name) for name, figure in document.figures.items()]
        sections.append(Section("Figures", plots))
    sections.append(Section("Notes", [Text(note) for note in document.notes]))
    return render_page(document.title, {}, sections)


# --- tables ---------------------------------------------------------------------------------------


def _main_tables(suite: Suite, own: Sequence[Model], published: Sequence[Model]) -> list[Table]:
    models = [*published, *own]
    if suite.layout == "molecules":
        return [_molecules(suite, count, models) for count in (50, 950)]
    if suite.layout == "sizes":
        return [_curve_table(suite, own)]
    columns = _columns(models)
    several = len({column.task for column in columns}) > 1
    headers = [
        f"{f'{column.task}, ' if several else ''}{column.test}\n{_UNITS[column.quantity]}"
        for column in columns
    ]
    texts = {column: _texts(suite, column, models) for column in columns}
    rows = [
        [model.label, *(texts[column][model.label] for column in columns)]
        for model in models
        if model.entries
    ]
    return [Table(["model", *headers], rows, caption="Errors" if suite.data else "Cost")]


def _molecules(suite: Suite, count: int, models: Sequence[Model]) -> Table:
    """Molecules down, models across."""
    tasks = {f"{molecule}-{count}": molecule for molecule in MOLECULES}
    shown = [m for m in models if any(column.task in tasks for column in m.entries)]
    rows = []
    for task, molecule in tasks.items():
        for quantity in ("energy", "forces"):
            texts = _texts(suite, Column(task, "test", quantity), shown)
            rows.append([molecule, _UNITS[quantity], *(texts[model.label] for model in shown)])
    headers = ["molecule", "MAE", *(model.label for model in shown)]
    return Table(headers, rows, caption=f"{count} structures to train on", left=2)


def _curve_table(suite: Suite, own: Sequence[Model]) -> Table:
    columns = [Column(task.name, "test", "forces") for task in suite.tasks]
    texts = {column: _texts(suite, column, own) for column in columns}
    rows = []
    for model in own:
        slope = _slope(model)
        cells = [texts[column][model.label] for column in columns]
        rows.append([model.label, *cells, "" if slope is None else f"{slope:.2f}"])
    headers = [f"N = {task.train_count}\nF, meV/Å" for task in suite.tasks]
    return Table(["model", *headers, "slope"], rows, caption="Errors")


def _texts(suite: Suite, column: Column, models: Sequence[Model]) -> dict[str, str]:
    """The cells of a column by the models' labels; empty where nothing is measured."""
    entries = {m.label: m.entries[column] for m in models if column in m.entries}
    fair = [entries[m.label].value for m in models if m.label in entries and not m.pretrained]
    best = min(fair, default=None)
    base = entries.get(suite.compared_with or "")
    texts = dict.fromkeys((model.label for model in models), "")
    for model in models:
        entry = entries.get(model.label)
        if entry is None:
            continue
        number = _number if model.ours else str
        text = number(entry.value)
        if entry.spread is not None:
            text += f" ± {number(entry.spread)}"
        if model.ours and base is not None:
            text += f" ({entry.value / base.value:.2f}x)"
        if not model.pretrained and entry.value == best and len(fair) > 1:
            text = f"{BEST} {text}"
        texts[model.label] = text if entry.finished else f"{text} {UNFINISHED}"
    return texts


def _runs_table(own: Sequence[Model]) -> Table:
    """What ours were made with."""
    rows = []
    for model in own:
        for row in model.ours:
            epochs = "" if row.epochs is None else str(row.epochs)
            if row.max_epochs is not None:
                epochs += f" of {row.max_epochs}"
            left = row.projected_seconds
            rows.append(
                [
                    model.label,
                    row.task,
                    str(row.seed),
                    _grouped(row.n_parameters),
                    f"{row.n_train} + {row.n_valid}",
                    epochs,
                    "" if row.frames is None else _grouped(row.frames),
                    duration(row.seconds),
                    "" if row.finished else "?" if left is None else duration(left),
                    str(row.machine.get("cpu", "")),
                    row.date[:10],
                ]
            )
    headers = [
        "model", "task", "seed", "parameters", "structures", "epochs", "differentiated", "time",
        "to go", "machine", "date",
    ]  # fmt: skip
    return Table(headers, rows, caption="Our runs", left=2)


def _notes(suite: Suite, own: Sequence[Model], published: Sequence[Model]) -> list[str]:
    notes = []
    if own:
        notes.append(
            f"Of ours: mean and standard deviation where there are several seeds; {UNFINISHED}: "
            "the run is not over."
        )
        if suite.compared_with is not None and published:
            notes[-1] += f" In brackets: times the published {suite.compared_with}."
    else:
        notes.append("None of ours is measured yet.")
    if published:
        notes.append(f"{BEST}: the best of those that saw no other data.")
    pretrained = [model.label for model in published if model.pretrained]
    if pretrained:
        notes.append(f"Trained on other data before: {', '.join(pretrained)}.")
    notes += [test.remark for task in suite.tasks for test in task.tests if test.remark]
    measured = {column.test for model in own for column in model.entries}
    notes += [text for test, text in suite.missing.items() if test not in measured]
    remarks = {row.remark: model.label for model in own for row in model.ours if row.remark}
    notes += [f"{label}: {remark}" for remark, label in remarks.items()]
    return [*notes, *_sources(published)]


def _sources(published: Sequence[Model]) -> list[str]:
    """Where numbers are from; by tasks where a model's are from several places."""
    labels: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for model in published:
        for source, tasks in model.sources.items():
            of = tuple(tasks) if len(model.sources) > 1 else ()
            labels.setdefault((source, of), []).append(model.label)
    return [
        f"Source of {', '.join(names)}{' for ' if tasks else ''}{', '.join(tasks)}: {source}"
        for (source, tasks), names in labels.items()
    ]


# --- figures --------------------------------------------------------------------------------------


def _figures(suite: Suite, own: Sequence[Model]) -> dict[str, Figure]:
    if suite.layout == "sizes":
        return _curve_figures(own)
    if suite.layout == "layers":
        return _layer_figures(own)
    return _training_figures(suite, own)


def _curve(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Structures to train on and force errors (meV/Angstrom), by size."""
    sizes = {row.task: row.n_train for row in model.ours}
    points = sorted(
        (sizes[column.task], entry.value)
        for column, entry in model.entries.items()
        if column.quantity == "forces"
    )
    sizes_, errors = np.array(points, dtype=float).reshape(-1, 2).T
    return sizes_, errors


def _slope(model: Model) -> float | None:
    """The exponent of a power law through all points."""
    sizes, errors = _curve(model)
    if len(sizes) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def _curve_figures(own: Sequence[Model]) -> dict[str, Figure]:
    series = {}
    for model in own:
        slope = _slope(model)
        if slope is not None:
            series[f"{model.label}: {slope:.2f}"] = _curve(model)
    if not series:
        return {}
    figure = line_figure(
        series, "structures to train on", "force MAE (meV/Å)", log=True, size=(6.0, 4.2)
    )
    figure.axes[0].set_xscale("log")
    return {"learning-curve": figure}


def _training_figures(suite: Suite, own: Sequence[Model]) -> dict[str, Figure]:
    """Validation errors in the course of training, of tasks that were trained in several ways."""
    figures = {}
    for task in suite.tasks:
        series = {}
        for model in own:
            curves = [
                dict(zip(row.curve["frames"], row.curve["forces"], strict=True))
                for row in model.ours
                if row.task == task.name and row.curve
            ]
            if not curves:
                continue
            # a seed that is not over has fewer points, and maybe others
            common = sorted(set.intersection(*map(set, curves)))
            if common:
                forces = np.mean([[one[k] for k in common] for one in curves], axis=0)
                series[model.label] = (common, 1000 * forces)
        if len(series) > 1:
            figures[f"training-{task.name}"] = line_figure(
                series,
                "structures differentiated",
                "force RMSE of validation (meV/Å)",
                log=True,
                size=(6.0, 4.2),
            )
    return figures


def _layer_figures(own: Sequence[Model]) -> dict[str, Figure]:
    points: dict[Column, dict[str, list[tuple[int, float]]]] = {}
    for model in own:
        match = re.match(r"(\w+)_t(\d+)(.*)", model.label)
        if match is None:
            continue
        for column, entry in model.entries.items():
            lines = points.setdefault(column, {})
            lines.setdefault(match[1] + match[3], []).append((int(match[2]), entry.value))
    figures = {}
    for column, lines in points.items():
        series = {name: tuple(np.array(sorted(line)).T) for name, line in lines.items()}
        name = f"layers-{column.test}-{column.quantity}".replace(" ", "-")
        unit = {"energy": "energy RMSE (meV)", "forces": "force RMSE (meV/Å)"}[column.quantity]
        figures[name] = line_figure(series, "layers", f"{unit}, {column.test}")
    return figures


# --- pieces ---------------------------------------------------------------------------------------


def _values(suite: Suite, row: Row) -> Iterable[tuple[Column, float]]:
    """What a row has for the table."""
    for test, metrics in row.tests.items():
        for quantity, keys in (
            ("energy", ("relative_energy_rmse", f"energy_{suite.statistic}")),
            ("forces", (f"forces_{suite.statistic}",)),
            ("milliseconds", ("seconds",)),
        ):
            value = next((metrics[key] for key in keys if key in metrics), None)
            if value is not None:
                yield Column(row.task, test, quantity), 1000 * value


def _described(row: Row) -> tuple[str, ...]:
    """What a row's model was trained with, where that is not what everybody would expect."""
    recipe = () if row.recipe in ("fast", "fit") else (row.recipe,)
    return (*recipe, *row.settings)


def _columns(models: Iterable[Model]) -> list[Column]:
    """All columns, those of a task and a test beside each other, in the order they come."""
    found = dict.fromkeys(column for model in models for column in model.entries)
    places: dict[tuple[str, str], int] = {}
    for column in found:
        places.setdefault(column[:2], len(places))
    return sorted(found, key=lambda column: places[column[:2]])


def _number(value: float) -> str:
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}"


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace(chr(10), ' ').replace('|', '/') for cell in cells)} |"


def _uncaptioned(table: Table) -> Table:
    return Table(table.headers, table.rows, left=table.left)
