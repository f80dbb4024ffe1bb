"""The machine that kernels are compiled for: its vectors, its compiler, and what it has compiled.

Machine code is kept in a cache folder (``CLEBSCH_CACHE``, else the user's cache folder), one file a
kernel, named after everything that it depends on: what the kernel computes, the code that wrote it,
the versions of LLVM and the processor. Files are written whole or not at all, so that any number of
processes can start together; a folder that cannot be read or written only costs the compilation.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from clebsch.kernels.cache import cache_folder

#: Seconds after which a compilation is told of.
PATIENCE = 2.0

#: Vectors that a kernel takes at once, where channels fill them.
AT_ONCE = 2

_engines: list[Any] = []  # compiled code lives as long as the engine that holds it
_lock = threading.Lock()


@lru_cache(maxsize=1)
def features() -> dict[str, bool]:
    """What the processor can do, by LLVM's names."""
    return dict(llvm.get_host_cpu_features())


@lru_cache(maxsize=1)
def vector_bytes() -> int:
    """Size of the widest vector register."""
    if features().get("avx512f"):
        return 64
    return 32 if features().get("avx") else 16


def wide(bits: int) -> int:
    """Numbers in a vector register."""
    return vector_bytes() * 8 // bits


@dataclass(frozen=True, eq=False)  # two kernels of equal channels are not the same
class Channels:
    """How a kernel takes its channels: in vectors, and some of those at once.

    Attributes:
        channels: K.
        bits: of the real type.
    """

    channels: int
    bits: int

    @cached_property
    def lanes(self) -> int:
        """Lanes of the vectors: the most that divide the number of channels."""
        count = wide(self.bits)
        while self.channels % count:
            count //= 2
        return count

    @cached_property
    def vectors(self) -> int:
        """Vectors in a chunk of channels."""
        return AT_ONCE if self.channels % (AT_ONCE * self.lanes) == 0 else 1

    @property
    def chunk(self) -> int:
        """Channels in a chunk."""
        return self.lanes * self.vectors

    @property
    def n_chunks(self) -> int:
        """Chunks in all channels."""
        return self.channels // self.chunk


@lru_cache(maxsize=1)
def many_registers() -> bool:
    """Whether there are 32 vector registers; else there are 16."""
    return bool(features().get("avx512f") or features().get("neon"))


@dataclass(frozen=True)
class Kernel:
    """A compiled function; it releases the interpreter lock while it runs.

    Attributes:
        run: takes addresses, then integers.
        work: how many elements of scratch memory it needs.
    """

    run: Callable[..., None]
    work: int


def kernel(
    name: str, n_pointers: int, n_integers: int, key: str, write: Callable[[], str]
) -> Kernel:
    """A compiled function, out of the cache or made now.

    Args:
        name: of the function.
        n_pointers: arguments that are addresses; they come first.
        n_integers: arguments that are 64-bit integers.
        key: tells what the kernel computes from every other one of this name.
        write: gives the function as LLVM assembly, with a constant ``work``.
    """
    with _lock:
        file = _cache_file(name, key)
        code = _read(file)
        if code is None:
            with _patience(name):
                code = _compile(write())
            _write(file, code)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        _engines.append(engine)
    kinds = [ctypes.c_void_p] * n_pointers + [ctypes.c_int64] * n_integers
    function = ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(name))
    work = ctypes.c_int64.from_address(engine.get_global_value_address("work")).value
    return Kernel(function, work)


@lru_cache(maxsize=1)
def _target_machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        codemodel="jitdefault",
        jit=True,
    )


def check() -> None:
    """Find out whether LLVM can compile for this machine.

    Raises:
        RuntimeError: it cannot.
    """
    _target_machine()


def _compile(assembly: str) -> bytes:
    module = llvm.parse_assembly(assembly)
    module.verify()
    builder = llvm.create_pass_builder(_target_machine(), llvm.create_pipeline_tuning_options())
    passes = llvm.create_new_function_pass_manager()
    passes.add_sroa_pass()
    passes.add_simplify_cfg_pass()
    for function in module.functions:
        if not function.is_declaration:
            passes.run(function, builder)
    return bytes(_target_machine().emit_object(module))


def _sources() -> list[Path]:
    """The files that say what a kernel does: its code, the plans that it is for, their couplings.

    Coefficients and the order of terms are compiled into kernels, so that these three change them.
    """
    here = Path(__file__)
    names = ("emit.py", "*_code.py", "convolution_*.py")
    writers = [here, *(path for name in names for path in sorted(here.parent.glob(name)))]
    shared = ("plan.py", "polynomial.py", "harmonic_polynomials.py")
    plans = [here.parents[1] / name for name in shared]
    return [*writers, *plans, *sorted((here.parents[2] / "algebra").glob("*.py"))]


@lru_cache(maxsize=1)
def _versions() -> str:
    """Everything but the kernel itself that machine code depends on."""
    sources = [path.read_bytes() for path in _sources()]
    parts = [
        hashlib.sha256(b"".join(sources)).hexdigest(),
        llvmlite.__version__,
        str(llvm.llvm_version_info),
        llvm.get_default_triple(),
        llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
    ]
    return "\n".join(parts)


def _cache_file(name: str, key: str) -> Path | None:
    digest = hashlib.sha256(f"{_versions()}\n{name}\n{key}".encode()).hexdigest()
    try:
        return cache_folder() / f"{name}-{digest[:32]}.o"
    except RuntimeError:  # no home folder
        return None


def _read(file: Path | None) -> bytes | None:
    """Machine code out of the cache; None where there is none, or where it was damaged."""
    if file is None:
        return None
    try:
        content = file.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(file: Path | None, code: bytes) -> None:
    if file is None:
        return
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(hashlib.sha256(code).digest() + code)
            os.replace(temporary, file)
        except OSError:
            os.unlink(temporary)


@contextlib.contextmanager
def _patience(name: str) -> Iterator[None]:
    """Say so when compiling takes long."""
    start = time.monotonic()

    def tell() -> None:
        print(f"clebsch: compiling {name} for this machine, once ...", file=sys.stderr, flush=True)

    timer = threading.Timer(PATIENCE, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    elapsed = time.monotonic() - start
    if elapsed > PATIENCE:
        print(f"clebsch: compiled {name} in {elapsed:.1f} s", file=sys.stderr, flush=True)
