"""``clebsch data``: published data sets, found and verified, or fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from clebsch.cli_options import BAD_ANSWER, AsJSON
from clebsch.errors import ConfigError
from clebsch.terminal import progress_bar, say

if TYPE_CHECKING:
    from clebsch.data.datasets import DataSet, FoundFile


def data(
    name: Annotated[
        str | None, typer.Argument(help="3bpa, acac, ethanol or rmd17; all are listed without it.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Folder in which to look for copies; with --to, the published archive of rmd17 "
            "or a folder that it was unpacked in.",
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what has to be downloaded from where it is published, or is to be "
            "taken out of --from."
        ),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Find a published data set and verify it, or download it. Exit status 1: files are missing."""
    from clebsch.data.datasets import as_published, data_set, data_sets, find_files
    from clebsch.data.download import download, unpack

    if name is None:
        _list(data_sets(), as_json)
        return
    chosen = data_set(name)
    if source is None and to is None:
        raise ConfigError("say where the files are (--from FOLDER), or where to put them (--to)")
    if source is not None and to is not None:
        unpack(chosen, source, to)
    elif to is not None:
        with progress_bar(name) as advance:
            download(chosen, to, lambda done, total, what: advance(done, total, f"{name}: {what}"))
    folder = source if to is None else to
    assert folder is not None
    found = find_files(chosen, folder)
    lacking = [n for n, one in found.items() if one.path is None and not chosen.files[n].optional]
    if as_json:
        print(json.dumps(_as_json(name, chosen, found, not lacking), indent=2))
    else:
        _print(chosen, found)
        if lacking:
            print(end=as_published(chosen, folder))
    if lacking:
        raise typer.Exit(BAD_ANSWER)


def _list(known: dict[str, DataSet], as_json: bool) -> None:
    if as_json:
        print(json.dumps({name: one.model_dump(mode="json") for name, one in known.items()}))
        return
    table = Table("name", "what", "files", "licence", "source")
    for name, one in known.items():
        table.add_row(name, one.title, str(len(one.files)), one.licence, one.source)
    Console().print(table)


def _print(chosen: DataSet, found: dict[str, FoundFile]) -> None:
    table = Table("file", "structures", "what", "here", title=chosen.title)
    verdicts = {
        "exact": "verified by its checksum",
        "same": "verified by its structures and labels",
        "missing": "[bold red]missing[/]",
    }
    for name, one in found.items():
        facts = chosen.files[name]
        optional = one.path is None and facts.optional
        verdict = "missing, optional" if optional else verdicts[one.verdict]
        frames = "" if facts.frames is None else str(facts.frames)
        table.add_row(name, frames, facts.about, verdict)
    Console().print(table)
    say(f"Source: {chosen.source} ({chosen.licence})")


def _as_json(
    name: str, chosen: DataSet, found: dict[str, FoundFile], complete: bool
) -> dict[str, object]:
    files = {
        key: {"path": one.path and str(one.path), "verdict": one.verdict}
        for key, one in found.items()
    }
    return {"name": name, "source": chosen.source, "complete": complete, "files": files}
