"""clebsch train with a model that is fitted in closed form: the same folder, the same commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from ase.io import write

import clebsch
from clebsch.errors import ConfigError
from clebsch.training.configfile import config_dict, load_config
from clebsch.training.loop import resume, train
from clebsch.training.report import report_run
from training.toy import cluster, crystal

MODEL = "model={name: ace, cutoff: 4.0, correlation: 2, max_degree: [4, 2], committee: 4}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit")
    write(folder / "data.xyz", [*(cluster(i) for i in range(12)), *(crystal(i) for i in range(3))])
    config = load_config(
        None, [MODEL, f"data.train={folder / 'data.xyz'}", "data.valid_count=3", "dtype=float64"]
    )
    result = train(config, folder / "run")
    assert result.reason == "fitted"
    assert result.model == folder / "run" / "model.safetensors"
    return folder / "run"


def test_the_folder_is_that_of_a_training_run(run: Path) -> None:
    names = {"config.yaml", "log.txt", "metrics.jsonl", "model.safetensors"}
    assert names <= {path.name for path in run.iterdir()}
    (record,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert record["valid"]["forces_rmse"] > 0
    assert record["train"]["stress_rmse"] > 0
    assert record["fit"]["effective_parameters"] > 1
    log = (run / "log.txt").read_text()
    assert "effective parameters" in log
    assert "log evidence" in log


def test_the_model_tells_how_it_was_made(run: Path) -> None:
    potential = clebsch.load(run / "model.safetensors")
    provenance = potential.provenance
    assert provenance["config"]["model"]["name"] == "ace"
    assert provenance["data"]["train"]["frames"] == 12
    assert provenance["fit"]["strength"] > 0
    assert float(clebsch.uncertainty(potential, potential.graph(cluster(0))).energy) > 0


def test_the_written_configuration_is_read_back(run: Path) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert "training" not in settings
    assert "recipe" not in settings
    again = load_config(run / "config.yaml")
    assert config_dict(again) == settings


def test_a_report_can_be_made_again(run: Path) -> None:
    assert "closed form" in report_run(run).read_text(encoding="utf-8")


def test_there_is_nothing_to_resume(run: Path) -> None:
    with pytest.raises(ConfigError, match="no state to resume"):
        resume(run)


def test_a_second_fit_into_the_folder_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="holds a run already"):
        train(load_config(run / "config.yaml"), run)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model=ace_3bpa", "training.lr=0.1"], r"command line: training\.lr: .*closed form"),
        (["model=ace_3bpa", "recipe=paper"], r"recipe: .*closed form"),
        (["model=mace_tiny", "fit.energy=3"], r"fit\.energy: .*model message_passing is trained"),
        (["model=ace_3bpa", "fit.energi=3"], r"unknown key 'fit\.energi'.*energy"),
        (["model=ace_3bpa", "model.channels=3"], r"unknown key 'model\.channels'"),
        (["model=ace_3bpa", "model.max_degree=[1]"], r"model: .*max_degree has 1 numbers"),
        (["model=ace_3bpa", "fit.regularization=often"], r"fit\.regularization"),
        (["model={name: brace}"], r"model"),
    ],
)
def test_settings_of_the_other_kind_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["data.train=frames.xyz", *settings])
