"""The code of the documentation runs, in order, and gives what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from clebsch.simulation.elastic import cubic_elastic_constants
from clebsch.training.configfile import load_config
from clebsch.training.loop import train

DOCS = Path(__file__).resolve().parents[2] / "docs"


def code_of(page: str) -> str:
    """All Python of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))


@pytest.fixture
def copper(tmp_path: Path) -> Path:
    """A folder with a crystal and a linear ACE that knows it."""
    random = np.random.default_rng(0)
    frames = []
    for scale in np.linspace(0.95, 1.05, 24):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(scale * atoms.cell.array @ (np.eye(3) + 0.02 * random.normal(size=(3, 3))))
        atoms.set_scaled_positions(bulk("Cu", cubic=True).get_scaled_positions())
        atoms.positions += 0.05 * random.normal(size=atoms.positions.shape)
        results = {name: EMT().get_property(name, atoms) for name in ("energy", "forces", "stress")}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    write(tmp_path / "train.extxyz", frames)
    write(tmp_path / "crystal.cif", bulk("Cu", cubic=True))
    model = "model={name: ace, cutoff: 4.5, correlation: 2, max_degree: [10, 6], committee: 0}"
    settings = [f"data.train={tmp_path / 'train.extxyz'}", model, f"run={tmp_path / 'run'}"]
    result = train(load_config(None, settings))
    assert result.model is not None
    result.model.rename(tmp_path / "model.safetensors")
    return tmp_path


def test_the_page_of_crystals(copper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copper)
    names: dict[str, Any] = {}
    exec(compile(code_of("crystals.md"), "crystals.md", "exec"), names)
    expected = cubic_elastic_constants(names["crystal"], EMT())
    for name in ("c11", "c12", "c44"):
        found = getattr(names["constants"], name)
        assert found == pytest.approx(getattr(expected, name), rel=0.1), name
    assert names["curve"].bulk_modulus == pytest.approx(names["constants"].bulk_modulus, rel=0.03)
    assert names["hessian"].shape == (12, 12)
    modes = np.sort(np.abs(names["at_gamma"].get_energies()))
    assert (modes[:3] < 1e-3).all(), "three translations"
    bands = names["frequencies"]
    assert bands.shape == (3, 12)
    assert np.sort(np.abs(bands[0]))[3:] == pytest.approx(modes[3:], rel=0.05)
