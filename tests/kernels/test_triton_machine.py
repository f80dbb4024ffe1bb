"""Which device gets the GPU backend, what it says where it cannot work, and its sources."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from threading import Barrier
from types import ModuleType

import pytest
import torch

pytest.importorskip("triton", minversion="3.5", reason="the GPU backend needs Triton 3.5")

from clebsch.algebra import spherical_irreps
from clebsch.errors import BackendError
from clebsch.kernels import dispatch, gpu
from clebsch.kernels.gpu import convolution_code, machine
from clebsch.kernels.plan import contraction_plan, convolution_plan

SMALL = convolution_plan(spherical_irreps(1), spherical_irreps(1), spherical_irreps(1))


def test_gpus_get_this_backend_and_other_devices_another() -> None:
    assert dispatch.backends_of(torch.device("cuda")) == ["triton", "reference"]
    assert dispatch.backends_of(torch.device("cpu")) == ["llvm", "reference"]
    assert dispatch.backends_of(torch.device("mps")) == ["reference"]
    assert dispatch.best_backend(torch.device("cuda")).name == "triton"


def test_without_triton_the_reference_is_used_and_said() -> None:
    code = """
import sys, warnings
sys.modules["triton"] = None
import torch
from clebsch.kernels.dispatch import best_backend
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(best_backend(torch.device("cuda")).name)
print(*(str(warning.message) for warning in caught))
"""
    name, warning = python(code).splitlines()
    assert name == "reference"
    assert warning.startswith("the triton backend cannot be used on this machine: import of triton")
    assert f"pip install triton; torch is {torch.__version__}" in warning
    assert warning.endswith("the slower reference is used instead")


@pytest.mark.parametrize(
    ("hip", "capability", "version", "reason"),
    [
        (None, (6, 1), "3.7.1", "of compute capability 7.0 or higher, and this Some GPU has 6.1"),
        ("6.4.1", (9, 4), "3.7.1", "never been tried on AMD's GPUs, as this Some GPU with torch"),
        ("6.4.1", (9, 4), "3.7.1", "ROCm 6.4.1"),
        (None, (9, 0), "3.4.0", "needs Triton 3.5 or later, and this is 3.4.0"),
    ],
)
def test_a_gpu_that_the_backend_is_not_for_gets_the_reference_and_one_sentence_says_why(
    hip: str | None,
    capability: tuple[int, int],
    version: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _pretend(monkeypatch, hip, capability, version)
    with pytest.warns(UserWarning, match=f"{reason}.*; the slower reference is used") as caught:
        assert dispatch.best_backend(torch.device("cuda")).name == "reference"
    assert len(caught) == 1


@pytest.mark.parametrize("capability", [(7, 0), (9, 0), (12, 0)])
def test_a_gpu_that_the_backend_is_for_gets_it(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    _pretend(monkeypatch, None, capability, "3.10.0+git1")
    assert dispatch.best_backend(torch.device("cuda")).name == "triton"
    assert not recwarn


def test_amd_gpus_can_be_tried_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, "6.4.1", (9, 4), "3.7.1")
    assert dispatch.load_backend("triton").name == "triton"


def _pretend(
    monkeypatch: pytest.MonkeyPatch, hip: str | None, capability: tuple[int, int], version: str
) -> None:
    """A machine with such a GPU and such a Triton, whose backend is imported anew."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(machine.triton, "__version__", version)

    def imported(name: str) -> ModuleType:
        if name == dispatch.BACKENDS["triton"]:
            machine.check()
        return sys.modules[name]

    monkeypatch.setattr(dispatch.importlib, "import_module", imported)


def test_other_devices_get_the_reference_and_one_sentence_says_why() -> None:
    with pytest.warns(UserWarning, match="no fast backend for mps devices .* reference is used"):
        assert dispatch.best_backend(torch.device("mps")).name == "reference"


def python(code: str, **environment: str) -> str:
    """What code prints in a process of its own, where Triton compiles."""
    settings = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=settings
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_backend_is_refused() -> None:
    code = """
from clebsch.kernels.dispatch import load_backend
try:
    load_backend("triton")
except Exception as error:
    print(type(error).__name__, error)
"""
    assert python(code).startswith("BackendError the triton backend cannot be used on this machine")


def test_tensors_on_a_cpu_are_refused_where_triton_compiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "is_interpreted", lambda: False)
    plan = contraction_plan(spherical_irreps(0), spherical_irreps(0), 1)
    with pytest.raises(BackendError, match="was given tensors on cpu"):
        gpu.contract(plan, torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.zeros(1, dtype=int))


def test_sources_lie_in_the_cache_folder_and_are_written_again_when_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEBSCH_CACHE", str(tmp_path / "cache"))
    source = convolution_code.write_forward(SMALL)
    machine.kernel("convolve", source)
    (file,) = (tmp_path / "cache").iterdir()
    assert file.read_text() == source
    file.write_bytes(b"\xff damaged")
    machine.kernel("convolve", source)
    assert file.read_text() == source


def test_a_cache_folder_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLEBSCH_CACHE", str(tmp_path / "file" / "below"))
    kernel = machine.kernel("convolve", convolution_code.write_forward(SMALL))
    assert Path(kernel.fn.__code__.co_filename).is_file()


COMPILE = """
import re
import torch, triton
torch.cuda.is_available = lambda: True  # or the backend would be refused
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from clebsch.algebra import spherical_irreps
from clebsch.kernels.gpu import (
    bessel_code, convolution_code, harmonics_code, machine, polynomial_code, segments
)
from clebsch.kernels.plan import contraction_plan, convolution_plan
from clebsch.kernels.polynomial import polynomial

WHOLE = {"row_ptr", "senders", "receivers", "sender_ptr", "sender_order"}
WHOLE |= {"order", "bounds", "species"}
irreps = spherical_irreps(1)
plan = convolution_plan(irreps, irreps, irreps)
product = polynomial(contraction_plan(irreps, irreps, 2).key + "|1")
wanted = convolution_code.Wanted(radial=True, harmonics=True)
of = polynomial_code.kernels_of(product, 64, apart=False)[1]
sources = {
    "convolve": convolution_code.write_forward(plan),
    "convolve_gradients": convolution_code.write_gradients(plan, wanted),
    "convolve_node_gradient": convolution_code.write_node_gradient(plan),
    "tabulated": convolution_code.write_forward(plan, "table"),
    "tabulated_gradients": convolution_code.write_gradients(plan, wanted, "table"),
    "layer": convolution_code.write_forward(plan, "layer"),
    "layer_gradients": convolution_code.write_gradients(plan, wanted, "layer"),
    "layer_node_gradient": convolution_code.write_node_gradient(plan, "layer"),
    "convolve_second": convolution_code.write_second(plan, wanted, True),
    "convolve_second_node": convolution_code.write_second_node(plan),
    "polynomial": polynomial_code.write_forward(product, *of),
    "polynomial_gradients": polynomial_code.write_gradients(product, *of, True),
    "polynomial_second": polynomial_code.write_second(product, *of, True),
    "bessel": bessel_code.write_basis(5.0, 5, 0),
    "bessel_second": bessel_code.write_basis(5.0, 5, 2),
    "harmonics": harmonics_code.write_values(2),
    "harmonics_gradient": harmonics_code.write_gradient(2),
    "harmonics_second": harmonics_code.write_second(2),
}
kernels = {
    name: machine.kernel(re.search(r"def (\\w+)\\(", source)[1], source)
    for name, source in sources.items()
}
kernels["sum_rows"] = segments._sum_rows
for bits in (32, 64):
    for name, kernel in kernels.items():
        if bits == 64 and not name.endswith(("_second", "layer_gradients")):  # the longest
            continue
        signature = {}
        for argument in kernel.arg_names:
            if argument.isupper():
                signature[argument] = "constexpr"
            elif argument == "n_edges":
                signature[argument] = "i32"
            else:
                signature[argument] = "*i64" if argument in WHOLE else f"*fp{bits}"
        values = {"CHANNELS": 20, "WIDTH": 20, "BLOCK": 32, "FILLED": 32, "EDGES": 16}
        values |= {"ROWS": 16, "ORDERED": True, "N_BASIS": 20}
        rounds = "PRECISION" in signature and bits == 32
        for precision in ("ieee", "tf32") if rounds else ("ieee",):
            values["PRECISION"] = precision
            sizes = {a: values[a] for a in signature if signature[a] == "constexpr"}
            warps = {"num_warps": 8 if "EDGES" in sizes else 1}
            source = ASTSource(kernel, signature, sizes)
            made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=warps)
            assert ("tf32" in made.asm["ptx"]) == (precision == "tf32"), (name, precision)
            print(name, bits, precision)
"""


def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """For one of compute capability 9.0 (H100, H200), which need not be there."""
    done = python(COMPILE, TRITON_CACHE_DIR=str(tmp_path))
    assert len(done.splitlines()) == 27


class Compiled:
    """A kernel that says what it was compiled with."""

    def __init__(self, module: str, done: list[tuple[str, dict[str, object]]], wait: Barrier):
        self.module, self.done, self.wait = module, done, wait

    def warmup(self, *arguments: object, **options: object) -> None:
        self.wait.wait(timeout=20)  # for the others, which are under way at the same time
        self.done.append((self.module, options))
        if self.module == "fails":
            raise RuntimeError("PassManager::run failed")


def test_kernels_are_compiled_at_the_same_time_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_compiled", set())
    monkeypatch.setattr(machine, "is_interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 3)

    class OnGpu(torch.Tensor):
        is_cuda = True  # type: ignore[assignment]

    done: list[tuple[str, dict[str, object]]] = []
    barrier = Barrier(3)
    three = [Compiled(name, done, barrier) for name in ("a", "b", "fails")]
    tensors = (torch.ones(1).as_subclass(OnGpu), torch.ones(1))
    for _ in range(2):
        machine.compile_together(three, (4, 2), tensors, BLOCK=32)
    assert sorted(name for name, _ in done) == ["a", "b", "fails"]
    options = {"grid": (4, 2), "BLOCK": 32, "num_warps": 1, "num_stages": 3}
    assert all(given == options for _, given in done)
    machine.compile_together(three, (4, 2), tensors, BLOCK=64)
    machine.compile_together(three, (4, 2), (tensors[0], torch.ones(1).double()), BLOCK=32)
    assert len(done) == 9
    machine.compile_together(three[:1], (4, 2), tensors, BLOCK=128)  # as its launch does
    machine.compile_together(three, (4, 2), tensors[1:], BLOCK=128)  # on a CPU
    monkeypatch.setattr(machine, "is_interpreted", lambda: True)
    machine.compile_together(three, (4, 2), tensors, BLOCK=256)
    assert len(done) == 9
