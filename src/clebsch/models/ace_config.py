"""What a linear ACE is, as a strict schema."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from clebsch.elements import not_an_element
from clebsch.models.section import GuardedConfig

_Degree = Annotated[float, Field(ge=0)]


class ACEConfig(GuardedConfig):
    """Linear ACE (Drautz 2019; Dusson et al. 2022): one layer, fixed radial functions, linear."""

    name: Literal["ace"] = "ace"
    cutoff: float = Field(5.0, gt=0, description="Angstrom")
    correlation: int = Field(3, ge=1, le=4, description="highest order nu; body order is nu + 1")
    max_degree: _Degree | tuple[_Degree, ...] = Field(
        (14.0, 8.0, 4.0),
        description="highest total degree, sum of n + l_weight l over the factors of a product: "
        "one number for each order from 1 to correlation, or one for all",
    )
    max_degree_of: dict[str, _Degree | tuple[_Degree, ...]] = Field(
        {}, description="by element: the limits for central atoms of it, in place of max_degree"
    )
    max_n: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        description="for each order, the highest n of its factors; none: as the degree allows",
    )
    l_weight: float = Field(0.5, gt=0, description="weight of l against n in the degree")
    neighbor_degree: dict[str, _Degree] = Field(
        {},
        description="by element: what a factor that sums over neighbours of it adds to the degree; "
        "fewer functions are spent on rare elements",
    )
    envelope_exponent: int = Field(2, ge=1, description="p of the polynomial cut-off")
    committee: int = Field(
        32, ge=0, description="draws from the posterior that a fit keeps, for uncertainties"
    )
    zbl: bool = Field(False, description="add the ZBL nuclear repulsion")

    @model_validator(mode="after")
    def _make_sense(self) -> ACEConfig:
        limits: dict[str, float | tuple[float, ...]] = {"max_degree": self.max_degree}
        limits |= {f"max_degree_of.{element}": d for element, d in self.max_degree_of.items()}
        limits |= {} if self.max_n is None else {"max_n": self.max_n}
        for key, degrees in limits.items():
            if isinstance(degrees, tuple) and len(degrees) != self.correlation:
                raise ValueError(
                    f"{key} has {len(degrees)} numbers for orders 1 to {self.correlation} "
                    "(correlation): give one for each order, or one for all"
                )
        for key, named in (
            ("max_degree_of", self.max_degree_of),
            ("neighbor_degree", self.neighbor_degree),
        ):
            for element in named:
                if problem := not_an_element(element):
                    raise ValueError(f"{key}: {problem}")
        if self.committee == 1:
            raise ValueError("committee: one draw has no spread; take 2 or more, or 0 for none")
        return self

    def max_degrees(self, element: str) -> tuple[float, ...]:
        """The limit for each order, for central atoms of an element."""
        degrees = self.max_degree_of.get(element, self.max_degree)
        return degrees if isinstance(degrees, tuple) else (degrees,) * self.correlation

    @property
    def summary(self) -> str:
        """The model's shape in a line."""
        highest = np.max([self.max_degrees(e) for e in ("", *self.max_degree_of)], axis=0)
        degrees = ", ".join(f"{degree:g}" for degree in highest)
        return f"linear, products of order {self.correlation}, degrees to {degrees}"

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
