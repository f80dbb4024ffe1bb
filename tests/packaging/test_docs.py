"""The documents say what is so: examples run, tables are current, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

import clebsch
from clebsch.simulation.elastic import cubic_elastic_constants
from clebsch.training.configfile import load_config
from clebsch.training.loop import train

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate_config.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def trained_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that examples speak of, as a training would leave them."""
    potential = clebsch.build("mace_tiny", ["H", "C", "O"])
    potential.save(tmp_path / "model.safetensors")
    write(tmp_path / "molecule.xyz", molecule("CH3CH2OH"))
    for seed in (1, 2, 3):
        other = clebsch.build("mace_tiny", ["H", "C", "O"], seed=seed)
        (tmp_path / f"runs/seed-{seed}").mkdir(parents=True)
        other.save(tmp_path / f"runs/seed-{seed}/model.safetensors")
    uncertain = molecule("CH3CH2OH")
    uncertain.info["uncertainty_eV_A"] = 0.3
    write(tmp_path / "md.traj", uncertain)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/uncertainty.md"])
def test_python_examples_run(page: str, trained_here: Path):
    found = blocks(page, "python")
    assert found, "no example"
    names: dict[str, object] = {}
    for block in found:  # later blocks go on where earlier ones ended
        exec(compile(block, page, "exec"), names)


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
    for block in blocks("docs/crystals.md", "python"):
        exec(compile(block, "docs/crystals.md", "exec"), names)
    expected = cubic_elastic_constants(EMT(), names["crystal"])
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


def test_the_readme_example_has_ten_lines():
    (example,) = blocks("README.md", "python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 10


def test_configurations_in_the_documents_are_valid(tmp_path: Path):
    found = blocks("docs/configuration.md", "yaml") + blocks("docs/quickstart.md", "yaml")
    assert found
    for number, block in enumerate(found):
        assert yaml.safe_load(block)
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        load_config(path)


def test_the_tables_of_the_configuration_page_are_current():
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == generator().page(), "run: python docs/generate_config.py"


def test_every_command_is_in_the_readme():
    from clebsch.cli import app

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert command.callback is not None
        assert f"clebsch {command.name or command.callback.__name__}" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(page: Path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_source_files_that_are_named_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:src|tests|docs|examples)/[\w/.-]+)`", text):
        assert (ROOT / name).exists(), name
