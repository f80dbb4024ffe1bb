"""One thing that a check of a data set has to say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clebsch.data.frame import Frame

Severity = Literal["error", "warning", "info"]

#: Frames that a message names.
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """A remark on a data set.

    Attributes:
        severity: "error": training on it would go wrong; "warning": look at it; "info".
        code: what kind of remark, in a word or two.
        message: the remark, with the places.
        sources: the frames that it is about, "path:index"; empty if it is about all.
    """

    severity: Severity
    code: str
    message: str
    sources: tuple[str, ...] = ()

    @classmethod
    def about(cls, severity: Severity, code: str, frames: Sequence[Frame], text: str) -> Finding:
        """A remark on some frames; the message names the first ones."""
        sources = tuple(frame.source for frame in frames)
        return cls(severity, code, f"{text}: {_first_of(sources)}", sources)


def _first_of(sources: Sequence[str]) -> str:
    """The first few of ``sources``, and how many more there are."""
    more = f" and {len(sources) - _SHOWN} more" if len(sources) > _SHOWN else ""
    return ", ".join(sources[:_SHOWN]) + more
