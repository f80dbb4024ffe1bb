"""Checks of labels: units, signs, net forces, outliers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from ase.units import Hartree

from clebsch.data.finding import Finding
from clebsch.data.frame import Frame
from clebsch.data.references import fit_references
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

#: The code of the finding that derivatives were not compared.
NOT_COMPARED = "not compared"

_ENERGY_UNITS = {"Hartree": 1.0, "eV": Hartree, "kcal/mol": 627.509, "kJ/mol": 2625.50}

#: What energy change / (force x displacement) is if labels are in other units or signs.
_MISTAKES = {
    -1.0: "the sign of the forces is that of gradients",
    23.0605: "energies are in kcal/mol and forces in eV/A",
    96.4853: "energies are in kJ/mol and forces in eV/A",
    1 / 27.2114: "energies are in Hartree and forces in eV/A",
    51.4221: "energies are in eV and forces in Hartree/Bohr",
    1 / 23.0605: "energies are in eV and forces in kcal/mol/A",
    1 / 96.4853: "energies are in eV and forces in kJ/mol/A",
    1.88973: "forces are per Bohr, such as Hartree/Bohr with energies in Hartree",
}
_STRESS_MISTAKES = {
    -1.0: "the stress has the opposite sign: read it with --stress-convention negative (a virial "
    "with --virial-convention dE_dstrain), in a training data.keys.stress_convention=negative",
    1 / 160.2177: "the stress is in GPa",
    -1 / 160.2177: "the stress is a pressure in GPa",
    1 / 1602.177: "the stress is in kbar",
    -1 / 1602.177: "the stress is a pressure in kbar",
}


def check_energy_unit(frames: Sequence[Frame]) -> list[Finding]:
    """All-electron total energies give their unit away: they are close to a sum over atoms."""
    labelled = [f for f in frames if f.energy is not None and f.numbers.max() <= 18]
    if not labelled:
        return []
    table = np.array([0.0, *ATOM_ENERGIES])
    ratios = np.array([f.energy / table[f.numbers].sum() for f in labelled])
    ratio = float(np.median(ratios))
    for unit, factor in _ENERGY_UNITS.items():
        if abs(ratio / factor - 1) < 0.03:
            if unit == "eV":
                return [Finding("info", "energy unit", "energies are all-electron totals in eV")]
            text = f"energies are what all-electron total energies are in {unit}, not in eV"
            return [Finding("error", "energy unit", text)]
    return []


def check_derivatives(frames: Sequence[Frame]) -> list[Finding]:
    """Whether energies change as the forces (and stress) say, between similar structures."""
    energy, force_work, stress_work = work_and_energy(frames)
    works = np.stack([force_work, stress_work], axis=1)
    findings = _not_compared(frames, works)
    if len(energy) < FEWEST_PAIRS:
        return findings
    # few pairs of large differences, which are the least harmonic, must not decide alone
    size = np.abs(energy) + np.abs(works).sum(axis=1)
    weight = 1 / np.sqrt(size + 1e-3 * size.mean() + 1e-300)
    works, energy = works * weight[:, None], energy * weight
    used = np.abs(works).max(axis=0) > 0
    slopes = np.zeros(2)
    slopes[used] = np.linalg.lstsq(works[:, used], energy, rcond=None)[0]
    left = energy - works @ slopes
    leeway = np.zeros(2)
    leeway[used] = _leeway(works[:, used], left)
    explained = 1 - float(np.sum(left**2) / max(np.sum(energy**2), 1e-300))
    if explained < 0.5:
        text = (
            f"energies do not change as forces say (R2 {explained:.2f} over {len(energy)} pairs of "
            "similar structures): either no structures are similar enough, or forces and "
            "energies are not of the same calculation"
        )
        if explained < 0.25:
            return [*findings, Finding("warning", "derivatives", text)]
        return [*findings, Finding("info", NOT_COMPARED, text)]
    for name, slope, off, mistakes, tolerance, present in (
        ("the forces say", slopes[0], leeway[0], _MISTAKES, 1.4, used[0]),
        ("the stress says", slopes[1], leeway[1], _STRESS_MISTAKES, 2.0, used[1]),
    ):
        if not present:
            continue
        measured = (
            f"between similar structures energies change by {slope:.3g} times what {name} "
            f"(R2 {explained:.3f}, {len(energy)} pairs)"
        )
        if max(abs(slope - 1), abs(slope + 1)) < off:  # of either sign
            text = f"{measured}, give or take {off:.2g}: that tells neither unit nor sign"
            findings.append(Finding("info", NOT_COMPARED, text))
            continue
        if _may_be(slope, 1.0, tolerance, off):
            findings.append(Finding("info", "derivatives", measured))
            continue
        guess = min(mistakes, key=lambda m: abs(slope / m - 1))
        if _may_be(slope, guess, tolerance, off):
            text = f"{measured}: {mistakes[guess]}"
            findings.append(Finding("error", "derivatives", text))
        else:
            text = f"{measured}: labels of different calculations, or of unknown units?"
            findings.append(Finding("warning", "derivatives", text))
    return findings


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
    rms = float(np.sqrt(np.mean(np.concatenate(forces) ** 2)))
    if rms == 0:
        return [Finding("error", "forces", "all forces are zero")]
    findings = []
    if rms > 10:
        text = f"forces are {rms:.3g} eV/A rms: such values are usual in kcal/mol/A, not in eV/A"
        findings.append(Finding("warning", "forces", text))
    elif rms < 0.02 and len(labelled) > 10:
        text = f"forces are {rms:.3g} eV/A rms: usual in Hartree/Bohr, or near minima"
        findings.append(Finding("warning", "forces", text))
    net = np.array([np.linalg.norm(f.sum(axis=0)) for f in forces])
    sizes = np.array([np.sqrt(np.sum(f**2)) for f in forces])
    findings += _unbalanced("net force", labelled, net, sizes, "eV/A")
    free = [i for i, f in enumerate(labelled) if not f.pbc.any() and len(f) > 1]
    if free:
        arms = [labelled[i].positions - labelled[i].positions.mean(axis=0) for i in free]
        pairs = list(zip(arms, (forces[i] for i in free), strict=True))
        torque = np.array([np.linalg.norm(np.cross(r, f).sum(axis=0)) for r, f in pairs])
        size = np.array([np.sqrt(np.sum(r**2) * np.sum(f**2) / len(r)) for r, f in pairs])
        findings += _unbalanced("net torque", [labelled[i] for i in free], torque, size, "eV")
    return findings


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
