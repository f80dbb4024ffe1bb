"""The peer's model is ours: as many weights, as many edges. Needs ``make peers``."""

from __future__ import annotations

from typing import Literal

import pytest

from clebsch.benchmarks import compare, jobs, speed
from clebsch.models.config import MessagePassingConfig

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not (jobs.PEERS / ".mace-torch").exists(), reason="run make peers"),
]

QUICK = {"min_calls": 1, "min_seconds": 0.0, "max_seconds": 0.0}


def both(case: jobs.Case) -> tuple[dict, dict]:
    job = case.job("energy_forces", "float32", 1, QUICK)
    return speed.measure_job(job), jobs.run_job(jobs.mace_torch()[0], job)


@pytest.mark.parametrize("first_layer", ["residual", "species_linear"])
@pytest.mark.parametrize("message_l", [0, 1, 2])
def test_mace_torch_has_the_same_weights_and_edges(
    message_l: int, first_layer: Literal["residual", "species_linear"]
):
    system = compare.paper_cases()[0].system
    # Without cuequivariance mace-torch has the full table of couplings whatever it is asked for;
    # the reduced one spans the same functions with fewer weights.
    config = MessagePassingConfig(
        channels=8,
        message_l=message_l,
        update={"first_layer": first_layer},
        product={"couplings": "unreduced"},
    )
    ours, theirs = both(jobs.Case(system, config, "small", system.species))
    assert ours["n_edges"] == theirs["n_edges"]
    assert ours["n_atoms"] == theirs["n_atoms"]
    assert ours["n_parameters"] == theirs["n_parameters"]
