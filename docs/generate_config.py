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

from clebsch.models.presets import PRESETS
from clebsch.training.config import FINE_TUNING, RECIPES, Config, TrainingConfig

PAGE = Path(__file__).with_name("configuration.md")
BEGIN, END = "<!-- begin generated -->\n", "<!-- end generated -->\n"


def tables() -> str:
    """All generated sections, in Markdown."""
    parts = ["## Every key\n"]
    parts += [_section(*found) for found in _sections("", Config)]
    parts += ["## Recipes\n", _recipes(), "## Model presets\n", _presets()]
    return "\n".join(parts)


def page() -> str:
    """The page with its generated part as it should be."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def _sections(
    prefix: str, section: type[BaseModel], architecture: str = ""
) -> list[tuple[str, type[BaseModel], str]]:
    """Sections in order: key, class, and the architecture that they belong to."""
    if "name" in section.model_fields:
        architecture = section.model_fields["name"].default
    found = [(prefix, section, architecture)]
    for name, field in section.model_fields.items():
        key = f"{prefix}.{name}" if prefix else name
        for inner in _kinds(field):
            found += _sections(key, inner, architecture)
    return found


def _kinds(field: FieldInfo) -> list[type[BaseModel]]:
    """The section that a field holds, or the kinds of it that it may hold."""
    members = [field.annotation]
    if typing.get_origin(field.annotation) in (typing.Union, types.UnionType):
        annotated = typing.get_args(field.annotation)
        members = [
            typing.get_args(member)[0] if typing.get_origin(member) is typing.Annotated else member
            for member in annotated
        ]
    return [kind for kind in members if inspect.isclass(kind) and issubclass(kind, BaseModel)]


def _section(key: str, section: type[BaseModel], architecture: str) -> str:
    described = _described_attributes(section)
    rows: list[tuple[str, ...]] = []
    for name, field in section.model_fields.items():
        if _kinds(field) and not _optional(field):
            continue
        full = f"{key}.{name}" if key else name
        text = field.description or described.get(name, "")
        chosen = key == "training" and any(name in recipe for recipe in RECIPES.values())
        default = "by recipe" if chosen else _default(field)
        rows.append((f"`{full}`", _kind(field), default, text.rstrip(".")))
    heading = f"### `{key}`" if key else "### Top level"
    if architecture:
        heading += f" with `name: {architecture}`"
    return f"{heading}\n\n{_table(('key', 'value', 'default', 'what it is'), rows)}"


def _optional(field: FieldInfo) -> bool:
    """Whether a section may be left out."""
    return type(None) in typing.get_args(field.annotation)


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
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "a section"
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
    if isinstance(value, BaseModel):
        return "its defaults"
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
        for column, name in enumerate(names):
            if key in FINE_TUNING.get(name, {}):
                shown[column] += f"; with `initial` `{FINE_TUNING[name][key]}`"
        rows.append((f"`training.{key}`", *shown))
    return _table(("key", *(f"`recipe: {name}`" for name in names)), rows)


def _presets() -> str:
    rows = []
    for name, preset in PRESETS.items():
        config = preset.config
        assumed = f"; assumed: {', '.join(preset.assumed)}" if preset.assumed else ""
        rows.append((f"`{name}`", config.summary, preset.source + assumed))
    heading = ("preset", "shape", "source")
    return _table(heading, rows)


def _table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heading, tuple("---" for _ in heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
