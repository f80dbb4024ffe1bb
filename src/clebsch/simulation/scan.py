"""The energy along a file of frames (a torsion, a path, a stretched bond), against a reference."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clebsch.data.frame import Frame
from clebsch.errors import ClebschError, DataError, did_you_mean
from clebsch.evaluation.predict import not_finite
from clebsch.files import atomic_write, check_output, check_suffix
from clebsch.potential import Potential

ORIGINS = ("minimum", "first")

#: Suffixes of the file, and what it is: see ``check_suffix``.
FORMAT = ((".csv", ".json", ".png", ".svg"), "a scan is written as a table, JSON or a figure")


@dataclass(frozen=True, eq=False)
class ScanResult:
    """Energies along a scan; two curves are compared relative to the same frame.

    Attributes:
        energies: [n] float64, the model's total energies, eV.
        reference: [n] float64, the frames' own energies, eV; None if they have none.
        origin: index of the frame that relative energies are relative to.
        sources: "path:index" of each frame.
    """

    energies: np.ndarray
    reference: np.ndarray | None
    origin: int
    sources: tuple[str, ...]

    @property
    def relative(self) -> np.ndarray:
        """[n] eV: the model's energies relative to the frame ``origin``."""
        return self.energies - self.energies[self.origin]

    @property
    def reference_relative(self) -> np.ndarray | None:
        """[n] eV: the reference energies relative to the same frame."""
        return None if self.reference is None else self.reference - self.reference[self.origin]

    @property
    def barrier(self) -> float:
        """The highest less the lowest energy of the model's curve, eV."""
        return float(np.ptp(self.energies))

    @property
    def reference_barrier(self) -> float | None:
        """The highest less the lowest energy of the reference curve, eV."""
        return None if self.reference is None else float(np.ptp(self.reference))

    @property
    def max_error(self) -> float | None:
        """The largest error of a relative energy, eV."""
        errors = self._errors()
        return None if errors is None else float(np.abs(errors).max())

    @property
    def rmse(self) -> float | None:
        """Root mean square error of the relative energies, eV; the frame ``origin`` is left out."""
        errors = self._errors()
        if errors is None or len(errors) < 2:
            return None
        return float(np.sqrt(np.mean(np.delete(errors, self.origin) ** 2)))

    def _errors(self) -> np.ndarray | None:
        reference = self.reference_relative
        return None if reference is None else self.relative - reference

    def describe(self) -> str:
        """A table for people, meV."""
        reference = self.reference_relative
        rows = [f"Energies in meV relative to frame {self.origin}", "frame      model"]
        rows[-1] += "" if reference is None else "  reference      error"
        for i, energy in enumerate(1000 * self.relative):
            row = f"{i:5d} {energy:10.2f}"
            if reference is not None:
                row += f" {1000 * reference[i]:10.2f} {energy - 1000 * reference[i]:10.2f}"
            rows.append(row)
        rows.append(f"Highest above lowest: {1000 * self.barrier:.2f}")
        if self.reference_barrier is not None and self.max_error is not None:
            rows[-1] += f", reference {1000 * self.reference_barrier:.2f}"
            rows.append(f"Largest error: {1000 * self.max_error:.2f}")
        if self.rmse is not None:
            rows[-1] += f", RMSE {1000 * self.rmse:.2f}"
        return "\n".join(rows)

    def to_json(self) -> dict[str, Any]:
        """All of it, in eV, fit for ``json.dumps``."""
        return {
            "energies": self.energies.tolist(),
            "reference": None if self.reference is None else self.reference.tolist(),
            "origin": self.origin,
            "barrier": self.barrier,
            "reference_barrier": self.reference_barrier,
            "max_error": self.max_error,
            "rmse": self.rmse,
            "sources": list(self.sources),
        }

    def write(self, path: Path | str) -> Path:
        """Write a table (``.csv``), everything (``.json``) or a figure (``.png``, ``.svg``).

        Raises:
            ClebschError: another suffix, or a folder that does not exist.
        """
        path = check_output(path, overwrite=True)
        check_suffix(path, *FORMAT)
        if path.suffix == ".csv":
            content = self._csv()
        elif path.suffix == ".json":
            content = json.dumps(self.to_json(), indent=1).encode()
        else:
            content = self._figure(path.suffix[1:])
        atomic_write(path, content)
        return path

    def _csv(self) -> bytes:
        text = io.StringIO(newline="")
        table = csv.writer(text)
        reference = self.reference_relative
        extra = [] if reference is None else ["reference_relative_eV", "reference_eV"]
        table.writerow(["frame", "relative_eV", "energy_eV", *extra])
        for i, (relative, energy) in enumerate(zip(self.relative, self.energies, strict=True)):
            row = [i, f"{relative:.9f}", f"{energy:.9f}"]
            if reference is not None and self.reference is not None:
                row += [f"{reference[i]:.9f}", f"{self.reference[i]:.9f}"]
            table.writerow(row)
        return text.getvalue().encode()

    def _figure(self, format: str) -> bytes:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        frames = np.arange(len(self.energies))
        if self.reference_relative is not None:
            axes.plot(frames, 1000 * self.reference_relative, "o", color="black", label="reference")
        axes.plot(frames, 1000 * self.relative, "-", color="tab:blue", label="model")
        axes.set_xlabel("frame")
        axes.set_ylabel(f"energy relative to frame {self.origin} (meV)")
        axes.legend()
        buffer = io.BytesIO()
        figure.savefig(buffer, format=format, dpi=150)
        return buffer.getvalue()


def run_scan(
    potential: Potential, frames: Sequence[Frame], *, relative_to: str = "minimum"
) -> ScanResult:
    """Compute the energies along a scan.

    Args:
        potential: what computes.
        frames: structures of the same composition, in order; with energies in all or in none.
        relative_to: "minimum", the frame of lowest energy (of the reference, if there is one), or
            "first". Both curves are shifted to zero at this one frame.

    Raises:
        ClebschError: an unknown ``relative_to``; an energy that is no finite number.
        DataError: no frames; frames of different composition; energies in some frames only.
        UnknownElementError: an element that the potential does not know.
    """
    if relative_to not in ORIGINS:
        hint = did_you_mean(relative_to, ORIGINS)
        raise ClebschError(f"a scan cannot be relative to {relative_to!r}. {hint}")
    _check_frames(frames)
    # One at a time: a scan is short, and its frames may be large.
    energies = np.array([float(potential(potential.graph(f), ("energy",)).energy) for f in frames])
    bad = np.flatnonzero(~np.isfinite(energies))
    if len(bad):
        raise not_finite(frames[bad[0]].place(bad[0]))
    labels = [frame.energy for frame in frames]
    reference = None if labels[0] is None else np.array(labels, dtype=np.float64)
    lowest = energies if reference is None else reference
    return ScanResult(
        energies=energies,
        reference=reference,
        origin=0 if relative_to == "first" else int(lowest.argmin()),
        sources=tuple(frame.source for frame in frames),
    )


def _check_frames(frames: Sequence[Frame]) -> None:
    if not frames:
        raise DataError("a scan needs at least one frame")
    composition = sorted(frames[0].numbers)
    for index, frame in enumerate(frames):
        place = frame.place(index)
        if sorted(frame.numbers) != composition:
            raise DataError(f"{place}: has another composition than the first frame of the scan")
        if (frame.energy is None) != (frames[0].energy is None):
            which = "no energy" if frame.energy is None else "an energy"
            raise DataError(f"{place}: has {which}, unlike the first frame of the scan")
