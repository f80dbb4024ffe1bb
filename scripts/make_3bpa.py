"""Make src/clebsch/benchmarks/3bpa.xyz: five frames of 3-(benzyloxy)pyridin-2-amine at 300 K.

The coordinates that it starts from are RDKit's (ETKDG with random seed 1, then MMFF94) for the
SMILES NC1=NC=CC=C1OCC1=CC=CC=C1. They are relaxed with GFN2-xTB and run for 2 ps of Langevin
dynamics with it. Needs tblite (in ``.venv``); takes about a minute:

    OMP_NUM_THREADS=1 .venv/bin/python scripts/make_3bpa.py
"""

from __future__ import annotations

from pathlib import Path

from ase import Atoms
from ase.io import write
from ase.optimize import BFGS

from clebsch.data.synthetic import sample_xtb, xtb_calculator

OUT = Path(__file__).resolve().parents[1] / "src" / "clebsch" / "benchmarks" / "3bpa.xyz"
SEED = 0

#: Angstrom.
START = """
N 3.073 0.757 -2.163
C 2.866 0.525 -0.787
N 3.860 0.877 0.050
C 3.664 0.667 1.368
C 2.510 0.117 1.896
C 1.490 -0.248 1.022
C 1.661 -0.056 -0.347
O 0.740 -0.354 -1.319
C -0.334 -1.237 -0.980
C -1.538 -0.528 -0.402
C -2.395 -1.212 0.474
C -3.526 -0.583 0.997
C -3.820 0.732 0.642
C -2.987 1.417 -0.239
C -1.856 0.789 -0.764
H 2.306 1.341 -2.484
H 2.962 -0.134 -2.639
H 4.487 0.969 2.009
H 2.403 -0.018 2.967
H 0.577 -0.657 1.440
H -0.653 -1.711 -1.916
H 0.016 -2.050 -0.330
H -2.186 -2.242 0.756
H -4.181 -1.120 1.678
H -4.701 1.221 1.049
H -3.218 2.441 -0.521
H -1.220 1.339 -1.455
"""


def start() -> Atoms:
    """The molecule before relaxation, 27 atoms."""
    lines = [line.split() for line in START.split("\n") if line]
    return Atoms([line[0] for line in lines], [[float(x) for x in line[1:]] for line in lines])


def main() -> None:
    """Relax, sample, write."""
    molecule = start()
    molecule.calc = xtb_calculator()
    BFGS(molecule, logfile=None).run(fmax=0.05, steps=200)
    frames = sample_xtb(molecule, 300.0, 5, stride=600, seed=SEED, equilibration=1000)
    for frame in frames:
        frame.calc = None
    write(
        OUT, frames, format="xyz", comment="GFN2-xTB, 300 K, by scripts/make_3bpa.py", fmt="%12.6f"
    )


if __name__ == "__main__":
    main()
