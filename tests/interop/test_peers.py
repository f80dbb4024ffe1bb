"""Models that mace-torch makes, converted: the numbers it computes. Needs ``make peers``."""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from filelock import FileLock

import clebsch
from clebsch.benchmarks.opponents import PEERS_FOLDER
from clebsch.cli import main
from clebsch.interop.export import export_mace_torch
from clebsch.interop.mace_torch import mace_heads, read_mace_torch
from clebsch.models.config import MessagePassingConfig

from .structures import SPECIES, STRUCTURES, as_json

MACE_TORCH = PEERS_FOLDER / "mace-torch"

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not (MACE_TORCH / ".installed").exists(), reason="run make peers"),
]

PLAIN = "RealAgnosticInteractionBlock"
DENSITY = "RealAgnosticDensityInteractionBlock"
DENSITY_RESIDUAL = "RealAgnosticDensityResidualInteractionBlock"
ATTENTION = "RealAgnosticAttResidualInteractionBlock"
NONLINEAR = "RealAgnosticResidualNonLinearInteractionBlock"

THREE_HEADS = {
    "heads": ["dft", "second", "third"],
    "atomic_energies": [[-13.6, -1027.3, -2042.1], [-13.0, -1028.0, -2041.0], [1.0, 2.0, 3.0]],
    "atomic_inter_scale": [0.7, 1.3, 0.2],
    "atomic_inter_shift": [0.3, 0.0, -0.4],
}

CHARGE_AND_SPIN = {
    "total_charge": {"type": "continuous", "in_dim": 1, "emb_dim": 4, "per": "graph", "offset": 0},
    "total_spin": {
        "type": "categorical",
        "num_classes": 10,
        "emb_dim": 4,
        "per": "graph",
        "offset": 1,
    },
}
PROPERTIES = {"total_charge": 1.0, "total_spin": 2.0}

#: What is different from a residual ScaleShiftMACE of two layers.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain first layer": {"first": PLAIN},
    "all layers plain": {"first": PLAIN, "later": PLAIN, "num_interactions": 3},
    "MACE, L = 2": {"cls": "MACE", "hidden": "4x0e+4x1o+4x2e", "max_ell": 3},
    "Agnesi, ZBL": {"first": PLAIN, "distance_transform": "Agnesi", "pair_repulsion": True},
    "MACE, ZBL, soft, Gaussians": {
        "cls": "MACE",
        "pair_repulsion": True,
        "distance_transform": "Soft",
        "radial_type": "gaussian",
    },
    "trained frequencies": {"trained_frequencies": True, "gate": "none"},
    "density": {"first": DENSITY, "later": DENSITY_RESIDUAL, "distance_transform": "Agnesi"},
    "density, cut-off on path weights": {
        "first": DENSITY,
        "later": DENSITY_RESIDUAL,
        "apply_cutoff": False,
        "pair_repulsion": True,
    },
    "agnostic products": {"use_agnostic_product": True},
    "three heads": {**THREE_HEADS, "pair_repulsion": True, "use_last_readout_only": True},
    "both parities": {"hidden": "4x0e+4x0o+4x1o+4x1e"},
    "some odd irreps": {"hidden": "4x0e+4x1o+4x1e", "num_interactions": 3},
    "pseudoscalars": {"hidden": "4x0e+4x0o"},
    "one layer, order 4": {"num_interactions": 1, "correlation": 4, "max_ell": 1},
    "order 1, last layer kept": {"correlation": 1, "keep_last_layer_irreps": True},
    "attention": {"first": ATTENTION, "later": ATTENTION, "hidden": "4x0e+4x1o"},
    "attention, cut-off on path weights": {
        "first": ATTENTION,
        "later": ATTENTION,
        "num_interactions": 3,
        "hidden": "4x0e+4x0o+4x1o",
        "apply_cutoff": False,
        "distance_transform": "Agnesi",
        **THREE_HEADS,
    },
    "nonlinear": {"first": NONLINEAR, "later": NONLINEAR, "edge_irreps": "3x0e+3x1o"},
    "nonlinear, cut-off on path weights": {
        "first": NONLINEAR,
        "later": NONLINEAR,
        "num_interactions": 3,
        "edge_irreps": "3x0e+3x1o",
        "use_edge_irreps_first": True,
        "apply_cutoff": False,
        "use_agnostic_product": True,
        "distance_transform": "Agnesi",
        **THREE_HEADS,
    },
    "readout with biases": {"readout_cls": "NonLinearBiasReadoutBlock", **THREE_HEADS},
    "charge and spin": {"embedding_specs": CHARGE_AND_SPIN},
}

#: Where mace-torch contradicts itself: of what is wrong there the rest is compared.
PARTLY: dict[str, tuple[dict[str, Any], str]] = {
    # its forces are not the derivative of its energy
    "Chebyshev": ({"radial_type": "chebyshev", "distance_transform": "Agnesi"}, "forces stress"),
    # its energies of atoms do not add up to its energy
    "readout of charge and spin": (
        {"embedding_specs": CHARGE_AND_SPIN, "use_embedding_readout": True},
        "site_energies",
    ),
}
ALL = VARIANTS | {name: settings for name, (settings, _) in PARTLY.items()}


def converted(folder: Path, name: str, dtype: str, head: str) -> clebsch.Potential:
    """A model of the fixture."""
    properties = PROPERTIES if "charge" in name else None
    return read_mace_torch(folder / f"{name}-{dtype}.model", head=head, properties=properties)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Models of mace-torch, and what it says of the structures; made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "models"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        answers = folder / "answers.json"
        if not answers.exists():
            answers.write_text(json.dumps(make_models(folder)))
    return folder, json.loads(answers.read_text())


def make_models(folder: Path) -> dict[str, Any]:
    """Some on each core."""
    n_jobs = os.cpu_count() or 1
    with ThreadPoolExecutor(n_jobs) as pool:
        parts = pool.map(lambda i: make_some(folder, list(ALL)[i::n_jobs]), range(n_jobs))
    return {name: answer for part in parts for name, answer in part.items()}


def make_some(folder: Path, names: list[str]) -> dict[str, Any]:
    job = {
        "variants": {name: ALL[name] for name in names},
        "structures": {name: as_json(atoms) for name, atoms in STRUCTURES.items()},
        "folder": str(folder),
        "numbers": [1, 6, 8],
        "properties": PROPERTIES,
    }
    done = subprocess.run(
        [MACE_TORCH / "bin/python", "-W", "ignore", Path(__file__).with_name("make_models.py")],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def ours(potential: clebsch.Potential, atoms: Atoms) -> dict[str, np.ndarray]:
    """All that is compared; stress of crystals alone, as mace-torch invents a cell for others."""
    crystal = bool(atoms.pbc.all())
    outputs = ("energy", "forces", "site_energies", *(("stress",) if crystal else ()))
    prediction = potential(potential.graph(atoms), outputs)
    return {
        name: getattr(prediction, name).numpy().squeeze(0)
        if name in ("energy", "stress")
        else getattr(prediction, name).numpy()
        for name in outputs
    }


@pytest.mark.parametrize("name", ALL)
def test_float64_gives_the_numbers_of_mace_torch(name: str, peer: tuple[Path, dict[str, Any]]):
    folder, answers = peer
    path = folder / f"{name}-float64.model"
    heads = mace_heads(path)
    assert len(heads) == len(answers[name]["float64"])
    for head, expected in zip(heads, answers[name]["float64"], strict=True):
        potential = converted(folder, name, "float64", head)
        assert potential.dtype == torch.float64
        for place, atoms in STRUCTURES.items():
            found = ours(potential, atoms)
            wrong = PARTLY[name][1].split() if name in PARTLY else []
            for key in set(found) - set(wrong):
                off = np.abs(found[key] - np.array(expected[place][key])).max()
                # 1e-10 eV and eV/Angstrom: rounding of energies of -3e3 eV is 5e-13
                assert off < 1e-10, (name, head, place, key)


@pytest.mark.parametrize("name", VARIANTS)
def test_float32_is_close_to_the_same_weights_in_float64(
    name: str, peer: tuple[Path, dict[str, Any]]
):
    folder, answers = peer
    path = folder / f"{name}-float32.model"
    for head, expected in zip(mace_heads(path), answers[name]["float32"], strict=True):
        potential = converted(folder, name, "float32", head)
        assert potential.dtype == torch.float32
        for place, atoms in STRUCTURES.items():
            found, truth = ours(potential, atoms), expected[place]
            off = abs(found["energy"] - truth["energy"]) / len(atoms)
            assert off < 1e-5, (name, head, place)
            rms = np.sqrt(np.square(truth["forces"]).mean())
            error = np.sqrt(np.square(found["forces"] - truth["forces"]).mean())
            assert error <= 1e-5 * rms, (name, head, place)


@pytest.mark.parametrize(
    "name", ["plain first layer", "density, cut-off on path weights", "nonlinear"]
)
def test_the_fast_backend_runs_them(name: str, peer: tuple[Path, dict[str, Any]]):
    folder, answers = peer
    potential = clebsch.load(folder / f"{name}-float64.model")
    assert potential.backend == "llvm"
    for place, atoms in STRUCTURES.items():
        found, expected = ours(potential, atoms), answers[name]["float64"][0][place]
        assert np.abs(found["forces"] - expected["forces"]).max() < 1e-10


@pytest.mark.parametrize("elements", [["O"], ["O", "C"]])
def test_a_model_of_fewer_elements_gives_the_same_numbers(
    elements: list[str], peer: tuple[Path, dict[str, Any]]
):
    folder, _ = peer
    path = folder / "Agnesi, ZBL-float64.model"
    whole, part = read_mace_torch(path), read_mace_torch(path, species=elements)
    assert part.species == tuple(s for s in SPECIES if s in elements)
    atoms = STRUCTURES["crystal"].copy()
    atoms.symbols[:] = [elements[i % len(elements)] for i in range(len(atoms))]
    for key, value in ours(part, atoms).items():
        assert np.abs(value - ours(whole, atoms)[key]).max() < 1e-10


#: Models, precision of the file, options, and what mace-torch contradicts itself in.
ASKED: dict[str, tuple[str, str, list[str], list[str]]] = {
    "a head": ("three heads", "float64", ["--head", "second"], []),
    "tables in float32": ("Agnesi, ZBL", "float32", [], []),
    "forces of its own": ("Chebyshev", "float64", [], ["forces"]),
    "fixed properties": (
        "readout of charge and spin",
        "float64",
        ["--fix", "total_charge=1,total_spin=2"],
        ["energies of atoms"],
    ),
}


@pytest.mark.parametrize("case", ASKED)
def test_the_doctor_compares_with_mace_torch(
    case: str, peer: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
):
    name, dtype, options, contradicted = ASKED[case]
    model = peer[0] / f"{name}-{dtype}.model"
    arguments = ["doctor", str(model), *options, "--unpickle-with-mace-torch", "--json"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--peer-python", str(MACE_TORCH / "bin/python")])
    found = json.loads(capsys.readouterr().out)
    assert not ended.value.code, [check for check in found["checks"] if not check["passed"]]
    notes = [note.removeprefix("mace-torch's ") for note in found["notes"]]
    assert len(notes) == len(contradicted)
    assert all(note.startswith(what) for note, what in zip(notes, contradicted, strict=True))
    compared = [check for check in found["checks"] if ": mace-torch 0.3" in check["name"]]
    assert {check["structure"] for check in compared} == {"molecule", "skewed cell"}
    exact = {check["allowed"] for check in compared if check["dtype"] == "float64"}
    assert exact == {1e-5 if dtype == "float32" else 1e-9}
    names = {check["name"].split(":")[0] for check in compared}
    assert ("forces" in names) == ("stress" in names) == ("forces" not in contradicted)
    assert ("site energies" in names) == ("energies of atoms" not in contradicted)


#: Potentials of ours that mace-torch can express.
OURS: dict[str, dict[str, Any]] = {
    "as published": {"update": {"first_layer": "residual"}, "message_l": 2},
    "most settings": {
        "message_l": 1,
        "radial": {"hidden": (8,), "trainable": True, "transform": "agnesi"},
        "interaction": {"normalization": "density"},
        "product": {"weights": "shared", "couplings": "unreduced"},
        "readout": {"layers": "last", "last": "two_linear"},
        "mean_energy": "every_atom",
        "zbl": "mace_torch",
    },
}


def built(folder: Path, path: Path) -> subprocess.CompletedProcess[str]:
    """What the script in an exported folder says."""
    return subprocess.run(
        [MACE_TORCH / "bin/python", "-W", "ignore", folder / "build_model.py", path],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_large_numbers_may_be_rounded_where_an_export_is_compared(tmp_path: Path):
    """A network may say anything of the structure it is compared on, which no training has seen."""
    config = MessagePassingConfig(
        channels=4, l_max=1, cutoff=3.5, layers=1, readout={"last": "linear"}
    )
    potential = clebsch.build(config, SPECIES, dtype=torch.float32)
    potential.head.scale.fill_(1e6)
    export_mace_torch(potential, tmp_path)
    done = built(tmp_path, tmp_path / "built.model")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", OURS)
def test_mace_torch_builds_what_is_exported_and_it_comes_back(name: str, tmp_path: Path):
    config = MessagePassingConfig(channels=4, l_max=2, cutoff=3.5, **OURS[name])
    potential = clebsch.build(config, SPECIES, dtype=torch.float64)
    potential.head.mean_energy.fill_(-4.7)
    export_mace_torch(potential, tmp_path)
    path = tmp_path / "built.model"
    done = built(tmp_path, path)
    assert done.returncode == 0, done.stdout + done.stderr
    again = read_mace_torch(path)
    for atoms in STRUCTURES.values():
        expected = ours(potential, atoms)
        for key, value in ours(again, atoms).items():
            assert np.abs(value - expected[key]).max() < 1e-10, key
    # the script does not save what gives other numbers
    settings = json.loads((tmp_path / "settings.json").read_text())
    settings["reference"]["energy"] += 1.0
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    path.unlink()
    done = subprocess.run(done.args, capture_output=True, text=True)
    assert done.returncode == 1
    assert "nothing is saved" in done.stderr
    assert not path.exists()
