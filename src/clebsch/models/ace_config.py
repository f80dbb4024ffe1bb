"""What a linear ACE is, as a strict schema."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from clebsch.models.section import Section

_Degree = Annotated[float, Field(ge=0)]


class ACEConfig(Section):
    """Linear ACE (Drautz 2019; Dusson et al. 2022): one layer, fixed radial functions, linear."""

    name: Literal["ace"] = "ace"
    cutoff: float = Field(5.0, gt=0, description="Angstrom")
    correlation: int = Field(3, ge=1, le=4, description="highest order nu; body order is nu + 1")
    max_degree: _Degree | tuple[_Degree, ...] = Field(
        (14.0, 9.0, 6.0),
        description="highest total degree, sum of n + l_weight l over the factors of a product: "
        "one number for each order from 1 to correlation, or one for all",
    )
    l_weight: float = Field(1.0, gt=0, description="weight of l against n in the degree")
    envelope_exponent: int = Field(2, ge=1, description="p of the polynomial cut-off")
    committee: int = Field(
        32, ge=0, description="draws from the posterior that a fit keeps, for uncertainties"
    )
    zbl: bool = Field(False, description="add the ZBL nuclear repulsion")

    @model_validator(mode="after")
    def _make_sense(self) -> ACEConfig:
        if isinstance(self.max_degree, tuple) and len(self.max_degree) != self.correlation:
            raise ValueError(
                f"max_degree has {len(self.max_degree)} numbers for orders 1 to {self.correlation} "
                "(correlation): give one for each order, or one for all"
            )
        if self.committee == 1:
            raise ValueError("committee: one draw has no spread; take 2 or more, or 0 for none")
        return self

    @property
    def max_degrees(self) -> tuple[float, ...]:
        """``max_degree`` for each order."""
        if isinstance(self.max_degree, tuple):
            return self.max_degree
        return (self.max_degree,) * self.correlation

    @property
    def summary(self) -> str:
        """The model's shape in a line."""
        degrees = ", ".join(f"{degree:g}" for degree in self.max_degrees)
        return f"linear, products of order {self.correlation}, degrees {degrees}"

    @property
    def keeps_lone_atoms(self) -> bool:
        """An atom without neighbours has exactly its reference energy."""
        return True

    @property
    def scale(self) -> Literal["forces_rms"]:
        """Unit of the coefficients, for their regularisation."""
        return "forces_rms"

    @property
    def mean_energy_form(self) -> Literal["none"]:
        """A lone atom has its reference energy."""
        return "none"

    @property
    def n_radial(self) -> int:
        """Number of radial functions that the degrees allow."""
        return math.floor(max(self.max_degrees)) + 1
