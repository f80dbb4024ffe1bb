"""Compiled kernels: kept, shared between processes, divided among threads."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clebsch.algebra import coupling, spherical_irreps, symmetric
from clebsch.kernels import cpu, harmonic_polynomials, plan, polynomial
from clebsch.kernels.cpu import machine, threads
from clebsch.kernels.cpu.activation_code import write
from clebsch.kernels.plan import convolution_plan
from clebsch.neighbors import neighbor_graph

SILU_OF_1 = 1.6765324703310907 / (1 + 2.718281828459045**-1)
#: Large enough that the work is divided among threads.
MANY = 2 * threads.SMALLEST_SHARE // 30 + 1000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder that does not exist yet."""
    monkeypatch.setenv("CLEBSCH_CACHE", str(tmp_path / "of" / "kernels"))
    return tmp_path / "of" / "kernels"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with every compilation."""
    assemblies: list[str] = []
    compile_ = machine._compile

    def noted(assembly: str) -> bytes:
        assemblies.append(assembly)
        return compile_(assembly)

    monkeypatch.setattr(machine, "_compile", noted)
    return assemblies


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def silu_of_1() -> float:
    """Out of a kernel that is loaded or compiled now."""
    found = machine.kernel("silu", 3, 2, "64", lambda: write("silu", 64))
    x, out = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    found.run(x.data_ptr(), out.data_ptr(), None, 0, 1)
    return float(out)


def python(code: str, cache: Path) -> subprocess.Popen[str]:
    """Code, or a script, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, *([] if code.endswith(".py") else ["-c"]), code],
        env={**os.environ, "CLEBSCH_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its children can be ended with it
    )


def output(process: subprocess.Popen[str]) -> str:
    """What a process printed; it ends with status 0, and soon."""
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail("it hangs")
    assert process.returncode == 0, err
    return out


def assert_whole(folder: Path) -> None:
    """Files are kernels with their checksums, and nothing is left over."""
    files = list(folder.iterdir())
    assert files
    for file in files:
        content = file.read_bytes()
        assert file.suffix == ".o"
        assert hashlib.sha256(content[32:]).digest() == content[:32]


# --- the cache ---


def test_a_kernel_is_compiled_once(cache: Path, compiled: list[str]) -> None:
    assert [silu_of_1(), silu_of_1()] == pytest.approx([SILU_OF_1] * 2, rel=1e-14)
    assert len(compiled) == 1
    assert_whole(cache)


def test_a_second_process_compiles_nothing(cache: Path) -> None:
    code = """
import torch
from clebsch.kernels import cpu
from clebsch.kernels.cpu import machine
compile_ = machine._compile
def told(assembly):
    print("compiled")
    return compile_(assembly)
machine._compile = told
print(float(cpu.silu(torch.ones(1, dtype=torch.float64))))
"""
    first, second = output(python(code, cache)).split(), output(python(code, cache)).split()
    assert first == ["compiled", *second]
    assert float(second[0]) == pytest.approx(SILU_OF_1, rel=1e-14)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "garbage"])
def test_a_damaged_file_is_compiled_again(cache: Path, compiled: list[str], damage: str) -> None:
    silu_of_1()
    (file,) = cache.iterdir()
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    damaged = {"cut": content[:-9], "flipped": flipped, "empty": b"", "garbage": b"x" * 5000}
    file.write_bytes(damaged[damage])
    assert silu_of_1() == pytest.approx(SILU_OF_1, rel=1e-14)
    assert len(compiled) == 2
    assert_whole(cache)
    silu_of_1()
    assert len(compiled) == 2


def test_a_cache_that_is_a_file_only_costs_the_compilation(
    cache: Path, compiled: list[str]
) -> None:
    cache.parent.mkdir()
    cache.write_text("not a folder")
    assert [silu_of_1(), silu_of_1()] == pytest.approx([SILU_OF_1] * 2, rel=1e-14)
    assert len(compiled) == 2
    assert cache.read_text() == "not a folder"


def test_a_cache_that_cannot_be_written_only_costs_the_compilation(
    cache: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "read-only")  # permissions do not stop root

    monkeypatch.setattr(machine.tempfile, "mkstemp", refused)
    assert silu_of_1() == pytest.approx(SILU_OF_1, rel=1e-14)
    assert len(compiled) == 1
    assert not list(cache.iterdir())


def test_a_full_disk_leaves_no_half_of_a_file(
    cache: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(machine.os, "replace", full)
    assert silu_of_1() == pytest.approx(SILU_OF_1, rel=1e-14)
    assert not list(cache.iterdir())


def test_a_user_without_a_home_folder_has_kernels(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("no home folder")

    for name in ("CLEBSCH_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine.Path, "home", homeless)
    assert silu_of_1() == pytest.approx(SILU_OF_1, rel=1e-14)


def test_processes_that_start_together_all_have_the_right_numbers(cache: Path) -> None:
    code = """
import torch
from clebsch.kernels import cpu
x = torch.ones(3, dtype=torch.float64, requires_grad=True)
(slope,) = torch.autograd.grad(cpu.silu(x).sum(), x, create_graph=True)
print(float(cpu.silu(x)[0]), float(slope[0]))
"""
    processes = [python(code, cache) for _ in range(4)]
    answers = [output(process) for process in processes]
    assert len(set(answers)) == 1
    assert float(answers[0].split()[0]) == pytest.approx(SILU_OF_1, rel=1e-14)
    assert len(list(cache.iterdir())) == 2
    assert_whole(cache)


def test_files_are_named_after_all_code_that_a_kernel_depends_on() -> None:
    """Coefficients are compiled in: other couplings are other kernels."""
    sources = {path.resolve() for path in machine._sources()}
    shared = (plan, polynomial, harmonic_polynomials)
    for module in (machine, *shared, coupling, symmetric):
        assert Path(module.__file__).resolve() in sources
    folder = Path(machine.__file__).resolve().parent
    assert set(folder.glob("*_code.py")) <= sources


@pytest.mark.parametrize("change", ["processor", "version"])
def test_other_machines_have_other_files(
    cache: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    silu_of_1()
    if change == "processor":
        monkeypatch.setattr(machine.llvm, "get_host_cpu_name", lambda: "another")
    else:
        monkeypatch.setattr(machine.llvmlite, "__version__", "0.0")
    machine._versions.cache_clear()
    try:
        silu_of_1()
    finally:
        monkeypatch.undo()
        machine._versions.cache_clear()
    assert len(compiled) == 2
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("patience", [0.0, 60.0])
def test_compiling_is_told_of_when_it_takes_long(
    cache: Path,
    patience: float,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(machine, "PATIENCE", patience)
    silu_of_1()
    first = capsys.readouterr()
    silu_of_1()
    second = capsys.readouterr()
    assert first.out == second.out == second.err == ""
    assert ("clebsch: compiled silu in" in first.err) is (patience == 0)
    if patience:
        assert first.err == ""


# --- threads and processes ---


@pytest.mark.usefixtures("two_threads")
def test_work_is_divided() -> None:
    """So that the tests below test something."""
    assert len(threads.shares(MANY, 30 * MANY)) == 2
    assert len(threads.shares(10, 300)) == 1


def heavy_derivatives() -> list[Tensor]:
    """Derivatives of a convolution that several threads add to; each has a sum of its own."""
    generator = torch.Generator().manual_seed(0)
    positions = 3 * torch.rand(24, 3, dtype=torch.float64, generator=generator)
    graph = neighbor_graph(
        positions,
        torch.zeros(3, 3, dtype=torch.float64),
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(24, dtype=torch.int64),
        9.0,
    )
    irreps = spherical_irreps(1)
    coupled = convolution_plan(irreps, irreps, irreps)
    shapes = (
        (graph.n_edges, 8),
        (8, coupled.n_paths, 64),
        (graph.n_edges, 4),
        (graph.n_atoms, 4, 64),
    )
    inputs = [
        torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()
        for shape in shapes
    ]
    out = cpu.convolve_radial(coupled, *inputs, graph)
    return list(torch.autograd.grad(out.square().sum(), inputs))


def test_results_depend_on_the_number_of_threads_to_rounding_only() -> None:
    before = torch.get_num_threads()
    results = {}
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            results[n_threads] = heavy_derivatives()
            for _ in range(3):  # the same number, the same bits
                again = heavy_derivatives()
                assert all(map(torch.equal, again, results[n_threads]))
    finally:
        torch.set_num_threads(before)
    for n_threads in (2, 3):
        for found, expected in zip(results[n_threads], results[1], strict=True):
            assert (found - expected).abs().max() <= 1e-13 * expected.abs().max()


@pytest.mark.parametrize("part", [0, 1])
def test_an_error_in_one_part_is_raised_when_the_others_have_ended(part: int) -> None:
    ended = threading.Event()

    def work(number: int, start: int, stop: int) -> None:
        if number == part:
            raise ValueError(f"part {part}")
        time.sleep(0.2)
        ended.set()

    with pytest.raises(ValueError, match=f"part {part}"):
        threads.run(work, [(0, 1), (1, 2)])
    assert ended.is_set()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no such signals on this system")
def test_an_interrupt_is_raised_when_no_thread_works_any_more() -> None:
    """A kernel writes to memory that is given back when the call ends."""
    ended = threading.Event()

    def work(number: int, start: int, stop: int) -> None:
        if number == 1:
            time.sleep(0.2)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.4)
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        threads.run(work, [(0, 1), (1, 2)])
    assert ended.is_set()


PARENT = f"""
import multiprocessing, sys
import numpy, torch
from clebsch.kernels import cpu

# Not made by torch: a forked child has one thread of OpenMP, which torch's own operations use. With
# more it hangs, looking for threads that are not there.
x = torch.from_numpy(numpy.ones({MANY}))
torch.set_num_threads(2)

def value():
    return cpu.silu(x)

def child(queue):
    torch.set_num_threads(2)
    queue.put([float(v) for v in value()[:: {MANY - 1}]])
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_divides_its_work_too(cache: Path, tmp_path: Path, method: str) -> None:
    """After the parent has used two threads, which do not live in the child."""
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    script = tmp_path / "script.py"  # spawn imports it
    script.write_text(
        f"""{PARENT}
if __name__ == "__main__":
    value()
    context = multiprocessing.get_context({method!r})
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,), daemon=True)
    process.start()
    print(*queue.get(timeout=30), float(value()[-1]))
    process.join(30)
    sys.exit(process.exitcode)
"""
    )
    found = output(python(str(script), cache))
    assert [float(word) for word in found.split()] == pytest.approx([SILU_OF_1] * 3, rel=1e-14)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_evaluates_a_potential_after_a_parent_with_threads(cache: Path) -> None:
    """OpenMP's threads do not live in the child either: torch waited for them for ever."""
    code = """
import multiprocessing
import clebsch, torch
from ase.build import bulk
torch.set_num_threads(2)
settings = {"channels": 16, "l_max": 1, "product": {"correlation": 2}, "cutoff": 5.0}
potential = clebsch.build(settings, ["Cu"], dtype=torch.float64, seed=0)
crystal = bulk("Cu", cubic=True) * 4
crystal.rattle(0.03, seed=1)
def answer(_):
    atoms = crystal.copy()
    atoms.calc = clebsch.calculator(potential)
    return atoms.get_potential_energy(), atoms.get_forces()
parent = answer(0)
with multiprocessing.get_context("fork").Pool(1) as pool:
    (child,) = pool.map_async(answer, range(1)).get(timeout=20)
print(abs(child[0] - parent[0]) < 1e-8, abs(child[1] - parent[1]).max() < 1e-8)
"""
    # not to the bit: two threads sum derivatives in another order than one
    assert output(python(code, cache)).split() == ["True", "True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_data_loader_and_its_parent_both_use_kernels(cache: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""{PARENT}
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 3
    def __getitem__(self, index):
        return value()[:2].clone()

value()
loader = torch.utils.data.DataLoader(
    Data(), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=30
)
print(*[float(item[0]) for item in loader for _ in [value()]])
"""
    )
    found = output(python(str(script), cache))
    assert [float(word) for word in found.split()] == pytest.approx([SILU_OF_1] * 3, rel=1e-14)


# --- a machine without the compiler ---


def test_without_llvmlite_the_reference_is_used_and_a_warning_says_so(cache: Path) -> None:
    code = """
import sys, warnings
sys.modules["llvmlite"] = None
import clebsch
settings = {"channels": 2, "l_max": 1, "product": {"correlation": 2}, "cutoff": 3.0}
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    potential = clebsch.build(settings, ["H", "O"])
print(potential.backend)
print(*[warning.message for warning in found], sep="; ")
try:
    potential.use_backend("llvm")
except clebsch.ClebschError as error:
    print("refused:", error)
"""
    backend, warned, refused = output(python(code, cache)).splitlines()
    assert backend == "reference"
    assert "llvm backend cannot be used on this machine" in warned
    assert "llvmlite" in warned
    assert "slower reference is used" in warned
    assert refused.startswith("refused: the llvm backend cannot be used")
