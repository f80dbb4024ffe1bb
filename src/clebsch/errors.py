"""The errors that users see, and the one helper that suggests what they may have meant.

Every message names the place (file, frame, key) and what to do; the command line prints it
without a traceback and exits with status 2, or 1 after work whose answer is bad.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ClebschError(Exception):
    """Base class of all errors that a user can cause and fix."""


class DataError(ClebschError):
    """A structure, a label or a data file is invalid."""


class UnknownElementError(DataError):
    """A structure contains an element that the model was not built for."""


class ConfigError(ClebschError):
    """A configuration key or value is unknown or makes no sense."""


class ModelFileError(ClebschError):
    """A model or checkpoint file cannot be trusted: truncated, altered or of an unknown format."""


class BackendError(ClebschError):
    """A kernel backend is missing or disagrees with the reference."""


class BlowUpError(ClebschError):
    """Molecular dynamics became unphysical: the input was valid, the trajectory is not."""


#: The most choices that a hint lists: more than a section has keys, fewer than elements exist.
_MOST_LISTED = 40


def did_you_mean(name: str, choices: Iterable[str], what: str = "Valid") -> str:
    """A hint for an unknown ``name``: the nearest of ``choices``, then all of them.

    Args:
        name: the unknown name.
        choices: the valid names.
        what: introduces the list of choices.
    """
    choices = [str(choice) for choice in choices]
    if not choices:
        return "There is nothing to choose from."
    nearest = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    lowered = {choice.lower(): choice for choice in choices}
    if not nearest and str(name).lower() in lowered:
        nearest = [lowered[str(name).lower()]]
    hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
    rest = len(choices) - _MOST_LISTED
    more = f" and {rest} more" if rest > 0 else ""
    return f"{hint}{what}: {', '.join(choices[:_MOST_LISTED])}{more}."
