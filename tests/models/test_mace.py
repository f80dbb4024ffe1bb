"""The published model is the published model, and its parts mean what the paper says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ase import Atoms
from ase.build import molecule

import clebsch
from builders import body_order_remainder, ethanol, potential
from clebsch.errors import ConfigError
from clebsch.factory import assemble
from clebsch.models.config import MessagePassingConfig
from clebsch.models.presets import PRESETS, model_config, preset_config
from clebsch.nn.energy import EnergyHead, ZBLRepulsion
from clebsch.nn.radial import BesselBasis, PolynomialEnvelope


def n_parameters(**settings: object) -> int:
    built = clebsch.build({"preset": "mace_acac", **settings}, ["H", "C", "O"])
    return sum(parameter.numel() for parameter in built.model.parameters())


def test_parameter_counts_are_the_published_ones() -> None:
    """256 channels, L = 2, three elements: MACE paper, table 3, and models.md 1.1."""
    assert n_parameters(product={"couplings": "unreduced"}) == 2_803_984
    assert n_parameters() == 2_707_984
    assert (
        n_parameters(product={"couplings": "unreduced"}, update={"first_layer": "species_linear"})
        == 3_393_808
    )


def test_reduced_couplings_span_what_the_unreduced_ones_do() -> None:
    """Any unreduced model's product can be written with reduced weights, to rounding."""
    from clebsch.algebra import spherical_irreps
    from clebsch.kernels import reference
    from clebsch.kernels.plan import contraction_plan

    irreps, targets = spherical_irreps(2), spherical_irreps(1)
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(400, 9, 1, dtype=torch.float64, generator=generator)
    species = torch.zeros(400, dtype=torch.int64)

    def columns(reduced: bool) -> torch.Tensor:
        plan = contraction_plan(irreps, targets, 3, reduced)
        rows = []
        for eta in range(plan.n_couplings):
            weights = torch.zeros(1, plan.n_couplings, 1, dtype=torch.float64)
            weights[0, eta] = 1
            rows.append(reference.contract(plan, basis, weights, species).flatten())
        return torch.stack(rows, dim=1)

    small, large = columns(True), columns(False)
    assert small.shape[1] < large.shape[1]
    assert torch.linalg.matrix_rank(small) == small.shape[1]
    assert torch.linalg.matrix_rank(torch.cat([small, large], dim=1)) == small.shape[1]


@pytest.mark.parametrize("correlation", [1, 2, 3])
def test_the_first_layer_has_body_order_nu_plus_one(correlation: int) -> None:
    """Its energy, read linearly, has no (nu + 2)-body part, and has a (nu + 1)-body one."""
    config = MessagePassingConfig(
        channels=4,
        l_max=1,
        message_l=0,
        product={"correlation": correlation},
        radial={"hidden": (8,)},
    )
    built = assemble(config, ["H", "O"], avg_num_neighbors=1.0, dtype=torch.float64)

    def central_energy(atoms: Atoms) -> float:
        return float(built(built.graph(atoms), ("layer_energies",)).layer_energies[0, 1])

    assert abs(body_order_remainder(central_energy, correlation + 2)) < 1e-10
    assert abs(body_order_remainder(central_energy, correlation + 1)) > 1e-6


def test_the_published_form_shifts_a_lone_atom_and_the_exact_form_does_not() -> None:
    published, exact = potential("mace published form"), potential("mace")
    lone = Atoms("O")
    for tested, is_reference in ((published, False), (exact, True)):
        energy = float(tested(tested.graph(lone), ("energy",)).energy)
        assert (energy == -2042.0) is is_reference


def test_the_mean_energy_is_whole_inside_a_molecule_and_gone_for_a_lone_atom() -> None:
    head = EnergyHead([0.0], 1.0, -5.0, "density", 5.0)
    built = clebsch.build(MessagePassingConfig(channels=2, l_max=1), ["H", "C"])
    graph = built.graph(molecule("C6H6"))
    lengths = torch.full((graph.n_edges,), 1.2, dtype=torch.float64)
    inside = head(torch.zeros(12, 1), lengths, _single_species(graph))
    torch.testing.assert_close(inside[:, 0], torch.full((12,), -5.0, dtype=torch.float64))
    lone = built.graph(Atoms("H"))
    nothing = head(torch.zeros(1, 1), torch.zeros(0, dtype=torch.float64), lone)
    assert float(nothing[0, 0]) == 0


def _single_species(graph):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(graph, species=torch.zeros_like(graph.species))


def test_a_constant_mean_energy_with_exact_lone_atoms_is_refused() -> None:
    with pytest.raises(ConfigError, match="would shift lone atoms"):
        model_config({"mean_energy": "constant", "update": {"first_layer": "species_linear"}})


def test_zbl_is_not_scaled_with_the_network() -> None:
    atoms = Atoms("HO", [[0, 0, 0], [0.3, 0, 0]])
    with_prior = {"channels": 2, "l_max": 1, "zbl": True}
    without = {**with_prior, "zbl": False}
    differences = []
    for scale in (1.0, 100.0):
        energies = []
        for settings in (with_prior, without):
            built = clebsch.build(settings, ["H", "O"], dtype=torch.float64)
            built.head.scale.fill_(scale)
            energies.append(float(built(built.graph(atoms), ("energy",)).energy))
        differences.append(energies[0] - energies[1])
    assert differences[0] == pytest.approx(differences[1], rel=1e-9)
    assert differences[0] > 10


def test_zbl_is_the_universal_potential() -> None:
    """Two carbon atoms at 0.5 Angstrom by hand, before the envelope has bent it much."""
    zbl = ZBLRepulsion([6], 5.0)
    length = torch.tensor([0.5, 0.5], dtype=torch.float64)
    graph = clebsch.build(MessagePassingConfig(channels=2, l_max=1), ["C"]).graph(
        Atoms("C2", [[0, 0, 0], [0.5, 0, 0]])
    )
    a = 0.88534 * 0.529177210903 / (2 * 6**0.23)
    x = 0.5 / a
    phi = (
        0.18175 * math.exp(-3.1998 * x)
        + 0.50986 * math.exp(-0.94229 * x)
        + 0.28022 * math.exp(-0.4029 * x)
        + 0.02817 * math.exp(-0.20162 * x)
    )
    t = 0.5 / (2 * 0.76)
    envelope = 1 - 28 * t**6 + 48 * t**7 - 21 * t**8
    expected = 14.399645478425668 * 36 / 0.5 * phi * envelope
    assert float(zbl(length, graph).sum()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("exponent", [2, 5, 6])
def test_the_envelope_ends_with_two_zero_derivatives(exponent: int) -> None:
    envelope = PolynomialEnvelope(4.0, exponent)
    r = torch.tensor([4.0 - 1e-12, 0.0, 4.0, 5.0], dtype=torch.float64, requires_grad=True)
    value = envelope(r)
    torch.testing.assert_close(value.detach(), torch.tensor([0.0, 1, 0, 0], dtype=torch.float64))
    (first,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    assert abs(first[0].item()) < 1e-9
    assert abs(second[0].item()) < 1e-9


def test_the_bessel_basis_is_orthonormal_without_its_envelope() -> None:
    basis = BesselBasis(3.0, 4, PolynomialEnvelope(3.0, 5))
    basis.envelope = torch.nn.Identity()
    basis.envelope.forward = torch.ones_like  # type: ignore[method-assign]
    r = torch.linspace(1e-6, 3.0, 20001, dtype=torch.float64)
    values = basis(r) * r[:, None]
    gram = torch.trapezoid(values[:, :, None] * values[:, None, :], r, dim=0)
    torch.testing.assert_close(gram, torch.eye(4, dtype=torch.float64), atol=1e-6, rtol=0)


def test_weights_depend_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (
        potential(seed=0).state_dict(),
        potential(seed=0).state_dict(),
        potential(seed=1).state_dict(),
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    torch.set_default_dtype(torch.float64)  # somebody's notebook
    try:
        again = potential(seed=0).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_presets_build_and_unknown_ones_are_named() -> None:
    for name in PRESETS:
        assert preset_config(name) == PRESETS[name].config
    with pytest.raises(ConfigError, match="Did you mean 'mace_acac'"):
        preset_config("mace_acacc")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chanels": 3}, r"unknown key 'model\.chanels'.*Did you mean 'channels'"),
        ({"radial": {"n_bais": 3}}, r"unknown key 'model\.radial\.n_bais'.*n_basis"),
        ({"channels": -1}, r"model\.channels: .*greater than or equal to 1"),
        ({"l_max": 0, "message_l": 1}, r"^model: message_l: scalar .* couple to scalars alone$"),
        ({"preset": "mace_small", "cutoff": "far"}, r"model\.cutoff: .*valid number"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_config(settings)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ({"H": -13.0}, "no reference energy for O"),
        ({"H": -13.0, "O": float("nan")}, "the reference energy of O is nan"),
        ({"H": -13.0, "O": "-2041"}, "the reference energy of O is '-2041'"),
        ({"H": -13.0, "O": -1.0, "Xy": 0.0}, "references: 'Xy' is not an element"),
        ([-13.0, -1.0], r"energies by element, such as \{'H': -13.6\}, not \[-13.0, -1.0\]"),
    ],
)
def test_references_are_finite_energies_of_all_elements(references: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        clebsch.build("mace_tiny", ["H", "O"], references=references)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"species": ["Hx"]}, "'Hx' is not an element"),
        ({"species": "Cu"}, r"a list of element symbols, such as \['Cu'\]"),
        ({"model": 3}, "a preset, a mapping or a configuration, not 3"),
        ({"dtype": "float64"}, "torch.float32 or torch.float64, not 'float64'"),
    ],
)
def test_what_cannot_be_built_is_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        clebsch.build(**({"model": "mace_tiny", "species": ["H"]} | arguments))


def test_a_forged_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that is wrong by a little is found when it is chosen, and not used."""
    from clebsch.errors import BackendError
    from clebsch.kernels import cpu

    tested = potential(backend="reference")
    true = cpu.contract
    monkeypatch.setattr(cpu, "contract", lambda *args: 1.001 * true(*args))
    with pytest.raises(BackendError, match="disagrees with the reference"):
        tested.use_backend("llvm")
    assert tested.backend == "reference"
    assert torch.isfinite(tested(tested.graph(ethanol())).forces).all()
