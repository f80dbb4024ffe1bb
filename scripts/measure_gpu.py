"""Measure on a GPU machine all that has a target there, in one call of under ten minutes.

Nothing in here has run on a GPU so far: it was tried with ``--device cpu --tiny`` alone, and with
the Python, torch and Triton that a lent machine has (3.12, 2.11, 3.6; on the CPU).

Beforehand, where pip works, fetch what the machine lacks as one archive, 32 MiB on 2026-11-29, and
compile kernels in an environment like the machine's, which takes minutes off the call:

    echo /.gpu/ >> .git/info/exclude
    python3 scripts/measure_gpu.py --fetch .gpu/packages.tar.xz
    python3.12 -m venv /tmp/like && /tmp/like/bin/pip install torch==2.11.0 numpy scipy h5py \
        matplotlib safetensors typer rich pyyaml filelock llvmlite pytest pytest-xdist hypothesis \
        ase vesin pydantic
    /tmp/like/bin/python scripts/gpu_kernels.py --tests --archive .gpu/kernels.tar.xz

Then, as the command of the tool ``device``, with carry [".gpu"] and timeout_s 600:

    PYTHONUNBUFFERED=1 python3 scripts/measure_gpu.py --packages .gpu/packages.tar.xz \
        --kernels .gpu/kernels.tar.xz --out $OUT

The first time ever, ``scripts/gpu_look.sh`` comes before it: half as long, and it tells what does
not work, where time goes, and which of some settings are fastest.

``$OUT/measurements.json`` is written anew after every stage, ``$OUT/bench.json`` (the form of
``clebsch bench --out``) after every process; ``$OUT/tests.log`` is pytest's. Stages, most important
first: the machine, its matrix product and copies; kernels compiled, and the contract battery beside
that; one molecule run by modules and as a CUDA graph; the comparison with mace-torch without and
with cuEquivariance, a case at a time; rates of kernels; memory over up to 10 000 differently sized
evaluations. What there is no time for is skipped and said, and what runs on the GPU, but for the
first stage, has processes of its own: one that hangs, or whose GPU refuses to go on, takes nothing
from the others. Training to published errors is not among the stages: it takes ten minutes of its
own (``clebsch reproduce``).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import traceback
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
#: What Clebsch needs and the machine lacks.
OURS = ("ase", "vesin", "pydantic", "pydantic-core", "annotated-types", "typing-inspection")
#: The same of mace-torch and cuEquivariance; e3nn is there in a version too new.
PEERS = (
    *("mace-torch==0.3.16", "e3nn==0.4.4", "ase", "matscipy", "lmdb", "orjson", "prettytable"),
    *("wcwidth", "configargparse", "gitpython", "gitdb", "smmap", "python-hostlist", "torch-ema"),
    *("cuequivariance==0.13.0", "cuequivariance-torch==0.13.0", "platformdirs"),
    *("cuequivariance-ops-torch-cu13==0.13.0", "cuequivariance-ops-cu13==0.13.0"),
)
#: Those that come as source alone, of Python alone.
SOURCES = ("python-hostlist",)
#: A working tree of more does not travel; the repository takes some of it.
ARCHIVE_MIB = 60
PLATFORMS = ("2_34", "2_31", "2_28", "2_27", "2_24", "2_17")
#: A stage is not begun with fewer seconds left.
LEAST = 20.0
#: Seconds that a process may take once kernels are compiled.
LONGEST = 90.0
#: Processes that compile at the same time; the tests take others.
COMPILERS = 4
#: Differently sized evaluations, and the seconds that they may take.
SIZES, MOST = 10_000, 30.0
TESTS = "tests/contract -n 8 --device {device}"
#: Stages that have a process of their own.
APART = ("replayed", "rates", "many_sizes")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fetch", type=Path, help="only download packages, into this archive")
    parser.add_argument("--packages", type=Path, help="the archive that --fetch made")
    parser.add_argument("--kernels", type=Path, help="the archive that gpu_kernels.py made")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the results")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=560.0, help="for everything together")
    parser.add_argument("--tests", default=TESTS, help="arguments of pytest")
    parser.add_argument("--tiny", action="store_true", help="try this script: one tiny model")
    parser.add_argument("--only", choices=APART, help="print one stage's result: for this script")
    options = parser.parse_args()
    if options.fetch is not None:
        fetch(options.fetch)
        return
    end = time.monotonic() + options.seconds
    if options.only is not None:
        run = Measurements(options, end, None)
        print(json.dumps(attempted(lambda: getattr(run, options.only)(run.cases()))))
        return
    with tempfile.TemporaryDirectory() as folder:
        environments = unpack(options.packages, Path(folder))
        if options.kernels is not None:
            unpack_kernels(options.kernels, Path(folder, "kernels"))
        Measurements(options, end, environments).run()


def fetch(archive: Path) -> None:
    """Download packages for Python 3.12 on Linux and pack them, unzipped, as one archive.

    Raises:
        SystemExit: the archive is too large to travel.
    """
    pip = [sys.executable, "-m", "pip", "-q"]
    foreign = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    for platform in PLATFORMS:
        foreign += ["--platform", f"manylinux_{platform}_x86_64"]
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, tarfile.open(archive, "w:xz", preset=9) as packed:
        for folder, packages in (("ours", OURS), ("peers", PEERS)):
            wheels, site = Path(name, folder, "wheels"), Path(name, folder, "site")
            binary = [one for one in packages if one not in SOURCES]
            subprocess.run(
                [*pip, "download", "--no-deps", *foreign, "-d", str(wheels), *binary], check=True
            )
            source = [one for one in packages if one in SOURCES]
            if source:
                subprocess.run([*pip, "wheel", "--no-deps", "-w", str(wheels), *source], check=True)
            for wheel in sorted(wheels.glob("*.whl")):
                zipfile.ZipFile(wheel).extractall(site)
            packed.add(site, folder)
    size = archive.stat().st_size / 2**20
    print(f"{archive}: {size:.1f} MiB")
    if size > ARCHIVE_MIB:
        raise SystemExit(f"more than {ARCHIVE_MIB} MiB do not travel: leave out cuequivariance")


def unpack(archive: Path | None, folder: Path) -> Path | None:
    """Let this process and its children import our packages, and make environments of peers.

    A peer's environment is what ``make peers`` makes, as far as the benchmark can see: a file that
    says it is there, and a Python, which is this one with other packages.

    Returns:
        The folder of the peers' environments; None without an archive.
    """
    ours = [str(ROOT / "src")]
    if archive is not None:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        ours.append(str(folder / "ours"))
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        about = folder / "ours" / f"clebsch-{project['version']}.dist-info"
        about.mkdir(parents=True, exist_ok=True)
        text = f"Metadata-Version: 2.1\nName: clebsch\nVersion: {project['version']}\n"
        (about / "METADATA").write_text(text, encoding="utf-8")
        for peer in ("mace-torch", "cuequivariance"):
            python = folder / "environments" / peer / "bin" / "python"
            python.parent.mkdir(parents=True)
            variables = [f"PYTHONPATH={folder / 'peers'}", f"LD_LIBRARY_PATH={libraries()}"]
            command = shlex.join(["env", *variables, sys.executable])
            python.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
            python.chmod(0o755)
            (python.parents[1] / ".installed").touch()
    sys.path[:0] = ours
    os.environ["PYTHONPATH"] = os.pathsep.join(ours)
    return None if archive is None else folder / "environments"


def unpack_kernels(archive: Path, folder: Path) -> None:
    """Let Triton find what was compiled elsewhere: its lists of files have whole paths."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    for file in folder.glob("*/__grp__*.json"):
        listed = json.loads(file.read_text(encoding="utf-8"))["child_paths"]
        here = {name: str(file.parent / name) for name in listed}
        file.write_text(json.dumps({"child_paths": here}), encoding="utf-8")
    os.environ["TRITON_CACHE_DIR"] = str(folder)


def libraries() -> str:
    """Where CUDA's libraries lie that torch brings, which cuEquivariance's kernels load by name."""
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    there = sorted(Path(torch.origin).parents[1].glob("nvidia/*/lib"))
    return os.pathsep.join([*map(str, there), os.environ.get("LD_LIBRARY_PATH", "")])


def attempted(measure: Callable[[], Any]) -> dict[str, Any]:
    """What it gives, or how it failed: whatever it is, the other stages are worth having."""
    try:
        return {"result": measure()}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


class Measurements:
    """The stages, what they gave, and the time that is left for them."""

    def __init__(self, options: argparse.Namespace, end: float, environments: Path | None) -> None:
        self.options, self.end, self.environments = options, end, environments
        self.device: str = options.device
        self.found: dict[str, Any] = {}
        self.rows: list[Any] = []
        self.settings: dict[str, Any] = {}
        options.out.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds; a process that is begun may take them all."""
        return max(self.end - time.monotonic(), 1.0)

    def run(self) -> None:
        """All stages; one that fails or is skipped does not end the run."""
        cases = self.cases()
        self.stage("machine", self.machine)
        self.stage("kernels compiled, tests", lambda: self.prepare(cases))
        self.stage("one molecule replayed", lambda: self.apart("replayed"))
        for case in cases:
            self.stage(f"{case.system.name}, {case.name}", lambda case=case: self.compare(case))
        self.stage("rates of kernels", lambda: self.apart("rates"))
        self.stage("memory over many sizes", lambda: self.apart("many_sizes"))
        self.show()

    def stage(self, name: str, measure: Callable[[], Any]) -> None:
        """Run one stage if there is time, and write what is known."""
        begun = time.monotonic()
        if self.left() < LEAST:
            entry = {"skipped": f"{self.left():.0f} s were left"}
        else:
            entry = attempted(measure)
            entry["seconds"] = round(time.monotonic() - begun, 1)
        self.found[name] = entry
        text = json.dumps(self.found, indent=1) + "\n"
        (self.options.out / "measurements.json").write_text(text, encoding="utf-8")
        said = {key: value for key, value in entry.items() if key != "result"}
        print(f"{name}: {said}, {self.left():.0f} s left", flush=True)

    def limit(self) -> float:
        """Seconds for a process."""
        return min(self.left(), LONGEST)

    def apart(self, what: str) -> Any:
        """A stage in a process of its own.

        Raises:
            RuntimeError: it failed there.
            subprocess.SubprocessError: it took too long, or ended without a word.
        """
        limit = self.limit()
        command = [sys.executable, str(Path(__file__).resolve()), "--only", what]
        command += ["--device", self.device, "--seconds", str(limit)]
        command += ["--tiny"] if self.options.tiny else []
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=limit, check=True
        )
        found = json.loads(ended.stdout.splitlines()[-1])
        if "error" in found:
            raise RuntimeError(found["error"])
        return found["result"]

    def cases(self) -> list[Any]:
        """Models and systems, most important first."""
        from clebsch.benchmarks.compare import gpu_cases
        from clebsch.benchmarks.jobs import Case
        from clebsch.benchmarks.structures import system_of_size
        from clebsch.models.config import MessagePassingConfig

        if not self.options.tiny:
            return gpu_cases()
        config = MessagePassingConfig(channels=2, l_max=1, message_l=1, cutoff=3.0)
        systems = [system_of_size(size) for size in (9, 8)]
        return [Case(system, config, "tiny", system.species) for system in systems]

    def machine(self) -> dict[str, Any]:
        """Versions, and the two rates that bound everything."""
        import torch

        from clebsch.benchmarks.rates import machine_rates
        from clebsch.benchmarks.record import gpu, machine

        self.settings = {
            "command": sys.argv,
            "dtype": "float32",
            "threads": 1,
            "rounds": 1,
            "device": self.device,
            **machine_rates(torch.float32, 1, self.device),
        }
        return {**machine(), **gpu(self.device), "torch": torch.__version__, **self.settings}

    def prepare(self, cases: Sequence[Any]) -> dict[str, Any]:
        """Every job of ours once, several at a time, so that kernels are compiled; the tests.

        Launches are not tuned meanwhile: the GPU is busy with the others.
        """
        from clebsch.benchmarks.jobs import OURS, MeasurementError, run_job

        deadline = time.monotonic() + 0.45 * self.left()
        quick = {"min_calls": 1, "min_seconds": 0.0, "max_seconds": 0.0}

        def limit() -> float:
            return max(deadline - time.monotonic(), 1.0)

        def job(case: Any, mode: Any) -> str:
            try:
                done = run_job(OURS, case.job(mode, "float32", 1, quick, self.device), limit())
            except MeasurementError as error:
                return str(error)
            return f"backend {done['backend']}"

        untuned = patch.dict(os.environ, CLEBSCH_TUNE="0")
        with untuned, ThreadPoolExecutor(COMPILERS + 1) as pool:
            tests = pool.submit(self.tests, limit())
            jobs = {
                f"{case.system.name}, {mode}": pool.submit(job, case, mode)
                for case in cases
                for mode in modes(case)
            }
            return {"tests": tests.result()} | {name: one.result() for name, one in jobs.items()}

    def tests(self, limit: float) -> dict[str, Any]:
        """Exit status of pytest and its last line; None if it was not done in time."""
        arguments = shlex.split(self.options.tests.format(device=self.device))
        log = self.options.out.resolve() / "tests.log"
        with log.open("w") as file:
            try:
                status = subprocess.run(
                    [sys.executable, "-m", "pytest", *arguments],
                    cwd=ROOT,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=limit,
                ).returncode
            except subprocess.TimeoutExpired:
                status = None
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return {"status": status, "last_line": lines[-1] if lines else ""}

    def replayed(self, cases: Sequence[Any]) -> dict[str, Any]:
        """Energies and forces of the first case by two ways: times, and the forces' difference."""
        import torch

        import clebsch.repeats
        import clebsch.replay
        from clebsch.benchmarks.speed import energy_forces
        from clebsch.benchmarks.timing import accelerator, measure

        case, found, forces = cases[0], {}, []
        potential, frames = self.potential(case), list(case.system.frames)
        timing = {"min_calls": 20, "min_seconds": 0.5, "max_seconds": 5.0}
        before = clebsch.repeats.RECORD_AFTER, clebsch.replay.CAPTURE_AT
        clebsch.replay.CAPTURE_AT = 1
        try:
            for way, record_after in (("modules", 10**9), ("captured", 0)):
                clebsch.repeats.RECORD_AFTER = record_after
                potential.use_backend()
                call = energy_forces(potential, frames)
                timed = measure(call, **timing, device=accelerator(torch, self.device))
                held = potential._repeats.captures
                found[way] = {**timed, "captures": 0 if held is None else len(held.captured)}
                forces.append(potential(potential.graph(frames)).forces)
        finally:
            clebsch.repeats.RECORD_AFTER, clebsch.replay.CAPTURE_AT = before
        off = max(float((here - forces[0]).abs().max()) for here in forces)
        return {**found, "backend": potential.backend, "largest_force_difference": off}

    def many_sizes(self, cases: Sequence[Any]) -> dict[str, Any]:
        """MiB that torch holds and has reserved as sizes go by, and how many captures there are."""
        import numpy as np
        import torch

        potential = self.potential(cases[0])
        rng, frame = np.random.default_rng(0), cases[0].system.frames[0]
        end = time.monotonic() + min(MOST, 0.5 * self.left())
        n_calls = 30 if self.options.tiny else SIZES
        calls, memory = 0, []
        while calls < n_calls and time.monotonic() < end:
            some = frame[rng.permutation(len(frame))[: rng.integers(1, len(frame) + 1)]]
            some.positions *= rng.uniform(0.8, 1.2)
            potential(potential.graph(some))
            calls += 1
            if calls % (n_calls // 10) == 0 and self.device != "cpu":
                held = (torch.cuda.memory_allocated(), torch.cuda.memory_reserved())
                memory.append([one / 2**20 for one in held])
        captures = potential._repeats.captures
        n_captures = 0 if captures is None else len(captures.captured)
        return {"calls": calls, "allocated, reserved": memory, "captures": n_captures}

    def potential(self, case: Any) -> Any:
        """That of a case, with random weights."""
        import torch

        import clebsch

        built = clebsch.build(case.config, case.species, dtype=torch.float32)
        return built.to(self.device).use_backend()

    def compare(self, case: Any) -> dict[str, Any]:
        """One case by all contenders, in turns: their summaries, and atoms per GiB."""
        from clebsch.benchmarks.compare import measure_all
        from clebsch.benchmarks.jobs import OURS
        from clebsch.benchmarks.opponents import PEERS
        from clebsch.benchmarks.record import write_record

        contenders = [OURS]
        if self.environments is not None:
            for name in ("cuequivariance", "mace-torch"):
                if self.device != "cpu" or name != "cuequivariance":
                    contenders += PEERS[name].contenders(self.environments, self.device)
        before = list(self.rows)

        def save(rows: Sequence[Any]) -> None:
            self.rows = [*before, *rows]
            write_record(self.options.out / "bench.json", self.rows, self.settings)

        rows = measure_all(
            [case],
            contenders,
            modes=modes(case),
            dtype="float32",
            threads=1,
            rounds=1,
            timing={"min_seconds": 0.5, "max_seconds": 5.0},
            progress=lambda what, done, total: None,
            save=save,
            device=self.device,
            seconds_left=self.limit,
        )
        return {f"{row.contender}, {row.mode}": self.told(row) for row in rows}

    def told(self, row: Any) -> dict[str, Any]:
        """Summary and atoms per GiB of a row, or why there is none."""
        from clebsch.benchmarks.compare import memory

        summary = row.summary()
        if summary is None:
            return {"error": row.error}
        _, above = memory(summary)
        per_gib = row.case.system.n_atoms * 1024 / above if above else None
        return {**summary, "atoms_per_gib": per_gib, "error": row.error}

    def rates(self, cases: Sequence[Any]) -> list[dict[str, Any]]:
        """Kernels of the first and of the last case's model, beside what bounds them."""
        import torch

        from clebsch.benchmarks.rates import kernel_rates

        self.machine()
        found = []
        for case, size in ((cases[0], 1000), (cases[-1], 10_000)):
            for one in kernel_rates(
                case.config, 8 if self.options.tiny else size, torch.float32, 1, self.device
            ):
                gemm = one.rate / self.settings["gemm_multiply_adds_per_second"]
                copy = one.n_bytes / one.seconds / self.settings["copy_bytes_per_second"]
                entry = {"model": case.name, "kernel": one.kernel, "shape": one.shape}
                found.append({**entry, "ms": 1e3 * one.seconds, "of_gemm": gemm, "of_copy": copy})
        return found

    def show(self) -> None:
        """The table of ``clebsch bench``."""
        from rich.console import Console

        from clebsch.benchmarks.record import results_table

        Console(width=180).print(results_table(self.rows))


def modes(case: Any) -> list[Any]:
    """Training steps are compared on batches of molecules."""
    batch = len(case.system.frames) > 1
    return ["step", "energy_forces"] if batch else ["energy_forces"]


if __name__ == "__main__":
    main()
