"""An evaluation as a flat list of operations: no modules, no autograd, no repeated work on weights.

For small structures most of the time goes into Python and autograd rather than arithmetic. A
recording follows an evaluation, derivatives included, keeps its tensor operations, and sorts them
into three stages by what they depend on: weights alone (normalising, packing, contracting with
couplings: done again only when a weight has changed), inputs, and inputs that come later (the
cotangents of a backward pass).

Sizes are found out, not reasoned about: the evaluation runs for several examples, and a whole
number that differs among them must be a sum of multiples of the inputs' sizes. With one example
there are no other sizes than its own.
"""

from __future__ import annotations

import ctypes
import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from clebsch.kernels.operators import kernel_of

#: Operations that return their argument, once nothing is differentiated.
_IDLE = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
#: Operations that do so where all of a dimension is meant, with what then stands where in their
#: arguments: what ``x[:, None]`` leaves behind, and its derivative.
_PARTS: dict[Any, tuple[int, tuple[int, ...]]] = {
    torch.ops.aten.slice.Tensor: (2, (0, sys.maxsize)),
    torch.ops.aten.slice_backward.default: (3, (0, sys.maxsize, 1)),
}
#: Marks of operations whose results follow from more than the shapes of their arguments.
_UNFORESEEABLE = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
}
#: Numbers in a tensor that is made once and kept, at most.
MOST_CONSTANT = 2**14
#: Ways of reading values that are no operations.
_READING = (Tensor.tolist, Tensor.numpy, Tensor.__array__)
_DIFFERENT = "an evaluation that depends on more of its inputs than sizes cannot be recorded"

Tensors = tuple[Tensor, ...]


class Recording:
    """``function(*inputs)`` as lists of operations, replayed for inputs of other sizes.

    Args:
        function: gives two tuples of tensors, those that depend on early inputs alone and those
            that depend on late ones too. It may not branch on values, nor on sizes. Other tensors
            that it uses are its weights, which may change in place.
        examples: inputs to record with, early ones and late ones. Sizes that may differ do so
            among them, each independently of the others, and none is 0 or 1, which are special to
            torch. With two more examples than there are such sizes none is guessed; only a branch
            that sizes larger than all of theirs would take goes unnoticed. One example makes a
            recording for its sizes alone.

    Attributes:
        weights: tensors that it uses beside its inputs.

    Raises:
        TypeError: an operation whose results follow from values, or that changes a tensor, or
            that is not the same for all examples.
        ValueError: a tensor that is two inputs of an example.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Tensors, Tensors]],
        examples: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]],
    ) -> None:
        counted = _Counted(function)
        traced = _merged([_Trace(counted, [*early, *late]) for early, late in examples])
        _simplify(traced.graph)
        _make_constants(traced)
        self.weights = [
            getattr(traced, str(node.target))
            for node in traced.graph.nodes
            if node.op == "get_attr"
        ]
        self._n_results = counted.n_early
        early = examples[0][0]
        self._prepare, self._first, self._second = _stages(traced, len(early), self._n_results)
        # Elsewhere it would be waiting for an answer: work on weights is done every time.
        self._asks_for_changes = early[0].device.type == "cpu"
        self._prepared: tuple[Any, ...] | None = None
        self._weights_then: list[Tensor] = []

    def __call__(self, *inputs: Tensor) -> Tensors:
        """The early results for these inputs and the weights as they are now."""
        return self.begin(*inputs)[0]

    def begin(self, *inputs: Tensor) -> tuple[Tensors, tuple[Any, ...]]:
        """The early results, and what ``finish`` needs."""
        with torch.no_grad():
            prepared = self._prepared_now()
            values = self._first(*prepared, *inputs)
        return values[: self._n_results], (prepared, values[self._n_results :])

    def places(self) -> list[int]:
        """Where the weights lie; they may change there."""
        return [weight.data_ptr() for weight in self.weights]

    def _prepared_now(self) -> tuple[Any, ...]:
        """What depends on weights alone."""
        if not self._asks_for_changes:
            return tuple(self._prepare())
        if self._prepared is None or not all(map(_has_bytes_of, self.weights, self._weights_then)):
            with torch.inference_mode(False), torch.no_grad():  # usable outside of it
                then = [weight.detach().clone() for weight in self.weights]
                self._prepared = tuple(self._prepare())
            self._weights_then = then
        return self._prepared

    def finish(self, begun: tuple[Any, ...], *inputs: Tensor) -> Tensors:
        """The late results."""
        prepared, values = begun
        with torch.no_grad():
            results: Tensors = self._second(*prepared, *values, *inputs)
        return results


#: Of C's library: compares so many bytes at two places.
_memcmp = (ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def _has_bytes_of(now: Tensor, then: Tensor) -> bool:
    """Whether a tensor on the CPU is unchanged.

    Versions would not tell: fused optimisers and ``weight.data`` leave them as they are.
    """
    if now.dtype != then.dtype or now.shape != then.shape:
        return False
    if now.is_contiguous() and then.is_contiguous():
        return not _memcmp(now.data_ptr(), then.data_ptr(), then.nbytes)
    return torch.equal(now, then)


class _Counted:
    """A function with its results in one tuple.

    Attributes:
        n_early: how many of them are early.
    """

    def __init__(self, function: Callable[..., tuple[Tensors, Tensors]]) -> None:
        self._function = function
        self.n_early = 0

    def __call__(self, *inputs: Tensor) -> Tensors:
        """The early ones, then the late ones."""
        early, late = self._function(*inputs)
        self.n_early = len(early)
        return (*early, *late)


# --- following evaluations ---


@dataclass(frozen=True)
class _Value:
    """A tensor of a trace: an input, a weight, or a result of a step."""

    kind: Literal["input", "weight", "step"]
    number: int
    place: int = 0


@dataclass(frozen=True)
class _Step:
    """An operation.

    Attributes:
        operation: of torch.
        structure: of its arguments.
        arguments: ``_Value`` in place of tensors, all else as it is.
        n_results: how many tensors it gives; None if it gives one by itself.
    """

    operation: Any
    structure: pytree.TreeSpec
    arguments: list[Any]
    n_results: int | None


class _Trace(TorchDispatchMode):
    """One evaluation.

    Attributes:
        inputs: its inputs.
        steps: its operations in their order.
        weights: tensors that were there before, in the order in which they were first used.
        results: its results.
    """

    def __init__(self, function: Callable[..., Tensors], inputs: Sequence[Tensor]) -> None:
        super().__init__()
        if len({id(tensor) for tensor in inputs}) < len(inputs):
            raise ValueError("no two inputs of an example may be the same tensor")
        self.inputs = inputs
        self.steps: list[_Step] = []
        self.weights: list[Tensor] = []
        self._known: dict[int, _Value] = {}
        self._alive: list[Tensor] = []  # or others could come to have their identities
        for number, tensor in enumerate(inputs):
            self._know(tensor, _Value("input", number))
        # On GPUs autograd would otherwise work in a thread of its own.
        with torch.autograd.set_multithreading_enabled(False), _NoReading(), self:
            results = function(*inputs)
        self.results = [self._value(tensor) for tensor in results]
        self._alive.clear()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler, which takes seconds and is not used."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and write it down."""
        kwargs = kwargs or {}
        if _is_unforeseeable(func, args, kwargs):
            raise TypeError(
                f"{func} cannot be recorded: it reads or draws values, or shapes follow from them"
            )
        arguments, structure = pytree.tree_flatten((args, kwargs))
        with torch._C.DisableTorchFunction():
            results = func(*args, **kwargs)
        arguments = [self._value(one) if isinstance(one, Tensor) else one for one in arguments]
        operation = func
        if func._schema.is_mutable:
            operation = _giving(func)
            self._check_alone(args[0])
        single = isinstance(results, Tensor)
        for place, tensor in enumerate((results,) if single else results):
            self._know(tensor, _Value("step", len(self.steps), place))
        self.steps.append(_Step(operation, structure, arguments, None if single else len(results)))
        return results

    def _check_alone(self, changed: Tensor) -> None:
        """A change in place may show nowhere else: not in an input, a weight or another view."""
        place = changed.untyped_storage()._cdata
        others = [one for one in self._alive if one.untyped_storage()._cdata == place]
        known = self._known.get(id(changed))
        if known is None or known.kind != "step" or any(one is not changed for one in others):
            raise TypeError("a change of a tensor that others share cannot be recorded")

    def _know(self, tensor: Tensor | None, value: _Value) -> None:
        if tensor is None:  # as derivatives are that nobody wants
            return
        self._known[id(tensor)] = value
        self._alive.append(tensor)

    def _value(self, tensor: Tensor) -> _Value:
        if id(tensor) not in self._known:
            self._know(tensor, _Value("weight", len(self.weights)))
            self.weights.append(tensor)
        return self._known[id(tensor)]


class _NoReading(TorchFunctionMode):
    """Refuses ways of reading values that are no operations."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Do anything else."""
        if func in _READING:
            raise TypeError(f"{func.__name__} cannot be recorded: it reads values")
        return func(*args, **(kwargs or {}))


def _giving(operation: Any) -> Any:
    """What gives the result that an operation puts in place of its first argument."""
    name = operation._schema.name.removeprefix("aten::")
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    if packet is None or not name.endswith("_"):
        raise TypeError(f"{operation} cannot be recorded: it changes a tensor")
    return getattr(packet, operation._overloadname)


def _is_unforeseeable(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether shapes of results follow from values, or values are read or drawn."""
    if operation is torch.ops.aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    if operation is torch.ops.aten.index.Tensor:
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    return not _UNFORESEEABLE.isdisjoint(operation.tags)


def _merged(traces: Sequence[_Trace]) -> fx.GraphModule:
    """What all traces do, with their results in one tuple.

    Raises:
        TypeError: they do not do the same.
    """
    graph = fx.Graph()
    inputs = [graph.placeholder(f"input_{i}") for i in range(len(traces[0].inputs))]
    sizes = _Sizes(graph, inputs, [trace.inputs for trace in traces])
    nodes = {_Value("input", i): node for i, node in enumerate(inputs)}
    weights = {}
    for number, alike in enumerate(_together([trace.weights for trace in traces])):
        if not all(one is alike[0] or torch.equal(one, alike[0]) for one in alike):
            raise TypeError("a tensor made of values, by no operation, cannot be recorded")
        weights[f"weight_{number}"] = alike[0]
        nodes[_Value("weight", number)] = graph.get_attr(f"weight_{number}")
    for number, steps in enumerate(_together([trace.steps for trace in traces])):
        step = steps[0]
        if any((one.operation, one.structure) != (step.operation, step.structure) for one in steps):
            raise TypeError(_DIFFERENT)
        agreed = [sizes.agreed(alike) for alike in _together([one.arguments for one in steps])]
        arguments = [nodes[one] if isinstance(one, _Value) else one for one in agreed]
        args, kwargs = pytree.tree_unflatten(arguments, step.structure)
        node = graph.call_function(step.operation, args, kwargs)
        if step.n_results is None:
            nodes[_Value("step", number)] = node
        for place in range(step.n_results or 0):
            part = graph.call_function(operator.getitem, (node, place))
            nodes[_Value("step", number, place)] = part
    results = [sizes.agreed(alike) for alike in _together([trace.results for trace in traces])]
    graph.output(tuple(nodes[result] for result in results))
    return fx.GraphModule(weights, graph)


def _together(lists: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """What has the same place in all of them."""
    if len({len(one) for one in lists}) > 1:
        raise TypeError(_DIFFERENT)
    return list(zip(*lists, strict=True))


class _Sizes:
    """Whole numbers of a graph as sums of multiples of its inputs' sizes.

    Args:
        graph: where they are computed.
        inputs: its inputs.
        examples: tensors in their place.
    """

    def __init__(
        self, graph: fx.Graph, inputs: Sequence[fx.Node], examples: Sequence[Sequence[Tensor]]
    ) -> None:
        self._graph = graph
        self._nodes: list[fx.Node] = []
        self._table = np.ones((len(examples), 1))  # a column of ones, and one for each free size
        for node, alike in zip(inputs, _together(examples), strict=True):
            for dim, values in enumerate(_together([tensor.shape for tensor in alike])):
                table = np.column_stack([self._table, values])
                if np.linalg.matrix_rank(table) == table.shape[1]:
                    self._table = table
                    self._nodes.append(graph.call_method("size", (node, dim)))

    def agreed(self, alike: tuple[Any, ...]) -> Any:
        """What an argument is that was this in the examples: the same, or a node."""
        kinds = {type(one) for one in alike}
        if len(kinds) == 1 and all(one == alike[0] for one in alike):
            return alike[0]
        if kinds != {int}:
            raise TypeError(_DIFFERENT)
        factors = (
            np.linalg.lstsq(self._table, np.array(alike, float), rcond=None)[0].round().astype(int)
        )
        if (self._table.astype(int) @ factors).tolist() != list(alike):
            raise TypeError(f"a size that is no sum of multiples of sizes, {alike}: " + _DIFFERENT)
        constant, *multiples = factors.tolist()
        terms = [
            node if factor == 1 else self._graph.call_function(operator.mul, (node, factor))
            for node, factor in zip(self._nodes, multiples, strict=True)
            if factor
        ]
        if constant:
            terms.append(constant)
        return reduce(lambda a, b: self._graph.call_function(operator.add, (a, b)), terms)


# --- making them short ---


def _simplify(graph: fx.Graph) -> None:
    """Remove operations without effect, unused results and repetitions."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "call_function" and _is_idle(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.op in ("call_function", "get_attr"):
            key = (node.op, node.target, repr(node.args), repr(node.kwargs))
            if key in seen:
                node.replace_all_uses_with(seen[key])
                graph.erase_node(node)
            else:
                seen[key] = node
    graph.eliminate_dead_code()


def _is_idle(node: fx.Node) -> bool:
    if node.target not in _PARTS:
        return node.target in _IDLE
    place, whole = _PARTS[node.target]
    return node.args[place:] == whole


def _make_constants(traced: fx.GraphModule) -> None:
    """Make now, as one more weight, what follows from nothing and is small: numbers in a row, say.

    On GPUs it would be made in every replay, and each costs what a launch costs.
    """
    for number, node in enumerate(list(traced.graph.nodes)):
        if node.op != "call_function" or node.all_input_nodes:
            continue
        with torch.inference_mode(False):  # usable outside of it
            made = node.target(*node.args, **node.kwargs)
        if not isinstance(made, Tensor) or made.numel() > MOST_CONSTANT:
            continue
        traced.register_buffer(f"constant_{number}", made)
        with traced.graph.inserting_before(node):
            node.replace_all_uses_with(traced.graph.get_attr(f"constant_{number}"))
        traced.graph.erase_node(node)


def _stages(
    traced: fx.GraphModule, n_early: int, n_results: int
) -> tuple[fx.GraphModule, fx.GraphModule, fx.GraphModule]:
    """Operations on weights, on early inputs, on late ones.

    Each takes what the stages before it hand on, in order, and then its own inputs; the second
    gives the early results before what it hands on, the third the late results.
    """
    nodes = list(traced.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    stage = {node: 1 if i < n_early else 2 for i, node in enumerate(placeholders)}
    for node in nodes:
        if node.op not in ("placeholder", "output"):
            stage[node] = max((stage[argument] for argument in node.all_input_nodes), default=0)
    output = nodes[-1]
    results = list(output.args[0])
    handed: list[list[fx.Node]] = [[], []]
    for node in nodes[:-1]:
        late = any(user is not output and stage[user] > stage[node] for user in node.users)
        late = late or (node in results[:n_results] and stage[node] < 1)
        late = late or (node in results[n_results:] and stage[node] < 2)
        if late:
            handed[stage[node]].append(node)
    given = [[], handed[0], handed[0] + handed[1]]
    returned = [handed[0], results[:n_results] + handed[1], results[n_results:]]
    modules = []
    for number in range(3):
        graph = fx.Graph()
        own = [node for node in placeholders if stage[node] == number]
        copies = {node: graph.placeholder(f"given_{i}") for i, node in enumerate(given[number])}
        copies |= {node: graph.placeholder(f"input_{i}") for i, node in enumerate(own)}
        for node in nodes[:-1]:
            if stage[node] == number and node.op != "placeholder":
                copies[node] = graph.node_copy(node, copies.__getitem__)
                copies[node].target = kernel_of(node.target)
        graph.output(tuple(copies[node] for node in returned[number]))
        modules.append(fx.GraphModule(traced, graph))
    first, second, third = modules
    return first, second, third
