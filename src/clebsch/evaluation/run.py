"""What ``clebsch evaluate`` does, as functions; reports of runs and the demonstration use them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

import clebsch
from clebsch.committee import check_committee
from clebsch.data.frame import Frame
from clebsch.data.read import LabelKeys, path_list, read_frames
from clebsch.evaluation import predictions
from clebsch.evaluation.evaluate import Evaluation, evaluate
from clebsch.evaluation.tables import print_table
from clebsch.files import check_suffix
from clebsch.potential import Potential
from clebsch.terminal import progress_bar, say


def run_evaluate(
    model: Path,
    data: Sequence[Path],
    *,
    keys: LabelKeys | None = None,
    pbc: Literal["file", "none"] | None = None,
    out: Path | None = None,
    report: Path | None = None,
    as_json: bool = False,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    head: str | None = None,
    committee: Sequence[Path] | None = None,
    console: Console | None = None,
) -> dict[str, tuple[list[Frame], Evaluation]]:
    """Judge a model file on data files, each of which is a set of its own.

    Args:
        model: the model file.
        data: anything that ``read_frames`` reads.
        keys: names, units and signs of the labels; those of the training that made the model if
            None, where the files have them, and else what the census finds.
        pbc: "none" treats every structure as a molecule, whatever box the file gives it; "file"
            does not; None does as the training did.
        out: write the predictions of all sets to this extended XYZ file.
        report: write parity plots and histograms to this HTML file.
        as_json: print one JSON object instead of tables, in eV and Angstrom.
        device: where to compute.
        dtype: precision of the network; that of the model file if None.
        head: of a model with several, which.
        committee: model files that tell with ``model`` how sure it is; none for a linear ACE with
            draws of its own. None tells nothing of that.
        console: where to print; standard output if None. Progress goes to standard error.

    Returns:
        ``{name of the set: (frames, evaluation)}``, as ``write_report`` takes it.

    Raises:
        ClebschError: the model or a data file cannot be read, a file is given twice, an element is
            unknown to the model, or ``out`` or ``report`` has another suffix than its format has.
    """
    console = console or Console()
    if out is not None:
        check_suffix(out, *predictions.FORMAT)
    if report is not None:
        from clebsch.evaluation.report import FORMAT

        check_suffix(report, *FORMAT)
    potential = clebsch.load(model, dtype=dtype, device=device, head=head)
    trained = potential.provenance.get("config", {}).get("data", {})
    strict = keys is not None
    keys = keys or LabelKeys(**trained.get("keys", {}))
    pbc = pbc or trained.get("pbc", "file")
    members = None
    if committee is not None:
        members = [clebsch.load(one, dtype=dtype, device=device, head=head) for one in committee]
        check_committee([potential, *members])
    sets = evaluate_files(potential, data, keys=keys, pbc=pbc, strict=strict, committee=members)
    as_trained = {} if strict else keys.model_dump(exclude_defaults=True)
    if as_trained and not as_json:
        told = ", ".join(f"{name} {value}" for name, value in as_trained.items())
        say(f"Labels as in training: {told}", console)
    if as_json:
        judged = {name: evaluation.to_json() for name, (_, evaluation) in sets.items()}
        summary = {"model": str(model), "predictions": out and str(out), "sets": judged}
        say(json.dumps(summary, indent=2), console)
    else:
        for name, (_, evaluation) in sets.items():
            print_table(console, name, evaluation)
    if out is not None:
        predictions.write_predictions(out, sets.values())
        if not as_json:
            say(f"Predictions: {out}", console)
    if report is not None:
        from clebsch.evaluation.report import potential_facts, write_report

        facts = {"Model": str(model), **potential_facts(potential)}
        write_report(report, title="Evaluation", facts=facts, evaluations=sets)
        if not as_json:
            say(f"Report: {report}", console)
    return sets


def evaluate_files(
    potential: Potential,
    data: Sequence[Path],
    *,
    keys: LabelKeys | None = None,
    pbc: Literal["file", "none"] = "file",
    strict: bool = True,
    committee: Sequence[Potential] | None = None,
) -> dict[str, tuple[list[Frame], Evaluation]]:
    """Read and judge each file, with a progress bar on standard error.

    ``keys``, ``pbc`` and ``strict`` are those of ``read_frames``, ``committee`` that of
    ``evaluate``.

    Raises:
        DataError: there are none, one is given twice or cannot be read.
    """
    sets = {}
    for name, path in _set_names(data).items():
        frames = read_frames(path, keys, pbc=pbc, strict=strict)
        with progress_bar(f"Evaluating {name}") as progress:
            judged = evaluate(potential, frames, committee=committee, progress=progress)
        sets[name] = (frames, judged)
    return sets


def _set_names(paths: Sequence[Path]) -> dict[str, Path]:
    """File names where they tell the files apart, whole paths where they do not."""
    files = path_list(paths)
    names = [file.name for file in files]
    return {str(file) if names.count(file.name) > 1 else file.name: file for file in files}
