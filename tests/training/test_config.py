"""Configurations: strict, overridable, and errors that name the key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

import clebsch
from builders import tiny
from clebsch.errors import ConfigError
from clebsch.models.presets import preset_config
from clebsch.training.config import (
    FINE_TUNING,
    RECIPES,
    Config,
    DataConfig,
    FitConfig,
    LossConfig,
    TrainingConfig,
)
from clebsch.training.configfile import load_config, write_config


def file(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_a_preset_is_of_one_kind() -> None:
    message = r"model\.name=allegro does not go with the preset mace_tiny"
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["data.train=a.xyz", "model=mace_tiny", "model.name=allegro"])
    with pytest.raises(ConfigError, match=message):
        clebsch.build({"preset": "mace_tiny", "name": "allegro"}, ["H"])


def test_a_training_file_is_all_that_must_be_given() -> None:
    config = load_config(None, ["data.train=a.xyz"])
    assert config.data.train == Path("a.xyz").absolute()
    assert config.data.valid_fraction == 0.1
    assert config.recipe == "fast"
    assert config.model == preset_config("mace_small")
    assert config.training.lr == RECIPES["fast"]["lr"]


def test_a_start_that_is_good_is_trained_more_gently(tmp_path: Path) -> None:
    tiny("H").save(tmp_path / "start.safetensors")
    given = ["data.train=a.xyz", f"initial={tmp_path / 'start.safetensors'}"]
    assert load_config(None, given).training.lr == FINE_TUNING["fast"]["lr"] < 0.01
    assert load_config(None, [*given, "training.lr=0.02"]).training.lr == 0.02
    assert load_config(None, [*given, "recipe=paper"]).training.lr == RECIPES["paper"]["lr"]


@pytest.mark.parametrize("model", [[], ["model=mace_small"], ["model=mace_few"]], ids=str)
@pytest.mark.parametrize("interaction", ["attention=2", "gated={}"])
def test_attention_and_gates_have_their_envelope_on_path_weights(
    interaction: str, model: list[str]
) -> None:
    given = ["data.train=a.xyz", *model, f"model.interaction.{interaction}"]
    assert load_config(None, given).model.radial.envelope_of == "path_weights"
    told = load_config(None, [*given, "model.radial.envelope_of=basis"])
    assert told.model.radial.envelope_of == "basis"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("data: {train: a}\ntraining: {learning_rate: 1}", ["training.learning_rate", "Valid: "]),
        ("data: {train: a}\ntraining: {batchsize: 1}", ["training.batchsize", "'batch_size'"]),
        ("data: {train: a}\nlr: 0.1", ["'lr'", "Did you mean 'training.lr'?"]),
        ("data: {train: a, keys: {energi: E}}", ["data.keys.energi", "'energy'"]),
        ("data: {train: a}\nmodel: {radial: {n_bassis: 4}}", ["model.radial.n_bassis", "n_basis"]),
        ("data: {train: a}\nmodel: {name: allegro, latnt: 4}", ["model.latnt", "'latent'"]),
        ("data: {train: a}\nmodel: {name: allegro, message_l: 4}", ["model.message_l"]),
        ("data: {train: a}\nlatent: 4", ["'latent'", "Did you mean 'model.latent'?"]),
        ("data: {train: a}\ntraining: {loss: {force: 1}}", ["training.loss.force", "'forces'"]),
    ],
)
def test_an_unknown_key_is_named_in_full_with_its_file_and_the_nearest_valid_key(
    tmp_path: Path, text: str, names: list[str]
) -> None:
    path = file(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    for name in [*names, str(path), "unknown key"]:
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model=3"], r"model: input should be"),
        (["model.name=[mace]"], r"model\.name: unknown architecture"),
        (["model.name=alegro"], r"model\.name: unknown architecture 'alegro'.*'allegro'"),
        (
            ["model={name: allegro, latent: many}"],
            r"model\.latent: input should be a valid int",
        ),
        (["model={name: allegro, radial: {n_basis: 0}}"], r"model\.radial\.n_basis: input should"),
    ],
)
def test_a_wrong_architecture_or_setting_of_one_is_named(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["data.train=a.xyz", *settings])


def test_a_preset_of_any_architecture_is_written_and_read_back(tmp_path: Path) -> None:
    config = load_config(None, ["data.train=a.xyz", "model=allegro_small", "model.channels=8"])
    assert config.model.name == "allegro"
    assert config.model.channels == 8
    write_config(config, tmp_path / "run.yaml")
    assert load_config(tmp_path / "run.yaml") == config


def test_an_unknown_key_on_the_command_line_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, "data: {train: a}")
    with pytest.raises(ConfigError, match=r"^the command line: unknown key 'model\.chanels'"):
        load_config(path, ["model.chanels=4"])


def test_an_unknown_section_is_blamed_on_where_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^the command line: unknown key 'trainning'"):
        load_config(file(tmp_path, "data: {train: a}"), ["trainning.lr=0.1"])
    path = file(tmp_path, "{data: {train: a}, trainning: {lr: 1}}")
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: unknown key 'trainning'"):
        load_config(path, ["training.lr=0.1"])
    path = file(tmp_path, "{data: {train: a}, model: mace_smal}")
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: model: "):
        load_config(path, ["model.channels=8"])


@pytest.mark.parametrize(
    ("setting", "key", "expected"),
    [
        ("model={name: message_passing, zbl: maybe}", "model.zbl", "false, true, mace_torch."),
        ("data.references={Cu: -3, Nj: 1}", "data.references", "'Nj' is not an element. Did you"),
        ("training.lr=fast", "training.lr", "number"),
        ("training.lr=true", "training.lr", "number"),
        ("training.max_epochs=1.5", "training.max_epochs", "integer"),
        ("tensorboard=1", "tensorboard", "boolean"),
        ("model.channels=-1", "model.channels", "greater than or equal to 1"),
        ("data.references=guess", "data.references", "'auto', 'isolated', 'fit' or 'none'"),
        ("dtype=float16", "dtype", "Valid: float32, float64"),
        ("recipe=slow", "recipe", "Valid: paper, fast"),
        ("training.metric=force_rmse", "training.metric", "Did you mean 'forces_rmse'?"),
        ("model.radial.basis=bessle", "model.radial.basis", "Did you mean 'bessel'?"),
        ("device=gpu", "device", "cuda"),
        ("training=3", "training", "object"),
        ("training.lr=1e999", "training.lr", "finite number"),
        ("data.references={Cu: -1e999}", "data.references", "finite number"),
        ("model.cutoff=1e999", "model.cutoff", "finite number"),
    ],
)
def test_a_wrong_value_names_the_key_and_what_was_expected(
    setting: str, key: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, ["data.train=a", setting])
    message = str(error.value)
    assert message.startswith(f"the command line: {key}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.train=a", "data.valid=b", "data.valid_count=3"], "valid and valid_count"),
        (["data.train=a", "training.max_epochs=null"], "never end"),
        (["data.train=a", "training.batch_size=2", "training.batch_edges=9"], "one of batch_size"),
        (["data.train=a", "training.loss={energy: 0, forces: 0, stress: 0}"], "all weights"),
        (["data.train=a", "model=mace_acak"], "mace_acac"),
        (["model=mace_acac"], "data is missing; say where the structures are: data.train=FILE"),
        (["data.pbc=none"], "data.train is missing"),
        (["training.lr 3"], "key=value"),
        (["training.lr=[1"], "not valid YAML"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(None, settings)


@pytest.mark.parametrize("section", [Config, DataConfig, TrainingConfig, FitConfig, LossConfig])
def test_every_setting_says_what_it_is(section: type[BaseModel]) -> None:
    sections = {"data", "model", "training", "fit", "keys", "loss"}
    settings = {name: field for name, field in section.model_fields.items() if name not in sections}
    assert [name for name, field in settings.items() if not field.description] == []


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    for text, words in [
        ("data: [", "line"),
        ("- 1", "mapping"),
        ("seed: 1\nseed: 2", "twice in line 2|line 2: 'seed' twice"),
    ]:
        path = file(tmp_path, text)
        with pytest.raises(ConfigError, match=words) as error:
            load_config(path)
        assert str(path) in str(error.value)
    with pytest.raises(ConfigError, match=r"missing\.yaml: no such file"):
        load_config(tmp_path / "missing.yaml")


def test_numbers_with_an_exponent_are_numbers_and_nobelium_is_not_false() -> None:
    settings = ["data.train=a", "training.weight_decay=1e-6", "data.references={No: -1, H: 2e0}"]
    config = load_config(None, settings)
    assert config.training.weight_decay == 1e-6
    assert config.data.references == {"No": -1.0, "H": 2.0}


def test_whole_numbers_are_decimal() -> None:
    """As in YAML 1.2; in 1.1, 010 is eight and 1:30:00 is 5400."""
    assert load_config(None, ["data.train=d.xyz", "seed=010"]).seed == 10
    for text in ("training.max_minutes=1:30:00", "training.lr=0x10"):
        with pytest.raises(ConfigError, match="valid number"):
            load_config(None, ["data.train=d.xyz", text])


def test_a_setting_changes_the_model_that_there_is_without_it() -> None:
    default = load_config(None, ["data.train=d.xyz"]).model
    assert (
        load_config(None, ["data.train=d.xyz", f"model.cutoff={default.cutoff}"]).model == default
    )
    changed = load_config(None, ["data.train=d.xyz", "model.cutoff=4.5"]).model
    assert changed == default.model_copy(update={"cutoff": 4.5})


def test_a_preset_can_be_changed_on_the_command_line_in_any_order() -> None:
    expected = preset_config("mace_acac").model_copy(update={"channels": 64})
    for settings in (
        ["model=mace_acac", "model.channels=64"],
        ["model.channels=64", "model=mace_acac"],
        ["model={preset: mace_acac, channels: 64}"],
    ):
        assert load_config(None, ["data.train=a", *settings]).model == expected


def test_a_section_that_is_given_as_a_value_is_not_dropped_for_a_key_of_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, ["data=cu.xyz", "data.valid=au.xyz"])
    assert str(error.value) == (
        "the command line: data: should be a section, for data.valid to be in (got 'cu.xyz')"
    )
    path = file(tmp_path, "{data: {train: a}, training: {loss: 3}}")
    message = rf"^{re.escape(str(path))}: training\.loss: should be a section.*got 3"
    with pytest.raises(ConfigError, match=message):
        load_config(path, ["training.loss.energy=1"])
    empty = file(tmp_path, "{data: {train: a}, training: null}")
    assert load_config(empty, ["training.max_epochs=1"]).training.max_epochs == 1


def test_a_setting_of_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, "data: {train: a}\nmodel: mace_tiny\ntraining: {lr: 0.1, batch_size: 3}")
    config = load_config(path, ["training.lr=0.2", "model.radial.n_basis=6"])
    assert config.training.lr == 0.2
    assert config.training.batch_size == 3
    assert config.model.radial.n_basis == 6
    assert config.model.channels == preset_config("mace_tiny").channels


def test_the_paper_recipe_is_the_papers() -> None:
    training = load_config(None, ["data.train=a", "recipe=paper"]).training
    assert training.optimizer == "amsgrad"
    assert training.lr == 0.01
    assert training.weight_decay == 5e-7
    assert training.schedule == "plateau"
    assert (training.plateau_patience, training.plateau_factor) == (50, 0.8)
    assert (training.batch_size, training.ema_decay, training.max_epochs) == (5, 0.99, 2000)
    assert training.clip_grad_norm is None
    assert training.loss == LossConfig(energy=1, forces=1000, energy_form="per_sqrt_atoms")


def test_explicit_settings_replace_the_recipes_and_a_limit_its_alternative() -> None:
    training = load_config(
        None, ["data.train=a", "recipe=paper", "training.max_minutes=20", "training.batch_edges=99"]
    ).training
    assert (training.max_minutes, training.max_epochs) == (20, None)
    assert (training.batch_edges, training.batch_size) == (99, None)
    assert training.schedule == "plateau"


def test_the_resolved_file_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config(
        None,
        [
            "data.train=[a.xyz, b.xyz]",
            "data.references={H: -13.6}",
            "data.keys={energy: E, stress: none, stress_convention: negative}",
            "model=mace_3bpa",
            "training.max_minutes=3",
            "run=somewhere",
        ],
    )
    write_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_the_example_is_a_valid_configuration() -> None:
    config = load_config(Path(__file__).parents[2] / "examples" / "acac.yaml")
    assert (config.data.valid_count, config.data.pbc) == (50, "none")
    assert config.training.max_epochs is None


def test_a_recipe_sets_what_is_not_set_and_no_more(tmp_path: Path) -> None:
    """Nested settings too: another weight given does not lose the recipe's own."""
    data = ["data.train=x.xyz", "training.loss.forces=10"]
    fast = load_config(None, data).training.loss
    assert (fast.energy, fast.forces) == (50.0, 10.0)
    assert load_config(None, [*data, "training.loss.energy=3"]).training.loss.energy == 3.0
    assert load_config(None, [*data, "recipe=paper"]).training.loss.energy == 1.0


def test_a_pattern_is_the_files_that_match(tmp_path: Path) -> None:
    """They are listed, so that a file that is added later does not change a run."""
    names = [tmp_path / name for name in ("b.xyz", "a.xyz", "c.txt", "odd[1].xyz")]
    for name in names:
        name.write_text("")
    settings = ["model=mace_tiny", "training.max_epochs=1"]

    def found(train: object) -> object:
        return load_config(None, [f"data.train={train}", *settings]).data.train

    assert found(tmp_path / "?.xyz") == (tmp_path / "a.xyz", tmp_path / "b.xyz")
    assert found(f"[{tmp_path}/c*, {tmp_path}/a.xyz]") == (tmp_path / "c.txt", tmp_path / "a.xyz")
    assert found(tmp_path / "c*") == tmp_path / "c.txt"
    assert found(tmp_path / "odd[1].xyz") == tmp_path / "odd[1].xyz"
    assert found(tmp_path / "none*") == tmp_path / "none*"
