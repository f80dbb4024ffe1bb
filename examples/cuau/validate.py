"""Is a copper-gold potential the same material as EMT?

    python examples/cuau/validate.py runs/cuau/model.safetensors

Three questions, each answered by the potential and by EMT itself in the same way:

- crystals of Cu, Au, Cu3Au and CuAu3 (L1_2) and CuAu (L1_0): volume, bulk modulus and the curve of
  energy against volume;
- elastic constants of the cubic ones, each at the equilibrium of the potential that is asked;
- dynamics at constant pressure of a random solid solution, 81 copper and 27 gold atoms at 500 K:
  does it stay a crystal, of the volume it has with EMT?

Prints a table, writes validation.json, and ends with status 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import BaseCalculator
from ase.calculators.emt import EMT
from ase.io import read
from rich.console import Console
from rich.table import Table

import clebsch
from clebsch.errors import ClebschError
from clebsch.files import atomic_write
from clebsch.potential import Potential
from clebsch.simulation.elastic import cubic_elastic_constants, energy_volume_curve
from clebsch.simulation.md import run_md
from clebsch.simulation.relax import run_relax

Source = Potential | BaseCalculator

#: Largest relative deviation from EMT of moduli and of the energy-volume curve; of volumes
#: and of c/a.
MODULUS_LIMIT, VOLUME_LIMIT = 0.05, 0.01
#: Of the mean temperature from the thermostat's; it fluctuates by 2 % in 10 ps of 108 atoms.
TEMPERATURE_LIMIT = 0.05
#: Crystals melt when atoms move by 0.1 to 0.15 of the distance to their nearest neighbours, rms
#: (Lindemann's criterion); one that is half of that distance from its site has left it.
LINDEMANN_LIMIT, LEFT_ITS_SITE = 0.1, 0.5
#: Volumes of the curve, relative to EMT's equilibrium.
VOLUMES = np.linspace(0.94, 1.06, 13)

#: By name: the elements of the conventional fcc cell, a lattice constant to start from, Angstrom.
CRYSTALS = {
    "Cu": ("Cu", "Cu", "Cu", "Cu", 3.6),
    "Cu3Au": ("Au", "Cu", "Cu", "Cu", 3.7),
    "CuAu": ("Cu", "Cu", "Au", "Au", 3.85),
    "CuAu3": ("Cu", "Au", "Au", "Au", 3.95),
    "Au": ("Au", "Au", "Au", "Au", 4.06),
}


@dataclass(frozen=True)
class Check:
    """One number of the potential, beside EMT's.

    Attributes:
        system: the crystal.
        quantity: what is compared.
        unit: of both numbers; empty for a ratio.
        emt, model: the numbers.
        deviation: what must not exceed ``limit`` in size: a relative deviation from EMT; where
            not EMT but the nature of crystals is the judge, the potential's number itself.
        limit: see there.
    """

    system: str
    quantity: str
    unit: str
    emt: float
    model: float
    deviation: float
    limit: float

    @property
    def passed(self) -> bool:
        """False as well if the deviation is not a number."""
        return abs(self.deviation) <= self.limit


def relative(
    system: str, quantity: str, unit: str, emt: float, model: float, limit: float
) -> Check:
    return Check(system, quantity, unit, float(emt), float(model), float(model / emt - 1), limit)


# --- crystals at rest -----------------------------------------------------------------------------


def crystal(name: str) -> Atoms:
    """The conventional cell of one of ``CRYSTALS``, not relaxed."""
    *elements, lattice = CRYSTALS[name]
    atoms = bulk("Cu", cubic=True, a=lattice)
    atoms.symbols[:] = elements
    return atoms


def relaxed(source: Source, atoms: Atoms) -> Atoms:
    """At zero pressure.

    Raises:
        ClebschError: it is nowhere to be found.
    """
    result = run_relax(source, atoms, cell=True, fmax=1e-4)
    if not result.converged:
        raise ClebschError(f"{atoms.symbols}: the cell did not relax")
    return result.atoms


def compare_crystal(name: str, source: Source) -> list[Check]:
    """Equilibrium and energy-volume curve; elastic constants, or of CuAu the ratio of its axes."""
    reference = relaxed(EMT(), crystal(name))
    found = relaxed(source, reference)
    volumes = [atoms.cell.volume / len(atoms) for atoms in (reference, found)]
    checks = [
        relative(name, "volume", "Å³/atom", *volumes, VOLUME_LIMIT),
        *_curve_checks(name, reference, source),
    ]
    if name == "CuAu":
        lengths = [np.sort(atoms.cell.lengths()) for atoms in (reference, found)]
        ratios = [float(shortest / longest) for shortest, _, longest in lengths]
        return [*checks, relative(name, "c/a", "", *ratios, VOLUME_LIMIT)]
    emt = asdict(cubic_elastic_constants(EMT(), reference))
    model = asdict(cubic_elastic_constants(source, found))
    return checks + [
        relative(name, key.upper(), "GPa", emt[key], model[key], MODULUS_LIMIT)
        for key in ("c11", "c12", "c44")
    ]


def _curve_checks(name: str, reference: Atoms, source: Source) -> list[Check]:
    """Energies above each curve's own minimum, where they differ most; and the curvature there."""
    strains = VOLUMES ** (1 / 3) - 1
    emt, model = (energy_volume_curve(s, reference, strains) for s in (EMT(), source))
    rise_emt, rise_model = (
        1000 * (curve.energies - curve.energy) / len(reference) for curve in (emt, model)
    )
    worst = int(np.abs(rise_model - rise_emt).argmax())
    return [
        Check(
            name,
            f"E(V) at {VOLUMES[worst]:.2f} V0",
            "meV/atom",
            float(rise_emt[worst]),
            float(rise_model[worst]),
            float((rise_model - rise_emt)[worst] / rise_emt.max()),
            MODULUS_LIMIT,
        ),
        relative(name, "bulk modulus", "GPa", emt.bulk_modulus, model.bulk_modulus, MODULUS_LIMIT),
    ]


# --- dynamics -------------------------------------------------------------------------------------


def solid_solution(repeats: int, seed: int = 1) -> Atoms:
    """A quarter gold at random on the sites of an fcc crystal, 4 x ``repeats``^3 atoms."""
    atoms = bulk("Cu", cubic=True, a=3.74).repeat(repeats)
    chosen = np.random.default_rng(seed).permutation(len(atoms))[: len(atoms) // 4]
    atoms.symbols[chosen] = "Au"
    return atoms


@dataclass(frozen=True)
class Order:
    """How much of a crystal a trajectory is; lengths in units of the nearest neighbours' distance.

    Attributes:
        lindemann: root mean square displacement from the lattice sites.
        furthest: of any atom from its site in any frame.
        misplaced: atoms whose mean position has not twelve nearest neighbours.
    """

    lindemann: float
    furthest: float
    misplaced: int


def crystal_order(frames: Sequence[Atoms], lattice: Atoms) -> Order:
    """Compare a trajectory with the fcc crystal it began as.

    Drift of the whole crystal and changes of its cell do not count as displacements.
    """
    sites = lattice.cell.scaled_positions(lattice.positions)
    moves = np.array([frame.cell.scaled_positions(frame.positions) - sites for frame in frames])
    moves -= moves.mean(axis=1, keepdims=True)
    cell = np.mean([frame.cell.array for frame in frames], axis=0)
    lattice_constant = (4 * abs(np.linalg.det(cell)) / len(lattice)) ** (1 / 3)
    nearest = lattice_constant / np.sqrt(2)
    lengths = np.linalg.norm(moves @ cell, axis=2) / nearest
    mean = lattice.copy()
    mean.set_cell(cell)
    mean.set_scaled_positions(sites + moves.mean(axis=0))
    distances = mean.get_all_distances(mic=True)
    between_shells = lattice_constant * (np.sqrt(0.5) + 1) / 2
    neighbors = (distances < between_shells).sum(axis=1) - 1
    return Order(
        lindemann=float(np.sqrt(np.mean(lengths**2))),
        furthest=float(lengths.max()),
        misplaced=int((neighbors != 12).sum()),
    )


def compare_dynamics(
    source: Source,
    out: Path,
    *,
    time_ps: float,
    repeats: int = 3,
    temperature: float = 500.0,
    seed: int = 1,
) -> tuple[list[Check], dict[str, Any]]:
    """The same constant-pressure run with EMT and with the potential; 2 fs, no pressure.

    Returns:
        The checks, and what the two runs were.
    """
    start = solid_solution(repeats)
    runs: dict[str, dict[str, Any]] = {}
    for name, calculator in (("emt", EMT()), ("model", source)):
        result = run_md(
            calculator,
            start,
            ensemble="npt",
            time_ps=time_ps,
            timestep_fs=2.0,
            temperature=temperature,
            friction=5.0,
            barostat_period_fs=500.0,
            seed=seed,
            output=out / f"npt-{name}.traj",
            overwrite=True,
        )
        if result.interrupted:  # it ends the current run alone
            raise KeyboardInterrupt
        frames = read(result.trajectory, index=":")
        _, middle, last = np.array_split([frame.cell.volume / len(start) for frame in frames], 3)
        runs[name] = result.to_json() | asdict(crystal_order(frames, start))
        runs[name] |= {
            "volume_per_atom": float(np.mean([*middle, *last])),
            "volume_drift": float(last.mean() / middle.mean() - 1),
        }
    return _dynamics_checks(f"NPT {temperature:g} K", temperature, runs), runs


def _dynamics_checks(
    system: str, temperature: float, runs: dict[str, dict[str, Any]]
) -> list[Check]:
    def itself(quantity: str, unit: str, key: str, limit: float) -> Check:
        emt, model = (float(runs[name][key]) for name in ("emt", "model"))
        return Check(system, quantity, unit, emt, model, model, limit)

    volumes = [runs[name]["volume_per_atom"] for name in ("emt", "model")]
    emt, model = (runs[name]["temperature_mean"] for name in ("emt", "model"))
    off = model / temperature - 1
    return [
        itself("rms displacement", "d(nn)", "lindemann", LINDEMANN_LIMIT),
        itself("largest displacement", "d(nn)", "furthest", LEFT_ITS_SITE),
        itself("atoms out of place", "", "misplaced", 0),
        relative(system, "mean volume", "Å³/atom", *volumes, VOLUME_LIMIT),
        itself("drift of volume", "", "volume_drift", VOLUME_LIMIT),
        Check(system, "temperature", "K", emt, model, off, TEMPERATURE_LIMIT),
    ]


# --- all of it ------------------------------------------------------------------------------------


def print_checks(console: Console, checks: Sequence[Check]) -> None:
    table = Table("crystal", "quantity", "unit", box=None)
    for heading in ("EMT", "model", "deviation", "limit", ""):
        table.add_column(heading, justify="right")
    for check in checks:
        table.add_row(
            check.system,
            check.quantity,
            check.unit,
            f"{check.emt:.5g}",
            f"{check.model:.5g}",
            f"{100 * check.deviation:+.2f} %",
            f"{100 * check.limit:g} %",
            "ok" if check.passed else "[bold red]FAILED[/]",
        )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model file")
    parser.add_argument("--time", type=float, default=10.0, help="of the dynamics, ps")
    parser.add_argument("--repeats", type=int, default=3, help="its cells of 4 along each edge")
    parser.add_argument("--seed", type=int, default=1, help="of the dynamics")
    parser.add_argument("--out", type=Path, help="folder; beside the model if not given")
    options = parser.parse_args(arguments)
    console = Console()
    out = options.out or options.model.parent / "validation"
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    precise = clebsch.load(options.model, dtype=torch.float64)
    checks = [check for name in CRYSTALS for check in compare_crystal(name, precise)]
    print_checks(console, checks)
    potential = clebsch.load(options.model)
    dynamics, runs = compare_dynamics(
        potential, out, time_ps=options.time, repeats=options.repeats, seed=options.seed
    )
    print_checks(console, dynamics)
    checks += dynamics
    passed = all(check.passed for check in checks)
    seconds = time.perf_counter() - started
    summary = {
        "model": str(options.model),
        "passed": passed,
        "seconds": seconds,
        "checks": [asdict(check) | {"passed": check.passed} for check in checks],
        "dynamics": runs,
    }
    atomic_write(out / "validation.json", json.dumps(summary, indent=2))
    failed = sum(not check.passed for check in checks)
    verdict = "all within their limits" if passed else f"{failed} beyond their limits"
    console.print(f"{len(checks)} checks, {verdict}; {seconds:.0f} s; {out / 'validation.json'}")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
