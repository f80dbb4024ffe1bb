"""LAMMPS with a potential of Clebsch: its integrators, fixes and computes; our energies and forces.

They come in through ``fix external`` of LAMMPS's Python module. On one MPI rank every atom is
local, and neighbours are found as always here; several ranks evaluate together (``parallel``). The
ghost atoms of LAMMPS take no part in either: its communication cut-off may be anything.
"""

from __future__ import annotations

import functools
import signal
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from ase.data import atomic_masses, atomic_numbers

from clebsch.calculators.parallel import ParallelPotential, Ranks
from clebsch.calculators.serial import LocalAtoms, SerialPotential
from clebsch.elements import unknown_element
from clebsch.errors import ClebschError, did_you_mean
from clebsch.interrupt import signals_wait
from clebsch.modelfile import load
from clebsch.potential import Potential

#: eV in the energy of LAMMPS's unit styles; lengths are Angstrom in all of these.
ENERGY_UNITS = {"metal": 1.0, "real": units.kcal / units.mol}
#: Methods of LAMMPS's that run steps, and raise what was wrong in them.
_RUNNING = ("command", "commands_list", "commands_string", "file")


class LammpsForces:
    """The energy, forces and virial of a LAMMPS simulation from a potential, step after step.

    Attributes:
        potential: what computes.
        energy: of the whole system in the last step, eV; None before the first.
        n_calls: number of evaluations so far.
        signals: Ctrl-C that came while a command runs.
    """

    def __init__(
        self,
        lmp: Any,
        potential: SerialPotential | ParallelPotential,
        elements: Sequence[str],
        fix: str,
        ranks: Ranks,
    ) -> None:
        self.energy: float | None = None
        self.n_calls = 0
        self.signals: list[int] = []
        self._evaluate, self._ranks = potential, ranks
        self._lmp, self._fix = lmp, fix
        self._energy_unit = ENERGY_UNITS[lmp.extract_global("units")]
        self._number_of_type = np.array([0, *(atomic_numbers[symbol] for symbol in elements)])
        self._error: BaseException | None = None

    @property
    def potential(self) -> Potential:
        """What computes."""
        return self._evaluate.potential

    @property
    def n_builds(self) -> int:
        """Number of neighbour searches so far."""
        return self._evaluate.n_builds

    def __call__(
        self,
        caller: object,
        step: int,
        n_local: int,
        tags: np.ndarray,
        x: np.ndarray,
        f: np.ndarray,
    ) -> None:
        """What LAMMPS calls in every step, with views of its own memory.

        Exceptions do not pass through LAMMPS. One ends the run, on all ranks, and is raised by the
        command that did the run.
        """
        f[:] = 0.0
        if self._error is not None:
            return
        try:
            self._compute(tags, x, f)
        except BaseException as error:  # LAMMPS would go on without forces
            self._ranks.end_unless_shared(error)
            self._error = error
            self._lmp.force_timeout()

    def _compute(self, tags: np.ndarray, x: np.ndarray, f: np.ndarray) -> None:
        order = np.argsort(tags)  # LAMMPS sorts its atoms anew now and then
        energy, forces, virial = self._evaluate(lambda: self._local_atoms(tags, x, order))
        f[order] = forces / self._energy_unit
        self._lmp.fix_external_set_energy_global(self._fix, energy / self._energy_unit)
        voigt = virial[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]  # xx yy zz xy xz yz
        self._lmp.fix_external_set_virial_global(self._fix, (voigt / self._energy_unit).tolist())
        self.energy = energy
        self.n_calls += 1

    def _local_atoms(self, tags: np.ndarray, x: np.ndarray, order: np.ndarray) -> LocalAtoms:
        """This rank's atoms in order of tags."""
        if self.signals:
            raise KeyboardInterrupt
        if not tags.all():
            raise ClebschError("atoms of LAMMPS have no IDs; do without atom_modify id no")
        types = self._lmp.numpy.extract_atom("type")[: len(tags)]
        low, high, xy, yz, xz, periodic, _ = self._lmp.extract_box()
        lx, ly, lz = np.subtract(high, low)
        return LocalAtoms(
            tags=tags[order].astype(np.int64),
            numbers=self._number_of_type[types[order]],
            positions=x[order],
            cell=np.array([[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]]),
            origin=np.array(low),
            pbc=np.array(periodic, dtype=bool),
        )

    def raise_error(self) -> None:
        """Raise what was wrong in a run, once.

        Raises:
            BaseException: whatever it was.
        """
        if self._error is not None:
            error, self._error = self._error, None
            self._lmp.command("timer timeout off")  # or no later run does a step
            raise error


def attach(
    lmp: Any,
    potential: Potential | Path | str,
    elements: Sequence[str],
    *,
    fix: str = "clebsch",
    skin: float = 0.5,
) -> LammpsForces:
    """Add a potential's energy, forces and virial to a simulation of LAMMPS's.

    It makes the fix, ``external`` on all atoms; ``pe``, ``press``, minimisation and barostats count
    it. Pair styles, such as a dispersion correction, come on top. What goes wrong in a step, as two
    atoms at one place, ends the run and is raised by the method of ``lmp`` that did it:
    ``command``, ``commands_string``, ``commands_list`` or ``file``.

    On several MPI ranks each computes the energies of its own atoms, for which it needs the atoms
    within ``potential.hops`` cut-offs. All ranks attach; what goes wrong on one is raised on all.

    Args:
        lmp: of ``lammps.lammps``, with its box; units ``metal`` or ``real``.
        potential: what computes, or its model file.
        elements: symbols of LAMMPS's atom types 1, 2, ...
        fix: name of the fix.
        skin: Angstrom by which our neighbour list reaches beyond the cut-off; it changes the speed,
            never a result.

    Returns:
        What computes, with counts of its work.

    Raises:
        ClebschError: no box yet, other units, not one element for each type, a fix of this name,
            several MPI ranks without mpi4py, or something went wrong on another rank.
        UnknownElementError: an element that the potential does not know.

    Warns:
        UserWarning: a mass is far from that of its element: types may have been mixed up.
    """
    ranks = _ranks(lmp)
    with ranks.together():
        if isinstance(potential, Path | str):
            potential = load(potential)
        _check_simulation(lmp, fix)
        _check_elements(lmp, potential, elements)
        evaluate: SerialPotential | ParallelPotential
        if ranks.comm is None:
            evaluate = SerialPotential(potential, skin)
        else:
            evaluate = ParallelPotential(potential, skin, ranks)
        forces = LammpsForces(lmp, evaluate, elements, fix, ranks)
    lmp.command(f"fix {fix} all external pf/callback 1 1")
    lmp.command(f"fix_modify {fix} energy yes virial yes")
    lmp.set_fix_external_callback(fix, forces, None)
    for name in _RUNNING:
        setattr(lmp, name, _raising(getattr(lmp, name), forces))
    return forces


def _ranks(lmp: Any) -> Ranks:
    """Those that LAMMPS runs on."""
    size = lmp.extract_setting("world_size")
    if size == 1:
        return Ranks()
    comm = lmp.get_mpi_comm()
    if comm is None:
        raise ClebschError(
            f"LAMMPS runs on {size} MPI ranks, and Clebsch needs mpi4py, built for the same MPI, "
            "on more than one"
        )
    return Ranks(comm)


def _check_simulation(lmp: Any, fix: str) -> None:
    if not lmp.extract_setting("box_exist"):
        raise ClebschError("LAMMPS has no box yet: first create_box or read_data")
    style = lmp.extract_global("units")
    if style not in ENERGY_UNITS:
        raise ClebschError(f"LAMMPS's units are {style}. {did_you_mean(style, ENERGY_UNITS)}")
    if lmp.has_id("fix", fix):
        raise ClebschError(f"LAMMPS has a fix {fix} already: unfix it, or give another name")


def _raising(method: Callable[..., Any], forces: LammpsForces) -> Callable[..., Any]:
    """The method, raising what was wrong in the steps that it ran."""

    @functools.wraps(method)
    def run(*arguments: Any, **options: Any) -> Any:
        outer = forces.signals
        try:
            with signals_wait([signal.SIGINT]) as forces.signals:
                try:
                    return method(*arguments, **options)
                finally:
                    forces.raise_error()
        finally:
            forces.signals = outer

    return run


def _check_elements(lmp: Any, potential: Potential, elements: Sequence[str]) -> None:
    n_types = lmp.extract_global("ntypes")
    if isinstance(elements, str) or len(elements) != n_types:
        raise ClebschError(
            f"LAMMPS has {n_types} atom types: elements are a list of so many symbols, "
            f"not {elements!r}"
        )
    masses = lmp.numpy.extract_atom("mass")
    for kind, symbol in enumerate(elements, start=1):
        if symbol not in potential.species:
            raise unknown_element(symbol, f"LAMMPS's type {kind}", potential.species)
        usual = float(atomic_masses[atomic_numbers[symbol]])
        mass = None if masses is None else float(masses[kind])
        if mass is not None and mass > 0 and abs(mass - usual) > max(1.5, 0.05 * usual):
            warnings.warn(
                f"LAMMPS's type {kind} has the mass {mass:g}, and {symbol} has {usual:g}: are "
                "elements in the order of types?",
                stacklevel=3,
            )
