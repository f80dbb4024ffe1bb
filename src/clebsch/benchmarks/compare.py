"""Measurements that take turns, their summaries, and ratios paired within one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clebsch.benchmarks.jobs import Case, Contender, MeasurementError, Mode, run_job
from clebsch.benchmarks.structures import System, copper, paper_systems, system_of_size
from clebsch.models.config import MessagePassingConfig, UpdateConfig

#: The four rows of the published comparison and a larger crystal: system, channels, L.
_PAPER_ROWS = (
    ("5 x 3BPA", 256, 2),
    ("5 x 3BPA", 256, 0),
    ("Si 216", 128, 1),
    ("Si 216", 128, 0),
    ("Si 1000", 128, 1),
)

#: Called before every measurement with what it is, how many are done, and how many there are.
Progress = Callable[[str, int, int], None]


@dataclass
class Row:
    """One contender on one case in one mode, over all rounds.

    Attributes:
        case: system and model.
        mode: energies and forces, or a training step.
        contender: who.
        results: what the process of each round gave; None where it failed.
        error: why the last one that failed did, or None.
    """

    case: Case
    mode: Mode
    contender: str
    results: list[dict[str, Any] | None] = field(default_factory=list)
    error: str | None = None

    @property
    def done(self) -> list[dict[str, Any]]:
        """Results of the rounds that did not fail."""
        return [result for result in self.results if result is not None]

    @property
    def round_medians(self) -> list[float | None]:
        """Median time of a call in each round, s; None where it failed."""
        return [
            None if result is None else statistics.median(result["timing"]["seconds"])
            for result in self.results
        ]

    def summary(self) -> dict[str, Any] | None:
        """Times of all rounds' calls together in s, peak memory in MiB; None without any.

        Memory "above" is the highest peak over what the process, or of the device torch, held
        before the first call.
        """
        if not self.done:
            return None
        seconds = [s for result in self.done for s in result["timing"]["seconds"]]
        low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
        return {
            "calls": len(seconds),
            "median": median,
            "min": min(seconds),
            "lower_quartile": low,
            "upper_quartile": high,
            "max": max(seconds),
            "us_per_atom": 1e6 * median / self.case.system.n_atoms,
            **self._memory(""),
            **self._memory("device_"),
        }

    def _memory(self, where: str) -> dict[str, float | None]:
        """Peaks over all rounds, of the process or the device."""
        timings = [result["timing"] for result in self.done]
        known = [
            (timing[f"{where}peak_mib"], timing[f"{where}baseline_mib"])
            for timing in timings
            if timing[f"{where}peak_mib"] is not None
        ]
        return {
            f"{where}peak_mib": max((peak for peak, _ in known), default=None),
            f"{where}peak_above_mib": max((peak - base for peak, base in known), default=None),
        }


def paper_cases() -> list[Case]:
    """The published architecture with residual first layer, on molecules and silicon."""
    systems = paper_systems()
    return [_published(systems[name], channels, degree) for name, channels, degree in _PAPER_ROWS]


def gpu_cases() -> list[Case]:
    """What is compared on GPUs, most important first.

    The paper's model on one molecule and on a batch of five; silicon from 1000 to 50 000 atoms;
    3000 atoms of copper with about 160 000 edges.
    """
    return [
        _published(system_of_size(27), 256, 2),
        _published(system_of_size(135), 256, 2),
        _published(system_of_size(1000), 128, 1),
        _published(System("Cu 3000", (copper(),)), 128, 2, cutoff=5.4),
        _published(system_of_size(10_000), 128, 1),
        _published(system_of_size(50_000), 128, 1),
    ]


def _published(system: System, channels: int, message_l: int, cutoff: float = 5.0) -> Case:
    config = MessagePassingConfig(
        channels=channels,
        message_l=message_l,
        cutoff=cutoff,
        update=UpdateConfig(first_layer="residual"),
    )
    return Case(system, config, f"{channels}x{config.messages}", system.species)


def measure_all(
    cases: Sequence[Case],
    contenders: Sequence[Contender],
    *,
    modes: Sequence[Mode],
    dtype: str,
    threads: int,
    rounds: int,
    timing: Mapping[str, Any],
    progress: Progress,
    save: Callable[[Sequence[Row]], None],
    device: str = "cpu",
    seconds_left: Callable[[], float | None] = lambda: None,
) -> list[Row]:
    """Measure every contender on every case, one process at a time, in turns.

    Within a round each case is measured by all contenders in a row, so that what they are compared
    on happens within minutes; every round begins with another one. A contender that lacks settings
    of a model is left out there.

    Args:
        cases: models on systems.
        contenders: who.
        modes: what is timed.
        dtype: "float32" or "float64".
        threads: of the CPU.
        rounds: how often each measurement is repeated in a new process.
        timing: arguments of ``clebsch.benchmarks.timing.measure``.
        progress: called before every measurement.
        save: called after every measurement with all rows so far.
        device: where models and structures lie.
        seconds_left: asked before every measurement how long it may take; None for no limit.
    """
    rows = {
        (i, mode, one.name): Row(case, mode, one.name)
        for i, case in enumerate(cases)
        for mode in modes
        for one in contenders
        if mode in one.modes and not one.lacks(case.config)
    }
    done, total = 0, rounds * len(rows)
    for turn in range(rounds):
        first = turn % len(contenders)
        order = [*contenders[first:], *contenders[:first]]
        for i, case in enumerate(cases):
            for mode in modes:
                job = case.job(mode, dtype, threads, timing, device)
                for contender in order:
                    if (i, mode, contender.name) not in rows:
                        continue
                    progress(f"{case.system.name}, {case.name}: {contender.name}", done, total)
                    _measure(rows[i, mode, contender.name], contender, job, seconds_left())
                    save(list(rows.values()))
                    done += 1
    return list(rows.values())


def _measure(row: Row, contender: Contender, job: Mapping[str, Any], limit: float | None) -> None:
    try:
        row.results.append(run_job(contender, job, limit))
    except MeasurementError as error:
        row.results.append(None)
        row.error = str(error)


def memory(summary: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Peak and peak above what was held before, MiB: the device's where there is one."""
    where = "" if summary["device_peak_mib"] is None else "device_"
    return summary[f"{where}peak_mib"], summary[f"{where}peak_above_mib"]


def ratios(ours: Row, theirs: Row) -> dict[str, Any] | None:
    """How many times as long theirs takes and as much memory: median and range over rounds.

    Times are paired round by round. None if no round has both.
    """
    pairs = [
        (mine, other)
        for mine, other in zip(ours.round_medians, theirs.round_medians, strict=True)
        if mine is not None and other is not None
    ]
    if not pairs:
        return None
    times = [other / mine for mine, other in pairs]
    mine, other = (memory(row.summary() or {})[1] for row in (ours, theirs))
    return {
        "time": statistics.median(times),
        "time_min": min(times),
        "time_max": max(times),
        "memory": other / mine if mine and other is not None else None,
    }


def pairs(rows: Sequence[Row], ours: str) -> list[tuple[Row, Row]]:
    """Every other contender's row with ours of the same case and mode."""
    mine = {(id(row.case), row.mode): row for row in rows if row.contender == ours}
    return [
        (mine[id(row.case), row.mode], row)
        for row in rows
        if row.contender != ours and (id(row.case), row.mode) in mine
    ]
