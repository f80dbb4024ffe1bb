"""What the configurations of all architectures share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of a configuration: unknown keys are errors, numbers finite, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation allows: that of ``ProductConfig | None``, for one."""
    kinds = (annotation, *get_args(annotation))
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def all_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The full names of a section's settings, of those in sections within it too."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for inner in sections_in(field.annotation):
            yield from all_keys(inner, f"{prefix}{name}.")


def message_of(problem: Any) -> str:
    """What pydantic says of a problem, to stand behind the name of a key."""
    text: str = problem["msg"].removeprefix("Value error, ")
    return text[:1].lower() + text[1:] if text.startswith("Input") else text


class RadialBasisConfig(Section):
    """Functions of the distance and where they end."""

    basis: Literal["bessel", "bernstein", "gaussian", "chebyshev"] = Field(
        "bessel",
        description="spherical Bessel functions; Bernstein polynomials of an exponential of the "
        "distance, whose decay is trained; Gaussians; or Chebyshev polynomials, whose argument is "
        "not scaled",
    )
    n_basis: int = Field(8, ge=1, le=64, description="functions of the radial basis")
    trainable: bool = Field(False, description="train the frequencies of the Bessel functions")
    envelope: Literal["polynomial", "smooth"] = Field(
        "polynomial",
        description="cut-off with two derivatives that vanish at its end, or with all of them",
    )
    envelope_exponent: int = Field(5, ge=1, description="p of the polynomial cut-off")

    @model_validator(mode="after")
    def _has_frequencies(self) -> RadialBasisConfig:
        if self.trainable and self.basis != "bessel":
            raise ValueError("trainable: only Bessel functions have frequencies to train")
        if self.basis == "gaussian" and self.n_basis < 2:
            raise ValueError("n_basis: Gaussians are two at least, at 0 and at the cut-off")
        return self


class GuardedConfig(Section):
    """What keeps any potential from wild answers where training says nothing."""

    contact_repulsion: bool = Field(
        True,
        description="between atoms that are closer than any in training, hold the network where it "
        "was trained and add the ZBL nuclear repulsion",
    )
    energy_floor: bool = Field(
        True,
        description="let no atom be bound more than 1 eV more strongly than any of its element in "
        "training",
    )


class NetworkConfig(GuardedConfig):
    """Settings of every architecture that is trained by gradients."""

    cutoff: float = Field(5.0, gt=0, description="Angstrom")
    mean_energy: Literal["auto", "none", "constant", "density", "every_atom"] = Field(
        "auto",
        description="how the mean interaction energy enters; constant: per atom, lone atoms too "
        "(published); density: times a smooth function of the neighbour density, which leaves lone "
        "atoms alone; auto: density, or constant where the network shifts lone atoms anyway; "
        "every_atom: constant, even where the network would leave lone atoms at their reference "
        "(models of mace-torch)",
    )
    scale: Literal["forces_rms", "energy_std", "none"] = Field(
        "forces_rms",
        description="unit of the network's energies: the training set's root mean square of force "
        "components, the standard deviation of its energies per atom, or 1 eV",
    )
    zbl: Literal[False, True, "mace_torch"] = Field(
        False,
        description="add the ZBL nuclear repulsion; mace_torch: with the constants, and times the "
        "scale, that a model of mace-torch has it with",
    )

    def mean_energy_or(
        self, auto: Literal["constant", "density"]
    ) -> Literal["none", "constant", "density"]:
        """The form of the mean energy, with what ``auto`` means for the architecture."""
        if self.mean_energy == "auto":
            return auto
        return "constant" if self.mean_energy == "every_atom" else self.mean_energy
