"""Training from a file to a model: what it writes, when it stops, what it does with bad steps."""

from __future__ import annotations

import errno
import io
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers, covalent_radii
from rich.console import Console

import clebsch
from clebsch.cli import main
from clebsch.data.loader import Batch
from clebsch.data.read import read_frames
from clebsch.data.references import undetermined
from clebsch.data.statistics import Statistics
from clebsch.errors import ClebschError, ConfigError, DataError
from clebsch.evaluation.evaluate import evaluate
from clebsch.training import gradient as gradient_module
from clebsch.training import trainer as trainer_module
from clebsch.training.configfile import load_config, write_config
from clebsch.training.loop import resume, train
from clebsch.training.prepare import prepare
from clebsch.training.state import TrainingState
from clebsch.training.trainer import Trainer

from .toy import MODEL, cluster, config, crystal, data_file, history, without


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def scripted_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Validation then finds these losses, one after another."""
    remaining: Iterator[float] = iter(losses)
    monkeypatch.setattr(
        trainer_module, "validate", lambda *_: {"loss": next(remaining), "forces_rmse": 1.0}
    )


def test_training_learns_and_leaves_a_model_that_knows_where_it_is_from(
    tmp_path: Path, console: Console
) -> None:
    data = data_file(tmp_path)
    settings = config(data, "training.max_epochs=25", "training.warmup_steps=5")
    result = train(settings, tmp_path / "run", console)
    records = history(result.run)
    assert [record["epoch"] for record in records] == list(range(1, 26))
    assert records[-1]["valid"]["forces_rmse"] < 0.7 * records[0]["valid"]["forces_rmse"]
    assert records[-1]["train"]["loss"] < 0.3 * records[0]["train"]["loss"]
    assert result.reason == "epochs"
    best = min(records, key=lambda record: record["valid"]["loss"])
    assert result.best is not None
    assert result.best["epoch"] == best["epoch"]
    resolved = load_config(result.run / "config.yaml")
    assert isinstance(resolved.threads, int)
    assert resolved == settings.model_copy(
        update={"run": tmp_path / "run", "threads": resolved.threads, "processes": 1}
    )
    assert "F meV/Å" in said(console)
    assert (result.run / "log.txt").read_text() in said(console)

    potential = clebsch.load(tmp_path / "run" / "model.safetensors")
    provenance = potential.provenance
    assert provenance["metrics"] == best["valid"]
    assert provenance["training"]["epoch"] == best["epoch"]
    assert provenance["config"]["training"]["batch_size"] == 2
    assert list(provenance["data"]["train"]["files"]) == [str(data)]
    assert provenance["data"]["train"]["frames"] == 10
    assert undetermined(read_frames(data), provenance["data"]["formulas"]) == {}
    trained = prepare(settings, lambda _: None).train
    assert potential.shortest_distances == trained.shortest_distances(potential.species)
    assert set(potential.shortest_distances) == {"Cu-Cu", "Au-Cu", "Au-Au"}
    graph = potential.graph(trained.frames)
    energies = potential(graph, "site_energies").site_energies
    binding = potential.references[graph.species] - energies
    for kind in range(2):
        assert float(potential.floor.depths[kind]) == pytest.approx(
            max(0.0, float(binding[graph.species == kind].max())),
            abs=1e-6,  # 0: never below
        )
    for pair, distance in potential.shortest_distances.items():
        one, two = map(potential.species.index, pair.split("-"))
        bond = sum(covalent_radii[atomic_numbers[symbol]] for symbol in pair.split("-"))
        assert float(potential.contact.distances[one, two]) == min(distance, bond)
    assert set(potential.species) == {"Cu", "Au"}


def test_a_folder_that_holds_a_run_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    settings = config(data_file(tmp_path), "training.max_epochs=1")
    train(settings, tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    (tmp_path / "data.xyz").unlink()
    with pytest.raises(ConfigError, match="clebsch resume"):
        train(settings, tmp_path / "run")
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_a_start_that_failed_on_bad_data_does_not_block_the_folder(tmp_path: Path) -> None:
    settings = config(tmp_path / "data.xyz", "training.max_epochs=1")
    with pytest.raises(DataError):
        train(settings, tmp_path / "run")
    data_file(tmp_path)
    assert train(settings, tmp_path / "run").reason == "epochs"


@pytest.mark.parametrize(
    ("kept", "metric"),
    [("energy", "energy_per_atom_rmse"), ("forces", "forces_rmse"), ("stress", "stress_rmse")],
)
def test_any_single_kind_of_label_trains(tmp_path: Path, kept: str, metric: str) -> None:
    dropped = {"energy", "forces", "stress"} - {kept}
    frames = [without(crystal(seed), *dropped) for seed in range(6)]
    data = data_file(tmp_path, frames)
    result = train(
        config(data, f"training.metric={metric}", "training.warmup_steps=0"), tmp_path / "run"
    )
    records = history(result.run)
    assert set(records[0]["train"]) == {"loss", f"loss_{kept}"}
    assert records[1]["train"]["loss"] < records[0]["train"]["loss"]
    names = [name for name in records[0]["valid"] if not name.startswith("loss")]
    measured = {name.rpartition("_")[0] for name in names}
    assert measured == ({"energy", "energy_per_atom"} if kept == "energy" else {kept})


def test_molecules_and_crystals_with_different_labels_train_together(tmp_path: Path) -> None:
    frames = [crystal(0), cluster(0), without(cluster(1), "forces"), crystal(1)]
    frames += [without(crystal(2), "energy", "stress"), cluster(2), crystal(3)]
    data = data_file(tmp_path, frames)
    result = train(
        config(data, "training.batch_size=null", "training.batch_edges=150"), tmp_path / "run"
    )
    assert set(history(result.run)[0]["train"]) == {
        "loss", "loss_energy", "loss_forces", "loss_stress",
    }  # fmt: skip


def test_a_frame_of_weight_zero_is_left_out_and_others_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Statistics(3.0, 1.0, 0.0, 1.0)
    monkeypatch.setattr("clebsch.training.prepare.compute_statistics", lambda *_: measured)
    valid = data_file(tmp_path, [cluster(100)], "valid.xyz")

    def losses(weight: float, spoilt: float) -> list[float]:
        frames = [cluster(seed) for seed in range(4)]
        labels = dict(frames[1].calc.results)
        labels["forces"] = spoilt * labels["forces"]
        frames[1].calc = SinglePointCalculator(frames[1], **labels)
        for frame in frames:
            frame.info["config_weight"] = weight if frame is frames[1] else 1.0
        run = tmp_path / f"run {weight} {spoilt}"
        validation = ("data.valid_count=null", f"data.valid={valid}")
        references = "data.references={Cu: 3.5, Au: 3.8}"
        train(config(data_file(tmp_path, frames), *validation, references), run)
        return [record["valid"]["loss"] for record in history(run)]

    assert losses(0.0, 1.0) == losses(0.0, 5.0)
    assert losses(1.0, 1.0) != losses(1.0, 5.0)


def test_structures_to_train_on_are_drawn_and_counted(tmp_path: Path) -> None:
    data = data_file(tmp_path)
    counted = train(config(data, "data.train_count=5"), tmp_path / "counted")
    assert "Training: 5 structures" in (counted.run / "log.txt").read_text()
    assert [record["frames"] for record in history(counted.run)] == [5, 10]
    valid = data_file(tmp_path, [cluster(100)], "valid.xyz")
    apart = ("data.valid_count=null", f"data.valid={valid}", "data.train_count=12")
    assert history(train(config(data, *apart), tmp_path / "apart").run)[0]["frames"] == 12
    with pytest.raises(DataError, match="11 structures were asked for, but there are 1"):
        train(config(data, "data.train_count=11"), tmp_path / "too many")


def test_structures_differentiated_are_counted_within_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the time is up in the middle of the second epoch: ten structures, and one batch of two
    monkeypatch.setattr(Trainer, "seconds", property(lambda self: float(10 * self.state.step)))
    settings = config(data_file(tmp_path), "training.max_epochs=null", "training.max_minutes=1")
    result = train(settings, tmp_path / "run")
    assert (result.reason, result.step) == ("minutes", 6)
    assert history(result.run)[-1]["frames"] == 12


def test_early_stopping_stops_and_the_best_model_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_losses(monkeypatch, [3.0, 1.0, 2.0, float("nan"), 1.0, 0.1, 0.1])
    averages: list[dict[str, torch.Tensor]] = []
    evaluate = Trainer.evaluate

    def remembered(self: Trainer) -> None:
        averages.append({name: t.clone() for name, t in self.average.average.items()})
        evaluate(self)

    monkeypatch.setattr(Trainer, "evaluate", remembered)
    settings = config(data_file(tmp_path), "training.max_epochs=50", "training.patience=3")
    result = train(settings, tmp_path / "run")
    assert (result.reason, result.epoch) == ("patience", 5)
    assert [record["best"] for record in history(result.run)] == [True, True, False, False, False]
    kept = dict(clebsch.load(tmp_path / "run" / "model.safetensors").named_parameters())
    for name, value in averages[1].items():
        assert torch.equal(kept[name], value)
        assert not torch.equal(kept[name], averages[4][name]) or value.numel() == 0


def test_weights_that_are_not_finite_are_no_best_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No validation structure may have the element that they belong to."""
    scripted_losses(monkeypatch, [3.0, 1.0, 2.0])
    evaluate = Trainer.evaluate

    def broken(self: Trainer) -> None:
        if self.state.epoch == 2:
            next(iter(self.average.average.values())).view(-1)[0] = float("inf")
        evaluate(self)

    monkeypatch.setattr(Trainer, "evaluate", broken)
    result = train(config(data_file(tmp_path), "training.max_epochs=2"), tmp_path / "run")
    assert [record["best"] for record in history(result.run)] == [True, False]
    clebsch.load(tmp_path / "run" / "model.safetensors")


def test_the_named_metric_chooses_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([(1.0, 5.0), (2.0, 4.0), (3.0, 6.0)])

    def scripted(*_: Any) -> dict[str, float]:
        loss, rmse = next(values)
        return {"loss": loss, "forces_rmse": rmse}

    monkeypatch.setattr(trainer_module, "validate", scripted)
    settings = config(data_file(tmp_path), "training.max_epochs=3", "training.metric=forces_rmse")
    result = train(settings, tmp_path / "run")
    assert result.best is not None
    assert result.best["epoch"] == 2


def test_the_errors_of_a_run_are_those_of_its_model(tmp_path: Path) -> None:
    judged = data_file(tmp_path, [cluster(seed) for seed in (20, 21)], "judged.xyz")
    settings = config(data_file(tmp_path), "data.valid_count=null", f"data.valid={judged}")
    best = train(settings, tmp_path / "run").best
    model = clebsch.load(tmp_path / "run" / "model.safetensors")
    metrics = evaluate(model, read_frames(judged)).metrics
    assert best is not None
    for name in ("forces_mae", "forces_rmse"):
        assert metrics[name] == pytest.approx(best["valid"][name], rel=1e-9)


def test_evaluations_come_when_asked_for_and_always_at_the_end(tmp_path: Path) -> None:
    settings = config(data_file(tmp_path), "training.max_epochs=5", "training.eval_every=2")
    result = train(settings, tmp_path / "run")
    assert [record["epoch"] for record in history(result.run)] == [2, 4, 5]


def test_a_time_limit_ends_the_run_with_a_model(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clebsch.repeats.RECORD_AFTER", 10**9)  # it takes longer than the run
    settings = config(
        data_file(tmp_path), "training.max_epochs=null", "training.max_minutes=0.03",
        "training.eval_every=1000000", "training.warmup_steps=0",
    )  # fmt: skip
    result = train(settings, tmp_path / "run", console)
    assert result.reason == "minutes"
    assert 1.8 <= result.seconds < 6
    assert result.best is not None
    assert result.best["step"] == result.step
    assert result.best["lr"] < 0.1 * settings.training.lr
    assert "time is up" in said(console)
    clebsch.load(tmp_path / "run" / "model.safetensors")


@pytest.mark.parametrize(("seconds", "spent"), [(6.0, 0.6), (48.0, 0.8), (90.0, 1.0)])
def test_of_two_limits_the_nearer_one_is_the_budget(seconds: float, spent: float) -> None:
    trainer = SimpleNamespace(
        settings=SimpleNamespace(max_epochs=10, max_minutes=1.0),
        state=TrainingState(epoch=5, position=2),
        seconds=seconds,
    )
    assert Trainer.progress(trainer, n_batches=2) == pytest.approx(spent)  # type: ignore[arg-type]


def test_time_that_is_up_before_the_first_step_is_no_success(tmp_path: Path) -> None:
    settings = ("training.max_epochs=null", "training.max_minutes=1e-6")
    with pytest.raises(ClebschError, match=r"no step was taken within training\.max_minutes"):
        train(config(data_file(tmp_path), *settings), tmp_path / "run")
    with pytest.raises(ClebschError, match="no step was taken"):  # still none
        resume(tmp_path / "run")
    assert resume(tmp_path / "run", max_epochs=1, max_minutes=10).step > 0


def test_a_disk_that_is_full_from_the_start_leaves_nothing_to_resume_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "state")

    settings = config(data_file(tmp_path), "training.max_epochs=1")
    with monkeypatch.context() as patch:
        patch.setattr("clebsch.training.trainer.write_state", refused)
        with pytest.raises(ClebschError, match=r"No space left .*train again") as error:
            train(settings, tmp_path / "run")
    assert "resume" not in str(error.value)
    assert train(settings, tmp_path / "run").reason == "epochs"


def test_a_disk_that_is_full_at_the_very_end_leaves_a_run_to_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that says finished, without the model, would be the end of it."""
    write = Trainer.write_model

    def refused(trainer: Trainer) -> None:
        if trainer.state.epoch == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(trainer.model_path))
        write(trainer)

    settings = config(data_file(tmp_path), "training.max_epochs=3")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "write_model", refused)
        with pytest.raises(ClebschError, match=r"No space left on device.*clebsch resume"):
            train(settings, tmp_path / "run")
    result = resume(tmp_path / "run")
    assert (result.reason, result.epoch) == ("epochs", 3)
    assert result.best is not None
    assert result.model is not None
    made = clebsch.load(result.model).provenance["training"]
    assert made["epoch"] == result.best["epoch"]


def test_references_far_from_the_energies_are_noticed(tmp_path: Path) -> None:
    said: list[str] = []
    atoms = [cluster(seed) for seed in range(4)]
    for each in atoms:
        each.calc.results["energy"] -= 3000.0 * len(each)
    data = data_file(tmp_path, atoms)
    prepare(config(data, "model=mace_tiny", "data.references=none"), said.append)
    assert any("more than binds atoms" in text for text in said)
    said.clear()
    prepare(config(data, "model=mace_tiny", "data.references=fit"), said.append)
    assert not any("more than binds atoms" in text for text in said)


def spoil(monkeypatch: pytest.MonkeyPatch, when: Any) -> None:
    """Makes the loss of batches nan."""
    honest = gradient_module.loss_sums

    def spoilt(prediction: Any, batch: Batch, settings: Any) -> Any:
        sums = honest(prediction, batch, settings)
        return sums + type(sums)(forces=float("nan")) if when(batch) else sums

    monkeypatch.setattr(gradient_module, "loss_sums", spoilt)


def test_a_batch_that_is_not_finite_is_skipped_and_its_frames_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    data = data_file(tmp_path)
    spoil(monkeypatch, lambda batch: 3 in batch.frame_indices)
    weights: list[tuple[bool, bool]] = []
    step = Trainer.step

    def watched(self: Trainer, indices: list[int], progress: float) -> None:
        before = [p.detach().clone() for p in self.parameters.values()]
        step(self, indices, progress)
        same = all(torch.equal(a, b) for a, b in zip(before, self.parameters.values(), strict=True))
        weights.append((3 in indices, same))

    monkeypatch.setattr(Trainer, "step", watched)
    result = train(config(data), tmp_path / "run", console)
    assert len(weights) == 10
    assert weights.count((True, True)) == 2
    assert weights.count((False, False)) == 8
    assert said(console).count("is not finite") == 2
    assert f"{data}:" in said(console)
    assert np.isfinite(history(result.run)[-1]["train"]["loss"])


def test_a_run_without_a_single_step_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda _: True)
    few = ("training.batch_size=null", "training.batch_edges=100000", "training.max_epochs=2")
    with pytest.raises(ClebschError, match="no weight was changed"):
        train(config(data_file(tmp_path), *few), tmp_path / "run")


def test_several_bad_batches_in_a_row_stop_the_run_and_the_last_good_model_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_file(tmp_path)
    seen = iter(range(10_000))
    spoil(monkeypatch, lambda _: next(seen) >= 7)
    with pytest.raises(ClebschError, match=r"5 batches in a row.*epoch 2, is kept") as error:
        train(config(data, "training.max_epochs=4", "threads=1"), tmp_path / "run")
    assert f"{data}:" in str(error.value)
    potential = clebsch.load(tmp_path / "run" / "model.safetensors")
    assert all(bool(torch.isfinite(p).all()) for p in potential.parameters())
    assert potential.provenance["training"]["epoch"] == 2


def test_clipping_bounds_the_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    gradient = Trainer._gradient

    def watched(self: Trainer, indices: list[int]) -> Any:
        result = gradient(self, indices)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        return result

    monkeypatch.setattr(Trainer, "_gradient", watched)
    data = data_file(tmp_path)
    train(config(data), tmp_path / "free")
    assert max(norms) > 1
    norms.clear()
    train(config(data, "training.clip_grad_norm=0.5"), tmp_path / "clipped")
    assert 0 < max(norms) <= 0.5


def test_a_full_disk_is_said_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    honest = trainer_module.write_state

    def full(run: Path, state: Any, tensors: Any) -> None:
        if state.step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(run, state, tensors)

    monkeypatch.setattr(trainer_module, "write_state", full)
    settings = config(data_file(tmp_path), "training.checkpoint_steps=2")
    assert train(settings, tmp_path / "run", console).reason == "epochs"
    assert "step 4 could not be saved (No space left on device)" in said(console)


def test_a_run_that_keeps_no_model_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainer_module, "validate", lambda *_: {"loss": np.nan, "forces_rmse": 1.0})
    path, run = tmp_path / "run.yaml", str(tmp_path / "run")
    write_config(config(data_file(tmp_path), f"run={run}"), path)
    for arguments in (["train", str(path)], ["resume", run]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 1
        text = "".join(capsys.readouterr().out.split("\n"))
        assert "No model was kept: loss (training.metric) was not finite in any evaluation" in text
        assert "Report" not in text


def test_a_disk_that_is_full_for_a_while_loses_no_line_of_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    """Files may not grow by more than 64 bytes meanwhile, which is half a line."""
    settings = config(data_file(tmp_path), "training.max_epochs=4")
    train(settings, tmp_path / "whole")
    honest = Trainer.evaluate
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(self: Trainer) -> None:
        size = (self.run / "metrics.jsonl").stat().st_size if self.state.epoch > 1 else 0
        if self.state.epoch in (2, 3):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 64, hard))
        try:
            honest(self)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if self.state.epoch in (2, 3):
            assert len(history(self.run)) == 1

    monkeypatch.setattr(Trainer, "evaluate", limited)
    assert train(settings, tmp_path / "run", console).reason == "epochs"
    assert history(tmp_path / "run") == history(tmp_path / "whole")
    assert said(console).count("metrics.jsonl could not be written (File too large)") == 1


def test_a_log_file_that_cannot_be_written_does_not_end_training(
    tmp_path: Path, console: Console
) -> None:
    (tmp_path / "run" / "log.txt").mkdir(parents=True)
    result = train(config(data_file(tmp_path)), tmp_path / "run", console)
    assert result.reason == "epochs"
    assert "Finished: all epochs are done" in said(console)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: Can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
)
def test_memory_that_runs_out_says_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def exhausted(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(gradient_module, "loss_sums", exhausted)
    with pytest.raises(ClebschError, match=r"2 structures and \d+ edges.*training\.batch_size"):
        train(config(data_file(tmp_path)), tmp_path / "run")


def test_labels_that_the_loss_or_the_metric_needs_must_be_there(tmp_path: Path) -> None:
    data = data_file(tmp_path, [without(cluster(seed), "forces") for seed in range(6)])
    with pytest.raises(ConfigError, match=r"training\.metric is forces_rmse"):
        train(config(data, "training.metric=forces_rmse"), tmp_path / "run")
    with pytest.raises(DataError, match="a weight"):
        train(config(data, "training.loss={energy: 0, stress: 0}"), tmp_path / "run")


def lone(symbol: str, energy: float) -> Atoms:
    atom = Atoms(symbol)
    atom.calc = SinglePointCalculator(atom, energy=energy)
    return atom


def test_references_are_isolated_atoms_a_fit_given_or_none(
    tmp_path: Path, console: Console
) -> None:
    clusters = [cluster(seed) for seed in range(8)]
    plain = data_file(tmp_path, clusters, "plain.xyz")
    mixed = data_file(tmp_path, [lone("Cu", 3.5), *clusters, lone("Au", 3.8)], "mixed.xyz")
    atoms = data_file(tmp_path, [lone("Cu", 1.5), lone("Au", 1.8)], "atoms.xyz")
    cases: list[tuple[Path, str, dict[str, float] | None]] = [
        (mixed, "seed=0", {"Cu": 3.5, "Au": 3.8}),
        (plain, f"data.isolated_atoms={atoms}", {"Cu": 1.5, "Au": 1.8}),
        (plain, "data.references={Cu: 0.5, Au: 0.25}", {"Cu": 0.5, "Au": 0.25}),
        (mixed, "data.references=none", {"Cu": 0.0, "Au": 0.0}),
        (plain, "seed=0", None),
    ]
    for number, (data, setting, expected) in enumerate(cases):
        run = tmp_path / str(number)
        result = train(config(data, setting, "training.max_epochs=1"), run, console)
        assert result.model is not None
        potential = clebsch.load(result.model)
        assert potential.provenance["data"]["train"]["frames"] == 6
        found = dict(zip(potential.species, potential.references.tolist(), strict=True))
        if expected is not None:
            assert found == expected
    assert "references fitted" in said(console).lower()
    with pytest.raises(DataError, match="no isolated atom of Cu, Au"):
        train(config(plain, "data.references=isolated"), tmp_path / "none")
    with pytest.raises(ConfigError, match="no energy for Au"):
        train(config(plain, "data.references={Cu: 1}"), tmp_path / "none")


def test_a_file_of_isolated_atoms_needs_energies_alone(tmp_path: Path) -> None:
    frames = [cluster(seed) for seed in range(6)]
    for atoms in frames:
        results = atoms.calc.results
        atoms.info["my_energy"], atoms.info["my_weight"] = results["energy"], 2.0
        atoms.arrays["my_forces"] = results["forces"]
        atoms.calc = None
    atoms = [Atoms("Cu", info={"my_energy": 1.5}), Atoms("Au", info={"my_energy": 1.8})]
    settings = config(
        data_file(tmp_path, frames),
        "data.keys={energy: my_energy, forces: my_forces, weight: my_weight}",
        f"data.isolated_atoms={data_file(tmp_path, atoms, 'atoms.xyz')}",
    )
    assert prepare(settings, lambda _: None).references == {"Au": 1.8, "Cu": 1.5}


def test_weights_and_assumed_statistics_are_said(tmp_path: Path) -> None:
    frames = [without(cluster(seed), "forces") for seed in range(4)]
    for atoms, weight in zip(frames, (0.5, 1.0, 1.0, 3.0), strict=True):
        atoms.info["config_weight"] = weight
    valid = data_file(tmp_path, [cluster(9)], "valid.xyz")
    settings = config(data_file(tmp_path, frames), "data.valid_count=null", f"data.valid={valid}")
    lines: list[str] = []
    prepare(settings, lines.append)
    told = [line for line in lines if "weights" in line]
    assert told == [
        "Training: weights other than 1 are used: weight 0.5 to 3 (not 1 for 2 of 4 structures)"
    ]
    assert any("assumed: forces_rms 1" in line for line in lines)


def test_structures_to_validate_on_that_are_trained_on_are_noticed(tmp_path: Path) -> None:
    path = data_file(tmp_path, [cluster(seed) for seed in range(3)])
    other = data_file(tmp_path, [cluster(2), cluster(7)], "valid.xyz")
    lines: list[str] = []
    prepare(config(path, "data.valid_count=null", f"data.valid={other}"), lines.append)
    (told,) = [line for line in lines if "training structures too" in line]
    assert told.startswith(f"1 of 2 validation structures are training structures too, {other}:0")
    lines.clear()
    prepare(config(path), lines.append)
    assert not any("training structures too" in line for line in lines)


@pytest.mark.parametrize(
    ("settings", "advised"),
    [
        ([], True),
        (["training.batch_size=1"], False),
        (["recipe=paper"], False),
        (["training.batch_edges=1000"], True),
        (["model={name: ace, cutoff: 4.0, max_degree: 3, correlation: 2}"], False),
    ],
)
def test_few_structures_get_advice(tmp_path: Path, settings: list[str], advised: bool) -> None:
    path = data_file(tmp_path, [cluster(seed) for seed in range(4)])
    lines: list[str] = []
    prepare(load_config(None, [f"data.train={path}", MODEL, *settings]), lines.append)
    assert any("structures are few: training.batch_size=1" in line for line in lines) == advised


def test_a_cutoff_that_no_two_atoms_are_within_is_named(tmp_path: Path) -> None:
    settings = config(data_file(tmp_path, [cluster(i) for i in range(4)]), "model.cutoff=0.3")
    with pytest.raises(DataError, match=r"within the cut-off of 0\.3 Angstrom"):
        prepare(settings, lambda _: None)


def test_tensorboard_gets_every_scalar(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    result = train(config(data_file(tmp_path), "tensorboard=true"), tmp_path / "run")
    events = b"".join(p.read_bytes() for p in (result.run / "tensorboard").iterdir())
    assert b"valid/forces_rmse" in events


def test_history_lines_are_strict_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_losses(monkeypatch, [1.0, float("nan")])
    result = train(config(data_file(tmp_path)), tmp_path / "run")

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    lines = (result.run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    assert records[1]["valid"]["loss"] is None
