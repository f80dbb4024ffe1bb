"""The contract: what every model promises, on every backend and dtype it runs with."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from scipy.spatial.transform import Rotation

import builders
import clebsch
from builders import (
    MODELS,
    REFERENCES,
    STRUCTURES,
    central_difference,
    copied_potential,
    ethanol,
    rattled,
    skewed_cell,
    slab,
)
from clebsch.graph import neighborhood
from clebsch.kernels.dispatch import best_backend

BACKENDS = list(dict.fromkeys(["reference", best_backend(torch.device(builders.DEVICE)).name]))
DTYPES = [torch.float64, torch.float32]

pytestmark = [
    pytest.mark.parametrize("model", list(MODELS)),
    pytest.mark.parametrize("backend", BACKENDS),
]

#: Relative to the largest force: float64 sums in another order; float32 carries 1e-7 through a
#: polynomial of order 12, two layers and a derivative.
ROUNDING = {torch.float64: 1e-10, torch.float32: 2e-4}


def forces_and_energy(calculator: clebsch.Potential, atoms: Atoms) -> tuple[np.ndarray, float]:
    prediction = calculator(calculator.graph(atoms))
    return prediction.forces.cpu().numpy(), float(prediction.energy)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("structure", list(STRUCTURES))
def test_energy_is_invariant_and_forces_rotate(
    model: str, backend: str, dtype: torch.dtype, structure: str
) -> None:
    tested = copied_potential(model, dtype, backend)
    atoms = STRUCTURES[structure]()
    forces, energy = forces_and_energy(tested, atoms)
    tolerance = ROUNDING[dtype] * (1 + np.abs(forces).max())
    for inversion in (1, -1):
        rotation = inversion * Rotation.random(random_state=3).as_matrix()
        turned = atoms.copy()
        turned.set_cell(atoms.cell.array @ rotation.T)
        turned.positions = atoms.positions @ rotation.T + [0.3, -2, 1]
        turned_forces, turned_energy = forces_and_energy(tested, turned)
        assert abs(turned_energy - energy) <= tolerance * len(atoms)
        assert np.abs(turned_forces - forces @ rotation.T).max() <= tolerance


@pytest.mark.parametrize("structure", list(STRUCTURES))
def test_the_order_of_atoms_means_nothing(model: str, backend: str, structure: str) -> None:
    tested = copied_potential(model, backend=backend)
    atoms = STRUCTURES[structure]()
    order = np.random.default_rng(5).permutation(len(atoms))
    forces, energy = forces_and_energy(tested, atoms)
    permuted_forces, permuted_energy = forces_and_energy(tested, atoms[order])
    scale = 1 + np.abs(forces).max()
    assert abs(permuted_energy - energy) <= 1e-10 * scale * len(atoms)
    assert np.abs(permuted_forces - forces[order]).max() <= 1e-10 * scale


@pytest.mark.parametrize("structure", list(STRUCTURES))
def test_forces_are_minus_the_derivative_of_the_energy(
    model: str, backend: str, structure: str
) -> None:
    tested = copied_potential(model, backend=backend)
    atoms = STRUCTURES[structure]()
    forces, _ = forces_and_energy(tested, atoms)
    for atom, axis in ((0, 0), (1, 1), (len(atoms) - 1, 2)):

        def energy(shift: float, atom: int = atom, axis: int = axis) -> float:
            moved = atoms.copy()
            moved.positions[atom, axis] += shift
            return float(tested(tested.graph(moved), ("energy",)).energy)

        difference = -central_difference(energy, 1e-3)
        assert difference == pytest.approx(
            forces[atom, axis], rel=1e-6, abs=1e-6 * np.abs(forces).max()
        )


@pytest.mark.parametrize("structure", list(STRUCTURES))
def test_virial_is_minus_the_derivative_with_respect_to_strain(
    model: str, backend: str, structure: str
) -> None:
    tested = copied_potential(model, backend=backend)
    atoms = STRUCTURES[structure]()
    outputs = ("virial", "stress") if structure == "skewed cell" else ("virial",)
    prediction = tested(tested.graph(atoms), outputs)
    virial = prediction.virial[0].cpu().numpy()
    np.testing.assert_allclose(virial, virial.T, atol=1e-12)
    for a, b in ((0, 0), (1, 1), (0, 1), (1, 2)):

        def energy(strain: float, a: int = a, b: int = b) -> float:
            deformation = np.eye(3)
            deformation[a, b] += strain / 2
            deformation[b, a] += strain / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ deformation)
            strained.positions = atoms.positions @ deformation
            return float(tested(tested.graph(strained), ("energy",)).energy)

        difference = -central_difference(energy, 5e-4)
        assert difference == pytest.approx(virial[a, b], rel=1e-6, abs=1e-6 * np.abs(virial).max())
    if prediction.stress is not None:
        np.testing.assert_allclose(prediction.stress[0].cpu().numpy(), -virial / atoms.get_volume())


@pytest.mark.parametrize("pbc", list(itertools.product([False, True], repeat=3)), ids=str)
def test_forces_hold_for_every_periodicity(
    model: str, backend: str, pbc: tuple[bool, bool, bool]
) -> None:
    tested = copied_potential(model, backend=backend)
    atoms = skewed_cell()
    atoms.pbc = pbc
    forces, _ = forces_and_energy(tested, atoms)
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-10 * (1 + np.abs(forces).max()))

    def energy(shift: float) -> float:
        moved = atoms.copy()
        moved.positions[0, 2] += shift
        return float(tested(tested.graph(moved), ("energy",)).energy)

    difference = -central_difference(energy, 1e-3)
    assert difference == pytest.approx(
        forces[0, 2], rel=1e-6, abs=1e-6 * (1e-6 + np.abs(forces).max())
    )


def test_the_energy_is_smooth_at_the_cutoff(model: str, backend: str) -> None:
    tested = copied_potential(model, backend=backend)
    base = ethanol()

    def energy_and_force(distance: float) -> tuple[float, float]:
        probe = base + Atoms("H", [base.positions[0] + [0, 0, distance]])
        forces, energy = forces_and_energy(tested, probe)
        return energy, float(forces[-1, 2])

    step = 1e-4
    (e1, f1), (e2, f2), (e3, f3) = (
        energy_and_force(tested.cutoff + shift) for shift in (-step, 0, step)
    )
    inside, outside = (f2 - f1) / step, (f3 - f2) / step  # force derivatives on either side
    assert inside == pytest.approx(outside, abs=1e-2 * (1 + abs(f2)))
    assert e2 - e1 == pytest.approx(-f2 * step, abs=10 * step**2 * (1 + abs(outside)))
    assert e3 - e2 == pytest.approx(-f2 * step, abs=10 * step**2 * (1 + abs(outside)))


def test_fragments_beyond_reach_add_up(model: str, backend: str) -> None:
    tested = copied_potential(model, backend=backend)
    first, second = ethanol(0), ethanol(1)
    second.positions += [40, 0, 0]
    _, e1 = forces_and_energy(tested, first)
    _, e2 = forces_and_energy(tested, second)
    forces, together = forces_and_energy(tested, first + second)
    assert together == pytest.approx(e1 + e2, abs=1e-9)
    np.testing.assert_allclose(forces[:9], forces_and_energy(tested, first)[0], atol=1e-11)


def test_an_atom_depends_on_others_over_as_many_edges_as_the_model_tells(
    model: str, backend: str
) -> None:
    tested = copied_potential(model, backend=backend)
    chain = Atoms("Cu" * (tested.hops + 2))
    chain.positions[:, 0] = 0.7 * tested.cutoff * np.arange(len(chain))

    def first_energy(moved: int) -> float:
        atoms = chain.copy()
        atoms.positions[moved] += 0.2
        return float(tested(tested.graph(atoms), "site_energies").site_energies[0])

    beyond, last = first_energy(tested.hops + 1), first_energy(tested.hops)
    assert beyond == float(tested(tested.graph(chain), "site_energies").site_energies[0])
    assert abs(last - beyond) > 1e-12


def test_parts_with_their_ghosts_add_up(model: str, backend: str) -> None:
    tested = copied_potential(model, backend=backend)
    wire = bulk("Cu", cubic=True) * (1, 1, 7)
    wire.pbc, wire.symbols[::3] = [False, False, True], "O"
    graph = tested.graph(rattled(wire))
    outputs = ("energy", "forces", "virial", "site_energies")
    whole = tested(graph, outputs)
    energy, virial, forces, sites = (
        torch.zeros_like(x) for x in (whole.energy, whole.virial, whole.forces, whole.site_energies)
    )
    parts = torch.arange(len(wire), device=graph.positions.device).split([7, 1, 20])
    for own in parts:
        part, atoms = neighborhood(graph, own, tested.hops)
        assert torch.equal(atoms[: len(own)], own)
        told = tested(part, outputs)
        energy, virial = energy + told.energy, virial + told.virial
        forces.index_add_(0, atoms, told.forces)
        sites.index_add_(0, atoms, told.site_energies)
    assert part.n_edges < graph.n_edges or tested.hops > 1
    tolerance = 1e-10 * float(whole.forces.abs().max())
    assert (energy - whole.energy).abs() <= len(wire) * tolerance
    assert (sites - whole.site_energies).abs().max() <= 10 * tolerance
    assert (forces - whole.forces).abs().max() <= tolerance
    assert (virial - whole.virial).abs().max() <= 10 * tolerance


def test_a_lone_atom_gives_its_reference(model: str, backend: str) -> None:
    if not MODELS[model].keeps_lone_atoms:
        pytest.skip("the published form does not promise it")
    tested = copied_potential(model, backend=backend)
    for symbol, reference in REFERENCES.items():
        for atoms in (Atoms(symbol), Atoms(symbol, cell=[9, 9, 9], pbc=True)):
            forces, energy = forces_and_energy(tested, atoms)
            assert energy == reference
            assert not forces.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batching_changes_nothing(model: str, backend: str, dtype: torch.dtype) -> None:
    tested = copied_potential(model, dtype, backend)
    structures = [ethanol(0), skewed_cell(), Atoms("O"), slab(), ethanol(1)]
    batch = tested(tested.graph(structures), ("energy", "forces", "virial", "site_energies"))
    singles = [tested(tested.graph(atoms), ("energy", "forces", "virial")) for atoms in structures]
    tolerance = ROUNDING[dtype] * float(batch.forces.abs().max())
    energies = torch.cat([single.energy for single in singles])
    assert (batch.energy - energies).abs().max() <= tolerance
    forces = torch.cat([single.forces for single in singles])
    assert (batch.forces - forces).abs().max() <= tolerance
    virials = torch.cat([single.virial for single in singles])
    assert (batch.virial - virials).abs().max() <= 10 * tolerance
    assert torch.isfinite(batch.site_energies).all()


def test_whole_lattice_vectors_change_nothing(model: str, backend: str) -> None:
    tested = copied_potential(model, backend=backend)
    atoms = skewed_cell()
    shifted = atoms.copy()
    shifted.positions += [[0, 0, 0], *([[2, -1, 3]] * (len(atoms) - 1))] @ atoms.cell.array
    forces, energy = forces_and_energy(tested, atoms)
    shifted_forces, shifted_energy = forces_and_energy(tested, shifted)
    assert shifted_energy == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(shifted_forces, forces, atol=1e-9 * (1 + np.abs(forces).max()))


def test_the_handedness_of_a_cell_means_nothing(model: str, backend: str) -> None:
    tested = copied_potential(model, backend=backend)
    atoms = skewed_cell()
    mirrored = atoms.copy()
    mirrored.set_cell(atoms.cell.array[[1, 0, 2]])
    assert np.linalg.det(mirrored.cell.array) * np.linalg.det(atoms.cell.array) < 0
    outputs = ("energy", "forces", "virial", "stress")
    expected, found = (tested(tested.graph(each), outputs) for each in (atoms, mirrored))
    for name in outputs:
        one, other = getattr(expected, name), getattr(found, name)
        assert (one - other).abs().max() <= 1e-10 * (1 + one.abs().max()), name


def test_a_dummy_box_changes_nothing(model: str, backend: str) -> None:
    tested = copied_potential(model, backend=backend)
    free = ethanol()
    boxed = free.copy()
    boxed.set_cell([50, 50, 50])
    boxed.pbc = True
    forces, energy = forces_and_energy(tested, free)
    boxed_forces, boxed_energy = forces_and_energy(tested, boxed)
    assert boxed_energy == pytest.approx(energy, abs=1e-10)
    np.testing.assert_allclose(boxed_forces, forces, atol=1e-10)


def test_a_supercell_has_the_energy_of_its_cells(model: str, backend: str) -> None:
    tested = copied_potential(model, backend=backend)
    atoms = skewed_cell()
    _, energy = forces_and_energy(tested, atoms)
    _, eightfold = forces_and_energy(tested, atoms * 2)
    assert eightfold == pytest.approx(8 * energy, rel=1e-12)


def test_float32_agrees_with_float64(model: str, backend: str) -> None:
    atoms = ethanol()
    forces, energy = forces_and_energy(copied_potential(model, torch.float64, backend), atoms)
    rounded_forces, rounded_energy = forces_and_energy(
        copied_potential(model, torch.float32, backend), atoms
    )
    rms = np.sqrt((forces**2).mean())
    assert np.abs(rounded_forces - forces).max() <= 1e-4 * rms
    # All-electron references of thousands of eV do not spoil the last digits.
    assert abs(rounded_energy - energy) <= 1e-5 * len(atoms) * (1 + rms)


def test_the_hessian_is_the_derivative_of_the_forces(model: str, backend: str) -> None:
    tested = copied_potential(model, backend=backend)
    atoms = rattled(Atoms("HOH", [[0, 0, 0], [0.9, 0.1, 0], [1.2, 0.8, 0.3]]))
    hessian = tested(tested.graph(atoms), ("hessian",)).hessian.cpu().numpy()
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-9 * np.abs(hessian).max())

    def force(shift: float) -> np.ndarray:
        moved = atoms.copy()
        moved.positions[1, 0] += shift
        return forces_and_energy(tested, moved)[0].ravel()

    column = -central_difference(force, 1e-3)
    np.testing.assert_allclose(hessian[:, 3], column, atol=1e-6 * np.abs(hessian).max())


def test_a_force_loss_has_the_right_gradient(model: str, backend: str) -> None:
    """Second derivatives: the loss's slope along a random direction of all weights."""
    tested = copied_potential(model, backend=backend)
    graph = tested.graph([ethanol(), skewed_cell()])
    parameters = list(tested.model.parameters())
    generator = torch.Generator().manual_seed(1)
    directions = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in parameters
    ]

    def loss() -> torch.Tensor:
        prediction = tested(graph, ("energy", "forces", "virial"), differentiable=True)
        return (
            prediction.forces.square().mean()
            + prediction.virial.square().mean()
            + 1e-3 * (prediction.energy - prediction.energy.detach() + 1).square().sum()
        )

    gradients = torch.autograd.grad(loss(), parameters)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    energies = tested(graph, ("energy",)).energy  # the constant target of the loss above

    def shifted(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p += step * d
        prediction = tested(graph, ("energy", "forces", "virial"))
        value = (
            prediction.forces.square().mean()
            + prediction.virial.square().mean()
            + 1e-3 * (prediction.energy - energies + 1).square().sum()
        )
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p -= step * d
        return float(value)

    assert central_difference(shifted, 1e-4) == pytest.approx(slope, rel=1e-5)


def test_only_what_was_asked_for_is_returned(model: str, backend: str) -> None:
    tested = copied_potential(model, backend=backend)
    graph = tested.graph(ethanol())
    prediction = tested(graph, ("energy",))
    assert prediction.energy is not None
    assert prediction.forces is None
    assert prediction.virial is None
    layers = tested(graph, ("layer_energies", "site_energies", "energy"))
    rows, columns = layers.layer_energies.shape
    assert (rows, columns > 1) == (9, True), "a reference and some layer for each atom"
    torch.testing.assert_close(layers.layer_energies.sum(1), layers.site_energies)
    torch.testing.assert_close(layers.site_energies.sum(), layers.energy[0])


def test_stress_without_a_cell_is_an_error(model: str, backend: str) -> None:
    tested = copied_potential(model, backend=backend)
    for atoms in (ethanol(), slab()):
        with pytest.raises(clebsch.ClebschError, match="no cell with a volume"):
            tested(tested.graph(atoms), ("stress",))
    with pytest.raises(clebsch.ClebschError, match="structure 1"):
        tested(tested.graph([skewed_cell(), ethanol()]), ("stress",))


def test_an_unknown_element_is_named(model: str, backend: str) -> None:
    tested = copied_potential(model, backend=backend)
    with pytest.raises(
        clebsch.ClebschError, match=r"structure 1: element Xe \(atom 2\).*H, C, O, Cu, Au"
    ):
        tested.graph([ethanol(), Atoms("HOXe", np.eye(3))])
