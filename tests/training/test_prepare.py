"""What training starts from: labels, references and structures out of the files."""

from __future__ import annotations

from pathlib import Path

import torch

from clebsch.training.calibration import energy_residuals
from clebsch.training.config import LossConfig
from clebsch.training.prepare import Prepared, prepare
from clebsch.training.validate import validate

from .toy import cluster, config, data_file


def test_placeholders_of_weight_zero_teach_nothing(tmp_path: Path) -> None:
    """Neither references, statistics nor validation know what stands in them."""

    def prepared(placeholder: float, said: list[str]) -> Prepared:
        frames = [cluster(seed) for seed in range(8)]
        for atoms in (frames[1], frames[6]):
            atoms.calc.results["energy"] = placeholder
            atoms.info["config_energy_weight"] = 0.0
        valid = data_file(tmp_path, frames[5:], "valid.xyz")
        path = data_file(tmp_path, frames[:5])
        return prepare(config(path, "data.valid_count=null", f"data.valid={valid}"), said.append)

    lines: list[str] = []
    one, other = prepared(0.0, lines), prepared(-1e3, [])
    assert one.references == other.references
    assert torch.equal(one.potential.head.mean_energy, other.potential.head.mean_energy)
    batches = [list(range(3))]
    assert validate(one.potential, one.valid, batches, LossConfig()) == validate(
        other.potential, other.valid, batches, LossConfig()
    )
    counts = energy_residuals(one.potential, one.valid, batches)[0]
    assert len(counts) == 2
    assert "Training: labels of weight 0 count as missing: 1 energies" in lines
    assert "Validation: labels of weight 0 count as missing: 1 energies" in lines
