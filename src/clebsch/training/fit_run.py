"""A run of a model that is fitted in closed form: the same folder as a training run leaves."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clebsch.data.loader import BatchSampler
from clebsch.errors import ClebschError, ModelFileError
from clebsch.interrupt import StopRequest, stop_on_signals
from clebsch.models.ace import ACE
from clebsch.processor import torch_threads
from clebsch.training.config import Config
from clebsch.training.configfile import config_dict, write_config
from clebsch.training.depths import with_floor
from clebsch.training.design import Design
from clebsch.training.fit_state import FitState, remove_fit_state, write_fit_state
from clebsch.training.linear_fit import (
    LinearFit,
    empty_equations,
    labelled_rows,
    solve,
    weights_of_labels,
)
from clebsch.training.log import History, RunLog, duration
from clebsch.training.prepare import BATCH_EDGES, Prepared
from clebsch.training.provenance import data_provenance, run_provenance
from clebsch.training.validate import validate


@dataclass(frozen=True)
class FitResult:
    """What a run left.

    Attributes:
        seconds: wall time, reading the data and earlier parts included.
        record: the line of metrics.jsonl; None if the run was interrupted.
        model: the model file; None likewise.
    """

    seconds: float
    record: dict[str, Any] | None
    model: Path | None


class _Stopped(Exception):
    """Somebody asked the run to stop."""


def run_fit(
    config: Config,
    prepared: Prepared,
    run: Path,
    log: RunLog,
    started: float,
    saved: tuple[FitState, dict[str, Tensor]] | None = None,
    until: float | None = None,
) -> FitResult:
    """Fit, judge on the validation structures, and write model, configuration and metrics.

    Ctrl-C and SIGTERM save the equations and end the run after the structure or the strength of the
    prior at hand.

    Args:
        config: with a model that is fitted in closed form.
        prepared: data and potential.
        run: the folder of results.
        log: where to report.
        started: ``time.monotonic()`` when the command began.
        saved: the state to go on from, if any.
        until: ``time.monotonic()`` at which to save and end, as Ctrl-C does.

    Raises:
        ModelFileError: the state is of another potential or of other data.
    """
    write_config(config, run / "config.yaml")
    fit = _Fit(config, prepared, run, log, started)
    if saved is not None:
        fit.restore(*saved)
    number = torch.get_num_threads() if config.threads == "auto" else config.threads
    with torch_threads(number), stop_on_signals(until) as request:
        fit.request = request
        try:
            with log.progress():
                fit.gather()
                fitted = fit.solve()
            record = fit.judge(fitted)
        except _Stopped:
            fit.save()
            log.say(f"Interrupted; saved. Go on with: clebsch resume {run}")
            return FitResult(fit.seconds, None, None)
    history = History(run / "metrics.jsonl")
    history.truncate(0)  # a line without a model is that of a run that was cut off here
    history.append(record)
    path = run / "model.safetensors"
    try:
        with with_floor(prepared):
            fit.potential.save(path, provenance=_provenance(config, prepared, record))
    except ClebschError:
        fit.save()
        raise
    remove_fit_state(run)
    log.say(f"Finished: fitted in {duration(record['fit']['seconds'])}; {path}")
    return FitResult(record["seconds"], record, path)


class _Fit:
    """A fit under way: the equations of the first ``done`` structures, and what to do with them.

    Attributes:
        done: training structures that are in the equations.
        request: whether the run was asked to stop.
        potential: what is fitted.
    """

    def __init__(
        self, config: Config, prepared: Prepared, run: Path, log: RunLog, started: float
    ) -> None:
        self.config, self.prepared, self.run, self.log = config, prepared, run, log
        self.settings = weights_of_labels(config.fit, prepared.train.counts)
        self.potential = prepared.potential.to("cpu")
        self.equations = empty_equations(self.potential)
        assert isinstance(self.potential.model, ACE)
        # takes many seconds; here Ctrl-C acts at once, and there is nothing new to save
        self.design = Design(self.potential.model)
        self.done = 0
        self.request = StopRequest()
        self._started = started
        self._begun = self._last_save = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time since the run began, earlier parts included."""
        return time.monotonic() - self._started

    @property
    def fingerprint(self) -> str:
        """Of all that the equations are made of: references are part of what is fitted to."""
        references = {symbol: f"{e:.6f}" for symbol, e in self.prepared.references.items()}
        return self.prepared.fingerprint(references)

    def gather(self) -> None:
        """Add the structures that are missing to the equations."""
        graphs, settings = self.prepared.train, self.settings
        first, begun = self.done, time.monotonic()
        for rows in labelled_rows(self.potential, graphs, settings, first, self.design):
            self.equations.add(*rows)
            self.done += 1
            left = (time.monotonic() - begun) * (len(graphs) - self.done) / (self.done - first)
            self.log.advance("design matrix", self.done / len(graphs), left)
            self._stop_if_asked()
            if time.monotonic() - self._last_save >= 60 * settings.checkpoint_minutes:
                self._save_if_possible()

    def solve(self) -> LinearFit:
        """Find coefficients and committee."""

        def tell(strength: float, log_evidence: float) -> None:
            self.log.advance("strength of the prior", 1.0, None)
            self.log.say(f"  regularisation {strength:.2e}: log evidence {log_evidence:.1f}")
            self._stop_if_asked()

        fitted, _ = solve(self.potential, self.equations, self.settings, self.config.seed, tell)
        self._stop_if_asked()
        return fitted

    def judge(self, fitted: LinearFit) -> dict[str, Any]:
        """Errors on all data: the line of metrics.jsonl."""
        seconds = time.monotonic() - self._begun
        self.log.say(_describe(fitted, seconds))
        metrics = {}
        for name, graphs in (("train", self.prepared.train), ("valid", self.prepared.valid)):
            batches = BatchSampler(graphs.n_edges, batch_edges=BATCH_EDGES).in_order()
            metrics[name] = validate(self.potential, graphs, batches, self.config.loss)
            self._stop_if_asked()
        for name in ("train", "valid"):
            title = {"train": "Training", "valid": "Validation"}[name]
            self.log.say(_errors(title, metrics[name]))
        return {
            "epoch": 1,
            "step": 1,
            "frames": len(self.prepared.train),
            "seconds": round(self.seconds, 3),
            "lr": 0.0,
            **metrics,
            "best": True,
            "fit": fitted.numbers() | {"seconds": round(seconds, 3)},
        }

    def save(self) -> None:
        """Write the state."""
        state = FitState(self.done, self.seconds, self.fingerprint, config_dict(self.config))
        write_fit_state(self.run, state, self.equations)
        self._last_save = time.monotonic()

    def _save_if_possible(self) -> None:
        """A disk that is full does not end the fit: its equations are still there to be solved."""
        try:
            self.save()
        except OSError as error:
            self._last_save = time.monotonic()
            self.log.say(
                f"The equations of {self.done} structures could not be saved ({error.strerror}); "
                "the fit goes on."
            )

    def restore(self, state: FitState, tensors: dict[str, Tensor]) -> None:
        """Stand where ``save`` stood.

        Raises:
            ModelFileError: the state is of other data.
        """
        if state.fingerprint != self.fingerprint:
            raise ModelFileError(
                f"{self.run}: the structures, labels or reference energies are not those that the "
                "run began with, so it cannot be resumed exactly; start a new run"
            )
        self.equations.restore(tensors)
        tensors.clear()  # they are half as large as the equations
        self.done = state.done
        self._started -= state.seconds
        self._begun -= state.seconds
        self.log.say(f"Resuming after structure {self.done} of {len(self.prepared.train)}.")

    def _stop_if_asked(self) -> None:
        if self.request.received:
            raise _Stopped


def _provenance(config: Config, prepared: Prepared, record: dict[str, Any]) -> dict[str, Any]:
    return {
        **run_provenance(config, data_provenance(config, prepared)),
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
