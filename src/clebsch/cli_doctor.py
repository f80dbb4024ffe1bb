"""``clebsch doctor``: is this model's physics right on this machine, whatever computes it?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clebsch.cli_options import AsJSON, Model, precision

if TYPE_CHECKING:
    from ase import Atoms

    from clebsch.doctor import Check, Diagnosis

#: Of a file with more structures so many are looked at, evenly spread.
MOST_STRUCTURES = 5


def doctor(
    model: Model,
    structures: Annotated[
        Path | None,
        typer.Argument(
            help="File with structures to look at, five of them at most. A small crystal of all "
            "the model's elements if not given."
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Look at float32 or float64 only, instead of both.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Check a model on this machine: backends, derivatives, symmetries, precision, speed.

    Exit status 1: something is wrong.
    """
    from clebsch.doctor import DTYPES, examine, read_unverified

    potential, stored = read_unverified(model)
    chosen = precision(dtype)
    console = Console(stderr=True)
    with console.status("") as status:
        found = examine(
            potential,
            None if structures is None else _read(structures),
            stored=stored,
            dtypes=DTYPES if chosen is None else (chosen,),
            progress=lambda what: status.update(escape(what)),
        )
    if as_json:
        print(json.dumps({"machine": machine(), **found.to_json()}, indent=2))
    else:
        _print(found, Console())
    if found.failures:
        raise typer.Exit(1)


def _read(path: Path) -> dict[str, Atoms]:
    """Structures by number; the last one is always among them."""
    import ase.io
    import numpy as np

    from clebsch.simulation.structure import read_structure

    last = read_structure(path)
    frames = ase.io.read(path, index=":")
    if len(frames) == 1:
        return {path.name: last}
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), MOST_STRUCTURES)).astype(int)
    return {f"{path.name} {number}": frames[number] for number in chosen}


def machine() -> dict[str, str]:
    """What computes here: processor, vectors, threads, compiler and where it keeps its code."""
    import torch

    from clebsch.benchmarks.record import machine as system

    known = system()
    facts = {
        "processor": f"{known['cpu']}, {known['cores']} cores",
        "system": f"{known['system']}, Python {known['python']}, torch {torch.__version__}",
        "threads": str(torch.get_num_threads()),
    }
    try:
        import llvmlite
        import llvmlite.binding

        from clebsch.kernels.cache import cache_folder
        from clebsch.kernels.cpu.machine import vector_bytes
    except ImportError:
        return facts
    version = ".".join(map(str, llvmlite.binding.llvm_version_info))
    facts["vectors"] = f"{8 * vector_bytes()} bits"
    facts["LLVM"] = f"{version} (llvmlite {llvmlite.__version__})"
    facts["cache folder"] = str(cache_folder())
    return facts


def _print(found: Diagnosis, console: Console) -> None:
    facts = Table.grid(padding=(0, 2))
    for name, value in machine().items():
        facts.add_row(name, escape(value))
    console.print(facts)
    for name, reason in found.missing.items():
        console.print(f"[yellow]{name}: not here[/]: {escape(reason)}", highlight=False)
    ways = list(dict.fromkeys((check.backend, check.dtype) for check in found.checks))
    table = Table("largest relative deviation", "allowed", *(f"{b}\n{d}" for b, d in ways))
    for name in dict.fromkeys(check.name for check in found.checks):
        same = [check for check in found.checks if check.name == name]
        cells = [_worst([c for c in same if (c.backend, c.dtype) == way]) for way in ways]
        allowed = sorted({check.allowed for check in same})
        table.add_row(name, " / ".join(f"{number:.0e}" for number in allowed), *cells)
    for place in dict.fromkeys(timing.structure for timing in found.timings):
        times = {(t.backend, t.dtype): t for t in found.timings if t.structure == place}
        atoms = next(iter(times.values())).n_atoms
        cells = [f"{1e3 * times[way].seconds:.2f} ms" if way in times else "" for way in ways]
        table.add_row(f"time: {escape(place)}, {atoms} atoms", "", *cells)
    console.print(table)
    for check in found.failures:
        told = check.error or f"off by {check.deviation:.2g}, allowed {check.allowed:.2g}"
        place = f"{check.backend}, {check.dtype}, {check.structure}: {check.name}: {told}"
        console.print(f"[bold red]wrong:[/] {escape(place)}", highlight=False, soft_wrap=True)
    if found.failures:
        names = ", ".join(dict.fromkeys(check.backend for check in found.failures))
        console.print(f"[bold red]Do not trust:[/] {names}.", highlight=False)
    else:
        console.print("[bold green]All is well.[/]", highlight=False)


def _worst(checks: Sequence[Check]) -> str:
    """The worst of some checks, as a cell of the table."""
    if not checks:
        return ""
    worst = max(checks, key=lambda check: (not check.passed, check.deviation))
    shown = "error" if worst.error else f"{worst.deviation:.1e}"
    return shown if worst.passed else f"[bold red]{shown}[/]"
