"""What the package says of itself: in its metadata, in the changelog and on the command line."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import clebsch

ROOT = Path(__file__).resolve().parents[2]


def test_the_newest_release_in_the_changelog_is_this_version():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    releases = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert releases[0] == declared
    assert version("clebsch") == declared, "installed from another version: run make setup"
    assert clebsch.__version__ == declared


def test_the_command_tells_its_version():
    command = [sys.executable, "-c", "from clebsch.cli import main; main()", "--version"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert clebsch.__version__ in result.stdout


def test_set_up_pins_torch():
    """Without the pin an installation fetches CUDA packages of several gigabytes."""
    pins = (ROOT / "constraints.txt").read_text()
    assert re.search(r"^torch==\d+\.\d+\.\d+$", pins, re.M)
