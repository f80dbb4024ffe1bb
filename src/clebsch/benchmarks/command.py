"""``clebsch bench``: options, a table, a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from clebsch.cli_options import BAD_ANSWER, precision
from clebsch.errors import ConfigError, did_you_mean
from clebsch.files import check_output
from clebsch.terminal import progress_bar, say

if TYPE_CHECKING:
    from clebsch.benchmarks.jobs import Case, Contender, Mode
    from clebsch.benchmarks.opponents import Peer

DEFAULT_MODEL = "mace_small"
DEFAULT_SIZES = "9,216,1000"
_SUITES = ("paper", "gpu")


def bench(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Preset, or model file, or several with commas between them; "
            f"{DEFAULT_MODEL} if not given."
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Numbers of atoms: 9 is ethanol, 135 five molecules of 3BPA, the others are "
            f"rattled silicon, as near as a supercell comes; {DEFAULT_SIZES} if not given."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    step: Annotated[bool, typer.Option(help="Time a training step too.")] = True,
    against: Annotated[
        str | None,
        typer.Option(
            help="Measure peers of equal architecture in turns: mace-torch, nequip, "
            "cuequivariance (mace-torch with it, on CUDA), or several with commas between them "
            "(make peers)."
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="Instead of a model, MACE as published: paper, on 3BPA and silicon; gpu, on "
            "larger systems too."
        ),
    ] = None,
    tabulate: Annotated[
        bool,
        typer.Option(help="Measure tabulated path weights too, and the force error they make."),
    ] = False,
    kernels: Annotated[
        bool, typer.Option(help="Also time each kernel, as a fraction of a large matrix product.")
    ] = False,
    rounds: Annotated[
        int, typer.Option(min=1, help="Processes for each measurement; they take turns.")
    ] = 3,
    seconds: Annotated[
        float, typer.Option(min=0, help="Of timed calls in each process, at least.")
    ] = 2.0,
    out: Annotated[
        Path | None,
        typer.Option(help="JSON with all times; clebsch-bench-DATE.json if not given."),
    ] = None,
) -> None:
    """Time energies, forces and training steps here, and against mace-torch and nequip."""
    from clebsch.benchmarks.compare import measure_all
    from clebsch.benchmarks.record import results_table, write_record

    _measurable(device)
    modes: list[Mode] = ["energy_forces", "step"] if step else ["energy_forces"]
    cases = _cases(model, sizes, suite)
    contenders = _contenders(against, tabulate, cases, device)
    path = out or Path(f"clebsch-bench-{datetime.now():%Y%m%d-%H%M%S}.json")
    check_output(path, overwrite=True)
    settings = _settings(dtype, threads, rounds, device)
    if kernels:
        settings["kernels"] = _kernels(cases[-1], settings)
    with progress_bar("Measuring") as progress:
        rows = measure_all(
            cases,
            contenders,
            modes=modes,
            dtype=dtype,
            threads=threads,
            rounds=rounds,
            timing={"min_seconds": seconds, "max_seconds": max(20.0, seconds)},
            progress=lambda what, done, total: progress(done, total, what),
            save=lambda rows: write_record(path, rows, settings),
            device=device,
        )
    _print_whole(results_table(rows))
    say(
        f"{device}, {dtype}, threads: {threads}, rounds: {rounds}; large matrix product: "
        f"{settings['gemm_multiply_adds_per_second'] / 1e9:.1f} G multiply-adds/s"
    )
    say(f"All times: {path}")
    failed = [f"{row.case.system.name}, {row.mode}: {row.error}" for row in rows if row.error]
    for line in failed:
        say(line, error=True)
    if failed:
        raise typer.Exit(BAD_ANSWER)


def _print_whole(table: Table) -> None:
    """Print a table, wider than the terminal if it must be: squeezed columns cannot be read."""
    console = Console()
    needed = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.width = max(console.width, needed)
    console.print(table)


def _measurable(device: str) -> None:
    """Refuse devices that are absent, and those that are not waited for when calls are timed."""
    from clebsch.devices import usable_device

    kind = usable_device(device).type
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"--device is cpu or cuda, not {device!r}")


def _settings(dtype: str, threads: int, rounds: int, device: str) -> dict[str, Any]:
    from clebsch.benchmarks.rates import machine_rates

    number = precision(dtype)
    assert number is not None
    return {
        "command": ["clebsch", *sys.argv[1:]],
        "dtype": dtype,
        "threads": threads,
        "rounds": rounds,
        "device": device,
        **machine_rates(number, threads, device),
    }


def _cases(model: str | None, sizes: str | None, suite: str | None) -> list[Case]:
    from clebsch.benchmarks.compare import gpu_cases, paper_cases
    from clebsch.benchmarks.jobs import Case
    from clebsch.benchmarks.structures import system_of_size

    if suite is not None:
        if suite not in _SUITES:
            raise ConfigError(f"unknown --suite {suite!r}. {did_you_mean(suite, _SUITES)}")
        if model is not None or sizes is not None:
            raise ConfigError("--suite has its own models and sizes; give one or the other")
        return paper_cases() if suite == "paper" else gpu_cases()
    model = model or DEFAULT_MODEL
    cases = []
    models = [model] if Path(model).exists() else model.split(",")
    if not all(models):
        raise ConfigError(f"MODEL is a name, or several with commas between them, not {model!r}")
    for one in models:
        name, config, species = _model(one)
        file = None if species is None else Path(one)
        for size in _numbers(sizes or DEFAULT_SIZES):
            system = system_of_size(size, species)
            cases.append(Case(system, config, name, species or system.species, file))
    return cases


def _model(model: str) -> tuple[str, Any, tuple[str, ...] | None]:
    """Name, architecture, and the elements of a model file (None for a preset)."""
    from clebsch.modelfile import load
    from clebsch.models.presets import PRESETS, preset_config

    if model in PRESETS or not (Path(model).exists() or model.endswith(".safetensors")):
        return model, preset_config(model), None
    potential = load(model)
    return Path(model).name, potential.config, potential.species


def _numbers(sizes: str) -> list[int]:
    try:
        return [int(size) for size in sizes.split(",")]
    except ValueError:
        raise ConfigError(f"--sizes are whole numbers such as 9,216,1000, not {sizes!r}") from None


def _kernels(case: Case, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Rates of the last case's kernels on silicon of its size, printed at once."""
    from clebsch.benchmarks.rates import kernel_rates, rates_table

    number = precision(settings["dtype"])
    assert number is not None
    rates = kernel_rates(
        case.config, case.system.n_atoms, number, settings["threads"], settings["device"]
    )
    gemm, copy = settings["gemm_multiply_adds_per_second"], settings["copy_bytes_per_second"]
    _print_whole(rates_table(rates, gemm, copy))
    return [asdict(one) for one in rates]


def _contenders(
    against: str | None, tabulate: bool, cases: Sequence[Case], device: str
) -> list[Contender]:
    """Who is measured; each peer on the models that it has."""
    from clebsch.benchmarks.jobs import OURS, TABULATED

    ours = [OURS, TABULATED] if tabulate else [OURS]
    peers = [] if against is None else _peers(against)
    lacking = {case.name: {peer.name: peer.lacks(case.config) for peer in peers} for case in cases}
    notes = {
        (model, name): f"{model}: {name} has no {settings[0]}, or a different one"
        for model, of_peer in lacking.items()
        for name, settings in of_peer.items()
        if settings
    }
    for model, of_peer in lacking.items():
        if peers and all(of_peer.values()):
            raise ConfigError("; ".join(notes[model, name] for name in of_peer))
    for peer in peers:
        if all(of_peer[peer.name] for of_peer in lacking.values()):
            raise ConfigError("; ".join(notes[model, peer.name] for model in lacking))
    found = [*ours, *(one for peer in peers for one in peer.contenders(device=device))]
    for note in notes.values():
        say(f"Not compared: {note}", error=True)
    return found


def _peers(against: str) -> list[Peer]:
    from clebsch.benchmarks.opponents import PEERS

    for name in against.split(","):
        if name not in PEERS:
            raise ConfigError(f"unknown --against {name!r}. {did_you_mean(name, PEERS)}")
    return [PEERS[name] for name in dict.fromkeys(against.split(","))]
