"""The folder for mace-torch: what is in it, and what mace-torch has nothing like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import clebsch
from clebsch.agreement import example_structure
from clebsch.cli import main
from clebsch.errors import ConfigError
from clebsch.interop.export import export_mace_torch
from clebsch.interop.mace_torch import read_mace_torch
from clebsch.interop.torch_archive import read_torch_file
from clebsch.models.config import ACEConfig, MessagePassingConfig

from .archives import MODEL

SMALL: dict[str, Any] = {"channels": 2, "l_max": 1, "message_l": 1, "radial": {"hidden": (4,)}}


def test_weights_have_the_names_and_values_of_the_file_that_they_came_from(tmp_path: Path):
    export_mace_torch(read_mace_torch(MODEL, head="first"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "weights.safetensors",
        "settings.json",
        "build_model.py",
    }
    written = load_file(tmp_path / "weights.safetensors")
    original = dict(parameters(read_torch_file(MODEL)))
    compared = 0
    for name, tensor in original.items():
        if name.startswith(("readouts", "products")) and not name.endswith("linear.weight"):
            continue  # of two heads, or solved for
        if name.startswith("readouts"):
            continue
        torch.testing.assert_close(written[name].reshape(tensor.shape), tensor)
        compared += 1
    assert compared == 13
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["model"]["r_max"] == 3.0
    assert settings["model"]["avg_num_neighbors"] == 9.3


@pytest.mark.parametrize(("form", "shift"), [("none", 0.0), ("every_atom", -4.7)])
def test_a_mean_energy_that_the_model_does_not_add_is_no_shift(
    form: str, shift: float, tmp_path: Path
):
    config = MessagePassingConfig(**SMALL, mean_energy=form)
    potential = clebsch.build(config, ["H", "O"], dtype=torch.float64)
    potential.head.mean_energy.fill_(-4.7)
    export_mace_torch(potential, tmp_path)
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["model"]["atomic_inter_shift"] == shift


def parameters(stub: Any, prefix: str = "") -> Any:
    for name, tensor in stub.state["_parameters"].items():
        if tensor is not None:
            yield prefix + name, tensor
    for name, inner in stub.state["_modules"].items():
        if hasattr(inner, "state") and "_parameters" in inner.state:
            yield from parameters(inner, f"{prefix}{name}.")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parity": "full"}, "model.parity=full; it has natural"),
        ({"product": None}, "without a product basis"),
        ({"product": {"slots": "distinct"}}, "model.product.slots=distinct"),
        ({"radial": {"weights": "element_linear"}}, "model.radial.weights=element_linear"),
        ({"radial": {"envelope": "smooth"}}, "model.radial.envelope=smooth"),
        ({"radial": {"basis": "chebyshev", "transform": "agnesi"}}, "model.radial.basis=chebyshev"),
        ({"l_max": 0, "message_l": 0}, "model.l_max=0"),
        ({"update": {"gate": "silu"}}, "model.update.gate=silu"),
        ({"interaction": {"paths": "summed"}}, "model.interaction.paths=summed"),
        ({"interaction": {"gated": {}}}, "model.interaction.gated="),
        ({"interaction": {"attention": 2}}, "model.interaction.attention=2"),
        ({"readout": {"last": "linear"}}, "model.readout.last=linear of 2 layers"),
        ({"layers": 1}, "model.readout.last=mlp of 1 layers"),
        ({"zbl": True}, "model.zbl=True; it has False, mace_torch"),
    ],
)
def test_what_mace_torch_has_nothing_like_is_named(
    settings: dict[str, Any], message: str, tmp_path: Path
):
    potential = clebsch.build(MessagePassingConfig(**{**SMALL, **settings}), ["H"])
    with pytest.raises(ConfigError, match=message):
        export_mace_torch(potential, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_energies_and_other_models_are_refused(tmp_path: Path):
    potential = clebsch.build(MessagePassingConfig(**SMALL), ["H"])
    export_mace_torch(potential, tmp_path / "out")
    potential.head.mean_energy.fill_(-1.0)
    with pytest.raises(ConfigError, match="mean_energy=density"):
        export_mace_torch(potential, tmp_path / "out")
    potential.head.mean_energy.zero_()
    with pytest.raises(ConfigError, match="export the potential itself"):
        export_mace_torch(potential.tabulated(), tmp_path / "out")
    linear = clebsch.build(ACEConfig(cutoff=3.0, max_degree=(2,), correlation=1), ["H"])
    with pytest.raises(ConfigError, match="no model like ace"):
        export_mace_torch(linear, tmp_path / "out")
    imported = read_mace_torch(MODEL, head="first")
    imported.head.scale.fill_(2.0)
    with pytest.raises(ConfigError, match="ZBL repulsion is scaled"):
        export_mace_torch(imported, tmp_path / "out")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_contact_repulsion_and_floor_stay_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """What is stored for comparison is what mace-torch will give."""
    potential = clebsch.build({**SMALL, "mean_energy": "none"}, ["H", "O"], dtype=torch.float64)
    export_mace_torch(potential, tmp_path / "before")
    potential.contact.distances.fill_(1.6)  # atoms of the structure are 1.3 to 2.4 apart
    potential.floor.depths.fill_(1e-9)
    assert potential.is_in_contact(potential.graph(example_structure(potential)))
    export_mace_torch(potential, tmp_path / "after")
    settings = [(tmp_path / name / "settings.json").read_text() for name in ("before", "after")]
    assert settings[0] == settings[1]
    potential.save(tmp_path / "model.safetensors")
    assert run("convert", tmp_path / "model.safetensors", tmp_path / "c", "--to", "mace-torch") == 0
    assert "Contact repulsion and energy floor stay behind" in capsys.readouterr().out


def test_the_command_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, out = tmp_path / "model.safetensors", tmp_path / "out"
    read_mace_torch(MODEL, head="first").save(model)
    assert run("convert", model, out, "--to", "mace-torch") == 0
    assert "build_model.py NEW.model" in capsys.readouterr().out
    assert run("convert", model, out, "--to", "mace-torch") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run("convert", model, out, "--to", "mace-torch", "--overwrite", "--head", "x") == 2
    assert "no head 'x'" in capsys.readouterr().err
    assert run("convert", model, out, "--to", "mace") == 2
    assert "mace-torch" in capsys.readouterr().err
