"""``clebsch info``: everything that a model file says, whoever wrote it, and nothing computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import clebsch
from builders import SPECIES, copied_potential, potential
from clebsch.modelfile import read_tensors, save_heads, write_tensors
from clebsch.modelinfo import read_info
from clebsch.potential import Potential
from clebsch.training.loop import train
from training.toy import cluster, config, crystal, data_file

MACE_TORCH = Path(__file__).parent / "data_files" / "mace_torch.model"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run_command: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``clebsch info``: exit status, standard output with single blanks, standard error."""
    monkeypatch.setenv("COLUMNS", "1000")

    def run_info(*arguments: object) -> tuple[int, str, str]:
        status, out, err = run_command("info", *arguments)
        return status, " ".join(out.split()), err

    return run_info


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of one epoch on ten clusters and four crystals."""
    folder = tmp_path_factory.mktemp("info")
    frames = [cluster(seed) for seed in range(12)] + [crystal(seed) for seed in range(4)]
    settings = config(
        data_file(folder, frames), "training.max_epochs=1", "seed=3", "processes=1", "threads=1"
    )
    train(settings, folder / "run")
    return folder


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    low, high = copied_potential(), copied_potential()
    high.head.references += 1.5
    low.provenance, high.provenance = {"level": "low"}, {"level": "high"}
    save_heads({"low": low, "high": high}, tmp_path / "heads.safetensors")
    return tmp_path / "heads.safetensors"


def told(run: Run, *arguments: object) -> list[dict[str, Any]]:
    status, out, err = run(*arguments, "--json")
    assert status == 0, err
    found: list[dict[str, Any]] = json.loads(out)["models"]
    return found


def test_a_trained_model_tells_what_it_is_and_how_it_was_made(run: Run, trained: Path) -> None:
    model = trained / "run" / "model.safetensors"
    status, out, err = run(model)
    assert status == 0, err
    loaded = clebsch.load(model)
    distances = loaded.shortest_distances
    assert distances is not None
    shortest = min(distances, key=lambda pair: distances[pair])
    for said in (
        f"file {model}, {model.stat().st_size / 1e6:.2f} MB",
        f"model message_passing: {loaded.config.summary}",
        "settings cutoff=4.0, channels=2, l_max=1, ",
        "product.correlation=2",
        "cut-off 4 Å",
        f"parameters {sum(p.numel() for p in loaded.parameters())}, float64",
        "elements Cu, Au",
        f"references Cu {loaded.references[0]:.6f}, Au {loaded.references[1]:.6f} eV",
        "training data 14 structures with 14 energies, 14 sets of forces, ",
        "validation data 2 structures with 2 energies",
        str(trained / "data.xyz"),
        "references from fit",
        f"shortest distances {shortest} {distances[shortest]:.2f}, ",
        f"clebsch {clebsch.__version__}, torch {torch.__version__}",
        "training epoch 1, step 7, 0:0",
        "recipe fast, seed 3",
        "validation RMSE energy ",
        "computes energy, forces, virial, stress, ",
        "(--committee)",
        "units length Angstrom, energy eV, stress eV/Angstrom^3",
        "clebsch doctor MODEL",
    ):
        assert said in out


def test_json_is_everything_for_machines(run: Run, trained: Path) -> None:
    model = trained / "run" / "model.safetensors"
    (found,) = told(run, model)
    loaded = clebsch.load(model)
    references = dict(zip(loaded.species, loaded.references.tolist(), strict=True))
    assert found == {
        "file": str(model),
        "bytes": model.stat().st_size,
        "heads": [],
        "head": None,
        "architecture": "message_passing",
        "summary": loaded.config.summary,
        "config": loaded.config.model_dump(mode="json"),
        "cutoff": 4.0,
        "n_parameters": sum(p.numel() for p in loaded.parameters()),
        "dtype": "float64",
        "elements": ["Cu", "Au"],
        "references": references,
        "outputs": list(clebsch.conventions.OUTPUTS),
        "uncertainty_draws": 0,
        "units": {"length": "Angstrom", "energy": "eV", "stress": "eV/Angstrom^3"},
        "provenance": loaded.provenance,
    }


def test_no_energy_is_computed_and_no_kernel_compiled(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked to compute")

    monkeypatch.setattr(Potential, "forward", refuse)
    monkeypatch.setattr(Potential, "use_backend", refuse)
    assert read_info(trained / "run" / "model.safetensors").potential.backend == "reference"


def test_several_models_are_told_of_in_turn(run: Run, trained: Path, heads: Path) -> None:
    model = trained / "run" / "model.safetensors"
    assert [one["file"] for one in told(run, heads, model)] == [str(heads), str(model)]
    status, out, _ = run(heads, model)
    assert status == 0
    assert out.index(f"file {heads}") < out.index(f"file {model}")


@pytest.mark.parametrize("of", ["clebsch", "mace-torch"])
def test_heads_are_listed_until_one_is_chosen(run: Run, heads: Path, of: str) -> None:
    path, names = (heads, ["low", "high"]) if of == "clebsch" else (MACE_TORCH, ["first", "second"])
    (found,) = told(run, path)
    assert found["heads"] == names
    assert found["head"] is found["references"] is found["provenance"] is None
    status, out, _ = run(path)
    assert status == 0
    assert f"heads {', '.join(names)}; --head NAME" in out
    assert "references H" not in out
    references = []
    for name in names:
        (found,) = told(run, path, "--head", name)
        assert found["head"] == name
        assert found["provenance"] == clebsch.load(path, head=name).provenance
        references.append(found["references"]["H"])
        status, out, _ = run(path, "--head", name)
        assert f"head {name}, of {', '.join(names)}" in out
        assert f"references H {references[-1]:.6f}" in out
    assert references[0] != references[1]
    status, _, err = run(path, "--head", names[0][:-1])
    assert status == 2
    assert f"Did you mean '{names[0]}'" in err


def test_a_model_of_mace_torch_tells_its_class_and_its_file(run: Run) -> None:
    _, out, _ = run(MACE_TORCH, "--head", "first")
    assert "imported ScaleShiftMACE of mace-torch, mace_torch.model" in out
    assert "elements H, C, O" in out
    assert "transform=agnesi" in out


def test_what_others_wrote_about_a_model_stands_as_it_is(run: Run, tmp_path: Path) -> None:
    potential = copied_potential()
    about = {"written by": "[red]me[/]", "data": ["a.xyz"], "trained": {"when": 2024}}
    potential.save(tmp_path / "model.safetensors", provenance=about)
    status, out, err = run(tmp_path / "model.safetensors")
    assert status == 0, err
    for said in ("written by [red]me[/]", 'data ["a.xyz"]', 'trained {"when": 2024}'):
        assert said in out


def test_a_fitted_linear_model_knows_how_sure_it_is(run: Run, tmp_path: Path) -> None:
    linear = potential("ace")
    linear.save(tmp_path / "new.safetensors")
    linear.model.committee.fill_(0.1)
    linear.save(tmp_path / "fitted.safetensors")
    new, fitted = told(run, tmp_path / "new.safetensors", tmp_path / "fitted.safetensors")
    assert (new["uncertainty_draws"], fitted["uncertainty_draws"]) == (0, 2)
    assert "uncertainty of its own, from 2 draws" in run(tmp_path / "fitted.safetensors")[1]


def test_a_model_that_answers_wrongly_is_told_of_all_the_same(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    copied_potential().save(path)
    tensors, metadata = read_tensors(path)
    metadata["reference"]["energy"] += 1
    write_tensors(path, tensors, metadata)
    assert told(run, path)[0]["elements"] == SPECIES


def test_a_file_that_cannot_be_trusted_is_refused_as_load_refuses_it(
    run: Run, tmp_path: Path
) -> None:
    good = tmp_path / "good.safetensors"
    copied_potential().save(good)
    damaged, cut = tmp_path / "damaged.safetensors", shutil.copy(MACE_TORCH, tmp_path / "cut.model")
    content = bytearray(good.read_bytes())
    content[-3] ^= 1
    damaged.write_bytes(content)
    Path(cut).write_bytes(MACE_TORCH.read_bytes()[:5000])
    for path in (damaged, cut, tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(clebsch.ClebschError) as refused:
            clebsch.load(path)
        status, out, err = run(good, path)
        assert (status, out) == (2, "")
        assert err == f"error: {refused.value}\n"
