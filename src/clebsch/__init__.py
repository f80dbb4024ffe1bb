"""Clebsch: machine-learned interatomic potentials, trained, judged and run.

    import clebsch
    potential = clebsch.load("model.safetensors")
    atoms.calc = clebsch.calculator(potential)

Names are imported when they are first used, so that ``clebsch --help`` need not wait for torch.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clebsch.calculators import calculator
    from clebsch.committee import uncertainty
    from clebsch.errors import ClebschError
    from clebsch.factory import build
    from clebsch.modelfile import load
    from clebsch.models.presets import PRESETS
    from clebsch.potential import Potential, Prediction

__version__ = version("clebsch")

_HOMES = {
    "PRESETS": "clebsch.models.presets",
    "ClebschError": "clebsch.errors",
    "Potential": "clebsch.potential",
    "Prediction": "clebsch.potential",
    "build": "clebsch.factory",
    "calculator": "clebsch.calculators",
    "load": "clebsch.modelfile",
    "uncertainty": "clebsch.committee",
}

__all__ = [
    "PRESETS",
    "ClebschError",
    "Potential",
    "Prediction",
    "__version__",
    "build",
    "calculator",
    "load",
    "uncertainty",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'clebsch' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
