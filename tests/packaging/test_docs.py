"""The documents say what is so: examples run, tables are current, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from ase.build import molecule
from ase.io import write

import clebsch
from clebsch.training.configfile import load_config

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
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_python_examples_run(page: str, trained_here: Path):
    found = blocks(page, "python")
    assert found, "no example"
    names: dict[str, object] = {}
    for block in found:  # later blocks go on where earlier ones ended
        exec(compile(block, page, "exec"), names)


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
