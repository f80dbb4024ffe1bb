"""Muon: orthogonal steps for linear maps, AMSGrad for the rest."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import clebsch
from clebsch.training.config import TrainingConfig
from clebsch.training.loop import resume, train
from clebsch.training.muon import Muon, orthogonal
from clebsch.training.optimizer import make_optimizer, trained_parameters

from .test_resume import assert_same_run
from .toy import config, data_file, history


@pytest.mark.parametrize("columns", [5, 9, 30])
def test_orthogonal_keeps_directions_and_equalises_lengths(columns: int) -> None:
    generator = torch.Generator().manual_seed(1)
    matrices = torch.randn(3, 5, columns, dtype=torch.float64, generator=generator)
    matrices[1] = torch.logspace(-0.5, 0.5, 5)[:, None] * matrices[1]
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    found = left.mT @ orthogonal(matrices) @ right.mT
    values = found.diagonal(dim1=1, dim2=2)
    assert bool(((values > 0.6) & (values < 1.25)).all())
    torch.testing.assert_close(found, torch.diag_embed(values), rtol=0, atol=1e-9)
    single = orthogonal(matrices.float()).double()
    torch.testing.assert_close(single, orthogonal(matrices), rtol=0, atol=1e-4)
    assert not orthogonal(torch.zeros(1, 2, columns)).any()


@pytest.mark.parametrize("size", [1e-30, 1e-23, 1e25])
def test_orthogonal_takes_matrices_of_any_size(size: float) -> None:
    generator = torch.Generator().manual_seed(1)
    matrices = torch.randn(3, 5, 9, generator=generator)
    matrices[1] = 0
    found = orthogonal(size * matrices)
    assert not found[1].any()
    values = torch.linalg.svdvals(found[::2])
    assert bool(((values > 0.6) & (values < 1.25)).all())
    power_of_two = 2.0**-60
    assert torch.equal(orthogonal(power_of_two * matrices), orthogonal(matrices))


def test_matrices_of_elements_that_batches_lack_stay() -> None:
    """The second of two elements is seen once; a single matrix is not seen at first."""
    generator = torch.Generator().manual_seed(3)
    species = torch.nn.Parameter(torch.randn(2, 6, 6, generator=generator))
    single = torch.nn.Parameter(torch.randn(4, 6, generator=generator))
    optimizer = Muon([species, single], [], lr=0.01)
    seen, start = species.detach().clone(), single.detach().clone()
    for step in range(1200):
        species.grad = torch.randn(2, 6, 6, generator=generator)
        single.grad = torch.zeros(4, 6)
        if step:
            species.grad[1] = 0
        optimizer.step()
        if step == 0:
            seen = species.detach().clone()
            momentum = optimizer.state[species]["momentum"].clone()
    assert torch.equal(species[1], seen[1])
    assert torch.equal(optimizer.state[species]["momentum"][1], momentum[1])
    assert torch.equal(single, start)
    assert bool(torch.isfinite(species).all())
    assert float((species - seen)[0].detach().square().mean().sqrt()) > 0.1
    species.grad = torch.randn(2, 6, 6, generator=generator)
    optimizer.step()
    moved = (species - seen)[1].detach().square().mean().sqrt()
    assert float(moved) == pytest.approx(0.01, rel=0.3)


def test_each_matrix_takes_a_step_of_the_learning_rate() -> None:
    """Batched ones, tall and wide ones, each as if it were alone."""
    generator = torch.Generator().manual_seed(2)

    def parameter(*shape: int) -> torch.nn.Parameter:
        made = torch.nn.Parameter(torch.randn(*shape, generator=generator))
        made.grad = torch.randn(*shape, generator=generator)
        return made

    square, tall, wide = parameter(5, 5), parameter(12, 4), parameter(2, 4, 12)
    other = parameter(3)
    parameters = (square, tall, wide, other)
    before = [p.detach().clone() for p in parameters]
    Muon([square, tall, wide], [{"params": [other]}], lr=0.1).step()
    steps = [old - p.detach() for old, p in zip(before, parameters, strict=True)]
    gradients = [p.grad for p in parameters if p.grad is not None]
    for step, gradient in zip(steps[:3], gradients, strict=False):
        assert float(step.square().mean().sqrt()) == pytest.approx(0.1, rel=0.25)
        assert float((step * gradient).sum()) > 0
    alone = orthogonal(gradients[1].mT[None])[0].mT
    torch.testing.assert_close(steps[1], 0.1 * math.sqrt(12) * alone)
    second = orthogonal(gradients[2][1:])[0]
    torch.testing.assert_close(steps[2][1], 0.1 * math.sqrt(12) * second)
    torch.testing.assert_close(steps[3], 0.1 * gradients[3].sign(), rtol=1e-4, atol=1e-4)


def test_every_parameter_is_in_one_group_and_frozen_ones_in_none() -> None:
    potential = clebsch.build(
        {"channels": 2, "l_max": 1, "product": {"correlation": 2}}, ["H", "O"]
    )
    potential.model.layers[0].linear.requires_grad_(False)
    settings = TrainingConfig(schedule="constant", batch_size=1, max_epochs=1, optimizer="muon")
    optimizer = make_optimizer(potential, settings)
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in trained_parameters(potential).values())
    matrices = {id(p) for p in optimizer.param_groups[0]["params"]}
    names = {name for name, p in potential.model.named_parameters() if id(p) in matrices}
    assert "layers.1.species_linear.weights.0" in names
    others = ("product", "readouts", "embedding", "radial")
    assert not any(other in name for other in others for name in names)


def test_a_run_with_muon_learns_and_resumes_exactly(tmp_path: Path) -> None:
    data = data_file(tmp_path)
    settings = (
        "training.optimizer=muon",
        "training.lr=0.1",
        "training.schedule=constant",
        "threads=1",
    )
    whole = train(config(data, *settings, "training.max_epochs=6"), tmp_path / "whole")
    losses = [record["train"]["loss"] for record in history(whole.run)]
    assert losses[-1] < 0.7 * losses[0]
    train(config(data, *settings, "training.max_epochs=3"), tmp_path / "parts")
    resume(tmp_path / "parts", max_epochs=6)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
