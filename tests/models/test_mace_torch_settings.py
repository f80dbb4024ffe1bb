"""Settings that models of mace-torch brought: what they mean, and what cannot be combined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ase import Atoms

import clebsch
from builders import SPECIES, ethanol, stretched_energies
from clebsch.doctor import examine
from clebsch.errors import ConfigError
from clebsch.models.config import InteractionConfig, MessagePassingConfig, RadialConfig
from clebsch.models.presets import model_config

SMALL: dict[str, Any] = {
    "channels": 3,
    "l_max": 1,
    "message_l": 1,
    "cutoff": 3.0,
    "radial": {"n_basis": 4, "hidden": (8,)},
    "product": {"correlation": 2},
}


def built(**settings: Any) -> clebsch.Potential:
    config = MessagePassingConfig(**{**SMALL, **settings})
    return clebsch.build(config, SPECIES, dtype=torch.float64).use_backend("reference")


def radial(**settings: Any) -> dict[str, Any]:
    return {**SMALL["radial"], **settings}


@pytest.mark.parametrize("envelope_of", ["basis", "path_weights"])
@pytest.mark.parametrize("interaction", [{"gated": {}}, {"attention": 2}], ids=str)
def test_neighbours_beyond_the_cutoff_count_for_nothing(
    interaction: dict[str, Any], envelope_of: str
):
    """Though path weights do not end there by themselves: lists with a skin hold such edges."""
    potential = built(interaction=interaction, radial=radial(envelope_of=envelope_of))
    atoms = Atoms("OH", [[0, 0, 0], [2.9, 0, 0]])
    energies = stretched_energies(potential, atoms, (1.0, 3.1 / 2.9, 2.0))
    apart = potential.graph(Atoms("OH", [[0, 0, 0], [9, 0, 0]]))
    assert energies[0] != energies[1]
    assert energies[1] == energies[2] == float(potential(apart, "energy").energy)


@pytest.mark.parametrize("first_layer", ["species_linear", "residual"])
@pytest.mark.parametrize("interaction", [{"gated": {}}, {"attention": 2}], ids=str)
def test_unless_told_otherwise_nothing_jumps_at_the_cutoff(
    interaction: dict[str, Any], first_layer: str
):
    settings: dict[str, Any] = {"interaction": interaction, "update": {"first_layer": first_layer}}
    assert MessagePassingConfig(**{**SMALL, **settings}).radial.envelope_of == "path_weights"
    atoms = Atoms("OH", [[0, 0, 0], [3, 0, 0]])
    inside, outside = stretched_energies(built(**settings), atoms, (1 - 1e-6, 1 + 1e-6))
    assert abs(inside - outside) < 1e-9


def test_sections_that_are_made_already_end_smoothly_too():
    made = MessagePassingConfig(
        radial=RadialConfig(n_basis=4), interaction=InteractionConfig(attention=2)
    )
    assert made.radial.envelope_of == "path_weights"
    assert made.radial.n_basis == 4
    changed = model_config({"preset": "mace_tiny", "interaction": {"attention": 2}})
    assert changed.radial.envelope_of == "path_weights"  # type: ignore[union-attr]
    told = {"radial": RadialConfig(envelope_of="basis"), "interaction": {"attention": 2}}
    assert MessagePassingConfig(**told).radial.envelope_of == "basis"


@pytest.mark.parametrize("self_connection", ["species", "none"])
@pytest.mark.parametrize("first_layer", ["species_linear", "residual"])
@pytest.mark.parametrize("interaction", [{}, {"gated": {}}, {"attention": 2}], ids=str)
def test_lone_atoms_have_their_reference_where_the_configuration_says_so(
    interaction: dict[str, Any], first_layer: str, self_connection: str
):
    update = {"first_layer": first_layer, "self_connection": self_connection}
    potential = built(interaction=interaction, update=update, mean_energy="none")
    lone = potential(potential.graph(Atoms("O", [[0, 0, 0]])), "energy").energy
    reference = potential.references[potential.species.index("O")]
    assert (float(lone) == float(reference)) is potential.config.keeps_lone_atoms


def test_the_doctor_says_that_attention_jumps_at_a_cutoff_of_the_basis():
    """As in mace-torch; a cut-off of path weights is in the contract battery."""
    pair = {"pair": Atoms("OH", [[0, 0, 0], [1.2, 0, 0]])}
    jumps = built(interaction={"attention": 2}, radial=radial(envelope_of="basis"))
    found = examine(jumps, pair, dtypes=[torch.float64], seconds=0)
    assert {check.name for check in found.failures} == {"smooth at the cut-off"}


def test_tables_have_the_envelope_on_path_weights():
    potential = built(radial=radial(envelope_of="path_weights"))
    graph = potential.graph(ethanol())
    exact, tabulated = (
        p(graph, "forces").forces for p in (potential, potential.tabulated(spacing=0.005))
    )
    # the slopes' error of cubic splines is of third order in the spacing
    assert (exact - tabulated).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radial": radial(transform="soft")}, "radial.transform depend on elements"),
        ({"interaction": {"gated": {}}}, "interaction.gated depend on elements"),
        ({"interaction": {"attention": 2}}, "interaction.attention depend on elements"),
    ],
)
def test_what_depends_on_elements_is_not_tabulated(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        built(**settings).tabulated()


def test_transforms_tell_elements_apart_at_one_distance():
    for transform in ("agnesi", "soft"):
        potential = built(radial=radial(transform=transform))
        assert potential.model.transform is not None
        pairs = [Atoms(pair, [[0, 0, 0], [1.5, 0, 0]]) for pair in ("HH", "OO", "AuAu")]
        graphs = [potential.graph(pair) for pair in pairs]
        lengths = torch.tensor([1.5, 1.5], dtype=torch.float64)
        values = [float(potential.model.transform(lengths, graph)[0]) for graph in graphs]
        assert len(set(values)) == 3


def test_shared_product_weights_are_one_set():
    weights = built(product={"correlation": 2, "weights": "shared"}).model.layers[0].product.weights
    assert len(weights) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"message_irreps": "1o+0e"}, "0e comes first"),
        ({"message_irreps": "0e+1o+1o"}, "none comes twice"),
        ({"message_irreps": "0e+1x"}, "message_irreps: '1x' is not an irrep"),
        ({"message_irreps": "0e+2e"}, "highest l is not message_l=1"),
        ({"radial": {"envelope_of": "path_weights", "weights": "pair"}}, "only weights=mlp"),
        ({"radial": {"basis": "gaussian", "n_basis": 1}}, "Gaussians are two at least"),
        ({"interaction": {"gated": {}, "paths": "summed"}}, "paths: of no use"),
        ({"interaction": {"gated": {}, "attention": 2}}, "attention: of no use"),
        ({"interaction": {"attention": 2}, "radial": {"weights": "pair"}}, "weights=mlp, not pair"),
        ({"interaction": {"gated": {}}, "parity": "full"}, "natural parity"),
        ({"interaction": {"gated": {}}, "product": None}, "products of shared slots"),
        ({"zbl": "mace"}, "model.zbl"),
    ],
)
def test_combinations_without_a_meaning_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        model_config({**SMALL, "name": "message_passing", **settings})
