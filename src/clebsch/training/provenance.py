"""What model files say of the run that made them: versions, configuration, data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import clebsch
from clebsch.data.references import spanning_formulas
from clebsch.training.config import Config
from clebsch.training.configfile import config_dict

if TYPE_CHECKING:
    from clebsch.training.prepare import Prepared


def run_provenance(config: Config, data: dict[str, Any]) -> dict[str, Any]:
    """What every model file says of the run that made it; ``data`` as ``data_provenance`` tells."""
    return {
        "clebsch": clebsch.__version__,
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": data,
        "config": config_dict(config),
    }


def data_provenance(config: Config, prepared: Prepared) -> dict[str, Any]:
    """Files with their checksums, counts and references, for the model file.

    Where references are fitted, formulas say which compositions they were fitted to. How close
    atoms came is recorded where it is known.
    """
    data, more = config.data, dict[str, Any]()
    if prepared.fitted:
        known = [symbol for symbol in prepared.references if symbol not in prepared.fitted]
        more["formulas"] = spanning_formulas(prepared.train.frames, known)
    if config.replay is not None and prepared.replay is not None:
        n_frames = len(prepared.replay.train) + len(prepared.replay.valid)
        more["replay"] = {"files": checksums(config.replay.structures), "frames": n_frames}
    if prepared.shortest_distances is not None:
        more["shortest_distances"] = prepared.shortest_distances
    return {
        "train": {"files": checksums(data.train), **prepared.train.counts},
        "valid": {
            "files": checksums(data.train if data.valid is None else data.valid),
            **prepared.valid.counts,
        },
        "references": prepared.references,
        "references_from": prepared.origin,
        **more,
    }


def checksums(paths: Path | Sequence[Path]) -> dict[str, str]:
    """SHA-256 of files, by path."""
    sums = {}
    for path in [paths] if isinstance(paths, Path) else paths:
        with path.open("rb") as file:
            sums[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums
