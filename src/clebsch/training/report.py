"""report.html of a training run: what ``clebsch report`` and the end of ``clebsch train`` write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import clebsch
from clebsch.data.frame import Frame
from clebsch.errors import DataError
from clebsch.evaluation.evaluate import Evaluation, evaluate
from clebsch.evaluation.report import potential_facts, write_report
from clebsch.evaluation.run import evaluate_files
from clebsch.potential import Potential
from clebsch.terminal import progress_bar
from clebsch.training.config import Config
from clebsch.training.configfile import load_run
from clebsch.training.log import duration
from clebsch.training.prepare import read_data
from clebsch.training.provenance import checksums

#: Of larger training sets, so many structures are judged, evenly spaced.
MAX_TRAINING_FRAMES = 1000


def report_run(run: Path, data: Sequence[Path] = ()) -> Path:
    """Write RUN/report.html from config.yaml, metrics.jsonl and model.safetensors.

    The run's validation and training structures are read again and judged; they are left out if
    their files are gone or changed.

    Args:
        run: the folder of a training run.
        data: test files, read as the run's configuration says, judged and shown beside them.

    Returns:
        The path of the report.

    Raises:
        ClebschError: a file of the run or of ``data`` cannot be read, or one is given twice.
    """
    run = Path(run)
    config = load_run(run)
    history = read_history(run / "metrics.jsonl")
    potential = clebsch.load(run / "model.safetensors", device=config.device)
    tests = {}
    if data:
        of_run = config.data
        tests = evaluate_files(potential, data, keys=of_run.keys, pbc=of_run.pbc, strict=False)
    sets = run_sets(config) if _are_unchanged(config, potential) else {}
    evaluations: dict[str, tuple[Sequence[Frame], Evaluation]] = {}
    for name, frames in sets.items():
        with progress_bar(f"Evaluating {name}") as progress:
            judged = evaluate(potential, frames, progress=progress)
        evaluations[name] = (frames, judged)
    evaluations |= tests
    return write_report(
        run / "report.html",
        title=f"Training run {run.absolute().name}",
        facts=run_facts(config, history, potential, sets),
        history=history,
        evaluations=evaluations,
    )


def _are_unchanged(config: Config, potential: Potential) -> bool:
    """Whether the files of a run are those that its model was trained on, as far as it knows."""
    told = potential.provenance.get("data", {})
    files = (told.get(part, {}).get("files", {}) for part in ("train", "valid"))
    known = set(chain.from_iterable(of_part.values() for of_part in files))
    if not known:
        return True
    paths = (*_listed(config.data.train), *_listed(config.data.valid))
    found = checksums([path for path in paths if path.exists()])
    return set(found.values()) <= known


def run_sets(config: Config) -> dict[str, list[Frame]]:
    """Validation and training structures of a run, read again; none where files are gone.

    A training set of more than ``MAX_TRAINING_FRAMES`` is thinned out, and its name says so.
    """
    data = config.data
    paths = [*_listed(data.train), *_listed(data.valid)]
    if not all(path.exists() for path in paths):
        return {}
    train, valid, _ = read_data(data, config.seed)
    step = -(-len(train) // MAX_TRAINING_FRAMES)
    chosen = train[::step]
    name = "Training" if step == 1 else f"Training ({len(chosen)} of {len(train)})"
    return {"Validation": valid, name: chosen}


def read_history(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that a crash cut short is left out.

    Raises:
        DataError: another line is not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and "epoch" in record:
            records.append(record)
        elif number < len(lines):
            raise DataError(f"{path}: line {number} is not a record of an epoch")
    return records


def run_facts(
    config: Config,
    history: Sequence[Mapping[str, Any]],
    potential: Potential,
    sets: Mapping[str, Sequence[Frame]],
) -> dict[str, str]:
    """What the head of the report says of a run."""
    facts = {
        "Model": config.model.summary,
        "Training data": ", ".join(str(path) for path in _listed(config.data.train)),
        "Recipe": "closed form" if config.is_linear else f"{config.recipe}, seed {config.seed}",
    }
    made = potential.provenance
    if {"clebsch", "torch", "date"} <= set(made):
        facts["Trained"] = f"{made['date']}, clebsch {made['clebsch']}, torch {made['torch']}"
    facts |= potential_facts(potential)
    if history and not config.is_linear:
        last = history[-1]
        best = [record["epoch"] for record in history if record.get("best")]
        facts["Epochs"] = f"{last['epoch']}" + (f", best: {best[-1]}" if best else "")
        if "seconds" in last:
            facts["Training time"] = duration(float(last["seconds"]))
    if not sets:
        facts["Note"] = (
            "the training data are not where, or not what, they were: they are not judged here"
        )
    return facts


def _listed(paths: Path | Sequence[Path] | None) -> list[Path]:
    if paths is None:
        return []
    return [paths] if isinstance(paths, Path) else list(paths)
