"""Atoms bound more strongly than any in training: how much less is made of it, and of what else."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from ase import Atoms

from clebsch.data.frame import Frame
from clebsch.data.loader import LabelledGraphs
from clebsch.nn.floor import UNKNOWN
from clebsch.potential import Potential
from clebsch.training.depths import deepest

from builders import (  # isort: skip
    ARCHITECTURES,
    MODELS,
    STRUCTURES,
    central_difference,
    copied_potential,
    ethanol,
    rattled,
    skewed_cell,
)


def binding(potential: Potential, atoms: Atoms) -> torch.Tensor:
    """[N], eV: energies of atoms relative to their references."""
    graph = potential.graph(atoms)
    return potential(graph, "site_energies").site_energies - potential.references[graph.species]


def floored(potential: Potential, depth: float) -> Potential:
    """A copy that believes to have been trained on atoms that were bound by so much."""
    other = copy.deepcopy(potential)
    other.floor.depths.fill_(depth)
    return other


def unstable(model: str = "mace", **options: str) -> Potential:
    """One whose random network binds atoms by many eV."""
    potential = copied_potential(model, **options)
    potential.head.scale.fill_(200.0)
    return potential


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_energies_below_it_are_held_and_others_stay(model: str) -> None:
    plain = unstable(model)
    tested = floored(plain, 1.0)
    atoms = ethanol()
    before = binding(plain, atoms).numpy()
    assert (before < -2.5).any()
    x = np.maximum(0, (-1.5 - before) / 0.5)
    expected = np.where(before < -1.5, -1.5 - 0.5 * x / (1 + x**4) ** 0.25, before)
    np.testing.assert_allclose(binding(tested, atoms), expected, rtol=1e-9, atol=1e-9)
    told = tested(tested.graph(atoms), ("energy", "layer_energies"))
    total = float((tested.references[tested.graph(atoms).species]).sum()) + expected.sum()
    assert float(told.energy) == pytest.approx(total, abs=1e-8)
    assert float(told.layer_energies.sum()) == pytest.approx(total, abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("model", list(MODELS))
def test_above_it_nothing_changes(model: str, dtype: torch.dtype) -> None:
    plain = copied_potential(model, dtype)
    for atoms in (build() for build in STRUCTURES.values()):
        depth = max(0.0, -0.49 - float(binding(plain, atoms).min()))
        tested, graph = floored(plain, depth), plain.graph(atoms)
        outputs = ("energy", "forces", "virial", "site_energies")
        for name in outputs:
            one, other = (getattr(p(graph, outputs), name) for p in (plain, tested))
            assert torch.equal(one, other), name


@pytest.mark.parametrize("model", ARCHITECTURES)
@pytest.mark.parametrize("structure", ["molecule", "skewed cell"])
def test_forces_and_hessians_are_derivatives_of_the_energy(model: str, structure: str) -> None:
    tested = unstable(model, backend="reference")
    atoms = STRUCTURES[structure]()[:4]
    depth = max(0.01, -0.8 - float(binding(tested, atoms).min()))
    tested = floored(tested, depth)  # where energies are half held
    graph = tested.graph(atoms)
    way = torch.from_numpy(np.random.default_rng(0).normal(size=graph.positions.shape))

    def moved(by: float) -> tuple[float, float]:
        told = tested(graph.with_positions(graph.positions + by * way), ("energy", "forces"))
        return float(told.energy), -float((told.forces * way).sum())

    def difference(which: int) -> float:
        return central_difference(lambda by: moved(by)[which], 1e-4)

    assert difference(0) == pytest.approx(moved(0.0)[1], rel=1e-6)
    hessian = tested(graph, "hessian").hessian
    assert difference(1) == pytest.approx(
        float(way.flatten() @ hessian @ way.flatten()), rel=1e-5, abs=1e-5
    )


def test_no_structure_has_less_energy_than_the_floor_allows() -> None:
    """However far from training, and however wrong the network is there."""
    plain = unstable()
    tested = floored(plain, 1.0)
    rng = np.random.default_rng(0)
    lowest = []
    for n in range(2, 12):
        atoms = Atoms(rng.choice(["H", "C", "Cu"], n), 3 * rng.random((n, 3)))
        lowest.append(float(binding(plain, atoms).min()))
        assert float(binding(tested, atoms).min()) > -2.0
    assert min(lowest) < -50


def test_depths_are_those_of_the_structures_that_are_asked() -> None:
    """0 of elements that are never bound, and nothing is known of those that are not there."""
    plain = unstable()
    structures = [rattled(ethanol(), seed) for seed in range(4)]
    frames = [Frame(a.numbers, a.positions, a.cell.array, a.pbc) for a in structures]
    found = deepest(plain, LabelledGraphs(plain, frames)).tolist()
    for symbol, depth in zip(plain.species, found, strict=True):
        energies = [binding(plain, a).numpy()[a.symbols == symbol] for a in structures]
        bound = -np.concatenate(energies).min(initial=0.0)
        assert depth == pytest.approx(bound if symbol in "HCO" else UNKNOWN, abs=1e-9)


def test_atoms_that_training_never_bound_have_a_floor_as_well() -> None:
    never = floored(unstable(), 0.0)
    assert (binding(unstable(), ethanol()) < -1).any()
    assert float(binding(never, ethanol()).min()) > -1.0


def test_recorded_evaluations_have_it() -> None:
    """And follow it when it moves."""
    tested, reference = (floored(unstable(backend=b), 1.0) for b in ("auto", "reference"))
    for depth in (1.0, 3.0):
        for potential in (tested, reference):
            potential.floor.depths.fill_(depth)
        for seed in range(30):
            atoms = rattled(skewed_cell(), seed)
            one, other = (p(p.graph(atoms)) for p in (tested, reference))
            torch.testing.assert_close(one.energy, other.energy, rtol=1e-10, atol=1e-9)
            torch.testing.assert_close(one.forces, other.forces, rtol=1e-8, atol=1e-8)
    assert (binding(tested, atoms) < -3.5).any()
