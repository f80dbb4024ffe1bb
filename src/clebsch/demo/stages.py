"""The stages of the demonstration, one after the other, and what they found."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import clebsch
from clebsch.data.check import check_frames
from clebsch.data.frame import Frame
from clebsch.data.read import read_frames, read_with_census
from clebsch.data.synthetic import xtb_calculator
from clebsch.demo.figures import dynamics_section, time_section, torsion_section
from clebsch.demo.sampling import run_jobs
from clebsch.demo.settings import FULL, QUICK, Files, Sizes, jobs, write_training_config
from clebsch.errors import ClebschError
from clebsch.evaluation.evaluate import Evaluation
from clebsch.evaluation.predictions import write_predictions
from clebsch.evaluation.report import machine, write_report
from clebsch.evaluation.run import evaluate_files
from clebsch.evaluation.tables import print_table
from clebsch.files import atomic_write
from clebsch.processor import torch_threads
from clebsch.simulation.md import MDResult, run_md
from clebsch.simulation.scan import ScanResult, run_scan
from clebsch.terminal import progress_bar, say
from clebsch.training.configfile import load_config
from clebsch.training.loop import TrainingResult, train
from clebsch.training.report import read_history, run_facts, run_sets

_PACKAGES = ("clebsch", "torch", "numpy", "llvmlite", "ase", "tblite")

Evaluations = dict[str, tuple[list[Frame], Evaluation]]


class Stopwatch:
    """Announces stages and remembers their seconds: of the clock, and of processors.

    Attributes:
        wall: seconds by stage.
        cpu: processor seconds by stage, those of finished child processes included.
    """

    def __init__(self, console: Console) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._console = console

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        self._console.rule(f"[bold]{name}", align="left")
        wall, cpu = time.perf_counter(), sum(os.times()[:4])
        yield
        self.wall[name] = round(time.perf_counter() - wall, 2)
        self.cpu[name] = round(sum(os.times()[:4]) - cpu, 2)


def run_stages(out: Path, *, seed: int, quick: bool, console: Console | None) -> Path:
    """What ``clebsch.demo.run_demo`` promises."""
    console = console or Console()
    sizes = QUICK if quick else FULL
    files = _prepare(out.expanduser().absolute(), seed)
    watch = Stopwatch(console)
    with watch.stage("Sampling ethanol with GFN2-xTB"):
        run_jobs(jobs(files, sizes, seed), console)
    with watch.stage("Checking the data"):
        data = [*files.train, *files.tests.values(), files.isolated_atoms]
        check_frames(*read_with_census(data)).print(console)
    with watch.stage("Training MACE"):
        write_training_config(files, sizes, seed)
        result = _train(files, console)
    with watch.stage("Judging it"):
        evaluations = _evaluate(files, console)
    with watch.stage("Molecular dynamics"):
        dynamics = _dynamics(files, sizes, seed)
        say(dynamics.describe(), console)
    with watch.stage("Torsion scan"):
        scan = _scan(files)
        say(scan.describe(), console)
    with watch.stage("Writing the report"):
        _report(files, evaluations, dynamics, scan, watch.wall)
    summary = _summary(seed, quick, result, evaluations, dynamics, scan, watch)
    atomic_write(files.summary, json.dumps(summary, indent=1))
    _print_summary(console, files, summary)
    return files.report


def _prepare(out: Path, seed: int) -> Files:
    """The folder for results, empty.

    Raises:
        ClebschError: it holds something, cannot be made, the seed is negative, or there is no xTB.
    """
    if seed < 0:
        raise ClebschError(f"seed = {seed} is negative")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ClebschError(f"{out} is not an empty folder; choose another one with --out")
    xtb_calculator()  # says how to install it
    (out / "data").mkdir(parents=True, exist_ok=True)
    return Files(out)


def _train(files: Files, console: Console) -> TrainingResult:
    result = train(load_config(files.config), console=console)
    if result.reason == "interrupted":
        raise KeyboardInterrupt
    if result.model is None:
        raise ClebschError(f"{files.run}: training ended before there was a model to judge")
    return result


def _evaluate(files: Files, console: Console) -> Evaluations:
    """The errors on both test trajectories, printed; predictions on disk."""
    tests = files.tests
    judged = evaluate_files(clebsch.load(files.model), list(tests.values()))
    evaluations = {name: judged[path.name] for name, path in tests.items()}
    for name, (frames, evaluation) in evaluations.items():
        print_table(console, name, evaluation)
        write_predictions(files.predictions(tests[name]), [(frames, evaluation)])
    return evaluations


def _dynamics(files: Files, sizes: Sizes, seed: int) -> MDResult:
    """Constant energy from a structure that xTB sampled at 300 K, with velocities of 300 K.

    Both are from the canonical ensemble, so there is nothing to equilibrate.
    """
    start = read_frames(files.tests["Test 300 K"])[-1].to_atoms()
    # one thread: nine atoms are not worth two
    with torch_threads(1), progress_bar("Molecular dynamics") as advance:
        result = run_md(
            clebsch.load(files.model),
            start,
            ensemble="nve",
            steps=sizes.md_steps,
            timestep_fs=0.5,
            temperature=300,
            seed=seed,
            output=files.trajectory,
            progress=lambda done, total, _: advance(done, total),
        )
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def _scan(files: Files) -> ScanResult:
    scan = run_scan(clebsch.load(files.model), read_frames(files.torsion))
    scan.write(files.scan)
    return scan


def _report(
    files: Files,
    evaluations: Evaluations,
    dynamics: MDResult,
    scan: ScanResult,
    seconds: Mapping[str, float],
) -> None:
    config = load_config(files.config)
    history = read_history(files.run / "metrics.jsonl")
    sets = run_sets(config)
    facts = run_facts(config, history, clebsch.load(files.model), sets)
    facts["Training data"] = f"{sum(map(len, sets.values()))} structures at 300 K, by GFN2-xTB"
    angles = [frame.info["torsion"] for frame in read_frames(files.torsion)]
    write_report(
        files.report,
        title="Clebsch demo: ethanol from GFN2-xTB",
        facts=facts,
        history=history,
        evaluations=evaluations,
        extra=[
            dynamics_section(dynamics),
            torsion_section(angles, scan),
            time_section(seconds),
        ],
    )


def _summary(
    seed: int,
    quick: bool,
    result: TrainingResult,
    evaluations: Evaluations,
    dynamics: MDResult,
    scan: ScanResult,
    watch: Stopwatch,
) -> dict[str, Any]:
    return {
        "units": "eV, Angstrom, ps, K, s; meV where a name ends in _meV",
        "evaluations": {
            name: {"n_frames": judged.n_frames, **judged.metrics}
            for name, (_, judged) in evaluations.items()
        },
        "dynamics": {
            "time_ps": dynamics.time_ps,
            "energy_drift_meV": dynamics.energy_drift_meV,
            "energy_rms_meV": dynamics.energy_rms_meV,
            "temperature": dynamics.temperature_mean,
            "steps_per_second": dynamics.steps_per_second,
        },
        "torsion": {
            "n_frames": len(scan.energies),
            "barrier": scan.barrier,
            "reference_barrier": scan.reference_barrier,
            "max_error": scan.max_error,
        },
        "training": {"epochs": result.epoch, "steps": result.step, "seconds": result.seconds},
        "seconds": {**watch.wall, "total": round(sum(watch.wall.values()), 2)},
        "cpu_seconds": {**watch.cpu, "total": round(sum(watch.cpu.values()), 2)},
        "seed": seed,
        "quick": quick,
        "machine": machine(),
        "versions": {name: version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
    }


def _print_summary(console: Console, files: Files, summary: Mapping[str, Any]) -> None:
    console.rule("[bold]Summary", align="left")
    table = Table("Quantity", "Value")
    for name, metrics in summary["evaluations"].items():
        forces, energy = metrics["forces_rmse"], metrics["energy_per_atom_rmse"]
        of = f"{name} ({metrics['n_frames']} structures)"
        table.add_row(f"Force RMSE, {of}", f"{1000 * forces:.1f} meV/Å")
        table.add_row(f"Energy RMSE, {of}", f"{1000 * energy:.2f} meV/atom")
    dynamics, torsion = summary["dynamics"], summary["torsion"]
    drift = dynamics["energy_drift_meV"]
    table.add_row(f"Energy drift over {dynamics['time_ps']:g} ps", f"{drift:.4f} meV/atom/ps")
    table.add_row("Torsion barrier, model", f"{1000 * torsion['barrier']:.1f} meV")
    table.add_row("Torsion barrier, xTB", f"{1000 * torsion['reference_barrier']:.1f} meV")
    table.add_row("Torsion, largest error", f"{1000 * torsion['max_error']:.1f} meV")
    for stage, seconds in summary["seconds"].items():
        table.add_row(f"Time: {stage}", f"{seconds:.0f} s")
    console.print(table)
    places = {
        "Report": files.report,
        "Model": files.model,
        "Configuration": files.config,
        "Everything": files.out,
    }
    for name, path in places.items():
        console.print(f"{name:14} {escape(str(path))}", highlight=False, soft_wrap=True)
