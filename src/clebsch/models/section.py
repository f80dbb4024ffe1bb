"""The base of every section of a configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a configuration: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
