"""The check of a data set: silent on good data, and finding each fault that is put in."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from data_builders import copper, copper_file, frame, springs, water_text, write
from rich.console import Console

from clebsch.data import check_geometry
from clebsch.data.check import CheckReport, check_frames
from clebsch.data.frame import Frame
from clebsch.data.read import LabelKeys, read_frames, read_with_census
from clebsch.data.synthetic import sample_emt_cuau, write_xyz
from clebsch.errors import DataError

GOOD = [springs(seed) for seed in range(40)]


def changed(frames: list[Frame], **changes: object) -> list[Frame]:
    """``frames`` with fields replaced; a callable gets the frame."""
    return [
        dataclasses.replace(f, **{k: v(f) if callable(v) else v for k, v in changes.items()})
        for f in frames
    ]


def messages(report: CheckReport, code: str) -> list[tuple[str, str]]:
    return [(f.severity, f.message) for f in report.findings if f.code == code]


def printed(report: CheckReport) -> str:
    stream = io.StringIO()
    report.print(Console(file=stream, width=400))
    return stream.getvalue()


def test_good_data_are_called_good() -> None:
    report = check_frames(GOOD)
    assert report.count("error") == report.count("warning") == 0
    assert "Nothing wrong was found" in printed(report)
    assert report.labels == {"energy": 40, "forces": 40, "stress": 0}
    assert report.compositions == {"CH4O": 40}


def test_the_report_is_json_and_print(tmp_path: Path) -> None:
    frames, census = read_with_census(copper_file(tmp_path / "c.xyz"))
    report = check_frames(frames, census)
    parsed = json.loads(report.to_json())
    assert parsed["n_frames"] == 3
    assert {entry["key"] for entry in parsed["census"]["entries"]} == {"energy", "forces", "stress"}
    text = printed(report)
    assert "3 structures" in text
    assert "stress" in text
    assert "[n, 3]" in text


def test_no_frames_are_refused() -> None:
    with pytest.raises(DataError, match="no frames"):
        check_frames([])


@pytest.mark.parametrize(
    ("energy_factor", "forces_factor", "hint"),
    [
        (1.0, -1.0, "gradients"),
        (23.0605, 1.0, "kcal/mol and forces in eV/A"),
        (1 / 27.2114, 1.0, "Hartree and forces in eV/A"),
        (1.0, 1 / 51.4221, "forces in Hartree/Bohr"),
        (1 / 27.2114, 1 / 51.4221, "per Bohr"),
    ],
)
def test_labels_in_different_units_are_errors(
    tmp_path: Path, energy_factor: float, forces_factor: float, hint: str
) -> None:
    frames = changed(
        GOOD,
        energy=lambda f: f.energy * energy_factor,
        forces=lambda f: f.forces * forces_factor,
    )
    found = messages(check_frames(frames), "derivatives")
    assert [severity for severity, _ in found] == ["error"]
    assert hint in found[0][1]
    if "energy_unit=" not in found[0][1]:
        return
    # what the finding says to do is right
    units = dict(re.findall(r"data\.keys\.(energy|forces)_unit=(\S+)", found[0][1]))
    write_xyz(tmp_path / "a.xyz", [f.to_atoms() for f in frames])
    read = read_frames(
        tmp_path / "a.xyz", LabelKeys(**{f"{name}_unit": unit for name, unit in units.items()})
    )
    assert [severity for severity, _ in messages(check_frames(read), "derivatives")] == ["info"]


def test_labels_of_other_structures_are_noticed() -> None:
    shuffled = [
        dataclasses.replace(f, forces=other.forces)
        for f, other in zip(GOOD, [*GOOD[1:], GOOD[0]], strict=True)
    ]
    assert messages(check_frames(shuffled), "derivatives")[0][0] == "warning"


@pytest.mark.parametrize(
    ("factor", "severity", "hint"),
    [
        (1.0, "info", "the stress says"),
        (-1.0, "error", "data.keys.stress_convention=negative"),
        (160.2177, "error", "in GPa: to convert it, --stress-unit GPa, in a training data.keys"),
        (-1602.177, "error", "pressure in kbar: to convert it, --stress-unit kbar, in a training"),
    ],
)
def test_the_sign_and_unit_of_the_stress_are_checked(
    tmp_path: Path, factor: float, severity: str, hint: str
) -> None:
    rng = np.random.default_rng(0)
    write_xyz(tmp_path / "c.xyz", [copper(i, rng.uniform(-0.03, 0.03)) for i in range(60)])
    frames = changed(read_frames(tmp_path / "c.xyz"), stress=lambda f: f.stress * factor)
    for built in frames:  # the same crystals, with atoms in other cells
        built.positions[:] += rng.integers(-1, 2, (4, 3)) @ built.cell
    found = [m for m in messages(check_frames(frames), "derivatives") if "stress says" in m[1]]
    assert found[0][0] == severity
    assert hint in found[0][1]


def test_strongly_rattled_alloys_are_not_taken_for_wrong_units(tmp_path: Path) -> None:
    write_xyz(tmp_path / "cuau.xyz", sample_emt_cuau(200, 0, seed=2))
    found = messages(check_frames(read_frames(tmp_path / "cuau.xyz")), "derivatives")
    assert [severity for severity, _ in found] == ["info", "info"]


def strained(
    rattle: float, strain: float, stress_factor: float = 1, count: int = 60
) -> list[Frame]:
    """Rattled and strained copper with EMT's labels."""
    rng = np.random.default_rng(1)
    frames = []
    for _ in range(count):
        atoms = bulk("Cu", "fcc", a=3.61, cubic=True) * (2, 2, 2)
        change = rng.normal(0, strain, (3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + (change + change.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(0, rattle, atoms.positions.shape)
        atoms.calc = EMT()
        frames.append(
            Frame(
                atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc,
                energy=atoms.get_potential_energy(), forces=atoms.get_forces(),
                stress=stress_factor * atoms.get_stress(voigt=False),
            )
        )  # fmt: skip
    return frames


@pytest.mark.parametrize(
    ("rattle", "strain", "sign", "severities"),
    [
        (0.03, 0.02, 1, ["info", "info"]),
        (0.1, 0.01, 1, ["info"]),  # the stress tells nothing, see below
        (0.08, 0.02, -1, ["error", "info"]),
    ],
)
def test_differences_that_are_not_small_are_no_mistakes(
    rattle: float, strain: float, sign: int, severities: list[str]
) -> None:
    """Third derivatives move the slopes by up to a half."""
    found = messages(check_frames(strained(rattle, strain, sign)), "derivatives")
    assert sorted(severity for severity, _ in found) == severities


@pytest.mark.parametrize("sign", [1, -1])
def test_a_stress_whose_work_drowns_in_that_of_the_forces_is_not_called_right(sign: int) -> None:
    report = check_frames(strained(0.1, 0.01, sign))
    ((severity, text),) = messages(report, "not compared")
    assert severity == "info"
    assert "what the stress says" in text
    assert "tells neither unit nor sign" in text


@pytest.mark.parametrize("factors", [(-1.0, 1.0), (1.0, 160.2177)])
def test_structures_too_different_to_compare_are_said_to_be(factors: tuple[float, float]) -> None:
    """Reversed forces, or a stress in GPa, that nothing in these data can betray."""
    frames = changed(
        strained(0.02, 0.06, count=30),
        forces=lambda f: f.forces * factors[0],
        stress=lambda f: f.stress * factors[1],
    )
    report = check_frames(frames)
    found = messages(report, "not compared")
    assert [severity for severity, _ in found] == ["info", "info"]
    for label, (_, text) in zip(("forces", "stress"), found, strict=True):
        assert f"unit and sign of the {label} were not compared with energies: only 4 pairs" in text
        assert f"of 30 with {label}" in text
    assert report.count("error") == report.count("warning") == 0
    assert "Nothing wrong was found in what could be compared." in printed(report)


def test_a_label_of_which_nothing_can_be_compared_is_named_alone() -> None:
    ((_, few),) = messages(check_frames(GOOD[:9]), "not compared")
    assert "the forces were not compared with energies: only 9 pairs" in few
    assert messages(check_frames(GOOD[:10]), "not compared") == []
    one_cell = changed(strained(0.03, 0.0), stress=lambda f: f.stress * 160)
    report = check_frames(one_cell)
    ((_, still),) = messages(report, "not compared")
    assert "the stress were not compared with energies: only 0 pairs" in still
    assert [severity for severity, _ in messages(report, "derivatives")] == ["info"]


def test_energies_that_hardly_follow_the_forces_prove_nothing() -> None:
    noise = iter(np.random.default_rng(0).normal(0, 0.3, len(GOOD)))
    report = check_frames(changed(GOOD, energy=lambda f: f.energy + next(noise)))
    assert messages(report, "derivatives") == []
    ((severity, text),) = messages(report, "not compared")
    assert severity == "info"
    assert "energies do not change as forces say" in text


@pytest.mark.parametrize(("factor", "unit"), [(1 / 27.2114, "Hartree"), (23.0605, "kcal/mol")])
def test_all_electron_energies_give_their_unit_away(factor: float, unit: str) -> None:
    energy = (-75.067 - 2 * 0.5 - 0.35) * 27.2114
    frames = [frame("OH2", energy=energy * factor + 1e-3 * k) for k in range(5)]
    found = messages(check_frames(frames), "energy unit")
    assert found[0][0] == "error"
    assert unit in found[0][1]


def test_forces_of_an_unusual_size_are_noticed() -> None:
    for factor, hint in ((100.0, "kcal/mol/A"), (1e-3, "Hartree/Bohr")):
        frames = changed(
            GOOD, forces=lambda f, x=factor: f.forces * x, energy=lambda f, x=factor: f.energy * x
        )
        assert hint in messages(check_frames(frames), "forces")[0][1]
    zero = changed(GOOD, forces=lambda f: 0 * f.forces)
    assert messages(check_frames(zero), "forces") == [("error", "all forces are zero")]


def test_net_forces_and_torques_are_named() -> None:
    pushed = changed(GOOD[:1], forces=lambda f: f.forces + 0.1)
    (found,) = messages(check_frames([*pushed, *GOOD[1:]]), "net force")
    assert found[0] == "warning"
    assert "1 of 40" in found[1]
    assert found[1].endswith("a model cannot learn it: springs.xyz:0")
    harder = changed(GOOD[1:2], forces=lambda f: f.forces + 0.2)
    (found,) = messages(check_frames([*pushed, *harder, *GOOD[2:]]), "net force")
    assert f"worst first ({0.2 * 6 * 3**0.5:.3g} eV/A)" in found[1]
    assert found[1].endswith("springs.xyz:1, springs.xyz:0")
    twisted = changed(
        GOOD[1:2],
        forces=lambda f: (
            f.forces + 0.3 * np.cross([0, 0, 1.0], f.positions - f.positions.mean(axis=0))
        ),
    )
    (found,) = messages(check_frames([*twisted, *GOOD[2:]]), "net torque")
    assert "1 of 39" in found[1]


def test_duplicates_are_found_however_they_are_turned() -> None:
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    order = np.random.default_rng(2).permutation(len(GOOD[3]))
    copy = dataclasses.replace(
        GOOD[3],
        positions=(GOOD[3].positions @ rotation + 4.0)[order],
        forces=(GOOD[3].forces @ rotation)[order],
        numbers=GOOD[3].numbers[order],
        source="other.xyz:7",
    )
    (found,) = messages(check_frames([*GOOD, copy]), "duplicates")
    assert "2 structures are there more than once (1 pairs across files)" in found[1]
    assert "springs.xyz:3 = other.xyz:7" in found[1]
    wrong = dataclasses.replace(copy, energy=copy.energy + 1.0)
    (found,) = messages(check_frames([*GOOD, wrong]), "conflicting labels")
    assert found[0] == "error"
    near = dataclasses.replace(copy, positions=copy.positions + 0.002 * np.sin(np.arange(3)))
    near.positions[0] += 0.003
    assert messages(check_frames([*GOOD, near]), "near duplicates")


def test_periodic_duplicates_are_found_in_another_cell() -> None:
    frames = [
        frame("Cu4", a.positions, cell=a.cell.array, source=f"c.xyz:{i}")
        for i, a in enumerate(copper(seed) for seed in range(12))
    ]
    one = frames[5]
    skewed = one.cell.copy()
    skewed[1] += skewed[0]
    moved = one.positions + [0.3, 0.2, 0.1] + one.cell[2]
    copy = dataclasses.replace(one, cell=skewed, positions=moved, source="d.xyz:0")
    (found,) = messages(check_frames([*frames, copy]), "duplicates")
    assert "c.xyz:5 = d.xyz:0" in found[1]
    assert messages(check_frames(frames), "duplicates") == []


def test_decorations_of_one_lattice_are_different_structures() -> None:
    lattice = bulk("Cu", a=3.7, cubic=True) * (2, 2, 2)
    rng = np.random.default_rng(0)
    frames = []
    for index in range(12):
        one = frame("Cu16Al16", lattice.positions, cell=lattice.cell.array)
        numbers, source = rng.permutation(one.numbers), f"alloy.xyz:{index}"
        frames.append(dataclasses.replace(one, numbers=numbers, energy=float(index), source=source))
    turned = frames[4].positions[:, [1, 0, 2]]
    copy = dataclasses.replace(frames[4], positions=turned, source="copy.xyz:0")
    for code in ("conflicting labels", "duplicates", "near duplicates"):
        assert messages(check_frames(frames), code) == []
    (found,) = messages(check_frames([*frames, copy]), "duplicates")
    assert "2 structures are there more than once" in found[1]
    assert "alloy.xyz:4 = copy.xyz:0" in found[1]


def test_close_contacts_and_detached_atoms_are_named() -> None:
    close = frame("H2", [[0, 0, 0], [0.3, 0, 0]], source="a.xyz:1")
    lost = frame("OH2", [[0, 0, 0], [0.96, 0, 0], [0, 9.0, 0]], source="a.xyz:2")
    report = check_frames([close, lost])
    (found,) = messages(report, "close contacts")
    assert found[0] == "warning"
    assert found[1].endswith("radii, worst first (H-H at 0.300 A): a.xyz:1")
    (found,) = messages(report, "detached atoms")
    assert "1 structures" in found[1]
    assert "a.xyz:2" in found[1]


def test_the_closest_contact_comes_first_and_no_frame_twice() -> None:
    frames = [
        frame("H2", [[0, 0, 0], [length, 0, 0]], source=f"a.xyz:{index}")
        for index, length in enumerate((0.3, 0.74, 0.2))
    ]
    (found,) = messages(check_frames(frames), "close contacts")
    assert found[1].endswith("worst first (H-H at 0.200 A): a.xyz:2, a.xyz:0")


def test_atoms_at_one_place_are_an_error_as_in_training() -> None:
    same = frame("OH2", [[0, 0, 0], [0.96, 0, 0], [0.96, 0, 0]], source="a.xyz:5")
    image = frame("Cu2", [[0, 0, 0], [3.6, 0, 0]], cell=3.6 * np.eye(3), source="a.xyz:6")
    report = check_frames([*GOOD, same, image])
    (found,) = messages(report, "one place")
    assert found[0] == "error"
    assert "2 structures have atoms at one place, the first one atoms 1 and 2;" in found[1]
    assert found[1].endswith("training refuses them: a.xyz:5, a.xyz:6")
    assert messages(report, "close contacts") == []


def test_energy_outliers_are_named() -> None:
    odd = dataclasses.replace(GOOD[7], energy=GOOD[7].energy + 50.0)
    report = check_frames([*GOOD[:7], odd, *GOOD[8:]])
    (found,) = messages(report, "energy outliers")
    assert "springs.xyz:7" in found[1]


def test_dummy_boxes_are_named() -> None:
    box = changed(GOOD, cell=50 * np.eye(3), pbc=np.ones(3, dtype=bool))
    report = check_frames(box)
    (found,) = messages(report, "dummy box")
    assert "pbc=none" in found[1]
    assert messages(report, "derivatives")[0][0] == "info"
    crystal = [frame("Cu4", a.positions, cell=a.cell.array) for a in [copper()]]
    assert messages(check_frames(crystal), "dummy box") == []


def test_periodicity_is_counted_and_told() -> None:
    sheet = np.array([True, True, False])
    slab = frame("Cu4", cell=np.diag([5.0, 5.0, 30.0]))
    wire = changed([slab], pbc=np.array([False, False, True]))
    frames = [slab, *changed([slab, slab], pbc=sheet), *wire, *GOOD[:5]]
    report = check_frames(frames)
    assert report.periodicity == {3: 1, 2: 2, 1: 1, 0: 5}
    assert "Periodic: 1 in 3, 2 in 2, 1 in 1, 5 in 0 directions" in printed(report)
    assert json.loads(report.to_json())["periodicity"]["2"] == 2


def test_a_periodicity_that_changes_from_frame_to_frame_is_a_warning(tmp_path: Path) -> None:
    write_xyz(tmp_path / "c.xyz", [copper(seed, 0.002 * seed) for seed in range(8)])
    bulk_cells = read_frames(tmp_path / "c.xyz")
    assert messages(check_frames(bulk_cells), "periodicity") == []
    sheet = {"pbc": np.array([True, True, False])}
    every_second = [f if i % 2 == 0 else changed([f], **sheet)[0] for i, f in enumerate(bulk_cells)]
    ((severity, text),) = messages(check_frames(every_second), "periodicity")
    assert severity == "warning"
    assert "4 structures are periodic in other directions" in text
    assert "pbc T T F in the first" in text
    assert "c.xyz:1" in text
    assert "c.xyz:0" not in text
    mostly = [*changed(bulk_cells[1:], **sheet), bulk_cells[0]]
    ((_, text),) = messages(check_frames(mostly), "periodicity")
    assert "1 structures" in text
    assert "pbc T T T in the first" in text


def test_slabs_and_molecules_beside_crystals_are_in_order(tmp_path: Path) -> None:
    write_xyz(tmp_path / "c.xyz", [copper(seed) for seed in range(4)])
    crystals = read_frames(tmp_path / "c.xyz")
    sheet = np.array([True, True, False])
    slabs = changed(crystals, pbc=sheet, cell=lambda f: f.cell @ np.diag([1.0, 1.0, 2.0]))
    clusters = changed(crystals, pbc=np.zeros(3, dtype=bool), cell=np.zeros((3, 3)))
    elsewhere = changed(crystals, pbc=sheet, source="d.xyz:0")
    for others in (slabs, clusters, elsewhere):
        assert messages(check_frames([*crystals, *others]), "periodicity") == []


def test_rounded_energies_are_noticed() -> None:
    single = changed(GOOD, energy=lambda f: float(np.float32(f.energy * 40)))
    assert "float32" in messages(check_frames(single), "energy grid")[0][1]
    short = changed(GOOD, energy=lambda f: round(f.energy, 2))
    assert "grid of 10 meV" in messages(check_frames(short), "energy grid")[0][1]


def test_missing_labels_and_weights_are_counted() -> None:
    bare = changed(GOOD[:2], energy=None, forces=None)
    partly = changed(GOOD[2:5], forces=None)
    heavy = changed(GOOD[5:6], weight=3.0)
    report = check_frames([*bare, *partly, *heavy, *GOOD[6:]])
    assert "2 structures have no label" in messages(report, "no labels")[0][1]
    assert "3 of 40 structures have no forces" in messages(report, "partly missing")[0][1]
    (weights,) = messages(report, "weights")
    assert weights[1] == "weights other than 1: weight 1 to 3 (not 1 for 1 of 40 structures)"


def test_labels_of_weight_zero_are_told_and_are_not_called_missing(tmp_path: Path) -> None:
    lines = water_text(12).replace("energy=-470.2", "energy=0.0 config_energy_weight=0")
    path = write(tmp_path / "w.xyz", lines.replace("energy=-470.3", "energy=0.0 config_weight=0"))
    report = check_frames(*read_with_census(path))
    assert report.labels == {"energy": 10, "forces": 11, "stress": 0}
    ((severity, text),) = messages(report, "weight 0")
    assert severity == "info"
    assert text.startswith("labels of weight 0 count as missing: 2 energies, 1 sets of forces: ")
    ((_, text),) = messages(report, "weights")
    assert "weight 0 to 1 (not 1 for 1 of 12 structures), energy_weight 0 to 1" in text
    assert messages(report, "no labels") == messages(report, "partly missing") == []
    assert messages(report, "energy outliers") == []
    nothing = write(tmp_path / "n.xyz", water_text(2, extra="config_weight=0"))
    ((severity, text),) = messages(check_frames(*read_with_census(nothing)), "no labels")
    assert severity == "error"
    assert "no label of a weight above 0 (2 energies, 2 sets of forces of weight 0)" in text


def test_labels_under_misspelt_keys_are_found_out(tmp_path: Path) -> None:
    extra = 'stres="1 0 0 0 1 0 0 0 1" kinetic_energy=0.1 enrgy_unit=eV'
    path = write(tmp_path / "odd.xyz", water_text(12, "enrgy", "frces", extra))
    report = check_frames(*read_with_census(path))
    ((severity, text),) = messages(report, "no labels")
    assert severity == "error"
    for label, key in (("energy", "enrgy"), ("forces", "frces"), ("stress", "stres")):
        how = f"--{label}-key {key}, in a training data.keys.{label}={key}"
        assert f"the key '{key}' is nearly '{label}' (if it is that, say {how})" in text
    assert "kinetic_energy" not in text
    assert "enrgy_unit" not in text
    assert "virial" not in text

    extra = 'S_dft="1 0 0 0 1 0 0 0 1" ecut=500 f=3 s_mean=2'
    path = write(tmp_path / "short.xyz", water_text(12, "dft_E", "F_dft", extra))
    ((_, text),) = messages(check_frames(*read_with_census(path)), "no labels")
    for label, key in (("energy", "dft_E"), ("forces", "F_dft"), ("stress", "S_dft")):
        how = f"--{label}-key {key}, in a training data.keys.{label}={key}"
        assert f"the key '{key}' may be the {label} (if it is that, say {how})" in text
    assert text.count(" may be ") == 3

    half = write(tmp_path / "half.xyz", water_text(12, "energy", "frces"))
    report = check_frames(*read_with_census(half))
    ((severity, text),) = messages(report, "unknown key")
    assert severity == "warning"
    assert "--forces-key frces" in text
    assert messages(report, "no labels") == []
    for keys in (LabelKeys(forces="frces"), LabelKeys(energy="none", forces="frces")):
        assert messages(check_frames(*read_with_census(half, keys)), "unknown key") == []


def test_labels_misspelt_in_one_file_of_two_are_found_out(tmp_path: Path) -> None:
    """And a key that all structures have beside the label is something else."""
    right = write(tmp_path / "a.xyz", water_text(9, "energy", "forces", "energyx=0.1"))
    wrong = write(tmp_path / "b.xyz", water_text(3, "energy", "frces", "energyx=0.1"))
    report = check_frames(*read_with_census([right, wrong]))
    ((severity, text),) = messages(report, "unknown key")
    assert severity == "warning"
    assert text == (
        "the key 'frces' is nearly 'forces', which 3 structures lack: 3 have it, "
        f"{wrong}:0 first (if it is that, rename it)"
    )


def test_no_label_and_nothing_like_one_is_an_error_that_names_the_options(tmp_path: Path) -> None:
    path = write(tmp_path / "odd.xyz", water_text(3, "a", "b"))
    ((severity, text),) = messages(check_frames(*read_with_census(path)), "no labels")
    assert severity == "error"
    assert "say where: --energy-key, --forces-key, --stress-key, --virial-key" in text


def test_undetermined_references_are_a_warning_only_where_it_matters() -> None:
    assert messages(check_frames(GOOD), "references")[0][0] == "info"
    mixed = [*GOOD, *(springs(seed, molecule_name="CH3CH2OH") for seed in range(20))]
    found = messages(check_frames(mixed), "references")
    assert found[0][0] == "warning"
    assert "rank 2 for 3 elements" in found[0][1]
    known = {"H": -13.6, "C": -1027.0, "O": -2042.0}
    assert messages(check_frames(mixed, references=known), "references")[0][0] == "info"


def test_conflicting_isolated_atoms_are_reported_not_raised() -> None:
    atoms = [frame("H", energy=e, source=f"a.xyz:{i}") for i, e in enumerate((-13.6, -12.0))]
    assert messages(check_frames([*atoms, *GOOD]), "isolated atoms")[0][0] == "error"


def test_real_data_are_found_right(shared_data: Path) -> None:
    folder = shared_data / "acac"
    report = check_frames(
        read_frames([folder / "train_300K.xyz.xz", folder / "isolated_atoms.xyz.xz"])
    )
    assert report.count("error") == report.count("warning") == 0
    assert "isolated-atom energies are there for C, H, O" in messages(report, "references")[0][1]
    boxed = check_frames(read_frames(shared_data / "rmd17" / "ethanol" / "train_01.xyz.xz"))
    assert [f.code for f in boxed.findings if f.severity != "info"] == ["dummy box"]
    wrong = read_frames(folder / "test_MD_600K.xyz.xz", LabelKeys())
    wrong = changed(wrong, forces=lambda f: -f.forces)
    assert "gradients" in messages(check_frames(wrong), "derivatives")[0][1]


def test_shared_frames_of_real_files_are_found(shared_data: Path) -> None:
    folder = shared_data / "ethanol"
    frames = read_frames([folder / "train.xyz.xz", folder / "train_eth_meth.xyz.xz"])
    (found,) = messages(check_frames(frames), "duplicates")
    assert "2000 structures are there more than once (1000 pairs across files)" in found[1]


def test_structures_are_compared_with_their_likes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing all of thousands with all others would take hours."""
    compared = 0
    difference = check_geometry._difference

    def counted(*shapes: check_geometry._Shape) -> float:
        nonlocal compared
        compared += 1
        return difference(*shapes)

    monkeypatch.setattr(check_geometry, "_difference", counted)
    many = [
        dataclasses.replace(f, positions=f.positions * (1 + 1e-3 * k), source=f"m.xyz:{k}")
        for k in range(20)
        for f in (springs(seed) for seed in range(50))
    ]
    check_geometry.check_duplicates(many)
    assert compared < 3 * len(many)


def test_a_stress_in_the_order_that_vasp_prints_is_an_error() -> None:
    def as_vasp(f: Frame) -> np.ndarray:
        assert f.stress is not None
        stress = np.diag(np.diag(f.stress))
        # xy, yz, zx were taken for yz, xz, xy
        (a, b), (c, d), (e, g) = (1, 2), (0, 2), (0, 1)
        stress[a, b] = stress[b, a] = f.stress[0, 1]
        stress[c, d] = stress[d, c] = f.stress[1, 2]
        stress[e, g] = stress[g, e] = f.stress[0, 2]
        return stress

    good = strained(0.02, 0.02)
    assert check_frames(good).count("error") == 0
    ((severity, text), *_) = messages(check_frames(changed(good, stress=as_vasp)), "derivatives")
    assert severity == "error"
    assert "xx, yy, zz, xy, yz, zx, which VASP prints" in text


def test_energies_that_forces_do_not_belong_to_are_a_warning(tmp_path: Path) -> None:
    """VASP's energy without smearing beside the free energy, of which forces are derivatives."""
    rng = np.random.default_rng(0)

    def file(name: str, spread: float) -> Path:
        frames = [copper(seed) for seed in range(20)]
        for atoms in frames:
            energy = atoms.get_potential_energy()
            atoms.calc.results["free_energy"] = energy - 0.3 + spread * rng.normal()
        write_xyz(tmp_path / name, frames)
        return tmp_path / name

    constant = check_frames(read_frames(file("constant.xyz", 0.0)))
    assert messages(constant, "free energy") == []
    path = file("smeared.xyz", 0.02)
    ((severity, text),) = messages(check_frames(read_frames(path)), "free energy")
    assert severity == "warning"
    assert "data.keys.energy=free_energy" in text
    asked = read_frames(path, LabelKeys(energy="free_energy"))
    assert messages(check_frames(asked), "free energy") == []


def test_energies_per_atom_are_an_error() -> None:
    per_atom = changed(GOOD, energy=lambda f: f.energy / len(f))
    ((severity, text),) = messages(check_frames(per_atom), "derivatives")
    assert severity == "error"
    assert "energies are per atom" in text


def test_files_with_different_zeros_of_energy_are_told_apart() -> None:
    one = changed(GOOD[:20], source=lambda f: f.source.replace("springs", "one"))
    other = changed(
        GOOD[20:],
        source=lambda f: f.source.replace("springs", "other"),
        energy=lambda f: f.energy + 20,
    )
    assert check_frames([*one, *GOOD[20:]]).count("warning") == 0
    first, second = messages(check_frames([*one, *other]), "derivatives")
    assert first[0] == "warning"
    assert "energies of different files do not go together" in first[1]
    assert second[0] == "info"  # within each file all is right


def test_one_broken_calculation_is_named_and_spoils_no_other_check() -> None:
    def broken(f: Frame) -> np.ndarray | None:
        if f.source != "springs.xyz:7":
            return f.forces
        assert f.forces is not None
        forces = f.forces.copy()
        forces[3] = [3e4, 0, 0]
        return forces

    report = check_frames(changed(GOOD, forces=broken))
    ((severity, text),) = messages(report, "force outliers")
    assert severity == "warning"
    assert "3e+04 eV/A on atom 3" in text
    assert text.endswith("springs.xyz:7")
    assert messages(report, "forces") == messages(report, "net force") == []
    assert [severity for severity, _ in messages(report, "derivatives")] == ["info"]


def test_forces_that_a_constraint_took_away_are_recognised() -> None:
    def held(f: Frame) -> np.ndarray:
        assert f.forces is not None
        forces = f.forces.copy()
        forces[[0, 2]] = 0
        return forces

    report = check_frames(changed(GOOD, forces=held))
    ((severity, text),) = messages(report, "zero forces")
    assert severity == "warning"
    assert "such as atom 0 of the first" in text
    assert "apply_constraint=False" in text
    assert messages(report, "net force") == messages(report, "net torque") == []


def test_energies_without_any_forces_are_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "g.xyz", water_text(4, forces_key="gradient"))
    ((severity, text),) = messages(check_frames(*read_with_census(path)), "no forces")
    assert severity == "warning"
    assert "'gradient' would have their shape" in text


def test_a_lone_atom_in_a_small_box_may_be_a_reference() -> None:
    lone = frame("Cu", [[0, 0, 0]], cell=7 * np.eye(3), energy=-0.1, source="cu.xyz:99")
    crystal = frame("Cu", [[0, 0, 0]], cell=2.6 * np.eye(3), energy=-3.0, source="cu.xyz:98")
    ((_, text),) = messages(check_frames([*strained(0.02, 0.02), crystal, lone]), "lone atoms")
    assert "config_type=isolated_atom" in text
    assert text.endswith(": cu.xyz:99")


def test_one_composition_in_several_states_is_a_warning() -> None:
    def charged(*charges: int) -> list[Frame]:
        return [
            dataclasses.replace(f, info={"charge": c}) for f, c in zip(GOOD, charges, strict=False)
        ]

    assert messages(check_frames(charged(*[1] * len(GOOD))), "states") == []
    ((severity, text),) = messages(check_frames(charged(*[0, 1] * (len(GOOD) // 2))), "states")
    assert severity == "warning"
    assert "one composition differ in 'charge' (0, 1)" in text


def test_forces_without_energies_are_not_compared_and_why_is_said() -> None:
    report = check_frames(changed(GOOD, energy=None))
    assert any("no structure has both" in text for _, text in messages(report, "not compared"))
