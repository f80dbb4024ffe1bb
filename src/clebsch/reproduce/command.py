"""``clebsch reproduce``: options, runs, tables."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from clebsch.cli_options import INTERRUPTED, precision
from clebsch.errors import ConfigError

if TYPE_CHECKING:
    from clebsch.reproduce.suites import Suite


def reproduce(
    suite: Annotated[
        str,
        typer.Argument(help="rmd17, 3bpa, acac, ethanol, learning-curve, layers or cost."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings of all trainings, such as training.max_epochs=500 or dtype=float64.",
        ),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(help="Presets, or the suite's own variants, with commas between them."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Some tasks alone, such as aspirin-50,benzene-50.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between them.")] = "1",
    recipe: Annotated[str, typer.Option(help="fast, or paper: as the MACE paper has it.")] = "fast",
    budget: Annotated[
        str | None,
        typer.Option(help="Stop after 2h, 90m or 1h30m; the same command goes on."),
    ] = None,
    data: Annotated[
        Path, typer.Option(help="Folder of the data set (clebsch data finds or fetches it).")
    ] = Path("data"),
    runs: Annotated[Path, typer.Option(help="Folder of all training runs.")] = Path(
        "runs/reproduce"
    ),
    results: Annotated[Path, typer.Option(help="Folder of results, SUITE.json.")] = Path(
        "benchmarks/results"
    ),
    table: Annotated[
        bool,
        typer.Option(
            "--table",
            help="Train nothing; print the table as Markdown, of --models and --tasks if given.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="With --table: also write SUITE.md, SUITE.html and figures here."),
    ] = None,
) -> None:
    """Train and judge what a paper's table needs, within a time budget; show the table."""
    from clebsch.reproduce.suites import suite as suite_of_name

    started = time.monotonic()
    chosen = suite_of_name(suite)
    names = [] if models is None else _listed(models)
    wanted = [] if tasks is None else _listed(tasks)
    of_trainings = {
        "--seeds": seeds != "1",
        "--recipe": recipe != "fast",
        "--budget": budget is not None,
    }
    if table:
        _refuse("--table trains nothing", of_trainings | {"KEY=VALUE": bool(settings)})
        _table(chosen, names, wanted, results, out)
        return
    if out is not None:
        raise ConfigError("--out is for --table")
    until = None if budget is None else started + _seconds(budget)
    console = Console()
    if chosen.data is None:
        _refuse("suite cost trains nothing", of_trainings | {"--tasks": tasks is not None})
        _cost(chosen, names, settings or [], results, console)
        return
    from clebsch.reproduce.runs import make_plans, run_all

    plans = make_plans(
        chosen,
        data=data,
        runs=runs,
        models=names,
        tasks=wanted,
        seeds=[_seed(one) for one in _listed(seeds)],
        recipe=recipe,
        settings=settings or [],
    )
    end = run_all(plans, results, until=until, console=console)
    again = "the same command goes on"
    closing = {
        "done": "All runs are finished.",
        "time": f"The budget is spent; {again}.",
        "interrupted": f"Interrupted; saved. When you want, {again}.",
    }
    console.print(f"{closing[end]} Results: {results / f'{suite}.json'}", soft_wrap=True)
    if end == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _table(
    suite: Suite, models: list[str], tasks: list[str], results: Path, out: Path | None
) -> None:
    """Print the table of some models and tasks, or of all."""
    from clebsch.files import atomic_write
    from clebsch.reproduce.results import read_rows, results_file
    from clebsch.reproduce.tables import make_document, to_html, to_markdown

    for model in models:
        suite.model_settings(model)
    for task in tasks:
        suite.task(task)
    rows = [
        row
        for row in read_rows(results_file(results, suite.name))
        if (not models or row.model in models) and (not tasks or row.task in tasks)
    ]
    document = make_document(suite, rows)
    text = to_markdown(document)
    print(text, end="")
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / f"{suite.name}.md", text)
    atomic_write(out / f"{suite.name}.html", to_html(document))
    for name, figure in document.figures.items():
        figure.savefig(out / f"{name}.svg", metadata={"Date": None})


def _cost(
    suite: Suite, models: list[str], settings: list[str], results: Path, console: Console
) -> None:
    from clebsch.reproduce.cost import measure_cost

    dtype = "float32"
    for one in settings:
        key, _, value = one.partition("=")
        if key != "dtype":
            raise ConfigError(f"{one}: suite cost has one setting, dtype=float32 or dtype=float64")
        precision(value)
        dtype = value
    measure_cost(suite, models, results, dtype=dtype, console=console)
    console.print(f"Results: {results / f'{suite.name}.json'}", soft_wrap=True)


def _refuse(reason: str, given: dict[str, bool]) -> None:
    """What was given and would do nothing."""
    for option, is_given in given.items():
        if is_given:
            raise ConfigError(f"{option}: {reason}")


def _listed(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"--seeds {text!r}: a seed is a whole number, 0 or more")
    return int(text)


def _seconds(text: str) -> float:
    """2h, 90m, 1h30m or 45s in seconds.

    Raises:
        ConfigError: it is none of these.
    """
    match = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text)
    try:
        hours, minutes, seconds = (float(part or 0) for part in match.groups())  # type: ignore[union-attr]
    except (AttributeError, ValueError):
        hours = minutes = seconds = 0.0
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise ConfigError(f"--budget {text!r}: a time is written as 2h, 90m, 1h30m or 45s")
    return total
