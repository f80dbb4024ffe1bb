"""Labels: found under any usual name, converted once, and never wrong in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.db import connect
from ase.io import write as ase_write
from ase.stress import full_3x3_to_voigt_6_stress
from data_builders import WATER, copper, copper_file, water_text, write
from pydantic import ValidationError

from clebsch.data.extxyz import OPENERS
from clebsch.data.read import LabelKeys, census, read_frames, read_with_census
from clebsch.data.units import unit_factor
from clebsch.errors import DataError


def single(stress: str, key: str = "stress", cell: str = "4 0 0 1 4 0 0 1 4") -> str:
    return f'1\nLattice="{cell}" Properties=species:S:1:pos:R:3 {key}="{stress}"\nCu 0 0 0\n'


# --- keys ---


@pytest.mark.parametrize("key", ["energy", "Energy", "REF_energy", "dft_energy", "TotEnergy"])
def test_energies_are_found_under_their_usual_names(tmp_path: Path, key: str) -> None:
    frames = read_frames(write(tmp_path / "w.xyz", water_text(energy_key=key)))
    assert [frame.energy for frame in frames] == [-470.0, -470.1, -470.2]
    assert key not in frames[0].info


@pytest.mark.parametrize("key", ["forces", "force", "REF_forces", "dft_forces"])
def test_forces_are_found_under_their_usual_names(tmp_path: Path, key: str) -> None:
    frames = read_frames(write(tmp_path / "w.xyz", water_text(forces_key=key)))
    assert np.array_equal(frames[2].forces, np.tile([0.1, -0.2, 0.003], (3, 1)))


def test_a_wrong_label_key_is_an_error_that_names_file_key_and_neighbour(tmp_path: Path) -> None:
    path = write(tmp_path / "w.xyz", water_text(energy_key="my_energy"))
    with pytest.raises(DataError) as caught:
        read_frames(path, LabelKeys(energy="my_enrgy"))
    message = str(caught.value)
    assert "w.xyz" in message
    assert "energy key 'my_enrgy'" in message
    assert "Did you mean 'my_energy'?" in message
    assert "my_energy (info, 3 of 3)" in message


def test_a_key_missing_from_one_file_which_has_another_is_an_error(tmp_path: Path) -> None:
    one = write(tmp_path / "one.xyz", water_text(energy_key="mine"))
    two = write(tmp_path / "two.xyz", water_text(energy_key="REF_energy"))
    with pytest.raises(DataError, match=r"two\.xyz: no frame has the energy key 'mine'.*REF_en"):
        read_frames([one, two], LabelKeys(energy="mine"))
    # without being asked for a key, each file is read by its own
    assert len(read_frames([one, two])) == 6


def test_two_usual_names_that_differ_need_a_decision(tmp_path: Path) -> None:
    path = write(tmp_path / "w.xyz", water_text(extra="REF_energy=-1.0"))
    with pytest.raises(DataError, match=r"w\.xyz: the energy may be any of 'REF_energy', 'energy'"):
        read_frames(path)
    assert read_frames(path, LabelKeys(energy="REF_energy"))[0].energy == -1.0
    first = read_frames(path, LabelKeys(energy="energy"))[0]
    assert first.energy == -470.0
    assert first.info["REF_energy"] == -1.0


def test_two_usual_names_of_different_frames_need_a_decision_too(tmp_path: Path) -> None:
    """Concatenated data sets; their energies may be of different methods."""
    text = water_text(energy_key="REF_energy") + water_text(energy_key="dft_energy")
    path = write(tmp_path / "w.xyz", text)
    with pytest.raises(DataError, match=r"'dft_energy', of which no frame has two; frames without"):
        read_frames(path)
    energies = [frame.energy for frame in read_frames(path, LabelKeys(energy="dft_energy"))]
    assert energies[:3] == [None] * 3
    assert None not in energies[3:]


def test_an_energy_of_each_atom_is_not_that_of_the_structure(tmp_path: Path) -> None:
    text = "2\nProperties=species:S:1:pos:R:3:energy:R:1 energy=-3.0\nH 0 0 0 -1.5\nH 0 0 1 -1.4\n"
    (frame,) = read_frames(write(tmp_path / "shares.xyz", text))
    assert frame.energy == -3.0


def test_two_usual_names_that_agree_need_none(tmp_path: Path) -> None:
    path = write(tmp_path / "w.xyz", water_text(1, extra="REF_energy=-470.0"))
    assert read_frames(path)[0].energy == -470.0


def test_an_unchosen_standard_key_does_not_break_writing(tmp_path: Path) -> None:
    path = write(tmp_path / "w.xyz", water_text(extra="REF_energy=-1.0"))
    frames = read_frames(path, LabelKeys(energy="REF_energy"))
    ase_write(tmp_path / "again.xyz", [frame.to_atoms() for frame in frames])
    assert read_frames(tmp_path / "again.xyz")[1].energy == -1.0


def test_a_label_can_be_left_unread(tmp_path: Path) -> None:
    (frame, *_) = read_frames(write(tmp_path / "w.xyz", water_text()), LabelKeys(forces="none"))
    assert frame.forces is None
    assert frame.energy == -470.0


def test_an_unknown_setting_of_the_keys_is_an_error() -> None:
    with pytest.raises(ValidationError, match="enrgy"):
        LabelKeys(enrgy="E")  # type: ignore[call-arg]


def test_partly_missing_labels_are_none(tmp_path: Path) -> None:
    bare = "3\n\n" + "".join(
        f"{s} {x} {y} {z}\n" for s, (x, y, z) in zip("OHH", WATER, strict=True)
    )
    frames = read_frames(write(tmp_path / "w.xyz", water_text(1) + bare))
    assert (frames[1].energy, frames[1].forces, frames[1].stress) == (None, None, None)
    assert frames[0].energy == -470.0


def test_several_files_keep_their_order_and_name_their_frames(tmp_path: Path) -> None:
    one = write(tmp_path / "one.xyz", water_text(2))
    two = write(tmp_path / "two.xyz", water_text(1, energy_key="Energy"))
    frames = read_frames([one, str(two)])
    assert [Path(frame.source).name for frame in frames] == ["one.xyz:0", "one.xyz:1", "two.xyz:0"]
    assert frames[2].energy == -470.0


def test_energies_are_exact(tmp_path: Path) -> None:
    energy = "-17617.69533153726"
    path = write(tmp_path / "w.xyz", water_text(1).replace("-470.0", energy))
    assert read_frames(path)[0].energy == float(energy)


# --- bad values ---


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("energy=-470.1", "energy=nan", r"w\.xyz: frame 1: the energy key 'energy' is nan"),
        ("energy=-470.1", "energy=inf", r"w\.xyz: frame 1: the energy key 'energy' is inf"),
        ("energy=-470.1", "energy=-470.1eV", r"w\.xyz: frame 1: key 'energy' is not a number"),
        ("energy=-470.1", 'energy="1 2"', r"w\.xyz: frame 1: the energy key 'energy' has shape"),
        ("energy=-470.1", "config_weight=-1", r"w\.xyz: frame 1: .*'config_weight' is negative"),
        ("energy=-470.1", "config_weight=nan", r"w\.xyz: frame 1: .*'config_weight' is nan"),
    ],
)
def test_bad_values_name_file_frame_and_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = write(tmp_path / "w.xyz", water_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        read_frames(path)


def test_a_nan_force_names_the_atom(tmp_path: Path) -> None:
    lines = water_text().split("\n")
    lines[8] = lines[8].replace("-0.2", "nan")
    path = write(tmp_path / "w.xyz", "\n".join(lines))
    with pytest.raises(
        DataError, match=r"w\.xyz: frame 1: the forces key 'forces' is nan for atom 1 \(H\), .* y"
    ):
        read_frames(path)


def test_a_nan_position_names_the_atom(tmp_path: Path) -> None:
    path = write(tmp_path / "w.xyz", water_text().replace("H 0.97000000", "H inf"))
    with pytest.raises(DataError, match=r"w\.xyz: frame 1: the position of atom 1 \(H\) is inf"):
        read_frames(path)


def test_forces_of_a_wrong_shape_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "w.xyz", water_text().replace("forces:R:3", "forces:R:2:q:R:1"))
    with pytest.raises(DataError, match=r"frame 0: the forces key 'forces' has shape \[3, 2\]"):
        read_frames(path)


@pytest.mark.parametrize("cell", ["0 0 0 0 0 0 0 0 0", "1 0 0 2 0 0 0 0 1", "nan 0 0 0 1 0 0 0 1"])
def test_a_periodic_frame_needs_a_cell(tmp_path: Path, cell: str) -> None:
    path = write(tmp_path / "w.xyz", single("1 1 1 0 0 0", cell=cell))
    with pytest.raises(DataError, match=r"w\.xyz: frame 0: (periodic|the cell holds)"):
        read_frames(path)


# --- stress and virial ---


def test_stress_is_read_from_six_nine_or_three_by_three_numbers(tmp_path: Path) -> None:
    expected = [[1, 6, 5], [6, 2, 4], [5, 4, 3]]
    for text in ("1 2 3 4 5 6", "1 6 5 6 2 4 5 4 3"):
        (frame,) = read_frames(write(tmp_path / "s.xyz", single(text)))
        assert frame.stress is not None
        assert frame.stress.tolist() == expected


def test_the_negative_convention_turns_the_sign(tmp_path: Path) -> None:
    path = write(tmp_path / "s.xyz", single("1 2 3 4 5 6"))
    (frame,) = read_frames(path, LabelKeys(stress_convention="negative"))
    assert frame.stress is not None
    assert frame.stress[1, 2] == -4


@pytest.mark.parametrize("vectors", [[0, 1, 2], [1, 0, 2]], ids=["as it is", "mirrored"])
def test_a_virial_becomes_the_stress_of_the_same_structure(
    tmp_path: Path, vectors: list[int]
) -> None:
    atoms = copper()
    stress = atoms.get_stress(voigt=False)
    virial = -stress * atoms.get_volume()
    for sign, convention in ((1, "virial"), (-1, "dE_dstrain")):
        atoms = copper()
        atoms.calc = None
        atoms.set_cell(atoms.cell.array[vectors])
        atoms.info["REF_virial"] = sign * virial
        ase_write(tmp_path / "v.xyz", atoms)
        (frame,) = read_frames(tmp_path / "v.xyz", LabelKeys(virial_convention=convention))  # type: ignore[arg-type]
        np.testing.assert_allclose(frame.stress, stress, rtol=1e-12, atol=1e-15)


def test_the_stress_is_the_strain_derivative_of_the_energy(tmp_path: Path) -> None:
    # the sign and the Voigt order that reading assumes are those of ASE's calculators
    from ase.calculators.emt import EMT

    path = copper_file(tmp_path / "c.xyz", 1)
    (frame,) = read_frames(path)
    step, atoms = 1e-4, frame.to_atoms()
    for row, column in ((0, 0), (1, 2)):
        energies = []
        for sign in (1, -1):
            strained = atoms.copy()
            deformation = np.eye(3)
            deformation[row, column] += sign * step / 2
            deformation[column, row] += sign * step / 2
            strained.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
            strained.calc = EMT()
            energies.append(strained.get_potential_energy())
        slope = (energies[0] - energies[1]) / (2 * step * atoms.get_volume())
        assert frame.stress is not None
        assert frame.stress[row, column] == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_a_virial_without_a_cell_is_refused(tmp_path: Path) -> None:
    text = single("1 1 1 0 0 0", "virial").replace("Lattice", 'pbc="F F F" no_lattice')
    with pytest.raises(
        DataError, match=r"s\.xyz: frame 0: the virial key 'virial' .*without a cell"
    ):
        read_frames(write(tmp_path / "s.xyz", text))


@pytest.mark.parametrize(
    ("stress", "message"),
    [
        ("1 2 3 4 5", "has shape"),
        ("1 0.5 0 0 1 0 0 0 1", "not symmetric"),
        ("1 1 1 0 0 nan", "nan or infinity"),
    ],
)
def test_a_bad_stress_is_refused(tmp_path: Path, stress: str, message: str) -> None:
    path = write(tmp_path / "s.xyz", single(stress))
    with pytest.raises(DataError, match=rf"s\.xyz: frame 0: the stress key 'stress' .*{message}"):
        read_frames(path)


def test_stress_and_virial_that_disagree_are_refused(tmp_path: Path) -> None:
    atoms = copper()
    atoms.info["virial"] = atoms.get_stress(voigt=False) * atoms.get_volume()  # the wrong sign
    ase_write(tmp_path / "v.xyz", atoms)
    with pytest.raises(DataError, match=r"v\.xyz: frame 0: .*'stress' .*'virial' disagree"):
        read_frames(tmp_path / "v.xyz")
    (frame,) = read_frames(tmp_path / "v.xyz", LabelKeys(stress="stress"))
    np.testing.assert_allclose(frame.stress, copper().get_stress(voigt=False), atol=1e-12)


@pytest.mark.parametrize("off", ["stress", "virial"])
def test_to_turn_stress_or_virial_off_leaves_the_other(tmp_path: Path, off: str) -> None:
    keys = LabelKeys(**{off: "none"})
    both = single('1 2 3 4 5 6" virial="-15 -30 -45 -60 -75 -90', cell="15 0 0 0 1 0 0 0 1")
    (frame,) = read_frames(write(tmp_path / "both.xyz", both), keys)
    assert frame.stress is not None
    assert frame.stress.tolist() == [[1, 6, 5], [6, 2, 4], [5, 4, 3]]
    for key in ("stress", "virial"):
        (frame,) = read_frames(write(tmp_path / f"{key}.xyz", single("1 2 3 4 5 6", key)), keys)
        assert (frame.stress is None) == (key == off)


# --- weights, boxes, info ---


def test_weights_come_from_the_info(tmp_path: Path) -> None:
    extra = "config_weight=2 energy_weight=0.5 force_weight=0 config_stress_weight=3 config_type=a"
    (frame,) = read_frames(write(tmp_path / "w.xyz", water_text(1, extra=extra)))
    assert (frame.weight, frame.energy_weight, frame.forces_weight, frame.stress_weight) == (
        2.0,
        0.5,
        0.0,
        3.0,
    )
    assert frame.info == {"config_type": "a"}
    (plain,) = read_frames(write(tmp_path / "w.xyz", water_text(1)))
    assert (plain.weight, plain.forces_weight) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("extra", "left_out"),
    [
        ("energy=nan config_energy_weight=0", ("energy",)),
        ("energy=0 force_weight=0.0", ("forces",)),
        ("energy=0 config_weight=0", ("energy", "forces")),
        # no cell, so that a stress would be refused
        ('energy=0 virials="0 0 0 0 0 0" config_virials_weight=0', ("stress",)),
        ("energy=0 config_stress_weight=0", ()),
    ],
)
def test_labels_of_weight_zero_are_no_labels(
    tmp_path: Path, extra: str, left_out: tuple[str, ...]
) -> None:
    text = water_text(1).replace("energy=-470.0", extra)
    (frame,) = read_frames(write(tmp_path / "w.xyz", text))
    assert frame.left_out == left_out
    for label in ("energy", "forces"):
        assert (getattr(frame, label) is None) == (label in left_out)
    assert frame.stress is None


def test_a_reference_may_have_no_weight(tmp_path: Path) -> None:
    text = "1\nenergy=-3.5 config_weight=0 Properties=species:S:1:pos:R:3 {}\nCu 0 0 0\n"
    named = write(tmp_path / "named.xyz", text.format("config_type=IsolatedAtom"))
    assert read_frames(named)[0].energy == -3.5
    assert read_frames(write(tmp_path / "lone.xyz", text.format("")))[0].energy is None


@pytest.mark.parametrize("name", ["virial", "virials", "config_virial", "config_virials"])
def test_a_virial_is_weighed_under_its_own_name(tmp_path: Path, name: str) -> None:
    text = single(f'1 2 3 4 5 6" {name}_weight="0.5', "virial")
    (frame,) = read_frames(write(tmp_path / "v.xyz", text))
    assert frame.stress_weight == 0.5


def test_a_key_named_weight_is_a_weight_only_if_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "w.xyz", water_text(1, extra="weight=18.015"))
    (frame,) = read_frames(path)
    assert frame.weight == 1.0
    assert frame.info == {"weight": 18.015}
    (asked,) = read_frames(path, LabelKeys(weight="weight"))
    assert asked.weight == 18.015


def test_dummy_boxes_can_be_read_as_molecules(tmp_path: Path) -> None:
    text = single("0 0 0 0 0 0", cell="50 0 0 0 50 0 0 0 50")
    (frame,) = read_frames(write(tmp_path / "m.xyz", text), pbc="none")
    assert not frame.pbc.any()
    assert not frame.cell.any()
    assert frame.stress is None


def test_real_rmd17_energies_are_found(shared_data: Path) -> None:
    path = shared_data / "rmd17" / "ethanol" / "train_01.xyz.xz"
    frames, found = read_with_census(path, pbc="none")
    assert len(frames) == 1000
    assert all(frame.energy is not None and frame.forces is not None for frame in frames)
    assert "Energy (info, 1000 of 1000)" in found.describe()


# --- census ---


def test_the_census_counts_every_key(tmp_path: Path) -> None:
    one = write(tmp_path / "one.xyz", water_text(2, extra="config_type=a"))
    two = copper_file(tmp_path / "two.xyz", 1)
    found = census([one, two])
    assert found.n_frames == 3
    entries = {entry.key: entry for entry in found.entries}
    assert (entries["forces"].place, entries["forces"].shape) == ("arrays", "[n, 3]")
    assert (entries["energy"].count, entries["stress"].count) == (3, 1)
    assert entries["stress"].first == f"{two}:0"
    assert entries["config_type"].shape == "no number"


# --- other formats ---


def test_trajectories_and_databases_hold_the_same_labels(tmp_path: Path) -> None:
    frames = [copper(seed) for seed in range(3)]
    ase_write(tmp_path / "c.traj", frames)
    for name in ("c.db", "c.json"):
        with connect(tmp_path / name) as database:
            for atoms in frames:
                database.write(atoms, config_weight=2.0)
    for name in ("c.traj", "c.db", "c.json"):
        read = read_frames(tmp_path / name)
        assert len(read) == 3
        assert read[1].weight == (1.0 if name == "c.traj" else 2.0)
        for frame, atoms in zip(read, frames, strict=True):
            assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
            np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-12)
            np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), atol=1e-12)


def test_labels_in_the_data_of_a_database_are_found(tmp_path: Path) -> None:
    atoms = copper()
    forces = atoms.get_forces()
    stress = full_3x3_to_voigt_6_stress(atoms.get_stress(voigt=False))
    atoms.calc = None
    with connect(tmp_path / "c.db") as database:
        database.write(atoms, REF_energy=-1.5, data={"REF_forces": forces, "REF_stress": stress})
    (frame,) = read_frames(tmp_path / "c.db")
    assert frame.energy == -1.5
    assert np.array_equal(frame.forces, forces)
    np.testing.assert_allclose(frame.stress, copper().get_stress(voigt=False), atol=1e-12)


@pytest.mark.parametrize("name", ["c.traj", "c.db", "c.json", "c.npz"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.99])
def test_truncated_files_of_other_formats_are_refused(
    tmp_path: Path, name: str, kept: float
) -> None:
    path = tmp_path / name
    frames = [copper(seed) for seed in range(3)]
    if name == "c.traj":
        ase_write(path, frames)
    elif name == "c.npz":
        np.savez(path, R=[a.positions for a in frames], z=frames[0].numbers, E=[1.0, 2.0, 3.0])
    else:
        with connect(path) as database:
            for atoms in frames:
                database.write(atoms)
    payload = path.read_bytes()
    path.write_bytes(payload[: int(len(payload) * kept)])
    with pytest.raises(DataError, match=rf"{name}: "):
        read_frames(path)


def test_npz_files_of_both_usual_forms_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    positions, forces = rng.normal(size=(4, 3, 3)), rng.normal(size=(4, 3, 3))
    energies, numbers = rng.normal(size=4), np.array([8, 1, 1])
    np.savez(tmp_path / "a.npz", R=positions, E=energies[:, None], F=forces, z=numbers)
    np.savez(
        tmp_path / "b.npz",
        coords=positions,
        energies=energies,
        forces=forces,
        nuclear_charges=np.tile(numbers, (4, 1)),
        lattice=9 * np.eye(3),
        pbc=np.array([True, True, False]),
        old_indices=np.arange(4),
        name=np.array("water"),
    )
    for name in ("a.npz", "b.npz"):
        frames = read_frames(tmp_path / name)
        assert [frame.energy for frame in frames] == energies.tolist()
        assert np.array_equal(frames[3].forces, forces[3])
        assert np.array_equal(frames[3].positions, positions[3])
        assert frames[3].symbols == ["O", "H", "H"]
    assert frames[3].pbc.tolist() == [True, True, False]
    assert frames[3].info == {"old_indices": 3, "name": "water"}
    assert frames[2].source == f"{tmp_path / 'b.npz'}:2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"R": None}, "no positions under any of R, pos"),
        ({"z": None}, "no atomic numbers under any of z, Z"),
        ({"z": [8, 1]}, r"key 'z' has shape \(2,\)"),
        ({"z": [8, 1, 0]}, "key 'z' holds numbers that are no elements"),
        ({"R": np.zeros((2, 3, 2))}, "key 'R' has shape"),
        ({"E": np.zeros(3)}, r"frame 0: the energy key 'E' has shape"),
        ({"F": np.zeros((2, 2, 3))}, r"frame 0: the forces key 'F' has shape"),
        ({"cell": np.zeros((5, 3, 3))}, "key 'cell' has shape"),
        ({"pbc": np.zeros(2, dtype=bool)}, "key 'pbc' has shape"),
        ({"e_unit": np.array("kcal")}, "key 'e_unit': 'kcal' is no unit of energy: eV, Hartree"),
        ({"e_unit": np.array(" ")}, "key 'e_unit': '' is no unit of energy"),
        ({"F_units": np.array("Hartree")}, "'F_units': 'Hartree' is no unit of forces: an energy"),
        ({"e_unit": np.array("kcal/mol")}, "beside kcal/mol, say the unit of the forces too"),
        ({"r_units": np.array(b"Bohr")}, "beside Bohr, say the unit of the energy too"),
        ({"E_UNIT": np.array("eV"), "energy_units": np.array(["Ha"])}, "in eV and, under 'energy"),
        ({"z": [1, 1, 8.7]}, r"key 'z' holds 8\.7, which is no atomic number"),
        ({"E": np.array([None, {}], dtype=object)}, "key 'E': cannot be read"),
    ],
)
def test_bad_npz_files_name_file_and_key(tmp_path: Path, change: dict, message: str) -> None:
    arrays = {"R": np.zeros((2, 3, 3)), "z": [8, 1, 1], "E": [1.0, 2.0], "F": np.zeros((2, 3, 3))}
    arrays = {key: value for key, value in (arrays | change).items() if value is not None}
    np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=rf"bad\.npz: .*{message}"):
        read_frames(tmp_path / "bad.npz")


HARTREE, BOHR, KCAL = 27.211386, 0.52917721, 0.0433641


def test_units_that_are_named_are_converted(tmp_path: Path) -> None:
    frame = (
        '3\nLattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:forces:R:3 energy=-2.5 '
        'free_energy=-3 stress="1 2 3 4 5 6" virial="8 8 8 0 0 0"\n'
        "O 0 0 0 1 2 3\nH 2 0 0 0 0 0\nH 0 2 0 -1 -2 -3\n"
    )
    path = write(tmp_path / "a.xyz", frame)
    keys = LabelKeys(
        energy_unit="Hartree",
        forces_unit="hartree / bohr",
        stress_unit="GPa",
        length_unit="Bohr",
        virial="none",
    )
    (read,) = read_frames(path, keys)
    assert read.energy == pytest.approx(-2.5 * HARTREE, rel=1e-6)
    assert read.free_energy == pytest.approx(-3 * HARTREE, rel=1e-6)
    assert read.forces is not None
    assert read.stress is not None
    np.testing.assert_allclose(read.forces[0], np.arange(1, 4) * HARTREE / BOHR, rtol=1e-6)
    np.testing.assert_allclose(np.diag(read.stress), np.arange(1, 4) / 160.21766, rtol=1e-6)
    np.testing.assert_allclose(read.positions[1], [2 * BOHR, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(read.cell, 9 * BOHR * np.eye(3), rtol=1e-6)

    keys = LabelKeys(energy_unit="kcal/mol", forces_unit="eV/A", stress="none", virial="virial")
    (read,) = read_frames(path, keys)
    assert read.stress is not None
    np.testing.assert_allclose(read.stress, -8 * KCAL / 729 * np.eye(3), rtol=1e-5)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("eV/Å³", 1.0),
        ("eV/Angstrom**3", 1.0),
        ("Ha/Bohr^3", HARTREE / BOHR**3),
        ("kbar", 1 / 1602.1766),
        ("bar", 1 / 1602176.6),
    ],
)
def test_units_of_stress(unit: str, factor: float) -> None:
    assert unit_factor("stress", unit) == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize(
    ("quantity", "unit"),
    [("energy", "eV/Angstrom"), ("forces", "eV"), ("stress", "eV/Angstrom"), ("length", "GPa")],
)
def test_a_unit_of_something_else_is_refused(quantity: str, unit: str) -> None:
    with pytest.raises(ValueError, match=rf"'{unit}' is no unit of {quantity}: "):
        unit_factor(quantity, unit)


def test_units_that_files_declare_are_converted_file_by_file(tmp_path: Path) -> None:
    arrays = {"R": np.zeros((2, 1, 3)), "z": [8], "E": [1.0, 2.0], "F": np.ones((2, 1, 3))}
    declared = {"e_unit": b"kcal/mol", "r_unit": "Ang", "F_units": [["kcal/mol/Ang"]]}
    np.savez(tmp_path / "a.npz", **arrays, **declared)  # type: ignore[arg-type]
    np.savez(tmp_path / "b.npz", **arrays)  # type: ignore[arg-type]
    frames = read_frames([tmp_path / "a.npz", tmp_path / "b.npz"])
    np.testing.assert_allclose([f.energy for f in frames], [KCAL, 2 * KCAL, 1, 2], rtol=1e-5)  # type: ignore[misc]
    np.testing.assert_allclose([f.forces[0, 0] for f in frames], [KCAL, KCAL, 1, 1], rtol=1e-5)  # type: ignore[index]
    # no longer true of the frame, which may be written to a file
    assert "e_unit" not in frames[0].info

    same = LabelKeys(energy_unit="kcal / mol")
    assert read_frames(tmp_path / "a.npz", same)[0].energy == frames[0].energy
    with pytest.raises(DataError, match=r"declares the energy in kcal/mol, not in Hartree, as e"):
        read_frames(tmp_path / "a.npz", LabelKeys(energy_unit="Hartree"))
    (of_training, _) = read_frames(tmp_path / "a.npz", LabelKeys(energy_unit="Ha"), strict=False)
    assert of_training.energy == frames[0].energy


def test_a_label_without_a_unit_beside_other_units_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.xyz", water_text(1))
    with pytest.raises(DataError, match=r"beside Hartree, say the unit of the forces too: --f"):
        read_frames(path, LabelKeys(energy_unit="Hartree"))
    with pytest.raises(DataError, match=r"beside Hartree/Bohr, say the unit of the energy"):
        read_frames(path, LabelKeys(forces_unit="Hartree/Bohr"))
    (frame,) = read_frames(path, LabelKeys(energy_unit="Hartree", forces="none"))
    assert frame.energy is not None


def test_a_virial_has_the_unit_of_energies(tmp_path: Path) -> None:
    header = '1\nLattice="3 0 0 0 3 0 0 0 3" virial="8 8 8 0 0 0" Properties='
    path = write(tmp_path / "a.xyz", f"{header}species:S:1:pos:R:3:forces:R:3\nH 0 0 0 1 2 3\n")
    with pytest.raises(DataError, match=r"say the unit of the virial too: --energy-unit UNIT"):
        read_frames(path, LabelKeys(forces_unit="Hartree/Bohr"))


def test_a_label_that_a_structure_does_not_have_needs_no_unit(tmp_path: Path) -> None:
    """Such as forces of an isolated atom among structures that declare both units."""
    atom = "1\nenergy=-0.5 energy_unit=Hartree Properties=species:S:1:pos:R:3\nH 0 0 0\n"
    both = water_text(1).replace("energy=", "energy_unit=Hartree forces_unit=Ha/Bohr energy=")
    alone, water = read_frames(write(tmp_path / "a.xyz", atom + both))
    assert alone.energy == pytest.approx(-0.5 * HARTREE, rel=1e-6)
    assert water.forces is not None


def test_npz_files_may_declare_electronvolts_in_any_way(tmp_path: Path) -> None:
    arrays = {"R": np.zeros((2, 3, 3)), "z": [8.0, 1.0, 1.0], "E": [1.0, 2.0]}
    units = {"e_unit": b"eV", "energy_units": ["ev"], "r_units": [b"Ang"]}
    np.savez(tmp_path / "a.npz", **arrays, **units)  # type: ignore[arg-type]
    assert [frame.energy for frame in read_frames(tmp_path / "a.npz")] == [1.0, 2.0]


def test_what_is_no_npz_file_is_called_so(tmp_path: Path) -> None:
    path = write(tmp_path / "text.npz", "R z E F")
    with pytest.raises(DataError, match=r"text\.npz: cannot be read: 'not an \.npz file, or one"):
        read_frames(path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "exploded",))

    for name in ("a.pckl", "a.traj", "a.npz", "a.db", "a.xyz", "a.unknown"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(DataError, match=name):
            read_frames(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_the_nearest_of_many_files_is_named_and_the_list_is_cut(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"a{number:02d}.py").touch()
    write(tmp_path / "train.xyz", water_text())
    with pytest.raises(DataError, match=r"'train\.xyz'\? Files there: a00\.py, .* and 11 more\."):
        read_frames(tmp_path / "tran.xyz")


@pytest.mark.parametrize(("suffix", "opener"), OPENERS.items())
def test_a_compressed_file_under_a_plain_name_is_told_its_name(
    tmp_path: Path, suffix: str, opener: Callable[..., Any]
) -> None:
    with opener(tmp_path / "train.xyz", "wt") as file:
        file.write(water_text())
    with pytest.raises(DataError, match=rf"is compressed; name it train\.xyz\{suffix}"):
        read_frames(tmp_path / "train.xyz")
    (tmp_path / "train.xyz").rename(tmp_path / f"train.xyz{suffix}")
    assert len(read_frames(tmp_path / f"train.xyz{suffix}")) == 3


def test_missing_empty_and_unknown_files_are_named(tmp_path: Path) -> None:
    write(tmp_path / "train.xyz", water_text())
    with pytest.raises(DataError, match=r"trian\.xyz: no such file. Did you mean 'train\.xyz'"):
        read_frames(tmp_path / "trian.xyz")
    with pytest.raises(DataError, match=r"nor is there a folder"):
        read_frames(tmp_path / "nowhere" / "train.xyz")
    with pytest.raises(DataError, match="is a folder"):
        read_frames(tmp_path)
    with pytest.raises(DataError, match=r"empty\.xyz: the file is empty"):
        read_frames(write(tmp_path / "empty.xyz", ""))
    with pytest.raises(DataError, match=r"blank\.xyz: the file holds no frames"):
        read_frames(write(tmp_path / "blank.xyz", "\n\n"))
    with pytest.raises(DataError, match=r"notes\.txt: "):
        read_frames(write(tmp_path / "notes.txt", "hello\n"))
    with pytest.raises(DataError, match="given twice"):
        read_frames([tmp_path / "train.xyz", tmp_path / "train.xyz"])
    with pytest.raises(DataError, match="no files"):
        read_frames([])


def test_symbols_and_other_names_of_npz_files_are_read(tmp_path: Path) -> None:
    positions = np.stack([WATER, WATER + 0.1])
    path = tmp_path / "ani.npz"
    np.savez(path, coordinates=positions, species=np.array(["O", "H", "H"]), energies=[1.0, 2.0])
    assert [f.formula for f in read_frames(path)] == ["H2O", "H2O"]
    np.savez(path, _positions=positions, _atomic_numbers=[8, 1, 1], energy=[1.0, 2.0])
    assert [f.energy for f in read_frames(path)] == [1.0, 2.0]
    np.savez(path, coordinates=positions, species=np.array(["O", "H", "Q"]), energies=[1.0, 2.0])
    with pytest.raises(DataError, match="'species' holds numbers that are no elements"):
        read_frames(path)


def test_a_molecule_with_a_cell_of_zeros_is_read_if_it_is_said_to_be_one(tmp_path: Path) -> None:
    text = water_text(1).replace('pbc="F F F"', 'Lattice="0 0 0 0 0 0 0 0 0" pbc="T T T"')
    path = write(tmp_path / "zero.xyz", text)
    with pytest.raises(DataError, match=r"without independent cell vectors.*--pbc none"):
        read_frames(path)
    assert not read_frames(path, pbc="none")[0].pbc.any()


def test_a_file_without_frames_says_what_it_was_taken_for(tmp_path: Path) -> None:
    path = write(tmp_path / "md.out", "a line of another program\n")
    with pytest.raises(DataError, match=r"taken for .espresso-out..*ase convert"):
        read_frames(path)
