"""A potential can be copied, sent, cast and misused, and stays right or says what is wrong."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

import clebsch
from builders import copied_potential, ethanol, potential, skewed_cell, statistics, tiny
from clebsch.errors import (
    BackendError,
    ClebschError,
    DataError,
    ModelFileError,
    UnknownElementError,
)
from clebsch.graph import batch_graphs
from clebsch.kernels import cpu, reference
from clebsch.kernels.cpu import machine
from clebsch.kernels.cpu.linear import _all_atoms
from clebsch.nn.energy import ZBLRepulsion
from clebsch.repeats import RECORD_AFTER


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_give_the_same_and_share_the_plans(copier) -> None:  # type: ignore[no-untyped-def]
    original = potential()
    duplicate = copier(original)
    graph = original.graph(skewed_cell())
    assert torch.equal(duplicate(graph).forces, original(graph).forces)
    assert duplicate.backend == "llvm"
    assert duplicate.model.layers[0].product.plan is original.model.layers[0].product.plan
    first, second = (p.model.layers[1].atomic_basis.plan for p in (original, duplicate))
    assert first is second


def test_atoms_with_our_calculator_can_be_deep_copied() -> None:
    atoms = ethanol()
    atoms.calc = clebsch.calculator(potential())
    energy = atoms.get_potential_energy()
    assert copy.deepcopy(atoms).get_potential_energy() == energy


def test_a_cast_potential_is_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tested = potential(dtype=torch.float64)
    true = cpu.contract
    monkeypatch.setattr(cpu, "contract", lambda *args: 1.01 * true(*args))
    assert torch.isfinite(tested(tested.graph(ethanol())).energy).all()
    tested.float()
    with pytest.raises(BackendError, match="disagrees"):
        tested(tested.graph(ethanol()))


def test_a_loss_on_the_hessian_is_differentiated_by_the_reference_and_refused_elsewhere() -> None:
    """It has third derivatives, which only the reference has."""
    tested = copied_potential(backend="reference")
    graph = tested.graph(Atoms("CO", [[0.1, 0, 0], [0, 0.2, 1.2]]))
    weight = tested.model.embedding

    def loss() -> torch.Tensor:
        hessian = tested(graph, "hessian", differentiable=True).hessian
        assert hessian is not None
        return hessian.square().sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    moved = []
    for step in (1e-4, -1e-4):
        with torch.no_grad():
            weight[1, 0] += step
        moved.append(float(loss().detach()))
        with torch.no_grad():
            weight[1, 0] -= step
    assert float(gradient[1, 0]) == pytest.approx((moved[0] - moved[1]) / 2e-4, rel=1e-5)
    tested.use_backend("llvm")
    with pytest.raises(NotImplementedError, match="use_backend\\('reference'\\) has all"):
        torch.autograd.grad(loss(), weight)


def test_apples_gpus_are_refused_for_want_of_float64_before_anything_has_moved() -> None:
    tested = potential(backend="reference")
    on_mps = SimpleNamespace(device=torch.device("mps"))
    with pytest.raises(ClebschError, match=r'use the device "cpu" \(torch'):
        tested._apply(lambda tensor: on_mps)  # type: ignore[arg-type, return-value]
    assert torch.isfinite(tested(tested.graph(ethanol())).energy).all()


def test_a_device_that_is_not_here_is_an_error_of_ours_and_nothing_has_moved() -> None:
    tested = copied_potential(backend="reference")
    with pytest.raises(ClebschError, match="the potential cannot be moved or cast: "):
        tested.to("cuda:99")
    assert torch.isfinite(tested(tested.graph(ethanol())).energy).all()


def test_a_backend_with_wrong_second_derivatives_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Energies and forces right, and yet it would train on wrong gradients."""
    from clebsch.kernels.cpu import product

    tested = potential(backend="reference")
    true = product._kernel

    def wrong(spec, kind, weighted):  # type: ignore[no-untyped-def]
        kernel = true(spec, kind, weighted)
        idle = machine.Kernel(lambda *args: None, kernel.work)
        return idle if kind == "polynomial_second" else kernel

    monkeypatch.setattr(product, "_kernel", wrong)
    with pytest.raises(BackendError, match="disagrees"):
        tested.use_backend("llvm")


def test_numbers_that_are_not_finite_are_no_disagreement(monkeypatch: pytest.MonkeyPatch) -> None:
    tested = potential(backend="reference")
    with monkeypatch.context() as patch:
        true = cpu.contract
        patch.setattr(cpu, "contract", lambda *args: float("nan") * true(*args))
        with pytest.raises(BackendError, match="llvm backend gives numbers that are not finite"):
            tested.use_backend("llvm")
    with torch.no_grad():
        tested.model.embedding[0] = float("nan")
    with pytest.raises(BackendError, match=r"whatever computes them.*model\.embedding holds NaN"):
        tested.use_backend("llvm")


def test_a_model_that_rounding_moves_far_is_not_taken_for_a_wrong_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In float32 its gradients are uncertain by more than a thousandth, whatever computes them."""
    sensitive = {
        "name": "message_passing",
        "cutoff": 3.0,
        "mean_energy": "none",
        "zbl": True,
        "layers": 3,
        "channels": 8,
        "l_max": 2,
        "parity": "full",
        "radial": {
            "basis": "gaussian",
            "n_basis": 4,
            "envelope": "smooth",
            "hidden": (8, 8),
            "transform": "soft",
        },
        "interaction": {"paths": "summed", "normalization": "sqrt_neighbors"},
        "product": {"weights": "shared"},
        "update": {
            "later_layers": "species_linear",
            "self_connection": "none",
            "gate": "tanh",
            "last_layer": "full",
        },
        "readout": {"layers": "last", "inner": "mlp", "last": "two_linear", "hidden": 4},
    }
    tested = clebsch.build(sensitive, ["H", "C", "O", "Cu"], dtype=torch.float32, seed=0)
    assert tested.use_backend("llvm").backend == "llvm"
    true = cpu.contract
    monkeypatch.setattr(cpu, "contract", lambda *args: 1.02 * true(*args))
    with pytest.raises(BackendError, match="disagrees"):
        tested.use_backend("llvm")


def test_a_backend_that_fails_is_told_and_done_without_unless_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError("no such instruction")

    tested = potential(backend="reference")
    monkeypatch.setattr(cpu, "contract", fails)
    with pytest.raises(BackendError, match=r"llvm backend fails.*no such instruction"):
        tested.use_backend("llvm")
    with pytest.warns(UserWarning, match="no such instruction; the slower reference is used"):
        tested.use_backend()
    assert tested.backend == "reference"
    assert torch.isfinite(tested(tested.graph(ethanol())).forces).all()


def test_half_precision_is_refused() -> None:
    tested = potential().half()
    graph = tested.graph(ethanol())
    with pytest.raises(BackendError, match="float32 or float64"):
        tested(graph)


def test_references_stay_in_float64() -> None:
    tested = potential(dtype=torch.float64).float()
    assert tested.references.dtype == torch.float64
    assert float(tested.references[0]) == -13.6
    assert tested.dtype == torch.float32


def test_inference_mode_is_refused_for_forces_and_fine_for_energies() -> None:
    tested = potential()
    with torch.inference_mode():
        graph = tested.graph(ethanol())
        assert torch.isfinite(tested(graph, "energy").energy).all()
        with pytest.raises(clebsch.ClebschError, match=r"torch\.no_grad"):
            tested(graph)
    with torch.no_grad():
        assert tested(tested.graph(ethanol())).forces.any()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_building_and_casting_where_nothing_is_differentiated(
    mode: Callable[[], Any], tmp_path: Path
) -> None:
    """The check of the backend differentiates all the same, and parameters serve outside."""
    potential().save(tmp_path / "model.safetensors")
    with mode():
        made = [potential(dtype=torch.float32), clebsch.load(tmp_path / "model.safetensors")]
    made.append(potential().float())
    for tested in made:
        with mode():
            tested(tested.graph(ethanol()), "energy")
        assert tested.backend == "llvm"
        tested.requires_grad_()
        found = tested(tested.graph(ethanol()), differentiable=True)
        torch.autograd.grad(found.forces.square().sum(), tested.model.embedding)


@pytest.mark.parametrize("backend", ["reference", "llvm"])
def test_what_is_kept_of_an_energy_in_inference_mode_serves_gradients(backend: str) -> None:
    tested = potential(backend=backend)
    for cached in (reference._cached_table, reference._polynomial, _all_atoms):
        cached.cache_clear()
    graph = tested.graph([ethanol(), ethanol()])
    with torch.inference_mode():
        tested(graph, "energy")
    found = tested(graph, differentiable=True)
    torch.autograd.grad(found.forces.square().sum(), tested.model.embedding)


def test_autocast_concerns_no_potential() -> None:
    tested = potential(dtype=torch.float32)
    graph = tested.graph(ethanol())
    expected = tested(graph)
    for _ in range(RECORD_AFTER + 1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = tested(graph)
        assert torch.equal(found.forces, expected.forces)
    assert torch.equal(tested(graph).forces, expected.forces)


def test_a_number_that_no_element_has_is_unknown() -> None:
    with pytest.raises(UnknownElementError, match="element of number 200"):
        potential().graph(Atoms(numbers=[200]))


def test_the_repulsion_of_mace_torch_has_the_scale_of_the_network() -> None:
    config = {"channels": 2, "l_max": 1, "cutoff": 3.0, "zbl": "mace_torch"}
    built = clebsch.build(config, ["H"], statistics=statistics())
    assert built.head.scale != 1
    assert built.prior.scale == built.head.scale


def test_an_unknown_output_is_named() -> None:
    tested = potential()
    with pytest.raises(clebsch.ClebschError, match=r"'force'.*Did you mean 'forces'"):
        tested(tested.graph(ethanol()), ("energy", "force"))


def test_one_output_may_be_a_bare_name() -> None:
    tested = potential()
    prediction = tested(tested.graph(ethanol()), "energy")
    assert prediction.energy is not None


def test_what_is_no_graph_and_no_structure_is_refused_with_what_to_do() -> None:
    tested = potential()
    with pytest.raises(ClebschError, match=r"not on Atoms: potential\(potential\.graph"):
        tested(ethanol())  # type: ignore[arg-type]
    for name in ("POSCAR", Path("POSCAR")):
        with pytest.raises(ClebschError, match=r"POSCAR: .* ase\.io\.read"):
            tested.graph(name)  # type: ignore[arg-type]
    with pytest.raises(ClebschError, match="no structure"):
        tested.graph([])
    for wrong in (3, [ethanol(), 3]):
        with pytest.raises(ClebschError, match=r"ase\.Atoms for one, not of int"):
            tested.graph(wrong)  # type: ignore[arg-type]
    with pytest.raises(ModelFileError, match="from a file, not from int"):
        clebsch.load(3)  # type: ignore[arg-type]


def test_objects_say_in_a_line_what_they_are() -> None:
    tested = tiny("H C O", dtype=torch.float32)
    graph = tested.graph([ethanol(), ethanol()])
    assert repr(graph) == f"AtomGraph(2 structures, 18 atoms, {graph.n_edges} edges, cpu)"
    n = sum(p.numel() for p in tested.parameters())
    told = (
        f"Potential(message_passing, H C O, cut-off 4 Angstrom, {n} parameters, float32, cpu, llvm)"
    )
    assert repr(tested) == told
    assert repr(clebsch.calculator(tested)) == f"ClebschCalculator({told})"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (tiny("H C N"), r"made for H, C, N, and this potential is for H, C, O: .*\.graph\("),
        (tiny("H C O", cutoff=3.5), r"cut-off of 3\.5 Angstrom.* is for a cut-off of 4 Angstrom"),
    ],
    ids=["elements", "cutoff"],
)
def test_the_graph_of_another_potential_is_refused(other: clebsch.Potential, message: str) -> None:
    """It would give the energy of other elements, or of some of the neighbours, without a word."""
    graph = other.graph(ethanol()[:2] if "N" in other.species else ethanol())
    for one in (graph, graph.to("cpu"), graph.with_positions(graph.positions.clone())):
        with pytest.raises(ClebschError, match=message):
            tiny("H C O")(one)


def test_a_graph_with_the_same_elements_and_a_longer_cutoff_serves() -> None:
    tested = tiny("H C O")
    far = tiny("H C O", cutoff=4.5).graph(ethanol())
    assert far.n_edges > tested.graph(ethanol()).n_edges
    torch.testing.assert_close(tested(far).energy, tested(tested.graph(ethanol())).energy)
    copied = pickle.loads(pickle.dumps(tested))
    assert torch.equal(
        copied(tested.graph(ethanol())).energy, tested(copied.graph(ethanol())).energy
    )


def test_graphs_of_different_potentials_cannot_be_batched() -> None:
    graphs = [tiny("H C O", cutoff=cutoff).graph(ethanol()) for cutoff in (4.0, 4.5)]
    with pytest.raises(ClebschError, match="cannot be batched"):
        batch_graphs(graphs)
    assert batch_graphs([graphs[0]] * 2).scope == graphs[0].scope


def test_public_names_are_listed() -> None:
    assert set(dir(clebsch)) == set(clebsch.__all__)
    assert all(getattr(clebsch, name) is not None for name in dir(clebsch))


def test_a_cell_that_is_not_a_number_is_refused() -> None:
    atoms = skewed_cell()
    atoms.cell[0, 0] = np.nan
    with pytest.raises(DataError, match="lattice vector is not a finite number"):
        potential().graph(atoms)


def test_zbl_ends_at_the_cutoff_where_covalent_radii_reach_farther() -> None:
    zbl = ZBLRepulsion([55], cutoff=3.0)
    graph = clebsch.build({"channels": 2, "l_max": 1, "cutoff": 3.0}, ["Cs"]).graph(
        Atoms("Cs2", [[0, 0, 0], [2.9, 0, 0]])
    )
    near = zbl(torch.full((2,), 2.9999, dtype=torch.float64), graph).sum()
    assert 0 <= float(near) < 1e-6


def test_building_leaves_no_trace_in_the_generators_of_other_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(_: int) -> None:
        raise AssertionError("torch.manual_seed reseeds every device")

    monkeypatch.setattr(torch, "manual_seed", forbidden)
    potential()
