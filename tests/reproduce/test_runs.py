"""Runs share a budget, go on where they were, and leave rows that say what they are."""

from __future__ import annotations

import io
import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from clebsch.cli import main
from clebsch.data import datasets
from clebsch.data.datasets import DataSet
from clebsch.errors import ConfigError, DataError
from clebsch.reproduce import runs as runs_module
from clebsch.reproduce import suites
from clebsch.reproduce.results import Row, read_rows, results_file, write_rows
from clebsch.reproduce.runs import CURVE_POINTS, Plan, curve, make_plans, run_all
from clebsch.reproduce.suites import SUITES, HeldOut, Suite, Task
from clebsch.training.trainer import Trainer
from training.toy import MODEL, cluster, data_file

TESTS = (
    HeldOut("test", "test"),
    HeldOut("path", "path", "scan"),
    HeldOut("absent", "absent", optional=True),
)
TOY = Suite(
    name="toy",
    title="Toy",
    data="toy",
    statistic="mae",
    tasks=(
        Task(
            "few",
            "train",
            TESTS,
            epochs=2,
            train_count=4,
            valid_count=2,
            eval_every=2,
            batch_size=1,
        ),
        Task("many", "train", TESTS, epochs=3, train_count=6, valid_count=2),
    ),
    models=("small",),
    variants={
        "small": (MODEL,),
        "linear": ("model={name: ace, cutoff: 4.0, max_degree: 3, correlation: 2}",),
    },
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the toy's data; the toy is known by its name."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, seeds in (("train", range(10)), ("test", range(20, 24))):
        data_file(folder, [cluster(seed) for seed in seeds], f"{name}.xyz")
    # the same composition all along the path
    data_file(folder, [cluster(seed) for seed in range(30, 38, 2)], "path.xyz")
    files = {name: {"about": name} for name in ("train", "test", "path")}
    files["absent"] = {"about": "absent", "optional": True}
    toy = DataSet.model_validate(
        {"title": "T", "source": "S", "licence": "L", "folders": ["toy"], "files": files}
    )
    monkeypatch.setattr(datasets, "data_sets", lambda: {"toy": toy})
    monkeypatch.setitem(suites.SUITES, "toy", TOY)
    return folder


def plans(data: Path, **changes: object) -> list[Plan]:
    arguments: dict[str, object] = {"data": data, "runs": data.parent / "runs"}
    arguments |= {"settings": ("training.batch_size=2", "processes=1")}
    return make_plans(TOY, **(arguments | changes))  # type: ignore[arg-type]


def run(todo: list[Plan], data: Path, until: float | None = None) -> tuple[str, list[Row], str]:
    """How it ended, all rows, and what was said."""
    results = data.parent / "results"
    console = Console(file=io.StringIO(), width=200)
    end = run_all(todo, results, until=until, console=console)
    assert isinstance(console.file, io.StringIO)
    return end, read_rows(results_file(results, "toy")), console.file.getvalue()


def test_every_task_becomes_a_row_that_says_what_it_is(data: Path) -> None:
    end, rows, said = run(plans(data), data)
    assert end == "done"
    assert [(row.task, row.n_train, row.n_valid, row.epochs, row.frames) for row in rows] == [
        ("few", 4, 2, 2, 8),
        ("many", 6, 2, 3, 18),
    ]
    for row in rows:
        assert (row.suite, row.model, row.recipe, row.seed) == ("toy", "small", "fast", 1)
        assert row.settings == ("training.batch_size=2",), "where it is made is no setting"
        assert row.finished
        assert row.projected_seconds is None
        assert set(row.tests) == {"test", "path"}
        assert {"n", "energy_mae", "forces_mae"} <= set(row.tests["test"])
        assert row.tests["path"]["n"] == 4
        assert row.tests["path"]["barrier"] >= 0
        assert "run" not in row.config
        assert "train" not in row.config["data"]
        assert row.config["data"]["train_count"] == row.n_train
        assert row.config["training"]["max_epochs"] == row.max_epochs
        assert row.machine["device"] == "cpu"
        assert len(row.curve["forces"]) == len(row.curve["energy"]) == len(row.curve["frames"])
    assert [row.curve["frames"] for row in rows] == [[8], [6, 12, 18]]
    assert "Run 2 of 2: toy many, small, seed 1" in said
    assert "finished after" in said


def test_of_long_trainings_a_few_epochs_are_kept_and_the_last_is_one_of_them() -> None:
    errors = {"energy_rmse": 0.0123456, "forces_rmse": 0.05}
    history = [
        {"epoch": k, "frames": 5 * k, "valid": errors if k % 2 == 0 else None}
        for k in range(1, 1001)
    ]
    kept = curve(history)
    assert len(kept["frames"]) <= CURVE_POINTS
    assert kept["frames"][-1] == 5000
    assert len(set(np.diff(kept["frames"]))) == 1
    assert kept["energy"][0] == 0.01235


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C before the third step."""
    honest = Trainer.step

    def step(self: Trainer, indices: list[int], progress: float) -> None:
        if self.state.step == 2:
            signal.raise_signal(signal.SIGINT)
        honest(self, indices, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        yield


def test_errors_that_were_no_numbers_are_left_out_of_the_course() -> None:
    burst, good = ({"energy_rmse": e, "forces_rmse": e} for e in (None, 0.1))
    history = [{"frames": 5, "valid": burst}, {"frames": 10, "valid": good}]
    assert curve(history) == {"frames": [10], "energy": [0.1], "forces": [0.1]}
    assert curve(history[:1]) == {"frames": [], "energy": [], "forces": []}


def test_a_run_that_goes_on_keeps_its_device_and_its_row_says_so(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with interrupted(monkeypatch):
        run(plans(data, tasks=["few"]), data)
    moved = plans(data, tasks=["few"], settings=("training.batch_size=2", "device=cpu:0"))
    _, (row,), _ = run(moved, data)
    assert row.machine["device"] == "cpu"


def test_what_is_finished_is_not_done_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows, _ = run(plans(data, tasks=["few"]), data)
    monkeypatch.setattr(runs_module, "_train", lambda *_: pytest.fail("trained again"))
    end, again, said = run(plans(data, tasks=["few"]), data)
    assert (end, again) == ("done", rows)
    assert "1 of 1 runs are finished already" in said


def test_a_finished_run_is_judged_by_tests_whose_files_come_later(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (before,), _ = run(plans(data, tasks=["few"]), data)
    monkeypatch.setattr(runs_module, "_train", lambda *_: pytest.fail("trained again"))
    data_file(data, [cluster(seed) for seed in range(40, 43)], "absent.xyz")
    end, (after,), said = run(plans(data, tasks=["few"]), data)
    assert end == "done"
    assert "toy few, small, seed 1, now with absent: finished" in said
    assert after.tests.keys() == {"test", "path", "absent"}
    assert after.tests["absent"]["n"] == 3
    unchanged = after.model_copy(update={"tests": before.tests})
    assert unchanged == before, "only tests are added"
    assert {name: after.tests[name] for name in before.tests} == before.tests
    _, again, said = run(plans(data, tasks=["few"]), data)
    assert again == [after]
    assert "now with" not in said


def test_of_a_finished_row_whose_run_is_elsewhere_the_missing_tests_are_told(data: Path) -> None:
    _, rows, _ = run(plans(data, tasks=["few"]), data)
    data_file(data, [cluster(seed) for seed in range(40, 43)], "absent.xyz")
    elsewhere = data.parent / "elsewhere"
    end, again, said = run(plans(data, tasks=["few"], runs=elsewhere), data)
    assert (end, again) == ("done", rows)
    assert "its row has no absent, and the run is not in" in said
    assert "--runs" in said
    # another training in its place is not judged for it
    run_folder = plans(data, tasks=["few"])[0].config.run
    settings = ("training.batch_size=2", "processes=1", "training.lr=0.001")
    other = plans(data, tasks=["few"], settings=settings)[0]
    run([other], data)
    shutil.rmtree(run_folder)
    shutil.copytree(other.config.run, run_folder)
    _, again, said = run(plans(data, tasks=["few"]), data)
    assert rows[0] in again
    assert "its row has no absent" in said


@pytest.fixture
def steps_take_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of training, and nothing else."""
    honest, clock = Trainer.step, [0.0]

    def step(self: Trainer, indices: list[int], progress: float) -> None:
        clock[0] += 1.0
        honest(self, indices, progress)

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])


@pytest.mark.usefixtures("steps_take_a_second")
def test_a_budget_that_ends_before_the_first_validation_says_that_nothing_is_judged(
    data: Path,
) -> None:
    end, rows, said = run(plans(data, tasks=["many"]), data, until=1.0)
    assert (end, rows) == ("time", [])
    assert "toy many, small, seed 1: not judged yet" in said


@pytest.mark.usefixtures("steps_take_a_second")
def test_a_spent_budget_leaves_a_row_and_the_same_command_goes_on(data: Path) -> None:
    # the first task takes four steps; the budget ends in the second epoch of the second
    end, rows, said = run(plans(data), data, until=9.0)
    assert end == "time"
    first, second = rows
    assert first.finished
    assert (second.finished, second.epochs, second.steps, second.frames) == (False, 1, 5, 10)
    assert second.projected_seconds == pytest.approx(2 * second.seconds)
    assert "not finished" in said
    end, rows, _ = run(plans(data), data)
    assert end == "done"
    assert [(row.task, row.finished, row.steps) for row in rows] == [
        ("few", True, 4),
        ("many", True, 9),
    ]


@pytest.mark.parametrize("size", ["batch_size=4", "batch_edges=48"])
def test_a_row_counts_what_an_unfinished_epoch_has_differentiated(
    data: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    honest, batches = Trainer.step, []

    def step(self: Trainer, indices: list[int], progress: float) -> None:
        batches.append(len(indices))
        honest(self, indices, progress)

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(time, "monotonic", lambda: float(len(batches)))
    todo = plans(data, tasks=["many"], settings=(f"training.{size}", "processes=1"))
    _, (row,), _ = run(todo, data, until=3.0)
    assert not row.finished
    assert row.frames == sum(batches)
    assert 6 < row.frames < 12, "an epoch has six"


def test_a_budget_that_is_spent_before_anything_begins_says_so(data: Path) -> None:
    assert run(plans(data), data, until=time.monotonic() - 1)[:2] == ("time", [])


def test_ctrl_c_stops_at_once_and_keeps_the_run(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with interrupted(monkeypatch):
        assert run(plans(data), data)[:2] == ("interrupted", [])
    end, rows, said = run(plans(data, tasks=["few"]), data)
    assert (end, rows[0].steps) == ("done", 4)
    assert "Resuming at step 3" in said


def test_a_folder_of_another_training_is_refused(data: Path) -> None:
    (plan,) = plans(data, tasks=["few"])
    run([plan], data)
    (other,) = plans(data, tasks=["few"])
    changed = other.config.model_copy(update={"seed": 5})
    object.__setattr__(other, "config", changed)
    results_file(data.parent / "results", "toy").unlink()
    with pytest.raises(ConfigError, match="began with seed 1, and 5 is asked for now"):
        run([other], data)


def test_seeds_recipes_and_settings_have_folders_of_their_own(data: Path) -> None:
    one = plans(data, seeds=(1, 2))
    one += plans(data, recipe="paper")
    one += plans(data, settings=("training.lr=0.1",))
    assert len({plan.config.run for plan in one}) == len(one) == 8
    assert [plan.seed for plan in one[:4]] == [1, 1, 2, 2], "seeds are outermost"
    paper = one[4].config.training
    assert (paper.max_epochs, paper.schedule, paper.eval_every) == (2000, "plateau", 1)
    every = [plan.config.training.eval_every for plan in plans(data)]
    assert every == [2, 1], "a plateau counts evaluations, so the paper's recipe has its own"
    assert plans(data, settings=("training.max_minutes=5",))[0].config.training.max_epochs is None
    assert [plan.config.training.batch_size for plan in plans(data, settings=())] == [1, 5]
    assert {plan.config.training.batch_size for plan in plans(data)} == {2}
    edges = plans(data, settings=("training.batch_edges=64",))
    assert {plan.config.training.batch_size for plan in edges} == {None}
    assert plans(data, settings=(), recipe="paper")[0].config.training.batch_size == 5
    moved = plans(data, settings=("training.batch_size=2", "processes=2"))
    assert moved[0].config.run == plans(data)[0].config.run
    lr, size = "training.lr=0.1", "training.batch_size=2"
    both = [plans(data, settings=order)[0].config.run for order in ((lr, size), (size, lr))]
    assert both[0] == both[1], "settings have no order"


def test_models_fitted_in_closed_form_need_no_recipe(data: Path) -> None:
    todo = plans(data, models=["linear"], tasks=["few"], settings=("dtype=float64",))
    end, rows, _ = run(todo, data)
    assert end == "done"
    assert (rows[0].recipe, rows[0].epochs, rows[0].frames) == ("fit", None, 4)


def test_what_cannot_be_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'few'"):
        plans(data, tasks=["fw"])
    with pytest.raises(ConfigError, match="unknown model 'big'"):
        plans(data, models=["big"])
    for setting in ("seed=3", "data.valid_count=1", "run=here", "recipe=paper"):
        with pytest.raises(ConfigError, match="decides that"):
            plans(data, settings=(setting,))
    with pytest.raises(ConfigError, match=r"unknown key 'training.lrr'"):
        plans(data, settings=("training.lrr=1",))
    (data / "test.xyz").unlink()
    with pytest.raises(DataError, match=r"test.xyz is in none of"):
        plans(data)


def test_settings_in_another_order_or_spelling_are_the_same_run(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("training.max_epochs=1", "training.lr=0.01")
    _, rows, _ = run(plans(data, tasks=["few"], settings=settings), data)
    monkeypatch.setattr(runs_module, "_train", lambda *_: pytest.fail("trained again"))
    for same in (settings[::-1], ("training.lr=1e-2", "training.max_epochs=1")):
        assert run(plans(data, tasks=["few"], settings=same), data)[1] == rows
    (other,) = plans(data, tasks=["few"], settings=("training.max_epochs=1", "training.lr=0.02"))
    assert other.key != rows[0].key


def test_a_finished_row_of_another_configuration_is_no_result_of_this_one(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(plans(data, tasks=["few"]), data)
    longer = replace(TOY, tasks=(replace(TOY.tasks[0], epochs=3),))
    todo = make_plans(
        longer, data=data, runs=data.parent / "runs", settings=("training.batch_size=2",)
    )
    message = r"toy.json: toy few, small, seed 1 was finished with training.max_epochs 2, and 3 is"
    with pytest.raises(ConfigError, match=message):
        run(todo, data)
    # a key that did not exist yet is no difference
    file = results_file(data.parent / "results", "toy")
    (row,) = read_rows(file)
    del row.config["tf32"]
    write_rows(file, [row])
    assert run(plans(data, tasks=["few"]), data)[0] == "done"


@pytest.mark.parametrize(
    ("setting", "instead"),
    [
        ("training={max_epochs: 7}", "training.max_epochs=7"),
        ("model={channels: 64}", "model.channels=64, and the model itself with --models"),
        ("model=mace_tiny", "--models"),
        ("model.preset=mace_tiny", "--models decides that"),
        ("model.name=ace", "--models decides that"),
    ],
)
def test_whole_sections_and_other_models_are_no_settings(
    data: Path, setting: str, instead: str
) -> None:
    """The suite's keys would win over a section, and another model have the first one's name."""
    with pytest.raises(ConfigError, match=instead):
        plans(data, settings=(setting,))


def test_what_is_asked_for_twice_is_done_once(data: Path) -> None:
    todo = plans(data, seeds=(1, 1, 2), tasks=["few", "few"], models=["small", "small"])
    assert [plan.seed for plan in todo] == [1, 2]


def test_what_another_process_has_finished_meanwhile_is_not_done_again(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    todo = plans(data)
    honest = runs_module._train

    def train(plan: Plan, *others: object) -> object:
        if plan.task.name == "few":  # and in the meantime
            monkeypatch.setattr(runs_module, "_train", honest)
            run(plans(data, tasks=["many"]), data)
            monkeypatch.setattr(
                runs_module,
                "_train",
                lambda plan, *_: pytest.fail(f"{plan.task.name} trained again"),
            )
        return honest(plan, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(runs_module, "_train", train)
    end, rows, said = run(todo, data)
    assert end == "done"
    assert sorted(row.task for row in rows) == ["few", "many"]
    assert "toy many, small, seed 1: finished by another process" in said


def test_the_command_trains_and_says_where_the_results_are(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data.parent
    arguments = ["reproduce", "toy", "--data", str(data), "--runs", str(folder / "runs")]
    arguments += ["--results", str(folder / "results"), "--tasks", "few", "training.batch_size=2"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "processes=1"])
    assert not ended.value.code
    assert f"Results: {folder / 'results' / 'toy.json'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toys"], "Did you mean 'toy'"),
        (["toy", "--budget", "soon"], "--budget 'soon': a time is written as 2h"),
        (["toy", "--budget", "0m"], "--budget '0m'"),
        (["toy", "--seeds", "1,x"], "--seeds 'x'"),
        (["toy", "--out", "here"], "--out is for --table"),
        (["cost", "training.lr=1"], "suite cost has one setting"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", *arguments, "--data", str(data)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_cost_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    arguments = ["reproduce", "cost", "--models", "mace_tiny", "--results", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code
    (row,) = json.loads((tmp_path / "cost.json").read_text())
    assert 0 < row["tests"]["energies and forces"]["seconds"] < 10
    # measured again it is replaced; another machine's time stays beside it
    assert row["settings"][2] == f"cpu={row['machine']['cpu']}"


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["cost", "--tasks", "any"], "--tasks"),
        (["cost", "--recipe", "paper"], "--recipe"),
        (["3bpa", "--table", "--seeds", "1,2"], "--seeds"),
        (["3bpa", "--table", "--budget", "1h"], "--budget"),
        (["3bpa", "--table", "training.max_epochs=3"], "KEY=VALUE"),
    ],
)
def test_what_would_do_nothing_is_refused(
    arguments: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", *arguments])
    assert ended.value.code == 2
    assert f"{option}: " in capsys.readouterr().err


def test_every_suite_can_be_planned_on_the_shared_data(shared_data: Path, tmp_path: Path) -> None:
    for chosen in SUITES.values():
        if chosen.data is None or chosen.name == "toy":
            continue
        everything = make_plans(
            chosen, data=shared_data, runs=tmp_path, models=[*chosen.models, *chosen.variants]
        )
        assert len({plan.config.run for plan in everything}) >= len(chosen.tasks)
