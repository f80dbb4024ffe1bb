"""What a committee says of labelled and unlabelled structures, against NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import rankdata

import clebsch
from builders import tiny
from clebsch.committee import uncertainty
from clebsch.data.frame import Frame
from clebsch.evaluation.evaluate import evaluate
from clebsch.evaluation.predict import FramePrediction
from clebsch.evaluation.uncertainty import (
    N_NAMED,
    FrameUncertainty,
    calibrate,
    predict_uncertainties,
)

from .toy import molecule

MEMBERS = [tiny("H C O", seed) for seed in range(3)]
FRAMES = [molecule(seed, "HCO"[: 1 + seed % 3]) for seed in range(N_NAMED + 2)]


@pytest.mark.parametrize("max_edges", [1, 9, 10_000])
def test_batches_change_nothing(max_edges: int) -> None:
    seen: list[tuple[int, int]] = []
    found, notes = predict_uncertainties(
        MEMBERS, FRAMES, max_edges=max_edges, progress=lambda *done: seen.append(done)
    )
    assert notes == ()
    assert seen[-1] == (len(FRAMES), len(FRAMES))
    for frame, told in zip(FRAMES, found, strict=True):
        alone = uncertainty(MEMBERS, MEMBERS[0].graph(frame))
        assert told.energy == pytest.approx(float(alone.energy), rel=1e-6)
        np.testing.assert_allclose(told.atoms, alone.of_atoms, rtol=1e-6, atol=1e-12)


def test_memory_that_runs_out_makes_batches_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(members: list[clebsch.Potential], graph: clebsch.graph.AtomGraph) -> object:
        if graph.n_frames > 3:
            raise MemoryError
        return uncertainty(members, graph)

    monkeypatch.setattr("clebsch.evaluation.uncertainty.uncertainty", limited)
    found, notes = predict_uncertainties(MEMBERS, FRAMES)
    assert len(found) == len(FRAMES)
    assert "Memory ran out" in notes[0]


def told_and_wrong(seed: int, n: int = 7) -> tuple[Frame, FramePrediction, FrameUncertainty]:
    """A structure with errors and uncertainties that have nothing to do with a model."""
    rng = np.random.default_rng(seed)
    frame = molecule(
        seed, "HCOHCOH"[:n], energy=float(rng.normal()), forces=rng.normal(size=(n, 3))
    )
    prediction = FramePrediction(float(rng.normal()), rng.normal(size=(n, 3)))
    return frame, prediction, FrameUncertainty(float(rng.random()), rng.random(n))


def test_calibration_compares_errors_with_uncertainties() -> None:
    frames, predictions, told = zip(
        *(told_and_wrong(seed, 3 + seed) for seed in range(4)), strict=True
    )
    found = calibrate(frames, predictions, told)

    sizes = np.array([3, 4, 5, 6])
    per_atom = np.array([one.energy for one in told]) / sizes
    errors = np.array([p.energy - f.energy for p, f in zip(predictions, frames, strict=True)])
    assert found.energy_per_atom == pytest.approx(np.sqrt((per_atom**2).mean()))
    assert found.energy_ratio == pytest.approx(
        np.sqrt(((errors / sizes) ** 2).mean() / (per_atom**2).mean())
    )
    atoms = np.concatenate([one.atoms for one in told])
    differences = np.concatenate(
        [p.forces - f.forces for p, f in zip(predictions, frames, strict=True)]
    )
    squared = (differences**2).sum(1)
    assert found.forces == pytest.approx(np.sqrt((atoms**2).sum() / (3 * sizes.sum())))
    assert found.forces_ratio == pytest.approx(np.sqrt(squared.sum() / (atoms**2).sum()))
    ranks = rankdata(squared), rankdata(atoms)
    assert found.forces_rank_correlation == pytest.approx(np.corrcoef(ranks)[0, 1])
    largest = [(one.atoms.max(), i) for i, one in enumerate(told)]
    assert [one.index for one in found.most_uncertain] == [i for _, i in sorted(largest)[::-1]]
    first = found.most_uncertain[0]
    assert first.uncertainty == max(largest)[0]
    assert first.atom == told[first.index].atoms.argmax()
    assert first.element == frames[first.index].symbols[first.atom]
    assert first.source == f"toy.xyz:{first.index}"


def test_what_has_no_label_takes_no_part_in_comparisons() -> None:
    frames, predictions, told = zip(*(told_and_wrong(seed) for seed in range(3)), strict=True)
    bare = replace(frames[2], energy=None, forces=None)
    found = calibrate([*frames[:2], bare], predictions, told)
    labelled = calibrate(frames[:2], predictions[:2], told[:2])
    for name in ("energy_ratio", "forces_ratio", "forces_rank_correlation"):
        assert getattr(found, name) == getattr(labelled, name)
    assert found.forces == calibrate(frames, predictions, told).forces
    alone = calibrate([bare], predictions[2:], told[2:])
    assert (alone.energy_ratio, alone.forces_ratio, alone.forces_rank_correlation) == (None,) * 3


def test_an_evaluation_tells_what_its_committee_says() -> None:
    judged = evaluate(MEMBERS[0], FRAMES, committee=MEMBERS[1:])
    found, _ = predict_uncertainties(MEMBERS, FRAMES)
    np.testing.assert_allclose([u.energy for u in judged.uncertainties], [u.energy for u in found])
    told = judged.to_json()["calibration"]
    assert len(told["most_uncertain"]) == N_NAMED
    assert told["forces"] == pytest.approx(judged.calibration.forces)  # type: ignore[union-attr]
    alone = evaluate(MEMBERS[0], FRAMES)
    assert (alone.uncertainties, alone.to_json()["calibration"]) == ((), None)
    assert evaluate(MEMBERS[0], [], committee=MEMBERS[1:]).calibration is None
