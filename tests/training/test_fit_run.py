"""clebsch train with a model that is fitted in closed form: the same folder, the same commands."""

from __future__ import annotations

import errno
import io
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from rich.console import Console
from safetensors.torch import load_file

import clebsch
from clebsch.errors import ConfigError, ModelFileError
from clebsch.potential import Potential
from clebsch.training import evidence, fit_run, normal_equations
from clebsch.training.configfile import config_dict, load_config
from clebsch.training.loop import resume, train
from clebsch.training.normal_equations import NormalEquations
from clebsch.training.report import report_run
from training.toy import cluster, crystal

MODEL = "model={name: ace, cutoff: 4.0, correlation: 2, max_degree: [4, 2], committee: 4}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit")
    write(folder / "data.xyz", [*(cluster(i) for i in range(12)), *(crystal(i) for i in range(3))])
    config = load_config(
        None, [MODEL, f"data.train={folder / 'data.xyz'}", "data.valid_count=3", "dtype=float64"]
    )
    result = train(config, folder / "run")
    assert result.reason == "fitted"
    assert result.model == folder / "run" / "model.safetensors"
    return folder / "run"


def test_the_folder_is_that_of_a_training_run(run: Path) -> None:
    names = {"config.yaml", "log.txt", "metrics.jsonl", "model.safetensors"}
    assert names <= {path.name for path in run.iterdir()}
    (record,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert record["valid"]["forces_rmse"] > 0
    assert record["train"]["stress_rmse"] > 0
    assert record["fit"]["effective_parameters"] > 1
    log = (run / "log.txt").read_text()
    assert "effective parameters" in log
    assert "log evidence" in log


def test_a_fit_takes_as_many_threads_as_are_asked_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, seen = fit_run.solve, []

    def solve(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return honest(*arguments)

    monkeypatch.setattr(fit_run, "solve", solve)
    before = torch.get_num_threads()
    train(load_config(run / "config.yaml", ["threads=3"]), tmp_path / "run")
    assert seen == [3]
    assert torch.get_num_threads() == before


def test_the_model_tells_how_it_was_made(run: Path) -> None:
    potential = clebsch.load(run / "model.safetensors")
    provenance = potential.provenance
    assert provenance["config"]["model"]["name"] == "ace"
    assert provenance["data"]["train"]["frames"] == 12
    assert provenance["fit"]["strength"] > 0
    assert float(clebsch.uncertainty(potential, potential.graph(cluster(0))).energy) > 0


def test_the_written_configuration_is_read_back(run: Path) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert "training" not in settings
    assert "recipe" not in settings
    again = load_config(run / "config.yaml")
    assert config_dict(again) == settings


def test_a_report_can_be_made_again(run: Path) -> None:
    assert "closed form" in report_run(run).read_text(encoding="utf-8")


def test_a_finished_fit_stays_as_it_is(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.iterdir() if path.name != "log.txt"}
    result = resume(run)
    assert (result.reason, result.model) == ("fitted", run / "model.safetensors")
    assert result.best is not None
    assert result.best["fit"]["strength"] > 0
    after = {path: path.read_bytes() for path in run.iterdir() if path.name != "log.txt"}
    assert after == before


def test_a_second_fit_into_the_folder_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="holds a run already"):
        train(load_config(run / "config.yaml"), run)


# --- interrupted ------------------------------------------------------------------------------


class Killed(BaseException):
    """Nothing may catch it, as nothing catches kill -9."""


def signal_before(monkeypatch: pytest.MonkeyPatch, place: str, call: int, number: int) -> None:
    """A signal arrives before a certain call: of a structure's equations, of a solution, ..."""
    where, name = {
        "structure": (NormalEquations, "add"),
        "strength": (evidence._Problem, "solve"),
        "validation": (fit_run, "validate"),
        "model": (Potential, "save"),
    }[place]
    honest, calls = getattr(where, name), []

    def signalled(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            if number == signal.SIGKILL:
                raise Killed
            signal.raise_signal(number)
        return honest(*arguments, **named)

    monkeypatch.setattr(where, name, signalled)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of rows and panels of columns of which this data set has several."""
    monkeypatch.setattr(normal_equations, "BLOCK", 16)
    monkeypatch.setattr(normal_equations, "PANEL", 7)


def fit_anew(run: Path, data: Path, *settings: str, console: Console | None = None) -> Any:
    config = load_config(run / "config.yaml", [f"data.train={data}", *settings])
    return train(config, data.parent / "cut", console)


def kill_before(
    monkeypatch: pytest.MonkeyPatch, place: str, call: int, run: Path, data: Path, *settings: str
) -> None:
    """A fit that ``kill -9`` ends before a certain call."""
    with monkeypatch.context() as patch:
        signal_before(patch, place, call, signal.SIGKILL)
        with pytest.raises(Killed):
            fit_anew(run, data, *settings)


def assert_same_fit(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    for folder in (one, other):
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
        assert not (folder / "state").exists()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("place", "call", "number"),
    [
        ("structure", 1, signal.SIGINT),
        ("structure", 5, signal.SIGTERM),
        ("structure", 12, signal.SIGINT),
        ("strength", 3, signal.SIGINT),
        ("validation", 1, signal.SIGINT),
    ],
)
def test_an_interrupted_fit_goes_on_bit_for_bit(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, call: int, number: int
) -> None:
    data = Path(shutil.copy(run.parent / "data.xyz", tmp_path))
    whole = fit_anew(run, data)
    whole.run.rename(tmp_path / "whole")
    console = Console(file=io.StringIO(), width=300)
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        signal_before(patch, place, call, number)
        cut = fit_anew(run, data, console=console)
    assert (cut.reason, cut.model, cut.best) == ("interrupted", None, None)
    assert signal.getsignal(signal.SIGINT) is before
    left = {".lock", "config.yaml", "log.txt", "state"}
    assert {path.name for path in cut.run.iterdir()} == left
    assert isinstance(console.file, io.StringIO)
    assert f"Interrupted; saved. Go on with: clebsch resume {cut.run}" in console.file.getvalue()
    added = []
    honest = NormalEquations.add
    with monkeypatch.context() as patch:
        patch.setattr(NormalEquations, "add", lambda *a: (added.append(1), honest(*a)))
        assert resume(cut.run).reason == "fitted"
    assert len(added) == 12 - (call if place == "structure" else 12)
    assert_same_fit(tmp_path / "whole", cut.run)


@pytest.mark.usefixtures("small_blocks")
def test_a_killed_fit_goes_on_from_the_state_saved_last(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copy(run.parent / "data.xyz", tmp_path))
    fit_anew(run, data).run.rename(tmp_path / "whole")
    kill_before(monkeypatch, "structure", 7, run, data, "fit.checkpoint_minutes=0")
    with pytest.raises(ConfigError, match=r"holds a run already: continue it with clebsch resume"):
        fit_anew(run, data)
    resume(tmp_path / "cut")
    assert "after structure 6 of 12" in (tmp_path / "cut" / "log.txt").read_text()
    assert_same_fit(tmp_path / "whole", tmp_path / "cut")


def test_a_full_disk_between_structures_does_not_end_a_fit(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All equations so far would be lost with it, for want of a copy of them."""
    data = Path(shutil.copy(run.parent / "data.xyz", tmp_path))
    fit_anew(run, data).run.rename(tmp_path / "whole")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "fit.safetensors")

    monkeypatch.setattr(fit_run, "write_fit_state", full)
    assert fit_anew(run, data, "fit.checkpoint_minutes=0").reason == "fitted"
    said = "equations of 6 structures could not be saved (No space left on device); the fit goes on"
    assert said in (tmp_path / "cut" / "log.txt").read_text()
    assert_same_fit(tmp_path / "whole", tmp_path / "cut")


def test_a_fit_killed_before_it_wrote_its_model_is_done_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had no state yet: a line of metrics is all that tells of it."""
    data = Path(shutil.copy(run.parent / "data.xyz", tmp_path))
    fit_anew(run, data).run.rename(tmp_path / "whole")
    kill_before(monkeypatch, "model", 1, run, data)
    assert not (tmp_path / "cut" / "state").exists()
    assert resume(tmp_path / "cut").reason == "fitted"
    assert_same_fit(tmp_path / "whole", tmp_path / "cut")


def test_a_fit_that_is_not_finite_keeps_its_equations(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, judge = Path(shutil.copy(run.parent / "data.xyz", tmp_path)), fit_run._Fit.judge

    def broken(self: Any, fitted: Any) -> Any:
        record = judge(self, fitted)
        self.potential.head.references[0] = float("nan")
        return record

    with monkeypatch.context() as patch:
        patch.setattr(fit_run._Fit, "judge", broken)
        with pytest.raises(ModelFileError, match=r"head\.references of the potential holds NaN"):
            fit_anew(run, data)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    assert resume(tmp_path / "cut").reason == "fitted"
    assert "after structure 12 of 12" in (tmp_path / "cut" / "log.txt").read_text()


def test_what_would_change_an_interrupted_fit_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copy(run.parent / "data.xyz", tmp_path))
    with monkeypatch.context() as patch:
        signal_before(patch, "structure", 2, signal.SIGINT)
        folder = fit_anew(run, data).run
    with pytest.raises(ConfigError, match="has no limits"):
        resume(folder, max_epochs=3)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("smoothness: 1.0", "smoothness: 2.0"))
    with pytest.raises(ConfigError, match=r"fit\.smoothness is 2\.0, but the run began with 1\.0"):
        resume(folder)
    (folder / "config.yaml").write_text(config)
    frames = read(data, index=":")
    lone = Atoms(frames[0].symbols[:1])
    lone.calc = SinglePointCalculator(lone, energy=-1.0, forces=np.zeros((1, 3)))
    write(data, [*frames, lone])  # the same structures, but other references
    with pytest.raises(ModelFileError, match="reference energies are not those"):
        resume(folder)
    frames[0].positions += 0.01 * np.arange(len(frames[0]))[:, None]
    write(data, frames)
    with pytest.raises(ModelFileError, match="not those that the run began with"):
        resume(folder)
    state = folder / "state" / "fit.safetensors"
    state.write_bytes(state.read_bytes()[:-9])
    with pytest.raises(ModelFileError, match="safetensors"):
        resume(folder)
    state.unlink()
    with pytest.raises(ModelFileError, match="no state of a fit to resume from"):
        resume(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model=ace_3bpa", "training.lr=0.1"], r"command line: training\.lr: .*closed form"),
        (["model=ace_3bpa", "recipe=paper"], r"recipe: .*closed form"),
        (["model=mace_tiny", "fit.energy=3"], r"fit\.energy: .*model message_passing is trained"),
        (["model=ace_3bpa", "fit.energi=3"], r"unknown key 'fit\.energi'.*energy"),
        (["model=ace_3bpa", "model.channels=3"], r"unknown key 'model\.channels'"),
        (["model=ace_3bpa", "model.max_degree=[1]"], r"model: .*max_degree has 1 numbers"),
        (["model=ace_3bpa", "fit.regularization=often"], r"fit\.regularization"),
        (["model={name: brace}"], r"model"),
    ],
)
def test_settings_of_the_other_kind_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["data.train=frames.xyz", *settings])
