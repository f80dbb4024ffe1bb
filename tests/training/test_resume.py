"""Resuming is exact, from any point, and damaged states are survived."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Set
from pathlib import Path

import pytest
import torch
from ase import Atoms
from rich.console import Console
from safetensors.torch import load_file

import clebsch
from clebsch.errors import ClebschError, ConfigError, DataError, ModelFileError
from clebsch.modelfile import read_tensors, write_tensors
from clebsch.training.config import Config
from clebsch.training.loop import TrainingResult, resume, train
from clebsch.training.state import TrainingState, read_newest_state, write_state
from clebsch.training.trainer import Trainer

from .toy import cluster, config, data_file, history

#: Everything that has a memory is switched on; five batches an epoch.
SETTINGS = (
    "training.max_epochs=4",
    "training.lr=0.1",
    "training.schedule=plateau",
    "training.plateau_patience=0",
    "training.plateau_factor=0.5",
    "training.warmup_steps=7",
    "training.patience=10",
    "training.checkpoint_steps=3",
)


def settings(data: Path) -> Config:
    return config(data, *SETTINGS)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """A signal arrives while this step is computed."""
    honest = Trainer.step

    def signalled(self: Trainer, indices: list[int], progress: float) -> None:
        if self.state.step == step:
            signal.raise_signal(number)
        honest(self, indices, progress)

    monkeypatch.setattr(Trainer, "step", signalled)


def assert_same_run(one: Path, other: Path, more_groups: Set[str] = frozenset()) -> None:
    """Equal in every bit: weights, averages, best weights, moments, history, model."""
    first, first_tensors, _ = read_newest_state(one)
    second, second_tensors, _ = read_newest_state(other)
    assert set(first_tensors) == set(second_tensors)
    assert {name.split(":")[0] for name in first_tensors} == {
        "potential", "average", "best", "optimizer", *more_groups,
    }  # fmt: skip
    for name, tensor in first_tensors.items():
        assert torch.equal(tensor, second_tensors[name]), name
    for state in (first, second):
        assert state.best is not None
        del state.best["seconds"]
        state.seconds = 0.0
        del state.config["run"], state.config["training"]["max_epochs"]
    assert first == second
    assert history(one) == history(other)
    models = [load_file(run / "model.safetensors") for run in (one, other)]
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs that nothing interrupted, and its data beside it."""
    folder = tmp_path_factory.mktemp("whole")
    train(settings(data_file(folder)), folder / "run")
    state, _, _ = read_newest_state(folder / "run")
    assert state.schedule["factor"] < 1, "the plateau rule must have something to remember"
    return folder / "run"


def cut_run(
    whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, step: int = 8
) -> TrainingResult:
    """The same run, interrupted in the middle of an epoch."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, signal.SIGINT)
        result = train(settings(whole.parent / "data.xyz"), folder / "run")
    assert (result.reason, result.step) == ("interrupted", step + 1)
    return result


@pytest.mark.parametrize("step", [0, 4, 8, 14])
def test_a_run_interrupted_anywhere_goes_on_bit_for_bit(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    result = cut_run(whole, tmp_path, monkeypatch, step)
    resume(result.run)
    assert_same_run(whole, result.run)


def test_the_plateau_rule_counts_on_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = config(data_file(tmp_path), *SETTINGS, "training.plateau_patience=50")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8, signal.SIGINT)
        run = train(patient, tmp_path / "run").run
    state, tensors, _ = read_newest_state(run)
    state.schedule |= {"lowest": -1.0, "waited": 7}
    write_state(run, state, tensors)
    resume(run)
    ended, _, _ = read_newest_state(run)
    assert ended.schedule == {"factor": 1.0, "lowest": -1.0, "waited": 7 + 3}


def test_sigterm_saves_and_says_how_to_go_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), width=300)
    interrupt_at(monkeypatch, 6, signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    result = train(settings(whole.parent / "data.xyz"), tmp_path / "run", console)
    assert result.reason == "interrupted"
    assert isinstance(console.file, io.StringIO)
    assert f"clebsch resume {result.run}" in console.file.getvalue()
    assert signal.getsignal(signal.SIGTERM) is before
    assert result.model is not None
    clebsch.load(result.model)


def test_a_run_whose_time_is_over_is_saved_and_goes_on(whole: Path, tmp_path: Path) -> None:
    result = train(settings(whole.parent / "data.xyz"), tmp_path / "run", until=time.monotonic())
    assert (result.reason, result.step) == ("interrupted", 0)
    again = resume(result.run, until=time.monotonic())
    assert (again.reason, again.step) == ("interrupted", 0)
    resume(result.run, until=time.monotonic() + 1000)
    assert_same_run(whole, result.run)


CHILD = """
import os, signal, sys
from pathlib import Path
from training.test_resume import settings
from clebsch.training.loop import resume, train
from clebsch.training.trainer import Trainer

data, run, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if what == "kill":
    honest = Trainer.step
    def killed(self, indices, progress):
        if self.state.step == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        honest(self, indices, progress)
    Trainer.step = killed
if what == "resume":
    resume(run)
else:
    train(settings(data), run)
"""


def test_kill_9_in_the_middle_of_an_epoch_loses_nothing(tmp_path: Path) -> None:
    data = data_file(tmp_path)
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root / 'tests'}",
    }

    def child(run: Path, what: str) -> int:
        command = [sys.executable, "-c", CHILD, str(data), str(run), what]
        return subprocess.run(command, env=environment, timeout=120, check=False).returncode

    killed, uninterrupted = tmp_path / "killed", tmp_path / "uninterrupted"
    assert child(killed, "kill") == -signal.SIGKILL
    state, _, _ = read_newest_state(killed)
    assert (state.step, state.epoch, state.position) == (6, 1, 1)
    assert child(killed, "resume") == 0
    assert child(uninterrupted, "train") == 0
    assert_same_run(uninterrupted, killed)


def states(run: Path) -> list[Path]:
    return sorted((run / "state").iterdir())


def test_a_folder_has_one_process_at_a_time(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Trainer.step
    refused = []

    def while_others_try(self: Trainer, indices: list[int], progress: float) -> None:
        if self.state.step == 4:
            for attempt in (lambda: resume(run), lambda: train(settings(data), run)):
                with pytest.raises(ConfigError, match="another process is training there"):
                    attempt()
                refused.append(attempt)
        honest(self, indices, progress)

    run, data = tmp_path / "run", whole.parent / "data.xyz"
    monkeypatch.setattr(Trainer, "step", while_others_try)
    train(settings(data), run)
    assert len(refused) == 2
    assert_same_run(run, whole)


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "empty":
        content.clear()
    else:
        content[-100] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "empty", "bit flipped"])
def test_a_damaged_state_falls_back_to_the_one_before_and_says_what_was_lost(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    run = cut_run(whole, tmp_path, monkeypatch).run
    previous, newest = states(run)
    assert (previous.stem, newest.stem) == ("step-0000000006", "step-0000000009")
    damage(newest, how)
    console = Console(file=io.StringIO(), width=1000)
    resume(run, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert str(newest) in text
    assert "Going back to step 6 (epoch 2); 3 steps are lost" in text
    assert_same_run(whole, run)


def test_a_state_of_another_version_is_refused_and_kept(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cut_run(whole, tmp_path, monkeypatch).run
    newest = states(run)[-1]
    tensors, metadata = read_tensors(newest)
    write_tensors(newest, tensors, metadata | {"format_version": 99})
    before = newest.read_bytes()
    with pytest.raises(ModelFileError, match=r"step-0000000009.*version 99; this Clebsch reads"):
        resume(run)
    assert states(run)[-1].read_bytes() == before
    assert len(states(run)) == 2


@pytest.mark.parametrize("schedule", ["linear", "plateau"])
def test_an_evaluation_right_behind_a_resume_tells_the_last_steps_rate(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    """The state of an epoch's last batch is saved before the evaluation that follows it."""
    rising = ("training.warmup_steps=40", "training.checkpoint_steps=5")
    started = config(whole.parent / "data.xyz", *SETTINGS, *rising, f"training.schedule={schedule}")
    train(started, tmp_path / "whole")
    honest = Trainer.evaluate

    def killed(self: Trainer) -> None:
        if self.state.epoch == 2:
            raise SystemExit
        honest(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", killed)
        with pytest.raises(SystemExit):
            train(started, tmp_path / "parts")
    resume(tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_when_no_state_is_whole_the_error_names_them_all(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cut_run(whole, tmp_path, monkeypatch).run
    for path in states(run):
        damage(path, "bit flipped")
    with pytest.raises(ModelFileError) as error:
        resume(run)
    assert all(str(path) in str(error.value) for path in states(run))


def test_a_temporary_file_of_a_crash_is_no_state_and_is_removed(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cut_run(whole, tmp_path, monkeypatch).run
    crashed = [run / "state" / ".step-0000000012.safetensors", run / ".model.safetensors"]
    for path in crashed:
        # as atomic_write names them
        handle, temporary = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
        os.write(handle, b"half")
        os.close(handle)
        assert Path(temporary).exists()
    others = [run / ".notes.safetensors.of-mine", run / ".report.html.abcdefgh"]
    for path in others:
        path.write_text("of someone else")
    resume(run)
    assert_same_run(whole, run)
    hidden = {path for path in run.rglob(".*") if path.name != ".lock"}
    assert hidden == set(others)


def test_history_and_model_of_steps_that_are_taken_back_are_taken_back_too(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cut_run(whole, tmp_path, monkeypatch).run
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 99, "step": 999}\n{"epo')
    (run / "model.safetensors").write_bytes(b"of a future that never was")
    resume(run)
    assert_same_run(whole, run)


def test_a_finished_run_is_left_alone_and_can_be_extended(whole: Path, tmp_path: Path) -> None:
    data = whole.parent / "data.xyz"
    run = tmp_path / "run"
    train(config(data, *SETTINGS, "training.max_epochs=2"), run)
    before = states(run)[-1].read_bytes()
    assert resume(run).reason == "epochs"
    assert states(run)[-1].read_bytes() == before
    with pytest.raises(ConfigError, match=r"new limits: training\.max_epochs: .* greater than"):
        resume(run, max_epochs=0)
    result = resume(run, max_epochs=4)
    assert (result.epoch, result.reason) == (4, "epochs")
    assert_same_run(whole, run)


def test_a_run_that_patience_ended_can_be_extended(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    state, tensors, _ = read_newest_state(run)
    state.finished, state.waited = "patience", state.config["training"]["patience"]
    write_state(run, state, tensors)
    result = resume(run, max_epochs=5)
    assert (result.epoch, result.reason) == (5, "epochs")


@pytest.mark.parametrize("damage", ["lost", "flipped"])
def test_the_model_of_a_finished_run_is_written_again_where_it_is_gone(
    whole: Path, tmp_path: Path, damage: str
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    model = run / "model.safetensors"
    expected = load_file(model)
    if damage == "lost":
        model.unlink()
    else:
        data = bytearray(model.read_bytes())
        data[len(data) // 2] ^= 1
        model.write_bytes(data)
    assert resume(run).model == model
    found = load_file(model)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe garbage"])
def test_a_damaged_history_does_not_end_a_run(whole: Path, tmp_path: Path, damage: bytes) -> None:
    """Half of the last line is there after a power cut, or what is no text."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + (damage or lines[-1][:30]))
    console = Console(file=io.StringIO(), width=200)
    resume(run, console, max_epochs=5)
    assert "1 lines of the history are missing" in console.file.getvalue()  # type: ignore[attr-defined]
    assert [record["epoch"] for record in history(run)] == [1, 2, 3, 5]
    state, _, _ = read_newest_state(run)
    assert state.history_lines == 4


def test_resuming_with_other_settings_or_other_data_is_refused(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cut_run(whole, tmp_path, monkeypatch).run
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("lr: 0.1", "lr: 0.2"))
    with pytest.raises(ConfigError, match=r"training\.lr is 0\.2.*began with 0\.1"):
        resume(run)
    (run / "config.yaml").write_text(text.replace("recipe: fast", "recipe: paper"))
    with pytest.raises(ConfigError, match=r"recipe is 'paper'.*began with 'fast'"):
        resume(run)
    (run / "config.yaml").write_text(
        text.replace("references: auto", "references: {Cu: 1.0, Au: 2.0}")
    )
    with pytest.raises(ConfigError, match=r"data\.references is .*began with 'auto'"):
        resume(run)
    other = data_file(tmp_path)
    other.write_text(other.read_text().replace("energy=", "energy=1"))
    (run / "config.yaml").write_text(text.replace(str(whole.parent / "data.xyz"), str(other)))
    with pytest.raises(ClebschError, match="not those that the run began with"):
        resume(run)


def test_a_run_that_was_moved_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cut_run(whole, tmp_path, monkeypatch).run
    moved = run.rename(tmp_path / "elsewhere")
    assert resume(moved).run == moved
    assert_same_run(whole, moved)


def test_a_start_that_is_killed_before_its_first_state_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        (tmp_path / "run" / "state").mkdir()
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("clebsch.training.trainer.write_state", killed)
        with pytest.raises(SystemExit):
            train(settings(data_file(tmp_path)), tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").exists()
    with pytest.raises(ModelFileError, match="clebsch train"):
        resume(tmp_path / "run")
    assert train(settings(tmp_path / "data.xyz"), tmp_path / "run").reason == "epochs"


def test_a_start_that_is_killed_after_its_first_state_can_be_resumed(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("clebsch.training.trainer.write_state", lambda *a: killed(write_state(*a)))
        with pytest.raises(SystemExit):
            train(settings(whole.parent / "data.xyz"), tmp_path / "run")
    assert resume(tmp_path / "run").reason == "epochs"
    assert_same_run(whole, tmp_path / "run")


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not the folder of a run: it holds no config\.yaml"):
        resume(tmp_path)


def test_a_refused_start_leaves_no_folder_and_a_file_is_no_folder(tmp_path: Path) -> None:
    """The commonest mistake: labels under names that nobody can know."""
    odd = []
    for seed in range(12):
        atoms = cluster(seed)
        odd.append(Atoms(atoms.numbers, atoms.positions))
        odd[-1].info["REF_Eng"] = atoms.get_potential_energy()
    data = data_file(tmp_path, odd)
    message = r"no structure has an energy.*REF_Eng \(info, 12 of 12\).*data\.keys\.energy=KEY"
    with pytest.raises(DataError, match=message):
        train(settings(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"data\.xyz: cannot be the folder of a run"):
        train(settings(data), data)


def test_atoms_at_one_place_are_named_before_anything_is_trained(tmp_path: Path) -> None:
    frames = [cluster(seed) for seed in range(12)]
    frames[7].positions[2] = frames[7].positions[0]
    with pytest.raises(DataError, match=r"data\.xyz:7: atoms 0 and 2 are at one place"):
        train(settings(data_file(tmp_path, frames)), tmp_path / "run")


def test_ctrl_c_pressed_twice_saves_and_a_later_one_says_what_is_lost(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Trainer.step

    def signalled(self: Trainer, indices: list[int], progress: float) -> None:
        if self.state.step == 8:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
        honest(self, indices, progress)

    data = settings(whole.parent / "data.xyz")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", signalled)
        result = train(data, tmp_path / "saved")
        patch.setattr("clebsch.interrupt.GRACE", 0.0)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "lost")
    assert (result.reason, result.step) == ("interrupted", 9)
    assert "goes on from the last saved state" in (tmp_path / "lost" / "log.txt").read_text()
    for run in ("lost", "saved"):
        resume(tmp_path / run)
        assert_same_run(whole, tmp_path / run)


def test_two_states_are_kept(tmp_path: Path) -> None:
    for step in (1, 5, 9, 12):
        write_state(tmp_path, TrainingState(step=step), {"a:b": torch.ones(2)})
    assert [path.stem[-2:] for path in states(tmp_path)] == ["09", "12"]
