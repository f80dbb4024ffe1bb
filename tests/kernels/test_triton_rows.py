"""Sums over sorted rows on GPUs: the reference's values, without waiting and without atomics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ase import Atoms
from operator_calls import Calls
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton_checks import (
    DEVICE,
    DTYPES,
    EMPTY,
    SOME,
    assert_as_reference,
    assert_equal,
    inputs_of,
    randn,
    twice,
)

import clebsch
from builders import MODELS, ethanol, potential, skewed_cell
from captures import InPlace, capture_with, gradients
from clebsch.algebra import Irreps, spherical_irreps
from clebsch.kernels import dispatch, gpu
from clebsch.kernels.gpu import linear_maps, machine, product, segments
from clebsch.kernels.plan import contraction_plan, convolution_plan
from clebsch.recording import Recording
from clebsch.replay import Captures, tensors_of

# --- values and derivatives ---


@DTYPES
@pytest.mark.parametrize("shape", [(), (3,), (3, 3), (130,)], ids=str)
@pytest.mark.parametrize("long", [2, 256], ids="{} rows a program".format)
def test_sums_of_segments(
    long: int, shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty ones among them; narrow and wide rows; in one program or in parts."""
    monkeypatch.setattr(segments, "LONG", long)
    ptr = torch.tensor([0, 0, 3, 20, 20, 21], device=DEVICE)
    assert_as_reference(
        lambda backend, values: backend.segment_sum(values, ptr), (randn(21, *shape, dtype=dtype),)
    )


@pytest.mark.parametrize("graph", [SOME, *EMPTY.values()], ids=["some", *EMPTY])
@pytest.mark.parametrize("name", ["from_senders", "from_receivers", "to_senders"])
def test_what_edges_and_atoms_give_each_other(name: str, graph: Any) -> None:
    n_rows = graph.n_edges if name == "to_senders" else graph.n_atoms
    assert_as_reference(
        lambda backend, values: getattr(backend, name)(values, graph),
        (randn(n_rows, 2, 3, strided=True),),
    )


@pytest.mark.parametrize("index", [(), (2,), (2, 0, 2, 2, 0)], ids=str)
def test_rows_of_a_table(index: tuple[int, ...]) -> None:
    """Row 1 is never taken."""
    found = torch.tensor(index, dtype=torch.int64, device=DEVICE)
    assert_as_reference(lambda backend, table: backend.rows(table, found), (randn(3, 4),))


@DTYPES
@pytest.mark.parametrize("species", [None, (), (1,), (2, 0, 2, 2, 0, 2, 2)], ids=str)
def test_linear_maps(
    species: tuple[int, ...] | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of two atoms; an irrep without input; a species without atoms."""
    monkeypatch.setattr(linear_maps, "FEWEST_ATOMS", 2)
    n_atoms = 5 if species is None else len(species)
    kinds = None
    if species is not None:
        kinds = torch.tensor(species, dtype=torch.int64, device=DEVICE)
    dims, copies = (1, 3, 5), (2, 1, 0)
    features = randn(n_atoms, 5, 4, dtype=dtype)
    weight = randn(1 if species is None else 3, 12, 4, dtype=dtype)
    assert_as_reference(
        lambda backend, *inputs: backend.linear(*inputs, kinds, dims, copies), (features, weight)
    )


def test_blocks_of_atoms_grow_with_their_number() -> None:
    assert linear_maps.atoms_of_block(27) == linear_maps.FEWEST_ATOMS
    assert linear_maps.atoms_of_block(1000) == 31
    assert linear_maps.atoms_of_block(100_000) == linear_maps.MOST_ATOMS


@pytest.mark.parametrize("summed", [False, True], ids=["apart", "summed"])
def test_products_on_edges(summed: bool) -> None:
    plan = convolution_plan(
        spherical_irreps(1), spherical_irreps(1), Irreps.parse("0e+1o+2e"), summed
    )
    tensors = randn(SOME.n_edges, plan.node_irreps.dim, 3)
    environment = randn(SOME.n_atoms, plan.harmonic_irreps.dim, 3)
    assert_as_reference(
        lambda backend, *inputs: backend.edge_product(plan, *inputs, SOME), (tensors, environment)
    )


def test_operators_are_what_torch_expects() -> None:
    features, weight = randn(4, 1, 2), randn(2, 2, 2)
    species = torch.tensor([1, 0, 1, 1], device=DEVICE)
    with Calls("clebsch_gpu") as found:
        twice(gpu.linear(features, weight, species, (1,), (1,)), (features, weight))
        twice(gpu.segment_sum(features, torch.tensor([0, 1, 4], device=DEVICE)), (features,))
    samples = dict(found.seen)
    assert set(samples) == {"take_rows", "sum_rows", "rearranged"}
    for name, args in samples.items():
        first = args[0].detach().clone().requires_grad_()
        torch.library.opcheck(getattr(torch.ops.clebsch_gpu, name), (first, *args[1:]))


# --- no atomics, no waiting ---

#: Threads add to the same number in any order: other bits in every run.
ATOMIC = {
    *("index_add", "index_add_", "scatter_add", "scatter_add_", "scatter_reduce", "index_reduce"),
    *("scatter_reduce_", "index_reduce_", "embedding_dense_backward", "histc"),
}
#: The host waits for the device, or copies to it, or a shape depends on values.
WAITING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique", "_unique2"),
    *("unique_consecutive", "bincount", "equal", "is_nonzero", "lift_fresh", "item"),
}


class Refuse(TorchDispatchMode):
    """Refuses operations, within our operators as well; launching is left out there."""

    def __init__(self, refused: set[str]) -> None:
        super().__init__()
        self.refused = refused

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        if name in self.refused:
            raise AssertionError(f"{name} must not be used here")
        if name in ("index_put", "index_put_", "_index_put_impl_") and (
            "index_put" in self.refused and (kwargs.get("accumulate") or (*args, 0, 0, 0)[3])
        ):
            raise AssertionError("index_put that accumulates must not be used here")
        if name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1]):
            raise AssertionError("indexing with a mask waits for the number of its elements")
        if func.namespace == "clebsch_gpu":
            keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
            with self:
                return func.redispatch(keys, *args, **kwargs)
        return func(*args, **kwargs)


@pytest.fixture
def no_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels do nothing: which operations of torch there are does not depend on numbers."""
    monkeypatch.setattr(machine, "launch", lambda *arguments, **constants: None)


def on_triton(model: str) -> clebsch.Potential:
    """Constants that are made once are made in a first call."""
    tested = potential(model, backend="reference").to(DEVICE)
    tested.compute_with(dispatch.load_backend("triton"))
    evaluate(tested)
    return tested


def evaluate(tested: clebsch.Potential, around: Callable[[], Any] | None = None) -> None:
    graph = tested.graph([ethanol(), skewed_cell(), Atoms("O")])
    parameters = [p for p in tested.parameters() if p.requires_grad]
    if around is None:
        around = lambda: torch.no_grad()  # noqa: E731
    with around():
        tested(graph, ("energy", "forces", "virial", "site_energies"))
    cotangents = {"energy": graph.n_frames, "forces": (graph.n_atoms, 3)}
    with torch.enable_grad():
        given = [
            torch.ones(size, dtype=torch.float64, device=DEVICE) for size in cotangents.values()
        ]
        with around():
            found = tested(graph, tuple(cotangents), differentiable=True)
            values = [getattr(found, name) for name in cotangents]
            torch.autograd.grad(values, parameters, given, materialize_grads=True)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="redispatches to operators of CPUs")
@pytest.mark.parametrize("model", [name for name in MODELS if not name.startswith("ace")])
def test_nothing_waits_or_adds_in_any_order(
    model: str, no_launches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, backward and double backward of every architecture.

    But for one answer before an evaluation begins, which is not asked here: whether atoms are in
    contact.
    """
    tested = on_triton(model)
    monkeypatch.setattr(tested, "is_in_contact", lambda graph: False)
    evaluate(tested, lambda: Refuse(ATOMIC | WAITING | {"index_put"}))


@pytest.mark.skipif(DEVICE.type != "cpu", reason="as above")
def test_what_is_refused_is_noticed(no_launches: None) -> None:
    tested = on_triton("allegro")
    tested.compute_with(dispatch.load_backend("reference"))
    with pytest.raises(AssertionError, match=r"index_add|index_put"):
        evaluate(tested, lambda: Refuse(ATOMIC | {"index_put"}))
    with pytest.raises(AssertionError, match=r"_local_scalar_dense|bincount"):
        evaluate(tested, lambda: Refuse(WAITING))
    table = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(AssertionError, match="mask"), Refuse(WAITING):
        table[table > 0]
    with pytest.raises(AssertionError, match="sum_rows"), Refuse({"sum_rows"}):
        gpu.segment_sum(table, torch.tensor([0, 2]))
    with pytest.raises(AssertionError, match="searchsorted"), Refuse({"searchsorted"}):
        gpu.linear(randn(2, 1, 1), randn(1, 1, 1), torch.tensor([0, 0]), (1,), (1,))


@pytest.mark.parametrize(
    "model", ["mace", "mace with gates of neighbours", "pace", "allegro three layers, full"]
)
def test_evaluations_and_gradients_can_be_recorded(
    model: str, no_launches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has a shape that depends on values, or asks for one, cannot."""
    tested = on_triton(model)
    monkeypatch.setattr("clebsch.replay.CAPTURE_AT", 1)
    tested._repeats.captures = Captures(InPlace())
    for differentiable in (False, True):
        made = tested._repeats._record(
            tested, tested._results, True, ("energy", "forces"), differentiable
        )
        graph = tested.graph([ethanol(), Atoms("OH", [[0, 0, 0], [0, 0, 1]])])
        recording = made.recording.find(graph)
        values, begun = recording.begin(*tensors_of(graph))
        found = dict(zip(made.names, values, strict=True))
        assert found["energy"].shape == (2,)
        assert found["forces"].shape == (graph.n_atoms, 3)
        if differentiable:
            gradients = recording.finish(begun, *(torch.ones_like(value) for value in values))
            shapes = [p.shape for p in tested.parameters() if p.requires_grad]
            assert [gradient.shape for gradient in gradients] == shapes


def test_tables_that_are_made_while_recording_stay_on_the_device(no_launches: None) -> None:
    """Else a CUDA graph would have to copy them from main memory, which it cannot."""
    plan = contraction_plan(spherical_irreps(1), spherical_irreps(0), 2)
    basis = torch.ones(3, 4, 2, device="meta")
    weights = torch.ones(1, plan.n_couplings, 2, device="meta")
    product._table.cache_clear()
    recording = Recording(
        lambda basis, weights, species: ((gpu.contract(plan, basis, weights, species),), ()),
        [((basis, weights, torch.zeros(3, dtype=torch.int64, device="meta")), ())],
    )
    assert recording.weights
    assert {weight.device.type for weight in recording.weights} == {"meta"}


def test_linear_maps_of_all_atoms_alike_copy_nothing_back() -> None:
    """Neither a map of one irrep nor the derivative of any."""
    features, weight = randn(5, 3, 4).requires_grad_(), randn(1, 4, 4).requires_grad_()
    with torch.profiler.profile() as profile:
        out = gpu.linear(features, weight, None, (3,), (1,))
        torch.autograd.grad(out.sum(), (features, weight))
    called = {event.key for event in profile.key_averages()}
    assert "aten::bmm" in called
    assert not called & {"aten::cat", "aten::select_backward"}


def test_recorded_and_padded_it_gives_what_the_reference_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capturer = InPlace()
    capture_with(monkeypatch, capturer)
    tested = potential("mace three layers with ZBL", backend="reference").to(DEVICE)
    graph = tested.graph([Atoms("OCH", [[0, 0, 0], [1.2, 0, 0.1], [1.7, 0.9, 0]]), Atoms("H")])
    answers = []
    for name in ("reference", "triton"):
        tested.compute_with(dispatch.load_backend(name))
        with monkeypatch.context() as patch:  # tables that are made once are made before tracing
            patch.setattr("clebsch.repeats.RECORD_AFTER", 10**9)
            tested(graph)
        found = tested(graph, ("energy", "forces", "virial", "layer_energies"))
        values = [found.forces, found.virial, found.layer_energies[:, 1:]]
        answers.append([*values, *gradients(tested, [graph])])
    assert capturer.captures == 3  # an evaluation, and a gradient in two stages
    for there, here in zip(*answers, strict=True):
        assert (here - there).abs().max() <= 1e-11 * (1e-6 + there.abs().max())


def test_sums_have_the_same_bits_whatever_else_there_is() -> None:
    """Unlike sums of a whole tensor: a segment's depends on its rows alone."""
    values = randn(700, 3, dtype=torch.float32).detach()
    ptr = torch.tensor([0, 300, 700], device=DEVICE)
    both = gpu.segment_sum(values, ptr)
    alone = gpu.segment_sum(values[300:], torch.tensor([0, 400], device=DEVICE))
    assert torch.equal(both[1:], alone)
    assert_equal([both], [torch.stack([values[:300].sum(0), values[300:].sum(0)])])


def test_harmonics_of_edges_are_summed_for_each_receiver() -> None:
    """The derivative of an environment adds over the edges of its atom, in the edges' order."""
    _, harmonics, _ = inputs_of(
        convolution_plan(spherical_irreps(0), spherical_irreps(1), spherical_irreps(1)), SOME, 2
    )
    environment: Tensor = randn(SOME.n_atoms, 4)
    edges = gpu.from_receivers(environment, SOME) * harmonics
    (gradient,) = torch.autograd.grad(edges.sum(), environment)
    assert_equal([gradient], [gpu.segment_sum(harmonics.detach(), SOME.row_ptr)])
