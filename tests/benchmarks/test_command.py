"""``clebsch bench`` from its options to its table and file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import clebsch
from clebsch.benchmarks import jobs, opponents
from clebsch.benchmarks.rates import kernel_rates
from clebsch.cli import main
from clebsch.models.presets import model_config

SETTINGS = {
    "channels": 2,
    "l_max": 1,
    "product": {"correlation": 2},
    "cutoff": 3.0,
    "update": {"first_layer": "residual"},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    clebsch.build(SETTINGS, ["H", "C", "O"]).save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_a_model_file_is_measured(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("COLUMNS", "40")
    out = tmp_path / "bench.json"
    options = ("--sizes", "9", "--no-step", "--rounds", "1", "--seconds", "0", "--out", out)
    assert run(model, *options) == 0
    printed = capsys.readouterr().out
    assert "ethanol" in printed
    assert "min to max" in printed, "no column is squeezed"
    assert "G multiply-adds/s" in printed
    assert str(out) in printed
    written = json.loads(out.read_text())
    (result,) = written["results"]
    assert result["mode"] == "energy_forces"
    assert result["config"]["channels"] == 2
    assert result["summary"]["calls"] >= 5
    assert written["rounds"] == 1


def test_what_failed_is_said_and_the_rest_is_kept(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    code = "raise MemoryError('too little')"
    monkeypatch.setattr(jobs, "OURS", jobs.Contender("clebsch", (sys.executable, "-c", code)))
    out = tmp_path / "bench.json"
    assert run(model, "--sizes", "9", "--no-step", "--rounds", "1", "--out", out) == 1
    captured = capsys.readouterr()
    assert "failed" in captured.out
    assert "MemoryError: too little" in captured.err
    assert "too little" in json.loads(out.read_text())["results"][0]["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mace_smal",), "'mace_small'"),
        (("absent.safetensors",), "absent.safetensors"),
        (("mace_tiny,",), "with commas between them, not 'mace_tiny,'"),
        (("--dtype", "float16"), "float16"),
        (("--sizes", "many"), "'many'"),
        (("--sizes", "0"), "1 or more"),
        (("--suite", "papers"), "'paper'"),
        (("--suite", "paper", "--sizes", "9"), "has its own"),
        (("--against", "mace"), "'mace-torch'"),
        (("--against", "mace-torch,nequipp"), "'nequip'"),
        (("--against", "mace-torch"), "run make peers"),
        (("--against", "cuequivariance"), "on cuda alone, not on cpu"),
        (("--device", "meta"), "--device is cpu or cuda, not 'meta'"),
        (("--device", "cudda"), "unknown device 'cudda': cpu, cuda or cuda:1"),
        (("nequip_3bpa", "--against", "nequip"), "run make peers"),
        (("--against", "nequip"), "mace_small: nequip has no interaction.normalization=neighbors"),
        (("--suite", "paper", "--against", "nequip"), "nequip has no interaction.normalization"),
        (("nequip_3bpa", "--against", "mace-torch,nequip"), "mace-torch has no parity=full"),
        (("nequip_3bpa,botnet_3bpa", "--against", "nequip"), "botnet_3bpa: nequip has no"),
        (("--sizes", "9", "--out", "absent/bench.json"), "absent"),
    ],
)
def test_a_mistake_gets_one_clear_line(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opponents, "PEERS_FOLDER", tmp_path)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not list(tmp_path.glob("*.json"))


def test_each_model_is_measured_against_the_peers_that_have_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    code = (
        "import json; times = {'seconds': [1.0], 'baseline_mib': None, 'peak_mib': None, "
        "'device_baseline_mib': None, 'device_peak_mib': None}; "
        "print(json.dumps({'timing': times, 'n_edges': 1, 'versions': {}}))"
    )
    stand_in = (sys.executable, "-c", code)
    monkeypatch.setattr(jobs, "OURS", jobs.Contender("clebsch", stand_in))
    monkeypatch.setattr(
        opponents.Peer,
        "contenders",
        lambda self, device: (jobs.Contender(self.name, stand_in, lacks=self.lacks),),
    )
    out = tmp_path / "bench.json"
    arguments = ("mace_3bpa,nequip_3bpa", "--sizes", "135", "--against", "mace-torch,nequip")
    assert run(*arguments, "--no-step", "--rounds", "1", "--out", out) == 0
    error = capsys.readouterr().err
    assert "Not compared: mace_3bpa: nequip has no interaction.normalization=neighbors" in error
    assert "Not compared: nequip_3bpa: mace-torch has no parity=full" in error
    written = json.loads(out.read_text())
    assert [(one["system"], one["model"], one["contender"]) for one in written["results"]] == [
        ("5 x 3BPA", "mace_3bpa", "clebsch"),
        ("5 x 3BPA", "mace_3bpa", "mace-torch"),
        ("5 x 3BPA", "nequip_3bpa", "clebsch"),
        ("5 x 3BPA", "nequip_3bpa", "nequip"),
    ]
    assert [one["contender"] for one in written["ratios"]] == ["mace-torch", "nequip"]


def test_what_is_for_mace_alone_is_refused_for_other_architectures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    clebsch.build({"name": "allegro", "channels": 2, "l_max": 1}, ["H", "C", "O"]).save(
        tmp_path / "model.safetensors"
    )
    assert run(tmp_path / "model.safetensors", "--sizes", "9", "--against", "mace-torch") == 2
    assert "mace-torch has no name=allegro" in capsys.readouterr().err
    with pytest.raises(clebsch.ClebschError, match="for message passing, not allegro"):
        kernel_rates(clebsch.load(tmp_path / "model.safetensors").config, 8, torch.float32, 1)


def test_kernels_of_every_layer_have_a_rate() -> None:
    config = model_config({"preset": "mace_tiny", "channels": 2, "l_max": 1, "cutoff": 3.0})
    rates = kernel_rates(config, 8, torch.float32, 1)
    assert len({one.shape for one in rates}) == 2
    assert {one.kernel.split(",")[0] for one in rates} == {"convolution", "product"}
    assert all(one.rate > 0 for one in rates)
    # 8 atoms, 2 channels: 4 components in and out, weights of 2 couplings and more
    forward = [one for one in rates if one.kernel == "product, forward"]
    assert all(4 * 8 * 2 * (4 + 1) < one.n_bytes < 10_000 for one in forward)
