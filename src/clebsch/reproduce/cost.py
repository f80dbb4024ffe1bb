"""The suite ``cost``: what energies and forces of one molecule cost with every model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import median

import torch
from rich.console import Console

from clebsch.benchmarks.jobs import OURS, Case, run_job
from clebsch.benchmarks.record import machine
from clebsch.benchmarks.structures import system_of_size
from clebsch.models.presets import preset_config
from clebsch.reproduce.results import Row, add_row, results_file
from clebsch.reproduce.suites import Suite

TASK, TEST = "27 atoms", "energies and forces"


def measure_cost(
    suite: Suite, models: Sequence[str], results: Path, *, dtype: str, console: Console
) -> None:
    """Time each model, random weights, in a process of its own, and add rows to the results.

    Args:
        suite: ``cost``.
        models: presets; the suite's choice if empty.
        results: folder of the results.
        dtype: "float32" or "float64".
        console: where to report.

    Raises:
        ConfigError: an unknown preset.
        MeasurementError: a process failed.
    """
    system, here = system_of_size(27), machine()
    threads = torch.get_num_threads()
    for model in models or suite.models:
        case = Case(system, preset_config(model), model, system.species)
        job = case.job("energy_forces", dtype, threads, {"min_seconds": 3.0})
        found = run_job(OURS, job)
        seconds = found["timing"]["seconds"]
        row = Row(
            suite=suite.name,
            task=TASK,
            model=model,
            seed=0,
            recipe="random weights",
            # times of two machines stand side by side: one does not replace the other
            settings=(f"dtype={dtype}", f"threads={threads}", f"cpu={here['cpu']}"),
            n_parameters=found["n_parameters"],
            n_train=0,
            n_valid=0,
            seconds=round(sum(seconds), 3),
            finished=True,
            tests={TEST: {"n": len(seconds), "seconds": median(seconds)}},
            machine=here,
            versions=found["versions"],
            date=datetime.now().astimezone().isoformat(timespec="seconds"),
        )
        add_row(results_file(results, suite.name), row)
        console.print(f"{model}: {1000 * median(seconds):.2f} ms", highlight=False)
