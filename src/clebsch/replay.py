"""Recordings replayed as CUDA graphs: made once for a bucket of sizes, over padded structures.

On a GPU a small structure costs what it takes to launch some hundred kernels one by one. A CUDA
graph launches them all at once, but for tensors of fixed sizes and places. Structures are therefore
padded to one of few sizes with ghosts: atoms in a structure of their own, joined to themselves by
edges beyond the cut-off. Nothing real meets a ghost, and cotangents of ghosts are zero.

Captures are few: the least recently used is given up for a new one, all take their memory out of
one pool, and a size is captured when it has come several times.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from clebsch.graph import TENSORS, AtomGraph
from clebsch.recording import Recording, Tensors

#: Sizes within an octave: padding adds less than one part in so many.
STEPS_PER_OCTAVE = 8
#: Larger structures keep a GPU busy as they are, and padding them would cost more than it gains: to
#: launch the kernels of an evaluation one by one takes as long as an H200 works on so many edges.
MOST_EDGES = 2**18
#: Of gradients, whose captures hold what the second stage needs of the first; and up to so many
#: edges those beyond the cut-off cost less than to drop them would.
FEW_EDGES = 2**16
#: A bucket is captured when it has come so often: recording it takes as long as many evaluations.
CAPTURE_AT = 16
#: Captures of a potential, and the memory that they may hold between calls.
MOST_CAPTURES, MOST_BYTES = 128, 2 * 2**30
#: Buckets that are remembered without being captured.
MOST_SEEN = 256
#: Length of ghosts' edges, in units of the cut-off.
GHOST_LENGTH = 1.25

#: What a tensor has one row for.
Rows = Literal["atoms", "frames"]


@dataclass(frozen=True)
class Sizes:
    """How many atoms, edges and structures a graph has."""

    atoms: int
    edges: int
    frames: int

    @staticmethod
    def of(graph: AtomGraph) -> Sizes:
        """Those of a graph."""
        return Sizes(graph.n_atoms, graph.n_edges, graph.n_frames)


def bucket(sizes: Sizes) -> Sizes:
    """The padded sizes: room for a structure of ghosts, which have few enough edges each.

    A kernel that walks over an atom's edges would otherwise wait for a ghost with all of them.
    """
    edges = _rounded(sizes.edges, 16)
    per_ghost = 2 * max(8, sizes.edges // max(sizes.atoms, 1))
    ghosts = max(1, -(-(edges - sizes.edges) // per_ghost))
    return Sizes(_rounded(sizes.atoms + ghosts, 4), edges, _rounded(sizes.frames + 1, 2))


def _rounded(n: int, least: int) -> int:
    """The next of ``STEPS_PER_OCTAVE`` even steps from one power of 2 to the next."""
    step = max(least, (1 << n.bit_length()) // (2 * STEPS_PER_OCTAVE))
    return max(least, -(-n // step) * step)


class PaddedGraph:
    """The tensors of a graph of fixed sizes, filled with graphs that are smaller.

    Args:
        sizes: of the tensors.
        cutoff: Angstrom.
        device: where they lie.

    Attributes:
        graph: the padded graph; its tensors stay where they are.
    """

    def __init__(self, sizes: Sizes, cutoff: float, device: torch.device) -> None:
        self.sizes, self._length = sizes, GHOST_LENGTH * cutoff
        self._filled: Sizes | None = None
        atoms, edges, frames = sizes.atoms, sizes.edges, sizes.frames

        def real(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        def whole(size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int64, device=device)

        self.graph = AtomGraph(
            positions=real(atoms, 3),
            cell=real(frames, 3, 3),
            pbc=torch.zeros((frames, 3), dtype=torch.bool, device=device),
            species=whole(atoms),
            senders=whole(edges),
            receivers=whole(edges),
            images=real(edges, 3),
            row_ptr=whole(atoms + 1),
            sender_order=whole(edges),
            sender_ptr=whole(atoms + 1),
            frame=whole(atoms),
            frame_ptr=whole(frames + 1),
            counted=real(atoms),
        )

    @property
    def tensors(self) -> Tensors:
        """In the order of ``AtomGraph``."""
        return tensors_of(self.graph)

    def fill(self, graph: AtomGraph) -> None:
        """Put a graph, with room for a structure of ghosts beside it, into the tensors."""
        sizes = Sizes.of(graph)
        if sizes != self._filled:
            self._make_ghosts(sizes)
            self._filled = sizes
        pairs = list(zip(self.tensors, tensors_of(graph), strict=True))
        for dtype in {source.dtype for _, source in pairs}:  # of one dtype in one launch
            some = [pair for pair in pairs if pair[1].dtype == dtype]
            targets = [target[: len(source)] for target, source in some]
            torch._foreach_copy_(targets, [source for _, source in some])

    def _make_ghosts(self, real: Sizes) -> None:
        """Write what lies behind a graph of these sizes; edges are dealt evenly to ghosts."""
        graph, sizes = self.graph, self.sizes
        ghosts, edges = sizes.atoms - real.atoms, sizes.edges - real.edges
        device = graph.positions.device
        number = torch.arange(edges, device=device)
        ends = real.atoms + number * ghosts // max(edges, 1)
        upto = real.edges - (-torch.arange(1, ghosts + 1, device=device) * edges) // ghosts
        graph.positions[real.atoms :] = 0
        graph.cell[real.frames :] = self._length * torch.eye(3, device=device)
        graph.pbc[real.frames :] = False
        graph.species[real.atoms :] = 0
        graph.senders[real.edges :] = ends
        graph.receivers[real.edges :] = ends
        graph.images[real.edges :] = torch.eye(3, device=device)[0]
        graph.row_ptr[real.atoms + 1 :] = upto
        graph.sender_order[real.edges :] = real.edges + number
        graph.sender_ptr[real.atoms + 1 :] = upto
        graph.frame[real.atoms :] = real.frames
        graph.frame_ptr[real.frames + 1 :] = sizes.atoms


def has_few_edges(graph: AtomGraph) -> bool:
    """Whether a graph has few edges."""
    return graph.n_edges <= FEW_EDGES


def tensors_of(graph: AtomGraph) -> Tensors:
    """The tensors of a graph in the order of ``AtomGraph``."""
    return tuple(getattr(graph, name) for name in TENSORS)


def late_inputs(
    late: Sequence[tuple[Rows, tuple[int, ...]]], sizes: Sizes, device: torch.device
) -> Tensors:
    """Zeros: what each has a row for, and its other sizes."""
    return tuple(
        torch.zeros((getattr(sizes, rows), *others), dtype=torch.float64, device=device)
        for rows, others in late
    )


# --- capturing ---


class Capturer(Protocol):
    """What makes a function of no arguments, whose tensors stay in place, quick to repeat."""

    def capture(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], object]]:
        """The function's results, and what computes them anew, in place."""


class CudaCapturer:
    """CUDA graphs that share a pool of memory, as they never run at the same time.

    Args:
        device: where the functions compute, whichever device is current. Captured on a stream of
            another one a graph would hold nothing of them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # torch's own is of the device that came first
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], object]]:
        """See ``Capturer``. Kernels are compiled and libraries set up before, in a first run."""
        graph, mode = torch.cuda.CUDAGraph(), "thread_local"
        with torch.cuda.device(self._device):
            work = torch.cuda.current_stream()
            self._stream.wait_stream(work)
            with torch.cuda.stream(self._stream):
                function()
            work.wait_stream(self._stream)
            try:
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode):
                    results = function()
            finally:  # where capturing fails, torch leaves its stream current
                torch.cuda.set_stream(work)
        return results, graph.replay


class Captures:
    """The captures of a potential: a bounded number, used or given up.

    Attributes:
        capturer: what captures; None after it has failed.
        captured: by what they are of, the most recently used last.
        turn: how often an early stage has run; since they share memory, each may overwrite what
            the others have handed on to their late stages.
        lock: of the thread that evaluates, for the same reason.
    """

    def __init__(self, capturer: Capturer) -> None:
        self.capturer: Capturer | None = capturer
        self.captured: OrderedDict[Any, Captured] = OrderedDict()
        self.turn = 0
        self.lock = threading.RLock()
        self._seen: OrderedDict[Any, int] = OrderedDict()

    def find(self, key: Any, make: Callable[[Capturer], Captured]) -> Captured | None:
        """The capture of that key, made if it has come often enough; None if there is none."""
        found = self.captured.get(key)
        if found is not None and found.is_valid():
            self.captured.move_to_end(key)
            return found
        self.captured.pop(key, None)
        if self.capturer is None or (found is None and not self._comes_again(key)):
            return None
        self._bound()
        made = self.attempt(lambda: make(self.capturer))  # type: ignore[arg-type]
        if made is not None:
            self.captured[key] = made
        return made

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other thread, and neither history nor inference mode in tensors that stay."""
        with self.lock, torch.inference_mode(False), torch.no_grad():
            yield

    def attempt(self, capture: Callable[[], Any]) -> Any:
        """What a capture gives; None, and no other attempt ever, if it fails."""
        try:
            return capture()
        except Exception as error:  # whatever it is, there is a plain way to the result
            self.capturer = None
            self.captured.clear()
            before = error.__context__  # ending a capture that has failed fails as well
            reason = error if before is None else f"{before}, then {error}"
            warnings.warn(
                f"evaluations are not captured as CUDA graphs, because that failed: {reason}; "
                "they go on one kernel at a time",
                stacklevel=2,
            )
            return None

    def _comes_again(self, key: Any) -> bool:
        times = self._seen.pop(key, 0) + 1
        if times >= CAPTURE_AT:
            return True
        self._seen[key] = times
        while len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)
        return False

    def _bound(self) -> None:
        """Make room for another."""
        while self.captured and (
            len(self.captured) >= MOST_CAPTURES
            or sum(one.n_bytes() for one in self.captured.values()) > MOST_BYTES
        ):
            self.captured.popitem(last=False)


def captures_of(device: torch.device) -> Captures | None:
    """The captures of a potential on a device; None where nothing is captured."""
    return Captures(CudaCapturer(device)) if device.type == "cuda" else None


@dataclass(frozen=True)
class _Begun:
    """A graph whose early stage has run, and at which turn of all captures.

    Attributes:
        versions: of the graph's tensors and of the weights, which count changes in place.
    """

    graph: AtomGraph
    turn: int
    versions: list[int]


class Captured:
    """A recording of one padded size, captured; called as the recording is, with smaller graphs.

    Args:
        recording: of the padded tensors.
        padded: what it reads.
        late: what its late stage reads besides.
        early: what the early results have a row for.
        captures: whose it is.
        capturer: what captures.

    Attributes:
        padded: the same, filled with the last graph.
        values: the early results, which the next ones overwrite.
    """

    def __init__(
        self,
        recording: Recording,
        padded: PaddedGraph,
        late: Tensors,
        early: Sequence[Rows],
        captures: Captures,
        capturer: Capturer,
    ) -> None:
        self.padded, self._late, self._early = padded, late, early
        self._recording, self._captures, self._capturer = recording, captures, capturer
        self._places = recording.places()
        (self.values, self._handed), self._first = capturer.capture(
            lambda: recording.begin(*padded.tensors)
        )
        self._results: Tensors = ()
        self._second: Callable[[], object] | None = None

    def is_valid(self) -> bool:
        """Whether the weights lie where they lay."""
        return self._recording.places() == self._places

    def n_bytes(self) -> int:
        """Memory that it holds between calls, but for weights."""
        held = (*self.padded.tensors, *self._late, *self.values, *self._handed[1])
        return sum(one.nbytes for one in (*held, *self._results) if isinstance(one, Tensor))

    def __call__(self, *inputs: Tensor) -> Tensors:
        """The early results for these inputs and the weights as they are now."""
        with self._captures.alone():
            return self._run(AtomGraph(*inputs))

    def begin(self, *inputs: Tensor) -> tuple[Tensors, Any]:
        """The early results, and what ``finish`` needs."""
        graph = AtomGraph(*inputs)
        with self._captures.alone():
            values = self._run(graph)
            return values, _Begun(graph, self._captures.turn, self._versions(graph))

    def finish(self, begun: Any, *inputs: Tensor) -> Tensors:
        """The late results.

        Raises:
            RuntimeError: another evaluation has overwritten what the early stage left, and what it
                started from has changed since.
        """
        with self._captures.alone():
            if self._captures.turn != begun.turn:
                if self._versions(begun.graph) != begun.versions:
                    raise RuntimeError(
                        "weights or a structure were changed in place between an evaluation and "
                        "its backward pass, with another evaluation in between: its derivatives "
                        "are gone"
                    )
                self._run(begun.graph)
            _fill(self._late, inputs)
            results = self._captures.attempt(self._run_late)
            if results is None:
                _, state = self._recording.begin(*self.padded.tensors)
                results = self._recording.finish(state, *self._late)
            return tuple(result.clone() for result in results)

    def _run(self, graph: AtomGraph) -> Tensors:
        """The early stage; results of what is real, out of the way of the next evaluation."""
        self.padded.fill(graph)
        self._first()
        self._captures.turn += 1
        sizes = Sizes.of(graph)
        return tuple(
            value[: getattr(sizes, rows)].clone()
            for value, rows in zip(self.values, self._early, strict=True)
        )

    def _run_late(self) -> Tensors:
        """The late results, which the next ones overwrite."""
        if self._second is None:
            recording, handed, late = self._recording, self._handed, self._late  # and no cycle
            self._results, self._second = self._capturer.capture(
                lambda: recording.finish(handed, *late)
            )
        self._second()
        return self._results

    def _versions(self, graph: AtomGraph) -> list[int]:
        tensors = [*tensors_of(graph), *self._recording.weights]
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


class CapturedRecordings:
    """A function of graphs, recorded and captured for padded sizes that come again and again.

    Args:
        record: makes the recording for early inputs, those of a graph, and late ones.
        early: what the early results have a row for.
        late: what the late inputs have a row for, and their other sizes.
        cutoff: Angstrom.
        captures: where captures are kept.
    """

    def __init__(
        self,
        record: Callable[[Tensors, Tensors], Recording],
        early: Sequence[Rows],
        late: Sequence[tuple[Rows, tuple[int, ...]]],
        cutoff: float,
        captures: Captures,
    ) -> None:
        self._record, self._early, self._late = record, early, late
        self._cutoff, self._captures = cutoff, captures

    def find(self, graph: AtomGraph) -> Captured | None:
        """What evaluates graphs of such a size; None where that is left to modules."""
        if graph.n_edges > (FEW_EDGES if self._late else MOST_EDGES):
            return None
        sizes = bucket(Sizes.of(graph))

        def capture(capturer: Capturer) -> Captured:
            device = graph.positions.device
            padded = PaddedGraph(sizes, self._cutoff, device)
            padded.fill(graph)
            late = late_inputs(self._late, sizes, device)
            recording = self._record(padded.tensors, late)
            return Captured(recording, padded, late, self._early, self._captures, capturer)

        with self._captures.alone():
            return self._captures.find((self, sizes), capture)


def _fill(targets: Tensors, sources: Sequence[Tensor]) -> None:
    """Put late inputs into padded ones; what is behind them is zero."""
    for target, source in zip(targets, sources, strict=True):
        target[: len(source)] = source
        target[len(source) :] = 0
