"""What is in a data set and what is wrong with it, before any training."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clebsch.data.census import NO_NUMBER, Census, CensusEntry
from clebsch.data.check_geometry import (
    check_boxes,
    check_contacts,
    check_duplicates,
    check_lone_atoms,
    check_periodicity,
)
from clebsch.data.check_labels import (
    NOT_COMPARED,
    check_derivatives,
    check_energy_grid,
    check_energy_unit,
    check_forces,
    check_free_energy,
    check_outliers,
    check_states,
)
from clebsch.data.finding import Finding
from clebsch.data.frame import Frame, describe_left_out, describe_weights
from clebsch.data.labels import ALIASES, QUANTITIES, how_to_name
from clebsch.data.references import fit_references, isolated_atoms
from clebsch.errors import DataError

#: Names are nearly the same from this ratio of ``difflib`` on; "kinetic_energy" is at 0.67.
NEAR = 0.7

#: Labels in short, and the shapes that they have.
ABBREVIATIONS = {
    "e": ("energy", ("one number",)),
    "f": ("forces", ("[n, 3]",)),
    "s": ("stress", ("[6]", "[9]", "[3, 3]")),
}

#: What tells whether labels are in the units and signs that training takes them for; quick.
LABEL_CHECKS = (check_energy_unit, check_derivatives, check_free_energy, check_forces)

#: What else looks at all structures but isolated atoms.
_CHECKS = (
    check_energy_grid,
    check_outliers,
    check_states,
    check_lone_atoms,
    check_contacts,
    check_duplicates,
    check_boxes,
    check_periodicity,
)

_STYLE = {"error": "bold red", "warning": "yellow", "info": "cyan"}


@dataclass(frozen=True)
class CheckReport:
    """What ``check_frames`` found.

    Attributes:
        n_frames: structures, isolated atoms included.
        n_atoms: fewest and most atoms of a structure.
        compositions: structures of each chemical formula.
        periodicity: structures that are periodic in 3, 2, 1 and 0 directions, of those there are.
        labels: how many structures have an energy, forces, a stress.
        census: the keys in the files, if it was given.
        findings: the gravest first.
    """

    n_frames: int
    n_atoms: tuple[int, int]
    compositions: dict[str, int]
    periodicity: dict[int, int]
    labels: dict[str, int]
    census: Census | None
    findings: tuple[Finding, ...]

    def count(self, severity: str) -> int:
        """Findings of one severity: error, warning or info."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), indent=1)

    def print(self, console: Console) -> None:
        """The report for people."""
        fewest, most = self.n_atoms
        size = f"{fewest} atoms" if fewest == most else f"{fewest} to {most} atoms"
        console.print(f"[bold]{self.n_frames} structures[/] of {size}")
        formulas = sorted(self.compositions.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{formula} ({count})" for formula, count in formulas[:8])
        more = f", and {len(formulas) - 8} more" if len(formulas) > 8 else ""
        console.print(f"Compositions: {listed}{more}", highlight=False)
        periodic = ", ".join(f"{count} in {n}" for n, count in self.periodicity.items())
        console.print(f"Periodic: {periodic} directions", highlight=False)
        table = Table("label", "structures")
        for label, count in self.labels.items():
            table.add_row(label, f"{count} of {self.n_frames}")
        console.print(table)
        if self.census is not None:
            keys = Table("key", "where", "shape", "structures", "first")
            for entry in self.census.entries:
                keys.add_row(
                    escape(entry.key), entry.place, escape(entry.shape), str(entry.count),
                    escape(entry.first),
                )  # fmt: skip
            console.print(keys)
        for finding in self.findings:
            style = _STYLE[finding.severity]
            console.print(
                f"[{style}]{finding.severity}[/] {finding.code}: {escape(finding.message)}",
                highlight=False,
            )
        if self.count("error") + self.count("warning") == 0:
            compared = all(finding.code != NOT_COMPARED for finding in self.findings)
            rest = "." if compared else " in what could be compared."
            console.print(f"[green]Nothing wrong was found{rest}[/]")
        else:
            console.print(f"{self.count('error')} errors, {self.count('warning')} warnings.")


def check_frames(
    frames: Sequence[Frame],
    census: Census | None = None,
    references: Mapping[str, float] | None = None,
) -> CheckReport:
    """Looks for what spoils a training: wrong units, broken labels, duplicates, bad geometries.

    Args:
        frames: structures with the labels that were read.
        census: of their files, for the report.
        references: isolated-atom energies in eV, if known; isolated atoms among ``frames`` are
            taken where an element has none.

    Raises:
        DataError: there are no frames.
    """
    if not frames:
        raise DataError("there are no frames to check")
    findings: list[Finding] = []
    known = dict(references or {})
    rest = list(frames)
    try:
        found, rest = isolated_atoms(frames)
        known = found | known
    except DataError as error:
        findings.append(Finding("error", "isolated atoms", str(error)))
    findings += _check_label_presence(rest, census)
    findings += _check_references(rest, known)
    for check in (*LABEL_CHECKS, *_CHECKS):
        findings += check(rest)
    findings.sort(key=lambda finding: ("error", "warning", "info").index(finding.severity))
    sizes = [len(frame) for frame in frames]
    formulas = Counter(frame.formula for frame in frames)
    directions = Counter(int(frame.pbc.sum()) for frame in frames)
    return CheckReport(
        n_frames=len(frames),
        n_atoms=(min(sizes), max(sizes)),
        compositions=dict(formulas),
        periodicity=dict(sorted(directions.items(), reverse=True)),
        labels={
            label: sum(getattr(frame, label) is not None for frame in frames)
            for label in ("energy", "forces", "stress")
        },
        census=census,
        findings=tuple(findings),
    )


def _check_label_presence(frames: list[Frame], census: Census | None) -> list[Finding]:
    findings = []
    bare = [f for f in frames if not f.has_labels]
    likely = _likely_keys(frames, census)
    left_out = describe_left_out(frames)
    if left_out and len(bare) == len(frames):
        text = f"{len(bare)} structures have no label of a weight above 0 ({left_out} of weight 0)"
        findings.append(Finding.about("error", "no labels", bare, text))
    elif bare and len(bare) == len(frames):
        options = ", ".join(f"--{label}-key" for label in QUANTITIES)
        likely = likely or [f"if there are some, say where: {options}"]
        text = f"{len(bare)} structures have no label under a usual name; {'; '.join(likely)}"
        findings.append(Finding.about("error", "no labels", bare, text))
    else:
        findings += [Finding("warning", "unknown key", text) for text in likely]
        without = [f for f in bare if not f.left_out]
        if without:
            text = f"{len(without)} structures have no label"
            findings.append(Finding.about("warning", "no labels", without, text))
    for label in ("energy", "forces", "stress"):
        lacking = [f for f in frames if f.has_labels and not _has(f, label)]
        if label == "forces" and 0 < len(lacking) == len(frames) - len(bare):
            findings.append(_no_forces(census))
        if 0 < len(lacking) < len(frames) - len(bare):
            text = f"{len(lacking)} of {len(frames)} structures have no {label}"
            findings.append(Finding.about("info", "partly missing", lacking, text))
    weights = describe_weights(frames)
    if weights:
        findings.append(Finding("info", "weights", f"weights other than 1: {weights}"))
    if left_out:
        unread = [f for f in frames if f.left_out]
        text = f"labels of weight 0 count as missing: {left_out}"
        findings.append(Finding.about("info", "weight 0", unread, text))
    return findings


def _no_forces(census: Census | None) -> Finding:
    """No structure has forces, but for what the file may hold in their place."""
    entries = () if census is None else census.entries
    unread = [entry.key for entry in entries if entry.shape == "[n, 3]"]
    text = "no structure has forces, from which most is learned"
    if unread:
        text += (
            f"; {', '.join(map(repr, unread))} would have their shape "
            f"({how_to_name('forces', 'KEY')}), but for the sign if they are gradients"
        )
    return Finding("warning", "no forces", text)


def _likely_keys(frames: list[Frame], census: Census | None) -> list[str]:
    """Where missing labels may be: keys that are nearly one of their usual names, or E_dft."""
    usual = {name: label for label in ALIASES for name in ALIASES[label]}
    entries = () if census is None else census.entries
    lacking = {label: sum(not _has(frame, label) for frame in frames) for label in QUANTITIES}
    # a label whose usual name is there was turned off
    named = {usual.get(entry.key.lower()) for entry in entries}
    texts = []
    for entry in entries:
        label = _abbreviated(entry)
        alike = f"may be the {label}"
        nearest = get_close_matches(entry.key.lower(), usual, n=1, cutoff=NEAR)
        if label is None and nearest:
            label, alike = usual[nearest[0]], f"is nearly {nearest[0]!r}"
        fits = (entry.shape == "one number") == (label == "energy") and entry.shape != NO_NUMBER
        if label not in lacking or entry.key.lower() in usual or not fits:
            continue
        text = f"the key {entry.key!r} {alike}"
        if lacking[label] == len(frames) and label not in named:
            texts.append(f"{text} (if it is that, say {how_to_name(label, entry.key)})")
        elif entry.count <= lacking[label] < len(frames):
            texts.append(
                f"{text}, which {lacking[label]} structures lack: {entry.count} have it, "
                f"{entry.first} first (if it is that, rename it)"
            )
    return texts


def _abbreviated(entry: CensusEntry) -> str | None:
    """The label that a key such as E_dft or dft-F may stand for, by its shape as well."""
    words = re.split("[^a-z]+", entry.key.lower())
    for word, (label, shapes) in ABBREVIATIONS.items():
        if word in words and entry.shape in shapes:
            return label
    return None


def _has(frame: Frame, label: str) -> bool:
    """Whether a frame has a label, be it one of weight 0."""
    name = "stress" if label == "virial" else label
    return getattr(frame, name) is not None or name in frame.left_out


def _check_references(frames: list[Frame], known: dict[str, float]) -> list[Finding]:
    """Where reference energies come from, and whether compositions determine them."""
    elements = sorted({symbol for frame in frames for symbol in set(frame.symbols)} or known)
    missing = [symbol for symbol in elements if symbol not in known]
    labelled = [frame for frame in frames if frame.energy is not None]
    if not missing or not labelled:
        have = [symbol for symbol in elements if symbol in known]
        text = f"isolated-atom energies are there for {', '.join(have)}"
        return [Finding("info", "references", text)] if have else []
    fit = fit_references(labelled, {s: e for s, e in known.items() if s in elements})
    text = f"no isolated-atom energy of {', '.join(missing)}; {fit.describe()}"
    one_molecule = fit.rank == 1 and len({f.numbers.tobytes() for f in labelled}) == 1
    harmless = fit.determined or one_molecule
    return [Finding("info" if harmless else "warning", "references", text)]
