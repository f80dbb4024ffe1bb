"""Real data, the command line and minutes of training: acetylacetone at 300 K."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_five_minutes_on_acac_give_a_useful_potential(shared_data: Path, tmp_path: Path) -> None:
    """Far from the twenty minutes of the example, and far better than an untrained network."""
    command = [sys.executable, "-m", "clebsch"]
    settings = ["examples/acac.yaml", "training.max_minutes=5", f"run={tmp_path / 'run'}"]
    subprocess.run([*command, "train", *settings], cwd=ROOT, check=True)
    test = shared_data / "acac" / "test_MD_300K.xyz.xz"
    judged = subprocess.run(
        [*command, "evaluate", str(tmp_path / "run" / "model.safetensors"), str(test), "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    metrics = next(iter(json.loads(judged.stdout)["sets"].values()))["metrics"]
    assert metrics["forces_rmse"] < 0.060
    assert metrics["energy_rmse"] < 0.060
