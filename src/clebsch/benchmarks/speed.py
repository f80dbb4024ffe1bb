"""Our side of a measurement, in a process of its own: ``python -m clebsch.benchmarks.speed``.

Reads a job (``clebsch.benchmarks.jobs``) as JSON from standard input and prints its result as the
last line of standard output. The graph is built before the first call: neighbours are not timed,
neither here nor in the peers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

import clebsch
import clebsch.repeats
import clebsch.replay
from clebsch.benchmarks.timing import accelerator, limit_memory, measure
from clebsch.data.frame import Frame
from clebsch.data.loader import LabelledGraphs
from clebsch.factory import assemble
from clebsch.modelfile import load
from clebsch.models.presets import model_config
from clebsch.potential import Potential
from clebsch.training.config import TrainingConfig
from clebsch.training.loss import loss_sums, trained_outputs
from clebsch.training.optimizer import make_optimizer

#: Loss and optimiser of every measured step; so small a rate leaves the weights sane.
_TRAINING = TrainingConfig(schedule="constant", lr=1e-6, batch_size=1, max_epochs=1)


def main() -> None:
    """Standard input to standard output."""
    job = json.load(sys.stdin)
    # What long runs come to; warm-up calls pay for it.
    clebsch.repeats.RECORD_AFTER, clebsch.replay.CAPTURE_AT = 0, 1
    limit_memory(job["device"])
    torch.set_num_threads(job["threads"])
    print(json.dumps(measure_job(job)))


def measure_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Measure in this process.

    Returns:
        n_atoms, n_edges, n_parameters, backend, force_error (the largest of tabulated path weights,
        eV/Angstrom; else None), versions and timing (``timing.measure``).
    """
    potential = _potential(job)
    frames = [frame_of(structure) for structure in job["structures"]]
    force_error = None
    if job.get("tabulated"):
        exact, potential = potential, potential.tabulated()
        force_error = largest_force_error(exact, potential, frames)
    if job["mode"] == "step":
        call = training_step(potential, frames)
    else:
        call = energy_forces(potential, frames)
    graph = potential.graph(frames)
    return {
        "n_atoms": graph.n_atoms,
        "n_edges": graph.n_edges,
        "n_parameters": sum(p.numel() for p in potential.model.parameters()),
        "backend": potential.backend,
        "force_error": force_error,
        "versions": {"clebsch": clebsch.__version__, "torch": torch.__version__},
        "timing": measure(call, **job["timing"], device=accelerator(torch, job["device"])),
    }


def largest_force_error(exact: Potential, tabulated: Potential, frames: Sequence[Frame]) -> float:
    """The largest difference of a force component, eV/Angstrom."""
    graph = exact.graph(frames)
    there, here = exact(graph).forces, tabulated(graph).forces
    assert there is not None
    assert here is not None
    return float((here - there).abs().max())


def _potential(job: Mapping[str, Any]) -> Potential:
    dtype = getattr(torch, job["dtype"])
    if job["model"] is not None:
        return load(job["model"], dtype=dtype, device=job["device"])
    potential = assemble(
        model_config(job["architecture"]),
        [chemical_symbols[number] for number in job["species"]],
        avg_num_neighbors=job["avg_num_neighbors"],
        dtype=dtype,
    )
    return potential.to(job["device"]).use_backend()


def frame_of(structure: Mapping[str, Any]) -> Frame:
    """With zero energy and forces as labels."""
    numbers = np.array(structure["numbers"])
    return Frame(
        numbers=numbers,
        positions=np.array(structure["positions"], dtype=float),
        cell=np.array(structure["cell"], dtype=float),
        pbc=np.array(structure["pbc"]),
        energy=0.0,
        forces=np.zeros((len(numbers), 3)),
    )


def energy_forces(potential: Potential, frames: Sequence[Frame]) -> Callable[[], object]:
    """Energy and forces, as the calculator asks for them."""
    graph = potential.graph(frames)
    return lambda: potential(graph, ("energy", "forces"))


def training_step(potential: Potential, frames: Sequence[Frame]) -> Callable[[], object]:
    """A step as training does it: loss on energies and forces, its gradient, AMSGrad."""
    graphs = LabelledGraphs(potential, frames)
    batch = graphs.batch(range(len(frames))).to(potential.device)
    potential.requires_grad_(True)  # one that was loaded is frozen
    optimizer = make_optimizer(potential, _TRAINING)
    outputs = trained_outputs(batch.counts, _TRAINING.loss)

    def step() -> None:
        optimizer.zero_grad()
        prediction = potential(batch.graph, outputs, differentiable=True)
        loss = loss_sums(prediction, batch, _TRAINING.loss).loss(_TRAINING.loss)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
