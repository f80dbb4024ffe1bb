"""An evaluation as a flat list of operations: no autograd, no modules, no work on weights.

For small structures most of the time goes into Python and autograd rather than arithmetic. A
recording follows one evaluation, derivatives included, with symbolic sizes, and keeps its tensor
operations. What depends on weights alone (normalising, packing, contracting with couplings) is
split off and done once, until a weight changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

#: Operations that return their argument, once nothing is differentiated.
_IDLE = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


class Recording:
    """``function(*inputs)`` as a list of operations, replayed for inputs of any size.

    Args:
        function: tensors from tensors. It may not branch on their values, nor on their sizes; other
            tensors that it uses are its weights, which may change in place.
        examples: inputs to record with, of different sizes where sizes may differ, and none of 0 or
            1, which are special to torch.
    """

    def __init__(
        self, function: Callable[..., tuple[Tensor, ...]], examples: Sequence[Tensor]
    ) -> None:
        traced = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*examples)
        _simplify(traced.graph)
        self._weights = [
            getattr(traced, str(node.target))
            for node in traced.graph.nodes
            if node.op == "get_attr"
        ]
        self._prepare, self._replay = _split(traced)
        self._prepared: tuple[Tensor, ...] = ()
        self._state: list[tuple[int, int]] = []

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The results for these inputs and the weights as they are now."""
        with torch.no_grad():
            state = [(weight.data_ptr(), weight._version) for weight in self._weights]
            if state != self._state:
                self._prepared = self._prepare()
                self._state = state
            results: tuple[Tensor, ...] = self._replay(*self._prepared, *inputs)
        return results


def _simplify(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _IDLE:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _split(traced: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    """What depends on weights alone, and the rest, which takes its results first."""
    nodes = list(traced.graph.nodes)
    constant: set[fx.Node] = set()
    for node in nodes:
        varies = node.op in ("placeholder", "output")
        if not varies and all(argument in constant for argument in node.all_input_nodes):
            constant.add(node)
    handed = [n for n in nodes if n in constant and any(user not in constant for user in n.users)]
    first, second = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node in constant:
            copies[node] = first.node_copy(node, lambda n: copies[n])
    first.output(tuple(copies[node] for node in handed))
    copies = {node: second.placeholder(f"prepared_{i}") for i, node in enumerate(handed)}
    for node in nodes:
        if node not in constant:
            copies[node] = second.node_copy(node, lambda n: copies[n])
    return fx.GraphModule(traced, first), fx.GraphModule(traced, second)
