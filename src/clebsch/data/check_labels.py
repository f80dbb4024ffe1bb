"""Checks of labels: units, signs, net forces, outliers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from ase.units import Hartree

from clebsch.data.finding import Finding
from clebsch.data.frame import Frame
from clebsch.data.labels import how_to_name, how_to_say_units
from clebsch.data.references import fit_references
from clebsch.data.units import unit_factor
from clebsch.data.work import work_and_energy

#: Total energies of ground-state atoms H to Ar with all their electrons, Hartree.
ATOM_ENERGIES = (
    -0.500, -2.903, -7.478, -14.667, -24.654, -37.845, -54.589, -75.067, -99.734, -128.938,
    -162.255, -200.053, -242.346, -289.359, -341.259, -398.110, -460.148, -527.540,
)  # fmt: skip

#: What a structure may be beside its atoms, under names in use; no model here reads it.
STATES = ("charge", "total_charge", "spin", "total_spin", "multiplicity")

#: Pairs of similar structures from which energies and their derivatives are compared.
FEWEST_PAIRS = 10

#: Energies and free energies that differ by amounts within this of each other, eV per atom, do not
#: matter.
LEAST_GAP = 1e-4

#: Forces are outliers from so many times the usual largest force of a structure on.
OUTLYING = 20.0

#: The code of the finding that derivatives were not compared.
NOT_COMPARED = "not compared"

_ENERGY_UNITS = ("Hartree", "eV", "kcal/mol", "kJ/mol")

#: Units of energies and forces that files have in place of eV and eV/Angstrom.
_MIXED_UNITS = (
    ("kcal/mol", "eV/Angstrom"),
    ("kJ/mol", "eV/Angstrom"),
    ("Hartree", "eV/Angstrom"),
    ("eV", "Hartree/Bohr"),
    ("eV", "kcal/mol/Angstrom"),
    ("eV", "kJ/mol/Angstrom"),
)

#: What energy change / (force x displacement) is if labels are in other units or signs.
_MISTAKES = {
    -1.0: "the sign of the forces is that of gradients",
    unit_factor("forces", "eV/Bohr"): "forces are per Bohr; with energies in Hartree, to convert "
    f"them, {how_to_say_units(energy='Hartree', forces='Hartree/Bohr')}",
} | {
    unit_factor("forces", forces) / unit_factor("energy", energy): (
        f"energies are in {energy} and forces in {forces} (if no unit was named): to convert them, "
        f"{how_to_say_units(energy=energy, forces=forces)}"
    )
    for energy, forces in _MIXED_UNITS
}
_STRESS_MISTAKES = {
    -1.0: "the stress has the opposite sign: read it with --stress-convention negative (a virial "
    "with --virial-convention dE_dstrain), in a training data.keys.stress_convention=negative",
}
for _unit in ("GPa", "kbar"):
    _factor, _how = unit_factor("stress", _unit), how_to_say_units(stress=_unit)
    _STRESS_MISTAKES[_factor] = f"the stress is in {_unit}: to convert it, {_how}"
    _STRESS_MISTAKES[-_factor] = (
        f"the stress is a pressure in {_unit}: to convert it, {_how}, and with it its sign, "
        "--stress-convention negative or data.keys.stress_convention=negative"
    )


def check_energy_unit(frames: Sequence[Frame]) -> list[Finding]:
    """All-electron total energies give their unit away: they are close to a sum over atoms."""
    labelled = [f for f in frames if f.energy is not None and f.numbers.max() <= 18]
    if not labelled:
        return []
    table = np.array([0.0, *ATOM_ENERGIES])
    ratios = np.array([f.energy / table[f.numbers].sum() for f in labelled])
    ratio = float(np.median(ratios))
    for unit in _ENERGY_UNITS:
        if abs(ratio * unit_factor("energy", unit) / Hartree - 1) < 0.03:
            if unit == "eV":
                return [Finding("info", "energy unit", "energies are all-electron totals in eV")]
            text = (
                f"energies are what all-electron total energies are in {unit}, not in eV: "
                f"{how_to_say_units(energy=unit)}"
            )
            return [Finding("error", "energy unit", text)]
    return []


def check_free_energy(frames: Sequence[Frame]) -> list[Finding]:
    """Whether forces belong to another energy than the one that was read.

    Where electrons are smeared out over levels, forces and stress are derivatives of the free
    energy; what codes call the energy is often extrapolated to zero temperature.
    """
    smeared = [f for f in frames if f.energy is not None and f.free_energy is not None]
    if not smeared:
        return []
    gaps = np.array([(f.energy - f.free_energy) / len(f) for f in smeared])  # type: ignore[operator]
    if gaps.std() < LEAST_GAP:
        return []
    text = (
        f"the energy differs from free_energy, which forces and stress are derivatives of, by "
        f"{1e3 * gaps.min():.3g} to {1e3 * gaps.max():.3g} meV/atom in {len(smeared)} structures: "
        f"to read that one, {how_to_name('energy', 'free_energy')}"
    )
    return [Finding("warning", "free energy", text)]


def check_derivatives(frames: Sequence[Frame]) -> list[Finding]:
    """Whether energies change as the forces (and stress) say, between similar structures."""
    outlying = {id(frame) for frame, _ in _outlying_forces(frames)}
    frames = [frame for frame in frames if id(frame) not in outlying]
    works, fit = _compare([frames])
    findings = _not_compared(frames, works)
    if fit is None:
        return findings
    files: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        files[frame.source.rpartition(":")[0]].append(frame)
    if len(files) > 1:
        _, within = _compare(list(files.values()))
        if within is not None and within.is_better_than(fit):
            text = (
                f"energies of different files do not go together: R2 {fit.explained:.3f} of what "
                f"forces say, within each file {within.explained:.3f}; are they of different "
                "calculations?"
            )
            findings.append(Finding("warning", "derivatives", text))
            fit = within
    if fit.used[1]:
        _, reordered = _compare([[_shears_reordered(frame) for frame in frames]])
        if reordered is not None and reordered.is_better_than(fit):
            text = (
                "six numbers of the stress are in the order xx, yy, zz, xy, yz, zx, which VASP "
                f"prints, not in ASE's, xx, yy, zz, yz, xz, xy (R2 {fit.explained:.3f}, with the "
                f"other order {reordered.explained:.3f}, {fit.n_pairs} pairs)"
            )
            findings.append(Finding("error", "derivatives", text))
            fit = reordered
    if fit.explained < 0.5:
        text = (
            f"energies do not change as forces say (R2 {fit.explained:.2f} over {fit.n_pairs} "
            "pairs of similar structures): either no structures are similar enough, or forces and "
            "energies are not of the same calculation"
        )
        if fit.explained < 0.25:
            return [*findings, Finding("warning", "derivatives", text)]
        return [*findings, Finding("info", NOT_COMPARED, text)]
    mistakes = _MISTAKES
    sizes = {len(frame) for frame in frames if frame.forces is not None}
    if len(sizes) == 1 and (n_atoms := sizes.pop()) > 1:
        mistakes = {1 / n_atoms: "energies are per atom, not of the whole structure"} | mistakes
    for name, slope, off, causes, tolerance, present in (
        ("the forces say", fit.slopes[0], fit.leeway[0], mistakes, 1.4, fit.used[0]),
        ("the stress says", fit.slopes[1], fit.leeway[1], _STRESS_MISTAKES, 2.0, fit.used[1]),
    ):
        if not present:
            continue
        measured = (
            f"between similar structures energies change by {slope:.3g} times what {name} "
            f"(R2 {fit.explained:.3f}, {fit.n_pairs} pairs)"
        )
        if max(abs(slope - 1), abs(slope + 1)) < off:  # of either sign
            text = f"{measured}, give or take {off:.2g}: that tells neither unit nor sign"
            findings.append(Finding("info", NOT_COMPARED, text))
            continue
        if _may_be(slope, 1.0, tolerance, off):
            findings.append(Finding("info", "derivatives", measured))
            continue
        guess = min(causes, key=lambda m: abs(slope / m - 1))
        if _may_be(slope, guess, tolerance, off):
            text = f"{measured}: {causes[guess]}"
            findings.append(Finding("error", "derivatives", text))
        else:
            text = f"{measured}: labels of different calculations, or of unknown units?"
            findings.append(Finding("warning", "derivatives", text))
    return findings


@dataclass(frozen=True)
class _Fit:
    """Energy differences as a sum of multiples of the work of the forces and of the stress.

    Attributes:
        slopes: [2], the multiples; 1 if units and signs are right.
        leeway: [2], how far each may be off.
        used: [2] bool, whether there is any such work.
        explained: part of the energy differences, squared, that the sum explains.
        n_pairs: pairs of structures.
    """

    slopes: np.ndarray
    leeway: np.ndarray
    used: np.ndarray
    explained: float
    n_pairs: int

    def is_better_than(self, other: _Fit) -> bool:
        """Whether the other leaves something of the energy differences, and this clearly less."""
        return other.explained < 0.99 and 1 - self.explained < 0.3 * (1 - other.explained)


def _compare(sets: Sequence[Sequence[Frame]]) -> tuple[np.ndarray, _Fit | None]:
    """Works, [n_pairs, 2] of forces and stress, and how energies follow them; None if too few.

    Structures of each of ``sets`` are compared among themselves.
    """
    rows = np.hstack([np.stack(work_and_energy(frames)) for frames in sets])
    energy, force_work, stress_work = rows
    works = np.stack([force_work, stress_work], axis=1)
    if len(energy) < FEWEST_PAIRS:
        return works, None
    # few pairs of large differences, which are the least harmonic, must not decide alone
    size = np.abs(energy) + np.abs(works).sum(axis=1)
    weight = 1 / np.sqrt(size + 1e-3 * size.mean() + 1e-300)
    columns, energy = works * weight[:, None], energy * weight
    used = np.abs(columns).max(axis=0) > 0
    slopes, leeway = np.zeros(2), np.zeros(2)
    slopes[used] = np.linalg.lstsq(columns[:, used], energy, rcond=None)[0]
    left = energy - columns @ slopes
    leeway[used] = _leeway(columns[:, used], left)
    explained = 1 - float(np.sum(left**2) / max(np.sum(energy**2), 1e-300))
    return works, _Fit(slopes, leeway, used, explained, len(energy))


def _shears_reordered(frame: Frame) -> Frame:
    """The frame as it is if its six numbers of the stress were xx, yy, zz, xy, yz, zx."""
    if frame.stress is None:
        return frame
    xy, yz, xz = frame.stress[1, 2], frame.stress[0, 2], frame.stress[0, 1]  # as they were read
    stress = np.diag(np.diag(frame.stress))
    stress[0, 1] = stress[1, 0] = xy
    stress[1, 2] = stress[2, 1] = yz
    stress[0, 2] = stress[2, 0] = xz
    return replace(frame, stress=stress)


def _not_compared(frames: Sequence[Frame], works: np.ndarray) -> list[Finding]:
    """What ``works``, [n_pairs, 2] of forces and stress, are too few for, of labels there are."""
    findings = []
    for label, pairs in zip(("forces", "stress"), np.count_nonzero(works, axis=0), strict=True):
        labelled = sum(getattr(frame, label) is not None for frame in frames)
        if labelled and (pairs == 0 or len(works) < FEWEST_PAIRS):
            both = sum(f.energy is not None and getattr(f, label) is not None for f in frames)
            reason = "no structure has both"
            if both:
                similar = "pairs of structures are similar enough for it"
                reason = f"only {pairs} {similar}, of {both} with {label}"
            text = f"unit and sign of the {label} were not compared with energies: {reason}"
            findings.append(Finding("info", NOT_COMPARED, text))
    return findings


def _leeway(columns: np.ndarray, left: np.ndarray) -> np.ndarray:
    """How far each coefficient of a least-squares fit can be off until five times as much is left.

    What is left, ``left``, is not noise: the differences of structures are not infinitesimal, and
    coefficients are off by the same cause.
    """
    return 2 * np.sqrt(np.sum(left**2) * np.diag(np.linalg.pinv(columns.T @ columns)))


def _may_be(slope: float, factor: float, tolerance: float, off: float) -> bool:
    return 1 / tolerance < slope / factor < tolerance or abs(slope - factor) < off


def check_forces(frames: Sequence[Frame]) -> list[Finding]:
    """The size of the forces, and whether those of each structure add up to nothing."""
    labelled = [f for f in frames if f.forces is not None]
    if not labelled:
        return []
    forces = [f.forces for f in labelled if f.forces is not None]
    rms = float(np.median([np.sqrt(np.mean(f**2)) for f in forces]))
    if not any(f.any() for f in forces):
        return [Finding("error", "forces", "all forces are zero")]
    findings = []
    if rms > 10:
        text = f"forces are {rms:.3g} eV/A rms: such values are usual in kcal/mol/A, not in eV/A"
        findings.append(Finding("warning", "forces", text))
    elif rms < 0.02 and len(labelled) > 10:
        text = f"forces are {rms:.3g} eV/A rms: usual in Hartree/Bohr, or near minima"
        findings.append(Finding("warning", "forces", text))
    outlying = _outlying_forces(labelled)
    if outlying:
        worst, atom = outlying[0]
        assert worst.forces is not None
        text = (
            f"{len(outlying)} structures have forces more than {OUTLYING:g} times as large as "
            f"usual, worst first ({np.linalg.norm(worst.forces[atom]):.3g} eV/A on atom {atom}); "
            "such as of a calculation that did not converge"
        )
        frames_of = [frame for frame, _ in outlying]
        findings.append(Finding.about("warning", "force outliers", frames_of, text))
    held = [f for f in labelled if _held_atoms(f)]
    if held:
        text = (
            f"{len(held)} structures have atoms whose force is exactly zero, such as atom "
            f"{_held_atoms(held[0])[0]} of the first, beside others: of atoms that were held, ASE "
            "gives true forces with get_forces(apply_constraint=False)"
        )
        findings.append(Finding.about("warning", "zero forces", held, text))
    odd = {id(frame) for frame in (*held, *(frame for frame, _ in outlying))}
    free = [f for f in labelled if id(f) not in odd]
    net = np.array([np.linalg.norm(_sum_of_forces(f)) for f in free])
    sizes = np.array([np.linalg.norm(f.forces) for f in free if f.forces is not None])
    findings += _unbalanced("net force", free, net, sizes, "eV/A")
    turning = [f for f in free if not f.pbc.any() and len(f) > 1]
    if turning:
        arms = [f.positions - f.positions.mean(axis=0) for f in turning]
        pairs = list(zip(arms, (f.forces for f in turning if f.forces is not None), strict=True))
        torque = np.array([np.linalg.norm(np.cross(r, f).sum(axis=0)) for r, f in pairs])
        size = np.array([np.sqrt(np.sum(r**2) * np.sum(f**2) / len(r)) for r, f in pairs])
        findings += _unbalanced("net torque", turning, torque, size, "eV")
    return findings


def _sum_of_forces(frame: Frame) -> np.ndarray:
    assert frame.forces is not None
    return np.asarray(frame.forces.sum(axis=0))


def _outlying_forces(frames: Sequence[Frame]) -> list[tuple[Frame, int]]:
    """Structures whose largest force is far above what is usual, with its atom; worst first."""
    labelled = [frame for frame in frames if frame.forces is not None]
    if not labelled:
        return []
    sizes = [np.linalg.norm(frame.forces, axis=1) for frame in labelled]  # type: ignore[arg-type]
    largest = np.array([size.max() for size in sizes])
    far = np.flatnonzero((largest > OUTLYING * np.median(largest)) & (largest > 10))
    return [(labelled[i], int(sizes[i].argmax())) for i in far[np.argsort(-largest[far])]]


def _held_atoms(frame: Frame) -> list[int]:
    """Atoms with forces of exactly zero and a net force on all others: they were held."""
    if frame.forces is None:
        return []
    still = ~frame.forces.any(axis=1)
    others = np.linalg.norm(_sum_of_forces(frame))
    return np.flatnonzero(still).tolist() if others > 0.02 and not still.all() else []


def _unbalanced(
    what: str, frames: list[Frame], net: np.ndarray, sizes: np.ndarray, unit: str
) -> list[Finding]:
    """A finding where the sum is above 2 % of the forces and above 0.02 eV/A (or eV)."""
    bad = np.flatnonzero((net > 0.02 * sizes) & (net > 0.02))
    if len(bad) == 0:
        return []
    bad = bad[np.argsort(-net[bad])]
    text = (
        f"{len(bad)} of {len(frames)} structures have a {what}, worst first ({net[bad[0]]:.3g} "
        f"{unit}); a model cannot learn it"
    )
    return [Finding.about("warning", what, [frames[i] for i in bad], text)]


def check_states(frames: Sequence[Frame]) -> list[Finding]:
    """Charges or spins that differ between structures of one composition: no model sees them."""
    findings = []
    for key in STATES:
        seen: dict[bytes, set[str]] = defaultdict(set)
        for frame in frames:
            if key in frame.info:
                seen[np.sort(frame.numbers).tobytes()].add(str(frame.info[key]))
        mixed = [values for values in seen.values() if len(values) > 1]
        if mixed:
            shown = ", ".join(sorted(set().union(*mixed))[:5])
            text = (
                f"structures of one composition differ in {key!r} ({shown}): models do not read "
                "it, and take all for one state; train on one at a time"
            )
            findings.append(Finding("warning", "states", text))
    return findings


def check_outliers(frames: Sequence[Frame]) -> list[Finding]:
    """Energies far from those of other structures, after a fit to compositions."""
    labelled = [f for f in frames if f.energy is not None]
    if len(labelled) < 10:
        return []
    energies = fit_references(labelled).energies
    residual = np.array(
        [(f.energy - sum(energies[s] for s in f.symbols)) / len(f) for f in labelled]  # type: ignore[operator]
    )
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, frame in enumerate(labelled):
        groups[np.sort(frame.numbers).tobytes()].append(index)
    for members in groups.values():
        if len(members) >= 10:  # a fit to few compositions leaves each an offset of its own
            residual[members] -= np.median(residual[members])
    spread = 1.4826 * float(np.median(np.abs(residual - np.median(residual))))
    if spread == 0:
        return []
    score = np.abs(residual - np.median(residual)) / spread
    far = [int(i) for i in np.argsort(-score) if score[i] > 10]
    if not far:
        return []
    text = (
        f"{len(far)} structures have energies more than 10 robust standard deviations "
        f"({1e3 * spread:.3g} meV/atom) from the others, up to {residual[far[0]]:.3g} eV/atom"
    )
    return [Finding.about("warning", "energy outliers", [labelled[i] for i in far], text)]


def check_energy_grid(frames: Sequence[Frame]) -> list[Finding]:
    """Energies that were rounded, to float32 or to few decimals, on a grid that training feels."""
    energies = np.array([f.energy for f in frames if f.energy is not None], dtype=np.float64)
    if len(energies) < 10 or np.ptp(energies) == 0:
        return []
    single = energies.astype(np.float32)
    if np.array_equal(single.astype(np.float64), energies):
        spacing = float(np.spacing(np.abs(single).max()))
        if spacing > 1e-5:
            text = f"energies are float32 numbers: they stand on a grid of {1e3 * spacing:.2g} meV"
            return [Finding("warning" if spacing > 1e-4 else "info", "energy grid", text)]
    for decimals in (1, 2, 3):
        if np.allclose(energies, np.round(energies, decimals), rtol=0, atol=1e-9):
            grid = 10 ** (3 - decimals)
            text = f"energies have {decimals} decimals: they stand on a grid of {grid} meV"
            return [Finding("warning", "energy grid", text)]
    return []
