"""How many CPU threads a run takes: given, or found by timing its own gradient."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from clebsch.data.loader import Batch, BatchSampler
from clebsch.training.config import Config
from clebsch.training.loss import loss_sums, trained_outputs
from clebsch.training.prepare import Prepared, Say

#: More threads must be faster by this factor, or they are not worth the cores.
WORTHWHILE = 1.1
#: Gradients timed for each number of threads; the median counts.
REPETITIONS = 3


def with_threads(config: Config, prepared: Prepared, say: Say) -> Config:
    """The configuration with ``threads`` a number.

    Small batches are slower on many threads than on one, and no rule of thumb holds for all
    machines: the gradient of a batch is timed on 1, 2, 4, ... threads, up to as many as torch
    would take, until more of them stop paying. The number is kept in the run's configuration,
    since sums are ordered by it and a resumed run must repeat them exactly.
    """
    if config.threads != "auto":
        return config
    most = torch.get_num_threads()
    if config.device != "cpu" or most == 1:
        return config.model_copy(update={"threads": most})
    size, edges = config.training.batch_size, config.training.batch_edges
    indices = BatchSampler(prepared.train.n_edges, size, edges, config.seed).epoch(0)[0]
    batch = prepared.train.batch(indices)
    best, best_seconds, tried = 1, _seconds(config, prepared, batch, 1), 2
    while tried <= most:
        seconds = _seconds(config, prepared, batch, tried)
        if seconds * WORTHWHILE > best_seconds:
            break
        best, best_seconds = tried, seconds
        tried = most if tried < most < 2 * tried else 2 * tried
    say(f"Threads: {best} of {most}, {1000 * best_seconds:.0f} ms a step")
    return config.model_copy(update={"threads": best})


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Torch and the CPU kernels take so many threads while the context lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(config: Config, prepared: Prepared, batch: Batch, number: int) -> float:
    """Median time of a gradient, after one that is not counted."""
    outputs = trained_outputs(batch.labels, config.training.loss) or ("energy",)
    parameters = list(prepared.potential.model.parameters())
    times = []
    with threads(number):
        for _ in range(1 + REPETITIONS):
            begun = time.perf_counter()
            prediction = prepared.potential(batch.graph, outputs, differentiable=True)
            loss = loss_sums(prediction, batch, config.training.loss).loss(config.training.loss)
            if isinstance(loss, torch.Tensor):
                torch.autograd.grad(loss, parameters, allow_unused=True)
            times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])
