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
        raise BackendError(f"the {name} backend cannot be used on this machine: {error}") from None
    return Kernels(name, *(getattr(module, field.name) for field in fields(Kernels)[1:]))


def backends_of(device: torch.device) -> list[str]:
    """The names of the backends that are meant for a device, fastest first."""
    return [name for name in BACKENDS if name in (FASTEST.get(device.type), "reference")]


def best_backend(device: torch.device) -> Kernels:
    """The fastest backend for a device; falling back from it is said in a warning."""
    fastest, *_ = backends_of(device)
    try:
        return load_backend(fastest)
    except BackendError as error:
        warnings.warn(f"{error}; the slower reference is used instead", stacklevel=2)
        return load_backend("reference")
