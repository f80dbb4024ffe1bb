"""Examining a potential on this machine: do its numbers hold, whatever computes them?

Every backend, in every precision, is held against the reference in float64, which alone is taken
on trust, and even that against central differences and the symmetries of physics. Models of
mace-torch can be held against its own numbers besides.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from clebsch.agreement import example_structure, without_guards
from clebsch.errors import BackendError
from clebsch.interop.opinion import Opinion
from clebsch.kernels.dispatch import backends_of, load_backend
from clebsch.modelfile import TOLERANCES, read_potential, reference_structure
from clebsch.potential import Potential

#: What networks compute in.
DTYPES = (torch.float64, torch.float32)
#: Deviations that are allowed, relative to 1 + the largest of what is compared (eV, Angstrom):
#: float64 sums in another order; float32 carries 1e-7 through a network and its derivatives.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}
#: Central differences of fourth order over 1e-3: truncation and the energy's rounding.
DIFFERENCES = 1e-6
#: A step in energy or force across 1e-3 Angstrom at the cut-off, where both have died out.
STEP_AT_CUTOFF = 1e-5
_STEP = 1e-3


@dataclass(frozen=True)
class Check:
    """One comparison: how far off, and how far is allowed.

    Attributes:
        name: what was compared.
        structure: where.
        backend, dtype: what computed it.
        deviation: relative; infinite where there was no number.
        allowed: the largest deviation that passes.
        error: what was raised instead of a number.
    """

    name: str
    structure: str
    backend: str
    dtype: str
    deviation: float
    allowed: float
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether the deviation is a number that is allowed."""
        return bool(self.deviation <= self.allowed)  # not so for NaN


@dataclass(frozen=True)
class Timing:
    """Seconds for energy and forces of a structure: the median of some calls."""

    structure: str
    n_atoms: int
    backend: str
    dtype: str
    seconds: float


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        checks, timings: in the order in which they were made.
        missing: backends that cannot be loaded here, and why.
        notes: what was not compared, and why.
    """

    checks: tuple[Check, ...]
    timings: tuple[Timing, ...]
    missing: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]

    def to_json(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "healthy": not self.failures,
            "missing": dict(self.missing),
            "notes": list(self.notes),
            "checks": [{**asdict(check), "passed": check.passed} for check in self.checks],
            "timings": [asdict(timing) for timing in self.timings],
        }


@dataclass(frozen=True, eq=False)
class Stored:
    """What a model file says that its potential answers: eV, Angstrom."""

    atoms: Atoms
    energy: float
    forces: np.ndarray
    stress: np.ndarray | None


def read_unverified(
    path: Path | str, *, head: str | None = None, properties: Mapping[str, float] | None = None
) -> tuple[Potential, Stored | None]:
    """The potential of a model file, on the reference backend, whatever it answers here.

    ``clebsch.load`` refuses a potential, or a backend, that gives wrong numbers; here they are
    wanted. Files of mace-torch store no answers.

    Args:
        path: the file.
        head: of a model with several, which.
        properties: of a mace-torch model, values of the properties that it embeds.

    Raises:
        ModelFileError: the file is missing, damaged, or holds something else.
        ConfigError: the choices do not fit the model.
    """
    potential, stored = read_potential(path, head=head, properties=properties)
    if stored is None:
        return potential, None
    atoms = reference_structure(stored)
    stress = None if stored["stress"] is None else np.array(stored["stress"])
    return potential, Stored(atoms, stored["energy"], np.array(stored["forces"]), stress)


def examine(
    potential: Potential,
    structures: Mapping[str, Atoms] | None = None,
    *,
    stored: Stored | None = None,
    opinion: Opinion | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    seconds: float = 0.3,
    progress: Callable[[str], None] = lambda what: None,
) -> Diagnosis:
    """Check every backend of the potential's device, in every precision, on every structure.

    Args:
        potential: what to examine; it stays as it is.
        structures: by name; a small crystal of all elements if None.
        stored: what the model file says that the potential answers.
        opinion: what mace-torch says about structures, which every backend is compared with.
        dtypes: what the network computes in; the reference in float64 is the truth for all.
        seconds: how long to time each.
        progress: told what is looked at.
    """
    structures = dict(structures or {"example": example_structure(potential)})
    missing, names = {}, []
    for name in backends_of(potential.device):
        try:
            load_backend(name)
            names.append(name)
        except BackendError as error:
            missing[name] = str(error)
    truth = _prepared(potential, "reference", torch.float64)
    checks: list[Check] = []
    timings: list[Timing] = []
    for backend in names:
        for dtype in dtypes:
            candidate = _Candidate(_prepared(potential, backend, dtype), truth, backend, dtype)
            for place, atoms in structures.items():
                progress(f"{backend}, {candidate.precision}: {place}")
                checks += candidate.checks(place, atoms)
                timings += candidate.timing(place, atoms, seconds)
            if stored is not None:
                checks.append(candidate.stored_answers(stored, potential.dtype))
            if opinion is not None:
                progress(f"{backend}, {candidate.precision}: {opinion.program}")
                checks += candidate.second_opinion(opinion)
    notes = () if opinion is None else opinion.notes
    return Diagnosis(tuple(checks), tuple(timings), missing, notes)


def _prepared(potential: Potential, backend: str, dtype: torch.dtype) -> Potential:
    """A copy that computes so. No backend is refused: what it does wrong is what is looked for."""
    copied = copy.deepcopy(potential).use_backend("reference")
    copied.model.to(dtype)
    copied.requires_grad_(False)
    copied.model.requires_grad_(True)
    copied.compute_with(load_backend(backend))
    return copied


class _Answers(NamedTuple):
    energy: float
    forces: np.ndarray
    virial: np.ndarray


class _Candidate:
    """A potential with a backend in a precision, and the one that is held to be right."""

    def __init__(
        self, potential: Potential, truth: Potential, backend: str, dtype: torch.dtype
    ) -> None:
        self.potential, self.truth, self.backend, self.dtype = potential, truth, backend, dtype
        self.precision = str(dtype).removeprefix("torch.")

    def checks(self, place: str, atoms: Atoms) -> Iterator[Check]:
        """Everything about one structure."""
        rounding = ROUNDING[self.dtype]
        if self.potential.backend != "reference" or self.dtype != torch.float64:
            for name in ("energy", "forces", "virial"):
                yield self._check(f"{name}: reference", place, rounding, self._off, atoms, name)
            yield self._check("gradient of a loss: reference", place, rounding, self._slope, atoms)
        if self.dtype == torch.float64:
            yield self._check("forces: differences", place, DIFFERENCES, self._forces, atoms)
            yield self._check("virial: differences", place, DIFFERENCES, self._virial, atoms)
            yield self._check("smooth at the cut-off", place, STEP_AT_CUTOFF, self._cutoff, atoms)
        for name, turned in (
            ("rotation", self._turned),
            ("translation", self._shifted),
            ("order of atoms", self._permuted),
        ):
            yield self._check(name, place, rounding, turned, atoms)

    def stored_answers(self, stored: Stored, saved_in: torch.dtype) -> Check:
        """What the model file says about its own structure, with the file's tolerances."""
        coarser = max(saved_in, self.dtype, key=lambda kind: torch.finfo(kind).eps)

        def deviation() -> float:
            with without_guards(self.potential):
                found = self._answers(stored.atoms)
            largest = 1 + np.abs(stored.forces).max()
            off = abs(found.energy - stored.energy) / len(stored.atoms) / largest
            off *= TOLERANCES[coarser][1] / TOLERANCES[coarser][0]  # the energy's is smaller
            off = max(off, _relative(found.forces, stored.forces))
            if stored.stress is not None:
                stress = -found.virial / stored.atoms.cell.volume
                off = max(off, _relative(stress, stored.stress))
            return off

        return self._check("answers in the file", "stored", TOLERANCES[coarser][1], deviation)

    def second_opinion(self, opinion: Opinion) -> Iterator[Check]:
        """What mace-torch says about its model."""
        allowed = opinion.allowed(self.dtype)
        for place, answers in opinion.answers.items():
            for name in answers:
                what = f"{name.replace('_', ' ')}: {opinion.program}"
                about = (self.potential, place, name)
                yield self._check(what, place, allowed, opinion.deviation, *about)

    def timing(self, place: str, atoms: Atoms, seconds: float) -> list[Timing]:
        """How long energy and forces take; nothing where they cannot be computed."""
        spent: list[float] = []
        try:
            graph = self.potential.graph(atoms)
            for _ in range(2):
                self.potential(graph)
            while sum(spent) < seconds or len(spent) < 3:
                begun = time.perf_counter()
                self.potential(graph)
                spent.append(time.perf_counter() - begun)
        except Exception:  # a check has told of it
            return []
        median = statistics.median(spent)
        return [Timing(place, len(atoms), self.backend, self.precision, median)]

    def _check(
        self, name: str, place: str, allowed: float, measure: Callable[..., float], *what: Any
    ) -> Check:
        try:
            deviation, error = measure(*what), ""
        except Exception as raised:  # a backend may fail in any way; all others are still examined
            deviation, error = math.inf, f"{type(raised).__name__}: {raised}"
        return Check(name, place, self.backend, self.precision, deviation, allowed, error)

    # --- comparisons: each gives a relative deviation ---

    def _answers(self, atoms: Atoms, potential: Potential | None = None) -> _Answers:
        tested = potential or self.potential
        prediction = tested(tested.graph(atoms), ("energy", "forces", "virial"))
        return _Answers(
            float(prediction.energy), prediction.forces.numpy(), prediction.virial[0].numpy()
        )

    def _energy(self, atoms: Atoms) -> float:
        """Without references: all electrons of an atom would cost a difference its digits."""
        graph = self.potential.graph(atoms)
        energies = self.potential(graph, ("site_energies",)).site_energies
        return float((energies - self.potential.references[graph.species]).sum())

    def _off(self, atoms: Atoms, name: str) -> float:
        found, expected = self._answers(atoms), self._answers(atoms, self.truth)
        if name == "energy":
            off = abs(found.energy - expected.energy) / len(atoms)
            return off / (1 + float(np.abs(expected.forces).max()))
        return _relative(getattr(found, name), getattr(expected, name))

    def _slope(self, atoms: Atoms) -> float:
        """The largest deviation of any weight tensor's gradient, in norm.

        Relative to its own norm; a thousandth of the largest of all tensors at least. Atoms are
        moved a little: where symmetry leaves no forces, there is no gradient either.
        """
        moved = atoms.copy()
        moved.positions += 0.02 * np.random.default_rng(2).normal(size=moved.positions.shape)
        found, expected = (_gradients(p, moved) for p in (self.potential, self.truth))
        floor = 1e-3 * max(float(gradient.norm()) for gradient in expected) + 1e-12
        offs = [
            float((here - there).norm()) / max(float(there.norm()), floor)
            for here, there in zip(found, expected, strict=True)
        ]
        return float(np.max(offs))  # NaN stays

    def _forces(self, atoms: Atoms) -> float:
        forces = self._answers(atoms).forces

        def off(seed: int) -> float:
            direction = np.random.default_rng(seed).normal(size=forces.shape)
            direction /= np.linalg.norm(direction)

            def energy(step: float) -> float:
                moved = atoms.copy()
                moved.positions += step * direction
                return self._energy(moved)

            return abs(_difference(energy) + float((forces * direction).sum()))

        return max(map(off, range(3))) / (1 + float(np.abs(forces).max()))

    def _virial(self, atoms: Atoms) -> float:
        virial = self._answers(atoms).virial
        strain = np.random.default_rng(1).normal(size=(3, 3))
        strain += strain.T
        strain /= np.linalg.norm(strain)

        def energy(step: float) -> float:
            strained = atoms.copy()
            deformation = np.eye(3) + step * strain
            strained.set_cell(atoms.cell.array @ deformation)
            strained.positions = atoms.positions @ deformation
            return self._energy(strained)

        off = abs(_difference(energy) + float((virial * strain).sum()))
        return off / (1 + float(np.abs(virial).max()))

    def _cutoff(self, atoms: Atoms) -> float:
        """A pair of the structure's elements, just within reach and just beyond it."""
        symbols = atoms.get_chemical_symbols()[:: max(1, len(atoms) - 1)][:2]

        def at(distance: float) -> tuple[float, np.ndarray]:
            pair = Atoms([symbols[0], symbols[-1]], [[0, 0, 0], [distance, 0, 0]])
            return self._energy(pair), self._answers(pair).forces

        cutoff = self.potential.cutoff
        (energy, forces), (beyond, none) = at(cutoff - _STEP), at(cutoff + _STEP)
        _, near = at(0.5 * cutoff)
        jump = max(abs(energy - beyond), float(np.abs(forces - none).max()))
        return jump / (1 + float(np.abs(near).max()))

    def _turned(self, atoms: Atoms) -> float:
        """Rotated and inverted."""
        rotation = -np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
        turned = atoms.copy()
        turned.set_cell(atoms.cell.array @ rotation.T)
        turned.positions = atoms.positions @ rotation.T
        return self._same(atoms, turned, lambda forces: forces @ rotation.T)

    def _shifted(self, atoms: Atoms) -> float:
        shifted = atoms.copy()
        shifted.positions += [0.37, -1.9, 4.3]
        return self._same(atoms, shifted, lambda forces: forces)

    def _permuted(self, atoms: Atoms) -> float:
        order = np.random.default_rng(3).permutation(len(atoms))
        return self._same(atoms, atoms[order], lambda forces: forces[order])

    def _same(
        self, atoms: Atoms, changed: Atoms, expected: Callable[[np.ndarray], np.ndarray]
    ) -> float:
        """Energies that are equal, forces that change as expected."""
        before, after = self._answers(atoms), self._answers(changed)
        forces = expected(before.forces)
        off = abs(after.energy - before.energy) / len(atoms)
        return max(off / (1 + float(np.abs(forces).max())), _relative(after.forces, forces))


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / (1 + np.abs(expected).max()))


def _gradients(potential: Potential, atoms: Atoms) -> list[Tensor]:
    """Of a loss on the forces whose targets are not theirs, by all weights."""
    forces = potential(potential.graph(atoms), ("forces",), differentiable=True).forces
    targets = np.random.default_rng(0).normal(size=tuple(forces.shape))
    loss = (forces - torch.from_numpy(targets)).square().sum()
    parameters = list(potential.model.parameters())
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return [gradient.to(torch.float64) for gradient in gradients]


def _difference(function: Callable[[float], float]) -> float:
    """The derivative at 0, of fourth order."""
    near = function(_STEP) - function(-_STEP)
    far = function(2 * _STEP) - function(-2 * _STEP)
    return (8 * near - far) / (12 * _STEP)
