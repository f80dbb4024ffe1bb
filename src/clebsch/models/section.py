"""What the configurations of all architectures share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of a configuration: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RadialBasisConfig(Section):
    """Functions of the distance and where they end."""

    basis: Literal["bessel", "bernstein"] = Field(
        "bessel",
        description="spherical Bessel functions, or Bernstein polynomials of an exponential of "
        "the distance, whose decay is trained",
    )
    n_basis: int = Field(8, ge=1, le=64, description="functions of the radial basis")
    trainable: bool = Field(False, description="train the frequencies of the Bessel functions")
    envelope: Literal["polynomial", "smooth"] = Field(
        "polynomial",
        description="cut-off with two derivatives that vanish at its end, or with all of them",
    )
    envelope_exponent: int = Field(5, ge=2, description="p of the polynomial cut-off")

    @model_validator(mode="after")
    def _has_frequencies(self) -> RadialBasisConfig:
        if self.trainable and self.basis != "bessel":
            raise ValueError("trainable: only Bessel functions have frequencies to train")
        return self


class NetworkConfig(Section):
    """Settings of every architecture that is trained by gradients."""

    cutoff: float = Field(5.0, gt=0, description="Angstrom")
    mean_energy: Literal["auto", "none", "constant", "density"] = Field(
        "auto",
        description="how the mean interaction energy enters; constant: per atom, lone atoms too "
        "(published); density: times a smooth function of the neighbour density, which leaves lone "
        "atoms alone; auto: density, or constant where the network shifts lone atoms anyway",
    )
    scale: Literal["forces_rms", "energy_std", "none"] = Field(
        "forces_rms",
        description="unit of the network's energies: the training set's root mean square of force "
        "components, the standard deviation of its energies per atom, or 1 eV",
    )
    zbl: bool = Field(False, description="add the ZBL nuclear repulsion")
