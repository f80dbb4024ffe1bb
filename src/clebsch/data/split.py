"""Training and validation frames, drawn at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clebsch.data.frame import Frame
from clebsch.errors import ConfigError, DataError


def split_frames(
    frames: Sequence[Frame],
    *,
    fraction: float | None = None,
    count: int | None = None,
    seed: int,
) -> tuple[list[Frame], list[Frame]]:
    """Draws validation frames at random; the same seed draws the same ones.

    Args:
        frames: all frames.
        fraction: part of them to validate on, at least 0 and below 1; rounded, but at least one
            frame if it is above 0.
        count: or how many.
        seed: of the draw.

    Returns:
        Training frames and validation frames, each in the order of ``frames``.

    Raises:
        ConfigError: not exactly one of ``fraction`` and ``count`` is given, or it is out of range.
        DataError: no frame would be left to train on.
    """
    if (fraction is None) == (count is None):
        raise ConfigError("a split needs either a fraction or a count of validation frames")
    if fraction is not None:
        if not 0 <= fraction < 1:
            raise ConfigError(f"the validation fraction is {fraction}, not in the range 0 to 1")
        count = max(round(fraction * len(frames)), 1 if fraction > 0 else 0)
    if count is None or count < 0:
        raise ConfigError(f"the number of validation frames is {count}")
    if count >= len(frames):
        key = "data.valid_count" if fraction is None else "data.valid_fraction"
        raise DataError(
            f"{_files(frames)}{key}: {len(frames)} frames cannot be split: with {count} for "
            "validation none is left to train on"
        )
    chosen = _drawn(len(frames), count, seed)
    train = [frame for index, frame in enumerate(frames) if index not in chosen]
    return train, [frame for index, frame in enumerate(frames) if index in chosen]


def draw_frames(frames: Sequence[Frame], count: int, seed: int, key: str) -> list[Frame]:
    """Draws frames at random; the same seed draws the same ones, and more of them hold fewer.

    Args:
        frames: all frames.
        count: how many to draw.
        seed: of the draw.
        key: the setting that asks for so many, for messages.

    Returns:
        The drawn ones, in the order of ``frames``.

    Raises:
        DataError: there are not so many.
    """
    if count > len(frames):
        raise DataError(
            f"{_files(frames)}{key}: {count} structures were asked for, but there are "
            f"{len(frames)} to draw from"
        )
    chosen = _drawn(len(frames), count, seed)
    return [frame for index, frame in enumerate(frames) if index in chosen]


def _files(frames: Sequence[Frame]) -> str:
    """The files of frames, as messages begin with them."""
    files = dict.fromkeys(frame.source.rpartition(":")[0] for frame in frames)
    named = ", ".join(filter(None, files))
    return f"{named}: " if named else ""


def _drawn(n_frames: int, count: int, seed: int) -> set[int]:
    return set(np.random.default_rng(seed).permutation(n_frames)[:count].tolist())
