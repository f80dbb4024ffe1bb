"""Helper processes change who computes a gradient, not what is computed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import clebsch
from clebsch.data.loader import LabelledGraphs
from clebsch.data.read import read_frames
from clebsch.errors import ClebschError
from clebsch.training import helpers as module
from clebsch.training.config import LossConfig
from clebsch.training.gradient import add_gradient, divided
from clebsch.training.helpers import Helpers
from clebsch.training.lesson import Lesson
from clebsch.training.loop import resume, train
from clebsch.training.loss import loss_sums, trained_outputs
from clebsch.training.optimizer import trained_parameters
from clebsch.training.trainer import Trainer

from .test_resume import assert_same_run, interrupt_at
from .toy import cluster, config, crystal, data_file, history, without

LOSS = LossConfig(energy=2.0, forces=50.0, stress=3.0)
#: A batch in which every term has labels somewhere and none has them everywhere.
BATCH = [5, 0, 3, 1, 4, 2]


@pytest.fixture(scope="module")
def potential() -> clebsch.Potential:
    model = {"name": "message_passing", "cutoff": 4.0, "channels": 2, "l_max": 1, "message_l": 1}
    return clebsch.build(model, ["Cu", "Au"], dtype=torch.float64, seed=1)


@pytest.fixture(scope="module")
def graphs(
    potential: clebsch.Potential, tmp_path_factory: pytest.TempPathFactory
) -> LabelledGraphs:
    frames = [cluster(0), without(cluster(1), "forces"), crystal(2), cluster(3)]
    frames += [without(crystal(4), "energy", "stress"), without(cluster(5), "energy")]
    return LabelledGraphs(
        potential, read_frames(data_file(tmp_path_factory.mktemp("data"), frames))
    )


@pytest.fixture
def expected(potential: clebsch.Potential, graphs: LabelledGraphs) -> dict[str, Tensor]:
    """The gradient of the whole batch at once."""
    batch = graphs.batch(BATCH)
    outputs = trained_outputs(batch.counts, LOSS)
    prediction = potential(batch.graph, outputs, differentiable=True)
    loss = loss_sums(prediction, batch, LOSS).loss(LOSS)
    assert isinstance(loss, Tensor)
    parameters = trained_parameters(potential)
    gradient = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, gradient, strict=True))


@pytest.fixture(autouse=True)
def _no_gradient(potential: clebsch.Potential) -> Iterator[None]:
    yield
    potential.zero_grad()


def assert_gradient(potential: clebsch.Potential, expected: dict[str, Tensor]) -> None:
    for name, parameter in trained_parameters(potential).items():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-12)


def test_parts_are_balanced_and_whole() -> None:
    n_edges = [10, 1, 1, 1, 7, 4]

    def of_one(indices: list[int], n_parts: int) -> list[list[int]]:
        return [part for (part,) in divided([indices], [n_edges], n_parts)]

    assert of_one(BATCH, 1) == [BATCH]
    parts = of_one(BATCH, 2)
    assert sorted(parts[0] + parts[1]) == sorted(BATCH)
    assert {sum(n_edges[i] for i in part) for part in parts} == {12}
    assert all(sorted(part, key=BATCH.index) == part for part in parts)
    assert of_one([3, 1], 4) == [[], [], [3], [1]]
    assert of_one([1, 2, 3, 5], 2) == [[1, 2, 3], [5]]
    assert divided([[1, 0], [2]], [[10, 3], [0, 0, 12]], 2) == [[[], [2]], [[1, 0], []]]


@pytest.mark.parametrize("n_parts", [1, 2, 4, 8])
def test_gradients_of_parts_add_up(
    potential: clebsch.Potential,
    graphs: LabelledGraphs,
    expected: dict[str, Tensor],
    n_parts: int,
) -> None:
    for part in divided([BATCH], [graphs.n_edges], n_parts):
        add_gradient([Lesson(potential, graphs)], part, [BATCH], LOSS)
    assert_gradient(potential, expected)


def test_helpers_compute_their_parts(
    potential: clebsch.Potential, graphs: LabelledGraphs, expected: dict[str, Tensor]
) -> None:
    (alone,) = add_gradient([Lesson(potential, graphs)], [BATCH], [BATCH], LOSS)
    with Helpers(2, [Lesson(potential, graphs)], LOSS, threads=1) as helpers:
        for _ in range(2):
            potential.zero_grad()
            own, *others = divided([BATCH], [graphs.n_edges], 3)
            helpers.begin(others, [BATCH])
            (sums,) = add_gradient([Lesson(potential, graphs)], own, [BATCH], LOSS)
            (more,) = helpers.finish()
            sums = sums + more
            assert_gradient(potential, expected)
            assert float(sums.loss(LOSS)) == pytest.approx(float(alone.loss(LOSS)), rel=1e-12)
        # they see new weights
        with torch.no_grad():
            for parameter in potential.parameters():
                parameter *= 1.1
        potential.zero_grad()
        helpers.begin([[BATCH], [[]]], [BATCH])
        helpers.finish()
        found = {name: p.grad.clone() for name, p in trained_parameters(potential).items()}  # type: ignore[union-attr]
        potential.zero_grad()
        add_gradient([Lesson(potential, graphs)], [BATCH], [BATCH], LOSS)
        assert_gradient(potential, found)


def test_what_is_raised_in_a_helper_is_raised_here(
    potential: clebsch.Potential, graphs: LabelledGraphs
) -> None:
    with Helpers(2, [Lesson(potential, graphs)], LOSS, threads=1) as helpers:
        helpers.begin([[[99]], [[0, 2]]], [BATCH])
        with pytest.raises(IndexError) as raised:
            helpers.finish()
        assert "In a helper process" in raised.value.__notes__[0]
        helpers.begin([[[0]], [[]]], [BATCH])  # and they live on, with nothing left over
        assert helpers.finish()[0].n_energy == 1


def test_a_helper_that_is_killed_is_reported(
    potential: clebsch.Potential, graphs: LabelledGraphs
) -> None:
    with Helpers(1, [Lesson(potential, graphs)], LOSS, threads=1) as helpers:
        (process,) = helpers._processes
        process.kill()
        process.wait()
        with pytest.raises(ClebschError, match=r"by signal 9; if memory ran out, set fewer"):
            helpers.begin([[[0]]], [BATCH])
    assert process.poll() == -signal.SIGKILL


def test_a_helper_that_dies_while_it_starts_is_reported(
    potential: clebsch.Potential, graphs: LabelledGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with (
        pytest.raises(ClebschError, match="was ended with exit code 1"),
        Helpers(2, [Lesson(potential, graphs)], LOSS, threads=1),
    ):
        pytest.fail("nobody there")


def test_training_with_helpers_is_the_same_training(tmp_path: Path) -> None:
    """To rounding that of one process, and in every bit that of another run like it."""
    data = data_file(tmp_path)
    for name, processes in (("one", 1), ("two", 2), ("again", 2)):
        train(config(data, f"processes={processes}", "threads=1"), tmp_path / name)
    assert_same_run(tmp_path / "two", tmp_path / "again")
    for one, two in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert two["valid"]["loss"] == pytest.approx(one["valid"]["loss"], rel=1e-6)
        assert two["train"]["loss"] == pytest.approx(one["train"]["loss"], rel=1e-6)


def test_a_run_with_helpers_resumes_exactly_and_leaves_nobody_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    honest = subprocess.Popen

    def noted(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(honest(*arguments, **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(module.subprocess, "Popen", noted)
    settings = config(data_file(tmp_path), "processes=2", "threads=1")
    train(settings, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7, signal.SIGINT)
        assert train(settings, tmp_path / "parts").reason == "interrupted"
    resume(tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert len(started) == 3
    assert all(process.poll() == 0 for process in started)


def test_sigterm_to_all_processes_of_a_job_saves_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Slurm and systemd send it; helpers that have hardly begun do not mind either."""
    settings = config(data_file(tmp_path), "processes=2", "threads=1")
    train(settings, tmp_path / "whole")
    honest_step, honest_start = Trainer.step, subprocess.Popen

    def signalled(self: Trainer, indices: list[int], progress: float) -> None:
        if self.state.step == 7:
            os.kill(self.helpers._processes[0].pid, signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        honest_step(self, indices, progress)

    def begun(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        process = honest_start(*arguments, **options)  # type: ignore[call-overload]
        process.send_signal(signal.SIGTERM)
        return process  # type: ignore[no-any-return]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", signalled)
        patch.setattr(module.subprocess, "Popen", begun)
        result = train(settings, tmp_path / "parts")
    assert (result.reason, result.step) == ("interrupted", 8)
    resume(tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_whose_helper_dies_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(
        data_file(tmp_path), "processes=2", "threads=1", "training.checkpoint_steps=1"
    )
    train(settings, tmp_path / "whole")
    honest = Trainer.step

    def deadly(self: Trainer, indices: list[int], progress: float) -> None:
        if self.state.step == 7:
            os.kill(self.helpers._processes[0].pid, signal.SIGKILL)
        honest(self, indices, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", deadly)
        with pytest.raises(ClebschError, match="a helper process of the training was ended"):
            train(settings, tmp_path / "parts")
    resume(tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_helpers_end_when_the_main_process_is_killed(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from clebsch.training.loop import train
from clebsch.training.trainer import Trainer
from tests.training.toy import config
step = Trainer.step
def deadly(self, indices, progress):
    if self.state.step == 3:
        print(self.helpers._processes[0].pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, indices, progress)
Trainer.step = deadly
settings = config(Path({str(data_file(tmp_path))!r}), "processes=2", "threads=1")
train(settings, {str(tmp_path / "run")!r})
"""
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    pid = int(ended.stdout)
    deadline = time.monotonic() + 30
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether there is such a process, and not just what is left of one."""
    try:
        os.kill(pid, 0)
        state = subprocess.check_output(["ps", "-o", "stat=", "-p", str(pid)], text=True)
    except (ProcessLookupError, subprocess.CalledProcessError):
        return False
    return not state.startswith("Z")
