"""Which backend computes the heavy operations: chosen once for a potential, and told."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import fields

import torch

from clebsch.errors import BackendError, did_you_mean
from clebsch.kernels.backend import Kernels

#: Backends by name, fastest first, with the module that holds each.
BACKENDS = {
    "llvm": "clebsch.kernels.cpu",
    "triton": "clebsch.kernels.gpu",
    "reference": "clebsch.kernels.reference",
}

#: The fast backend of each type of device; on others there is the reference alone.
FASTEST = {"cpu": "llvm", "cuda": "triton"}

#: The lowest compute capability of NVIDIA's GPUs that kernels are meant for.
LEAST_CAPABILITY = (7, 0)


def load_backend(name: str) -> Kernels:
    """A backend by name.

    Raises:
        BackendError: no such backend, or one that this machine cannot import or compile.
    """
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}. {did_you_mean(name, BACKENDS)}")
    try:
        module = importlib.import_module(BACKENDS[name])
    except (ImportError, RuntimeError, OSError) as error:
        mend = isinstance(error, ImportError) and name == "triton"
        hint = f" (pip install triton; torch is {torch.__version__})" if mend else ""
        reason = f"the {name} backend cannot be used on this machine: {error}{hint}"
        raise BackendError(reason) from None
    return Kernels(name, *(getattr(module, field.name) for field in fields(Kernels)[1:]))


def backends_of(device: torch.device) -> list[str]:
    """The names of the backends that are meant for a device, fastest first."""
    return [name for name in BACKENDS if name in (FASTEST.get(device.type), "reference")]


def best_backend(device: torch.device) -> Kernels:
    """The fastest backend for a device; falling back from it is said in a warning."""
    fastest, *_ = backends_of(device)
    try:
        _check_device(device)
        return load_backend(fastest)
    except BackendError as error:
        warnings.warn(f"{error}; the slower reference is used instead", stacklevel=2)
        return load_backend("reference")


def _check_device(device: torch.device) -> None:
    """Find out whether a device's fast backend is worth trying; by name anyone can try it.

    Raises:
        BackendError: there is none for it, or it is not one that the backend was written for.
    """
    if device.type not in FASTEST:
        raise BackendError(
            f"there is no fast backend for {device.type} devices (torch {torch.__version__})"
        )
    if device.type != "cuda" or not torch.cuda.is_available():
        return
    name = torch.cuda.get_device_name(device)
    if torch.version.hip:
        raise BackendError(
            f"the triton backend has never been tried on AMD's GPUs, as this {name} with torch "
            f'{torch.__version__} and ROCm {torch.version.hip} (use_backend("triton") tries it)'
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        raise BackendError(
            f"the triton backend needs a GPU of compute capability {_dotted(LEAST_CAPABILITY)} or "
            f"higher, and this {name} has {_dotted(capability)}"
        )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
