"""One run's moving parts: the step, the evaluation, and saving and restoring all of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clebsch.data.loader import BatchSampler, LabelledGraphs
from clebsch.data.prefetch import BatchPrefetcher
from clebsch.errors import ClebschError, ModelFileError
from clebsch.training.calibration import energy_residuals, reference_shift
from clebsch.training.config import Config
from clebsch.training.configfile import config_dict
from clebsch.training.depths import with_floor
from clebsch.training.gradient import Indices, add_gradient, divided
from clebsch.training.helpers import Helpers
from clebsch.training.log import History, RunLog
from clebsch.training.loss import LossSums
from clebsch.training.optimizer import (
    MovingAverage,
    Schedule,
    assign,
    copied,
    make_optimizer,
    swapped_in,
    trained_parameters,
)
from clebsch.training.prepare import BATCH_EDGES, Prepared
from clebsch.training.provenance import data_provenance, run_provenance
from clebsch.training.state import (
    TrainingState,
    grouped,
    named,
    optimizer_tensors,
    restore_optimizer,
    write_state,
)
from clebsch.training.validate import loss_metrics, validate

#: After so many batches in a row whose loss or gradient is not finite the run stops.
MAX_SKIPPED = 5


class Trainer:
    """A potential in training.

    Attributes:
        state: where the run stands; the loop moves its epoch and position.
        average: the averaged weights.
        helpers: processes that share in every step; they run while their context lasts.
        best: the averaged weights of the best evaluation and its references, or None before the
            first.
    """

    def __init__(
        self, config: Config, prepared: Prepared, run: Path, log: RunLog, started: float
    ) -> None:
        """``started``: ``time.monotonic()`` when the command began."""
        self.config = config
        self.settings = config.training
        self.prepared = prepared
        self.potential = prepared.potential
        self.run = run
        self.log = log
        others = [lesson.potential for lesson in prepared.lessons[1:]]
        self.parameters = trained_parameters(self.potential, *others)
        own = self.potential.state_dict().keys()
        self._others_own: dict[str, Tensor] = {
            n: p for n, p in self.parameters.items() if n not in own
        }
        self._offsets = {
            "references": self.potential.references,
            "mean_energy": self.potential.head.mean_energy,
        }
        self._stored = self.parameters | self._offsets
        self.optimizer = make_optimizer(self.potential, self.settings, *others)
        self.schedule = Schedule(self.settings)
        self.average = MovingAverage(self.parameters, self.settings.ema_decay)
        self.best: dict[str, Tensor] | None = None
        assert isinstance(config.processes, int)
        assert isinstance(config.threads, int)
        self.helpers = Helpers(
            config.processes - 1, prepared.lessons, self.settings.loss, config.threads
        )
        self._lessons, device = prepared.lessons, self.potential.device
        if device.type != "cpu":
            self._lessons = [lesson.prefetched(device) for lesson in self._lessons]
        size, edges = self.settings.batch_size, self.settings.batch_edges
        self.sampler = BatchSampler(prepared.train.n_edges, size, edges, config.seed)
        self._evaluated_edges = min(edges or BATCH_EDGES, BATCH_EDGES)
        self.valid_batches = self._in_order(prepared.valid)
        replay = prepared.replay
        self._replay_batches = [] if replay is None else self._in_order(replay.valid)
        self.history = History(run / "metrics.jsonl")
        self.state = TrainingState(fingerprint=prepared.fingerprint(), config=config_dict(config))
        self._train_sums = LossSums()
        self._started = started
        self._seconds_before = 0.0
        self._model_is_current = True
        self._data_provenance = data_provenance(config, prepared)
        self._last_checkpoint = time.monotonic()
        self._disk_failed = False

    @property
    def model_path(self) -> Path:
        """Where the best model is written."""
        return self.run / "model.safetensors"

    @property
    def seconds(self) -> float:
        """Wall time of the run, earlier parts included."""
        return self._seconds_before + time.monotonic() - self._started

    def progress(self, n_batches: int, position: int | None = None) -> float:
        """Part of the budget that is spent, 0 to 1.

        Args:
            n_batches: of the epoch.
            position: batches done in it; those of the state if None.
        """
        fractions = []
        if self.settings.max_epochs is not None:
            position = self.state.position if position is None else position
            epochs = self.state.epoch + position / n_batches
            fractions.append(epochs / self.settings.max_epochs)
        if self.settings.max_minutes is not None:
            fractions.append(self.seconds / (60 * self.settings.max_minutes))
        return min(max(fractions), 1.0)

    @property
    def frames(self) -> int:
        """Structures of the data whose loss has been differentiated, each as often as it was."""
        state = self.state
        begun = self.sampler.epoch(state.epoch)[: state.position]
        return state.epoch * len(self.prepared.train) + sum(len(batch) for batch in begun)

    # --- training ---------------------------------------------------------------------------------

    def step(self, indices: Sequence[int], progress: float) -> None:
        """Change the weights by one batch, or skip it if its loss or gradient is not finite.

        Raises:
            ClebschError: too many batches in a row were skipped; memory ran out.
        """
        self._set_lr(self.state.step, progress)
        batch = self.prepared.batch(indices, self.state.step)
        sums, finite = self._gradient(batch)
        if sums is None:
            return
        if not finite:
            self._skip(batch, self._loss(sums))
            return
        self.optimizer.step()
        self.average.update()
        self.state.skipped = 0
        self._train_sums = self._train_sums + sums[0]

    def _loss(self, sums: Sequence[LossSums]) -> float:
        """Of a batch, all lessons together."""
        config = self.settings.loss
        pairs = zip(self._lessons, sums, strict=True)
        return sum(lesson.weight * float(part.loss(config)) for lesson, part in pairs)

    def _set_lr(self, step: int, progress: float) -> None:
        lr = self.schedule.lr(step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def prefetch(self, indices: Sequence[int]) -> None:
        """Start copying the batch of the next step to the GPU, if there is one."""
        batch = self.prepared.batch(indices, self.state.step + 1)
        for lesson, part in zip(self._lessons, batch, strict=True):
            if isinstance(lesson.graphs, BatchPrefetcher):
                lesson.graphs.prefetch(part)

    def _gradient(self, batch: Indices) -> tuple[list[LossSums] | None, bool]:
        """Loss sums of each lesson (None without labels); whether loss and gradient are finite."""
        config = self.settings.loss
        n_edges = [lesson.graphs.n_edges for lesson in self._lessons]
        own, *others = divided(batch, n_edges, 1 + self.helpers.number)
        self.optimizer.zero_grad()
        self.helpers.begin(others, batch)
        found = add_gradient(self._lessons, own, batch, config)
        sums = [a + b for a, b in zip(found, self.helpers.finish(), strict=True)]
        if not any(part.n_residuals for part in sums):
            return None, True
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.settings.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(
                list(self.parameters.values()), self.settings.clip_grad_norm, norm
            )
        return sums, math.isfinite(self._loss(sums)) and bool(torch.isfinite(norm))

    def _skip(self, batch: Indices, loss: float) -> None:
        self.state.skipped += 1
        pairs = zip(self._lessons, batch, strict=True)
        names = ", ".join(lesson.graphs.frames[i].source for lesson, part in pairs for i in part)
        what = "the gradient" if math.isfinite(loss) else f"the loss ({loss})"
        message = f"Step {self.state.step}: {what} is not finite for the batch of {names}"
        if self.state.skipped < MAX_SKIPPED:
            self.log.say(f"{message}; skipped")
            return
        kept = "no model was good enough to keep"
        if self.state.best is not None:
            kept = f"the best model, of epoch {self.state.best['epoch']}, is kept"
        raise ClebschError(
            f"{message}. {MAX_SKIPPED} batches in a row: training stopped; {kept}. Check these "
            "structures with clebsch check, or lower training.lr"
        )

    def evaluate(self) -> None:
        """Judge the averaged weights, write the history, keep the best."""
        state = self.state
        replay, loss = self.prepared.replay, self.settings.loss
        with swapped_in(self.average.average, self.parameters):
            valid = validate(self.potential, self.prepared.valid, self.valid_batches, loss)
            kept = {}
            if replay is not None:
                kept = validate(replay.potential, replay.valid, self._replay_batches, loss)
        metric = self.settings.metric
        value = valid[metric]
        best = math.isfinite(value) and (state.best is None or value < state.best["valid"][metric])
        # weights of elements that no validation structure has count too: files refuse them
        best = best and all(bool(one.isfinite().all()) for one in self.average.average.values())
        record = {
            "epoch": state.epoch,
            "step": state.step,
            "frames": self.frames,
            "seconds": round(self.seconds, 3),
            "lr": self.optimizer.param_groups[0]["lr"],
            "train": loss_metrics(self._train_sums, self.settings.loss),
            "valid": valid,
            **({"replay": kept} if kept else {}),
            "best": best,
        }
        self._note(record)
        self.log.row(record)
        self.log.scalars(record)
        self.schedule.observe(valid["loss"])
        state.waited = 0 if best else state.waited + 1
        state.last_evaluation = state.step
        self._train_sums = LossSums()
        if best:
            state.best = record
            self.best = copied(self.average.average | self._offsets)
            self._model_is_current = False

    def _note(self, record: dict[str, Any]) -> None:
        """Add a line to the history; one that a full disk refuses is written before the next."""
        try:
            self.history.append(record)
        except OSError as error:
            if len(self.history.unwritten) == 1:
                self.log.say(
                    f"{self.history.path} could not be written ({error.strerror}); training goes "
                    "on, and writes the line when there is room."
                )

    def calibrate(self) -> None:
        """Fit what no force depends on once more, to what the best model says of validation.

        Networks that know few structures by heart are off by much the same energy wherever they
        have not been. Where references are fitted they have no meaning of their own, so that
        their fit may take that away; where they are lone atoms' energies they stay what they are,
        and a mean energy that belongs to every atom may. (One that follows the neighbour density
        has forces.)
        """
        head, fitted = self.potential.head, self.prepared.fitted
        if self.best is None or not (fitted or head.form == "constant"):
            return
        valid, batches = self.prepared.valid, self.valid_batches
        with swapped_in(self.best, self._stored):
            counts, residuals, weights = energy_residuals(self.potential, valid, batches)
            if fitted:
                changed, offset = "References", head.references
                free = [symbol in fitted for symbol in self.potential.species]
                shift = reference_shift(counts, residuals, weights, free)
            else:
                changed, offset = "Mean energy", head.mean_energy
                shift = reference_shift(counts.sum(1, keepdims=True), residuals, weights, [True])
            if shift is None:
                return
            offset += torch.from_numpy(shift).to(offset).reshape(offset.shape)
            self.best |= copied(self._offsets)
            found = validate(self.potential, valid, batches, self.settings.loss)
        assert self.state.best is not None
        self.state.best["calibrated"] = found
        self._model_is_current = False
        before, after = (1000 * one["energy_rmse"] for one in (self.state.best["valid"], found))
        self.log.say(
            f"{changed} fitted once more, to validation structures: energy RMSE "
            f"{before:.4g} meV before, {after:.4g} meV now."
        )

    # --- saving -----------------------------------------------------------------------------------

    def checkpoint_if_due(self) -> None:
        """Save where steps or minutes say so; the first model is saved at once.

        A disk that is full does not end the run: the message says what the newest good state is.
        """
        every = self.settings.checkpoint_steps
        due = every is not None and self.state.step % every == 0
        waited = time.monotonic() - self._last_checkpoint
        due = due or waited >= 60 * self.settings.checkpoint_minutes
        first_model = self.best is not None and not self.model_path.exists()
        due = due or (first_model and not self._disk_failed)
        if not due:
            return
        try:
            self.checkpoint()
        except OSError as error:
            self._last_checkpoint = time.monotonic()
            self._disk_failed = True
            self.log.say(
                f"The state of step {self.state.step} could not be saved ({error.strerror}); "
                "training goes on, and the states saved before are still there."
            )

    def checkpoint(self) -> None:
        """Write the history, the state, then the best model if it changed.

        Raises:
            OSError: a file cannot be written; what was there before is unchanged.
        """
        self.history.write()
        state = self.state
        state.seconds = self.seconds
        state.frames = self.frames
        state.history_lines = self.history.n_lines
        state.average_updates = self.average.updates
        state.train_sums = asdict(self._train_sums)
        state.schedule = {
            "factor": self.schedule.factor,
            "lowest": self.schedule.lowest,
            "waited": self.schedule.waited,
        }
        tensors = named(dict(self.potential.state_dict()), "potential")
        tensors |= named(self._others_own, "other")
        tensors |= named(self.average.average, "average")
        tensors |= named(self.best or {}, "best")
        tensors |= named(optimizer_tensors(self.optimizer, self.parameters), "optimizer")
        write_state(self.run, state, tensors)
        self.write_model()
        self._last_checkpoint = time.monotonic()

    def write_model(self) -> None:
        """Write the best model, unless the file has it already."""
        if self.best is None or self._model_is_current:
            return
        floor = with_floor(self.prepared, self._evaluated_edges)
        with swapped_in(self.best, self._stored), floor:
            self.potential.save(self.model_path, provenance=self._provenance())
        self._model_is_current = True

    def _in_order(self, graphs: LabelledGraphs) -> list[list[int]]:
        """Batches of structures that are judged."""
        return BatchSampler(graphs.n_edges, batch_edges=self._evaluated_edges).in_order()

    def _provenance(self) -> dict[str, Any]:
        """Of the potential as it is, with the best weights swapped in."""
        best = self.state.best
        assert best is not None
        now = dict(zip(self.potential.species, self.potential.references.tolist(), strict=True))
        references = {symbol: now[symbol] for symbol in self.prepared.references}
        return {
            **run_provenance(self.config, self._data_provenance | {"references": references}),
            "training": {key: best[key] for key in ("epoch", "step", "seconds", "lr")},
            "metrics": best.get("calibrated", best["valid"]),
            **({"replay": best["replay"]} if "replay" in best else {}),
        }

    def restore(self, state: TrainingState, tensors: dict[str, Tensor]) -> None:
        """Stand where ``checkpoint`` stood.

        Raises:
            ModelFileError: the state is of another potential or of other data.
        """
        if state.fingerprint != self.state.fingerprint:
            raise ModelFileError(
                f"{self.run}: the structures, labels or initial model are not those that the run "
                "began with, so it cannot be resumed exactly; start a new run"
            )
        try:
            self.potential.load_state_dict(grouped(tensors, "potential"))
            assign(grouped(tensors, "other"), self._others_own)
            assign(grouped(tensors, "average"), self.average.average)
        except (RuntimeError, KeyError) as error:
            raise ModelFileError(f"{self.run}: the state is of another model ({error})") from None
        restore_optimizer(self.optimizer, self.parameters, grouped(tensors, "optimizer"))
        device = self.potential.device
        best = {name: value.to(device) for name, value in grouped(tensors, "best").items()}
        self.best = best or None
        # the file may hold a model of steps that a crash has taken back
        self._model_is_current = self.best is None
        config = self.state.config
        self.state = state
        self.state.config = config
        self.average.updates = state.average_updates
        self.schedule.factor = state.schedule["factor"]
        self.schedule.lowest = state.schedule["lowest"]
        self.schedule.waited = state.schedule["waited"]
        self._train_sums = LossSums(**state.train_sums)
        self._seconds_before = state.seconds
        if state.step:  # an evaluation before the next step tells of the last one's rate
            n_batches = len(self.sampler.epoch(state.epoch))
            self._set_lr(state.step - 1, self.progress(n_batches, state.position - 1))
        missing = self.history.truncate(state.history_lines)
        if missing:
            self.log.say(f"{self.history.path}: {missing} lines of the history are missing.")
