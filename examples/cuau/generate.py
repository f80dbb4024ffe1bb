"""Copper-gold crystals labelled with ASE's EMT: a training file and one to test on.

    python examples/cuau/generate.py

Energies, forces and stresses of strained and rattled cells and of snapshots of dynamics, as
``clebsch.data.synthetic.sample_emt_cuau`` describes them. Isolated atoms lead the training file,
the test file comes from another seed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from clebsch.data.synthetic import emt_isolated_atoms, sample_emt_cuau, write_xyz


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/cuau-data"), help="folder")
    parser.add_argument("--strained", type=int, default=500, help="strained cells to train on")
    parser.add_argument("--dynamics", type=int, default=100, help="MD snapshots to train on")
    parser.add_argument("--seed", type=int, default=1, help="to train on; the next to test")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    n_strained, n_dynamics = options.strained, options.dynamics
    train = sample_emt_cuau(n_strained, n_dynamics, seed=options.seed)
    test = sample_emt_cuau(n_strained // 4, n_dynamics // 4, seed=options.seed + 1)
    write_xyz(options.out / "train.xyz", [*emt_isolated_atoms(), *train])
    write_xyz(options.out / "test.xyz", test)
    print(
        f"{len(train)} structures in {options.out / 'train.xyz'}, {len(test)} in "
        f"{options.out / 'test.xyz'}, {time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
