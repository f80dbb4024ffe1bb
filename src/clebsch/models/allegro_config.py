"""Allegro's settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from clebsch.models.section import NetworkConfig, RadialBasisConfig

Width = Annotated[int, Field(ge=1)]


class AllegroConfig(NetworkConfig):
    """Allegro (Musaelian et al. 2023): strictly local tensors and latents of edges."""

    name: Literal["allegro"] = "allegro"
    layers: int = Field(2, ge=1, description="products with the environment")
    channels: int = Field(32, ge=1, description="channels of every irrep, K")
    l_max: int = Field(2, ge=0, le=8, description="highest degree of tensors and harmonics")
    parity: Literal["natural", "full"] = Field(
        "full",
        description="irreps of the tensors: those of spherical harmonics, or both parities of "
        "every degree",
    )
    radial: RadialBasisConfig = RadialBasisConfig(envelope_exponent=6)
    latent: int = Field(64, ge=1, description="width of the latents, an edge's scalar track")
    two_body_hidden: tuple[Width, ...] = Field(
        (32, 64), description="hidden widths of the two-body perceptron"
    )
    latent_hidden: tuple[Width, ...] = Field(
        (64,), description="hidden widths of each layer's latent perceptron"
    )
    latent_nonlinearity: Literal["silu", "none"] = Field(
        "silu", description="between the matrices of latent perceptrons; none: polynomial energies"
    )
    mixing: float = Field(
        0.5, gt=0, description="weight a of a layer's new latents: (x + a x') / sqrt(1 + a^2)"
    )
    readout_hidden: int = Field(32, ge=1, description="width between the two readout matrices")

    @property
    def mean_energy_form(self) -> Literal["none", "constant", "density"]:
        """``mean_energy`` with ``auto`` resolved."""
        return self.mean_energy_or("density")

    @property
    def keeps_lone_atoms(self) -> bool:
        """Whether an atom without neighbours has exactly its reference energy."""
        return self.mean_energy_form != "constant"

    @property
    def summary(self) -> str:
        """The model's shape in a line."""
        both = " of both parities" if self.parity == "full" else ""
        layers = f"{self.layers} layer{'s' * (self.layers > 1)} on edges"
        return (
            f"{layers}, {self.channels} channels, l_max = {self.l_max}{both}, latents {self.latent}"
        )
