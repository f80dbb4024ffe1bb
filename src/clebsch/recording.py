"""An evaluation as a flat list of operations: no modules, no autograd, no repeated work on weights.

For small structures most of the time goes into Python and autograd rather than arithmetic. A
recording follows one evaluation, derivatives included, with symbolic sizes, keeps its tensor
operations, and sorts them into three stages by what they depend on: weights alone (normalising,
packing, contracting with couplings: done again only when a weight has changed), inputs, and inputs
that come later (the cotangents of a backward pass).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from clebsch.kernels.operators import kernel_of

#: Operations that return their argument, once nothing is differentiated.
_IDLE = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
#: Operations that do so where all of a dimension is meant, with what then stands where in their
#: arguments: what ``x[:, None]`` leaves behind, and its derivative.
_PARTS: dict[Any, tuple[int, tuple[int, ...]]] = {
    torch.ops.aten.slice.Tensor: (2, (0, sys.maxsize)),
    torch.ops.aten.slice_backward.default: (3, (0, sys.maxsize, 1)),
}

Tensors = tuple[Tensor, ...]


class Recording:
    """``function(*inputs)`` as lists of operations, replayed for inputs of any size.

    Args:
        function: gives two tuples of tensors, those that depend on early inputs alone and those
            that depend on late ones too. It may not branch on values, nor on sizes. Other tensors
            that it uses are its weights, which may change in place.
        early: inputs to record with, of different sizes where sizes may differ, and none of 0 or
            1, which are special to torch.
        late: more of them, that come later.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Tensors, Tensors]],
        early: Sequence[Tensor],
        late: Sequence[Tensor] = (),
    ) -> None:
        n_results: list[int] = []

        def flat(*inputs: Tensor) -> Tensors:
            first, second = function(*inputs)
            n_results[:] = [len(first), len(second)]
            return (*first, *second)

        traced = make_fx(flat, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*early, *late)
        _simplify(traced.graph)
        self._weights = [
            getattr(traced, str(node.target))
            for node in traced.graph.nodes
            if node.op == "get_attr"
        ]
        self._n_results = n_results[0]
        self._prepare, self._first, self._second = _stages(traced, len(early), n_results[0])
        # Elsewhere it would be waiting for an answer: work on weights is done every time.
        self._asks_for_changes = early[0].device.type == "cpu"
        self._prepared: tuple[Any, ...] = ()
        self._state: list[Any] = []

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
        return [weight.data_ptr() for weight in self._weights]

    def _prepared_now(self) -> tuple[Any, ...]:
        """What depends on weights alone."""
        if not self._asks_for_changes:
            return tuple(self._prepare())
        state = self._state_of_weights()
        if state != self._state:
            self._prepared, self._state = self._prepare(), state
        return self._prepared

    def _state_of_weights(self) -> list[Any]:
        """Changes when a weight does.

        Versions alone would not: fused optimisers and ``weight.data`` leave them as they are.
        """
        versions = [(weight.data_ptr(), weight._version) for weight in self._weights]
        numbers: dict[torch.dtype, list[Tensor]] = {}
        for weight in self._weights:
            if weight.is_floating_point():
                numbers.setdefault(weight.dtype, []).append(weight)
        norms = [torch.stack(torch._foreach_norm(alike)).tolist() for alike in numbers.values()]
        return [*versions, *norms]

    def finish(self, begun: tuple[Any, ...], *inputs: Tensor) -> Tensors:
        """The late results."""
        prepared, values = begun
        with torch.no_grad():
            results: Tensors = self._second(*prepared, *values, *inputs)
        return results


def _simplify(graph: fx.Graph) -> None:
    """Drop what does nothing and what nobody uses, and do nothing twice."""
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
