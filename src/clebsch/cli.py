"""The command line: parse, call one function, say where the results are.

Exit status: 0 done; 1 done, but the answer is bad (a relaxation that did not converge, dynamics
that blew up, data with errors or files that are missing, a training that kept no model, a
measurement that failed, a model that computes wrongly); 2 an error in what was given; 130
interrupted: what was saved is said.

Imports that cost time are inside the commands, so that ``clebsch --help`` is quick.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from clebsch.benchmarks.command import bench
from clebsch.cli_convert import convert
from clebsch.cli_data import data as data_command
from clebsch.cli_doctor import doctor
from clebsch.cli_info import info
from clebsch.cli_options import (
    BAD_ANSWER,
    BAD_INPUT,
    INTERRUPTED,
    TF32,
    AsJSON,
    Committee,
    Data,
    Device,
    DType,
    EnergyKey,
    EnergyUnit,
    Head,
    Index,
    LabelOptions,
    Model,
    Overwrite,
    OwnUncertainty,
    Pbc,
    Structure,
    label_keys,
    load_model,
    other_members,
    periodicity,
    precision,
    with_label_options,
)
from clebsch.errors import BlowUpError, ClebschError, ConfigError
from clebsch.reproduce.command import reproduce
from clebsch.terminal import progress_bar, say

if TYPE_CHECKING:
    from clebsch.training.loop import TrainingResult

app = typer.Typer(
    help="Machine-learned interatomic potentials: train them, judge them, run them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        import clebsch

        print(clebsch.__version__)
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for all results.")] = Path("clebsch-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of trajectories, weights and shuffles.")] = 0,
) -> None:
    """Make data, train, judge, run MD: the whole road, offline, in minutes on a laptop."""
    from clebsch.demo import run_demo

    run_demo(out, seed=seed)


@app.command()
@with_label_options
def check(
    data: Data,
    *,
    labels: LabelOptions,
    pbc: Pbc = None,
    as_json: AsJSON = False,
) -> None:
    """Say what is in a data set and what is wrong with it, before any training."""
    from clebsch.data.check import check_frames
    from clebsch.data.read import read_with_census

    report = check_frames(
        *read_with_census(data, label_keys(**labels), pbc=periodicity(pbc) or "file")
    )
    if as_json:
        print(report.to_json())
    else:
        report.print(Console())
    if report.count("error"):
        raise typer.Exit(BAD_ANSWER)


@app.command()
def train(
    config: Annotated[
        list[str] | None,
        typer.Argument(
            help="A YAML file, and settings that replace its own: model=mace_small "
            "data.train=frames.xyz training.max_minutes=20 run=my-run",
            metavar="[CONFIG] [KEY=VALUE]...",
        ),
    ] = None,
) -> None:
    """Train a potential. Ctrl-C saves; `clebsch resume` goes on."""
    from clebsch.training.configfile import load_config
    from clebsch.training.loop import train as run_training

    files = [argument for argument in config or [] if "=" not in argument]
    if len(files) > 1:
        raise ConfigError(f"one configuration file at most, not {' and '.join(files)}")
    overrides = [argument for argument in config or [] if "=" in argument]
    settings = load_config(files[0] if files else None, overrides)
    result = run_training(settings, console=Console())
    _end_of_training(result)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    max_epochs: Annotated[
        int | None, typer.Option(help="New limit in epochs, those done included.")
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="New limit in minutes, those spent included.")
    ] = None,
) -> None:
    """Go on with a training run that was interrupted, exactly where it was."""
    from clebsch.training.loop import resume as resume_training

    result = resume_training(run, Console(), max_epochs=max_epochs, max_minutes=max_minutes)
    _end_of_training(result)


@app.command()
@with_label_options
def evaluate(
    model: Model,
    data: Data,
    predictions: Annotated[
        Path | None, typer.Option(help="Write predictions to this extended XYZ file.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write parity plots and histograms to this HTML file.")
    ] = None,
    *,
    labels: LabelOptions,
    pbc: Pbc = None,
    as_json: AsJSON = False,
    committee: Committee = None,
    uncertainty: OwnUncertainty = False,
    head: Head = None,
    device: Device = "cpu",
    dtype: DType = None,
    tf32: TF32 = False,
    overwrite: Overwrite = False,
) -> None:
    """Judge a model on labelled structures: errors of energy, forces and stress.

    Labels are read as in the training that made the model, as far as the data have its keys. As
    soon as an option says where a label is or which unit or sign it has, options alone count.
    """
    from clebsch.evaluation.run import run_evaluate
    from clebsch.files import check_outputs
    from clebsch.rounding import allow_tf32

    others = other_members(model, committee, uncertainty)
    inputs = [model, *(others or []), *data]
    check_outputs((predictions, report), overwrite=overwrite, inputs=inputs)
    with allow_tf32(tf32):
        judged = run_evaluate(
            model,
            data,
            keys=label_keys(**labels),
            pbc=periodicity(pbc),
            out=predictions,
            report=report,
            as_json=as_json,
            device=device,
            dtype=precision(dtype),
            head=head,
            committee=others,
        )
    if predictions is None and not any(evaluation.metrics for _, evaluation in judged.values()):
        raise typer.Exit(BAD_ANSWER)  # nothing was judged, and nothing else was asked for


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    data: Annotated[
        list[Path] | None, typer.Argument(help="Test files to show beside the run's own data.")
    ] = None,
) -> None:
    """Write RUN/report.html: learning curves, parity plots, errors, worst structures."""
    from clebsch.training.report import report_run

    say(f"Report: {report_run(run, data or ())}")


@app.command()
def md(
    model: Model,
    structure: Structure,
    ensemble: Annotated[
        str, typer.Option(help="nve, nvt (Langevin) or npt (Langevin, cell keeps its shape).")
    ] = "nvt",
    time: Annotated[
        float | None, typer.Option(help="Total time, ps; 10 if neither this nor --steps is given.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Total number of steps, instead.")] = None,
    timestep: Annotated[
        float, typer.Option(help="Time step, fs: 0.5 with hydrogen, 1 to 2 without.")
    ] = 0.5,
    temperature: Annotated[
        float, typer.Option(help="Temperature, K; for nve, of the initial velocities.")
    ] = 300.0,
    keep_velocities: Annotated[
        bool, typer.Option("--keep-velocities", help="nve with the structure's own velocities.")
    ] = False,
    pressure: Annotated[
        float | None, typer.Option(help="For npt: pressure, GPa; 0 if not given.")
    ] = None,
    friction: Annotated[
        float | None,
        typer.Option(help="For nvt and npt: of the thermostat, 1/ps; 10 if not given."),
    ] = None,
    barostat_period: Annotated[
        float | None,
        typer.Option(help="For npt: time scale of the volume, fs; 1000 if not given."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of initial velocities and random forces.")] = 0,
    output: Annotated[
        Path,
        typer.Option(
            help="Trajectory: .traj (ASE; for long runs) or .extxyz (text, slow to write); the log "
            "goes beside it."
        ),
    ] = Path("md.traj"),
    interval: Annotated[
        int, typer.Option(help="Steps between frames and log lines; the last step has them, too.")
    ] = 10,
    stop_at_contacts: Annotated[
        bool,
        typer.Option(
            "--stop-at-contacts",
            help="End the run when atoms come much closer than any in training. Exit status 1.",
        ),
    ] = False,
    committee: Committee = None,
    uncertainty: OwnUncertainty = False,
    stop_at_uncertainty: Annotated[
        float | None,
        typer.Option(
            help="End the run when a force is more uncertain than this, eV/Angstrom. Exit status 1."
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Go on with the run that --output belongs to.")
    ] = False,
    overwrite: Overwrite = False,
    index: Index = -1,
    tabulate: Annotated[
        bool,
        typer.Option(
            "--tabulate", help="Read path weights from tables: faster, forces off by about 1e-5."
        ),
    ] = False,
    head: Head = None,
    device: Device = "cpu",
    dtype: DType = None,
    tf32: TF32 = False,
    as_json: AsJSON = False,
) -> None:
    """Run molecular dynamics. Ctrl-C saves; the same command with --restart goes on."""
    from clebsch.rounding import allow_tf32
    from clebsch.simulation.md import run_md
    from clebsch.simulation.structure import check_fits, read_structure

    if keep_velocities and ensemble != "nve":
        raise ConfigError("--keep-velocities is for nve: a thermostat makes its own velocities")
    if time is None and steps is None:
        time = 10.0
    atoms = read_structure(structure, index)
    potential = load_model(model, device, dtype, head)
    others = other_members(model, committee, uncertainty)
    members = None
    if others is not None:
        members = [load_model(path, device, dtype, head) for path in others]
    check_fits(potential, atoms, str(structure), "npt" if ensemble == "npt" else None)
    if tabulate:
        potential = potential.tabulated()
    with allow_tf32(tf32), progress_bar(f"MD ({ensemble})") as advance:
        result = run_md(
            potential,
            atoms,
            ensemble=ensemble,
            steps=steps,
            time_ps=time,
            timestep_fs=timestep,
            temperature=None if keep_velocities else temperature,
            pressure=pressure,
            friction=friction,
            barostat_period_fs=barostat_period,
            seed=seed,
            output=output,
            interval=interval,
            stop_at_contacts=stop_at_contacts,
            committee=members,
            stop_at_uncertainty=stop_at_uncertainty,
            restart=restart,
            overwrite=overwrite,
            inputs=[model, *(others or []), structure],
            name=str(structure),
            progress=lambda done, total, _: advance(done, total),
        )
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        say(result.describe())
    if result.interrupted:
        say("Interrupted; saved. The same command with --restart goes on.", error=True)
        raise typer.Exit(INTERRUPTED)


@app.command()
def relax(
    model: Model,
    structure: Structure,
    cell: Annotated[bool, typer.Option("--cell", help="Relax the lattice vectors too.")] = False,
    fmax: Annotated[
        float, typer.Option(help="Converged when no force exceeds this, eV/Angstrom.")
    ] = 0.01,
    steps: Annotated[int, typer.Option(help="At most so many steps.")] = 500,
    pressure: Annotated[float, typer.Option(help="Pressure on a relaxed cell, GPa.")] = 0.0,
    smax: Annotated[
        float | None,
        typer.Option(
            help="With --cell: converged when, besides, no stress component is further than this "
            "from the pressure, GPa; 0.01 if not given."
        ),
    ] = None,
    optimizer: Annotated[
        str,
        typer.Option(help="bfgs (to 1000 atoms), fire (any size), lbfgs (near a minimum only)."),
    ] = "bfgs",
    output: Annotated[
        Path, typer.Option(help="Final structure; the suffix tells the format.")
    ] = Path("relaxed.extxyz"),
    trajectory: Annotated[Path | None, typer.Option(help="All steps, as a .traj file.")] = None,
    overwrite: Overwrite = False,
    index: Index = -1,
    head: Head = None,
    device: Device = "cpu",
    dtype: DType = None,
    as_json: AsJSON = False,
) -> None:
    """Relax a structure to the nearest minimum of the energy. Exit status 1: not converged.

    Ctrl-C stops and keeps the structure reached.
    """
    from clebsch.simulation.relax import run_relax
    from clebsch.simulation.structure import check_fits, read_structure

    potential, atoms = load_model(model, device, dtype, head), read_structure(structure, index)
    check_fits(potential, atoms, str(structure), "relaxing the cell" if cell else None)
    result = run_relax(
        potential,
        atoms,
        fmax=fmax,
        steps=steps,
        cell=cell,
        pressure=pressure,
        smax=smax,
        optimizer=optimizer,
        output=output,
        trajectory=trajectory,
        overwrite=overwrite,
        inputs=[model, structure],
        name=str(structure),
    )
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        say(result.describe())
    if result.interrupted:
        reached = f"{result.output} holds the structure reached"
        say(f"Interrupted after {result.steps} steps; {reached}.", error=True)
        raise typer.Exit(INTERRUPTED)
    if not result.converged:
        raise typer.Exit(BAD_ANSWER)


@app.command()
def scan(
    model: Model,
    frames: Annotated[Path, typer.Argument(help="Structures along a path, in order.")],
    output: Annotated[
        list[Path] | None,
        typer.Option(help="Write the curve to .csv, .json, .png or .svg; may be repeated."),
    ] = None,
    relative_to: Annotated[
        str, typer.Option(help="Zero of both curves: minimum (of the reference) or first.")
    ] = "minimum",
    energy_key: EnergyKey = None,
    energy_unit: EnergyUnit = None,
    pbc: Pbc = None,
    as_json: AsJSON = False,
    head: Head = None,
    device: Device = "cpu",
    dtype: DType = None,
    overwrite: Overwrite = False,
) -> None:
    """Compute the energy along a file of frames, against its own energies if it has them."""
    from clebsch.data.read import read_frames
    from clebsch.files import check_outputs, check_suffix
    from clebsch.simulation.scan import FORMAT, run_scan

    outputs = output or []
    check_outputs(outputs, overwrite=overwrite, inputs=[model, frames])
    for path in outputs:
        check_suffix(path, *FORMAT)
    keys = label_keys(
        energy=energy_key, energy_unit=energy_unit, forces="none", stress="none", virial="none"
    )
    result = run_scan(
        load_model(model, device, dtype, head),
        read_frames(frames, keys, pbc=periodicity(pbc) or "file"),
        relative_to=relative_to,
    )
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        say(result.describe())
    for path in outputs:
        say(f"Written: {result.write(path)}", error=as_json)


@app.command()
def presets() -> None:
    """List the models that a configuration can name."""
    from rich.table import Table

    from clebsch.models.presets import PRESETS

    table = Table("model=", "shape", "cutoff (Å)", "source")
    for name, preset in PRESETS.items():
        shape = (preset.config.summary, str(preset.config.cutoff))
        assumed = f" (assumed: {', '.join(preset.assumed)})" if preset.assumed else ""
        table.add_row(name, *shape, escape(preset.source + assumed))
    Console().print(table)


app.command()(bench)
app.command()(reproduce)
app.command()(info)
app.command()(doctor)
app.command()(convert)
app.command("data")(data_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; always ends in ``SystemExit``.

    Args:
        arguments: instead of those of the process.
    """
    # OpenMP threads that wait by spinning take the processor from whatever else runs on it, and
    # from each other: with one other process on two cores a training step takes 20 times as long.
    # Read when torch is loaded, so it is set before; what the user set stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(args=None if arguments is None else list(arguments))
    except (ClebschError, OSError) as error:
        message = f"[bold red]error:[/] {escape(str(error))}"
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)
        raise SystemExit(BAD_ANSWER if isinstance(error, BlowUpError) else BAD_INPUT) from None
    except KeyboardInterrupt:
        say("Interrupted.", error=True)
        raise SystemExit(INTERRUPTED) from None
    except SystemExit as end:
        # typer turns Ctrl-C into an exit without a word; commands that save have said so
        cause = end.__context__ and end.__context__.__cause__
        if isinstance(cause, KeyboardInterrupt):
            say("Interrupted.", error=True)
        raise
    finally:
        if arguments is None:  # what is left is to clean up: no time for another Ctrl-C
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_of_training(result: TrainingResult) -> None:
    """Write the report of a finished run; an interrupted one is finished first.

    A run that is finished without a model has nothing to report, and is no success.
    """
    if result.reason == "interrupted":
        raise typer.Exit(INTERRUPTED)
    if result.model is None:
        raise typer.Exit(BAD_ANSWER)
    from clebsch.training.report import report_run

    try:
        say(f"Report: {report_run(result.run)}")
    except OSError as error:
        say(
            f"The model is finished, but its report cannot be written ({error}): clebsch report "
            f"{result.run} makes it",
            error=True,
        )
        raise typer.Exit(BAD_ANSWER) from None
