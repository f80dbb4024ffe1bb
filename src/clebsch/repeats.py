"""Evaluations of a potential that repeat: counted, recorded when there were enough, replayed.

A potential asks its ``Repeats`` for results before it runs its modules, and runs them where it gets
none. Here is decided what may be replayed, when it is recorded, and how long that is valid; how
recordings are made is in ``recording.py``, and how they become CUDA graphs in ``replay.py``.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from clebsch.errors import ClebschError
from clebsch.graph import TENSORS, AtomGraph, example_graphs
from clebsch.recording import Recording
from clebsch.replay import (
    Captured,
    CapturedRecordings,
    Captures,
    Rows,
    Sizes,
    captures_of,
    late_inputs,
    tensors_of,
)
from clebsch.rounding import tf32_is_allowed

#: Evaluations after which one is recorded: recording takes as long as some tens of evaluations.
RECORD_AFTER = 20
#: Backends whose operations do not depend on values that are read on the way.
RECORDED = ("llvm", "triton")
#: What the results of recordings have a row for.
ROWS: dict[str, Rows] = {
    "energy": "frames",
    "forces": "atoms",
    "virial": "frames",
    "site_energies": "atoms",
    "layer_energies": "atoms",
}
#: Sizes besides of those that can be differentiated.
SIZES: dict[str, tuple[int, ...]] = {"energy": (), "forces": (3,), "virial": (3, 3)}

#: What runs the modules: of a graph, with its atoms at [N, 3] positions in Angstrom, whether with
#: forces and virials, and whether they are to be differentiated, it gives results by their names.
#: It may not branch on values or sizes.
Evaluate = Callable[[AtomGraph, Tensor, bool, bool], dict[str, Tensor]]


class Evaluated(Protocol):
    """What must be known of a potential to replay its evaluations."""

    @property
    def backend(self) -> str: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    @property
    def cutoff(self) -> float: ...  # noqa: D102
    def modules(self) -> Iterator[nn.Module]: ...  # noqa: D102
    def parameters(self) -> Iterator[nn.Parameter]: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Recorded:
    """Evaluations as they are replayed.

    Attributes:
        names: of the results.
        parameters: what the results are differentiated by.
        recording: gives the results and, where there are parameters, derivatives by them.
    """

    names: list[str]
    parameters: list[nn.Parameter]
    recording: Recording | CapturedRecordings


class Repeats:
    """How often one potential was evaluated, and the recordings and captures made of that.

    The potential is given with every call. Only what captures sizes yet to come keeps it, in a
    cycle that ``forget`` cuts. Here is noticed whether parameters, buffers, modules or hooks were
    replaced; a potential that is moved or cast, or takes another backend, calls ``forget``.

    Attributes:
        recordings: by what they are of; None where none could be made.
        captures: what is captured of them as CUDA graphs; None where nothing is.
    """

    def __init__(self) -> None:
        self.recordings: dict[Any, Recorded | None] = {}
        self.captures: Captures | None = None
        self._n_calls = {False: 0, True: 0}  # by whether they are differentiable
        self._holdings: Holdings | None = None

    def forget(self) -> None:
        """Drop all recordings and captures."""
        self.recordings = {}
        if self.captures is not None:
            self.captures.captured.clear()  # frees its memory now: it lies in a cycle
        self.captures = None

    def replayed(
        self,
        potential: Evaluated,
        evaluate: Evaluate,
        graph: AtomGraph,
        asked: set[str],
        needs_gradient: bool,
        differentiable: bool,
    ) -> dict[str, Tensor] | None:
        """Results by replaying a recording, which is made when it is first needed.

        Args:
            potential: whose evaluation it is.
            evaluate: its own, which is what a recording is made of.
            graph: one or several structures.
            asked: names of outputs, as in ``clebsch.conventions.OUTPUTS``.
            needs_gradient: whether forces or a virial are among them.
            differentiable: whether a loss on the results is to be differentiated, by parameters.

        Returns:
            What was asked for by its name, shaped as in ``Prediction``, with virials in place of
            stresses, and maybe more. None where modules are to run: too few such evaluations came
            before, or this one cannot be replayed, or not at its size.

        Raises:
            ClebschError: in the backward pass, where derivatives are to be differentiated again.
        """
        if not self._are_enough(potential, graph, asked, differentiable):
            return None
        wanted = tuple(sorted(asked - {"stress"} | ({"virial"} if "stress" in asked else set())))
        key: Any = (needs_gradient, tf32_is_allowed())  # CUDA graphs keep what they had
        if differentiable:
            assert self._holdings is not None
            key = (*key, wanted, *(p.requires_grad for p in self._holdings.parameters))
        if key not in self.recordings:
            with torch.inference_mode(False):  # usable outside of it
                self.recordings[key] = _attempted(
                    lambda: self._record(
                        potential, evaluate, needs_gradient, wanted, differentiable
                    ),
                    potential.backend,
                )
        recorded = self.recordings[key]
        if recorded is None:
            return None
        made = recorded.recording
        recording = made.find(graph) if isinstance(made, CapturedRecordings) else made
        if recording is None:
            return None
        tensors = tensors_of(graph)
        if differentiable:
            with torch.enable_grad():
                values = _Replay.apply(recording, len(tensors), *tensors, *recorded.parameters)
        else:
            values = recording(*tensors)
        return dict(zip(recorded.names, values, strict=True))

    def _are_enough(
        self, potential: Evaluated, graph: AtomGraph, asked: set[str], differentiable: bool
    ) -> bool:
        """Whether a recording can be used, and there were evaluations enough to make one.

        Those before a parameter, buffer or module was replaced do not count.
        """
        if "hessian" in asked or potential.backend not in RECORDED or torch.is_anomaly_enabled():
            return False
        if self._holdings is None or not self._holdings.are_current():
            self._holdings = Holdings(potential)
            self._n_calls = {False: 0, True: 0}
            self.forget()
        self._n_calls[differentiable] += 1
        if self._n_calls[differentiable] <= RECORD_AFTER or self._holdings.hooked:
            return False
        if differentiable and not self._only_by_parameters(graph, asked):
            return False
        if self.captures is None:
            self.captures = captures_of(potential.device)
        # Blocks of atoms on GPUs have sizes that no recording of any size can follow.
        of_any_size = potential.backend == "llvm" and min(graph.n_atoms, graph.n_edges) > 1
        return self.captures is not None or of_any_size

    def _only_by_parameters(self, graph: AtomGraph, asked: set[str]) -> bool:
        """Whether only derivatives by parameters can be wanted, which recordings give."""
        assert self._holdings is not None
        return (
            not asked & {"site_energies", "layer_energies"}
            and not any(tensor.requires_grad for tensor in tensors_of(graph))
            and any(parameter.requires_grad for parameter in self._holdings.parameters)
        )

    def _record(
        self,
        potential: Evaluated,
        evaluate: Evaluate,
        needs_gradient: bool,
        wanted: tuple[str, ...],
        differentiable: bool,
    ) -> Recorded:
        """A recording, or on GPUs what makes one for each size.

        With ``differentiable`` it takes the cotangents of what is wanted late, and gives the
        derivatives by parameters.
        """
        names = ["energy", "site_energies", "layer_energies"]
        names += ["forces", "virial"] if needs_gradient else []
        parameters: list[nn.Parameter] = []
        late_rows: list[tuple[Rows, tuple[int, ...]]] = []
        if differentiable:
            names = list(wanted)
            parameters = [p for p in potential.parameters() if p.requires_grad]
            late_rows = [(ROWS[name], SIZES[name]) for name in names]
        n_early = len(TENSORS)

        def function(*tensors: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            graph, cotangents = AtomGraph(*tensors[:n_early]), list(tensors[n_early:])
            with torch.set_grad_enabled(differentiable or needs_gradient):
                results = evaluate(graph, graph.positions, needs_gradient, differentiable)
                values = [results[name] for name in names]
                gradients: tuple[Tensor, ...] = ()
                if differentiable:
                    gradients = torch.autograd.grad(
                        values, parameters, cotangents, materialize_grads=True
                    )
            return tuple(value.detach() for value in values), gradients

        if self.captures is not None:
            rows = [ROWS[name] for name in names]
            captured = CapturedRecordings(
                lambda early, late: Recording(function, [(early, late)]),
                rows,
                late_rows,
                potential.cutoff,
                self.captures,
            )
            return Recorded(names, parameters, captured)
        device = potential.device
        examples = [
            (tensors_of(graph), late_inputs(late_rows, Sizes.of(graph), device))
            for graph in example_graphs(device)
        ]
        return Recorded(names, parameters, Recording(function, examples))


def _attempted(record: Callable[[], Recorded], backend: str) -> Recorded | None:
    """A recording; None, with a warning, where one cannot be made."""
    try:
        return record()
    except Exception as error:  # what is not an operation on tensors alone, for any reason
        reason = str(error) or type(error).__name__
        warnings.warn(
            f"evaluations on the {backend} backend are not recorded, because that failed "
            f"({reason.splitlines()[0]}); they run as before",
            stacklevel=5,
        )
        return None


# --- gradients ---

#: Stands where torch keeps a tensor for the backward pass.
_SAVED = object()


class _Replay(torch.autograd.Function):
    """A recording's results, differentiable once, by parameters."""

    @staticmethod
    def forward(ctx: Any, recording: Recording | Captured, n_tensors: int, *tensors: Tensor) -> Any:
        ctx.recording = recording
        values, begun = recording.begin(*tensors[:n_tensors])
        # so that torch frees tensors when they are no longer needed
        flat, ctx.structure = pytree.tree_flatten(begun)
        ctx.save_for_backward(*(one for one in flat if isinstance(one, Tensor)))
        ctx.rest = [_SAVED if isinstance(one, Tensor) else one for one in flat]
        ctx.n_tensors = n_tensors
        return tuple(value.clone() for value in values)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise ClebschError(
                "derivatives by parameters that are to be differentiated (create_graph=True) need "
                'the modules: potential.use_backend("reference")'
            )
        saved = iter(ctx.saved_tensors)
        flat = [next(saved) if one is _SAVED else one for one in ctx.rest]
        gradients = ctx.recording.finish(pytree.tree_unflatten(flat, ctx.structure), *cotangents)
        return (None, None, *[None] * ctx.n_tensors, *gradients)


# --- what recordings are valid for ---

#: Kinds of hooks that torch has for each module, and for all modules.
HOOKS = ("forward", "forward_pre", "backward", "backward_pre")


class Holdings:
    """The parameters, buffers, modules and hooks of a potential, to see whether they are replaced.

    Args:
        potential: whose they are, and of the modules within; it is not kept.

    Attributes:
        parameters: every parameter, once.
        hooked: whether a module within has hooks, or all modules have, which only calls of
            modules run.
    """

    def __init__(self, potential: Evaluated) -> None:
        modules = list(potential.modules())
        hooks = [getattr(m, f"_{kind}_hooks") for m in modules[1:] for kind in HOOKS] + [
            getattr(torch.nn.modules.module, f"_global_{kind}_hooks") for kind in HOOKS
        ]
        held = [each for m in modules for each in (m._parameters, m._buffers, m._modules)]
        self.parameters = list(potential.parameters())
        self.hooked = any(hooks)
        self._places: list[Any] = [*held, *hooks]
        self._objects = self._now()
        self._tensors = [each for each in self._objects if isinstance(each, Tensor)]
        self._dtypes = [tensor.dtype for tensor in self._tensors]

    def are_current(self) -> bool:
        """Whether all are the same objects of the same precision; their values may differ."""
        now = self._now()
        return (
            len(now) == len(self._objects)
            and all(map(operator.is_, now, self._objects))
            and [tensor.dtype for tensor in self._tensors] == self._dtypes
        )

    def _now(self) -> list[Any]:
        return list(chain.from_iterable(each.values() for each in self._places))
