"""``clebsch convert``: a model of mace-torch as a model file of ours, and the other way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from clebsch.cli_options import Fix, Overwrite, fixed_properties
from clebsch.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from clebsch.potential import Potential


def convert(
    model: Annotated[
        Path, typer.Argument(help="A .model file of mace-torch 0.3.x; with --to, a model of ours.")
    ],
    out: Annotated[
        Path, typer.Argument(help="The model file to write, NEW.safetensors; with --to, a folder.")
    ],
    head: Annotated[
        str | None,
        typer.Option(help="Which of several heads; all: a file for each, NEW-HEAD.safetensors."),
    ] = None,
    elements: Annotated[
        str | None, typer.Option(help="Elements to keep, such as H,C,O; all if not given.")
    ] = None,
    fix: Fix = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="mace-torch: write a folder with a script that makes a .model file where "
            "mace-torch is installed."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a model of mace-torch: the same numbers, without mace-torch and without pickle."""
    from clebsch.interop.mace_torch import mace_heads
    from clebsch.modelfile import load, read_potential

    properties = fixed_properties(fix)
    species = None if elements is None else [symbol.strip() for symbol in elements.split(",")]
    if to is not None:
        _check_export(out, to, overwrite)
        _export(load(model, head=head, species=species, properties=properties), out)
        return
    written = {head: out}
    if head == "all":
        written = {
            name: out.with_name(f"{out.stem}-{_safe(name)}{out.suffix}")
            for name in mace_heads(model)
        }
    if len(set(written.values())) < len(written):
        raise ConfigError(f"{model}: heads of names so alike are converted one by one, with --head")
    for path in written.values():
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists; --overwrite replaces it")
    for name, path in written.items():
        potential, _ = read_potential(model, head=name, species=species, properties=properties)
        potential.save(path)
        about = potential.provenance.get("imported", {})
        Console().print(
            f"{path}: {about.get('class', potential.config.name)}, {potential.config.summary}, "
            f"{len(potential.species)} elements, head {about.get('head', '-')}, {potential.dtype}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _check_export(out: Path, to: str, overwrite: bool) -> None:
    """Refuse before the work begins.

    Raises:
        ConfigError: another program than mace-torch, or a folder that exists.
    """
    if to != "mace-torch":
        raise ConfigError(f"--to {to}: unknown. {did_you_mean(to, ('mace-torch',))}")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; --overwrite replaces what an earlier export wrote there")


def _export(potential: Potential, out: Path) -> None:
    """Write the folder for mace-torch.

    Raises:
        ConfigError: it has nothing like the potential.
    """
    from clebsch.interop.export import export_mace_torch

    export_mace_torch(potential, out)
    text = f"{out}: where mace-torch is installed, run python {out / 'build_model.py'} NEW.model"
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def _safe(name: str) -> str:
    """A head's name as part of a file's."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
