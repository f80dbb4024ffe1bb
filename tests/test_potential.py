"""A potential can be copied, sent, cast and misused, and stays right or says what is wrong."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms

import clebsch
from builders import ethanol, potential, skewed_cell
from clebsch.errors import BackendError, ClebschError, DataError
from clebsch.kernels import cpu
from clebsch.kernels.cpu import machine
from clebsch.nn.energy import ZBLRepulsion


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


def test_apples_gpus_are_refused_for_want_of_float64_before_anything_has_moved() -> None:
    tested = potential(backend="reference")
    on_mps = SimpleNamespace(device=torch.device("mps"))
    with pytest.raises(ClebschError, match=r'use the device "cpu" \(torch'):
        tested._apply(lambda tensor: on_mps)  # type: ignore[arg-type, return-value]
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
