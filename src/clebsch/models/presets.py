"""Published models and a few of our own by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from clebsch.errors import ConfigError, did_you_mean
from clebsch.models.config import (
    CONFIGS,
    ACEConfig,
    AllegroConfig,
    InteractionConfig,
    MessagePassingConfig,
    ModelConfig,
    ProductConfig,
    RadialConfig,
    ReadoutConfig,
    UpdateConfig,
    architecture,
)
from clebsch.models.section import RadialBasisConfig, all_keys, message_of


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


_MACE = "MACE paper (arXiv 2206.07697), appendix A.5.1"
_NEQUIP = "NequIP of the Allegro paper (Musaelian et al. 2023), methods"
_IN_MACE = "as run in the code of the MACE paper (arXiv 2206.07697)"
_PACE = "PACE (arXiv 2411.04219), published code"


def _mace(message_l: int) -> MessagePassingConfig:
    return MessagePassingConfig(
        channels=256, message_l=message_l, update=UpdateConfig(first_layer="residual")
    )


def _nequip(cutoff: float, radial: RadialConfig, readout_hidden: int) -> MessagePassingConfig:
    """Gates, both parities, and no product basis."""
    return MessagePassingConfig(
        cutoff=cutoff,
        layers=5,
        channels=64,
        message_l=3,
        parity="full",
        radial=radial,
        interaction=InteractionConfig(normalization="sqrt_neighbors"),
        product=None,
        update=UpdateConfig(first_layer="residual", gate="silu"),
        readout=ReadoutConfig(layers="last", last="two_linear", hidden=readout_hidden),
    )


def _botnet(channels: int = 80, layers: int = 5) -> MessagePassingConfig:
    """NequIP without gates, with radial functions of each element, and read at every layer."""
    return MessagePassingConfig(
        layers=layers,
        channels=channels,
        message_l=3,
        parity="full",
        radial=RadialConfig(weights="element_linear"),
        product=None,
    )


def _pace(message_l: int, radial: RadialConfig, channels: int = 256) -> MessagePassingConfig:
    """MACE with radial functions of pairs of elements and distinct factors."""
    return MessagePassingConfig(
        channels=channels,
        message_l=message_l,
        radial=radial,
        interaction=InteractionConfig(linear_up=False, paths="summed"),
        product=ProductConfig(slots="distinct", couplings="unreduced"),
        update=UpdateConfig(first_layer="residual"),
        readout=ReadoutConfig(inner="mlp"),
    )


def _pair(n_basis: int) -> RadialConfig:
    return RadialConfig(weights="pair", n_basis=n_basis)


_ALLEGRO = "Allegro paper (Nature Communications 14, 579), methods"
_ALLEGRO_ASSUMED = ("mixing",)


def _allegro(
    cutoff: float, exponent: int, latent_nonlinearity: Literal["silu", "none"]
) -> AllegroConfig:
    """Both parities up to l = 3; the mean energy enters as a shift of every atom."""
    return AllegroConfig(
        cutoff=cutoff,
        layers=3,
        channels=128,
        l_max=3,
        parity="full",
        radial=RadialBasisConfig(n_basis=8, envelope_exponent=exponent),
        latent=1024,
        two_body_hidden=(128, 256, 512),
        latent_hidden=(1024, 1024),
        latent_nonlinearity=latent_nonlinearity,
        readout_hidden=128,
        mean_energy="constant",
    )


PRESETS: dict[str, Preset] = {
    "mace_3bpa": Preset(_mace(2), f"{_MACE}, table 2, L = 2"),
    "mace_3bpa_l1": Preset(_mace(1), f"{_MACE}, table 2, L = 1"),
    "mace_3bpa_l0": Preset(_mace(0), f"{_MACE}, table 2, L = 0"),
    "mace_acac": Preset(_mace(2), f"{_MACE}, table 3"),
    "mace_rmd17": Preset(_mace(2), f"{_MACE}, table 1", assumed=("message_l",)),
    "mace_small": Preset(
        MessagePassingConfig(channels=64, message_l=1),
        "our own: an accurate model that trains on a laptop; lone atoms give their references",
    ),
    "mace_few": Preset(
        _mace(2).model_copy(
            update={"channels": 64, "radial": RadialConfig(envelope_exponent=2)},
        ),
        "our own: learns from tens of structures",
    ),
    "mace_tiny": Preset(
        MessagePassingConfig(channels=32, message_l=1, l_max=2),
        "our own: for demonstrations and tests; lone atoms give their references",
    ),
    "nequip_3bpa": Preset(
        _nequip(5.0, RadialConfig(envelope_exponent=2), 32), f"{_NEQUIP}, table 2"
    ),
    "nequip_acac": Preset(
        _nequip(4.0, RadialConfig(envelope_exponent=6, trainable=True), 16),
        f"NequIP {_IN_MACE}, table 3",
        assumed=("radial.trainable", "readout.hidden"),
    ),
    "nequip_small": Preset(
        _nequip(5.0, RadialConfig(), 16).model_copy(
            update={"layers": 3, "channels": 32, "message_l": 2}
        ),
        "our own: NequIP that trains on a laptop",
    ),
    "botnet_acac": Preset(
        _botnet(),
        f"BOTNet (arXiv 2205.06643) {_IN_MACE}, table 3",
        assumed=("cutoff", "radial.envelope_exponent"),
    ),
    "botnet_3bpa": Preset(
        _botnet(),
        f"BOTNet (arXiv 2205.06643) {_IN_MACE}, table 2",
        assumed=("cutoff", "radial.envelope_exponent"),
    ),
    "botnet_small": Preset(
        _botnet(32, 3).model_copy(update={"message_l": 2}),
        "our own: BOTNet that trains on a laptop; lone atoms give their references",
    ),
    "pace_acac": Preset(_pace(2, _pair(4)), _PACE),
    "pace_3bpa": Preset(_pace(2, _pair(4)), _PACE),
    "pace_ethanol": Preset(
        _pace(3, RadialConfig(basis="bernstein", n_basis=20, envelope="smooth", weights="pair")),
        f"{_PACE}, rMD17 ethanol",
    ),
    "pace_small": Preset(_pace(1, _pair(8), channels=64), "our own: PACE that trains on a laptop"),
    "allegro_3bpa": Preset(
        _allegro(cutoff=5.0, exponent=2, latent_nonlinearity="none"),
        f"{_ALLEGRO}, table 2",
        assumed=_ALLEGRO_ASSUMED,
    ),
    "allegro_rmd17": Preset(
        _allegro(cutoff=7.0, exponent=6, latent_nonlinearity="silu"),
        f"{_ALLEGRO}, table 1 (naphthalene: cutoff 9)",
        assumed=_ALLEGRO_ASSUMED,
    ),
    "allegro_small": Preset(
        AllegroConfig(),
        "our own: trains on a laptop; lone atoms give their references",
    ),
    "ace_3bpa": Preset(
        ACEConfig(
            cutoff=4.7,
            max_degree=(14.0, 8.0, 3.5),
            max_degree_of={"C": (14.0, 10.0, 8.0)},
            max_n=(14, 10, 3),
            neighbor_degree={"N": 1.5, "O": 1.5},
        ),
        "our own basis, chosen on 3BPA; the published one is not known to us",
        assumed=("cutoff", "correlation", "max_degree", "max_n", "l_weight", "envelope_exponent"),
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
    if isinstance(model, ModelConfig):
        return model
    if not isinstance(model, str | Mapping):
        raise ConfigError(f"a model is a preset, a mapping or a configuration, not {model!r}")
    if isinstance(model, str):
        return preset_config(model)
    settings = dict(model)
    preset = settings.pop("preset", None)
    if preset is not None:
        settings = merged(preset_to_change(preset, settings), settings)
    kind = CONFIGS[architecture(settings)]
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_explain(error, kind)) from None


def preset_to_change(
    preset: str, changes: Mapping[str, Any], mode: Literal["python", "json"] = "python"
) -> dict[str, Any]:
    """What a preset says, for changes to be made to; what it leaves open may depend on them.

    Raises:
        ConfigError: an unknown preset, or the changes would make another kind of model of it.
    """
    config = preset_config(preset)
    given = changes.get("name", config.name)
    if given != config.name:
        raise ConfigError(
            f"model.name={given} does not go with the preset {preset}, which is a {config.name} "
            "model"
        )
    return {"name": config.name, **config.model_dump(mode=mode, exclude_unset=True)}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others in their place; of sections that both have, key by key."""
    found = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if nested else value
    return found


def _explain(error: ValidationError, kind: type[ModelConfig]) -> str:
    """The first problem, with the key's full name and the nearest valid one."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in ("model", *problem["loc"]))
    if problem["type"] == "extra_forbidden":
        given = key.removeprefix("model.")
        known = list(all_keys(kind))
        # A key that another section has was put in the wrong place.
        section, _, last = given.rpartition(".")
        places = [one for one in known if one.rpartition(".")[2] == last]
        beside = [one for one in known if one.rpartition(".")[0] == section]
        return f"unknown key {key!r}. {did_you_mean(given, places or beside or known)}"
    value = problem["input"]
    shown = "" if isinstance(value, Mapping) else f" (got {value!r})"
    return f"{key}: {message_of(problem)}{shown}"
