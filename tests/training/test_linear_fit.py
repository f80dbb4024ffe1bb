"""Fitting linear ACE: what it minimises, how it streams, what its posterior says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

import clebsch
from builders import ethanol, potential, skewed_cell, slab
from clebsch.data.frame import Frame
from clebsch.data.loader import LabelledGraphs
from clebsch.errors import ClebschError, DataError
from clebsch.models.ace_config import ACEConfig
from clebsch.training import normal_equations
from clebsch.training.config import FitConfig
from clebsch.training.design import Design
from clebsch.training.evidence import Posterior, posterior
from clebsch.training.linear_fit import (
    SMALLEST,
    LinearFit,
    empty_equations,
    labelled_rows,
    prior_std,
    rigid_motions,
    solve,
    weights_of_labels,
)
from clebsch.training.normal_equations import BLOCK, NormalEquations
from training.toy import cluster, crystal

CONFIG = ACEConfig(cutoff=4.0, correlation=2, max_degree=(4, 2), committee=200, zbl=True)


def frames(n: int, kind=cluster, **without: None) -> list[Frame]:  # type: ignore[no-untyped-def]
    """Small EMT structures with all labels that they have, or without some."""
    found = []
    for seed in range(n):
        atoms: Atoms = kind(seed)
        labels = {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces(),
            "stress": atoms.get_stress(voigt=False) if atoms.pbc.any() else None,
        }
        found.append(
            Frame(
                numbers=atoms.numbers,
                positions=atoms.positions,
                cell=atoms.cell.array,
                pbc=atoms.pbc,
                source=f"{kind.__name__} {seed}",
                **(labels | without),
            )
        )
    return found


def fit(
    potential: clebsch.Potential, graphs: LabelledGraphs, config: FitConfig
) -> tuple[LinearFit, Posterior]:
    equations = empty_equations(potential)
    for rows in labelled_rows(potential, graphs, config):
        equations.add(*rows)
    return solve(potential, equations, weights_of_labels(config, graphs.counts))


def untrained(config: ACEConfig = CONFIG) -> clebsch.Potential:
    built = clebsch.build(config, ["Cu", "Au"], dtype=torch.float64)
    built.head.scale.fill_(1.7)
    return built


@pytest.mark.parametrize("model", ["ace", "ace order four with ZBL"])
@pytest.mark.parametrize("build", [ethanol, skewed_cell, slab])
def test_rows_times_coefficients_are_the_predictions(build, model: str) -> None:  # type: ignore[no-untyped-def]
    tested = potential(model)
    with torch.no_grad():
        tested.head.mean_energy.zero_()
    graph = tested.graph(build())
    rows = Design(tested.model)(graph)
    found = float(tested.head.scale) * rows @ tested.model.coefficients.detach().numpy()
    tested.prior = None
    expected = tested(graph, ("energy", "forces", "virial"))
    energy = expected.energy.item() - tested.references[graph.species].sum().item()
    assert found[0] == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(found[1:-9].reshape(-1, 3), expected.forces, atol=1e-12)
    np.testing.assert_allclose(found[-9:].reshape(3, 3), expected.virial[0], atol=1e-12)


def test_an_element_may_be_invisible_as_a_neighbor() -> None:
    config = ACEConfig(correlation=2, max_degree=(4, 2), neighbor_degree={"Au": 5}, committee=0)
    tested = untrained(config)
    graph = tested.graph(cluster(0))
    rows = Design(tested.model)(graph)
    found = float(tested.head.scale) * rows @ tested.model.coefficients.detach().numpy()
    np.testing.assert_allclose(found[1:-9].reshape(-1, 3), tested(graph).forces, atol=1e-12)


def test_normal_equations_do_not_depend_on_how_rows_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(normal_equations, "PANEL", 3)
    rng = np.random.default_rng(0)
    n_rows = 2 * BLOCK + 100
    rows, targets = rng.normal(size=(n_rows, 4)), rng.normal(size=n_rows)
    weights = rng.uniform(size=n_rows)
    streamed = NormalEquations(4)
    for start, stop in ((0, 7), (7, BLOCK + 1), (BLOCK + 1, n_rows)):
        n = stop - start
        streamed.add(rows[start:stop], targets[start:stop], weights[start:stop], n)
    gram = np.tril(streamed.close())
    np.testing.assert_allclose(gram, np.tril(rows.T * weights @ rows), rtol=1e-12)
    np.testing.assert_allclose(streamed.moment, weights * targets @ rows, rtol=1e-12)
    assert streamed.square == pytest.approx(weights @ targets**2)
    assert streamed.n_rows == len(rows)


def regression(noise: float, n: int = 200, size: int = 12):  # type: ignore[no-untyped-def]
    """Rows [size, n], targets of coefficients drawn from the prior, and the prior."""
    rng = np.random.default_rng(1)
    prior = 1.0 / (1 + np.arange(size))
    rows = rng.normal(size=(size, n))
    truth = 0.7 * prior * rng.normal(size=size)
    return rows, rows.T @ truth + noise * rng.normal(size=n), prior


def test_the_evidence_is_the_probability_of_the_labels() -> None:
    """Against the density of y ~ N(0, noise + X prior X^T), whose scale is at its best."""
    rows, targets, prior = regression(0.1)
    n = len(targets)
    for strength in (1e-4, 1e-2, 1.0):
        found = posterior(
            np.tril(rows @ rows.T), rows @ targets, targets @ targets, n, prior, strength
        )
        covariance = np.eye(n) + (rows.T * prior**2) @ rows / strength
        scale = targets @ np.linalg.solve(covariance, targets) / n
        expected = -0.5 * (n * np.log(2 * np.pi * scale) + np.linalg.slogdet(covariance)[1] + n)
        assert found.log_evidence == pytest.approx(expected, rel=1e-9)
        assert found.beta == pytest.approx(1 / scale, rel=1e-9)


def test_the_strength_is_where_the_evidence_is_greatest_and_the_noise_is_found() -> None:
    rows, targets, prior = regression(0.1)
    tried: dict[float, float] = {}

    def solve(strength: float | None):  # type: ignore[no-untyped-def]
        gram = np.tril(rows @ rows.T)
        moment, square = rows @ targets, targets @ targets
        return posterior(gram, moment, square, len(targets), prior, strength, tried.__setitem__)

    best = solve(None)
    assert best.log_evidence >= max(tried.values()) - 1e-3
    for factor in (0.3, 3.0):
        assert solve(best.strength * factor).log_evidence < best.log_evidence
    assert best.beta**-0.5 == pytest.approx(0.1, rel=0.15)
    assert best.strength == pytest.approx((0.1 / 0.7) ** 2, rel=2)


def test_nothing_is_learned_from_noise_alone() -> None:
    """The best strength is above all eigenvalues then; a search that stops early learns noise."""
    rows, targets, prior = regression(1.0)
    noise = targets - rows.T @ (np.linalg.pinv(rows.T) @ targets)
    found = posterior(np.tril(rows @ rows.T), rows @ noise, noise @ noise, len(noise), prior)
    assert found.effective_parameters() < 1.5


def test_draws_have_the_covariance_of_the_posterior() -> None:
    rows, targets, prior = regression(0.3, n=30)
    found = posterior(np.tril(rows @ rows.T), rows @ targets, targets @ targets, 30, prior, 0.1)
    precision = found.beta * (rows @ rows.T + np.diag(0.1 / prior**2))
    covariance = np.linalg.inv(precision)
    np.testing.assert_allclose(found.mean, found.beta * covariance @ rows @ targets, rtol=1e-9)
    np.testing.assert_allclose(found.variance(np.eye(12)), np.diag(covariance), rtol=1e-9)
    draws = found.draws(20_000, seed=0)
    size = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    assert (abs(np.cov(draws.T, bias=True) - covariance) / size).max() < 0.05
    inverse = np.linalg.inv(rows @ rows.T * np.outer(prior, prior) + 0.1 * np.eye(12))
    assert found.effective_parameters() == pytest.approx(12 - 0.1 * np.trace(inverse))


def test_a_fit_finds_the_potential_that_made_the_labels() -> None:
    """Few functions, many labels without noise: coefficients come back, stresses included."""
    truth = untrained()
    labelled = []
    for frame in [*frames(30), *frames(6, crystal)]:
        outputs = ("energy", "forces", *(("stress",) if frame.pbc.any() else ()))
        told = truth(truth.graph(frame), outputs)
        stress = None if told.stress is None else told.stress[0].numpy()
        changed = {"energy": float(told.energy), "forces": told.forces.numpy(), "stress": stress}
        labelled.append(Frame(**(vars(frame) | changed)))
    found = untrained()
    with torch.no_grad():
        found.model.coefficients.zero_()
    fit(found, LabelledGraphs(found, labelled), FitConfig(regularization=1e-11))
    for frame in frames(3):
        graph = found.graph(frame)
        torch.testing.assert_close(found(graph).forces, truth(graph).forces, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found(graph).energy, truth(graph).energy, atol=1e-5, rtol=0)


@pytest.mark.parametrize("missing", ["energy", "forces"])
def test_a_missing_label_has_no_rows(missing: str) -> None:
    tested = untrained()
    graphs = LabelledGraphs(tested, frames(1, crystal, **{missing: None}))
    (rows,) = labelled_rows(tested, graphs, FitConfig())
    expected = 3 * 4 + 6 if missing == "energy" else 1 + 6
    assert rows.design.shape == (expected, tested.model.coefficients.numel())
    assert len(rows.targets) == len(rows.weights) == expected
    assert rows.n_independent == expected - (3 if missing == "energy" else 0)


def test_weights_are_those_of_the_loss() -> None:
    """The fit's objective is the sum of the loss's terms: validation tells the same weights."""
    from clebsch.training.loss import loss_sums

    tested, config = untrained(), FitConfig(energy=3.0, forces=2.0, stress=0.5)
    graphs = LabelledGraphs(tested, frames(2, crystal))
    coefficients = tested.model.coefficients.detach().numpy().ravel()
    objective = sum(
        float(rows.weights @ (rows.targets - rows.design @ coefficients) ** 2)
        for rows in labelled_rows(tested, graphs, config)
    )
    batch = graphs.batch([0, 1])
    sums = loss_sums(tested(batch.graph, ("energy", "forces", "virial")), batch, config.loss)
    expected = 3.0 * sums.energy + 2.0 * sums.forces + 0.5 * sums.stress
    assert objective == pytest.approx(float(expected), rel=1e-9)


def wire() -> Atoms:
    atoms = Atoms("CuAuCu", [[0, 0, 0], [1.2, 0.4, 2.2], [0.3, 2.0, 4.1]], cell=[9, 9, 6.5])
    atoms.pbc = (False, False, True)
    return atoms


def boxed(*clusters: Atoms) -> Atoms:
    """Clusters that do not see each other, across the borders of a periodic box."""
    box = Atoms(cell=[14, 14, 14 * len(clusters)], pbc=True)
    for place, atoms in enumerate(clusters):
        box += Atoms(atoms.numbers, atoms.positions + 14 * place * np.eye(3)[2])
    box.wrap()
    return box


DIMER = Atoms("CuAu", [[0, 0, 0], [1.0, 1.3, 1.1]])


@pytest.mark.parametrize(
    ("atoms", "n_dependent"),
    [
        (cluster(1), 6),
        (crystal(1), 3),
        (wire(), 4),
        (DIMER, 5),
        (bulk("Cu", cubic=True), 12),
        (boxed(cluster(1)), 6),
        (boxed(cluster(1), cluster(3)), 12),
        (boxed(cluster(1), DIMER, Atoms("Cu", [[1, 1, 1]])), 6 + 5 + 3),
    ],
)
def test_rigid_motions_and_symmetry_leave_fewer_independent_forces(
    atoms: Atoms, n_dependent: int
) -> None:
    """Functions enough tell the rank: as many as the design matrix of the forces has."""
    tested = untrained(CONFIG.model_copy(update={"max_degree": (8.0, 6.0)}))
    graph = tested.graph(atoms)
    forces = Design(tested.model)(graph)[1:-9]
    for components, motions in rigid_motions(graph):
        assert abs(motions.T @ forces[components]).max() < 1e-9
    assert np.linalg.matrix_rank(forces, tol=1e-9) == 3 * len(atoms) - n_dependent
    label = np.random.default_rng(0).normal(size=(len(atoms), 3))
    frame = Frame(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, forces=label)
    (rows,) = labelled_rows(tested, LabelledGraphs(tested, [frame]), FitConfig())
    assert rows.n_independent == 3 * len(atoms) - n_dependent
    if rows.n_independent:  # what no coefficients could give is not asked for
        solved = np.linalg.lstsq(rows.design, rows.targets, rcond=1e-9)[0]
        np.testing.assert_allclose(rows.design @ solved, rows.targets, atol=1e-6)


def test_rigid_motions_of_large_crystals_take_little_memory() -> None:
    """All edges across the border tell the lattice; nothing is as large as their number squared."""
    graph = untrained().graph(bulk("Cu", cubic=True).repeat(6))
    ((_, motions),) = rigid_motions(graph)
    assert motions.shape == (3 * 864, 3)


@pytest.mark.parametrize("kind", ["forces", "stress"])
def test_the_noise_of_few_labels_is_found(kind: str) -> None:
    """More functions than independent labels: those that follow from others would make it 0."""
    config = CONFIG.model_copy(update={"max_degree": (8.0, 6.0)})
    truth, noise, rng = untrained(config), 0.3, np.random.default_rng(3)
    with torch.no_grad():
        truth.model.coefficients.mul_(0.02)
    labelled = []
    for frame in frames(8, crystal):
        told = truth(truth.graph(frame), ("energy", "forces", "stress"))
        if kind == "forces":
            wrong = noise * rng.normal(size=(len(frame), 3))
            label = told.forces.numpy() + wrong - wrong.mean(axis=0)
        else:  # of weight 1 / N in the fit, and there twice off the diagonal
            volume = abs(np.linalg.det(frame.cell))
            wrong = noise * rng.normal(size=(3, 3)) * len(frame) ** 0.5 / volume
            label = told.stress[0].numpy() + 0.5 * (wrong + wrong.T)
        missing = {"energy": None, "forces": None, "stress": None}
        labelled.append(replace(frame, **(missing | {kind: label})))
    tested = untrained(config)
    graphs = LabelledGraphs(tested, labelled)
    summary, found = fit(tested, graphs, FitConfig())
    assert summary.n_rows < summary.n_coefficients
    assert found.beta**-0.5 == pytest.approx(noise, rel=0.25)
    assert (summary.forces_noise is None) == (kind == "stress")
    assert summary.energy_noise is None


def test_nothing_to_fit_is_an_error() -> None:
    tested = untrained()
    graphs = LabelledGraphs(tested, frames(2, energy=None, forces=None))
    with pytest.raises(DataError, match="no structure that has a label"):
        fit(tested, graphs, FitConfig())


@pytest.fixture(scope="module")
def fitted():  # type: ignore[no-untyped-def]
    tested = untrained()
    graphs = LabelledGraphs(tested, frames(12))
    summary, found = fit(tested, graphs, FitConfig())
    return tested, summary, found


def test_a_fit_describes_its_labels(fitted) -> None:  # type: ignore[no-untyped-def]
    tested, summary, _ = fitted
    assert summary.n_rows == sum(1 + 3 * len(frame) - 6 for frame in frames(12))
    assert 0 < summary.effective_parameters < min(summary.n_coefficients, summary.n_rows)
    for frame in frames(12):
        residual = tested(tested.graph(frame)).forces.numpy() - frame.forces
        assert abs(residual).max() < 8 * summary.forces_noise


def test_the_committee_spreads_as_the_posterior_does(fitted) -> None:  # type: ignore[no-untyped-def]
    """Two hundred draws: standard deviations to 5 %, so 25 % is five of them."""
    tested, _, found = fitted
    for frame in frames(15)[12:]:
        graph = tested.graph(frame)
        told = clebsch.uncertainty(tested, graph)
        rows = float(tested.head.scale) * Design(tested.model)(graph)
        exact = np.sqrt(found.variance(rows))
        assert float(told.energy) == pytest.approx(exact[0], rel=0.25)
        np.testing.assert_allclose(told.forces.numpy().ravel(), exact[1:-9], rtol=0.25)


def test_uncertainty_is_larger_far_from_the_training_set(fitted) -> None:  # type: ignore[no-untyped-def]
    tested, _, _ = fitted
    inside = clebsch.uncertainty(tested, tested.graph(cluster(0)))
    squeezed = cluster(0)
    squeezed.positions *= 0.8
    crystal_like = bulk("Au", cubic=True)
    for atoms in (squeezed, crystal_like):
        outside = clebsch.uncertainty(tested, tested.graph(atoms))
        assert float(outside.energy) / len(atoms) > 3 * float(inside.energy) / 3


def test_uncertainties_of_a_batch_are_those_of_its_structures(fitted) -> None:  # type: ignore[no-untyped-def]
    tested, _, _ = fitted
    structures = [cluster(0), cluster(1)]
    together = clebsch.uncertainty(tested, tested.graph(structures))
    single = [clebsch.uncertainty(tested, tested.graph(atoms)) for atoms in structures]
    torch.testing.assert_close(together.energy, torch.cat([one.energy for one in single]))
    torch.testing.assert_close(together.forces, torch.cat([one.forces for one in single]))


def test_the_committee_travels_in_the_model_file(fitted, tmp_path) -> None:  # type: ignore[no-untyped-def]
    tested, _, _ = fitted
    tested.save(tmp_path / "model.safetensors")
    loaded = clebsch.load(tmp_path / "model.safetensors")
    graph = tested.graph(cluster(3))
    torch.testing.assert_close(
        clebsch.uncertainty(loaded, graph).forces, clebsch.uncertainty(tested, graph).forces
    )


def test_uncertainties_of_structures_in_place_of_their_graph_are_refused(fitted) -> None:  # type: ignore[no-untyped-def]
    tested, _, _ = fitted
    with pytest.raises(
        ClebschError, match=r"not on Atoms: uncertainty\(potential, potential.graph"
    ):
        clebsch.uncertainty(tested, cluster(0))


def test_a_potential_without_a_committee_says_so() -> None:
    for tested in (untrained(), potential("mace"), potential("ace order four with ZBL")):
        with pytest.raises(ClebschError, match="no committee"):
            clebsch.uncertainty(tested, tested.graph(cluster(0)[:1]))


def test_uncertainties_in_inference_mode_are_refused(fitted) -> None:  # type: ignore[no-untyped-def]
    tested, _, _ = fitted
    graph = tested.graph(cluster(0))
    with torch.inference_mode(), pytest.raises(ClebschError, match=r"use torch\.no_grad"):
        clebsch.uncertainty(tested, graph)
    with torch.no_grad():
        assert clebsch.uncertainty(tested, graph).forces.any()


def test_the_prior_is_narrower_for_higher_degrees_and_wider_for_small_functions() -> None:
    network = untrained().model
    degrees = np.tile(network.basis.degrees, 2)
    squares = np.linspace(1.0, 4.0, len(degrees))
    squares[0] = 0.0
    smooth = FitConfig(smoothness=2.0, standardization=0)
    np.testing.assert_allclose(prior_std(network, smooth, squares), (1 + degrees) ** -2)
    found = prior_std(network, FitConfig(smoothness=0, standardization=0.5), squares)
    np.testing.assert_allclose(found[1:], (squares[1:] / 4) ** -0.25)
    assert found[0] == pytest.approx(SMALLEST**-0.5)


def test_labels_that_are_all_zero_are_refused() -> None:
    tested = untrained(CONFIG.model_copy(update={"zbl": False}))
    (frame,) = frames(1)
    nothing = [replace(frame, energy=None, forces=0 * frame.forces)]
    with pytest.raises(DataError, match="all labels are zero"):
        fit(tested, LabelledGraphs(tested, nothing), FitConfig())


def test_structures_without_neighbors_are_refused() -> None:
    tested = untrained()
    (frame,) = frames(1)
    alone = [replace(frame, positions=100 * frame.positions)]
    with pytest.raises(
        DataError,
        match=r"nothing to fit: no structure .* has two atoms within the cut-off of 4 Angstrom",
    ):
        fit(tested, LabelledGraphs(tested, alone), FitConfig())
