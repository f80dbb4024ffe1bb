"""Triton: whether it can be used, the sources that it compiles, and how kernels are launched."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import types
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from clebsch.errors import BackendError
from clebsch.files import atomic_write
from clebsch.kernels.cache import cache_folder
from clebsch.kernels.gpu import tuning
from clebsch.kernels.gpu.tuning import Setting

#: The oldest Triton that compiles all kernels: 3.4 multiplies no matrices in float64, 3.3 has no
#: ``knobs``. Tests run with 3.7.
LEAST_TRITON = (3, 5)
#: Threads of a warp.
WARP = 32
#: Rows and columns that ``tl.dot`` takes, at least.
LEAST_OF_DOT = 16

#: The first of kernels that were compiled together, by its module, and what for.
_compiled: set[Any] = set()


def is_interpreted() -> bool:
    """Whether Triton interprets kernels: ``TRITON_INTERPRET=1`` before it was imported."""
    return bool(triton.knobs.runtime.interpret)


def check() -> None:
    """Find out whether Triton is new enough and has something to run kernels on.

    Raises:
        RuntimeError: it is not, or has not.
    """
    version = triton.__version__
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < LEAST_TRITON:
        least = ".".join(map(str, LEAST_TRITON))
        raise RuntimeError(
            f"it needs Triton {least} or later, and this is {version} (torch is "
            f"{torch.__version__}; newer ones bring a newer Triton)"
        )
    if not is_interpreted() and not torch.cuda.is_available():
        raise RuntimeError(
            "torch finds no GPU (TRITON_INTERPRET=1 interprets kernels on the CPU, for tests)"
        )


def kernel(name: str, source: str) -> Any:
    """The kernel of that name in a generated source.

    The source lies in the cache folder, named after what it says, since Triton reads the text of
    what it compiles from a file, and so that people can read it too. Compiled code is kept by
    Triton.
    """
    digest = hashlib.sha256(source.encode()).hexdigest()[:32]
    file = _stored(f"{name}-{digest}.py", source)
    module = types.ModuleType(f"clebsch_{name}_{digest}")
    exec(compile(source, str(file), "exec"), module.__dict__)
    return getattr(module, name)


def _stored(name: str, source: str) -> Path:
    """The file that holds a source: in the cache folder, or where that cannot be in another."""
    try:
        file = cache_folder() / name
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if file.read_text(encoding="utf-8") == source:
                return file
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, source)
    except (OSError, RuntimeError):
        file = _other_folder() / name
        atomic_write(file, source)
    return file


@lru_cache(maxsize=1)
def _other_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="clebsch-"))


def block_of_channels(channels: int, per_thread: int) -> int:
    """Channels of a program that is one warp: a power of 2."""
    return min(WARP * per_thread, max(WARP, triton.next_power_of_2(channels)))


def filled(size: int) -> int:
    """A side of a matrix that ``tl.dot`` multiplies: a power of 2."""
    return max(LEAST_OF_DOT, triton.next_power_of_2(size))


def compile_together(
    functions: Sequence[Any],
    grid: tuple[int, ...],
    arguments: tuple[Tensor | int, ...],
    **constants: int | str,
) -> None:
    """Have Triton compile kernels that will be launched alike at the same time, at first use.

    Compiling takes seconds for each, mostly outside of Python. What fails here is left to
    ``launch``, which compiles what is not compiled and says why it cannot be.
    """
    first = arguments[0]
    assert isinstance(first, Tensor)
    if is_interpreted() or not first.is_cuda or len(functions) < 2:
        return
    types = tuple(a.dtype if isinstance(a, Tensor) else a for a in arguments)
    key = (functions[0].module, first.device, types, tuple(constants.items()))
    if key in _compiled:
        return
    _compiled.add(key)
    setting = Setting()

    def compiled(function: Any) -> None:
        with contextlib.suppress(Exception), torch.cuda.device(first.device):
            function.warmup(
                *arguments,
                grid=grid,
                **constants,
                num_warps=setting.n_warps,
                num_stages=setting.n_stages,
            )

    with ThreadPoolExecutor(min(len(functions), os.cpu_count() or 1)) as pool:
        list(pool.map(compiled, functions))


def launch(
    function: Any,
    grid: tuple[int, ...],
    arguments: tuple[Tensor | int, ...],
    settings: tuple[Setting, ...] = (Setting(),),
    **constants: float | str,
) -> None:
    """Run a kernel on the device of its first argument, with the fastest of some settings.

    Where there are several, the kernel must neither read what it writes nor have other bits with
    another setting.

    Raises:
        BackendError: that is no GPU, and Triton does not interpret.
    """
    first = arguments[0]
    assert isinstance(first, Tensor)
    if is_interpreted():
        function[grid](*arguments, **constants)
        return
    if not first.is_cuda:
        raise BackendError(
            f"the triton backend computes on GPUs, and was given tensors on {first.device}"
        )

    def run(setting: Setting) -> None:
        function[grid](
            *arguments, **constants, num_warps=setting.n_warps, num_stages=setting.n_stages
        )

    with torch.cuda.device(first.device):
        run(tuning.choose(function, grid, arguments, constants, settings, run))
