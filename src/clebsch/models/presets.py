"""Published models and a few of our own by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from clebsch.errors import ConfigError, did_you_mean
from clebsch.models.ace_config import ACEConfig
from clebsch.models.config import ARCHITECTURES, MACEConfig, ModelConfig


@dataclass(frozen=True)
class Preset:
    """A named configuration.

    Attributes:
        config: the settings.
        source: where they are published, or why they were chosen.
        assumed: settings that the source does not state.
    """

    config: ModelConfig
    source: str
    assumed: tuple[str, ...] = ()


_PAPER = "MACE paper (arXiv 2206.07697), appendix A.5.1"


def _published(message_l: int) -> MACEConfig:
    return MACEConfig(channels=256, message_l=message_l, first_layer="residual")


PRESETS: dict[str, Preset] = {
    "mace_3bpa": Preset(_published(2), f"{_PAPER}, table 2, L = 2"),
    "mace_3bpa_l1": Preset(_published(1), f"{_PAPER}, table 2, L = 1"),
    "mace_3bpa_l0": Preset(_published(0), f"{_PAPER}, table 2, L = 0"),
    "mace_acac": Preset(_published(2), f"{_PAPER}, table 3"),
    "mace_rmd17": Preset(_published(2), f"{_PAPER}, table 1", assumed=("message_l",)),
    "mace_small": Preset(
        MACEConfig(channels=64, message_l=1),
        "our own: an accurate model that trains on a laptop; lone atoms give their references",
    ),
    "mace_tiny": Preset(
        MACEConfig(channels=32, message_l=1, l_max=2),
        "our own: for demonstrations and tests; lone atoms give their references",
    ),
    "ace_3bpa": Preset(
        ACEConfig(cutoff=4.0, correlation=3, max_degree=(14.0, 10.0, 5.0)),
        "our own degrees, by the evidence on 3BPA; the published basis is not known to us",
        assumed=("cutoff", "correlation", "max_degree", "l_weight", "envelope_exponent"),
    ),
}


def preset_config(name: str) -> ModelConfig:
    """The configuration of a preset.

    Raises:
        ConfigError: no preset has this name.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown model preset {name!r}. {did_you_mean(name, PRESETS)}")
    return PRESETS[name].config


def model_config(model: str | Mapping[str, Any] | ModelConfig) -> ModelConfig:
    """A configuration from a preset's name, from a mapping, or as it is.

    A mapping may start from a preset (``{"preset": "mace_acac", "channels": 64}``) and replace
    some of its settings.

    Raises:
        ConfigError: an unknown preset, key or value.
    """
    if isinstance(model, MACEConfig | ACEConfig):
        return model
    if isinstance(model, str):
        return preset_config(model)
    settings = dict(model)
    preset = settings.pop("preset", None)
    if preset is not None:
        settings = _merged(preset_config(preset).model_dump(), settings)
    name = settings.get("name", "mace")
    if name not in ARCHITECTURES:
        raise ConfigError(f"model.name: {name!r}. {did_you_mean(str(name), ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    try:
        return architecture.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_explain(error, architecture)) from None


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged


def _explain(error: ValidationError, architecture: type[ModelConfig]) -> str:
    """The first problem, with the key's full name and the nearest valid one."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in ("model", *problem["loc"]))
    if problem["type"] == "extra_forbidden":
        section: Any = architecture
        for part in problem["loc"][:-1]:
            section = section.model_fields[part].annotation
        return f"unknown key {key!r}. {did_you_mean(str(problem['loc'][-1]), section.model_fields)}"
    return f"{key}: {problem['msg']} (got {problem['input']!r})"
