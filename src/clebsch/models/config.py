"""What a model is, as a strict schema: settings are checked when they are read.

Message passing is one space of models, with a section for each of its blocks; MACE, NequIP, BOTNet
and PACE are points of it (``clebsch.models.presets``), and so is everything between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Literal, TypeAlias

from pydantic import Field, model_validator

from clebsch.algebra import SCALAR, Irreps, all_irreps, spherical_irreps
from clebsch.errors import ConfigError, did_you_mean
from clebsch.models.ace_config import ACEConfig
from clebsch.models.allegro_config import AllegroConfig
from clebsch.models.section import NetworkConfig, RadialBasisConfig, Section

__all__ = [
    "CONFIGS",
    "ACEConfig",
    "AllegroConfig",
    "MessagePassingConfig",
    "ModelConfig",
    "RadialConfig",
    "Section",
    "architecture",
]


class RadialConfig(RadialBasisConfig):
    """Functions of the distance, and the path weights made of them."""

    weights: Literal["mlp", "element_linear", "pair"] = Field(
        "mlp",
        description="path weights: a network of the distance alone; linear in the basis, with a "
        "matrix for each element of the sender; or networks of distance and both elements, "
        "multiplied with each other (PACE's edge booster)",
    )
    hidden: tuple[int, ...] = Field(
        (64, 64, 64), min_length=1, description="hidden widths of the radial networks"
    )
    transform: Literal["none", "agnesi", "soft"] = Field(
        "none",
        description="what the basis is a function of: the distance, or a transform of it by the "
        "covalent radii of both elements, as mace-torch has them",
    )
    envelope_of: Literal["basis", "path_weights"] = Field(
        "basis",
        description="what the cut-off multiplies: the radial basis, or path weights (if unset, "
        "these where interaction has attention or gates: with `basis` energies would jump there)",
    )

    @model_validator(mode="after")
    def _envelope_has_a_place(self) -> RadialConfig:
        if self.envelope_of == "path_weights" and self.weights != "mlp":
            raise ValueError(
                f"envelope_of=path_weights: only weights=mlp has it, not weights={self.weights}"
            )
        return self


class GatedConfig(Section):
    """A nonlinear sum over neighbours: ``clebsch.nn.gated_basis``."""

    channels: int | None = Field(
        None, ge=1, description="channels of what is sent; as everywhere if null"
    )
    first_channels: int | None = Field(None, ge=1, description="likewise, in the first layer")
    embedding: int = Field(8, ge=1, description="width of the embeddings of both elements")
    density_hidden: int = Field(64, ge=1, description="width of the network of the density")


class InteractionConfig(Section):
    """The sum over neighbours (equation 8)."""

    linear_up: bool = Field(
        True, description="a linear map over channels of the senders' features, before the sum"
    )
    paths: Literal["apart", "summed"] = Field(
        "apart",
        description="what the linear map after the sum mixes: every coupling path by itself, or "
        "the sum of those that give the same irrep (equation 8 as printed)",
    )
    normalization: Literal["neighbors", "sqrt_neighbors", "density", "none"] = Field(
        "neighbors",
        description="divide the sum by the training set's mean number of neighbours, or its root; "
        "or by one plus a learned density of neighbours",
    )
    attention: int | None = Field(
        None,
        ge=1,
        description="null: path weights know the distance alone; or so many numbers made of the "
        "scalars of each of both atoms too, as in attention blocks of mace-torch",
    )
    gated: GatedConfig | None = Field(
        None,
        description="null: linear in the neighbours; or path weights that know both elements, and "
        "gates after a sum divided by a density, as in newer models of mace-torch",
    )

    @model_validator(mode="after")
    def _gated_alone(self) -> InteractionConfig:
        changed = self.model_fields_set - {"gated"}
        if self.gated is not None and changed:
            usual = InteractionConfig()
            odd = [name for name in changed if getattr(self, name) != getattr(usual, name)]
            if odd:
                raise ValueError(f"{odd[0]}: of no use with interaction.gated")
        return self


class ProductConfig(Section):
    """The product basis (equations 10 and 11)."""

    correlation: int = Field(3, ge=1, le=4, description="order of the product basis, nu")
    slots: Literal["shared", "distinct"] = Field(
        "shared",
        description="whether all factors are one map of the sum over neighbours, or each another",
    )
    couplings: Literal["reduced", "unreduced"] = Field(
        "reduced",
        description="couplings of one factor with itself: the linearly independent ones, or the "
        "full table; distinct factors always have the full table",
    )
    weights: Literal["species", "shared"] = Field(
        "species", description="weights of couplings for each element, or one set for all"
    )

    @property
    def n_slots(self) -> int:
        """How many maps of the sum over neighbours the factors are taken from."""
        return 1 if self.slots == "shared" else self.correlation


class UpdateConfig(Section):
    """From messages to new features (equation 12)."""

    first_layer: Literal["residual", "species_linear"] = Field(
        "species_linear",
        description="residual: as every layer; species_linear: a species-dependent map of the sum "
        "over neighbours and no self-connection, so that a lone atom gives its reference",
    )
    later_layers: Literal["residual", "species_linear"] = Field(
        "residual", description="layers after the first, likewise"
    )
    self_connection: Literal["species", "linear", "none"] = Field(
        "species",
        description="what is added of an atom's own features: a linear map for each element, one "
        "for all, or nothing",
    )
    gate: Literal["none", "silu", "tanh"] = Field(
        "none",
        description="nonlinearity of even scalars and of the gates that multiply features of "
        "higher degree; odd scalars always have tanh",
    )
    last_layer: Literal["scalars", "full"] = Field(
        "scalars",
        description="what the last layer makes: what is read, or all irreps, as in the published "
        "parameter counts of NequIP and BOTNet",
    )


class ReadoutConfig(Section):
    """From scalars to energies (equation 13)."""

    layers: Literal["every", "last"] = Field("every", description="layers that are read")
    inner: Literal["linear", "mlp"] = Field("linear", description="readouts before the last")
    last: Literal["mlp", "linear", "two_linear", "biased_mlp"] = Field(
        "mlp",
        description="readout of the last layer; two_linear: two maps, nothing between them; "
        "biased_mlp: three maps, with biases",
    )
    hidden: int = Field(16, ge=1, description="width between the two maps of a readout")


class MessagePassingConfig(NetworkConfig):
    """Equivariant message passing between atoms. Defaults are MACE's but for its size.

    Equations are those of the MACE paper (Batatia et al. 2022).
    """

    name: Literal["message_passing"] = "message_passing"
    layers: int = Field(2, ge=1, description="message-passing layers, T")
    channels: int = Field(128, ge=1, description="channels of every irrep, K")
    l_max: int = Field(3, ge=0, le=8, description="highest degree of the edge harmonics")
    message_l: int = Field(1, ge=0, le=8, description="highest degree of the messages, L")
    parity: Literal["natural", "full"] = Field(
        "natural",
        description="irreps of features: the parity of spherical harmonics, or both parities",
    )
    message_irreps: str | None = Field(
        None,
        description="irreps of the messages, where they are not all of that parity up to "
        "message_l: such as 0e+1o+1e; the first is 0e",
    )
    radial: RadialConfig = RadialConfig()
    interaction: InteractionConfig = InteractionConfig()
    product: ProductConfig | None = Field(
        ProductConfig(), description="null: the messages are the sum over neighbours itself"
    )
    update: UpdateConfig = UpdateConfig()
    readout: ReadoutConfig = ReadoutConfig()

    @model_validator(mode="after")
    def _end_smoothly(self) -> MessagePassingConfig:
        """Unless told otherwise, path weights that know more than the distance end by themselves.

        They do not end with the radial basis.
        """
        radial = self.radial
        knows_more = self.interaction.attention or self.interaction.gated
        if knows_more and radial.weights == "mlp" and "envelope_of" not in radial.model_fields_set:
            radial = self.radial.model_copy(update={"envelope_of": "path_weights"})
            object.__setattr__(self, "radial", radial)  # the section is frozen for all others
        return self

    @model_validator(mode="after")
    def _make_sense(self) -> MessagePassingConfig:
        try:
            irreps = self.messages
        except ConfigError as error:
            raise ValueError(f"message_irreps: {error}") from None
        if not len(irreps) or irreps[0] != SCALAR or len(set(irreps)) != len(irreps):
            raise ValueError("message_irreps: 0e comes first, and none comes twice")
        if self.message_irreps is not None and self.message_l != irreps.l_max:
            raise ValueError(f"message_irreps: their highest l is not message_l={self.message_l}")
        if self.interaction.gated is not None:
            if self.parity != "natural" or self.message_irreps is not None:
                raise ValueError("interaction.gated: only with irreps of natural parity")
            if self.product is None or self.product.n_slots > 1 or self.radial.weights != "mlp":
                raise ValueError(
                    "interaction.gated: only with products of shared slots and radial.weights=mlp"
                )
        if self.interaction.attention is not None and self.radial.weights != "mlp":
            raise ValueError(
                f"interaction.attention: only with radial.weights=mlp, not {self.radial.weights}"
            )
        if self.l_max == 0 and self.message_l > 0:
            raise ValueError("message_l: scalar harmonics (l_max=0) couple to scalars alone")
        if self.mean_energy == "constant" and self.keeps_lone_atoms:
            raise ValueError(
                "mean_energy=constant would shift lone atoms, which the update section (its "
                "first_layer and self_connection) leaves at their reference; use "
                "mean_energy=density or none"
            )
        if self.radial.weights == "pair" and (self.channels % 2 or self.channels < 4):
            raise ValueError(
                f"channels: radial.weights=pair divides them into halves of at least two, which "
                f"{self.channels} cannot be"
            )
        return self

    @property
    def messages(self) -> Irreps:
        """Irreps of the messages, but for those of a last layer that makes scalars alone."""
        if self.message_irreps is not None:
            return Irreps.parse(self.message_irreps)
        of_degree = all_irreps if self.parity == "full" else spherical_irreps
        return of_degree(self.message_l)

    @property
    def summary(self) -> str:
        """The model's shape in a line."""
        parity = "" if self.parity == "natural" else " of both parities"
        parts = [
            f"{self.layers} layer{'s' * (self.layers > 1)}",
            f"{self.channels} channels",
            f"L = {self.message_l}{parity}",
        ]
        if self.product is not None:
            distinct = " of distinct factors" if self.product.slots == "distinct" else ""
            parts.append(f"products of order {self.product.correlation}{distinct}")
        if self.update.gate != "none":
            parts.append("gates")
        return ", ".join(parts)

    @property
    def idle_settings(self) -> list[str]:
        """Settings that are not at their defaults and change nothing beside the others."""
        radial, product, update, readout = self.radial, self.product, self.update, self.readout
        no_inner = self.layers == 1 or readout.layers == "last"
        no_residual = "residual" not in (update.first_layer, update.later_layers)[: self.layers]
        idle = {
            "radial.envelope_exponent": radial.envelope != "polynomial",
            "radial.hidden": radial.weights == "element_linear",
            "update.later_layers": self.layers == 1,
            "update.self_connection": no_residual,
            "readout.inner": no_inner,
            "readout.hidden": readout.last == "linear" and (no_inner or readout.inner == "linear"),
        }
        if product is not None:
            idle["product.slots"] = idle["product.couplings"] = product.correlation == 1
        usual = MessagePassingConfig()
        return [
            name
            for name, does_nothing in idle.items()
            if does_nothing and attrgetter(name)(self) != attrgetter(name)(usual)
        ]

    @property
    def keeps_lone_atoms(self) -> bool:
        """Whether an atom without neighbours has exactly its reference energy."""
        silent = self.interaction.gated is None and (
            self.update.first_layer == "species_linear" or self.update.self_connection == "none"
        )
        shifted = self.mean_energy == "every_atom" or self.readout.last == "biased_mlp"
        return silent and not shifted

    @property
    def mean_energy_form(self) -> Literal["none", "constant", "density"]:
        """``mean_energy`` with ``auto`` resolved."""
        return self.mean_energy_or("density" if self.keeps_lone_atoms else "constant")


#: Architectures by name.
CONFIGS: dict[str, type[MessagePassingConfig | AllegroConfig | ACEConfig]] = {
    "message_passing": MessagePassingConfig,
    "allegro": AllegroConfig,
    "ace": ACEConfig,
}


def architecture(settings: Mapping[str, Any]) -> str:
    """The architecture that settings are for; the first where they do not say.

    Raises:
        ConfigError: no architecture has this name.
    """
    name = str(settings.get("name", next(iter(CONFIGS))))
    if name not in CONFIGS:
        raise ConfigError(
            f"model.name: unknown architecture {name!r}. {did_you_mean(name, CONFIGS)} MACE, "
            "NequIP, BOTNet and PACE are presets of message_passing: clebsch presets lists them."
        )
    return name


#: Any architecture's configuration; ``name`` tells which.
ModelConfig: TypeAlias = MessagePassingConfig | AllegroConfig | ACEConfig
