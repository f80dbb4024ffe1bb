"""Reference energies: isolated atoms set apart, fits that say what they know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_builders import frame

from clebsch.data.read import read_frames
from clebsch.data.references import (
    fit_references,
    interaction_energy,
    isolated_atoms,
    spanning_formulas,
    undetermined,
)
from clebsch.errors import DataError

EXACT = {"H": -13.6, "C": -1027.25, "O": -2042.5}


def exact(formula: str, offset: float = 0.0) -> object:
    built = frame(formula)
    energy = sum(EXACT[symbol] for symbol in built.symbols) + offset
    return frame(formula, energy=energy, source=f"{formula}.xyz:0")


def test_isolated_atoms_become_references_and_leave_the_frames() -> None:
    atoms = [frame(s, energy=e, info={"config_type": "isolated_atom"}) for s, e in EXACT.items()]
    water = exact("OH2")
    references, rest = isolated_atoms([*atoms, water])
    assert references == EXACT
    assert rest == [water]


def test_a_lone_atom_is_isolated_only_if_its_images_are_far() -> None:
    far = frame("H", energy=-13.6, cell=20 * np.eye(3))
    crystal = frame("H", energy=-15.0, cell=2 * np.eye(3))
    # long vectors in a skewed cell: the difference of the first two is 7 A
    skewed = frame("H", energy=-15.0, cell=[[9, 0, 0], [9, 7, 0], [0, 0, 20]])
    unlabelled = frame("H")
    references, rest = isolated_atoms([far, crystal, skewed, unlabelled])
    assert references == {"H": -13.6}
    assert rest == [crystal, skewed, unlabelled]


@pytest.mark.parametrize(
    "name", ["IsolatedAtom", "isolated_atom", "isolated-atom", "Isolated Atom"]
)
def test_isolated_atoms_are_known_by_any_spelling(name: str) -> None:
    lone = frame("O", cell=4 * np.eye(3), energy=-1.0, info={"config_type": name})
    assert isolated_atoms([lone]) == ({"O": -1.0}, [])


def test_conflicting_isolated_atoms_are_refused() -> None:
    one = frame("H", energy=-13.6, source="a.xyz:0")
    two = frame("H", energy=-12.5, source="b.xyz:4")
    with pytest.raises(DataError, match=r"isolated atom H: .*a\.xyz: frame 0, .*b\.xyz: frame 4"):
        isolated_atoms([one, two])
    same = frame("H", energy=-13.60001)
    assert isolated_atoms([one, same])[0] == {"H": -13.6}


def test_several_atoms_that_call_themselves_isolated_are_refused() -> None:
    wrong = frame("H2", energy=-30.0, info={"config_type": "IsolatedAtom"}, source="a.xyz:7")
    with pytest.raises(DataError, match=r"a\.xyz: frame 7: .* 2 atoms"):
        isolated_atoms([wrong])


def test_a_fit_to_enough_compositions_finds_the_references() -> None:
    fit = fit_references([exact(f) for f in ("H2", "OH2", "CH4", "CO2", "C2H6O")])  # type: ignore[misc]
    assert (fit.rank, fit.n_species, fit.determined) == (3, 3, True)
    assert fit.energies == pytest.approx(EXACT, abs=1e-9)
    assert fit.residual_rms < 1e-9


def test_one_molecule_has_rank_one_and_the_fit_says_so() -> None:
    fit = fit_references([exact("C2H6O", e) for e in (-3.0, 3.0)])  # type: ignore[misc]
    assert (fit.rank, fit.n_species, fit.determined) == (1, 3, False)
    assert "rank 1 for 3 elements" in fit.describe()
    total = 2 * fit.energies["C"] + 6 * fit.energies["H"] + fit.energies["O"]
    assert total == pytest.approx(2 * EXACT["C"] + 6 * EXACT["H"] + EXACT["O"], abs=1e-9)
    # the undetermined directions stay at the mean
    assert len({round(energy, 6) for energy in fit.energies.values()}) == 1
    assert fit.residual_rms == pytest.approx(3 / 9)


def test_missing_energies_are_left_out_of_the_fit() -> None:
    labelled = [exact(f) for f in ("H2", "OH2", "CH4")]
    fit = fit_references([*labelled, frame("OH2"), frame("NH3")])  # type: ignore[list-item]
    assert all(np.isfinite(energy) for energy in fit.energies.values())
    assert {s: fit.energies[s] for s in EXACT} == pytest.approx(EXACT, abs=1e-6)
    assert not fit.determined  # nitrogen is in no labelled frame
    with pytest.raises(DataError, match="no frame has an energy"):
        fit_references([frame("OH2")])


def test_structures_count_by_their_weight() -> None:
    right = [exact(f) for f in ("H2", "OH2", "CH4")]
    wrong = [exact(f, 10.0) for f in ("H2", "OH2", "CH4")]
    light = [replace(f, energy_weight=1e-9, weight=0.5) for f in wrong]  # type: ignore[type-var]
    assert fit_references([*right, *light]).energies == pytest.approx(EXACT, abs=1e-6)  # type: ignore[list-item]
    assert fit_references([*right, *wrong]).energies != pytest.approx(EXACT, abs=1.0)  # type: ignore[list-item]


def test_an_element_without_energies_is_zero_where_all_others_are_known() -> None:
    labelled = [exact("CH4"), exact("CH4")]
    fit = fit_references([*labelled, frame("OH2")], known={"H": -1.0, "C": -2.0})  # type: ignore[list-item]
    assert fit.energies == {"H": -1.0, "C": -2.0, "O": 0.0}
    assert not fit.determined


def test_known_references_are_kept_and_the_rest_is_fitted() -> None:
    fit = fit_references([exact("OH2"), exact("H2")], known={"H": EXACT["H"]})  # type: ignore[list-item]
    assert fit.energies == pytest.approx({"H": EXACT["H"], "O": EXACT["O"]}, abs=1e-9)
    assert (fit.rank, fit.n_species) == (1, 1)


def test_what_binds_atoms_is_no_part_of_a_single_fitted_reference() -> None:
    """Else copper's cohesion would stand in the reference of gold, which has no lone atom."""
    atoms = {"Cu": 3.51, "Au": 3.80}
    frames = [
        frame(formula, energy=sum(atoms[s] - 3.4 for s in frame(formula).symbols))
        for formula in ("Cu4", "Cu3Au", "CuAu3", "Au4", "Cu2Au2")
    ]
    fit = fit_references(frames, known={"Cu": 3.51})
    assert fit.energies == pytest.approx(atoms, abs=1e-9)
    assert fit.binding == pytest.approx(-3.4, abs=1e-9)
    assert fit.residual_rms < 1e-9
    assert "-3.4 eV that bind an atom" in fit.describe()
    free = fit_references(frames)
    assert free.energies == pytest.approx({s: e - 3.4 for s, e in atoms.items()}, abs=1e-9)
    one = fit_references(frames[1:2], known={"Cu": 3.51})  # gold and binding cannot be told apart
    assert (one.binding, one.residual_rms) == (0.0, pytest.approx(0.0, abs=1e-9))
    assert not one.determined
    assert "do not tell them from what binds atoms" in one.describe()


def test_an_element_without_energies_gets_the_mean_without_what_binds() -> None:
    atoms = {"Cu": 3.51, "Au": 3.80}
    frames = [
        frame(formula, energy=sum(atoms[s] - 3.4 for s in frame(formula).symbols))
        for formula in ("Cu50", "Cu50Au")
    ]
    fit = fit_references([*frames, frame("Ag2")], known={"Cu": 3.51})
    assert fit.energies == pytest.approx(atoms | {"Ag": 3.8}, abs=1e-6)


def test_an_element_without_reference_names_the_frame() -> None:
    with pytest.raises(DataError, match=r"CO\.xyz: frame 0: no reference energy for C"):
        interaction_energy(exact("CO"), {"H": -13.6, "O": -2042.5})  # type: ignore[arg-type]


def test_real_isolated_atoms(shared_data: Path) -> None:
    folder = shared_data / "acac"
    frames = read_frames([folder / "train_300K.xyz.xz", folder / "isolated_atoms.xyz.xz"])
    references, rest = isolated_atoms(frames)
    assert len(rest) == 500
    assert references["H"] == pytest.approx(-13.568422, abs=1e-6)
    assert interaction_energy(rest[0], references) / 15 == pytest.approx(-4.87, abs=0.05)


def test_formulas_span_the_compositions_that_have_energies() -> None:
    frames = [exact(f) for f in ("CH4", "CH4", "C2H8", "CH3OH", "C2H5OH")] + [frame("CO2")]
    formulas = spanning_formulas(frames)
    assert formulas == ["CH4", "CH4O", "C2H6O"]
    assert spanning_formulas(frames, known=["H", "O"]) == ["H", "O", "CH4"]


def test_compositions_outside_the_span_are_undetermined() -> None:
    frames = [frame(f) for f in ("H2O", "H4O2", "H2O2", "H2O2", "CH4")]
    assert undetermined(frames, ["H2O"]) == {"H2O2": 2, "CH4": 1}
    assert undetermined(frames, ["H2O", "H"]) == {"CH4": 1}
    assert undetermined(frames, ["H2O", "H", "CO2"]) == {}
