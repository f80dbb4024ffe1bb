"""``clebsch doctor``: a good model on a good machine passes; whatever is wrong is named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import pytest
import torch
from ase.build import bulk

import clebsch
from builders import MODELS, ethanol, potential, skewed_cell, slab
from clebsch import doctor
from clebsch.kernels import cpu
from clebsch.kernels.dispatch import load_backend
from clebsch.modelfile import read_tensors, write_tensors

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("doctor") / "model.safetensors"
    potential().save(path)
    return path


def test_a_model_passes_and_the_machine_is_described(run_doctor: Run, model: Path) -> None:
    status, out, _ = run_doctor(model)
    assert status == 0, out
    for said in ("All is well", "llvm", "reference", "float32", "float64", "bits", "ms", "LLVM"):
        assert said in out


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_passes_on_every_kind_of_structure(name: str) -> None:
    structures = {"molecule": ethanol(), "cell": skewed_cell(), "slab": slab()}
    found = doctor.examine(potential(name), structures, dtypes=[torch.float64], seconds=0)
    assert not found.failures
    assert {check.structure for check in found.checks} == set(structures)
    assert {check.backend for check in found.checks} == {"llvm", "reference"}
    assert len(found.timings) == 6


def test_a_perfect_crystal_without_forces_is_no_reason_to_distrust(model: Path) -> None:
    crystal = bulk("O", "fcc", a=3.6, cubic=True)
    tested = potential()
    assert abs(tested(tested.graph(crystal)).forces).max() < 1e-10
    found = doctor.examine(tested, {"crystal": crystal}, dtypes=[torch.float64], seconds=0)
    assert not found.failures


def test_structures_that_the_model_does_not_know_are_an_error_of_the_caller(
    run_doctor: Run, model: Path, tmp_path: Path
) -> None:
    ase.io.write(tmp_path / "xenon.xyz", [ethanol(), bulk("Xe", "fcc", a=6.1)])
    status, out, err = run_doctor(model, tmp_path / "xenon.xyz")
    assert (status, out) == (2, "")
    assert "xenon.xyz 1: element Xe (atom 0) is unknown" in err


def test_structures_and_precision_can_be_chosen(
    run_doctor: Run, model: Path, tmp_path: Path
) -> None:
    ase.io.write(tmp_path / "water.xyz", [ethanol(seed) for seed in range(9)])
    status, out, _ = run_doctor(model, tmp_path / "water.xyz", "--dtype", "float32", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["healthy"]
    assert {check["dtype"] for check in found["checks"]} == {"float32"}
    places = [timing["structure"] for timing in found["timings"]]
    assert places == [f"water.xyz {number}" for number in (0, 2, 4, 6, 8)] * 2


def scaled(result: torch.Tensor) -> torch.Tensor:
    return result * 1.01


def without_weights(result: torch.Tensor) -> torch.Tensor:
    """Right values with wrong derivatives: half of each is lost."""
    return 0.5 * result + 0.5 * result.detach()


FORGERIES = {
    "wrong values": (scaled, "energy: reference"),
    "wrong derivatives": (without_weights, "forces: differences"),
    "not a number": (lambda result: result * float("nan"), "forces: reference"),
}


@pytest.mark.parametrize("forgery", list(FORGERIES))
def test_a_forged_backend_is_named(
    run_doctor: Run, model: Path, monkeypatch: pytest.MonkeyPatch, forgery: str
) -> None:
    honest = cpu.contract
    forge, check = FORGERIES[forgery]
    monkeypatch.setattr(cpu, "contract", lambda *inputs: forge(honest(*inputs)))
    with pytest.raises(clebsch.ClebschError):
        clebsch.load(model)  # which only says so
    status, out, _ = run_doctor(model, "--dtype", "float64")
    assert status == 1
    assert f"llvm, float64, example: {check}" in out
    assert "Do not trust: llvm." in out
    assert "wrong: reference" not in out


def test_a_backend_that_raises_is_named(
    run_doctor: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*inputs: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(cpu, "contract", broken)
    status, out, _ = run_doctor(model, "--dtype", "float64")
    assert status == 1
    assert "no such instruction" in out
    assert "Do not trust: llvm." in out


def test_a_backend_that_forgets_a_symmetry_is_found() -> None:
    """Whatever the reference says: the physics is tested by itself."""
    reference = load_backend("reference")

    def crooked(*inputs: Any) -> torch.Tensor:
        return reference.convolve_radial(*inputs) + 0.1

    tested = potential(backend="reference")
    tested.compute_with(dataclasses.replace(reference, name="forged", convolve_radial=crooked))
    candidate = doctor._Candidate(tested, tested, "forged", torch.float64)
    wrong = {check.name for check in candidate.checks("molecule", ethanol()) if not check.passed}
    assert "rotation" in wrong
    assert "order of atoms" not in wrong


def test_answers_that_are_not_those_of_the_file_are_found(
    run_doctor: Run, model: Path, tmp_path: Path
) -> None:
    tensors, metadata = read_tensors(model)
    metadata["reference"]["forces"][0][0] += 1e-3
    write_tensors(tmp_path / "altered.safetensors", tensors, metadata)
    status, out, _ = run_doctor(tmp_path / "altered.safetensors", "--dtype", "float64")
    assert status == 1
    assert "reference, float64, stored: answers in the file" in out


def test_a_backend_that_is_not_here_is_said_and_no_failure(
    run_doctor: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_the_reference(name: str) -> object:
        if name == "llvm":
            raise clebsch.errors.BackendError("the llvm backend cannot be used: no llvmlite")
        return load_backend(name)

    monkeypatch.setattr(doctor, "load_backend", only_the_reference)
    status, out, _ = run_doctor(model, "--dtype", "float64")
    assert status == 0
    assert "no llvmlite" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent.safetensors",), "absent.safetensors"),
        (("{}", "absent.xyz"), "absent.xyz"),
        (("{}", "--dtype", "float16"), "float16"),
    ],
)
def test_a_mistake_gets_one_clear_line(
    run_doctor: Run, model: Path, arguments: tuple[str, ...], message: str
) -> None:
    status, _, error = run_doctor(*(argument.format(model) for argument in arguments))
    assert status == 2
    assert message in error
