"""Batches that are put together and sent to a GPU while it works on those before."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from clebsch.data.frame import Frame
from clebsch.data.loader import Batch, LabelledGraphs

#: Announced batches that are kept: the one that comes next, and the one after it.
MOST_ANNOUNCED = 2


class BatchesAhead:
    """The batches of labelled graphs on a device, made by a thread before they are asked for.

    The thread joins the graphs, in memory that the device can read by itself, and starts the copy
    on a stream of its own; the device's work waits for the copy, and the host for nothing. What
    was not announced is made when it is asked for.

    Args:
        graphs: in main memory.
        device: where batches are wanted.
    """

    def __init__(self, graphs: LabelledGraphs, device: torch.device) -> None:
        self._graphs, self._device = graphs, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clebsch-batches")
        self._announced: dict[tuple[int, ...], Future[_Made]] = {}

    @property
    def frames(self) -> list[Frame]:
        """As of the graphs."""
        return self._graphs.frames

    @property
    def n_edges(self) -> list[int]:
        """As of the graphs."""
        return self._graphs.n_edges

    def announce(self, indices: Sequence[int]) -> None:
        """Begin to make the batch of some frames, which will be asked for soon."""
        key = tuple(indices)
        if key not in self._announced:
            self._announced[key] = self._thread.submit(self._make, key)
        while len(self._announced) > MOST_ANNOUNCED:
            self._announced.pop(next(iter(self._announced))).cancel()

    def batch(self, indices: Sequence[int]) -> Batch:
        """The batch of some frames, on the device."""
        announced = self._announced.pop(tuple(indices), None)
        batch, copied = self._make(tuple(indices)) if announced is None else announced.result()
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
