"""The script for a machine with a GPU, tried on the CPU: it measures, and keeps what it has."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "measure_gpu.py"
CHOSEN = "tests/benchmarks/test_structures.py -k no_atoms -n 0 --device {device}"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measurements(script: ModuleType, out: Path, seconds: float):  # type: ignore[no-untyped-def]
    options = argparse.Namespace(out=out, device="cpu", tests=CHOSEN, tiny=True)
    return script.Measurements(options, time.monotonic() + seconds, None)


def test_a_failure_and_a_lack_of_time_do_not_end_the_run(script: ModuleType, tmp_path: Path):
    def failing() -> None:
        raise ValueError("no such luck")

    run = measurements(script, tmp_path, 100.0)
    run.stage("fails", failing)
    run.stage("works", lambda: 5)
    run.end = time.monotonic() + script.LEAST / 2
    run.stage("late", failing)
    written = json.loads((tmp_path / "measurements.json").read_text())
    assert written["fails"]["error"] == "ValueError: no such luck"
    assert written["works"]["result"] == 5
    assert "s were left" in written["late"]["skipped"]


def test_a_process_that_hangs_takes_nothing_from_the_others(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = measurements(script, tmp_path, 100.0)
    monkeypatch.setattr(script, "LONGEST", 0.1)
    run.stage("hangs", lambda: run.apart("rates"))
    run.stage("works", lambda: 5)
    written = json.loads((tmp_path / "measurements.json").read_text())
    assert written["hangs"]["error"].startswith("TimeoutExpired")
    assert written["works"]["result"] == 5


@pytest.mark.slow
def test_a_process_that_fails_says_why(script: ModuleType, tmp_path: Path):
    run = measurements(script, tmp_path, 10_000.0)
    run.device = "nowhere"
    with pytest.raises(RuntimeError, match="nowhere"):
        run.apart("many_sizes")


def test_without_time_everything_is_skipped_and_said(script: ModuleType, tmp_path: Path):
    measurements(script, tmp_path, 0.0).run()
    written = json.loads((tmp_path / "measurements.json").read_text())
    assert list(written) == [
        "machine",
        "kernels compiled, tests",
        "one molecule replayed",
        "ethanol, tiny",
        "Si 8, tiny",
        "rates of kernels",
        "memory over many sizes",
    ]
    assert all("skipped" in entry for entry in written.values())


def test_tests_that_take_too_long_are_ended(script: ModuleType, tmp_path: Path):
    assert measurements(script, tmp_path, 100.0).tests(0.2)["status"] is None


def test_a_peer_runs_on_this_python_with_its_own_packages(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "carried.py").write_text("name = 'carried'\n")
    archive = tmp_path / "packages.tar.xz"
    with tarfile.open(archive, "w:xz") as packed:
        for folder in ("ours", "peers"):
            packed.add(tmp_path / "site", folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    environments = script.unpack(archive, tmp_path / "there")
    code = "import carried, sys; print(carried.__file__, sys.version.split()[0])"
    for peer in ("mace-torch", "cuequivariance"):
        python = environments / peer / "bin" / "python"
        printed = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True)
        place, version = printed.stdout.split()
        assert Path(place).parent == tmp_path / "there" / "peers"
        assert version == sys.version.split()[0]
        assert (environments / peer / ".installed").exists()
    assert str(tmp_path / "there" / "ours") in sys.path
    assert list((tmp_path / "there" / "ours").glob("clebsch-*.dist-info/METADATA"))


def test_what_was_compiled_elsewhere_is_found_where_it_is_unpacked(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    entry = tmp_path / "there" / "ABC"
    entry.mkdir(parents=True)
    (entry / "convolve.cubin").write_bytes(b"code")
    listed = {name: str(entry / name) for name in ("convolve.cubin", "convolve.ptx")}
    (entry / "__grp__convolve.json").write_text(json.dumps({"child_paths": listed}))
    archive = tmp_path / "kernels.tar.xz"
    with tarfile.open(archive, "w:xz") as packed:
        packed.add(entry, "ABC")
    here = tmp_path / "here"
    script.unpack_kernels(archive, here)
    assert os.environ["TRITON_CACHE_DIR"] == str(here)
    known = json.loads((here / "ABC" / "__grp__convolve.json").read_text())["child_paths"]
    assert Path(known["convolve.cubin"]).read_bytes() == b"code"
    assert set(known) == set(listed)


def test_replays_and_memory_are_measured(script: ModuleType, tmp_path: Path):
    """On a CPU there is nothing to capture with, and torch counts no memory."""
    run = measurements(script, tmp_path, 10_000.0)
    cases = run.cases()
    replayed = run.replayed(cases)
    assert {"modules", "captured"} <= set(replayed)
    assert replayed["largest_force_difference"] < 1e-4
    sizes = run.many_sizes(cases)
    assert sizes["calls"] == 30
    assert sizes["captures"] == 0


@pytest.mark.slow
def test_everything_is_measured_and_written(tmp_path: Path):
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    ended = subprocess.run([*command, "--tests", CHOSEN], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    written = json.loads((tmp_path / "measurements.json").read_text())
    assert not [name for name, entry in written.items() if "result" not in entry]
    prepared = written["kernels compiled, tests"]["result"]
    assert prepared["tests"]["status"] == 0
    assert prepared["ethanol, energy_forces"] == "backend llvm"
    measured = written["ethanol, tiny"]["result"]["clebsch, energy_forces"]
    assert measured["atoms_per_gib"] > 0
    assert all(one["of_gemm"] > 0 for one in written["rates of kernels"]["result"])
    assert len(json.loads((tmp_path / "bench.json").read_text())["results"]) == 2
    assert "ethanol" in ended.stdout
