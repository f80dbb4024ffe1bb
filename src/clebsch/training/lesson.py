"""What a step learns from: structures, and a potential that learns them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from clebsch.data.loader import LabelledGraphs
from clebsch.data.prefetch import BatchPrefetcher
from clebsch.potential import Potential


@dataclass(frozen=True, eq=False)
class Lesson:
    """Labelled structures and the potential that learns them.

    A training has one, the data. A second one may keep alive what the initial model knew, with a
    potential that has most of its weights in common with the first (``clebsch.training.replayed``).

    Attributes:
        potential: what learns.
        graphs: what it learns.
        weight: of its loss.
    """

    potential: Potential
    graphs: LabelledGraphs | BatchPrefetcher
    weight: float = 1.0

    def prefetched(self, device: torch.device) -> Lesson:
        """The same with batches that are put together and copied to a device ahead of time."""
        assert isinstance(self.graphs, LabelledGraphs)
        return replace(self, graphs=BatchPrefetcher(self.graphs, device))
