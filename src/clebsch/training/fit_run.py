"""A run of a model that is fitted in closed form: the same folder as a training run leaves."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clebsch.data.loader import BatchSampler
from clebsch.training.config import Config
from clebsch.training.configfile import write_config
from clebsch.training.linear_fit import LinearFit, fit
from clebsch.training.log import History, RunLog, duration
from clebsch.training.prepare import Prepared, data_provenance, run_provenance
from clebsch.training.validate import validate

#: Edges of a batch of structures to validate on.
BATCH_EDGES = 20_000


@dataclass(frozen=True)
class FitResult:
    """What a run left.

    Attributes:
        seconds: wall time, reading the data included.
        record: the line of metrics.jsonl.
        model: the model file.
    """

    seconds: float
    record: dict[str, Any]
    model: Path


def run_fit(
    config: Config, prepared: Prepared, run: Path, log: RunLog, started: float
) -> FitResult:
    """Fit, judge on the validation structures, and write model, configuration and metrics.

    Args:
        config: with a model that is fitted in closed form.
        prepared: data and potential.
        run: the folder of results.
        log: where to report.
        started: ``time.monotonic()`` when the command began.
    """
    potential = prepared.potential.to("cpu")
    write_config(config, run / "config.yaml")

    def progress(done: int, total: int) -> None:
        elapsed = time.monotonic() - begun
        log.advance("design matrix", done / total, elapsed * (total - done) / done)

    def tell(strength: float, log_evidence: float) -> None:
        log.advance("strength of the prior", 1.0, None)
        log.say(f"  regularisation {strength:.2e}: log evidence {log_evidence:.1f}")

    begun = time.monotonic()
    with log.progress():
        fitted, _ = fit(potential, prepared.train, config.fit, config.seed, progress, tell)
    seconds = time.monotonic() - begun
    log.say(_describe(fitted, seconds))
    metrics = {}
    for name, graphs in (("train", prepared.train), ("valid", prepared.valid)):
        batches = BatchSampler(graphs.n_edges, batch_edges=BATCH_EDGES).in_order()
        metrics[name] = validate(potential, graphs, batches, config.loss)
    record: dict[str, Any] = {
        "epoch": 1,
        "step": 1,
        "seconds": round(time.monotonic() - started, 3),
        "lr": 0.0,
        **metrics,
        "best": True,
        "fit": fitted.numbers() | {"seconds": round(seconds, 3)},
    }
    History(run / "metrics.jsonl").append(record)
    for name in ("train", "valid"):
        log.say(_errors({"train": "Training", "valid": "Validation"}[name], metrics[name]))
    path = run / "model.safetensors"
    potential.save(path, provenance=_provenance(config, prepared, record))
    log.say(f"Finished: fitted in {duration(seconds)}; {path}")
    return FitResult(record["seconds"], record, path)


def _provenance(config: Config, prepared: Prepared, record: dict[str, Any]) -> dict[str, Any]:
    return {
        **run_provenance(config, data_provenance(config.data, prepared)),
        "fit": record["fit"],
        "metrics": record["valid"],
    }


def _describe(fitted: LinearFit, seconds: float) -> str:
    noises = (
        ("forces", fitted.forces_noise, "meV/Å"),
        ("energy", fitted.energy_noise, "meV per root of atoms"),
    )
    noise = ", ".join(f"{name} {1000 * v:.3g} {unit}" for name, v, unit in noises if v is not None)
    return (
        f"Fit: {fitted.n_coefficients} coefficients to {fitted.n_rows} labels in "
        f"{duration(seconds)}; regularisation {fitted.strength:.2e}, log evidence "
        f"{fitted.log_evidence:.1f}, {fitted.effective_parameters:.0f} effective parameters; "
        f"noise: {noise}"
    )


def _errors(name: str, metrics: dict[str, float]) -> str:
    shown = (
        ("energy_rmse", "energy", "meV"),
        ("energy_per_atom_rmse", "energy per atom", "meV"),
        ("forces_rmse", "forces", "meV/Å"),
        ("stress_rmse", "stress", "meV/Å³"),
    )
    errors = (f"{what} {1000 * metrics[key]:.4g} {u}" for key, what, u in shown if key in metrics)
    return f"{name} RMSE: {', '.join(errors)}"
