"""``clebsch doctor``: is this model's physics right on this machine, whatever computes it?"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clebsch.cli_options import BAD_ANSWER, AsJSON, Fix, Head, Model, fixed_properties, precision
from clebsch.errors import ConfigError

if TYPE_CHECKING:
    from ase import Atoms

    from clebsch.doctor import Check, Diagnosis
    from clebsch.interop.opinion import Opinion
    from clebsch.potential import Potential

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
    head: Head = None,
    fix: Fix = None,
    unpickle_with_mace_torch: Annotated[
        bool,
        typer.Option(
            "--unpickle-with-mace-torch",
            help="Of a .model file, compare with the numbers of mace-torch too, where it is "
            "installed. This RUNS WHATEVER CODE THE FILE HOLDS, as mace-torch does whenever it "
            "loads one: only for files that you trust.",
        ),
    ] = False,
    peer_python: Annotated[
        Path | None,
        typer.Option(
            help="The Python that has mace-torch. If not given, this one, or that of make peers."
        ),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Check a model on this machine: backends, derivatives, symmetries, precision, speed.

    Exit status 1: something is wrong.
    """
    from clebsch.doctor import DTYPES, examine, read_unverified
    from clebsch.simulation.structure import check_fits

    if peer_python is not None and not unpickle_with_mace_torch:
        raise ConfigError("--peer-python is for --unpickle-with-mace-torch, which is not given")
    chosen = precision(dtype)
    potential, stored = read_unverified(model, head=head, properties=fixed_properties(fix))
    looked_at = None if structures is None else _read(structures)
    for name, atoms in (looked_at or {}).items():
        check_fits(potential, atoms, name)
    console = Console(stderr=True)
    with console.status("") as status:
        opinion = None
        if unpickle_with_mace_torch:
            status.update("mace-torch")
            opinion = _second_opinion(model, potential, looked_at or {}, peer_python)
        found = examine(
            potential,
            looked_at,
            stored=stored,
            opinion=opinion,
            dtypes=DTYPES if chosen is None else (chosen,),
            progress=lambda what: status.update(escape(what)),
        )
    if stored is None and opinion is None:
        found = replace(found, notes=(_available(),))
    if as_json:
        print(json.dumps({"machine": machine(), **found.to_json()}, indent=2))
    else:
        _print(found, Console())
    if found.failures:
        raise typer.Exit(BAD_ANSWER)


def _read(path: Path) -> dict[str, Atoms]:
    """Structures by number; the last one is always among them."""
    import numpy as np

    from clebsch.simulation.structure import read_structure, read_structures

    last = read_structure(path)
    frames = read_structures(path)
    if len(frames) == 1:
        return {path.name: last}
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), MOST_STRUCTURES)).astype(int)
    return {f"{path.name} {number}": frames[number] for number in chosen}


def _second_opinion(
    model: Path, potential: Potential, structures: Mapping[str, Atoms], python: Path | None
) -> Opinion:
    """What mace-torch says about a molecule, a skewed cell and the structures that were given.

    Raises:
        ConfigError: the model is not a file of mace-torch, or none is installed.
        ClebschError: mace-torch failed.
    """
    from clebsch.interop.opinion import ask_mace_torch, opinion_structures
    from clebsch.interop.torch_archive import is_torch_file

    if not is_torch_file(model):
        raise ConfigError(
            f"{model}: mace-torch cannot read it; --unpickle-with-mace-torch is for the .model "
            "file that a model was converted from"
        )
    return ask_mace_torch(
        model,
        _find_mace_torch(python),
        {**opinion_structures(potential), **structures},
        head=potential.provenance["imported"]["head"],
        properties=potential.provenance["imported"].get("properties", {}),
    )


def _find_mace_torch(python: Path | None) -> str:
    """The Python to run mace-torch with: the one that is named, this one, or that of ``.peers``.

    Raises:
        ConfigError: none has it.
    """
    from clebsch.benchmarks.opponents import PEERS

    if python is not None:
        found = shutil.which(python)
        if found is None:
            raise ConfigError(f"--peer-python {python}: no such program")
        return found
    try:
        version("mace-torch")
        return sys.executable
    except PackageNotFoundError:
        pass
    try:
        return PEERS["mace-torch"].python()
    except ConfigError as error:
        raise ConfigError(
            f"{error}, or say with --peer-python PATH which Python has mace-torch"
        ) from None


def _available() -> str:
    """That mace-torch was not asked about its model, and how to ask."""
    try:
        found = f"does that, with {_find_mace_torch(None)}"
    except ConfigError as error:
        found = f"would do that, but {error}"
    return (
        f"not compared with mace-torch's own numbers: --unpickle-with-mace-torch {found}. It runs "
        "whatever code the file holds: only for files that you trust"
    )


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
    for note in found.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)
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
