"""A model of mace-torch without mace-torch: read, judged by numbers it once gave, kept."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

import clebsch
from builders import stretched_energies
from clebsch.cli import main
from clebsch.doctor import read_unverified
from clebsch.errors import ConfigError, ModelFileError
from clebsch.interop import mace_torch
from clebsch.interop.inert import Global, Stub
from clebsch.interop.mace_torch import choose_head, mace_heads, read_mace_torch
from clebsch.interop.torch_archive import read_torch_file
from clebsch.modelfile import model_heads, read_tensors, save_heads

from .archives import ANSWERS, MODEL

STORED = json.loads(ANSWERS.read_text())
STRUCTURES = {name: Atoms(**stored) for name, stored in STORED["structures"].items()}
HEADS = ("first", "second")


def check(potential: clebsch.Potential, head: str, tolerance: float = 1e-10) -> None:
    """The numbers that mace-torch 0.3.16 gave, in eV and Angstrom."""
    for name, atoms in STRUCTURES.items():
        expected = STORED["answers"][head][name]
        outputs = ["energy", "forces", "site_energies"]
        if expected["stress"] is not None:
            outputs.append("stress")
        found = potential(potential.graph(atoms), outputs)
        for key in outputs:
            value = getattr(found, key).numpy()
            value = value[0] if key == "stress" else value
            assert np.abs(value - np.array(expected[key])).max() < tolerance, (name, key)


@pytest.mark.parametrize("head", HEADS)
def test_it_gives_the_numbers_of_mace_torch(head: str):
    check(read_mace_torch(MODEL, head=head), head)


def test_a_saved_copy_gives_the_same_numbers(tmp_path: Path):
    path = tmp_path / "new.safetensors"
    read_mace_torch(MODEL, head="second").save(path)
    potential = clebsch.load(path)
    check(potential, "second")
    assert potential.provenance["imported"] == {
        "program": "mace-torch",
        "file": "mace_torch.model",
        "class": "ScaleShiftMACE",
        "head": "second",
    }


def test_load_takes_it_and_the_fast_backend_runs_it():
    potential = clebsch.load(MODEL, head="first")
    assert potential.backend == "llvm"
    assert not any(parameter.requires_grad for parameter in potential.parameters())
    check(potential, "first")
    # in eV and eV/Angstrom: float32 of energies below 1 eV and forces to 2 eV/Angstrom
    check(clebsch.load(MODEL, head="first", dtype=torch.float32), "first", tolerance=1e-4)


def test_a_lone_atom_has_its_reference_and_the_shift():
    """As in mace-torch, though the network leaves it alone."""
    potential = read_mace_torch(MODEL, head="first")
    prediction = potential(potential.graph(STRUCTURES["lone"]), "energy")
    assert float(prediction.energy) == pytest.approx(-2042.1 + 0.3, abs=1e-12)
    assert potential.references.tolist() == [-13.6, -1027.3, -2042.1]


def test_pairs_beyond_the_cutoff_count_for_nothing():
    """A list with a skin holds them; covalent radii of heavy elements reach further than 3."""
    potential = read_mace_torch(MODEL, head="first")
    assert potential.prior is not None
    potential.prior.radii.fill_(2.0)
    atoms = Atoms("OO", [[0, 0, 0], [2.9, 0, 0]])
    energies = stretched_energies(potential, atoms, (1.0, 3.1 / 2.9, 10.0))
    assert energies[0] != energies[2]
    assert energies[1] == energies[2]


def test_heads_are_listed_and_one_must_be_chosen():
    assert mace_heads(MODEL) == list(HEADS)
    with pytest.raises(ConfigError, match="heads first, second; choose one: --head=first"):
        clebsch.load(MODEL)
    with pytest.raises(ConfigError, match=r"no head 'frist'\. Did you mean 'first'"):
        clebsch.load(MODEL, head="frist")


@pytest.mark.parametrize("head", ["a b", "--json", "it's"])
def test_the_advice_on_heads_can_be_pasted(head: str):
    with pytest.raises(ConfigError) as refused:
        choose_head([head, "other"], None, "my models/old.model")
    advice = shlex.split(str(refused.value).split("is made by ")[1])
    assert advice == ["clebsch", "convert", "my models/old.model", "NEW.safetensors", advice[4]]
    assert advice[4] == f"--head={head}"


def test_what_no_check_foresaw_is_the_files_fault_and_keeps_its_cause(
    monkeypatch: pytest.MonkeyPatch,
):
    def fails(model: object) -> list[str]:
        raise OverflowError("too deep")

    monkeypatch.setattr(mace_torch, "heads_of", fails)
    for read in (mace_heads, read_mace_torch):
        with pytest.raises(ModelFileError, match=r"mace_torch\.model.*OverflowError") as refused:
            read(MODEL)
        assert isinstance(refused.value.__cause__, OverflowError)


def test_a_subset_of_the_elements_gives_the_same_numbers():
    whole = read_mace_torch(MODEL, head="first")
    part = read_mace_torch(MODEL, head="first", species=["O", "C"])
    assert part.species == ("C", "O")
    atoms = STRUCTURES["cell"][[0, 1, 2]]
    energies = [float(p(p.graph(atoms), "energy").energy) for p in (whole, part)]
    assert energies[0] == pytest.approx(energies[1], abs=1e-11)
    n_whole, n_part = (sum(p.numel() for p in q.parameters()) for q in (whole, part))
    assert n_part < n_whole
    with pytest.raises(ConfigError, match="does not know Si"):
        read_mace_torch(MODEL, head="first", species=["Si"])
    with pytest.raises(ConfigError, match="no elements"):
        read_mace_torch(MODEL, head="first", species=[])


def test_elements_are_for_files_of_mace_torch(tmp_path: Path):
    clebsch.build("mace_tiny", ["H"]).save(tmp_path / "own.safetensors")
    with pytest.raises(ConfigError, match="mace-torch alone"):
        clebsch.load(tmp_path / "own.safetensors", species=["H"])


@pytest.fixture
def altered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Stub], None]], Path]:
    """The file with a change to what its pickle says."""

    def read(change: Callable[[Stub], None]) -> Path:
        model = read_torch_file(MODEL)
        change(model)
        monkeypatch.setattr(mace_torch, "read_torch_file", lambda path: model)
        return MODEL

    return read


def inner(stub: Stub, path: str) -> Stub:
    for name in path.split("."):
        stub = stub.state["_modules"][name]
    return stub


def one_head(model: Stub) -> None:
    """As files were before there were heads: tensors have no axis for them."""
    for name in ("heads", "apply_cutoff", "use_so3", "use_agnostic_product", "edge_irreps"):
        model.state.pop(name, None)
    for place, names in (
        ("atomic_energies_fn", ("atomic_energies",)),
        ("scale_shift", ("scale", "shift")),
    ):
        buffers = inner(model, place).state["_buffers"]
        for name in names:
            buffers[name] = buffers[name][0].clone()
    # the second head's rows and columns go
    for place, cut in (
        ("readouts.0.linear", lambda w: w.view(2, 2)[:, :1]),
        ("readouts.1.linear_1", lambda w: w.view(2, 32)[:, :16]),
        ("readouts.1.linear_2", lambda w: w.view(32, 2)[:16, :1] / 2**0.5),
    ):
        parameters = inner(model, place).state["_parameters"]
        parameters["weight"] = cut(parameters["weight"]).flatten()
    one = Stub(Global("e3nn.o3._irreps", "Irrep"), (0, 1))
    for place, name, count in (
        ("readouts.0.linear", "irreps_out", 1),
        ("readouts.1.linear_1", "irreps_out", 16),
        ("readouts.1.linear_2", "irreps_in", 16),
        ("readouts.1.linear_2", "irreps_out", 1),
    ):
        pair = Stub(Global("e3nn.o3._irreps", "_MulIr"), (count, one))
        irreps = Stub(Global("e3nn.o3._irreps", "Irreps"), ((pair,),))
        inner(model, place).state[name] = irreps


def test_an_older_file_without_newer_attributes_is_read(altered: Any):
    assert mace_heads(altered(one_head)) == ["Default"]
    check(read_mace_torch(MODEL), "first")


def attribute(place: str, name: str, value: Any) -> Callable[[Stub], None]:
    def change(model: Stub) -> None:
        (inner(model, place) if place else model).state[name] = value

    return change


def kind(place: str, name: str) -> Callable[[Stub], None]:
    def change(model: Stub) -> None:
        stub = inner(model, place) if place else model
        stub.kind = Global(stub.kind.module, name)

    return change


def tensor(place: str, name: str, change_it: Callable[[torch.Tensor], Any]) -> Any:
    def change(model: Stub) -> None:
        for table in ("_parameters", "_buffers"):
            found = inner(model, place).state[table]
            if name in found:
                found[name] = change_it(found[name])

    return change


def more_layers(model: Stub) -> None:
    for place in ("interactions", "products"):
        layers = inner(model, place).state["_modules"]
        layers.update({str(n): layers["1"] for n in range(2, 5000)})


def more_channels(model: Stub) -> None:
    """Irreps and an embedding of 200 000 channels: matrices of them would take 300 GB each."""
    wide = 200_000
    embedding = inner(model, "node_embedding.linear").state
    embedding["_parameters"]["weight"] = torch.ones(3 * wide)
    embedding["irreps_out"] = f"{wide}x0e"
    for t in ("0", "1"):
        inner(model, f"interactions.{t}.linear_up").state["irreps_in"] = f"{wide}x0e"
        inner(model, f"interactions.{t}.linear_up").state["irreps_out"] = f"{wide}x0e"
        inner(model, f"products.{t}.linear").state["irreps_out"] = f"{wide}x0e"


def nested(depth: int) -> list[Any]:
    """A list in a list in a list: its text would take as many calls."""
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


INF = float("inf")

REFUSED: dict[str, tuple[Callable[[Stub], None], str]] = {
    "another class": (kind("", "EnergyDipolesMACE"), "class EnergyDipolesMACE"),
    "heads of one name": (attribute("", "heads", ["first", "first"]), "heads of one name"),
    "an older block": (
        kind("interactions.1", "AgnosticNonlinearInteractionBlock"),
        "class AgnosticNonlinearInteractionBlock are not supported",
    ),
    "attention in one layer": (
        kind("interactions.1", "RealAgnosticAttResidualInteractionBlock"),
        "layers of different kinds",
    ),
    "irreps without parity": (attribute("", "use_so3", True), "use_so3"),
    "an accelerator": (
        attribute(
            "interactions.0", "cueq_config", Stub(Global("mace", "C"), state={"enabled": True})
        ),
        "cueq_config",
    ),
    "layers of different kinds": (
        kind("interactions.1", "RealAgnosticDensityResidualInteractionBlock"),
        "layers of different kinds",
    ),
    "another radial basis": (kind("radial_embedding.bessel_fn", "Splines"), "basis Splines"),
    "another transform": (kind("radial_embedding.distance_transform", "Warp"), "transform Warp"),
    "another readout": (kind("readouts.1", "NonLinearDipoleReadoutBlock"), "NonLinearDipole"),
    "another gate": (
        attribute("readouts.1.non_linearity.acts.0", "f", Global("torch", "tanh")),
        "nonlinearity torch.tanh",
    ),
    "biases": (tensor("readouts.1.linear_1", "bias", lambda _: torch.ones(32)), "biases"),
    "orders that differ": (
        attribute("products.1.symmetric_contractions.contractions.0", "correlation", 1),
        "correlation orders",
    ),
    "an order of seventeen": (
        attribute("products.1.symmetric_contractions.contractions.0", "correlation", 17),
        "products of order 17",
    ),
    "more layers than numbers": (more_layers, "5000 layers"),
    "more channels than numbers": (more_channels, "too few weights"),
    "a radial network that does not fit together": (
        tensor("interactions.0.conv_tp_weights.layer0", "weight", lambda w: torch.ones(4, 10**6)),
        "layers of 4 to 1000000",
    ),
    "a missing tensor": (
        tensor("interactions.0.linear", "weight", lambda _: None),
        "has no tensor 'weight'",
    ),
    "too few weights": (tensor("interactions.0.linear", "weight", lambda w: w[:-1]), "too few"),
    "too many weights": (
        tensor("interactions.0.linear", "weight", lambda w: torch.cat([w, w])),
        "more weights",
    ),
    "couplings of another size": (
        tensor(
            "products.0.symmetric_contractions.contractions.0", "U_matrix_2", lambda u: u[:2, :2]
        ),
        "couplings of shape",
    ),
    "couplings that are not equivariant": (
        tensor("products.0.symmetric_contractions.contractions.0", "U_matrix_2", lambda u: u + 1),
        "not spanned",
    ),
    "no neighbours": (attribute("interactions.0", "avg_num_neighbors", 0.0), "avg_num_neighbors"),
    "elements that are none": (
        lambda model: model.state["_buffers"].update(atomic_numbers=torch.tensor([1, 6, 800])),
        "atomic numbers",
    ),
    "elements by fractions": (
        lambda model: model.state["_buffers"].update(atomic_numbers=torch.tensor([1, 6, 8.5])),
        "atomic numbers",
    ),
    "an infinite element": (
        lambda model: model.state["_buffers"].update(atomic_numbers=torch.tensor([1, 6, INF])),
        "'atomic_numbers' holds NaN or infinity",
    ),
    "an element twice": (
        lambda model: model.state["_buffers"].update(atomic_numbers=torch.tensor([1, 6, 6])),
        "atomic numbers",
    ),
    "weights that diverged": (
        tensor("products.0.linear", "weight", lambda w: w * float("nan")),
        r"mace_torch\.model\.products\.0\.linear: its tensor 'weight' holds NaN or infinity",
    ),
    "a scale that diverged": (
        tensor("scale_shift", "scale", lambda w: w + INF),
        "scale_shift: its tensor 'scale' holds NaN",
    ),
    "a shift that diverged": (
        tensor("scale_shift", "shift", lambda w: w * float("nan")),
        "scale_shift: its tensor 'shift' holds NaN",
    ),
    "references that are none": (
        tensor("atomic_energies_fn", "atomic_energies", lambda w: w * float("nan")),
        "atomic_energies_fn: its tensor 'atomic_energies' holds NaN",
    ),
    "an activation's constant that is none": (
        attribute("readouts.1.non_linearity.acts.0", "cst", float("nan")),
        r"readouts\.1\.outer of the potential that it makes holds NaN",
    ),
    "another cut-off than its envelope's": (
        lambda model: model.state["_buffers"].update(r_max=torch.tensor(2.5)),
        r"cutoff_fn: r_max is 3, where the model's r_max of 2\.5 makes it 2\.5",
    ),
    "another cut-off than its basis": (
        tensor("radial_embedding.bessel_fn", "r_max", lambda r: r * 1.01),
        r"bessel_fn: r_max is 3\.03",
    ),
    "another prefactor than the cut-off's": (
        tensor("radial_embedding.bessel_fn", "prefactor", lambda p: p * 1.5),
        "bessel_fn: prefactor is",
    ),
    "an exponent that is not whole": (
        tensor("radial_embedding.cutoff_fn", "p", lambda p: torch.tensor(5.5)),
        r"cutoff_fn: an exponent p of 5\.5",
    ),
    "an infinite exponent": (
        tensor("radial_embedding.cutoff_fn", "p", lambda p: torch.tensor(INF)),
        "cutoff_fn: its tensor 'p' holds NaN",
    ),
    "an exponent too large for a float": (
        lambda model: (
            tensor("radial_embedding.cutoff_fn", "p", lambda p: None)(model),
            attribute("radial_embedding.cutoff_fn", "p", 10**400)(model),
        ),
        "OverflowError",
    ),
    "heads in heads": (attribute("", "heads", nested(3000)), "heads whose names are no texts"),
    "no scalars in the last layer": (
        attribute("products.1.linear", "irreps_out", "2x1o"),
        "last layer of irreps 2x1o, without scalars",
    ),
    "what was prepared for torch.compile": (
        lambda model: (
            inner(model, "products.0")
            .state["_modules"]
            .update(
                symmetric_contractions=Stub(Global("torch.fx.graph_module", "reduce_graph_module"))
            )
        ),
        r"products\.0\.symmetric_contractions: traced.*torch\.compile",
    ),
    "a cut-off that is none": (
        lambda model: model.state["_buffers"].update(r_max=torch.tensor(-3.0)),
        "a cut-off r_max of -3: not supported",
    ),
}


@pytest.mark.parametrize("element", ["H", "C", "O"])
def test_a_single_element_keeps_its_own_weights(element: str):
    whole, part = (read_mace_torch(MODEL, head="first", species=s) for s in (None, [element]))
    pair = Atoms([element] * 3, [[0, 0, 0], [1.3, 0, 0.2], [0.4, 1.5, 0]])
    energies = [float(p(p.graph(pair), "energy").energy) for p in (whole, part)]
    assert energies[0] == pytest.approx(energies[1], abs=1e-11)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_named(name: str, altered: Any):
    change, message = REFUSED[name]
    with pytest.raises(ModelFileError, match=message):
        read_mace_torch(altered(change), head="first")


def test_a_checkpoint_that_holds_a_whole_model_is_read(monkeypatch: pytest.MonkeyPatch):
    model = read_torch_file(MODEL)
    checkpoint = {"model": model, "optimizer": {}, "epoch": 3}
    monkeypatch.setattr(mace_torch, "read_torch_file", lambda path: checkpoint)
    check(read_mace_torch(MODEL, head="first"), "first")


def embedding(model: Stub) -> None:
    """Embeds charge as a number and spin out of a table, as a newer model would."""

    def module(kind: str, parameters: dict[str, torch.Tensor], **children: Stub) -> Stub:
        state = {"_parameters": parameters, "_buffers": {}, "_modules": children}
        return Stub(Global("torch.nn", kind), state=state)

    rng = torch.Generator().manual_seed(0)
    some = [torch.randn(*n, generator=rng, dtype=torch.float64) for n in ((3, 1), (3,), (2, 3))]
    first = module("Linear", {"weight": some[0], "bias": some[1]})
    last = module("Linear", {"weight": some[2], "bias": torch.ones(2, dtype=torch.float64)})
    charge = module("Sequential", {}, **{"0": first, "2": last})
    table = torch.randn(4, 2, generator=rng, dtype=torch.float64)
    spin = module("Embedding", {"weight": table})
    weight = torch.randn(2, 4, generator=rng, dtype=torch.float64)
    project = module("Sequential", {}, **{"0": module("Linear", {"weight": weight})})
    joint = module(
        "GenericJointEmbedding",
        {},
        embedders=module("ModuleDict", {}, total_charge=charge, total_spin=spin),
        project=project,
    )
    joint.state["specs"] = {"total_spin": {"per": "graph", "offset": 1}}
    model.state["_modules"]["joint_embedding"] = joint


def test_embedded_properties_are_fixed(altered: Any):
    path = altered(embedding)
    with pytest.raises(ConfigError, match="fix a value of total_charge, total_spin"):
        read_mace_torch(path, head="first")
    with pytest.raises(ConfigError, match="fix a value of total_spin"):
        read_mace_torch(path, head="first", properties={"total_charge": 1})
    with pytest.raises(ConfigError, match=r"no property 'charge'.*Did you mean 'total_charge'"):
        read_mace_torch(path, head="first", properties={"charge": 1})
    with pytest.raises(ConfigError, match="total_spin is a whole number from -1 to 2, not 3"):
        read_mace_torch(path, head="first", properties={"total_charge": 0, "total_spin": 3})
    for name in ("total_charge", "total_spin"):
        for value in (INF, float("nan")):
            properties = {"total_charge": 0, "total_spin": 1, name: value}
            with pytest.raises(ConfigError, match=f"{name} is a finite number, not {value}"):
                read_mace_torch(path, head="first", properties=properties)
    atoms, energies = STRUCTURES["molecule"], set()
    for values in ((0, 1), (1, 1), (0, 2)):
        properties = dict(zip(("total_charge", "total_spin"), values, strict=True))
        potential = read_mace_torch(path, head="first", properties=properties)
        assert potential.provenance["imported"]["properties"] == properties
        energies.add(float(potential(potential.graph(atoms), "energy").energy))
    assert len(energies) == 3


def test_states_can_be_heads_of_one_file(altered: Any, tmp_path: Path):
    path = altered(embedding)
    charges = {"neutral": 0, "cation": 1}
    states = {
        name: read_mace_torch(
            path, head="first", properties={"total_charge": charge, "total_spin": 1}
        )
        for name, charge in charges.items()
    }
    save_heads(states, tmp_path / "states.safetensors")
    atoms, energies = STRUCTURES["molecule"], set()
    for name, state in states.items():
        loaded = clebsch.load(tmp_path / "states.safetensors", head=name)
        assert loaded.provenance["imported"]["properties"]["total_charge"] == charges[name]
        energy, expected = (float(p(p.graph(atoms), "energy").energy) for p in (loaded, state))
        assert energy == pytest.approx(expected, abs=1e-10)
        energies.add(energy)
    assert len(energies) == 2
    own = {
        name.split(".", 2)[2]
        for name in read_tensors(tmp_path / "states.safetensors")[0]
        if name.startswith("heads.")
    }
    assert own == {"model.embedding"}


def test_properties_of_a_model_that_embeds_none_are_refused():
    with pytest.raises(ConfigError, match="embeds no property 'total_charge'"):
        clebsch.load(MODEL, head="first", properties={"total_charge": 0})
    assert run("convert", MODEL, "x.safetensors", "--head", "first", "--fix", "charge") == 2


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_convert_writes_a_model_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    old, new = shutil.copy(MODEL, tmp_path / "old.model"), tmp_path / "new.safetensors"
    assert run("convert", old, new) == 2
    err = capsys.readouterr().err
    assert "choose one" in err
    assert "or of all (--head=all), is made by clebsch convert" in err
    assert run("convert", old, new, "--head", "first", "--elements", "H,O") == 0
    assert "ScaleShiftMACE" in capsys.readouterr().out
    assert clebsch.load(new).species == ("H", "O")
    assert run("convert", old, new, "--head", "first") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run("convert", old, new, "--head", "first", "--overwrite") == 0
    check(clebsch.load(new), "first")


def test_convert_keeps_all_heads_in_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "new.safetensors"
    assert run("convert", MODEL, path, "--head", "all") == 0
    assert "heads first, second" in capsys.readouterr().out
    assert model_heads(path) == model_heads(MODEL) == list(HEADS)
    with pytest.raises(ConfigError, match="heads first, second; choose one: --head=first"):
        clebsch.load(path)
    for head in HEADS:
        potential = clebsch.load(path, head=head)
        check(potential, head)
        assert potential.provenance["imported"]["head"] == head
        assert (
            run("convert", path, tmp_path / "one.safetensors", "--head", head, "--overwrite") == 0
        )
        check(clebsch.load(tmp_path / "one.safetensors"), head)
    of_heads = {name.split(".", 2)[2] for name in read_tensors(path)[0] if "heads." in name}
    assert all(name.startswith(("head.", "model.readouts.", "prior.scale")) for name in of_heads)


def test_convert_of_the_only_head_writes_a_file_of_one(tmp_path: Path, altered: Any):
    assert run("convert", altered(one_head), tmp_path / "new.safetensors", "--head", "all") == 0
    check(clebsch.load(tmp_path / "new.safetensors"), "first")


def test_the_doctor_reads_it(altered: Any):
    potential, stored = read_unverified(altered(one_head))
    assert stored is None
    check(potential, "first")
