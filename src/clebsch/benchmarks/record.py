"""A run's results as JSON and as a table."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from clebsch.benchmarks.compare import Row, memory, pairs, ratios
from clebsch.benchmarks.jobs import OURS
from clebsch.files import atomic_write
from clebsch.processor import processor_name, usable_cores

FORMAT = "clebsch-bench"
FORMAT_VERSION = 1
#: Written into every file, so that nobody need guess.
NOTES = (
    "Each round of a measurement is a process of its own; contenders take turns, one at a time. "
    "The neighbour graph is built before the timed calls. energy_forces: energies and forces. "
    "step: gradients set to zero, energies and forces, loss on both, its gradient, AMSGrad. "
    "Ours is replayed from a recording, as in runs of more than twenty calls. "
    "force_error: largest difference of a force component to the exact potential, eV/Angstrom. "
    "Times in seconds, memory in MiB. peak_mib: highest resident memory of the process from its "
    "first call on; peak_above_mib: minus what it held before; device_...: the same of a GPU's "
    "memory, as far as torch allots it. On a GPU a call ends when the device is done. "
    "cpu_per_wall: processor time of all threads over wall time. "
    "Ratios: peer over ours, paired round by round. "
    "mace-torch without cuequivariance has the full table of product couplings, "
    "which spans the functions of the reduced one with more weights (n_parameters)."
)
_MODES = {"energy_forces": "E + F", "step": "step"}


def record(rows: Sequence[Row], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything about a run, for JSON.

    Args:
        rows: the measurements; rounds that are still to come are missing in them.
        settings: what was asked for: dtype, threads, rounds, the matrix product's rate.
    """
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "notes": NOTES,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": machine() | gpu(settings.get("device", "cpu")),
        "versions": _versions(rows),
        **settings,
        "results": [_result(row) for row in rows if row.results],
        "ratios": _all_ratios(rows),
    }


def write_record(path: Path, rows: Sequence[Row], settings: Mapping[str, Any]) -> None:
    """Write ``record`` as JSON.

    Raises:
        OSError: the file cannot be written.
    """
    atomic_write(path, json.dumps(record(rows, settings), indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, system."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": processor_name(),
        "cores": usable_cores(),
        "memory_gib": round(pages / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


@cache
def gpu(device: str) -> dict[str, Any]:
    """A CUDA device and its driver, CUDA and Triton, memory in GiB; nothing of other devices."""
    if torch.device(device).type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
    }


def _driver() -> str | None:
    """The version of NVIDIA's driver, or None if it does not tell."""
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.splitlines()[0].strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _versions(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """By contender: its own version and that of its torch."""
    return {row.contender: row.done[0]["versions"] for row in rows if row.done}


def _result(row: Row) -> dict[str, Any]:
    one = row.done[0] if row.done else {}
    return {
        "system": row.case.system.name,
        "model": row.case.name,
        "config": row.case.config.model_dump(mode="json"),
        "mode": row.mode,
        "contender": row.contender,
        "n_atoms": row.case.system.n_atoms,
        "n_edges": one.get("n_edges"),
        "n_parameters": one.get("n_parameters"),
        "backend": one.get("backend"),
        "force_error": one.get("force_error"),
        "summary": row.summary(),
        "rounds": [None if r is None else r["timing"] for r in row.results],
        "error": row.error,
    }


def _all_ratios(rows: Sequence[Row]) -> list[dict[str, Any]]:
    found = []
    for ours, theirs in pairs([row for row in rows if row.results], OURS.name):
        if len(ours.results) != len(theirs.results):
            continue  # a run that was cut off within a round
        case = {"system": ours.case.system.name, "model": ours.case.name, "mode": ours.mode}
        found.append({**case, "contender": theirs.contender, "ratio": ratios(ours, theirs)})
    return found


def results_table(rows: Sequence[Row]) -> Table:
    """Medians with quartiles, time and memory per atom, and ratios to ours."""
    table = Table("system", "atoms", "edges", "model", "what", "who")
    for name in ("ms", "quartiles", "min to max", "µs/atom", "peak MiB", "KiB/atom", "x ours"):
        table.add_column(name, justify="right")
    ratio_of = {id(theirs): ratios(ours, theirs) for ours, theirs in pairs(rows, OURS.name)}
    last = None
    for row in rows:
        if last is not None and row.case is not last:
            table.add_section()
        last = row.case
        table.add_row(*_cells(row, ratio_of.get(id(row))))
    return table


def _cells(row: Row, ratio: Mapping[str, Any] | None) -> list[str]:
    system = row.case.system
    edges = str(row.done[0]["n_edges"]) if row.done else ""
    cells = [system.name, str(system.n_atoms), edges, row.case.name]
    cells += [_MODES[row.mode], row.contender]
    error = row.done[0].get("force_error") if row.done else None
    if error is not None:
        cells[-1] += f" (forces to {error:.0e} eV/Å)"
    summary = row.summary()
    if summary is None:
        return [*cells, "failed"]
    times = {key: _ms(value) for key, value in summary.items() if key not in ("calls",)}
    peak, above = memory(summary)
    return [
        *cells,
        times["median"],
        f"{times['lower_quartile']} - {times['upper_quartile']}",
        f"{times['min']} - {times['max']}",
        f"{summary['us_per_atom']:.0f}",
        "" if peak is None else f"{peak:.0f}",
        "" if above is None else f"{1024 * above / system.n_atoms:.0f}",
        "" if ratio is None else _spread(ratio),
    ]


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return ""
    milliseconds = 1e3 * seconds
    return f"{milliseconds:.2f}" if milliseconds < 10 else f"{milliseconds:.0f}"


def _spread(ratio: Mapping[str, Any]) -> str:
    low, high = ratio["time_min"], ratio["time_max"]
    spread = "" if low == high else f" ({low:.2f} - {high:.2f})"
    return f"{ratio['time']:.2f}{spread}"
