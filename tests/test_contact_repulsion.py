"""Atoms closer than any in training: what the network sees, what is added, and where it comes from.

What is right is written down once more, for two atoms and without torch; derivatives are compared
with differences.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

import clebsch
from clebsch.committee import uncertainty
from clebsch.contacts import pair_table
from clebsch.errors import ModelFileError
from clebsch.modelfile import read_tensors, save_heads, write_tensors
from clebsch.potential import Potential

from builders import (  # isort: skip
    ARCHITECTURES,
    MODELS,
    STRUCTURES,
    central_difference,
    copied_potential,
    ethanol,
    rattled,
    skewed_cell,
    tiny,
)

EV_ANGSTROM = 14.399645478425668


def pressed(model: str = "mace", dtype: torch.dtype = torch.float64, **options: str) -> Potential:
    """A potential that was trained, as it believes, where bonds are as long as covalent radii."""
    potential = copied_potential(model, dtype, **options)
    potential.contact.learn(pair_table({}, potential.species))
    return potential


def bare(potential: Potential) -> Potential:
    """The same without repulsion of contacts."""
    other = copy.deepcopy(potential)
    other.contact = None
    return other


def zbl(r: float, z1: int, z2: int) -> float:
    screening = 0.88534 * 0.529177210903 / (z1**0.23 + z2**0.23)
    series = [(0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162)]
    return EV_ANGSTROM * z1 * z2 / r * sum(c * np.exp(-e * r / screening) for c, e in series)


def energy(potential: Potential, atoms: Atoms) -> float:
    return float(potential(potential.graph(atoms), "energy").energy)


def answers(potential: Potential, atoms: Atoms) -> tuple[torch.Tensor, torch.Tensor]:
    prediction = potential(potential.graph(atoms))
    return prediction.energy, prediction.forces


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_two_atoms_are_the_network_at_the_held_distance_and_zbl_of_the_rest(model: str) -> None:
    tested = pressed(model)
    untouched = bare(tested)
    for pair in ("CH", "OO", "CuAu"):
        symbols = Atoms(pair).symbols
        d = sum(covalent_radii[atomic_numbers[s]] for s in symbols)
        begin, width = 0.95 * d, 0.1 * d
        for r in (0.3 * d, 0.8 * d, 0.9 * d, 0.94 * d):
            x = (begin - r) / width
            held = begin - width * x / (1 + x**4) ** 0.25
            expected = energy(untouched, Atoms(pair, [[0, 0, 0], [0, 0, held]]))
            charges = [atomic_numbers[s] for s in symbols]
            expected += zbl(r, *charges) - zbl(held, *charges)
            assert energy(tested, Atoms(pair, [[0, 0, 0], [0, 0, r]])) == pytest.approx(
                expected, rel=1e-9
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("model", list(MODELS))
def test_where_nothing_is_closer_nothing_changes(model: str, dtype: torch.dtype) -> None:
    tested = copied_potential(model, dtype)
    untouched = bare(tested)
    for atoms in (build() for build in STRUCTURES.values()):
        distances = atoms.get_all_distances(mic=True)
        closest = distances[distances > 0].min()
        tested.contact.distances.fill_(closest)  # begins at 0.95 of it
        for one, other in zip(answers(tested, atoms), answers(untouched, atoms), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("model", ARCHITECTURES)
@pytest.mark.parametrize("structure", ["molecule", "skewed cell"])
def test_derivatives_are_those_of_the_energy(model: str, structure: str) -> None:
    tested = pressed(model, backend="reference")
    atoms = rattled(STRUCTURES[structure](), seed=1, by=0.15)
    if structure == "molecule":
        atoms = atoms[[0, 1, 2, 3]]
    graph = tested.graph(atoms)
    assert tested.is_in_contact(graph)
    rng = np.random.default_rng(0)
    directions = [torch.from_numpy(rng.normal(size=graph.positions.shape)) for _ in range(2)]

    def slope(moved: float, way: torch.Tensor) -> float:
        """Of the energy along a direction."""
        told = tested(graph.with_positions(graph.positions + moved * way), "forces")
        return -float((told.forces * way).sum())

    def total(moved: float, way: torch.Tensor) -> float:
        return float(tested(graph.with_positions(graph.positions + moved * way), "energy").energy)

    def difference(function, step: float, way: torch.Tensor) -> float:  # type: ignore[no-untyped-def]
        return central_difference(lambda by: function(by, way), step)

    for way in directions:
        assert difference(total, 3e-4, way) == pytest.approx(slope(0.0, way), rel=1e-7)
    hessian = tested(graph, "hessian").hessian
    torch.testing.assert_close(hessian, hessian.T, rtol=1e-9, atol=1e-9)
    for way in directions:
        curvature = way.flatten() @ hessian @ way.flatten()
        assert difference(slope, 3e-4, way) == pytest.approx(float(curvature), rel=1e-6)
    virial = tested(graph, "virial").virial[0]
    strain = torch.from_numpy(rng.normal(size=(3, 3)))
    strain = strain + strain.T

    def strained(by: float, _: torch.Tensor) -> float:
        deformed = graph.with_positions(
            graph.positions + by * graph.positions @ strain,
            graph.cell + by * graph.cell @ strain,
        )
        return float(tested(deformed, "energy").energy)

    assert difference(strained, 1e-4, strain) == pytest.approx(
        -float((virial * strain).sum()), rel=1e-7
    )


def test_forces_and_their_slopes_have_no_step_where_repulsion_begins() -> None:
    """And the slopes of those, which the fifth order in the distance leaves alone as well."""
    tested = pressed()
    begin = 0.95 * (covalent_radii[6] + covalent_radii[1])

    def slope(r: float) -> np.ndarray:
        told = tested(tested.graph(Atoms("CH", [[0, 0, 0], [0, 0, r]])), ("forces", "hessian"))
        return np.array([float(told.forces[1, 2]), float(told.hessian[5, 5])])

    def third(r: float) -> float:
        return float((slope(r + 1e-4) - slope(r - 1e-4))[1] / 2e-4)

    inside, outside = slope(begin - 1e-7), slope(begin + 1e-7)
    np.testing.assert_allclose(inside, outside, rtol=1e-4)
    assert third(begin - 3e-4) == pytest.approx(third(begin + 3e-4), rel=0.02)


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_atoms_that_are_pressed_together_are_pushed_apart(model: str) -> None:
    """Without it they are pulled in or thrown out at random; the network's weights are random."""
    tested = pressed(model)
    for pair in ("HH", "CO", "CuAu"):
        d = sum(covalent_radii[z] for z in Atoms(pair).numbers)
        energies = [energy(tested, Atoms(pair, [[0, 0, 0], [0, 0, f * d]])) for f in (0.2, 0.4)]
        assert energies[0] > energies[1] + 5


@pytest.mark.parametrize("model", ["mace", "allegro"])
def test_a_structure_in_contact_among_recorded_evaluations_is_not_missed(model: str) -> None:
    """Recordings are of evaluations without contacts."""
    tested, reference = pressed(model), pressed(model, backend="reference")
    apart, close = skewed_cell(), rattled(ethanol(), by=0.3)
    apart.set_cell(apart.cell * 1.2, scale_atoms=True)
    for atoms in (*[apart] * 30, close, apart, close):
        assert tested.is_in_contact(tested.graph(atoms)) == (atoms is close)
        expected = answers(reference, atoms)
        for one, other in zip(answers(tested, atoms), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_structures_of_a_batch_are_as_alone() -> None:
    tested = pressed()
    structures = [skewed_cell(), rattled(ethanol(), by=0.3), ethanol()]
    together = tested(tested.graph(structures))
    alone = [answers(tested, atoms) for atoms in structures]
    torch.testing.assert_close(together.energy, torch.cat([one for one, _ in alone]))
    torch.testing.assert_close(together.forces, torch.cat([forces for _, forces in alone]))


def test_what_is_learnt_is_the_shortest_distance_but_no_more_than_a_bond() -> None:
    potential = tiny("H C O")
    assert not potential.contact.distances.any()
    potential.contact.learn(pair_table({"C-H": 1.05, "H-O": 1.8, "O-O": 1.2}, potential.species))
    radii = {s: covalent_radii[atomic_numbers[s]] for s in "HCO"}
    bond = {f"{a}{b}": radii[a] + radii[b] for a in "HCO" for b in "HCO"}
    expected = [
        [bond["HH"], 1.05, bond["HO"]],
        [1.05, bond["CC"], bond["CO"]],
        [bond["HO"], bond["CO"], 1.2],
    ]
    np.testing.assert_allclose(potential.contact.distances, expected)


def test_a_model_file_keeps_it(tmp_path: Path) -> None:
    potential, path = pressed(), tmp_path / "model.safetensors"
    potential.save(path)
    loaded, close = clebsch.load(path), rattled(ethanol(), by=0.3)
    assert loaded.is_in_contact(loaded.graph(close))
    assert energy(loaded, close) == pytest.approx(energy(potential, close), rel=1e-12)


def test_what_is_taken_off_stays_off_in_a_file(tmp_path: Path) -> None:
    potential, path = pressed(), tmp_path / "model.safetensors"
    potential.contact = potential.floor = None
    potential.save(path)
    loaded, close = clebsch.load(path), rattled(ethanol(), by=0.3)
    assert loaded.contact is loaded.floor is None
    assert energy(loaded, close) == pytest.approx(energy(potential, close), rel=1e-12)


def test_heads_of_one_file_keep_their_own(tmp_path: Path) -> None:
    heads = {name: copied_potential() for name in ("a", "b")}
    for number, potential in enumerate(heads.values()):
        potential.contact.distances.fill_(1.0 + number)
        potential.floor.depths.fill_(2.0 + number)
    save_heads(heads, tmp_path / "model.safetensors")
    for name, potential in heads.items():
        loaded = clebsch.load(tmp_path / "model.safetensors", head=name)
        assert torch.equal(loaded.contact.distances, potential.contact.distances)
        assert torch.equal(loaded.floor.depths, potential.floor.depths)


def test_what_a_file_says_is_the_network_alone(tmp_path: Path) -> None:
    """So that damage to weights is seen however close the atoms of its structure are."""
    potential, path = pressed(), tmp_path / "model.safetensors"
    potential.floor.depths.fill_(0.0)
    potential.save(path)
    tensors, metadata = read_tensors(path)
    name = next(n for n, p in potential.model.named_parameters() if p.dim() > 1)
    tensors[f"model.{name}"] = tensors[f"model.{name}"] * (1 + 1e-5)
    write_tensors(path, tensors, metadata)
    with pytest.raises(ModelFileError, match="does not reproduce"):
        clebsch.load(path)


def test_it_ends_at_the_cutoff_where_covalent_radii_reach_farther() -> None:
    potential = tiny("Cs I")
    potential.contact.learn(pair_table({}, potential.species))
    at = [energy(potential, Atoms("Cs2", [[0, 0, 0], [0, 0, 4 + by]])) for by in (-1e-6, 1e-6)]
    assert at[0] == pytest.approx(at[1], abs=1e-9)
    assert energy(potential, Atoms("Cs2", [[0, 0, 0], [0, 0, 3.0]])) > at[0]


def test_images_of_one_atom_are_in_contact_too() -> None:
    tested = pressed()
    small, wide = (Atoms("Cu", cell=[a, a, a], pbc=True) for a in (2.4, 3.3))
    assert tested.is_in_contact(tested.graph(small))
    assert not tested.is_in_contact(tested.graph(wide))
    assert tested.is_in_contact(tested.graph([wide, small]))


def test_files_of_before_say_what_they_said(tmp_path: Path) -> None:
    """Formats up to the second knew nothing of it."""
    settings = {"contact_repulsion": False, "energy_floor": False}
    potential, path = tiny("H C O", **settings), tmp_path / "model.safetensors"
    potential.save(path)
    tensors, metadata = read_tensors(path)
    for key in settings:
        del metadata["config"][key]
    write_tensors(path, tensors, {**metadata, "format_version": 2})
    loaded, close = clebsch.load(path), rattled(ethanol(), by=0.3)
    assert loaded.contact is loaded.floor is None
    assert energy(loaded, close) == pytest.approx(energy(potential, close), rel=1e-12)


def test_draws_of_a_linear_potential_see_what_its_mean_sees() -> None:
    """Their spread is that of potentials with the draws for coefficients."""
    tested = pressed("ace")
    network = tested.model
    network.coefficients.data.normal_(generator=torch.Generator().manual_seed(0))
    network.committee.normal_(generator=torch.Generator().manual_seed(1))
    close = rattled(ethanol(), by=0.3)
    mean, members = answers(tested, close), []
    for draw in network.committee:
        member = pressed("ace")
        member.model.coefficients.data.copy_(network.coefficients + draw)
        members.append(answers(member, close))
    spread = uncertainty(tested, tested.graph(close))
    for k, found in ((0, spread.energy), (1, spread.forces)):
        off = torch.stack([answer[k] - mean[k] for answer in members])
        torch.testing.assert_close(found, off.square().mean(0).sqrt(), rtol=1e-8, atol=1e-8)
