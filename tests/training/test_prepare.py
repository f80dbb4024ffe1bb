"""What training starts from: labels, references and structures out of the files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from clebsch.errors import ConfigError, DataError
from clebsch.training.calibration import energy_residuals
from clebsch.training.config import LossConfig
from clebsch.training.prepare import Prepared, prepare
from clebsch.training.validate import validate

from .toy import cluster, config, data_file


def lone(symbol: str, energy: float) -> Atoms:
    atom = Atoms(symbol)
    atom.calc = SinglePointCalculator(atom, energy=energy)
    return atom


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


def test_a_device_that_is_not_here_is_said_before_data_are_read(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(ConfigError, match="the device 'cuda:99' cannot be used: "):
        prepare(config(tmp_path / "absent.xyz", "device=cuda:99"), lines.append)
    assert not lines


@pytest.mark.parametrize("setting", ["isolated_atoms", "valid"])
def test_isolated_atoms_of_all_files_are_used_and_may_not_contradict(
    tmp_path: Path, setting: str
) -> None:
    clusters = [cluster(seed) for seed in range(6)]
    train = data_file(tmp_path, [*clusters[:4], lone("Cu", 3.5)], "train.xyz")

    def prepared(copper: float) -> Prepared:
        others = [lone("Au", 3.8), lone("Cu", copper)]
        if setting == "valid":
            others += clusters[4:]
        other = data_file(tmp_path, others, "other.xyz")
        settings = [f"data.{setting}={other}"]
        if setting == "valid":
            settings.append("data.valid_count=null")
        return prepare(config(train, *settings), lambda _: None)

    assert prepared(3.5).references == {"Cu": 3.5, "Au": 3.8}
    with pytest.raises(DataError, match="different energies of the isolated atom Cu") as caught:
        prepared(4.5)
    assert f"3.5 eV in {train}: frame 4" in str(caught.value)
    assert f"4.5 eV in {tmp_path / 'other.xyz'}: frame 1" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.train_count=4"], r"data\.train_count: 4 structures .* but there are 3"),
        (["data.valid_count=9"], r"data\.valid_count: 5 frames .*with 9 for validation none"),
        (
            ["data.valid_count=null", "data.valid_fraction=0.95"],
            r"data\.valid_fraction: 5 frames .*with 5 for validation none",
        ),
    ],
)
def test_too_few_structures_name_the_file_and_the_key(
    tmp_path: Path, settings: list[str], message: str
) -> None:
    data = data_file(tmp_path, [cluster(seed) for seed in range(5)])
    with pytest.raises(DataError, match=rf"^{data}: {message}"):
        prepare(config(data, *settings), lambda _: None)


def test_labels_in_wrong_units_are_said_before_training(tmp_path: Path) -> None:
    frames = [cluster(seed) for seed in range(16)]
    lines: list[str] = []
    prepare(config(data_file(tmp_path, frames)), lines.append)
    assert not [line for line in lines if line.startswith("Data, ")]
    for atoms in frames:
        atoms.calc.results["forces"] = atoms.calc.results["forces"] * 1000
    prepare(config(data_file(tmp_path, frames, "wrong.xyz")), lines.append)
    (said,) = [line for line in lines if line.startswith("Data, warning: forces are")]
    assert said.endswith("(clebsch check says more)")
