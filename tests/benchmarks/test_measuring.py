"""What is timed, how it is summed up, and what the file says. No test asserts a time."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from clebsch.benchmarks import compare, jobs, opponents, rates, record, speed, timing
from clebsch.benchmarks.structures import system_of_size
from clebsch.data.loader import Batch
from clebsch.errors import ConfigError
from clebsch.models.config import MessagePassingConfig
from clebsch.models.presets import model_config

TINY = MessagePassingConfig(
    channels=2,
    l_max=1,
    message_l=1,
    product={"correlation": 2},
    cutoff=3.0,
    update={"first_layer": "residual"},
)
QUICK = {"min_calls": 2, "min_seconds": 0.0, "max_seconds": 5.0}


def case(size: int = 9) -> jobs.Case:
    system = system_of_size(size)
    return jobs.Case(system, TINY, "tiny", system.species)


def row(contender: str, *rounds: list[float] | None, of: jobs.Case | None = None) -> compare.Row:
    """A row as processes would have left it: each peak 10 MiB above 100."""
    measured = compare.Row(of or case(), "step", contender)
    for seconds in rounds:
        times = {"seconds": seconds, "baseline_mib": 100.0, "peak_mib": 110.0}
        times |= {"device_baseline_mib": None, "device_peak_mib": None}
        versions = {contender: "1.0"}
        result = {"timing": times, "n_edges": 5, "n_parameters": 7, "versions": versions}
        measured.results.append(None if seconds is None else result)
    return measured


# --- timing -----------------------------------------------------------------------------------


def test_warm_ups_are_not_timed():
    calls = []
    timed = timing.measure(lambda: calls.append(1), min_calls=4, min_seconds=0.0)
    assert len(timed["seconds"]) == 4
    assert len(calls) == 4 + timing.WARMUPS


def test_a_slow_call_is_made_twice_and_timed_once():
    calls = []

    def call() -> None:
        calls.append(1)
        time.sleep(0.02)

    timed = timing.measure(call, min_seconds=9.0, max_seconds=0.01)
    assert len(calls) == 2
    assert len(timed["seconds"]) == 1
    assert timed["seconds"][0] >= 0.02


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_peak_memory_is_that_of_the_calls():
    def call() -> None:
        np.ones(8 * 2**20)  # 64 MiB, freed at once

    np.ones(32 * 2**20)  # 256 MiB before the measurement do not count
    timed = timing.measure(call, min_calls=1, min_seconds=0.0)
    assert 60 <= timed["peak_mib"] - timed["baseline_mib"] <= 120


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_memory_that_was_freed_before_is_not_called_held():
    blocks = [bytearray(60_000) for _ in range(1500)]  # 86 MiB that the allocator keeps when freed
    kept = bytearray(60_000)  # at the end of the heap, so that it is not trimmed by itself
    blocks.clear()
    held = timing.memory_mib("VmRSS")
    timed = timing.measure(lambda: None, min_calls=1, min_seconds=0.0)
    assert held is not None
    assert timed["baseline_mib"] < held - 40
    assert len(kept) == 60_000


def test_the_matrix_product_has_a_rate():
    before = torch.get_num_threads()
    assert rates.gemm_rate(torch.float32, 1, size=64) > 1e6
    assert rates.copy_rate(1, n_bytes=1000) > 1e6
    assert torch.get_num_threads() == before


def test_rates_are_shown_beside_the_matrix_product_and_the_copy():
    rate = rates.KernelRate("convolve", "64 atoms", 10**9, n_bytes=10**6, seconds=0.1)
    assert rate.rate == 1e10
    _, _, _, _, gemm, copy = rates.rates_table([rate], gemm=4e10, copy=2e7).columns
    assert list(gemm.cells) == ["25%"]
    assert list(copy.cells) == ["50%"]


class Device:
    """Stands in for an accelerator: notes what it is asked, and has used 64 MiB on 16."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.accelerator = timing.Accelerator(
            synchronize=lambda: self.log.append("done"),
            reset_peak=lambda: self.log.append("reset"),
            held_bytes=lambda: 16 * 2**20,
            peak_bytes=lambda: 64 * 2**20,
        )


def test_a_call_on_a_device_ends_when_the_device_is_done():
    device = Device()
    timed = timing.measure(
        lambda: device.log.append("call"), 2, min_seconds=0.0, device=device.accelerator
    )
    assert device.log == ["done", "reset"] + ["call", "done"] * (timing.WARMUPS + 2)
    assert (timed["device_baseline_mib"], timed["device_peak_mib"]) == (16.0, 64.0)
    assert timing.measure(lambda: None, 1, min_seconds=0.0)["device_peak_mib"] is None


def test_the_time_of_a_call_includes_what_the_device_still_does():
    slow = dataclasses.replace(Device().accelerator, synchronize=lambda: time.sleep(0.02))
    timed = timing.measure(lambda: None, 1, min_seconds=0.0, device=slow)
    assert timed["seconds"][0] >= 0.02


def test_cuda_is_asked_about_the_device_at_hand():
    asked = []

    class Cuda:
        def __getattr__(self, name: str) -> Any:
            return lambda device: asked.append((name, device))

    class Torch:
        device, cuda = torch.device, Cuda()

    assert timing.accelerator(Torch, "cpu") is None
    found = timing.accelerator(Torch, "cuda:1")
    assert found is not None
    for one in dataclasses.fields(found):
        getattr(found, one.name)()
    names = ("synchronize", "reset_peak_memory_stats", "memory_allocated", "max_memory_allocated")
    assert asked == [(name, "cuda:1") for name in names]


# --- our side ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["energy_forces", "step"])
def test_a_measurement_says_what_it_ran(mode: jobs.Mode):
    result = speed.measure_job(case().job(mode, "float64", 1, QUICK))
    assert result["n_atoms"] == 9
    assert result["n_edges"] == system_of_size(9).n_edges(3.0)
    assert len(result["timing"]["seconds"]) == 2
    assert min(result["timing"]["seconds"]) > 0
    assert result["timing"]["cpu_per_wall"] > 0
    json.dumps(result)


@pytest.mark.parametrize("from_file", [False, True])
def test_a_step_trains_every_weight(from_file: bool, tmp_path: Path):
    job = case().job("step", "float64", 1, QUICK)
    potential = speed._potential(job)
    if from_file:  # where it comes frozen from
        potential.save(tmp_path / "model.safetensors")
        potential = speed._potential({**job, "model": str(tmp_path / "model.safetensors")})
    before = {name: p.detach().clone() for name, p in potential.named_parameters()}
    speed.training_step(potential, [speed.frame_of(one) for one in job["structures"]])()
    # hydrogen, carbon and oxygen are all there, so no weight is without a gradient
    for name, parameter in potential.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_model_and_structures_are_on_the_device(monkeypatch: pytest.MonkeyPatch):
    moved = []
    original = torch.nn.Module.to

    def to(module: torch.nn.Module, *where: Any, **named: Any) -> Any:
        moved.append((type(module).__name__, *where))
        return original(module, *where, **named)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr(Batch, "to", lambda batch, where: moved.append(("Batch", where)) or batch)
    job = case().job("step", "float64", 1, QUICK, device="cpu:0")
    potential = speed._potential(job)
    assert ("Potential", "cpu:0") in moved
    speed.training_step(potential, [speed.frame_of(one) for one in job["structures"]])
    assert ("Batch", potential.device) in moved


# --- processes --------------------------------------------------------------------------------


def contender(code: str, **environment: str) -> jobs.Contender:
    return jobs.Contender("somebody", (sys.executable, "-c", code), environment)


def test_a_process_that_fails_is_named_with_its_last_line():
    with pytest.raises(jobs.MeasurementError, match="somebody: ValueError: no such luck"):
        jobs.run_job(contender("raise ValueError('no such luck')"), {"threads": 1})


def test_a_process_that_takes_too_long_is_ended():
    with pytest.raises(jobs.MeasurementError, match="somebody: not done after 0 s"):
        jobs.run_job(contender("import time; time.sleep(60)"), {"threads": 1}, limit=0.2)


def test_the_allocator_is_as_it_comes_unless_tuned(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "5")
    code = (
        "import json, os; "
        "print(json.dumps({k: v for k, v in os.environ.items() if k[:4] in ('MALL', 'OMP_')}))"
    )
    plain = jobs.run_job(contender(code), {"threads": 3})
    tuned = jobs.run_job(contender(code, **opponents.TUNED_ALLOCATOR), {"threads": 3})
    assert "MALLOC_TOP_PAD_" not in plain
    assert plain["OMP_NUM_THREADS"] == "3"
    assert tuned["MALLOC_TOP_PAD_"] == "1073741824"


@pytest.mark.parametrize("name", ["mace-torch", "nequip"])
def test_a_missing_peer_says_how_to_get_it(name: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=f"{name} is not installed in .*: run make peers"):
        opponents.PEERS[name].contenders(tmp_path)


def test_cuequivariance_is_mace_torch_on_a_gpu(tmp_path: Path):
    peer = opponents.PEERS["cuequivariance"]
    with pytest.raises(ConfigError, match="measured on cuda alone, not on cpu: add --device cuda"):
        peer.contenders(tmp_path)
    with pytest.raises(ConfigError, match=r"cuequivariance is not installed .*performance\.md"):
        peer.contenders(tmp_path, "cuda")
    (tmp_path / "cuequivariance").mkdir()
    (tmp_path / "cuequivariance" / ".installed").touch()
    (contender,) = peer.contenders(tmp_path, "cuda")
    assert contender.options == {"cuequivariance": True}
    assert contender.command[-1].endswith("mace_torch.py")
    assert not contender.environment


@pytest.mark.parametrize(
    ("peer", "model", "lacking"),
    [
        ("mace-torch", "mace_3bpa", []),
        ("mace-torch", {"preset": "mace_small", "zbl": True}, ["zbl=True"]),
        ("mace-torch", {"product": None}, ["product=null"]),
        ("mace-torch", {"product": {"slots": "distinct"}}, ["product.slots=distinct"]),
        ("nequip", "nequip_3bpa", []),
        ("nequip", "nequip_acac", []),
        ("nequip", "nequip_small", []),
        ("nequip", {"preset": "nequip_3bpa", "parity": "natural", "l_max": 2}, []),
        (
            "nequip",
            {"preset": "nequip_3bpa", "radial": {"hidden": [64, 32]}},
            ["radial.hidden=(64, 32)"],
        ),
        (
            "nequip",
            {"preset": "nequip_3bpa", "readout": {"layers": "every"}},
            ["readout.layers=every"],
        ),
        (
            "nequip",
            {"preset": "nequip_3bpa", "update": {"gate": "none", "last_layer": "full"}},
            ["update.gate=none", "update.last_layer=full"],
        ),
        (
            "nequip",
            {"preset": "nequip_3bpa", "update": {"self_connection": "linear"}},
            ["update.self_connection=linear"],
        ),
    ],
)
def test_settings_that_a_peer_lacks_are_named(peer: str, model: Any, lacking: list[str]):
    assert opponents.PEERS[peer].lacks(model_config(model)) == lacking


def test_contenders_take_turns_and_a_failure_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch):
    order = []

    limits = iter([9.0, 8.0, 7.0, 6.0])

    def run_job(who: jobs.Contender, job: dict[str, Any], limit: float | None) -> dict[str, Any]:
        order.append(who.name)
        assert job["device"] == "cuda"
        assert limit == 10.0 - len(order)
        if who.name == "b" and len(order) > 2:
            raise jobs.MeasurementError("b: out of memory")
        times = {"seconds": [1.0], "baseline_mib": None, "peak_mib": None}
        times |= {"device_baseline_mib": None, "device_peak_mib": None}
        return {"timing": times, "n_edges": 1, "versions": {}}

    monkeypatch.setattr(compare, "run_job", run_job)
    seen: list[tuple[int, int]] = []
    rows = compare.measure_all(
        [case()],
        [jobs.Contender("a", ()), jobs.Contender("b", ())],
        modes=["step"],
        dtype="float32",
        threads=1,
        rounds=2,
        timing=QUICK,
        progress=lambda what, done, total: seen.append((done, total)),
        save=lambda rows: None,
        device="cuda",
        seconds_left=lambda: next(limits),
    )
    assert order == ["a", "b", "b", "a"]
    assert seen == [(i, 4) for i in range(4)]
    assert [one.round_medians for one in rows] == [[1.0, 1.0], [1.0, None]]
    assert rows[1].error == "b: out of memory"
    assert rows[1].summary()["peak_mib"] is None


# --- summaries --------------------------------------------------------------------------------


def test_a_summary_is_over_all_calls_of_all_rounds():
    summary = row("clebsch", [1.0, 2.0], None, [3.0, 4.0, 5.0]).summary()
    assert summary is not None
    assert summary["calls"] == 5
    assert (summary["min"], summary["median"], summary["max"]) == (1.0, 3.0, 5.0)
    assert (summary["lower_quartile"], summary["upper_quartile"]) == (2.0, 4.0)
    assert summary["us_per_atom"] == pytest.approx(3e6 / 9)
    assert (summary["peak_mib"], summary["peak_above_mib"]) == (110.0, 10.0)


def test_memory_is_that_of_the_device_where_there_is_one():
    measured = row("clebsch", [1.0], [1.0])
    for result, peak in zip(measured.done, (50.0, 70.0), strict=True):
        result["timing"] |= {"device_baseline_mib": 20.0, "device_peak_mib": peak}
    summary = measured.summary()
    assert summary is not None
    assert (summary["device_peak_mib"], summary["device_peak_above_mib"]) == (70.0, 50.0)
    assert (summary["peak_mib"], summary["peak_above_mib"]) == (110.0, 10.0)
    columns = {str(c.header): list(c.cells) for c in record.results_table([measured]).columns}
    assert columns["peak MiB"] == ["70"]
    assert compare.memory(row("clebsch", [1.0]).summary() or {}) == (110.0, 10.0)


def test_ratios_are_paired_round_by_round():
    ours, theirs = row("clebsch", [1.0], [2.0], [1.0]), row("peer", [4.0], [6.0], None)
    ratio = compare.ratios(ours, theirs)
    # 4/1 and 6/2; the ratio of the medians would be another one, 5/1
    assert ratio == {"time": 3.5, "time_min": 3.0, "time_max": 4.0, "memory": 1.0}
    assert compare.ratios(row("clebsch", None), row("peer", [1.0])) is None


def test_the_paper_suite_is_the_published_architecture():
    cases = compare.paper_cases()
    assert [(one.system.name, one.name) for one in cases] == [
        ("5 x 3BPA", "256x0e+1o+2e"),
        ("5 x 3BPA", "256x0e"),
        ("Si 216", "128x0e+1o"),
        ("Si 216", "128x0e"),
        ("Si 1000", "128x0e+1o"),
    ]
    assert {one.config.update.first_layer for one in cases} == {"residual"}


def test_the_gpu_suite_is_what_its_targets_speak_of():
    cases = compare.gpu_cases()
    assert [(one.system.name, one.name) for one in cases] == [
        ("3BPA", "256x0e+1o+2e"),
        ("5 x 3BPA", "256x0e+1o+2e"),
        ("Si 1000", "128x0e+1o"),
        ("Cu 3000", "128x0e+1o+2e"),
        ("Si 9984", "128x0e+1o"),
        ("Si 50048", "128x0e+1o"),
    ]
    copper = cases[3]
    assert copper.system.n_atoms == 3000
    assert abs(copper.system.n_edges(copper.config.cutoff) - 160_000) < 0.02 * 160_000


def test_the_machine_of_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch):
    properties = SimpleNamespace(name="H200", total_memory=140 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(record, "_driver", lambda: "580.1")
    named = record.gpu("cuda")
    record.gpu.cache_clear()
    assert (named["gpu"], named["gpu_memory_gib"], named["driver"]) == ("H200", 140.0, "580.1")
    assert {"compute_capability", "cuda", "triton"} < set(named)
    assert record.gpu("cpu") == {}


def test_the_file_holds_everything(tmp_path: Path):
    shared = case()
    rows = [
        row("clebsch", [1.0, 1.5], [2.0], of=shared),
        row("peer", [4.0], None, of=shared),
        row("late", of=shared),
    ]
    settings = {"dtype": "float32", "threads": 1, "rounds": 2}
    record.write_record(tmp_path / "bench.json", rows, settings)
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["format"] == "clebsch-bench"
    assert {"cpu", "cores", "memory_gib", "python"} <= set(written["machine"])
    assert written["versions"] == {"clebsch": {"clebsch": "1.0"}, "peer": {"peer": "1.0"}}
    assert written["threads"] == 1
    ours, theirs = written["results"]
    assert ours["rounds"][0]["seconds"] == [1.0, 1.5]
    assert theirs["rounds"][1] is None
    assert ours["config"]["channels"] == 2
    assert (ours["n_atoms"], ours["n_edges"], ours["n_parameters"]) == (9, 5, 7)
    assert [one["ratio"]["time"] for one in written["ratios"]] == [3.2]


def test_the_table_shows_failures_and_ratios():
    shared = case()
    table = record.results_table(
        [row("clebsch", [0.001], of=shared), row("peer", [0.004], of=shared), row("lost", None)]
    )
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["ms"] == ["1.00", "4.00", "failed"]
    assert columns["x ours"] == ["", "4.00", ""]
