"""Training from a configuration to a model file, and going on where a run was cut off."""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import ValidationError
from rich.console import Console

from clebsch.errors import ClebschError, ConfigError, ModelFileError
from clebsch.files import remove_unfinished
from clebsch.interrupt import StopRequest, stop_on_signals
from clebsch.modelfile import read_potential
from clebsch.models.section import message_of
from clebsch.processor import torch_threads
from clebsch.rounding import allow_tf32
from clebsch.training.config import Config, TrainingConfig
from clebsch.training.configfile import config_dict, differences, load_run, write_config
from clebsch.training.fit_run import FitResult, run_fit
from clebsch.training.fit_state import fit_state_file, read_fit_state
from clebsch.training.log import RunLog
from clebsch.training.parallelism import with_parallelism
from clebsch.training.prepare import prepare
from clebsch.training.state import (
    Finished,
    TrainingState,
    read_newest_state,
    state_files,
    state_folder,
)
from clebsch.training.trainer import Trainer

Reason = Finished | Literal["interrupted", "fitted"]

#: Settings that may change when a run is resumed.
_FREE = {"fit.checkpoint_minutes"} | {
    f"training.{name}"
    for name in (
        "max_epochs",
        "max_minutes",
        "patience",
        "checkpoint_minutes",
        "checkpoint_steps",
    )
}


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        run: its folder.
        reason: "epochs", "minutes" or "patience" ended it, or it was "interrupted", or "fitted"
            in closed form.
        epoch: epochs completed.
        step: batches done.
        seconds: wall time, earlier parts included.
        best: the line of metrics.jsonl that belongs to the model; None without an evaluation.
        model: the model file; None without an evaluation.
    """

    run: Path
    reason: Reason
    epoch: int
    step: int
    seconds: float
    best: dict[str, Any] | None
    model: Path | None


def train(
    config: Config,
    run: Path | str | None = None,
    console: Console | None = None,
    *,
    until: float | None = None,
) -> TrainingResult:
    """Train a potential, or fit it in closed form; all results are in the folder ``run``.

    config.yaml (as resolved), metrics.jsonl (a line an evaluation), model.safetensors (the best
    averaged weights so far), state/ (from which ``resume`` goes on exactly) and log.txt. Ctrl-C
    and SIGTERM save the state and end the run.

    Args:
        config: see ``clebsch.training.config``.
        run: the folder; ``config.run`` if None.
        console: where to report; nowhere if None.
        until: ``time.monotonic()`` at which to save the state and end, as Ctrl-C does.

    Raises:
        ConfigError: the folder holds a run already, or another process trains in it, or the
            configuration does not fit the data.
        DataError: the data are not what they should be.
        ClebschError: training went wrong, or no step could be taken, or the disk is full.
    """
    started = time.monotonic()
    run = config.run if run is None else Path(run).absolute()
    config = config.model_copy(update={"run": run})
    with _locked(run):
        if holds_a_run(run):
            raise ConfigError(
                f"{run} holds a run already: continue it with clebsch resume {run}, or choose "
                "another folder with run=FOLDER"
            )
        (run / "metrics.jsonl").unlink(missing_ok=True)
        log = RunLog(run, console)
        prepared = prepare(config, log.say)
        if config.is_linear:
            return _fit_result(run, run_fit(config, prepared, run, log, started, until=until))
        config = with_parallelism(config, prepared, log.say)
        trainer = Trainer(config, prepared, run, log, started)
        if config.initial is not None:
            trainer.evaluate()  # what training starts from may stay the best
        # in this order: where there is a state, there is what to resume it with
        write_config(config, run / "config.yaml")
        trainer.checkpoint()
        return _train(trainer, log, until)


def resume(
    run: Path | str,
    console: Console | None = None,
    *,
    max_epochs: int | None = None,
    max_minutes: float | None = None,
    until: float | None = None,
) -> TrainingResult:
    """Go on with a run that was cut off, as if it had not been.

    On the CPU and without a limit in minutes the weights are then bit for bit those of a run that
    was never interrupted.

    Args:
        run: its folder.
        console: where to report; nowhere if None.
        max_epochs: new limits in place of the old ones, counted from the run's first beginning. A
            schedule over the whole budget is then stretched.
        max_minutes: likewise.
        until: ``time.monotonic()`` at which to save the state and end, as Ctrl-C does.

    Raises:
        ConfigError: config.yaml is missing, or was changed in a way that would change the run, or
            another process trains in the folder.
        ModelFileError: no state can be trusted, or the data have changed.
    """
    started = time.monotonic()
    run = Path(run).absolute()
    config = load_run(run).model_copy(update={"run": run})
    new_limits = max_epochs is not None or max_minutes is not None
    if config.is_linear:
        if new_limits:
            raise ConfigError(f"{run}: a fit in closed form has no limits; resume it without")
        return _resume_fit(config, RunLog(run, console), started, until)
    if new_limits:
        limits = {"max_epochs": max_epochs, "max_minutes": max_minutes}
        config = config.model_copy(update={"training": _with_limits(config.training, limits)})
    with _locked(run):
        log = RunLog(run, console)
        state, tensors, losses = read_newest_state(run)
        for loss in losses:
            log.say(loss)
        _check_unchanged(config, state.config)
        finished = None if new_limits else state.finished
        if finished is not None:
            _refuse_untrained(run, state)
            log.say(
                f"{run} is finished ({finished}); give new limits to train longer "
                "(--max-epochs, --max-minutes)."
            )
            if state.best is None:
                log.say(_no_model(config.training.metric))
            if state.best is None or _is_sound(run / "model.safetensors"):
                return _result(run, state, finished)
        prepared = prepare(config, log.say)
        config = with_parallelism(config, prepared, log.say)
        trainer = Trainer(config, prepared, run, log, started)
        trainer.restore(state, tensors)
        if finished is not None:
            trainer.write_model()
            log.say(f"The model's file was lost or damaged; it was written again: {run}")
            return _result(run, state, finished)
        if state.finished is not None:
            state.finished, state.waited = None, 0
        write_config(config, run / "config.yaml")
        log.say(f"Resuming at step {state.step}, epoch {state.epoch + 1}.")
        return _train(trainer, log, until)


def holds_a_run(run: Path) -> bool:
    """Whether anything would be lost by beginning anew.

    Configuration and history without state and model are left by a run that was killed at its
    start.
    """
    kept = (fit_state_file(run), run / "model.safetensors")
    return bool(state_files(run)) or any(path.exists() for path in kept)


def _resume_fit(config: Config, log: RunLog, started: float, until: float | None) -> TrainingResult:
    """Go on with a fit in closed form; one that is finished stays as it is."""
    run = config.run
    with _locked(run):
        if (run / "model.safetensors").exists():
            log.say(f"{run} is finished: its model is fitted.")
            (line,) = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            record = json.loads(line)
            result = FitResult(record["seconds"], record, run / "model.safetensors")
            return _fit_result(run, result)
        saved = None  # a fit that was killed between its line and its model may have had no state
        if fit_state_file(run).exists() or not (run / "metrics.jsonl").exists():
            saved = read_fit_state(run)
            _check_unchanged(config, saved[0].config)
        prepared = prepare(config, log.say)
        return _fit_result(run, run_fit(config, prepared, run, log, started, saved, until))


def _fit_result(run: Path, result: FitResult) -> TrainingResult:
    reason: Reason = "interrupted" if result.model is None else "fitted"
    done = int(result.model is not None)
    return TrainingResult(run, reason, done, done, result.seconds, result.record, result.model)


def _train(trainer: Trainer, log: RunLog, until: float | None) -> TrainingResult:
    """Run the loop and leave everything on disk, whatever ends it."""
    try:
        if trainer.config.tensorboard:
            log.open_tensorboard(trainer.state.step)
        config = trainer.config
        assert isinstance(config.threads, int)
        # Whatever lives now lives until the end: no need to look through it for garbage.
        gc.freeze()
        with (
            torch_threads(config.threads),
            allow_tf32(config.tf32),
            trainer.helpers,
            stop_on_signals(until) as request,
        ):
            with log.progress():
                reason: Finished | Literal["interrupted"] = _loop(trainer, request)
            state = trainer.state
            if reason != "interrupted":
                if state.last_evaluation != state.step:
                    trainer.evaluate()
                trainer.calibrate()
                trainer.write_model()  # before a state that says that nothing is left to do
                state.finished = reason
            trainer.checkpoint()
            if reason != "interrupted":
                _refuse_untrained(trainer.run, state)
    except ClebschError:
        trainer.write_model()
        raise
    except KeyboardInterrupt:
        log.say(f"Stopped at once: clebsch resume {trainer.run} goes on from the last saved state.")
        raise
    finally:
        gc.unfreeze()
        log.close()
    result = _result(trainer.run, state, reason)
    _say_end(result, trainer, log)
    return result


def _refuse_untrained(run: Path, state: TrainingState) -> None:
    """A finished run whose weights are still those that it began with is no success.

    Raises:
        ClebschError: it is one.
    """
    if not state.step:
        raise ClebschError(
            f"{run}: no step was taken within training.max_minutes, which count from the "
            "beginning: reading data and compiling kernels take time, too. "
            f"clebsch resume {run} --max-minutes N goes on"
        )
    if not state.average_updates:
        raise ClebschError(
            f"{run}: no weight was changed: of every batch the loss or the gradient was not finite "
            "(see the log). clebsch check may tell which structures are to blame"
        )


def _is_sound(path: Path) -> bool:
    """Whether a model can be read."""
    try:
        read_potential(path)
    except ModelFileError:
        return False
    return True


def _loop(trainer: Trainer, request: StopRequest) -> Finished | Literal["interrupted"]:
    """Train until a limit is reached; the state then is between two batches."""
    settings, state = trainer.settings, trainer.state
    begun, first = time.monotonic(), None
    while True:
        if settings.max_epochs is not None and state.epoch >= settings.max_epochs:
            return "epochs"
        if settings.patience is not None and state.waited >= settings.patience:
            return "patience"
        batches = trainer.sampler.epoch(state.epoch)
        while state.position < len(batches):
            if request.received:
                return "interrupted"
            if settings.max_minutes is not None and trainer.seconds >= 60 * settings.max_minutes:
                return "minutes"
            progress = trainer.progress(len(batches))
            first = progress if first is None else first
            trainer.log.advance(
                f"epoch {state.epoch + 1}", progress, _time_left(begun, first, progress)
            )
            if state.position + 1 < len(batches):
                trainer.prefetch(batches[state.position + 1])
            trainer.step(batches[state.position], progress)
            state.position += 1
            state.step += 1
            trainer.checkpoint_if_due()
        state.epoch += 1
        state.position = 0
        if state.epoch % settings.eval_every == 0:
            trainer.evaluate()


def _time_left(begun: float, first: float, progress: float) -> float | None:
    """Seconds to the end of the budget, at the pace since the loop began."""
    done = progress - first
    return None if done <= 0 else (time.monotonic() - begun) * (1 - progress) / done


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Lock a run's folder, made if need be, for this process; errors of the disk become ours.

    The system releases the lock when a process ends, however it ends.

    Raises:
        ConfigError: another process holds the lock, or there can be no such folder.
        ClebschError: the disk refuses something within.
    """
    lock, is_new = FileLock(run / ".lock"), not run.exists()
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{run}: another process is training there; wait for it or stop it, or choose another "
            "folder with run=FOLDER"
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{run}: cannot be the folder of a run ({reason})") from error
    try:
        for folder in (run, state_folder(run)):
            remove_unfinished(folder, ".safetensors")
        yield
    except OSError as error:
        again = (
            f"States saved before are unchanged; when this is mended, go on with "
            f"clebsch resume {run}"
            if holds_a_run(run)
            else "Nothing was saved yet; when this is mended, train again"
        )
        raise ClebschError(
            f"{error.filename or run}: {error.strerror or error}. {again}"
        ) from error
    finally:
        if is_new and {path.name for path in run.iterdir()} <= {".lock", "log.txt"}:
            shutil.rmtree(run)  # refused before anything was done
        lock.release()


def _with_limits(settings: TrainingConfig, limits: dict[str, Any]) -> TrainingConfig:
    try:
        return TrainingConfig.model_validate(settings.model_dump() | limits)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(("training", *map(str, problem["loc"])))
        raise ConfigError(
            f"new limits: {name}: {message_of(problem)} (got {problem['input']!r})"
        ) from None


def _check_unchanged(config: Config, began: dict[str, Any]) -> None:
    """Refuse settings with which the run would not be the same.

    Raises:
        ConfigError: names the first such setting.
    """
    now = config_dict(config)
    trained = ("replay", "recipe", "training", "fit", "seed", "dtype")
    for section in ("data", "model", "initial", *trained):
        for key, new, old in differences(section, now.get(section), began.get(section)):
            other_files = section == "data" and not key.startswith("data.references")
            if key in _FREE or other_files or key.startswith("replay.structures"):
                continue  # other data are found by their fingerprint
            raise ConfigError(
                f"{config.run / 'config.yaml'}: {key} is {new!r}, but the run began with {old!r}; "
                "put it back, or start a new run"
            )


def _result(run: Path, state: TrainingState, reason: Reason) -> TrainingResult:
    return TrainingResult(
        run=run,
        reason=reason,
        epoch=state.epoch,
        step=state.step,
        seconds=state.seconds,
        best=state.best,
        model=None if state.best is None else run / "model.safetensors",
    )


def _say_end(result: TrainingResult, trainer: Trainer, log: RunLog) -> None:
    if result.reason == "interrupted":
        log.say(f"Interrupted; saved. Go on with: clebsch resume {result.run}")
    else:
        ends = {
            "epochs": "all epochs are done",
            "minutes": "the time is up",
            "patience": "no better model for a while (training.patience)",
        }
        log.say(f"Finished: {ends[result.reason]}.")
        if result.model is None:
            log.say(_no_model(trainer.settings.metric))
    if result.best is not None:
        metric = trainer.settings.metric
        value = f"{result.best['valid'][metric]:.5g}" + ("" if metric == "loss" else " (eV, Å)")
        log.say(f"Best model: epoch {result.best['epoch']}, {metric} {value}; {result.model}")
        if "replay" in result.best:
            kept = result.best["replay"]
            log.say(
                "Off the initial model on replayed structures that were held out: "
                f"{1000 * kept['energy_per_atom_rmse']:.3g} meV/atom, "
                f"{1000 * kept['forces_rmse']:.3g} meV/Å (RMSE)"
            )


def _no_model(metric: str) -> str:
    return (
        f"No model was kept: {metric} (training.metric) was not finite in any evaluation. Lower "
        "training.lr, or check the structures with clebsch check."
    )
