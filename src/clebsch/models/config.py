"""What a model is, as a strict schema: settings are checked when they are read."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field, model_validator

from clebsch.models.ace_config import ACEConfig
from clebsch.models.section import Section


class RadialConfig(Section):
    """Radial basis, envelope and network."""

    n_basis: int = Field(8, ge=1, description="Bessel functions")
    envelope_exponent: int = Field(5, ge=2, description="p of the polynomial cut-off")
    hidden: tuple[int, ...] = Field(
        (64, 64, 64), min_length=1, description="hidden widths of the radial network"
    )


class MACEConfig(Section):
    """MACE (Batatia et al. 2022, equations 8 to 13). Defaults are the paper's but for its size."""

    name: Literal["mace"] = "mace"
    cutoff: float = Field(5.0, gt=0, description="Angstrom")
    layers: int = Field(2, ge=1, description="message-passing layers, T")
    channels: int = Field(128, ge=1, description="channels of every irrep, K")
    l_max: int = Field(3, ge=0, le=8, description="highest degree of the edge harmonics")
    message_l: int = Field(1, ge=0, le=8, description="highest degree of the messages, L")
    correlation: int = Field(3, ge=1, le=4, description="order of the product basis, nu")
    radial: RadialConfig = RadialConfig()
    first_layer: Literal["residual", "species_linear"] = Field(
        "species_linear",
        description="residual: as published; species_linear: a species-dependent map of the "
        "one-particle basis and no self-connection, so that a lone atom gives its reference",
    )
    mean_energy: Literal["auto", "none", "constant", "density"] = Field(
        "auto",
        description="how the mean interaction energy enters; auto: constant with a residual first "
        "layer (published), else a smooth function of the neighbour density",
    )
    readout_hidden: int = Field(16, ge=1, description="width of the last layer's readout")
    couplings: Literal["reduced", "unreduced"] = Field(
        "reduced", description="product couplings: linearly independent ones, or the full table"
    )
    zbl: bool = Field(False, description="add the ZBL nuclear repulsion")

    @model_validator(mode="after")
    def _make_sense(self) -> MACEConfig:
        if self.l_max == 0 and self.message_l > 0:
            raise ValueError("message_l: scalar harmonics (l_max=0) couple to scalars alone")
        if self.mean_energy == "constant" and self.first_layer == "species_linear":
            raise ValueError(
                "mean_energy=constant would shift lone atoms, which first_layer=species_linear "
                "promises to leave at their reference; use mean_energy=density or none"
            )
        return self

    @property
    def summary(self) -> str:
        """Its size, for tables and reports."""
        return (
            f"{self.layers} layers, {self.channels} channels, L = {self.message_l}, "
            f"order {self.correlation}"
        )

    @property
    def mean_energy_form(self) -> Literal["none", "constant", "density"]:
        """``mean_energy`` with ``auto`` resolved."""
        if self.mean_energy != "auto":
            return self.mean_energy
        return "constant" if self.first_layer == "residual" else "density"


#: Any architecture's configuration; ``name`` tells which.
ModelConfig: TypeAlias = MACEConfig | ACEConfig

#: Architectures by ``name``; a configuration without a name is of the first.
ARCHITECTURES: dict[str, type[MACEConfig] | type[ACEConfig]] = {
    "mace": MACEConfig,
    "ace": ACEConfig,
}
