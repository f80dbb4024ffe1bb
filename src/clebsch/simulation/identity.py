"""What tells one model from another, so that a run is not continued with the wrong one."""

from __future__ import annotations

import hashlib

import torch
from ase.calculators.calculator import BaseCalculator

from clebsch.calculators import ClebschCalculator
from clebsch.potential import Potential


def source_identity(source: Potential | BaseCalculator) -> str:
    """ "sha256:..." over configuration, species and all weights of a potential, on any device.

    Other calculators do not say what they are made of: theirs is the name of their class.
    """
    potential = source.potential if isinstance(source, ClebschCalculator) else source
    if not isinstance(potential, Potential):
        return type(potential).__name__
    digest = hashlib.sha256(potential.config.model_dump_json().encode())
    digest.update(" ".join(potential.species).encode())
    digest.update(repr(float(potential.model.avg_num_neighbors)).encode())
    for name, tensor in sorted(potential.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()}"
