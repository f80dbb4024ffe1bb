"""Labelled data of our own making: molecules by GFN2-xTB, copper-gold by ASE's EMT.

For the demonstration, the examples and the tests, all seeded. tblite is imported only when xTB
is asked for; it runs fastest in a process with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers, ground_state_magnetic_moments
from ase.io.extxyz import write_xyz as write_extxyz
from ase.md.langevin import Langevin

from clebsch.errors import ClebschError, DataError
from clebsch.files import atomic_write

#: Called with the frames done and the frames wanted.
Progress = Callable[[int, int], None]


def sample_xtb(
    molecule: Atoms,
    temperature: float,
    n_frames: int,
    stride: int = 20,
    seed: int = 0,
    *,
    timestep: float = 0.5,
    friction: float = 0.01,
    equilibration: int = 1000,
    progress: Progress | None = None,
) -> list[Atoms]:
    """Frames of GFN2-xTB Langevin dynamics with energies and forces.

    Args:
        molecule: start structure; not altered.
        temperature: K.
        n_frames: how many.
        stride: steps between frames.
        seed: of velocities and of the thermostat.
        timestep: fs.
        friction: 1/fs.
        equilibration: steps before the first frame.
        progress: called after every frame.

    Raises:
        ClebschError: tblite is not installed.
        DataError: xTB does not converge, as for structures that fly apart.
    """
    atoms = molecule.copy()
    atoms.calc = xtb_calculator()
    try:
        return _sample(
            atoms, temperature, n_frames, stride, seed, timestep, friction, equilibration, progress
        )
    except CalculationFailed as error:
        raise DataError(f"xTB failed while sampling {molecule.symbols}: {error}") from error


def _sample(
    atoms: Atoms,
    temperature: float,
    n_frames: int,
    stride: int,
    seed: int,
    timestep: float,
    friction: float,
    equilibration: int,
    progress: Progress | None,
) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    _draw_velocities(atoms, temperature, rng)
    dynamics = Langevin(
        atoms,
        timestep=timestep * units.fs,
        temperature_K=temperature,
        friction=friction / units.fs,
        rng=rng,
        fixcm=False,  # ASE's way of fixing it does not sample the ensemble of few atoms
    )
    dynamics.run(equilibration)
    frames: list[Atoms] = []
    for done in range(1, n_frames + 1):
        dynamics.run(stride)
        frames.append(labelled(atoms))
        if progress is not None:
            progress(done, n_frames)
    return frames


def _draw_velocities(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Maxwell-Boltzmann velocities at ``temperature`` (K), at rest as a whole."""
    masses = atoms.get_masses()[:, None]
    momenta = rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature)
    atoms.set_momenta(momenta - masses * momenta.sum(axis=0) / masses.sum())


def labelled(atoms: Atoms, calculator: Any = None) -> Atoms:
    """A copy with energy, forces and, in a periodic cell, stress kept as results.

    Args:
        atoms: with a calculator, unless one is given.
        calculator: used instead of that of ``atoms``.
    """
    source = atoms if calculator is None else atoms.copy()
    if calculator is not None:
        source.calc = calculator
    labels: dict[str, Any] = {
        "energy": float(source.get_potential_energy()),
        "forces": np.array(source.get_forces(apply_constraint=False)),
    }
    if source.pbc.all():
        labels["stress"] = np.array(source.get_stress(apply_constraint=False))
    copy = Atoms(
        numbers=source.numbers, positions=source.positions, cell=source.cell, pbc=source.pbc
    )
    copy.info.update(source.info)
    copy.calc = SinglePointCalculator(copy, **labels)
    return copy


def xtb_calculator(**settings: Any) -> Any:
    """tblite's GFN2-xTB as an ASE calculator, silent.

    Raises:
        ClebschError: tblite is not installed.
    """
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise ClebschError("GFN2-xTB needs tblite: pip install 'clebsch[demo]'") from error
    return TBLite(method="GFN2-xTB", verbosity=0, **settings)


def xtb_isolated_atoms(symbols: Iterable[str]) -> list[Atoms]:
    """Single atoms with their GFN2-xTB energies, one per element.

    The number of unpaired electrons is that of the free atom's ground state. GFN2-xTB without
    spin polarisation, as the molecules are run, gives no exchange energy for them; so these are
    the atoms to which its molecules dissociate, not the lowest that tblite can be made to give.
    """
    frames = []
    for symbol in dict.fromkeys(symbols):
        unpaired = round(float(ground_state_magnetic_moments[atomic_numbers[symbol]]))
        frames.append(labelled(_atom(symbol), xtb_calculator(multiplicity=unpaired + 1)))
    return frames


def emt_isolated_atoms() -> list[Atoms]:
    """A copper and a gold atom with their EMT energies."""
    return [labelled(_atom(symbol), EMT()) for symbol in ("Cu", "Au")]


def _atom(symbol: str) -> Atoms:
    return Atoms(symbol, info={"config_type": "isolated_atom"})


# --- copper-gold ----------------------------------------------------------------------------------

#: Fractions of gold and lattice constants in between which cells are interpolated, Angstrom.
_CU_LATTICE, _AU_LATTICE = 3.59, 4.06
#: c/a of ordered CuAu, whose layers of copper and gold alternate along c; EMT prefers 0.91.
_L10_RATIO = 0.92


def sample_emt_cuau(n_strained: int = 200, n_dynamics: int = 50, seed: int = 0) -> list[Atoms]:
    """Copper-gold crystals with EMT's energies, forces and stresses.

    Strained and rattled cells of 4 to 32 atoms: pure metals, ordered L1_2 and (tetragonal) L1_0,
    random compositions; cubic and skewed cells; volumes up to 8 % off, shears up to 4 %; and
    snapshots of Langevin dynamics of 32 atoms at 300 to 800 K.

    Args:
        n_strained: strained and rattled cells.
        n_dynamics: snapshots, ten from each trajectory.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    total = n_strained + n_dynamics
    frames = [labelled(_strained(_crystal(index, rng), rng), EMT()) for index in range(n_strained)]
    while len(frames) < total:
        atoms = _crystal(len(frames), rng, repeats=(2, 2, 2), skewed=False)
        atoms.info["config_type"] += "_md"
        atoms.calc = EMT()
        frames += _sample(
            atoms,
            temperature=float(rng.uniform(300, 800)),
            n_frames=min(10, total - len(frames)),
            stride=20,
            seed=int(rng.integers(2**31)),
            timestep=4.0,
            friction=0.005,
            equilibration=50,
            progress=None,
        )
    return frames


def _crystal(
    index: int,
    rng: np.random.Generator,
    repeats: Sequence[int] | None = None,
    skewed: bool | None = None,
) -> Atoms:
    """An unstrained crystal: the kinds take turns, the cell is drawn."""
    kinds = ("Cu", "Au", "Cu3Au", "CuAu", "CuAu3", "random", "random", "random")
    kind = kinds[index % len(kinds)]
    if repeats is None:
        repeats = ((1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2))[int(rng.integers(4))]
    corners = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    motif = {
        "Cu": ["Cu"] * 4,
        "Au": ["Au"] * 4,
        "Cu3Au": ["Au", "Cu", "Cu", "Cu"],
        "CuAu": ["Cu", "Au", "Au", "Cu"],
        "CuAu3": ["Cu", "Au", "Au", "Au"],
        "random": ["Cu"] * 4,
    }[kind]
    atoms = Atoms(motif, scaled_positions=corners, cell=np.eye(3), pbc=True).repeat(repeats)
    if kind == "random":
        atoms.symbols[rng.random(len(atoms)) < rng.uniform(0.1, 0.9)] = "Au"
    gold = float(np.mean(atoms.numbers == atomic_numbers["Au"]))
    lattice = (1 - gold) * _CU_LATTICE + gold * _AU_LATTICE
    ratio = _L10_RATIO if kind == "CuAu" else 1.0
    stretch = np.array([1.0, 1.0, ratio]) / ratio ** (1 / 3)
    atoms.set_cell(atoms.cell.array * lattice * stretch, scale_atoms=True)
    atoms.info["config_type"] = kind
    if rng.random() < 0.5 if skewed is None else skewed:
        # the same crystal in a skewed cell: add one lattice vector to another
        cell = atoms.cell.array.copy()
        cell[1] += cell[0]
        if rng.random() < 0.5:
            cell[2] += cell[1]
        atoms.set_cell(cell, scale_atoms=False)
        atoms.wrap()
    return atoms


def _strained(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Volume up to 8 % off, shears up to 4 %, atoms displaced by up to 0.15 Angstrom rms.

    A quarter is not displaced: elastic constants are those of undisplaced atoms.
    """
    shear = rng.uniform(-0.04, 0.04, (3, 3))
    shear = (shear + shear.T) / 2
    shear -= np.eye(3) * np.trace(shear) / 3
    scale = (1 + rng.uniform(-0.08, 0.08)) ** (1 / 3)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + shear) * scale, scale_atoms=True)
    displacement = max(0.0, rng.uniform(-0.05, 0.15))
    atoms.positions += rng.normal(0, displacement, atoms.positions.shape)
    return atoms


def write_xyz(path: Path, frames: Sequence[Atoms]) -> None:
    """Writes frames with their labels as extended XYZ, at full precision of energies.

    Raises:
        OSError: the folder cannot be written.
    """
    text = StringIO()
    write_extxyz(text, list(frames))
    atomic_write(Path(path), text.getvalue())
