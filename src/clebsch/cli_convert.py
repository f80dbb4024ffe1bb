"""``clebsch convert``: a model of mace-torch as a model file of ours, and the other way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clebsch.cli_options import Fix, Overwrite, fixed_properties
from clebsch.errors import ConfigError, did_you_mean
from clebsch.files import check_output
from clebsch.terminal import say

if TYPE_CHECKING:
    from clebsch.potential import Potential


def convert(
    model: Annotated[
        Path,
        typer.Argument(
            help="A .model file of mace-torch 0.3.x; a model of ours with --to, or with --head."
        ),
    ],
    out: Annotated[
        Path, typer.Argument(help="The model file to write, NEW.safetensors; with --to, a folder.")
    ],
    head: Annotated[
        str | None,
        typer.Option(help="Which of several heads; all keeps all of them in the new file."),
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
    from clebsch.modelfile import load, model_heads, read_potential, save_heads

    properties = fixed_properties(fix)
    species = None if elements is None else [symbol.strip() for symbol in elements.split(",")]
    if to is not None:
        _check_export(out, to, overwrite)
        _export(load(model, head=head, species=species, properties=properties), out)
        return
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out}: the name of a model file ends in .safetensors")
    check_output(out, overwrite=overwrite, inputs=[model])
    names = model_heads(model) if head == "all" else [head]
    potential, *others = potentials = [
        read_potential(model, head=name, species=species, properties=properties)[0]
        for name in names or [None]
    ]
    if others:
        save_heads(dict(zip(map(str, names), potentials, strict=True)), out)
    else:
        potential.save(out)
    imported = [one.provenance.get("imported", {}) for one in potentials]
    named = ", ".join(about.get("head", "-") for about in imported)
    say(
        f"{out}: {imported[0].get('class', potential.config.name)}, {potential.config.summary}, "
        f"{len(potential.species)} elements, head{'s' if others else ''} {named}, "
        f"{potential.dtype}"
    )


def _check_export(out: Path, to: str, overwrite: bool) -> None:
    """Refuse before the work begins.

    Raises:
        ClebschError: another program than mace-torch; a folder that exists, or that cannot be
            written; a file in its place.
    """
    if to != "mace-torch":
        raise ConfigError(f"--to {to}: unknown. {did_you_mean(to, ('mace-torch',))}")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; --overwrite replaces what an earlier export wrote there")
    made_in = next(place for place in (out, *out.parents) if place.exists())
    check_output(made_in / "build_model.py", overwrite=True)


def _export(potential: Potential, out: Path) -> None:
    """Write the folder for mace-torch.

    Raises:
        ConfigError: it has nothing like the potential.
    """
    from clebsch.interop.export import export_mace_torch

    export_mace_torch(potential, out)
    say(f"{out}: where mace-torch is installed, run python {out / 'build_model.py'} NEW.model")
    if potential.contact is not None or potential.floor is not None:
        say("Contact repulsion and energy floor stay behind: mace-torch has nothing like them")
