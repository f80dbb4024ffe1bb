"""How many processes and CPU threads a run takes: given, or found by timing its own gradient."""

from __future__ import annotations

import os
import statistics
import time

import torch

from clebsch.data.loader import BatchSampler
from clebsch.errors import ConfigError
from clebsch.processor import torch_threads
from clebsch.training.config import Config
from clebsch.training.gradient import Indices, add_gradient
from clebsch.training.prepare import Prepared, Say

#: More threads must be faster by this factor, or they are not worth the cores.
WORTHWHILE = 1.1
#: Gradients timed for each number of threads; the median counts.
REPETITIONS = 3
#: Seconds that a run must last at least for helper processes, which take some to start.
LONG = 60.0


def with_parallelism(config: Config, prepared: Prepared, say: Say) -> Config:
    """The configuration with ``processes`` and ``threads`` numbers.

    Structures divide better than operations: if both are open and the run is long, there is a
    process for each core, as far as a batch has structures. What cores that leaves go to threads.
    Small structures are slower on many threads than on one, and no rule of thumb holds for all
    machines: the gradient of a process's share of a batch is timed on 1, 2, 4, ... threads, up to
    its part of those that torch would take, until more of them stop paying. Both numbers are kept
    in the run's configuration, since sums are ordered by them and a resumed run must repeat them
    exactly.

    Raises:
        ConfigError: several processes were asked for where there can be one only.
    """
    alone = config.device != "cpu" or os.name != "posix"  # helpers need its sockets
    if alone and config.processes not in ("auto", 1):
        where = f"device {config.device}" if config.device != "cpu" else "this system"
        raise ConfigError(
            f"processes: a batch can be divided on CPUs of Unix alone, not on {where}"
        )
    n_cores = torch.get_num_threads()
    if config.device != "cpu":
        threads = n_cores if config.threads == "auto" else config.threads
        return config.model_copy(update={"threads": threads, "processes": 1})
    size, edges = config.training.batch_size, config.training.batch_edges
    batches = BatchSampler(prepared.train.n_edges, size, edges, config.seed).epoch(0)
    first = prepared.batch(batches[0], 0)
    processes = config.processes
    if processes == "auto":
        most = 1 if alone or config.threads != "auto" else min(n_cores, sum(map(len, first)))
        long = most > 1 and _expected_seconds(config, prepared, first, len(batches)) >= LONG
        processes = most if long else 1
    if config.threads != "auto":
        return config.model_copy(update={"processes": processes})
    share = [indices[: -(-len(indices) // processes)] for indices in first]
    number = _fastest(config, prepared, share, n_cores // processes)
    say(f"Processes: {processes}, threads of each: {number}")
    return config.model_copy(update={"processes": processes, "threads": number})


def _expected_seconds(config: Config, prepared: Prepared, batch: Indices, n_batches: int) -> float:
    """What the run would take on one thread, or its limit."""
    limits = []
    if config.training.max_minutes is not None:
        limits.append(60 * config.training.max_minutes)
    if config.training.max_epochs is not None:
        step = _seconds(config, prepared, batch, 1)
        limits.append(step * n_batches * config.training.max_epochs)
    return min(limits)


def _fastest(config: Config, prepared: Prepared, share: Indices, most: int) -> int:
    """The number of threads for a gradient, up to ``most``; without a choice nothing is timed."""
    if most < 2:
        return 1
    best, best_seconds, tried = 1, _seconds(config, prepared, share, 1), 2
    while tried <= most:
        seconds = _seconds(config, prepared, share, tried)
        if seconds * WORTHWHILE > best_seconds:
            break
        best, best_seconds = tried, seconds
        tried = most if tried < most < 2 * tried else 2 * tried
    return best


def _seconds(config: Config, prepared: Prepared, share: Indices, number: int) -> float:
    """Median time of a gradient, after one that is not counted."""
    times = []
    with torch_threads(number):
        for _ in range(1 + REPETITIONS):
            begun = time.perf_counter()
            add_gradient(prepared.lessons, share, share, config.training.loss)
            times.append(time.perf_counter() - begun)
    for lesson in prepared.lessons:
        lesson.potential.zero_grad()
    return statistics.median(times[1:])
