"""Replay: a fine-tuned model keeps giving the initial model's answers on structures of before."""

from __future__ import annotations

import re
import signal
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

import clebsch
from builders import tiny
from clebsch.errors import ClebschError, ConfigError, ModelFileError, UnknownElementError
from clebsch.training.config import Config, ReplayConfig
from clebsch.training.configfile import load_config
from clebsch.training.loop import resume, train
from clebsch.training.optimizer import trained_parameters
from clebsch.training.prepare import prepare
from clebsch.training.replayed import Replay, prepare_replay, with_own_readouts

from .test_resume import assert_same_run, interrupt_at
from .toy import cluster, crystal, data_file, history


@pytest.fixture
def start(tmp_path: Path) -> Path:
    path = tmp_path / "start.safetensors"
    tiny("Cu Au").save(path)
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Structures of before, without labels: clusters and crystals."""
    frames = [Atoms(c.symbols, c.positions) for c in map(cluster, range(20, 29))]
    return data_file(tmp_path, [*frames, *map(crystal, range(3))], "old.xyz")


def settings(data: Path, start: Path, *more: str) -> Config:
    common = ["data.valid_count=2", "dtype=float64", "training.batch_size=2", "training.lr=0.01"]
    limits = ["training.max_epochs=2", "training.checkpoint_minutes=1000"]
    fitted = ["data.references=fit", f"initial={start}", f"data.train={data}"]
    return load_config(None, [*common, *limits, *fitted, *more])


def prepared_replay(start: Path, old: Path, **more: object) -> tuple[clebsch.Potential, Replay]:
    potential = clebsch.load(start).requires_grad_()
    config = ReplayConfig(structures=old, **more)  # type: ignore[arg-type]
    return potential, prepare_replay(config, potential, 2, 1000, seed=0)


@pytest.mark.parametrize("model", ["mace_tiny", "allegro_small"])
def test_two_sets_of_readouts_share_all_other_weights(model: str) -> None:
    potential = clebsch.build(model, ["Cu", "Au"])
    other = with_own_readouts(potential)
    readouts = {id(p) for p in potential.model.readout_parameters()}
    assert readouts
    theirs = dict(other.named_parameters())
    for name, parameter in potential.named_parameters():
        assert (theirs[name] is parameter) == (id(parameter) not in readouts), name
        assert torch.equal(theirs[name], parameter)
    mine = trained_parameters(potential)
    more = trained_parameters(potential, other).keys() - mine.keys()
    assert more == {f"other.{name}" for name, p in mine.items() if id(p) in readouts}


def test_labels_are_the_answers_of_the_initial_model(start: Path, old: Path) -> None:
    potential, replay = prepared_replay(start, old)
    frames = [*replay.train.frames, *replay.valid.frames]
    assert (len(frames), len(replay.valid)) == (12, 1)
    for frame in frames:
        atoms = frame.to_atoms()
        atoms.calc = clebsch.calculator(potential)
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-10)
        assert (frame.stress is not None) == atoms.pbc.all()
        if frame.stress is not None:
            np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), atol=1e-10)
    assert sum(frame.stress is not None for frame in frames) == 3


def test_labels_in_the_file_are_not_read(start: Path, old: Path, tmp_path: Path) -> None:
    frames = read(old, ":")
    for frame in frames:
        frame.calc = SinglePointCalculator(frame, energy=1e6)
        frame.info["config_weight"] = 0.0
    write(tmp_path / "labelled.xyz", frames)
    _, plain = prepared_replay(start, old)
    _, labelled = prepared_replay(start, tmp_path / "labelled.xyz")
    assert labelled.train.fingerprint() == plain.train.fingerprint()


def test_every_structure_has_its_turn(start: Path, old: Path) -> None:
    _, replay = prepared_replay(start, old, batch_size=4)
    steps = [replay.batch(step) for step in range(6)]
    assert [len(batch) for batch in steps] == [4, 4, 3, 4, 4, 3]
    for turn in (steps[:3], steps[3:]):
        assert sorted(chain.from_iterable(turn)) == list(range(11))
    assert steps[:3] != steps[3:]
    _, few = prepared_replay(start, old, count=6)
    assert (len(few.train), len(few.valid), few.sampler.batch_size) == (5, 1, 2)


@pytest.mark.parametrize("readouts", ["own", "shared"])
def test_less_is_forgotten_with_replay(
    tmp_path: Path, start: Path, old: Path, readouts: str
) -> None:
    """The data pull weights elsewhere; how far the initial model's answers move is measured."""
    data = data_file(tmp_path, [*map(crystal, range(10, 20))])
    more = ("training.max_epochs=20", "training.eval_every=20", "processes=1", "threads=1")
    kept = {}
    for weight in ("1e-12", "1"):
        replay = [f"replay.structures={old}", f"replay.readouts={readouts}"]
        run = tmp_path / weight
        train(settings(data, start, *more, *replay, f"replay.weight={weight}"), run)
        first, last = history(run)
        assert first["replay"]["forces_rmse"] < 1e-10
        assert first["replay"]["energy_rmse"] < 1e-10
        kept[weight] = last["replay"]["forces_rmse"]
    assert kept["1"] < 0.7 * kept["1e-12"]
    assert "Off the initial model on replayed structures" in (tmp_path / "1/log.txt").read_text()


def test_the_model_is_one_for_the_data_alone(tmp_path: Path, start: Path, old: Path) -> None:
    data = data_file(tmp_path)
    result = train(settings(data, start, f"replay.structures={old}"), tmp_path / "run")
    assert result.model is not None
    trained, initial = clebsch.load(result.model), clebsch.load(start)
    assert trained.state_dict().keys() == initial.state_dict().keys()
    assert trained.provenance["replay"]["forces_rmse"] > 0
    (file,) = trained.provenance["data"]["replay"]["files"]
    assert (file, trained.provenance["data"]["replay"]["frames"]) == (str(old), 12)


@pytest.mark.parametrize("readouts", ["own", "shared"])
def test_an_interrupted_run_goes_on_in_the_same_bits(
    tmp_path: Path, start: Path, old: Path, monkeypatch: pytest.MonkeyPatch, readouts: str
) -> None:
    more = (f"replay.structures={old}", f"replay.readouts={readouts}", "processes=1", "threads=1")
    config = settings(data_file(tmp_path), start, *more, "training.optimizer=muon")
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, signal.SIGTERM)
        assert train(config, tmp_path / "cut").reason == "interrupted"
    assert resume(tmp_path / "cut").reason == "epochs"
    groups = {"other"} if readouts == "own" else set()
    assert_same_run(tmp_path / "whole", tmp_path / "cut", groups)


def test_helpers_have_their_part_in_it(tmp_path: Path, start: Path, old: Path) -> None:
    data = data_file(tmp_path)
    losses = []
    for processes in (1, 3):
        more = (f"replay.structures={old}", f"processes={processes}", "threads=1")
        run = tmp_path / str(processes)
        train(settings(data, start, *more), run)
        last = history(run)[-1]
        losses.append([last["valid"]["loss"], last["replay"]["loss"], last["train"]["loss"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_other_structures_or_settings_are_another_run(
    tmp_path: Path, start: Path, old: Path
) -> None:
    run = tmp_path / "run"
    more = (f"replay.structures={old}", "training.max_epochs=1")
    train(settings(data_file(tmp_path), start, *more), run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("readouts: own", "readouts: shared"))
    with pytest.raises(ConfigError, match=r"replay\.readouts is 'shared', but the run began with"):
        resume(run, max_epochs=2)
    (run / "config.yaml").write_text(text)
    frames = read(old, ":")
    frames[3].positions[0] += 0.01
    write(old, frames)
    with pytest.raises(ModelFileError, match="the structures, labels or initial model are not"):
        resume(run, max_epochs=2)


def test_what_cannot_be_replayed_is_said(tmp_path: Path, start: Path, old: Path) -> None:
    data = data_file(tmp_path)
    with pytest.raises(ConfigError, match="replay: without an initial model"):
        load_config(None, [f"data.train={data}", f"replay.structures={old}"])
    with pytest.raises(ConfigError, match=r"replay\.structures is missing"):
        settings(data, start, "replay.weight=2")

    def fails(error: type[ClebschError], message: str, *more: str) -> None:
        with pytest.raises(error, match=message):
            prepare(settings(data, start, *more), lambda _: None)

    few = f"{re.escape(str(old))}: replay.count: 13 structures were asked for, but there are 12"
    fails(ClebschError, few, f"replay.structures={old}", "replay.count=13")
    one = data_file(tmp_path, [cluster(1)], "one.xyz")
    fails(ClebschError, "one structure is too few", f"replay.structures={one}")
    other = data_file(tmp_path, [cluster(1), Atoms("Ag2", [[0, 0, 0], [0, 0, 2.5]])], "other.xyz")
    fails(UnknownElementError, r"other\.xyz:1: .*Ag", f"replay.structures={other}")
