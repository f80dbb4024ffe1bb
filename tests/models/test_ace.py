"""Linear ACE as a network: body order, independence on real environments, radial functions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from ase import Atoms

import clebsch
from algebra.test_cluster_basis import evaluate
from builders import body_order_remainder, ethanol, potential
from clebsch.errors import ConfigError
from clebsch.factory import assemble
from clebsch.models import ace
from clebsch.models.ace import ACE
from clebsch.models.ace_config import ACEConfig
from clebsch.models.presets import model_config


def network(built: clebsch.Potential) -> ACE:
    assert isinstance(built.model, ACE)
    return built.model


@pytest.mark.parametrize("correlation", [1, 2, 3])
def test_the_body_order_is_one_more_than_the_order(correlation: int) -> None:
    config = ACEConfig(correlation=correlation, max_degree=2, committee=0)
    built = assemble(config, ["H", "O"], avg_num_neighbors=1.0, dtype=torch.float64)

    def central_energy(atoms: Atoms) -> float:
        return float(built(built.graph(atoms), ("layer_energies",)).layer_energies[0, 1])

    assert abs(body_order_remainder(central_energy, correlation + 2)) < 1e-10
    assert abs(body_order_remainder(central_energy, correlation + 1)) > 1e-6


def test_functions_are_independent_on_random_environments() -> None:
    """Not as polynomials in A alone: also where A is of atoms around an atom."""
    config = ACEConfig(cutoff=4.0, correlation=3, max_degree=(3, 2, 2), committee=0)
    built = clebsch.build(config, ["H", "O"], dtype=torch.float64)
    model, rng = network(built), np.random.default_rng(0)
    environments = []
    for _ in range(3 * model.basis.n_functions):
        n = 8
        directions = rng.normal(size=(n, 3))
        directions /= np.linalg.norm(directions, axis=1)[:, None]
        places = directions * rng.uniform(0.7, 3.8, size=(n, 1))
        symbols = rng.choice(["H", "O"], size=n).tolist()
        environments.append(Atoms(["O", *symbols], [[0, 0, 0], *places]))
    graphs = [built.graph(atoms) for atoms in environments]
    variables = [
        model.one_particle_basis(
            graph.positions[graph.receivers] - graph.positions[graph.senders], graph
        )[0]
        .detach()
        .numpy()
        for graph in graphs
    ]
    values = evaluate(model.basis, np.array(variables))
    values /= np.linalg.norm(values, axis=0)
    singular = np.linalg.svd(values, compute_uv=False)
    assert len(singular) == model.basis.n_functions
    assert singular[-1] > 1e-9 * singular[0]


def test_the_energy_is_the_sum_of_coefficients_times_functions() -> None:
    tested = potential("ace")
    model = network(tested)
    graph = tested.graph(ethanol())
    vectors = graph.positions[graph.receivers] - graph.positions[graph.senders]
    values = evaluate(model.basis, model.one_particle_basis(vectors, graph).detach().numpy())
    counts = [len(functions) for functions in model.functions]
    own = np.split(model.coefficients.detach().numpy(), np.cumsum(counts)[:-1])
    expected = [
        value[model.functions[z]] @ own[z] for z, value in zip(graph.species, values, strict=True)
    ]
    found = model(vectors, graph)[:, 0].detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_groups_of_degrees_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ACEConfig(correlation=2, max_degree=(6, 4), neighbor_degree={"O": 1.5}, committee=0)
    sums = []
    for block in (2, 1000):
        monkeypatch.setattr(ace, "CHANNEL_BLOCK", block)
        built = clebsch.build(config, ["H", "C", "O"], dtype=torch.float64)
        graph = built.graph(ethanol())
        vectors = graph.positions[graph.receivers] - graph.positions[graph.senders]
        sums.append(network(built).one_particle_basis(vectors, graph))
        assert (len(network(built).sums) > 2) == (block == 2)
    assert torch.equal(*sums)


def test_elements_have_limits_of_their_own_and_rare_neighbors_fewer_functions() -> None:
    config = ACEConfig(
        max_degree=(6, 5, 3),
        max_degree_of={"H": (4, 2, 0)},
        neighbor_degree={"O": 1.5, "Xe": 9},
        committee=0,
    )
    model = network(clebsch.build(config, ["O", "H"]))
    of_hydrogen, of_oxygen = (model.basis.subset(functions) for functions in model.functions)
    assert of_oxygen.n_functions == model.basis.n_functions > of_hydrogen.n_functions
    for basis, limits in ((of_hydrogen, (4, 2, 0)), (of_oxygen, (6, 5, 3))):
        for order, limit in enumerate(limits, start=1):
            assert basis.degrees[basis.orders == order].max() == limit
    label = np.searchsorted(of_oxygen.offsets, of_oxygen.monomials.clip(0), side="right") - 1
    z, n, degree = np.moveaxis(of_oxygen.labels[label], -1, 0)
    cost = np.where(of_oxygen.monomials >= 0, n + 0.5 * degree + 1.5 * (z == 1), 0).sum(1)
    np.testing.assert_allclose(cost[of_oxygen.rows], of_oxygen.degrees[of_oxygen.functions])
    assert len(model.coefficients) == of_hydrogen.n_functions + of_oxygen.n_functions


def test_the_highest_n_of_each_order_is_kept() -> None:
    config = ACEConfig(max_degree=5, max_n=(5, 3, 0), committee=0)
    basis = network(clebsch.build(config, ["O", "H"])).basis
    label = np.searchsorted(basis.offsets, basis.monomials.clip(0), side="right") - 1
    n = np.where(basis.monomials >= 0, basis.labels[label, 1], 0).max(1)
    orders = basis.orders[basis.functions]
    assert [n[basis.rows[orders == order]].max() for order in (1, 2, 3)] == [5, 3, 0]


def test_radial_functions_end_with_two_zero_derivatives() -> None:
    built = clebsch.build(ACEConfig(cutoff=4.0), ["H", "O"], dtype=torch.float64)
    graph = built.graph(Atoms("HO", [[0, 0, 0], [0, 0, 1.0]]))
    lengths = torch.full((2,), 4.0 - 1e-9, dtype=torch.float64, requires_grad=True)
    values = network(built).radial(lengths, graph)
    (first,) = torch.autograd.grad(values.sum(), lengths, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), lengths)
    assert values.abs().max() < 1e-12
    assert first.abs().max() < 1e-12
    assert second.abs().max() < 1e-4
    beyond = network(built).radial(torch.full((2,), 4.1, dtype=torch.float64), graph)
    assert not beyond.any()


def test_radial_functions_know_both_species() -> None:
    built = clebsch.build(ACEConfig(cutoff=4.0), ["H", "C"], dtype=torch.float64)
    atoms = Atoms("HCH", [[0, 0, 0], [0, 0, 1.1], [0, 0, 2.2]])
    graph = built.graph(atoms)
    same = torch.full((graph.n_edges,), 1.1, dtype=torch.float64)
    values = network(built).radial(same, graph)
    kinds = graph.species[graph.receivers] + graph.species[graph.senders]
    assert len({round(float(v), 12) for v in values[kinds == 1, 3]}) == 1
    assert not torch.allclose(values[kinds == 0][0], values[kinds == 1][0])


def test_copies_and_casts_keep_the_couplings_exact() -> None:
    """Couplings stay in float64 where the network goes to float32 and back."""
    tested = potential("ace")
    there = copy.deepcopy(tested)
    there.model.float()
    there.model.double()
    torch.testing.assert_close(
        there.model.couplings.values, tested.model.couplings.values, rtol=0, atol=0
    )


def test_tabulating_changes_nothing() -> None:
    tested = potential("ace")
    graph = tested.graph(ethanol())
    torch.testing.assert_close(tested.tabulated()(graph).forces, tested(graph).forces)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_degre": 3}, r"unknown key 'model\.max_degre'.*Did you mean 'max_degree'"),
        ({"max_degree": [4, 3]}, r"max_degree has 2 numbers for orders 1 to 3"),
        ({"correlation": 5}, r"model\.correlation: .*less than or equal to 4"),
        ({"committee": 1}, r"one draw has no spread"),
        ({"l_weight": 0}, r"model\.l_weight"),
        ({"max_degree_of": {"H": [4, 3]}}, r"max_degree_of\.H has 2 numbers for orders 1 to 3"),
        ({"max_degree_of": {"Hx": 4}}, r"max_degree_of: 'Hx' is not an element\. Did you mean"),
        ({"max_n": [4, 3]}, r"max_n has 2 numbers for orders 1 to 3"),
        ({"neighbor_degree": {"C": -1}}, r"model\.neighbor_degree\.C"),
        ({"name": "aec"}, r"model\.name: unknown architecture 'aec'.*Did you mean 'ace'"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_config({"name": "ace", **settings})


def test_limits_that_leave_an_element_without_functions_are_refused() -> None:
    config = ACEConfig(max_degree_of={"H": 1}, neighbor_degree={"H": 2, "O": 1.5})
    with pytest.raises(ConfigError, match=r"leave no function for a central H atom"):
        clebsch.build(config, ["H", "O"])


def test_a_preset_can_be_changed_in_part() -> None:
    changed = model_config({"preset": "ace_3bpa", "cutoff": 3.0})
    assert isinstance(changed, ACEConfig)
    assert changed.cutoff == 3.0
    assert changed.max_degree == model_config("ace_3bpa").max_degree  # type: ignore[union-attr]
