"""What a model file holds, told without data and without asking the model anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clebsch.committee import n_draws
from clebsch.conventions import OUTPUTS
from clebsch.modelfile import UNITS, model_heads, read_potential
from clebsch.potential import Potential


@dataclass(frozen=True, eq=False)
class ModelInfo:
    """A model file as it was read.

    Attributes:
        path: the file.
        n_bytes: its size.
        heads: names of the heads in it; none where the only one has no name.
        head: the head that is told of; None where it has no name, or where none of several was
            chosen.
        potential: not verified; where no head was chosen, the first one's, of which elements and
            architecture are those of all.
    """

    path: Path
    n_bytes: int
    heads: tuple[str, ...]
    head: str | None
    potential: Potential

    @property
    def is_of_all_heads(self) -> bool:
        """Whether there are several heads and none was chosen."""
        return len(self.heads) > 1 and self.head is None

    @property
    def references(self) -> dict[str, float] | None:
        """The energy of each element's isolated atom, eV; None if no head was chosen."""
        if self.is_of_all_heads:
            return None
        values = self.potential.references.tolist()
        return dict(zip(self.potential.species, values, strict=True))

    @property
    def provenance(self) -> dict[str, Any] | None:
        """What the model was trained on and how, as the file says; None if no head was chosen."""
        return None if self.is_of_all_heads else self.potential.provenance

    def to_json(self) -> dict[str, Any]:
        """Everything, for JSON: eV, Angstrom."""
        potential = self.potential
        return {
            "file": str(self.path),
            "bytes": self.n_bytes,
            "heads": list(self.heads),
            "head": self.head,
            "architecture": potential.config.name,
            "summary": potential.config.summary,
            "config": potential.config.model_dump(mode="json"),
            "cutoff": potential.cutoff,
            "n_parameters": potential.n_parameters,
            "dtype": str(potential.dtype).removeprefix("torch."),
            "elements": list(potential.species),
            "references": self.references,
            "outputs": list(OUTPUTS),
            "uncertainty_draws": n_draws(potential),
            "units": UNITS,
            "provenance": self.provenance,
        }


def read_info(
    path: Path | str, *, head: str | None = None, properties: Mapping[str, float] | None = None
) -> ModelInfo:
    """Read a model file, of Clebsch or of mace-torch, without computing with what it holds.

    Args:
        path: the file.
        head: of a model with several, which; what they have in common is told if None.
        properties: of a mace-torch model, values of the properties that it embeds.

    Raises:
        ModelFileError: the file is missing, damaged, of a newer format, or holds something else.
        ConfigError: the choices do not fit the model.
    """
    path = Path(path)
    heads = tuple(model_heads(path))
    first = heads[0] if heads else None
    potential, _ = read_potential(path, head=first if head is None else head, properties=properties)
    chosen = first if len(heads) == 1 else head
    return ModelInfo(path, path.stat().st_size, heads, chosen, potential)
