"""Write the tables of docs/configuration.md from the schema, so that they cannot go out of date.

    python docs/generate_config.py

A test compares what this would write with what is there.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from pathlib import Path, PurePath
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from clebsch.models.config import ARCHITECTURES, MACEConfig
from clebsch.models.presets import PRESETS, Preset
from clebsch.training.config import RECIPES, Config, TrainingConfig

PAGE = Path(__file__).with_name("configuration.md")
BEGIN, END = "<!-- begin generated -->\n", "<!-- end generated -->\n"


def tables() -> str:
    """All generated sections, in Markdown."""
    parts = ["## Every key\n"]
    parts += [_section(key, section) for key, section in _sections("", Config)]
    parts += ["## Recipes\n", _recipes(), "## Model presets\n", _presets()]
    return "\n".join(parts)


def page() -> str:
    """The page with its generated part as it should be."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def _sections(prefix: str, section: type[BaseModel]) -> list[tuple[str, type[BaseModel]]]:
    found = [(prefix, section)]
    for name, field in section.model_fields.items():
        if section is Config and name == "model":
            for architecture in ARCHITECTURES.values():
                found += _sections(name, architecture)
            continue
        inner = field.annotation
        if inspect.isclass(inner) and issubclass(inner, BaseModel):
            found += _sections(f"{prefix}.{name}" if prefix else name, inner)
    return found


def _section(key: str, section: type[BaseModel]) -> str:
    described = _described_attributes(section)
    rows: list[tuple[str, ...]] = []
    for name, field in section.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            continue
        if section is Config and name == "model":
            continue
        full = f"{key}.{name}" if key else name
        text = field.description or described.get(name, "")
        chosen = key == "training" and any(name in recipe for recipe in RECIPES.values())
        default = "by recipe" if chosen else _default(field)
        rows.append((f"`{full}`", _kind(field), default, text.rstrip(".")))
    heading = f"### `{key}`\n" if key else "### Top level\n"
    if key == "model":
        heading = f"### `{key}` with `name: {section.model_fields['name'].default}`\n"
    return f"{heading}\n{_table(('key', 'value', 'default', 'what it is'), rows)}"


def _described_attributes(section: type[BaseModel]) -> dict[str, str]:
    """The ``Attributes`` of a class's docstring, for fields without a description of their own."""
    _, _, block = inspect.cleandoc(section.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", block, re.M)
    return {name: " ".join(text.split()) for name, text in entries}


def _kind(field: FieldInfo) -> str:
    bounds = {"Gt": ">", "Ge": "≥", "Lt": "<", "Le": "≤"}
    limits = []
    for item in field.metadata:
        sign = bounds.get(type(item).__name__)
        if sign is not None:
            limits.append(f"{sign} {getattr(item, type(item).__name__.lower())}")
    return " ".join([_type(field.annotation), ", ".join(limits)]).strip()


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(part) for part in arguments)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"{_type(arguments[0])}: {_type(arguments[1])} pairs"
    if annotation is type(None):
        return "`null`"
    if inspect.isclass(annotation) and issubclass(annotation, PurePath):
        return "path"
    names = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}
    return names[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "—"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, Path):
        return f"`{value.name}`"
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _recipes() -> str:
    names = list(RECIPES)
    keys = list(dict.fromkeys(key for recipe in RECIPES.values() for key in recipe))
    rows = []
    for key in keys:
        values = [RECIPES[name].get(key) for name in names]
        default = _default(TrainingConfig.model_fields[key])
        shown = [default if value is None else f"`{value}`" for value in values]
        rows.append((f"`training.{key}`", *shown))
    return _table(("key", *(f"`recipe: {name}`" for name in names)), rows)


def _presets() -> str:
    rows, others = [], []
    for name, preset in PRESETS.items():
        config = preset.config
        if not isinstance(config, MACEConfig):
            source = preset.source + _assumed(preset)
            others.append((f"`{name}`", f"`{config.name}`", config.summary, source))
            continue
        numbers = (config.channels, config.message_l, config.l_max, config.correlation)
        first = f"`{config.first_layer}`"
        rows.append((f"`{name}`", *map(str, numbers), first, preset.source + _assumed(preset)))
    heading = ("preset", "channels", "message_l", "l_max", "correlation", "first_layer", "source")
    return _table(heading, rows) + "\n" + _table(("preset", "name", "size", "source"), others)


def _assumed(preset: Preset) -> str:
    return f"; assumed: {', '.join(preset.assumed)}" if preset.assumed else ""


def _table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heading, tuple("---" for _ in heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
