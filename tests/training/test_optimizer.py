"""Optimiser, schedules and averaged weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import clebsch
from clebsch.training.config import TrainingConfig
from clebsch.training.configfile import load_config
from clebsch.training.loop import train
from clebsch.training.optimizer import MovingAverage, Schedule, make_optimizer, swapped_in

from .toy import data_file

TOY = {
    "name": "message_passing",
    "cutoff": 4.0,
    "channels": 4,
    "l_max": 1,
    "message_l": 1,
    "radial": {"n_basis": 4, "hidden": [8]},
    "readout": {"hidden": 4},
    "product": {"correlation": 2},
}


def settings(**values: object) -> TrainingConfig:
    return TrainingConfig(**({"schedule": "constant", "batch_size": 1, "max_epochs": 1} | values))


def test_weight_decay_acts_on_the_weights_of_equations_10_and_11_alone() -> None:
    potential = clebsch.build({"channels": 2, "l_max": 1, "product": {"correlation": 2}}, ["H"])
    optimizer = make_optimizer(potential, settings(optimizer="amsgrad", weight_decay=5e-7))
    decayed = {id(p) for p in potential.model.decayed_parameters()}
    found = {id(p): g["decay"] for g in optimizer.param_groups for p in g["params"]}
    parameters = list(potential.parameters())
    assert set(found) == {id(p) for p in parameters}
    assert 0 < len(decayed) < len(parameters)
    for parameter in parameters:
        assert found[id(parameter)] == (5e-7 if id(parameter) in decayed else 0.0)
    assert all(g["amsgrad"] for g in optimizer.param_groups)
    assert all(g["betas"] == (0.9, 0.999) and g["eps"] == 1e-8 for g in optimizer.param_groups)


@pytest.mark.parametrize("kind", ["amsgrad", "adam", "adamw"])
def test_decay_is_torchs_where_there_is_a_gradient_and_none_elsewhere(kind: str) -> None:
    potential = clebsch.build({"channels": 2, "product": {"correlation": 2}}, ["H", "O"], seed=1)
    generator = torch.Generator().manual_seed(1)
    optimizer = make_optimizer(potential, settings(optimizer=kind, weight_decay=1e-3))
    weights = potential.model.layers[0].product.weights
    start = weights.detach().clone()
    peer = torch.nn.Parameter(start[1].clone())
    options = {"lr": 0.01, "weight_decay": 1e-3, "fused": True}
    torchs = (
        torch.optim.AdamW([peer], **options)
        if kind == "adamw"
        else torch.optim.Adam([peer], amsgrad=kind == "amsgrad", **options)
    )
    for _ in range(50):
        weights.grad = torch.randn(weights.shape, generator=generator)
        weights.grad[0] = 0
        peer.grad = weights.grad[1].clone()
        optimizer.step()
        torchs.step()
    assert torch.equal(weights[0], start[0])
    torch.testing.assert_close(weights[1], peer, rtol=1e-6, atol=1e-7)
    assert kind == "adamw" or torch.equal(weights[1], peer)


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_fine_tuning_keeps_what_belongs_to_elements_that_the_data_lack(
    tmp_path: Path, recipe: str
) -> None:
    start = clebsch.build(TOY, ["Cu", "Pd", "Au"], seed=1)
    start.save(tmp_path / "start.safetensors")
    settings = (
        f"data.train={data_file(tmp_path)}",
        "data.valid_count=2",
        f"initial={tmp_path / 'start.safetensors'}",
        f"recipe={recipe}",
        "training.batch_size=1",
        "training.max_epochs=3",
        "threads=1",
        "processes=1",
    )
    result = train(load_config(None, settings), tmp_path / "run")
    assert result.best is not None
    assert result.best["epoch"] > 0
    assert result.model is not None
    trained = dict(clebsch.load(result.model).named_parameters())
    by_element = [name for name, p in trained.items() if p.dim() == 3 and len(p) == 3]
    assert any(name.endswith("product.weights") for name in by_element)
    assert any("species_linear" in name for name in by_element)
    for name, before in start.named_parameters():
        if name in by_element:
            assert torch.equal(trained[name][1], before[1]), name
            assert not torch.equal(trained[name][0], before[0]), name


def test_a_plateau_lowers_the_rate_after_its_patience_and_not_before() -> None:
    schedule = Schedule(
        settings(schedule="plateau", plateau_patience=3, plateau_factor=0.5, lr=0.1)
    )
    schedule.observe(1.0)
    for _ in range(3):
        schedule.observe(1.0)
    assert schedule.lr(0, 0.5) == 0.1
    schedule.observe(2.0)
    assert schedule.lr(0, 0.5) == 0.05
    schedule.observe(0.5)
    for _ in range(3):
        schedule.observe(math.nan)
    assert schedule.lr(0, 0.9) == 0.05


def test_a_first_loss_that_is_not_finite_is_not_the_one_to_beat() -> None:
    schedule = Schedule(
        settings(schedule="plateau", plateau_patience=1, plateau_factor=0.5, lr=0.1)
    )
    for loss in (math.nan, math.inf, 4.0, 3.0, 2.0, 1.0):
        schedule.observe(loss)
    assert schedule.lowest == 1.0
    assert schedule.factor == 0.5


@pytest.mark.parametrize(("kind", "half"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_schedules_over_the_budget(kind: str, half: float) -> None:
    schedule = Schedule(settings(schedule=kind, lr=0.2, warmup_steps=4))
    assert schedule.lr(0, 0.0) == pytest.approx(0.05)
    assert schedule.lr(3, 0.0) == pytest.approx(0.2)
    assert schedule.lr(100, 0.5) == pytest.approx(0.2 * half)
    assert schedule.lr(100, 1.0) == pytest.approx(0.2 if kind == "constant" else 0.0)
    rates = [schedule.lr(100, p / 20) for p in range(21)]
    assert rates == sorted(rates, reverse=True)


def test_the_final_rate_is_reached() -> None:
    schedule = Schedule(settings(schedule="cosine", lr=0.2, final_lr=0.1))
    assert schedule.lr(9, 1.0) == pytest.approx(0.02)


def test_the_average_follows_its_formula() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    average = MovingAverage({"p": parameter}, decay=0.3)
    expected = 0.0
    for update in range(1, 6):
        with torch.no_grad():
            parameter.fill_(float(update))
        average.update()
        decay = min(0.3, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
    assert float(average.average["p"]) == pytest.approx(expected, rel=1e-14)


def test_swapping_in_the_average_gives_the_weights_back_bit_for_bit() -> None:
    parameter = torch.nn.Parameter(torch.randn(5))
    before = parameter.detach().clone()

    def fail_inside() -> None:
        with swapped_in({"p": torch.ones(5)}, {"p": parameter}):
            assert torch.equal(parameter, torch.ones(5))
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert torch.equal(parameter, before)
