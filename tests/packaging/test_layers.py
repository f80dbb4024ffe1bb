"""Tensors flow one way: no layer imports one that comes after it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import clebsch

SOURCE = Path(clebsch.__file__).parent

#: From the bottom up; a module may import from its own layer and from those before it.
LAYERS = (
    "errors",
    "conventions",
    "elements",
    "files",
    "memory",
    "processor",
    "interrupt",
    "rounding",
    "devices",
    "terminal",
    "graph",
    "contacts",
    "neighbors",
    "algebra",
    "kernels",
    "nn",
    "models",
    "recording",
    "replay",
    "agreement",
    "repeats",
    "potential",
    "committee",
    "factory",
    "interop",
    "modelfile",
    "modelinfo",
    "data",
    "evaluation",
    "training",
    "calculators",
    "simulation",
    "demo",
    "cli_options",
    "benchmarks",
    "reproduce",
    "doctor",
    "cli_doctor",
    "cli_convert",
    "cli_data",
    "cli_info",
    "cli",
    "__main__",
)

#: Imports against the order that exist for a reason: importing module, imported layer.
EXCEPTIONS = {
    ("potential", "modelfile"): "Potential.save; imported when it is called",
}

#: Reading and checking data needs no model.
MODEL_LAYERS = LAYERS[LAYERS.index("algebra") : LAYERS.index("data")]


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    target: str

    @property
    def layers(self) -> tuple[str, str]:
        return self.module.split(".")[0], self.target.split(".")[0]

    def __str__(self) -> str:
        return f"{self.module} (line {self.line}) imports {self.target}"


def imports_of(module: str, text: str) -> Iterator[Import]:
    """What a module imports of the package, wherever it does; not what only type checkers see.

    Of ``import clebsch`` the names count that are used: ``clebsch.load`` lies in ``modelfile``.
    """
    pending: list[ast.AST] = [ast.parse(text)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        pending.extend(ast.iter_child_nodes(node))
        targets: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            if node.module == "clebsch":
                targets = [clebsch._HOMES.get(a.name, f"clebsch.{a.name}") for a in node.names]
            else:
                targets = [node.module or ""]
        elif isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "clebsch":
            targets = [clebsch._HOMES.get(node.attr, "")]
        for target in targets:
            if target.startswith("clebsch.") and not target.startswith("clebsch.__"):
                yield Import(module, node.lineno, target.removeprefix("clebsch."))


def all_imports() -> list[Import]:
    found: list[Import] = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        if module:
            found.extend(imports_of(module, path.read_text(encoding="utf-8")))
    return found


def against_the_order(found: list[Import]) -> list[Import]:
    def upwards(one: Import) -> bool:
        importing, imported = one.layers
        return LAYERS.index(imported) > LAYERS.index(importing)

    return [one for one in found if upwards(one)]


def test_every_module_belongs_to_a_layer():
    names = {path.stem for path in SOURCE.glob("*.py")} - {"__init__"}
    names |= {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert names <= set(LAYERS), "say in LAYERS where it stands"


def test_no_layer_imports_one_above_it():
    wrong = [
        one
        for one in against_the_order(all_imports())
        if (one.module, one.layers[1]) not in EXCEPTIONS
    ]
    assert not wrong, "; ".join(map(str, wrong))


def test_the_exceptions_still_exist():
    used = {(one.module, one.layers[1]) for one in against_the_order(all_imports())}
    assert used == set(EXCEPTIONS), "strike out what is no longer needed"


def test_reading_and_checking_data_needs_no_model():
    wrong = [
        one for one in all_imports() if one.layers[0] == "data" and one.layers[1] in MODEL_LAYERS
    ]
    assert not wrong, "; ".join(map(str, wrong))


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("from clebsch.cli import main", True),
        ("def f():\n    import clebsch.training.loop", True),
        ("import clebsch\nclebsch.load('x')", True),
        ("from clebsch import load", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import clebsch.cli", False),
        ("from clebsch.errors import DataError", False),
    ],
)
def test_an_import_against_the_order_is_noticed(text: str, caught: bool):
    assert bool(against_the_order(list(imports_of("graph", text)))) is caught


def test_the_command_line_starts_without_torch():
    """``clebsch --help`` is for people: it must not wait for torch, ASE's readers or plots."""
    heavy = ("torch", "ase", "llvmlite", "scipy", "matplotlib")
    code = f"import sys, clebsch.cli; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
