"""Replaying a recording is running the modules: the same bits, whatever changes in between."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

import clebsch
import clebsch.kernels.cpu
from builders import MODELS, STRUCTURES, copied_potential, ethanol, skewed_cell
from clebsch.errors import ClebschError
from clebsch.kernels.operators import kernel_of
from clebsch.recording import Recording

OUTPUTS = ("energy", "forces", "virial", "site_energies", "layer_energies")


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record at the first evaluation."""
    monkeypatch.setattr("clebsch.repeats.RECORD_AFTER", 0)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clebsch.repeats.RECORD_AFTER", 10**9)


def same(one: clebsch.Prediction, other: clebsch.Prediction) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in OUTPUTS]
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("model", list(MODELS))
def test_a_replayed_evaluation_has_the_bits_of_the_modules(
    model: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded once, replayed for other sizes, alone and in batches."""
    tested = copied_potential(model, dtype)
    batches = [[build()] for build in STRUCTURES.values()] + [[ethanol(), skewed_cell()] * 2]
    for atoms in batches:
        graph = tested.graph(atoms)
        monkeypatch.setattr("clebsch.repeats.RECORD_AFTER", 10**9)
        expected = tested(graph, OUTPUTS)
        monkeypatch.setattr("clebsch.repeats.RECORD_AFTER", 0)
        assert same(tested(graph, OUTPUTS), expected)
        energy = tested(graph, "energy").energy
        assert energy is not None
        assert expected.energy is not None
        assert torch.equal(energy, expected.energy)
    assert len(tested._repeats.recordings) == 2  # with and without derivatives


def gradients(tested: clebsch.Potential, atoms: Atoms | list[Atoms]) -> list[Tensor]:
    prediction = tested(tested.graph(atoms), ("energy", "forces", "virial"), differentiable=True)
    assert prediction.energy is not None
    assert prediction.forces is not None
    assert prediction.virial is not None
    loss = prediction.energy.square().sum() + prediction.forces.square().sum()
    loss = loss + prediction.virial.square().sum()
    parameters = list(tested.parameters())
    return list(torch.autograd.grad(loss, parameters, materialize_grads=True))


@pytest.mark.parametrize("model", list(MODELS))
def test_a_replayed_gradient_has_the_bits_of_autograd(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = copied_potential(model)
    for atoms in (skewed_cell(), [skewed_cell(), skewed_cell(), ethanol()]):
        monkeypatch.setattr("clebsch.repeats.RECORD_AFTER", 10**9)
        expected = gradients(tested, atoms)
        monkeypatch.setattr("clebsch.repeats.RECORD_AFTER", 0)
        for found, wanted in zip(gradients(tested, atoms), expected, strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("how", ["fused optimiser", "data", "signs", "copy_", "load_state_dict"])
def test_every_change_of_weights_is_noticed(always: None, how: str) -> None:
    tested = copied_potential()
    graph = tested.graph(ethanol())
    before = tested(graph).energy
    parameters = [p for p in tested.model.parameters() if p.requires_grad]
    if how == "fused optimiser":
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        torch.optim.Adam(parameters, lr=0.01, fused=True).step()
    elif how == "data":
        parameters[0].data *= 1.01
    elif how == "signs":  # which leave norms as they are
        tested.model.layers[0].product.weights.data.neg_()
    elif how == "copy_":
        with torch.no_grad():
            parameters[0].copy_(1.01 * parameters[0])
    else:
        changed = {name: 1.01 * value for name, value in tested.state_dict().items()}
        tested.load_state_dict(changed)
    after = tested(graph).energy
    tested._repeats.recordings.clear()
    assert before is not None
    assert after is not None
    assert not torch.equal(before, after)
    again = copy.deepcopy(tested).use_backend("llvm")
    expected = again(graph).energy
    assert expected is not None
    assert torch.equal(after, expected)


def test_parameters_unfrozen_later_get_their_gradients(always: None) -> None:
    tested = copied_potential().requires_grad_(False)
    tested.model.embedding.requires_grad_(True)
    graph = tested.graph(ethanol())
    for unfrozen in ([], [tested.model.layers[0].product.weights]):
        for parameter in unfrozen:
            parameter.requires_grad_(True)
        forces = tested(graph, "forces", differentiable=True).forces
        assert forces is not None
        forces.square().sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in unfrozen)


def test_structures_too_small_to_replay_are_evaluated(always: None) -> None:
    tested = copied_potential()
    for atoms in (Atoms("O"), Atoms("OH", [[0, 0, 0], [0, 0, 20]]), ethanol()):
        prediction = tested(tested.graph(atoms))
        assert prediction.forces is not None
        assert torch.isfinite(prediction.forces).all()


def test_a_recording_made_in_inference_mode_serves_everywhere(always: None) -> None:
    tested = copied_potential()
    graph = tested.graph(ethanol())
    with torch.inference_mode():
        inside = [tested(graph, "energy").energy for _ in range(2)]
    assert len(tested._repeats.recordings) == 1
    outside = tested(graph, "energy").energy
    assert len(tested._repeats.recordings) == 1
    for energy in inside:
        assert energy is not None
        assert outside is not None
        assert torch.equal(energy, outside)


def test_copies_and_other_backends_do_not_inherit_recordings(always: None) -> None:
    tested = copied_potential()
    graph = tested.graph(ethanol())
    forces = tested(graph).forces
    assert tested._repeats.recordings
    assert not copy.deepcopy(tested)._repeats.recordings
    assert not copy.copy(tested)._repeats.recordings
    assert tested._repeats.recordings
    tested.float()
    assert not tested._repeats.recordings
    tested.double().use_backend("reference")
    reference = tested(graph).forces
    assert not tested._repeats.recordings
    assert forces is not None
    assert reference is not None
    torch.testing.assert_close(forces, reference, rtol=1e-5, atol=1e-5)


def replacements(tested: clebsch.Potential) -> dict[str, Callable[[], object]]:
    state = tested.state_dict()
    return {
        "load_state_dict": lambda: tested.load_state_dict(
            {name: 1.1 * value for name, value in state.items()}, assign=True
        ),
        "parameter": lambda: setattr(
            tested.model, "embedding", torch.nn.Parameter(1.1 * tested.model.embedding.detach())
        ),
        "buffer": lambda: setattr(tested.head, "references", tested.head.references + 1.0),
        "module": lambda: setattr(tested, "model", copy.deepcopy(tested.model).requires_grad_()),
        "precision": lambda: tested.model.float(),
    }


@pytest.mark.parametrize("what", list(replacements(copied_potential())))
def test_what_was_replaced_is_used(always: None, what: str) -> None:
    tested = copied_potential()
    graph = tested.graph(ethanol())
    tested(graph)
    before = list(tested._repeats.recordings.values())
    replacements(tested)[what]()
    found = tested(graph, OUTPUTS)
    assert list(tested._repeats.recordings.values()) != before
    tested._repeats.recordings.clear()
    assert same(tested(graph, OUTPUTS), found)
    assert same(copy.deepcopy(tested)(graph, OUTPUTS), found)


def test_weights_of_a_functional_call_are_used_there_alone(always: None) -> None:
    tested = copied_potential()
    graph = tested.graph(ethanol())
    own = tested(graph, OUTPUTS)
    others = {name: 1.1 * value for name, value in tested.named_parameters()}
    foreign = torch.func.functional_call(tested, others, (graph, OUTPUTS))
    assert not same(foreign, own)
    assert same(tested(graph, OUTPUTS), own)
    assert same(torch.func.functional_call(tested, others, (graph, OUTPUTS)), foreign)


def test_calls_before_a_replacement_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clebsch.repeats.RECORD_AFTER", 2)
    tested = copied_potential()
    graph = tested.graph(ethanol())
    for _ in range(4):
        weight = torch.nn.Parameter(tested.model.embedding.detach().clone())
        tested.model.embedding = weight
        tested(graph)
        tested(graph)
    assert not tested._repeats.recordings


@pytest.mark.parametrize("name", ["positions", "cell"])
def test_derivatives_by_a_structure_are_those_of_the_modules(always: None, name: str) -> None:
    tested = copied_potential()
    graph = tested.graph(skewed_cell())
    energy = tested(graph, "energy", differentiable=True).energy
    assert energy is not None
    energy.sum().backward()
    assert tested._repeats.recordings
    tracked = getattr(graph, name).clone().requires_grad_()
    energy = tested(replace(graph, **{name: tracked}), "energy", differentiable=True).energy
    assert energy is not None
    energy.sum().backward()
    assert tracked.grad is not None
    assert tracked.grad.abs().max() > 0


def test_a_potential_without_trainable_weights_is_evaluated(always: None) -> None:
    tested = copied_potential().requires_grad_(False)
    graph = tested.graph(ethanol())
    expected = tested(graph)
    found = tested(graph, ("energy", "forces"), differentiable=True)
    assert torch.equal(found.energy, expected.energy)
    assert torch.equal(found.forces, expected.forces)


def test_graphs_of_recordings_can_be_kept(never: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses one after the other, and a loss outside of no_grad."""

    def gradients_in_turn() -> list[Tensor]:
        with torch.no_grad():
            prediction = tested(graph, ("energy", "forces"), differentiable=True)
        assert prediction.energy is not None
        assert prediction.forces is not None
        parameters = list(tested.parameters())
        found: list[Tensor] = []
        for loss in (prediction.energy.sum(), prediction.forces.square().sum()):
            found += torch.autograd.grad(
                loss, parameters, retain_graph=True, materialize_grads=True
            )
        return found

    tested = copied_potential()
    graph = tested.graph(ethanol())
    expected = gradients_in_turn()
    monkeypatch.setattr("clebsch.repeats.RECORD_AFTER", 0)
    found = gradients_in_turn()
    assert tested._repeats.recordings
    for here, there in zip(found, expected, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)


def test_second_derivatives_by_weights_are_refused_where_recorded(always: None) -> None:
    """They would have been zero."""
    tested = copied_potential()
    graph = tested.graph(ethanol())
    energy = tested(graph, "energy", differentiable=True).energy
    assert energy is not None
    weights = tested.model.layers[0].product.weights
    with pytest.raises(ClebschError, match="create_graph"):
        torch.autograd.grad(energy.sum(), weights, create_graph=True)
    energy = tested.use_backend("reference")(graph, "energy", differentiable=True).energy
    assert energy is not None
    (gradient,) = torch.autograd.grad(energy.sum(), weights, create_graph=True)
    assert gradient.requires_grad


def test_hooks_and_the_search_for_anomalies_see_modules(always: None) -> None:
    tested = copied_potential()
    graph = tested.graph(ethanol())
    tested(graph)
    seen: list[int] = []
    handle = tested.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    tested(graph)
    assert len(seen) == 1
    handle.remove()
    tested(graph)
    assert len(tested._repeats.recordings) == 1
    hooks = (
        tested.model.layers[1].register_full_backward_pre_hook,
        torch.nn.modules.module.register_module_forward_pre_hook,
        torch.nn.modules.module.register_module_forward_hook,
    )
    for register in hooks:
        del seen[:]
        handle = register(lambda *_: seen.append(1))
        forces = tested(graph, differentiable=True).forces
        assert forces is not None
        forces.square().sum().backward()
        handle.remove()
        assert seen
        assert not tested._repeats.recordings
    tested(graph)
    assert len(tested._repeats.recordings) == 1
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        tested(graph, ("energy", "forces"), differentiable=True)
    assert len(tested._repeats.recordings) == 1


def test_what_cannot_be_recorded_is_evaluated_with_a_warning(always: None) -> None:
    class Reading(torch.nn.Module):
        def forward(self, lengths: Tensor, graph: clebsch.AtomGraph) -> Tensor:
            return torch.full((graph.n_atoms,), float(lengths.sum())).double()

    tested = copied_potential()
    tested.prior = Reading()
    graph = tested.graph(ethanol())
    with pytest.warns(UserWarning, match="llvm backend are not recorded.*reads or draws values"):
        first = tested(graph, "energy").energy
    second = tested(graph, "energy").energy
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


def test_recording_comes_after_a_number_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clebsch.repeats.RECORD_AFTER", 3)
    tested = copied_potential()
    graph = tested.graph(ethanol())
    for call in range(5):
        tested(graph)
        assert bool(tested._repeats.recordings) == (call >= 3)


#: Numbers of rows to record with.
SIZES = (7, 5, 12)


def rows(n: int) -> list[Tensor]:
    return [torch.ones(n, 4, dtype=torch.float64)]


def test_work_on_weights_is_done_once() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 4, dtype=torch.float64))

    def function(x: Tensor, cotangent: Tensor) -> tuple[tuple[Tensor], tuple[Tensor]]:
        y = x.detach() @ torch.linalg.matrix_exp(weight)
        (gradient,) = torch.autograd.grad(y, weight, cotangent)
        return (y.detach(),), (gradient,)

    recording = Recording(function, [(rows(n), rows(n)) for n in SIZES])
    prepared = [str(node.target) for node in recording._prepare.graph.nodes]
    assert any("matrix_exp" in name for name in prepared)
    assert not any("matrix_exp" in str(node.target) for node in recording._first.graph.nodes)
    x, g = torch.randn(5, 4).double(), torch.randn(5, 4).double()
    (y,), begun = recording.begin(x)
    (gradient,) = recording.finish(begun, g)
    expected = x @ torch.linalg.matrix_exp(weight)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, weight, g)[0])


def test_what_follows_from_nothing_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(x: Tensor) -> tuple[tuple[Tensor], tuple[()]]:
        places = torch.arange(x.shape[0], dtype=x.dtype)[:, None]  # follows from a size
        return (x * torch.arange(4) + places + torch.ones(4, dtype=x.dtype),), ()

    def without_inputs(recording: Recording) -> list[str]:
        graphs = [recording._prepare.graph, recording._first.graph]
        nodes = [node for graph in graphs for node in graph.nodes if node.op == "call_function"]
        return [str(node.target) for node in nodes if not node.all_input_nodes]

    examples = [(rows(n), []) for n in SIZES]
    assert not without_inputs(recording := Recording(function, examples))
    x = torch.randn(5, 4).double()
    assert torch.equal(recording(x)[0], function(x)[0][0])
    monkeypatch.setattr("clebsch.recording.MOST_CONSTANT", 3)  # what is large is not kept
    assert without_inputs(Recording(function, examples)) == [
        "aten.arange.default",
        "aten.ones.default",
    ]


def test_taking_all_of_a_tensor_is_left_out_and_taking_a_part_is_not() -> None:
    def function(x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[()]]:
        leaf = x.detach().requires_grad_()
        y = leaf[:, None] * leaf[1:, :, None].sum(0) + leaf[:, ::2].sum() + leaf[:3].sum()
        (gradient,) = torch.autograd.grad(y.sum(), leaf)
        return (y.detach(), gradient), ()

    recording = Recording(function, [(rows(n), []) for n in SIZES])
    names = [str(node.target) for node in recording._first.graph.nodes]
    assert names.count("aten.slice.Tensor") == 3
    assert names.count("aten.slice_backward.default") == 3
    x = torch.randn(6, 4).double()
    for found, expected in zip(recording(x), function(x)[0], strict=True):
        torch.testing.assert_close(found, expected)


def test_replays_call_kernels_and_not_operators() -> None:
    operator = torch.ops.clebsch.silu.default
    recording = Recording(lambda x: ((operator(x),), ()), [(rows(n), []) for n in SIZES])
    (node,) = (n for n in recording._first.graph.nodes if n.op == "call_function")
    assert node.target is not operator
    assert node.target is kernel_of(operator)
    x = torch.randn(5, 4).double()
    assert torch.equal(recording(x)[0], operator(x))


def recorded(function: Callable[[Tensor], Tensor]) -> Recording:
    return Recording(lambda x: ((function(x),), ()), [(rows(n), ()) for n in SIZES])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.new_zeros(3 * x.shape[0] + 2, x.shape[0] - 1).add(1) * x.sum(),
        lambda x: x[torch.arange(x.shape[0] - 1, -1, -1)].mul_(2).neg_() + x,
        lambda x: torch.cat([part * part.shape[0] for part in x.split([1, x.shape[0] - 1])]),
        lambda x: x / len(x),
        lambda x: x.repeat_interleave(torch.full((x.shape[0],), 2), 0, output_size=2 * len(x)),
    ],
    ids=["sizes", "changes", "parts", "numbers", "repeats"],
)
def test_what_follows_from_sizes_is_replayed(function: Callable[[Tensor], Tensor]) -> None:
    replay = recorded(function)
    for n in (2, 6, 30):
        x = torch.randn(n, 4).double()
        assert torch.equal(replay(x)[0], function(x))


OUTSIDE = torch.ones(4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x * float(x[0, 0]), "reads or draws values"),
        (lambda x: x * x[0].tolist()[0], "tolist cannot be recorded"),
        (lambda x: x * x.numpy().max(), "numpy cannot be recorded"),
        (lambda x: x[x[:, 0] > 0], "reads or draws values"),
        (lambda x: x.nonzero(), "reads or draws values"),
        (lambda x: x + torch.rand(4), "reads or draws values"),
        (lambda x: x.add_(1), "that others share"),
        (lambda x: x + OUTSIDE.mul_(2), "that others share"),
        (lambda x: (x + 1).view(-1).mul_(2), "that others share"),
        (lambda x: x.sum(0) if len(x) > 10 else x.mean(0), "more of its inputs than sizes"),
        (lambda x: x if len(x) > 10 else 2 * x, "more of its inputs than sizes"),
        (lambda x: x[: len(x) // 2], "more of its inputs than sizes"),
        (lambda x: x / len(x) ** 0.5, "more of its inputs than sizes"),
        (lambda x: x + torch.from_numpy(np.ones(4) * len(x)), "made of values"),
    ],
)
def test_what_follows_from_anything_else_is_refused(
    function: Callable[[Tensor], Tensor], message: str
) -> None:
    """It would be replayed as it was with the examples."""
    with pytest.raises(TypeError, match=message):
        recorded(function)


def test_an_input_twice_is_refused() -> None:
    x = torch.ones(3)
    with pytest.raises(ValueError, match="no two inputs"):
        Recording(lambda a, b: ((a + b,), ()), [([x, x], ())])


def test_recording_does_not_import_torchs_compiler() -> None:
    """It takes seconds, at every start of a simulation."""
    code = """if True:
        import sys, torch, clebsch, clebsch.repeats
        from ase import Atoms
        clebsch.repeats.RECORD_AFTER = 0
        potential = clebsch.build("mace_tiny", ["H", "O"])
        potential(potential.graph(Atoms("OH2", [[0, 0, 0], [0, 0, 1], [0, 1, 0]])))
        assert potential._repeats.recordings
        sys.exit("torch._dynamo" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
