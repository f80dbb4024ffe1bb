"""``clebsch info``: what a model file holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clebsch.cli_options import AsJSON, Fix, Head, fixed_properties
from clebsch.terminal import say

if TYPE_CHECKING:
    from clebsch.modelinfo import ModelInfo

#: Of the shortest distances in training so many are shown.
MOST_DISTANCES = 10

Fact = tuple[str, str]


def info(
    models: Annotated[
        list[Path],
        typer.Argument(help="Model files, of Clebsch or of mace-torch.", metavar="MODEL"),
    ],
    head: Head = None,
    fix: Fix = None,
    as_json: AsJSON = False,
) -> None:
    """Tell what a model file holds: architecture, elements, references, training, units.

    It computes nothing with the model; `clebsch doctor` finds out whether its numbers hold.
    """
    from clebsch.modelinfo import read_info

    found = [read_info(path, head=head, properties=fixed_properties(fix)) for path in models]
    if as_json:
        print(json.dumps({"models": [one.to_json() for one in found]}, indent=2))
        return
    for one in found:
        table = Table.grid(padding=(0, 2))
        for name, value in _facts(one):
            table.add_row(escape(name), escape(value))
        Console().print(table)
        say("")
    say("The numbers of a model are not looked at here: clebsch doctor MODEL does that.")


def _facts(info: ModelInfo) -> Iterator[Fact]:
    """What there is to say, line by line."""
    from clebsch.committee import n_draws
    from clebsch.conventions import OUTPUTS
    from clebsch.modelfile import UNITS

    potential, draws = info.potential, n_draws(info.potential)
    dtype = str(potential.dtype).removeprefix("torch.")
    yield "file", f"{info.path}, {info.n_bytes / 1e6:.2f} MB"
    if info.is_of_all_heads:
        told = "--head NAME tells the references and the training of one"
        yield "heads", f"{', '.join(info.heads)}; {told}"
    elif info.head is not None:
        yield "head", f"{info.head}, of {', '.join(info.heads)}"
    yield "model", f"{potential.config.name}: {potential.config.summary}"
    changed = potential.config.model_dump(mode="json", exclude_defaults=True)
    yield "settings", ", ".join(_settings(changed)) or f"the defaults of {potential.config.name}"
    yield "cut-off", f"{potential.cutoff:g} Å"
    yield "parameters", f"{potential.n_parameters}, {dtype}"
    yield "elements", ", ".join(potential.species)
    if info.references is not None:
        energies = (f"{symbol} {energy:.6f}" for symbol, energy in info.references.items())
        yield "references", f"{', '.join(energies)} eV"
    yield from _history(info.provenance or {})
    yield "computes", ", ".join(OUTPUTS)
    own = f"of its own, from {draws} draws (--uncertainty)"
    others = "with models trained from other seeds (--committee)"
    yield "uncertainty", own if draws else others
    yield "units", ", ".join(f"{what} {unit}" for what, unit in UNITS.items())


def _settings(tree: Mapping[str, Any], section: str = "") -> Iterator[str]:
    """Settings as the command line takes them, but for ``model.`` before them."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{section}{key}.")
        else:
            yield f"{section}{key}={value if isinstance(value, str) else json.dumps(value)}"


def _history(provenance: Mapping[str, Any]) -> Iterator[Fact]:
    """Where a model comes from; what somebody else wrote of it stands as it is."""
    if {"clebsch", "torch", "date", "data", "config"} <= provenance.keys():
        yield from _training(provenance)
    elif "imported" in provenance:
        yield from _origin(provenance["imported"])
    else:
        for name, told in provenance.items():
            yield name, told if isinstance(told, str) else json.dumps(told)


def _origin(imported: Mapping[str, Any]) -> Iterator[Fact]:
    """Of a model of another program."""
    yield "imported", f"{imported['class']} of {imported['program']}, {imported['file']}"
    if "properties" in imported:
        values = ", ".join(f"{name}={value:g}" for name, value in imported["properties"].items())
        yield "only for", values


def _training(made: Mapping[str, Any]) -> Iterator[Fact]:
    """Of a model that was trained or fitted here (``clebsch.training.provenance``)."""
    from clebsch.data.loader import describe_counts
    from clebsch.evaluation.tables import LABELS, milli
    from clebsch.training.log import duration

    data, config = made["data"], made["config"]
    for part, name in (("train", "training data"), ("valid", "validation data")):
        yield name, f"{describe_counts(data[part])}: {', '.join(data[part]['files'])}"
    yield "references from", data["references_from"]
    yield "shortest distances", _distances(data.get("shortest_distances"))
    if config.get("initial"):
        yield "started from", config["initial"]
    yield "trained", f"{made['date']}, clebsch {made['clebsch']}, torch {made['torch']}"
    if "fit" in made:
        fit = made["fit"]
        how = f"{fit['n_coefficients']} coefficients fitted to {fit['n_rows']} labels"
        yield "training", f"{how} in {duration(fit['seconds'])}, seed {config['seed']}"
    elif "training" in made:
        best = made["training"]
        reached = f"epoch {best['epoch']}, step {best['step']}, {duration(best['seconds'])}"
        yield "training", f"{reached}, recipe {config['recipe']}, seed {config['seed']}"
    metrics = made.get("metrics", {})
    errors = (
        f"{what.lower()} {milli(metrics[f'{key}_rmse'])} {unit}"
        for key, (what, unit) in LABELS.items()
        if f"{key}_rmse" in metrics
    )
    yield "validation RMSE", ", ".join(errors)


def _distances(shortest: Mapping[str, float] | None) -> str:
    """The shortest distances in training, the shortest first."""
    if shortest is None:
        return "not known"
    pairs = sorted(shortest, key=lambda pair: shortest[pair])
    shown = ", ".join(f"{pair} {shortest[pair]:.2f}" for pair in pairs[:MOST_DISTANCES])
    rest = len(pairs) - MOST_DISTANCES
    return f"{shown} Å" + (f" and {rest} longer ones (--json)" if rest > 0 else "")
