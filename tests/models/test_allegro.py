"""Allegro: strictly local, of the body order that its equations give, plain about its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms

import clebsch
from builders import body_order_remainder, ethanol, potential
from clebsch.algebra import Irreps
from clebsch.errors import ClebschError, ConfigError
from clebsch.factory import assemble
from clebsch.models.allegro import Allegro, edge_irreps
from clebsch.models.config import AllegroConfig
from clebsch.models.presets import model_config, preset_config
from clebsch.potential import Potential
from clebsch.training.config import TrainingConfig
from clebsch.training.optimizer import make_optimizer

TINY = {
    "name": "allegro",
    "channels": 4,
    "l_max": 1,
    "latent": 6,
    "two_body_hidden": [6],
    "latent_hidden": [6],
    "readout_hidden": 4,
}


def built(**settings: object) -> Potential:
    config = model_config({**TINY, **settings})
    return assemble(config, ["H", "O"], avg_num_neighbors=2.0, dtype=torch.float64)


def site_energies(tested: Potential, atoms: Atoms) -> np.ndarray:
    prediction = tested(tested.graph(atoms), ("site_energies",))
    assert prediction.site_energies is not None
    return prediction.site_energies.numpy()


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_atoms_beyond_the_cutoff_change_nothing_whatever_the_number_of_layers(layers: int) -> None:
    """Along a chain the neighbours' neighbours move, are replaced and appear."""
    tested = built(layers=layers, cutoff=3.0)
    chain = Atoms("HOHOHOH", [[1.2 * i, 0.3 * (i % 2), 0.1 * i * i % 0.7] for i in range(7)])
    energies = site_energies(tested, chain)
    far = [atom for atom in range(7) if chain.get_distance(0, atom) > 3.0]
    assert len(far) == 4
    changed = chain.copy()
    changed.positions[far] += [0.2, -0.1, 0.3]
    changed.symbols[far[0]] = "H"
    changed += Atoms("O", [[9.5, 0, 0]])
    assert min(np.linalg.norm(changed.positions[far] - changed.positions[0], axis=1)) > 3.0
    found = site_energies(tested, changed)
    assert found[0] == energies[0]
    assert abs(found[1] - energies[1]) > 1e-6  # it sees some of them


def remainder(tested: Potential, n_bodies: int) -> float:
    """The n-body part of the central atom's energy."""
    return body_order_remainder(lambda atoms: float(site_energies(tested, atoms)[0]), n_bodies)


@pytest.mark.parametrize(("layers", "order"), [(1, 3), (2, 5)])
def test_linear_latents_have_body_order_one_plus_two_to_the_layers(layers: int, order: int) -> None:
    """Each layer doubles the neighbours of an edge's latents, as environments are made of them."""
    linear = built(layers=layers, latent_nonlinearity="none", cutoff=4.0)
    assert abs(remainder(linear, order + 1)) < 1e-10
    assert abs(remainder(linear, order)) > 1e-8
    assert abs(remainder(built(layers=layers, cutoff=4.0), order + 1)) > 1e-8


def test_tensors_have_the_irreps_that_a_scalar_can_still_come_from() -> None:
    natural, both = Irreps.parse("0e+1o+2e"), Irreps.parse("0e+1o+1e+2o+2e")
    assert edge_irreps(2, "full", 1) == [natural]
    assert edge_irreps(2, "full", 2) == [natural, natural]
    assert edge_irreps(2, "full", 3) == [natural, both, natural]
    assert edge_irreps(2, "natural", 3) == [natural, natural, natural]
    everything = set(Irreps.parse("0e+0o+1o+1e+2o+2e"))
    assert set(edge_irreps(2, "full", 5)[2]) == everything
    assert edge_irreps(0, "full", 3) == [Irreps.parse("0e")] * 3


def test_both_parities_distinguish_what_natural_ones_share_and_no_mirror_images() -> None:
    """The parities differ in what the model computes; an energy has no handedness."""
    atoms = ethanol()
    mirrored = atoms.copy()
    mirrored.positions *= [1, 1, -1]
    energies = []
    for parity in ("full", "natural"):
        config = model_config({**TINY, "parity": parity, "layers": 3, "l_max": 2})
        tested = assemble(config, ["H", "C", "O"], dtype=torch.float64)
        energies += [site_energies(tested, image) for image in (atoms, mirrored)]
    np.testing.assert_allclose(energies[0], energies[1], rtol=1e-10)
    assert np.abs(energies[0] - energies[2]).max() > 1e-3


def test_a_constant_mean_energy_shifts_lone_atoms_and_nothing_else_does() -> None:
    for model, reference in (
        ("allegro", -2042.0),
        ("allegro three layers, natural, linear latents", -2044.0),
    ):
        tested = potential(model)
        assert float(tested(tested.graph(Atoms("O")), ("energy",)).energy) == reference


@pytest.mark.parametrize("settings", [{"l_max": 0}, {"layers": 1}, {"two_body_hidden": []}])
def test_small_corners_of_the_configuration_run_on_both_backends(
    settings: dict[str, object],
) -> None:
    tested = built(**settings)
    water = Atoms("OHH", [[0, 0, 0], [0.9, 0.1, 0], [-0.2, 0.9, 0.2]])
    expected = tested(tested.graph(water)).forces
    found = tested.use_backend("llvm")(tested.graph(water)).forces
    assert expected is not None
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected)


def test_every_weight_of_a_pair_matters() -> None:
    """Elements of centre and neighbour, in that order, and the learned scale of each pair."""
    tested = built()
    pair = Atoms("OH", [[0, 0, 0], [0, 0, 1.0]])
    first, second = site_energies(tested, pair)
    assert first != pytest.approx(second, rel=1e-3)
    assert isinstance(tested.model, Allegro)
    with torch.no_grad():
        tested.model.pair_scale[1, 0] *= 2  # centre O, neighbour H
    np.testing.assert_allclose(site_energies(tested, pair), [2 * first, second], rtol=1e-12)


def test_latents_and_tensors_start_with_unit_scale() -> None:
    """At initialisation no track drowns: energies of atoms are of order one."""
    spread = []
    for seed in range(8):
        config = preset_config("allegro_small")
        tested = assemble(config, ["H", "C", "O"], avg_num_neighbors=7.0, seed=seed)
        spread.append(site_energies(tested, ethanol()))
    assert 0.1 < float(np.std(spread)) < 3.0


def test_it_cannot_be_tabulated_and_says_so() -> None:
    with pytest.raises(ClebschError, match="cannot be tabulated"):
        potential("allegro").tabulated()


def test_muon_has_maps_of_latents_and_tensors_and_not_the_two_body_perceptron() -> None:
    tested = potential("allegro")
    named = {id(p): name for name, p in tested.model.named_parameters()}
    maps = {named[id(p)] for p in tested.model.linear_maps()}
    assert {name.split(".")[0] for name in maps} == {"layers", "weights"}
    assert not any(name.startswith(("two_body", "readout")) for name in maps)
    assert {"layers.0.perceptron.weights.0", "layers.0.weights.weight"} <= maps
    assert {name for name in maps if "tensor_maps" in name}
    assert not list(tested.model.decayed_parameters())
    settings = {"schedule": "constant", "batch_size": 1, "max_epochs": 1, "optimizer": "muon"}
    make_optimizer(tested, TrainingConfig(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["allegro_3bpa", "allegro_rmd17", "allegro_small"])
def test_presets_are_whole_configurations(name: str) -> None:
    config = preset_config(name)
    assert isinstance(config, AllegroConfig)
    assert model_config(config.model_dump(mode="json")) == config
    assert model_config({"preset": name, "channels": 8}) == config.model_copy(
        update={"channels": 8}
    )


def test_the_published_form_has_the_published_widths() -> None:
    tested = assemble(preset_config("allegro_3bpa"), ["H", "C", "N", "O"])
    shapes = {name: tuple(p.shape) for name, p in tested.model.named_parameters()}
    two_body = [shapes[f"two_body.perceptron.weights.{i}"] for i in range(4)]
    assert two_body == [(16, 128), (128, 256), (256, 512), (512, 1024)]
    for layer in range(3):
        latent = [shapes[f"layers.{layer}.perceptron.weights.{i}"] for i in range(3)]
        assert latent == [(1024 + 4 * 128, 1024), (1024, 1024), (1024, 1024)]
        assert shapes[f"layers.{layer}.weights.weight"] == (1024, 4 * 128)
    assert [shapes[f"readout.weights.{i}"] for i in range(2)] == [(1024, 128), (128, 1)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "alegro"}, r"model\.name: unknown architecture 'alegro'.*'allegro'"),
        ({"name": "allegro", "latnt": 3}, r"unknown key 'model\.latnt'.*Did you mean 'latent'"),
        ({"name": "allegro", "radial": {"hidden": [3]}}, r"unknown key 'model\.radial\.hidden'"),
        ({"name": "allegro", "latent_hidden": [0]}, r"model\.latent_hidden\.0: .*greater than"),
        ({"name": "allegro", "parity": "both"}, r"model\.parity: .*'natural' or 'full'"),
        ({"latent": 3}, r"unknown key 'model\.latent'"),  # without a name it is MACE
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_config(settings)


def test_a_model_file_holds_an_allegro(tmp_path) -> None:  # type: ignore[no-untyped-def]
    tested = potential("allegro")
    tested.save(tmp_path / "model.safetensors")
    loaded = clebsch.load(tmp_path / "model.safetensors")
    assert loaded.config == tested.config
    np.testing.assert_array_equal(
        site_energies(loaded, ethanol()), site_energies(tested, ethanol())
    )
