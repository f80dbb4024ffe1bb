"""Training and judging what a suite asks for, one run after another, within a time budget."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

import clebsch
from clebsch.benchmarks.record import machine
from clebsch.data.datasets import data_set, find_files, required_files
from clebsch.errors import ConfigError
from clebsch.reproduce.judge import judge
from clebsch.reproduce.results import (
    Row,
    add_row,
    plain_settings,
    read_rows,
    results_file,
    slug,
)
from clebsch.reproduce.suites import HeldOut, Suite, Task
from clebsch.terminal import say
from clebsch.training.config import Config
from clebsch.training.configfile import config_dict, differences, load_config
from clebsch.training.log import duration
from clebsch.training.loop import TrainingResult, holds_a_run, resume, train
from clebsch.training.report import read_history
from clebsch.training.state import read_newest_state

#: Of a training's course, so many epochs are kept in its row.
CURVE_POINTS = 60

#: Parts of a configuration that say where a run is made, not what it is.
_WHERE = ("run", "device", "threads", "processes", "tensorboard")
_FILES = ("train", "valid", "isolated_atoms")
#: Keys that the suite or an option decides.
_DECIDED = {
    "run": "--runs",
    "seed": "--seeds",
    "recipe": "--recipe",
    "data": "--data and the suite",
}
#: Sections, which suite or preset would win over or which would replace them.
_SECTIONS = ("model", "training", "fit")

End = Literal["done", "time", "interrupted"]


@dataclass(frozen=True)
class Plan:
    """A training that a suite asks for.

    Attributes:
        suite, task, model, seed: which.
        recipe: of training; "fit" for a model fitted in closed form.
        settings: what was asked for beside that changes the result, ``key=value``.
        config: the whole configuration.
        files: paths of the data, by their names in the data set.
    """

    suite: Suite
    task: Task
    model: str
    seed: int
    recipe: str
    settings: tuple[str, ...]
    config: Config
    files: dict[str, Path]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.suite.name} {self.task.name}, {self.model}, seed {self.seed}"

    @property
    def key(self) -> tuple[Any, ...]:
        """As that of its rows."""
        names = (self.suite.name, self.task.name, self.model)
        return (*names, self.recipe, plain_settings(self.settings), self.seed)


def make_plans(
    suite: Suite,
    *,
    data: Path,
    runs: Path,
    models: Sequence[str] = (),
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (1,),
    recipe: str = "fast",
    settings: Sequence[str] = (),
) -> list[Plan]:
    """All trainings that are asked for, seeds outermost: a short budget gives every cell one first.

    Args:
        suite: with a data set.
        data: folder of the data set, or the one that it lies in.
        runs: where the folders of all runs are, or will be.
        models: presets or variants of the suite; the suite's choice if empty.
        tasks: the suite's if empty.
        seeds: of weights, splits and shuffles.
        recipe: "fast" or "paper".
        settings: further settings of all configurations, ``key=value``.

    Raises:
        ConfigError: an unknown model, task or setting.
        DataError: a file that is needed is missing or is not the published one.
    """
    assert suite.data is not None
    for one in settings:
        key = one.partition("=")[0]
        section = key.partition(".")[0]
        if section in _DECIDED:
            raise ConfigError(f"{one}: {_DECIDED[section]} decides that")
        if key in ("model.preset", "model.name"):
            raise ConfigError(f"{one}: --models decides that")
        if key in _SECTIONS:
            others = ", and the model itself with --models" if key == "model" else ""
            example = {"model": "model.channels=64", "training": "training.max_epochs=7"}
            raise ConfigError(
                f"{one}: is a whole section: give its keys one by one, as "
                f"{example.get(key, f'{key}.KEY=VALUE')}{others}"
            )
    chosen = [suite.task(name) for name in dict.fromkeys(tasks)] or list(suite.tasks)
    found = {task.name: _files(suite.data, task, data) for task in chosen}
    return [
        _plan(suite, task, model, seed, recipe, tuple(settings), found[task.name], runs)
        for seed in dict.fromkeys(seeds)
        for task in chosen
        for model in dict.fromkeys(models or suite.models)
    ]


def run_all(plans: Sequence[Plan], results: Path, *, until: float | None, console: Console) -> End:
    """Train and judge, and add rows to the suite's results; runs that were begun are gone on with.

    Args:
        plans: what to do, in this order. One whose finished row is among the results is only
            judged by tests that its row lacks, where their files are there now.
        results: folder of the results.
        until: ``time.monotonic()`` at which to save and stop; what the run at hand has reached is
            judged then.
        console: where to report.

    Returns:
        Why it ended: all is "done", the "time" is up, or it was "interrupted".

    Raises:
        ConfigError: a run's folder, or its finished row, is of another training than the plan's.
    """
    todo = []
    for plan in plans:
        finished = _finished_row(plan, results)
        if finished is None:
            todo.append(plan)
        elif tests := _unjudged(plan, finished):
            if until is not None and time.monotonic() >= until:
                return "time"
            _judge_further(plan, finished, tests, results, console)
    done = len(plans) - len(todo)
    if done:
        say(f"{done} of {len(plans)} runs are finished already.", console)
    for number, plan in enumerate(todo, start=done + 1):
        if until is not None and time.monotonic() >= until:
            return "time"
        if _finished_row(plan, results) is not None:
            say(f"Run {number} of {len(plans)}: {plan.name}: finished by another process", console)
            continue
        say(f"Run {number} of {len(plans)}: {plan.name}; {plan.config.run}", console)
        result = _train(plan, until, console)
        out_of_time = until is not None and time.monotonic() >= until
        if result.reason == "interrupted" and not out_of_time:
            return "interrupted"
        if result.model is not None:
            row = _row(plan, result)
            add_row(results_file(results, plan.suite.name), row)
            say(describe(row), console)
        else:
            say(f"{plan.name}: not judged yet: it has not come to its first validation", console)
        if result.reason == "interrupted":
            return "time"
    return "done"


def _finished_row(plan: Plan, results: Path) -> Row | None:
    """The finished row among the results, of this process or another; None if there is none.

    Raises:
        ConfigError: the row is of another configuration: of the suite, the recipe or the preset
            something has changed since.
    """
    file, key = results_file(results, plan.suite.name), plan.key
    rows = [row for row in read_rows(file) if row.finished and row.key == key]
    for row in rows:
        now, then = identity(plan.config), row.config
        for name, new, old in differences("", _shared(now, then), _shared(then, now)):
            raise ConfigError(
                f"{file}: {plan.name} was finished with {name} {old!r}, and {new!r} is asked for "
                "now; delete that row to train anew, or choose another folder with --results"
            )
    return rows[0] if rows else None


def _unjudged(plan: Plan, row: Row) -> list[HeldOut]:
    """Tests whose files are there, and were not when the row was made."""
    tests = plan.task.tests
    return [test for test in tests if test.file in plan.files and test.name not in row.tests]


def _judge_further(
    plan: Plan, row: Row, tests: Sequence[HeldOut], results: Path, console: Console
) -> None:
    """Judge a finished run by further tests and add them to its row, if its folder is there."""
    run, names = plan.config.run, ", ".join(test.name for test in tests)
    if not _is_finished_run_of(plan):
        say(
            f"{plan.name}: its row has no {names}, and the run is not in {run}: say where it is "
            "with --runs, or delete the row to train anew",
            console,
        )
        return
    potential = clebsch.load(run / "model.safetensors", device=plan.config.device)
    judged = row.tests | judge(potential, tests, plan.files)
    ordered = {test.name: judged[test.name] for test in plan.task.tests if test.name in judged}
    row = row.model_copy(update={"tests": ordered | judged})
    add_row(results_file(results, plan.suite.name), row)
    say(f"{plan.name}, now with {names}: {describe(row)}", console)


def _is_finished_run_of(plan: Plan) -> bool:
    """Whether the run's folder holds the model of the plan's training, which is over."""
    run = plan.config.run
    if not (run / "model.safetensors").is_file() or not holds_a_run(run):
        return False
    began = identity(load_config(run / "config.yaml"))
    if list(differences("", identity(plan.config), began)):
        return False
    return plan.config.is_linear or read_newest_state(run)[0].finished is not None


def _shared(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration another one has too, which may be of another version."""
    return {
        key: _shared(value, other[key])
        if isinstance(value, Mapping) and isinstance(other[key], Mapping)
        else value
        for key, value in tree.items()
        if key in other
    }


def describe(row: Row) -> str:
    """A row in a few words, errors in meV and meV/Å."""
    shown = []
    for name, metrics in row.tests.items():
        errors = [
            f"{what} {1000 * metrics[key]:.3g}"
            for what, key in (
                ("E MAE", "energy_mae"),
                ("E RMSE", "energy_rmse"),
                ("F MAE", "forces_mae"),
                ("F RMSE", "forces_rmse"),
                ("relative E RMSE", "relative_energy_rmse"),
            )
            if key in metrics
        ]
        shown.append(f"{name}: {', '.join(errors)}")
    state = "finished" if row.finished else "not finished"
    if row.projected_seconds is not None:
        state += f", {duration(row.projected_seconds)} to go"
    return f"{state} after {duration(row.seconds)}; {'; '.join(shown)} (meV, meV/Å)"


def _files(name: str, task: Task, folder: Path) -> dict[str, Path]:
    needed = task.files
    paths = required_files(
        data_set(name), folder, [file for file, optional in needed.items() if not optional]
    )
    others = [file for file, optional in needed.items() if optional]
    for file, found in find_files(data_set(name), folder, others).items():
        if found.path is not None:
            paths[file] = found.path
    return paths


def _plan(
    suite: Suite,
    task: Task,
    model: str,
    seed: int,
    recipe: str,
    settings: tuple[str, ...],
    files: dict[str, Path],
    runs: Path,
) -> Plan:
    wanted = [
        *suite.model_settings(model),
        f"data.train={json.dumps(str(files[task.train]))}",
        f"data.valid_count={task.valid_count}",
        "data.pbc=none",
        f"seed={seed}",
    ]
    if task.train_count is not None:
        wanted.append(f"data.train_count={task.train_count}")
    if task.isolated_atoms is not None:
        wanted.append(f"data.isolated_atoms={json.dumps(str(files[task.isolated_atoms]))}")
    linear = load_config(None, wanted).is_linear
    if linear:
        recipe = "fit"
    else:
        wanted.append(f"recipe={recipe}")
        given = {one.partition("=")[0] for one in settings}
        if recipe == "fast":
            if not given & {"training.max_epochs", "training.max_minutes"}:
                wanted.append(f"training.max_epochs={task.epochs}")
            wanted.append(f"training.eval_every={task.eval_every}")
            if task.batch_size and not given & {"training.batch_size", "training.batch_edges"}:
                wanted.append(f"training.batch_size={task.batch_size}")
    what = tuple(one for one in settings if one.partition("=")[0] not in _WHERE)
    kind = slug(" ".join((recipe, *sorted(what))))
    run = runs / suite.name / task.name / model / kind / f"seed-{seed}"
    config = load_config(None, [*wanted, *settings, f"run={json.dumps(str(run))}"])
    return Plan(suite, task, model, seed, recipe, what, config, files)


def _train(plan: Plan, until: float | None, console: Console) -> TrainingResult:
    run = plan.config.run
    if not holds_a_run(run):
        return train(plan.config, console=console, until=until)
    began = load_config(run / "config.yaml")
    for key, now, then in differences("", identity(plan.config), identity(began)):
        raise ConfigError(
            f"{run}: began with {key} {then!r}, and {now!r} is asked for now; choose another "
            "folder with --runs, or remove this one"
        )
    return resume(run, console, until=until)


def identity(config: Config) -> dict[str, Any]:
    """A configuration without paths and without what only says where the run is made."""
    tree = {key: value for key, value in config_dict(config).items() if key not in _WHERE}
    tree["data"] = {key: value for key, value in tree["data"].items() if key not in _FILES}
    return tree


def _row(plan: Plan, result: TrainingResult) -> Row:
    assert result.model is not None
    # a run that is gone on with keeps its own device
    device = load_config(result.run / "config.yaml").device
    potential = clebsch.load(result.model, device=device)
    history = read_history(result.run / "metrics.jsonl")
    data = potential.provenance["data"]
    finished = result.reason != "interrupted"
    limit = None if plan.config.is_linear else plan.config.training.max_epochs
    left = None
    if not finished and limit is not None and result.epoch:
        left = result.seconds * (limit - result.epoch) / result.epoch
    return Row(
        suite=plan.suite.name,
        task=plan.task.name,
        model=plan.model,
        seed=plan.seed,
        recipe=plan.recipe,
        settings=plan.settings,
        config=identity(plan.config),
        n_parameters=sum(p.numel() for p in potential.model.parameters()),
        n_train=data["train"]["frames"],
        n_valid=data["valid"]["frames"],
        epochs=None if plan.config.is_linear else result.epoch,
        max_epochs=limit,
        steps=None if plan.config.is_linear else result.step,
        frames=history[-1]["frames"] if finished else read_newest_state(result.run)[0].frames,
        seconds=round(result.seconds, 1),
        finished=finished,
        projected_seconds=None if left is None else round(left),
        tests=judge(potential, plan.task.tests, plan.files),
        curve={} if plan.config.is_linear else curve(history),
        machine=machine() | {"device": device},
        versions={"clebsch": clebsch.__version__, "torch": torch.__version__},
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
    )


def curve(history: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """What validation said in the course of a training, at no more than ``CURVE_POINTS`` epochs.

    Errors that were no finite numbers are left out.

    Args:
        history: records of a run's metrics.jsonl.
    """
    judged = [
        record
        for record in history
        if record.get("valid")
        and None not in (record["valid"]["energy_rmse"], record["valid"]["forces_rmse"])
    ]
    stride = -(-len(judged) // CURVE_POINTS) or 1
    chosen = judged[::-stride][::-1]
    return {
        "frames": [record["frames"] for record in chosen],
        "energy": [float(f"{record['valid']['energy_rmse']:.4g}") for record in chosen],
        "forces": [float(f"{record['valid']['forces_rmse']:.4g}") for record in chosen],
    }
