"""Prefetching: batches are put together and copied to a GPU while it works on earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from clebsch.data.frame import Frame
from clebsch.data.loader import Batch, LabelledGraphs

#: Prefetched batches that are kept: the one that comes next, and the one after it.
MOST_PREFETCHED = 2


class BatchPrefetcher:
    """Batches of labelled graphs on a device, which a thread makes before they are asked for.

    The thread joins the graphs in pinned memory and starts the copy on a stream of its own; the
    device's work waits for the copy, and the host for nothing. A batch that was not prefetched is
    made when it is asked for.

    Args:
        graphs: in main memory.
        device: where batches are wanted.
    """

    def __init__(self, graphs: LabelledGraphs, device: torch.device) -> None:
        self._graphs, self._device = graphs, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clebsch-batches")
        self._prefetched: dict[tuple[int, ...], Future[_Made]] = {}

    @property
    def frames(self) -> list[Frame]:
        """As of the graphs."""
        return self._graphs.frames

    @property
    def n_edges(self) -> list[int]:
        """As of the graphs."""
        return self._graphs.n_edges

    def prefetch(self, indices: Sequence[int]) -> None:
        """Start making the batch of some frames, which will be asked for soon."""
        key = tuple(indices)
        if key not in self._prefetched:
            self._prefetched[key] = self._thread.submit(self._make, key)
        while len(self._prefetched) > MOST_PREFETCHED:
            self._prefetched.pop(next(iter(self._prefetched))).cancel()

    def batch(self, indices: Sequence[int]) -> Batch:
        """The batch of some frames, on the device."""
        prefetched = self._prefetched.pop(tuple(indices), None)
        batch, copied = self._make(tuple(indices)) if prefetched is None else prefetched.result()
        if copied is not None:
            work = torch.cuda.current_stream(self._device)
            work.wait_event(copied)
            # not to be given to others before the work on it is done
            batch.map(lambda tensor: _used_by(tensor, work))
        return batch

    def _make(self, indices: tuple[int, ...]) -> _Made:
        batch = self._graphs.batch(indices)
        if self._stream is None:
            return batch.to(self._device), None
        pinned = batch.map(lambda tensor: tensor.pin_memory())
        with torch.cuda.stream(self._stream):
            moved = pinned.map(lambda tensor: tensor.to(self._device, non_blocking=True))
            return moved, self._stream.record_event()


#: A batch, and when its copy is done.
_Made = tuple[Batch, torch.cuda.Event | None]


def _used_by(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    tensor.record_stream(stream)
    return tensor
