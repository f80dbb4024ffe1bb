"""Where compiled kernels and generated sources are kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """The folder that ``CLEBSCH_CACHE`` names, else one in the user's cache folder.

    Raises:
        RuntimeError: neither is there, for want of a home folder.
    """
    if "CLEBSCH_CACHE" in os.environ:
        return Path(os.environ["CLEBSCH_CACHE"])
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "clebsch"
