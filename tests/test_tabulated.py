"""Tabulated path weights: the same potential to within what splines cost, for inference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

import clebsch
from builders import MODELS, STRUCTURES, ethanol, potential
from clebsch.errors import ClebschError, ConfigError
from clebsch.models.config import MessagePassingConfig
from clebsch.nn.path_weights import RadialNetwork, RadialTable
from clebsch.nn.radial import BesselBasis, PolynomialEnvelope

#: Others' path weights are no functions of the distance alone.
TABULATED = [
    name
    for name, config in MODELS.items()
    if isinstance(config, MessagePassingConfig)
    and config.radial.weights == "mlp"
    and config.radial.transform == "none"
    and config.interaction.gated is None
    and config.interaction.attention is None
]


@pytest.mark.parametrize("backend", ["reference", "llvm"])
@pytest.mark.parametrize("model", TABULATED)
def test_forces_are_within_what_is_promised(model: str, backend: str) -> None:
    exact = potential(model, backend=backend)
    tabulated = exact.tabulated()
    assert tabulated.backend == backend
    for build in STRUCTURES.values():
        graph = exact.graph(build())
        there, here = exact(graph).forces, tabulated(graph).forces
        assert there is not None
        assert here is not None
        assert 0 < (here - there).abs().max() < 1e-4 * (1 + there.abs().max())


def test_the_error_falls_with_the_third_power_of_the_spacing() -> None:
    """Forces are slopes of splines of fourth order."""
    exact = potential()
    graph = exact.graph(ethanol())
    there = exact(graph).forces
    errors = []
    for spacing in (0.04, 0.02, 0.01):
        here = exact.tabulated(spacing)(graph).forces
        assert here is not None
        assert there is not None
        errors.append(float((here - there).abs().max()))
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


def test_forces_are_the_derivative_of_the_tabulated_energy() -> None:
    tested = potential().tabulated()
    atoms = ethanol()
    forces = tested(tested.graph(atoms)).forces
    assert forces is not None
    energies = []
    for step in (-1e-5, 1e-5):
        moved = atoms.copy()
        moved.positions[3, 1] += step
        energies.append(float(tested(tested.graph(moved)).energy))
    assert abs(float(forces[3, 1]) + (energies[1] - energies[0]) / 2e-5) < 1e-6


def test_the_end_of_the_table_is_smooth_and_the_rest_zero() -> None:
    tested = potential().tabulated()
    reach = np.array([-1e-6, 1e-6, 0.3]) + tested.cutoff
    energies = []
    for distance in reach:
        atoms = Atoms("OH", [[0, 0, 0], [0, 0, distance]])
        energies.append(float(tested(tested.graph(atoms)).energy))
    assert abs(energies[0] - energies[1]) < 1e-9
    assert energies[1] == energies[2]


@pytest.mark.parametrize("spacing", [4.0, 0.0, -0.01, float("nan"), float("inf")])
def test_tables_without_a_shape_are_refused(spacing: float) -> None:
    with pytest.raises(ConfigError, match=r"spacing of .* at most 0\.\d+, a twentieth"):
        potential().tabulated(spacing)


def test_it_can_be_neither_trained_nor_saved(tmp_path: Path) -> None:
    tested = potential().tabulated()
    assert tested.is_tabulated
    assert not any(parameter.requires_grad for parameter in tested.parameters())
    with pytest.raises(ClebschError, match="save the one that it was made from"):
        tested.save(tmp_path / "model.safetensors")
    with pytest.raises(ClebschError, match="no Hessian: ask the exact one"):
        tested(tested.graph(ethanol()), "hessian")


def test_tables_are_made_of_networks_not_of_tables() -> None:
    with pytest.raises(ClebschError, match="tabulate the one that it was made from"):
        potential("mace three layers with ZBL").tabulated().tabulated(0.01)


def test_the_original_is_left_as_it_was() -> None:
    exact = potential()
    graph = exact.graph(ethanol())
    before = exact(graph).energy
    exact.tabulated()
    after = exact(graph).energy
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)
    assert isinstance(clebsch.calculator(exact.tabulated()).potential, clebsch.Potential)


def test_tables_are_made_where_the_network_lies() -> None:
    network = RadialNetwork(8, (16, 16), 3, 4).to("meta")
    basis = BesselBasis(5.0, 8, PolynomialEnvelope(5.0, 5)).to("meta")
    assert RadialTable(network, basis, 5.0, 0.5).table.device.type == "meta"
