"""The space of message-passing models: published counts, body orders, identities, one axis each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from builders import SPECIES, body_order_remainder, ethanol, potential
from clebsch.algebra import Irreps, all_irreps, spherical_harmonics, spherical_irreps
from clebsch.errors import ConfigError
from clebsch.factory import assemble
from clebsch.kernels.plan import convolution_plan
from clebsch.models.message_passing import MessagePassing
from clebsch.models.presets import model_config
from clebsch.nn.gate import Gate, gates
from clebsch.nn.path_weights import PairAmplitudes, RadialNetwork, boost_plan
from clebsch.nn.radial import BernsteinBasis, BesselBasis, SmoothEnvelope


def n_parameters(preset: str, **settings: Any) -> int:
    built = assemble(model_config({"preset": preset, **settings}), ["H", "C", "O"])
    return sum(parameter.numel() for parameter in built.model.parameters())


def test_parameter_counts_are_the_published_ones() -> None:
    """MACE paper, table 3, which counts a last layer of all irreps; models.md, 1.2 and 1.3."""
    assert n_parameters("nequip_acac", update={"last_layer": "full"}) == 3_190_488
    assert n_parameters("botnet_acac", update={"last_layer": "full"}) == 2_756_416
    assert n_parameters("nequip_acac") == 2_408_152
    assert n_parameters("botnet_acac") == 2_089_536


def test_a_full_last_layer_changes_no_energy() -> None:
    """What it makes besides scalars is never read."""
    settings = {"preset": "botnet_acac", "layers": 2, "channels": 3, "message_l": 1}
    small = assemble(model_config(settings), ["H", "O"], dtype=torch.float64)
    full_config = model_config({**settings, "update": {"last_layer": "full"}})
    full = assemble(full_config, ["H", "O"], dtype=torch.float64, seed=1)
    shared = {name: value for name, value in small.state_dict().items() if "layers.1" not in name}
    full.load_state_dict(shared, strict=False)
    theirs = dict(full.model.named_parameters())
    with torch.no_grad():
        for name, parameter in small.model.named_parameters():
            if parameter.shape != theirs[name].shape:  # radial functions of all paths
                kept = full.model.layers[1].atomic_basis.plan.paths_per_out[0]
                theirs[name][..., :kept, :] = parameter
            else:
                theirs[name].copy_(parameter)
    atoms = Atoms("OHH", [[0, 0, 0], [0.9, 0.1, 0], [-0.2, 0.8, 0.4]])
    energies = [float(each(each.graph(atoms), ("energy",)).energy) for each in (small, full)]
    assert energies[0] == pytest.approx(energies[1], rel=1e-12)


# --- body order ---


def botnet(last: str) -> Any:
    settings = {"layers": 3, "channels": 4, "l_max": 1, "message_l": 1}
    config = model_config({"preset": "botnet_acac", **settings, "readout": {"last": last}})
    return assemble(config, ["H", "O"], avg_num_neighbors=1.0, dtype=torch.float64)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_layers_of_botnet_are_polynomials_of_known_body_order(layer: int) -> None:
    """Layer t read linearly: no (t + 2)-body part, and a (t + 1)-body one."""
    built = botnet("linear")

    def energy(atoms: Atoms) -> float:
        """Of the central atom; what layer t says of it depends on t shells of neighbours."""
        return float(built(built.graph(atoms), ("layer_energies",)).layer_energies[0, layer])

    size = abs(energy(Atoms("OH", [[0, 0, 0], [1.1, 0, 0]])))
    assert abs(body_order_remainder(energy, layer + 2)) < 1e-11 * max(size, 1)
    assert abs(body_order_remainder(energy, layer + 1)) > 1e-5 * size


def test_the_published_readout_of_the_last_layer_breaks_the_body_order() -> None:
    built = botnet("mlp")

    def energy(atoms: Atoms) -> float:
        return float(built(built.graph(atoms), ("layer_energies",)).layer_energies[0, 3])

    assert abs(body_order_remainder(energy, 5)) > 1e-7 * abs(energy(ethanol_like()))


def ethanol_like() -> Atoms:
    return Atoms("OHH", [[0, 0, 0], [0.9, 0.1, 0], [-0.2, 0.8, 0.4]])


def test_gates_break_the_body_order_too() -> None:
    settings = {"layers": 1, "channels": 4, "l_max": 1, "message_l": 1}
    parts = []
    for gate in ("none", "silu"):
        config = model_config(
            {
                "preset": "botnet_acac",
                **settings,
                "update": {"gate": gate},
                "readout": {"last": "linear"},
            }
        )
        built = assemble(config, ["H", "O"], avg_num_neighbors=1.0, dtype=torch.float64)

        def energy(atoms: Atoms, built: Any = built) -> float:
            return float(built(built.graph(atoms), ("layer_energies",)).layer_energies[0, 1])

        parts.append(abs(body_order_remainder(energy, 3)))
    assert parts[0] < 1e-11
    assert parts[1] > 1e-7


# --- PACE ---


def test_pace_needs_no_tensor_product_of_edge_harmonics() -> None:
    """The edge booster as published, tensor products of harmonics, and as radial amplitudes."""
    torch.manual_seed(0)
    l_max, n_species, half = 3, 3, 4
    booster = PairAmplitudes(8, (16, 16), l_max, n_species, 2 * half).double()
    built = potential("mace", torch.float64)
    graph = built.graph(ethanol())
    species = graph.species % n_species
    graph = type(graph)(**{**vars(graph), "species": species})
    vectors = torch.randn(graph.n_edges, 3, dtype=torch.float64)
    basis = torch.rand(graph.n_edges, 8, dtype=torch.float64)
    harmonics = spherical_harmonics(vectors, l_max)
    degree = torch.repeat_interleave(
        torch.arange(l_max + 1), torch.tensor([2 * degree + 1 for degree in range(l_max + 1)])
    )
    reduced = booster(basis, graph)[:, degree] * harmonics[:, :, None]  # [E, S, K]

    pair = species[graph.receivers] * n_species + species[graph.senders]
    plain = reduced[:, :, :half]
    plan = boost_plan(l_max)
    assert plan.n_paths == 23
    boosted = torch.zeros_like(plain)
    weights = booster.boost.path_weights(basis)
    weights = weights + booster.boost_of_pair.path_weights(booster.pairs)[pair]
    for index, path in enumerate(plan.paths):
        table = torch.tensor(plan.coefficients(path))
        source = plain[:, plan.node_irreps.slices[path.node]]
        edge = harmonics[:, plan.harmonic_irreps.slices[path.harmonic]]
        product = torch.einsum("abc,ea,ebk->eck", table, edge, source)
        boosted[:, plan.out_irreps.slices[path.out]] += product * weights[:, index, None, :]
    assert boosted.abs().max() > 0.1 * plain.abs().max()
    torch.testing.assert_close(reduced[:, :, half:], boosted, rtol=0, atol=1e-12)


def test_pairs_of_elements_have_their_own_radial_functions() -> None:
    """In both directions: what O sends to H is not what H sends to O."""
    torch.manual_seed(0)
    booster = PairAmplitudes(8, (16,), 1, len(SPECIES), 4).double()
    built = potential("mace", torch.float64)
    graph = built.graph(Atoms("OH", [[0, 0, 0], [1, 0, 0]]))
    there, back = booster(torch.ones(2, 8, dtype=torch.float64), graph)
    assert (there - back).abs().max() > 1e-3


def test_pace_of_an_odd_number_of_channels_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"halves of at least two, which 3 cannot be"):
        model_config({"preset": "pace_acac", "channels": 3})


# --- axes ---


def test_summed_paths_are_the_sum_of_paths_kept_apart() -> None:
    apart, summed = (
        convolution_plan(all_irreps(1), spherical_irreps(2), all_irreps(2), summed=kind)
        for kind in (False, True)
    )
    assert summed.out_dim == summed.out_irreps.dim < apart.out_dim
    copies = dict(zip(apart.out_irreps, apart.copies, strict=True))
    for path, other in zip(apart.paths, summed.paths, strict=True):
        number = copies[apart.out_irreps[path.out]]
        np.testing.assert_allclose(
            summed.coefficients(other) * np.sqrt(number), apart.coefficients(path)
        )


@pytest.mark.parametrize("activation", ["silu", "tanh"])
def test_the_gate_is_equivariant_and_keeps_parity(activation: Any) -> None:
    irreps = Irreps.parse("0e+0o+1o+1e")
    gate = Gate(irreps, activation)
    assert len(gates(irreps)) == 2
    features = torch.randn(5, irreps.dim + 2, 3, dtype=torch.float64)
    out = gate(features)
    inverted = features.clone()
    inverted[:, 1] *= -1  # 0o
    inverted[:, 2:5] *= -1  # 1o
    expected = out.clone()
    expected[:, 1] *= -1
    expected[:, 2:5] *= -1
    torch.testing.assert_close(gate(inverted), expected)
    for part in irreps.slices[2:]:  # vectors keep their direction
        torch.testing.assert_close(
            torch.nn.functional.cosine_similarity(out[:, part], features[:, part], dim=1).abs(),
            torch.ones(5, 3, dtype=torch.float64),
        )


def test_features_of_both_parities_are_made_where_paths_reach_them() -> None:
    built = assemble(model_config({"preset": "nequip_acac", "channels": 2}), ["H"])
    assert isinstance(built.model, MessagePassing)
    reached = [str(layer.irreps) for layer in built.model.layers]
    assert reached[0] == "0e+1o+2e+3o"  # harmonics alone
    assert reached[1] == "0e+1o+1e+2e+2o+3o+3e"  # 0o needs a pseudovector
    assert reached[2] == str(all_irreps(3))
    assert reached[-1] == "0e"


@pytest.mark.parametrize(
    "settings",
    [
        {"update": {"gate": "silu"}},
        {"update": {"self_connection": "none"}},
        {"update": {"self_connection": "linear"}},
        {"interaction": {"paths": "summed"}},
        {"interaction": {"normalization": "none"}},
        {"interaction": {"linear_up": False}},
        {"radial": {"weights": "element_linear"}},
        {"radial": {"weights": "pair"}},
        {"radial": {"trainable": True}},
        {"radial": {"basis": "bernstein"}},
        {"radial": {"envelope": "smooth"}},
        {"parity": "full"},
        {"product": {"slots": "distinct"}},
        {"product": None},
        {"readout": {"layers": "last"}},
        {"readout": {"inner": "mlp"}},
        {"readout": {"last": "two_linear"}},
    ],
    ids=str,
)
def test_every_axis_makes_another_model(settings: dict[str, Any]) -> None:
    """One setting away from MACE: it builds, its forces are finite, its energy is another."""
    base = {"preset": "mace_tiny", "channels": 4, "layers": 3}
    one, other = (
        assemble(model_config(given), SPECIES, dtype=torch.float64)
        for given in (base, {**base, **settings})
    )
    predictions = [each(each.graph(ethanol())) for each in (one, other)]
    assert torch.isfinite(predictions[1].forces).all()
    assert predictions[1].forces.abs().max() > 0
    assert abs(float(predictions[0].energy - predictions[1].energy)) > 1e-8


def test_lone_atoms_are_kept_without_a_self_connection_too() -> None:
    config = model_config({"preset": "pace_small", "update": {"self_connection": "none"}})
    assert config.keeps_lone_atoms
    built = assemble(config, ["O"], references=[-3.0], dtype=torch.float64)
    assert float(built(built.graph(Atoms("O")), ("energy",)).energy) == -3.0


# --- radial functions ---


def lengths(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_the_smooth_envelope_ends_with_all_derivatives_zero() -> None:
    envelope = SmoothEnvelope(4.0)
    r = lengths(1e-6, 2.0, 3.9999, 4.0, 5.0)
    value = envelope(r)
    torch.testing.assert_close(value[0].item(), 1.0)
    assert value[1].item() == pytest.approx(np.exp(-1 / 3))  # r^2 / (r_c^2 - r^2) = 1 / 3
    order = value
    for _ in range(3):
        assert order[2:].abs().max() < 1e-30
        (order,) = torch.autograd.grad(order.sum(), r, create_graph=True)
    assert torch.isfinite(order).all()


def test_bernstein_polynomials_add_up_to_one() -> None:
    basis = BernsteinBasis(7, torch.nn.Identity()).double()
    basis.envelope.forward = torch.ones_like  # type: ignore[method-assign]
    values = basis(lengths(0.2, 1.0, 3.0))
    torch.testing.assert_close(values.sum(1), torch.ones(3, dtype=torch.float64))
    x = np.exp(-0.5 * 1.0)
    assert values[1, 2].item() == pytest.approx(15 * x**2 * (1 - x) ** 4, rel=1e-6)


def test_trainable_frequencies_start_as_the_fixed_ones() -> None:
    envelope = SmoothEnvelope(3.0)
    fixed, trained = (BesselBasis(3.0, 5, envelope, kind).double() for kind in (False, True))
    r = lengths(0.5, 1.7, 2.9)
    torch.testing.assert_close(fixed(r), trained(r), rtol=1e-6, atol=1e-6)  # pi in float32
    assert [p.numel() for p in trained.parameters()] == [5]


def test_only_networks_of_the_distance_are_tabulated() -> None:
    for preset in ("botnet_small", "pace_small"):
        built = assemble(model_config({"preset": preset, "channels": 4, "l_max": 1}), ["H"])
        with pytest.raises(ConfigError, match=r"radial\.weights=.* cannot be tabulated"):
            built.tabulated()
    built = assemble(model_config({"preset": "nequip_small", "channels": 4}), ["H"])
    radial = built.tabulated().model.layers[0].atomic_basis.radial
    assert not isinstance(radial, RadialNetwork)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"correlation": 3}, r"unknown key 'model\.correlation'.*'product\.correlation'"),
        ({"product": {"gate": "silu"}}, r"unknown key 'model\.product\.gate'.*'update\.gate'"),
        ({"update": {"gate": "relu"}}, r"model\.update\.gate: .*'silu'"),
        (
            {"radial": {"trainable": True, "basis": "bernstein"}},
            r"model\.radial: .*trainable: only Bessel",
        ),
    ],
)
def test_a_setting_in_the_wrong_place_is_led_to_the_right_one(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        model_config(settings)


@pytest.mark.parametrize(
    ("given", "idle", "value"),
    [
        ({"radial": {"envelope": "smooth"}}, "radial.envelope_exponent", 3),
        ({"radial": {"weights": "element_linear"}}, "radial.hidden", [5]),
        ({"layers": 1}, "update.later_layers", "species_linear"),
        ({"layers": 1}, "update.self_connection", "linear"),
        ({"update": {"later_layers": "species_linear"}}, "update.self_connection", "none"),
        ({"layers": 1}, "readout.inner", "mlp"),
        ({"readout": {"layers": "last"}}, "readout.inner", "mlp"),
        ({"readout": {"last": "linear"}}, "readout.hidden", 7),
        ({"product": {"correlation": 1}}, "product.slots", "distinct"),
        ({"product": {"correlation": 1}}, "product.couplings", "unreduced"),
    ],
    ids=str,
)
def test_settings_that_do_nothing_are_told(given: dict[str, Any], idle: str, value: Any) -> None:
    """They change no energy; where something else gives them a meaning they are not idle."""
    section, _, name = idle.partition(".")
    setting = {**given, section: {**given.get(section, {}), name: value}}
    small = {"channels": 4, "l_max": 1}
    alone = {section: {name: value}}
    configs = [model_config({**small, **settings}) for settings in (setting, given, alone, {})]
    assert [config.idle_settings for config in configs] == [[idle], [], [], []]
    built = [assemble(config, ["H", "C", "O"], dtype=torch.float64) for config in configs]
    energies = [p(p.graph(ethanol()), ("energy",)).energy for p in built]
    assert torch.equal(energies[0], energies[1])
    assert not torch.equal(energies[2], energies[3])
