"""Reading and writing configurations: YAML, ``key=value`` settings, errors that name the key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from clebsch.errors import ClebschError, ConfigError, did_you_mean
from clebsch.files import atomic_write, no_such_file
from clebsch.modelfile import read_potential
from clebsch.models.config import CONFIGS, architecture
from clebsch.models.presets import merged, preset_to_change
from clebsch.models.section import all_keys, message_of, sections_in
from clebsch.training.config import (
    ALTERNATIVES,
    DEFAULT_MODEL,
    DEFAULT_RECIPE,
    DEFAULT_VALID_FRACTION,
    FINE_TUNING,
    RECIPES,
    VALIDATION_SETS,
    Config,
)

Tree = dict[str, Any]
#: Where a key was given, for messages: a file, or the command line.
Place = Callable[[str], str]


def load_config(path: Path | str | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a file (or of nothing) with settings of the command line over it.

    Args:
        path: a YAML file.
        overrides: ``key=value`` with dotted keys and values in YAML: ``model.channels=64``,
            ``data.train=[a.xyz, b.xyz]``. Whole sections are set before single keys.

    Raises:
        ConfigError: unreadable YAML; an unknown key; a value of the wrong kind; a missing key.
    """
    tree = {} if path is None else _read(Path(path))
    of_file = set(tree)
    settings = sorted((_parse(text) for text in overrides), key=lambda s: s[0].count("."))
    places = {key: "the command line" for key, _ in settings}
    where = str(path) if path is not None else "the configuration"

    def place_of_value(key: str) -> str:
        return next((p for k, p in places.items() if f"{key}.".startswith(f"{k}.")), where)

    def place(key: str) -> str:
        below = (p for k, p in places.items() if k.startswith(f"{key}.") and key not in of_file)
        given = place_of_value(key)
        return given if given != where else next(below, where)

    for key, value in settings:
        _assign(tree, key, value, place_of_value)
    return _validated(_resolve(tree, place), place)


def _validated(tree: Tree, place: Place) -> Config:
    try:
        return Config.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(_explain(error, place)) from None
    except (ValueError, RecursionError) as error:  # of JSON: a YAML alias of what holds it
        raise ConfigError(f"{place('')}: {error}") from None


def config_dict(config: Config) -> Tree:
    """The resolved configuration as JSON values, without sections that its model has no use for."""
    unused = {"training", "recipe"} if config.is_linear else {"fit"}
    return config.model_dump(mode="json", exclude=unused)


def load_run(run: Path) -> Config:
    """The configuration of a run.

    Raises:
        ConfigError: the folder holds none, or one that is invalid.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run}: is not the folder of a run: it holds no config.yaml")
    tree = _read(path)
    if not isinstance(tree.get("model"), dict) or "name" not in tree["model"]:
        return load_config(path)

    # as it was resolved: the model file that a training started from is not needed any more
    def place(_: str) -> str:
        return str(path)

    initial = {"initial": tree.pop("initial", None)}
    return _validated(_resolve(tree, place) | initial, place)


def write_config(config: Config, path: Path) -> None:
    """Write the resolved configuration, which ``load_config`` reads back unchanged."""
    atomic_write(path, yaml.safe_dump(config_dict(config), sort_keys=False))


def differences(key: str, new: Any, old: Any) -> Iterator[tuple[str, Any, Any]]:
    """The settings below a key in which two trees differ: full names, new and old values."""
    if isinstance(new, dict) and isinstance(old, dict):
        for name in {**new, **old}:
            below = f"{key}.{name}" if key else name
            yield from differences(below, new.get(name), old.get(name))
    elif new != old:
        yield key, new, old


class _Loader(yaml.SafeLoader):
    """YAML with the numbers and truth values of version 1.2, and no key twice.

    Version 1.1 takes 1e-3 for a string, "No" (nobelium) for false, 010 for eight and 1:30 for
    ninety.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, regex)
            for tag, regex in resolvers
            if not tag.endswith((":bool", ":float", ":int", ":timestamp"))
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            plain = isinstance(key_node, yaml.ScalarNode) and key_node.style is None
            if plain and re.fullmatch(r"\w+:\S+", key_node.value) and value_node.value == "":
                problem = f"a blank belongs after the colon in {key_node.value!r}"
                raise yaml.MarkedYAMLError(None, None, problem, key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(None, None, f"{key!r} twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|false|True|False|TRUE|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")
)
_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def _read(path: Path) -> Tree:
    try:
        tree = _yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{no_such_file(path)} A setting is written KEY=VALUE.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(f"{path}: cannot read the configuration ({reason})") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(
            f"{path}: a configuration is a mapping of keys to values (a file of structures is "
            "given as data.train=FILE)"
        )
    return tree


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"not valid YAML{line}: {getattr(error, 'problem', error)}") from None


def _parse(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise ConfigError(
            f"{text!r} is not a setting of the form key=value, such as model.channels=64"
        )
    try:
        return key, _yaml(value)
    except ConfigError as error:
        raise ConfigError(f"{text!r}: {error}") from None


def _assign(tree: Tree, key: str, value: Any, place: Place) -> None:
    *sections, name = key.split(".")
    for depth, section in enumerate(sections, 1):
        inner = {} if tree.get(section) is None else tree[section]
        if section == "model" and isinstance(inner, str):
            inner = {"preset": inner}
        if not isinstance(inner, dict):
            full = ".".join(sections[:depth])
            raise ConfigError(
                f"{place(full)}: {full}: should be a section, for {key} to be in (got {inner!r})"
            )
        tree[section] = inner = dict(inner)
        tree = inner
    tree[name] = value


def _resolve(tree: Tree, place: Place) -> Tree:
    """The tree with preset, recipe and validation set filled in."""
    resolved = {
        key: {} if value is None and key not in ("initial", "replay") else value
        for key, value in tree.items()
    }
    if resolved.get("initial") is not None:
        resolved["model"] = _model_of_file(resolved, place)
    model = resolved.get("model", DEFAULT_MODEL)
    if isinstance(model, dict) and not {"name", "preset"} & set(model):
        model = {"preset": DEFAULT_MODEL, **model}  # settings change the model that there is
    model = _with_preset(model, place)
    if isinstance(model, dict):
        _check_sections(model["name"], tree, place)
    recipe = resolved.setdefault("recipe", DEFAULT_RECIPE)
    fine_tuned = resolved.get("initial") is not None
    training = _with_recipe(resolved.get("training", {}), recipe, fine_tuned)
    resolved |= {"model": model, "training": training}
    data = resolved.get("data")
    if isinstance(data, dict) and all(data.get(name) is None for name in VALIDATION_SETS):
        resolved["data"] = data | {"valid_fraction": DEFAULT_VALID_FRACTION}
    return resolved


def _with_preset(model: Any, place: Place) -> Any:
    """The section ``model`` with what its preset says, and with its architecture's name.

    Raises:
        ConfigError: an unknown preset or architecture, or one that does not go with the other.
    """
    if isinstance(model, str):
        model = {"preset": model}
    if not isinstance(model, dict):
        return model
    if "preset" in model:
        changes = {key: value for key, value in model.items() if key != "preset"}
        try:
            base = preset_to_change(str(model["preset"]), changes, "json")
        except ConfigError as error:
            raise ConfigError(f"{place('model')}: model: {error}") from None
        model = merged(base, changes)
    try:
        return {**model, "name": architecture(model)}
    except ConfigError as error:
        raise ConfigError(f"{place('model.name')}: {error}") from None


def _with_recipe(training: Any, recipe: Any, fine_tuned: bool) -> Any:
    """The section ``training`` with what the recipe says, unless an alternative is given."""
    if not (isinstance(recipe, str) and recipe in RECIPES and isinstance(training, dict)):
        return training
    base = RECIPES[recipe] | (FINE_TUNING.get(recipe, {}) if fine_tuned else {})
    for group in ALTERNATIVES:
        if any(training.get(name) is not None for name in group):
            base = {key: value for key, value in base.items() if key not in group}
    return merged(base, training)


def _model_of_file(tree: Tree, place: Place) -> Tree:
    """The architecture of the model file that training starts from.

    Raises:
        ConfigError: there is no such file, or the section ``model`` says something else.
    """
    path = tree["initial"]
    try:
        found = read_potential(Path(str(path)).expanduser())[0].config.model_dump(mode="json")
    except ClebschError as error:
        raise ConfigError(f"{place('initial')}: initial: {error}") from None
    given = tree.get("model", {})
    changed = merged(found, given) if isinstance(given, dict) else None
    if changed != found:
        raise ConfigError(
            f"{place('model')}: model: it is that of {path}, from which training starts "
            "(initial); leave it out"
        )
    return found


def _check_sections(architecture: Any, tree: Tree, place: Place) -> None:
    """Refuse sections that say how to train another kind of model."""
    linear = architecture == "ace"
    for section in ("training", "recipe") if linear else ("fit",):
        if tree.get(section):
            reason = (
                "a linear ACE is fitted in closed form, which section fit tells of"
                if linear
                else f"model {architecture} is trained, which section training tells of"
            )
            given = tree[section]
            key = f"{section}.{next(iter(given))}" if isinstance(given, dict) else section
            raise ConfigError(f"{place(key)}: {key}: of no use here: {reason}")


def _explain(error: ValidationError, place: Place) -> str:
    """The first problem: where, which key, what was expected, what the key may have meant."""
    problems = error.errors()
    unknown = [p for p in problems if p["type"] == "extra_forbidden"]
    problem = (unknown or problems)[0]
    key, section = _locate(problem["loc"])
    if unknown:
        name = str(problem["loc"][-1])
        full = f"{key}.{name}" if key else name
        elsewhere = [k for k in all_keys(Config) if k.split(".")[-1] == name]
        hint = f"Did you mean {elsewhere[0]!r}?" if elsewhere else did_you_mean(name, section)
        return f"{place(full)}: unknown key {full!r}. {hint}"
    if problem["type"] == "missing":
        hint = "; say where the structures are: data.train=FILE" if key.startswith("data") else ""
        return f"{place(key)}: {key} is missing{hint}"
    same = [p for p in problems if _locate(p["loc"])[0] == key]
    got = problem["input"]
    if isinstance(got, str) and all(p["type"] == "literal_error" for p in same):
        listed = [
            found
            for p in same
            for found in re.findall(r"'([^']+)'|(True|False)", p["ctx"]["expected"])
        ]
        choices = [text or flag.lower() for text, flag in listed]
        return f"{place(key)}: {key}: unknown value {got!r}. {did_you_mean(got, choices)}"
    expected = " or ".join(dict.fromkeys(message_of(p) for p in same))
    if not key:  # of the whole, and the message begins with its key
        return f"{place(expected.partition(':')[0])}: {expected}"
    shown = "" if isinstance(got, dict) else f" (got {got!r})"
    return f"{place(key)}: {key}: {expected}{shown}"


def _locate(loc: Sequence[int | str]) -> tuple[str, list[str]]:
    """The dotted key that pydantic's path leads to, and the names valid in its section.

    Behind a key the path may go on with what pydantic calls the members of a union.
    """
    parts: list[str] = []
    section: type[BaseModel] | None = Config
    for part in loc:
        if parts == ["model"] and part in CONFIGS:
            section = CONFIGS[str(part)]
            continue
        if section is None or part not in section.model_fields:
            break
        parts.append(str(part))
        section = next(iter(sections_in(section.model_fields[str(part)].annotation)), None)
    return ".".join(parts), [] if section is None else list(section.model_fields)
