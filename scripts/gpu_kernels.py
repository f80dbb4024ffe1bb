"""Compile kernels for a GPU that is not here: what they take there, and a cache to carry there.

    python scripts/gpu_kernels.py [--cases 0,1] [--tests] [--archive kernels.tar.xz]

Needs no GPU, but the Python, torch and Triton of the machine that has one (the CUDA build of torch
runs here, too): only then does that machine find what was compiled here. Where a machine is lent
for minutes, minutes of compiling count.

Prints seconds, registers, bytes of stack, which spilled registers take, and of shared memory of
every kernel of the models of ``clebsch bench --suite gpu``, or of some by their numbers, and with
``--tests`` of those of the contract battery. The archive is for ``measure_gpu.py --kernels``.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: What is compiled for: an H100 or H200.
CAPABILITY = 90
#: Larger systems have the kernels of smaller ones; training steps are for molecules.
MOST_ATOMS, MOST_OF_STEP = 10_000, 200


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", help="numbers of models, with commas between them; all if left")
    parser.add_argument("--tests", action="store_true", help="those of the contract battery too")
    parser.add_argument("--variants", help="models, likewise, whose variants gpu_look.py looks at")
    parser.add_argument("--archive", type=Path, help="where to pack what was compiled")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        os.environ["CLEBSCH_CACHE"] = str(Path(folder, "sources"))
        os.environ.pop("TRITON_INTERPRET", None)
        sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
        compiled = Compiled()
        cases = None if options.cases is None else [int(one) for one in options.cases.split(",")]
        compile_cases(cases)
        for one in filter(None, (options.variants or "").split(",")):
            compile_variants(int(one))
        if options.tests:
            compile_tests()
        compiled.show()
        if options.archive is not None:
            pack(Path(folder), options.archive)


class Compiled:
    """Takes the place of launches: kernels are compiled instead, each once, and listed."""

    def __init__(self) -> None:
        import torch
        from triton.backends.compiler import GPUTarget
        from triton.runtime import driver

        class Driver:
            """What Triton asks a GPU's driver when it compiles."""

            utils = type(
                "Utils",
                (),
                {"get_device_properties": lambda self, device: {"max_shared_mem": 232_448}},
            )()

            def get_current_device(self) -> int:
                return 0

            def get_current_stream(self, device: int) -> int:
                return 0

            def get_current_target(self) -> Any:
                return GPUTarget("cuda", CAPABILITY, 32)

        driver.set_active(Driver())
        there, torch.cuda.is_available = torch.cuda.is_available, lambda: True
        from clebsch.kernels.gpu import machine

        torch.cuda.is_available = there
        machine.launch = self.launch
        self.seconds = 0.0
        self._done: set[str] = set()

    def launch(
        self,
        function: Any,
        grid: tuple[int, ...],
        arguments: tuple[Any, ...],
        settings: Any = None,
        **constants: Any,
    ) -> None:
        """Compile with all settings that a launch would choose from; see ``machine.launch``.

        What is compiled for the first time has a line.
        """
        from clebsch.kernels.gpu.tuning import FEWEST_PROGRAMS, Setting

        settings = settings or (Setting(),)
        chosen = settings if math.prod(grid) >= FEWEST_PROGRAMS else settings[:1]
        for setting in chosen:
            begun = time.perf_counter()
            options = {"num_warps": setting.n_warps, "num_stages": setting.n_stages}
            made = function.warmup(*arguments, grid=grid, **constants, **options)
            seconds = time.perf_counter() - begun
            if made.hash in self._done:
                continue
            self._done.add(made.hash)
            self.seconds += seconds
            registers, stack, shared = resources(made.asm["cubin"])
            sizes = {"warps": setting.n_warps, "stages": setting.n_stages, **constants}
            told = " ".join(f"{key.lower()} {value}" for key, value in sizes.items())
            numbers = f"{seconds:6.1f} s {registers:4d} registers {stack:4d} B of stack"
            print(f"{function.__name__:24s} {numbers} {shared:6d} B shared  {told}", flush=True)

    def show(self) -> None:
        """The sums."""
        print(f"{len(self._done)} kernels, {self.seconds:.0f} s")


def resources(code: bytes) -> tuple[int, int, int]:
    """Registers, bytes of stack (where spilled ones go) and of shared memory of a kernel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        told = subprocess.run(
            [str(tool), "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", told)
    assert found is not None, told
    registers, stack, shared = map(int, found.groups())
    return registers, stack, shared


def compile_cases(cases: list[int] | None) -> None:
    """Those of every model: when it is built, evaluated, tabulated, and trained by modules and
    as recorded; results mean nothing.
    """
    import torch

    from clebsch.agreement import answers, example_structure
    from clebsch.benchmarks.compare import gpu_cases
    from clebsch.benchmarks.speed import energy_forces, frame_of, training_step
    from clebsch.factory import assemble
    from clebsch.rounding import allow_tf32

    do_not_check()
    found = gpu_cases()
    for number in range(len(found)) if cases is None else cases:
        case = found[number]
        if cases is None and case.system.n_atoms > MOST_ATOMS:
            continue
        potential = assemble(case.config, list(case.species), dtype=torch.float32)
        potential.use_backend("triton")
        answers(potential, potential.graph(example_structure(potential)))
        job = case.job("energy_forces", "float32", 1, {})
        frames = [frame_of(structure) for structure in job["structures"]]
        for rounds in (False, True):  # large systems have other kernels in TF32
            with allow_tf32(rounds):
                energy_forces(potential, frames)()
        tabulated = potential.tabulated()
        energy_forces(tabulated, frames)()
        if case.system.n_atoms <= MOST_OF_STEP:
            training_step(potential, frames)()
            prediction = potential(potential.graph(frames), differentiable=True)
            values = [prediction.energy, prediction.forces]
            by = [p for p in potential.parameters() if p.requires_grad]
            ones = [torch.ones_like(value) for value in values]
            torch.autograd.grad(values, by, ones, materialize_grads=True)
        print(f"{case.system.name}, {case.name}", flush=True)


def compile_variants(number: int) -> None:
    """Those among which ``gpu_look.py variants`` looks for the fastest."""
    from gpu_look import variants

    def told(call: Callable[[], object]) -> str:
        call()
        return "compiled"

    variants(number, told, "cpu")


def compile_tests() -> None:
    """Those of the contract battery, most of which fails without results."""
    import pytest

    from clebsch.kernels import dispatch

    dispatch.FASTEST["cpu"] = "triton"
    do_not_check()
    tests = str(ROOT / "tests" / "contract")
    pytest.main([tests, "-n", "0", "-p", "no:cacheprovider", "-q", "--tb=no", "--no-summary"])


def do_not_check() -> None:
    """Install backends that compute nothing."""
    import clebsch.potential

    clebsch.potential.check_backend = lambda potential, kernels: potential.compute_with(kernels)


def pack(folder: Path, archive: Path) -> None:
    """Pack machine code and what Triton knows of it, without the stages before."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:xz") as packed:
        for file in sorted(folder.glob("*/*")):
            if file.suffix in (".cubin", ".json"):
                packed.add(file, file.relative_to(folder))
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
