"""How large the demonstration is, where its files are, and the training configuration it writes."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from clebsch.demo.sampling import Job
from clebsch.files import atomic_write


@dataclass(frozen=True)
class Sizes:
    """Numbers that set how long the demonstration takes.

    Attributes:
        train_frames: in each of the four training trajectories.
        test_frames: at 300 K.
        hot_frames: at 600 K.
        stride: xTB steps of 0.5 fs between frames.
        equilibration: xTB steps before the first frame.
        valid_count: training frames that validate.
        limit: of the training, in YAML.
        eval_every: epochs between validations.
        model: what ``model:`` in the training configuration is, in YAML.
        md_steps: steps of 0.5 fs at constant energy.
        scan_step: degrees.
    """

    train_frames: int = 125
    test_frames: int = 250
    hot_frames: int = 200
    stride: int = 40
    equilibration: int = 1000
    valid_count: int = 50
    limit: str = "max_minutes: 3.5"
    eval_every: int = 4
    model: str = "mace_tiny"
    md_steps: int = 10_000
    scan_step: int = 15


FULL = Sizes()
#: Every stage, but nothing learned.
QUICK = Sizes(
    train_frames=4,
    test_frames=4,
    hot_frames=4,
    stride=5,
    equilibration=10,
    valid_count=4,
    limit="max_epochs: 60",
    eval_every=1,
    model="{preset: mace_tiny, channels: 8}",
    md_steps=100,
    scan_step=90,
)


@dataclass(frozen=True)
class Files:
    """Where everything is, under one folder."""

    out: Path

    @property
    def train(self) -> list[Path]:
        """Independent training trajectories, for each may stay long in one conformer."""
        return [self.out / "data" / f"train_300K_{k}.xyz" for k in (1, 2, 3, 4)]

    @property
    def tests(self) -> dict[str, Path]:
        """Test trajectories, by the name they have in tables."""
        return {f"Test {t} K": self.out / "data" / f"test_{t}K.xyz" for t in (300, 600)}

    @property
    def isolated_atoms(self) -> Path:
        """Single atoms."""
        return self.out / "data" / "isolated_atoms.xyz"

    @property
    def torsion(self) -> Path:
        """The torsion scan with xTB's energies."""
        return self.out / "data" / "torsion.xyz"

    @property
    def config(self) -> Path:
        """The training configuration."""
        return self.out / "train.yaml"

    @property
    def run(self) -> Path:
        """The training run."""
        return self.out / "training"

    @property
    def model(self) -> Path:
        """The trained potential."""
        return self.run / "model.safetensors"

    @property
    def trajectory(self) -> Path:
        """The model's dynamics; the log is beside it."""
        return self.out / "nve.traj"

    @property
    def scan(self) -> Path:
        """The model's torsion scan beside xTB's."""
        return self.out / "torsion.csv"

    @property
    def report(self) -> Path:
        """The report."""
        return self.out / "report.html"

    @property
    def summary(self) -> Path:
        """All figures, for programs."""
        return self.out / "summary.json"

    def predictions(self, test: Path) -> Path:
        """Where the predictions for a test trajectory are."""
        return self.out / f"predictions_{test.stem.removeprefix('test_')}.xyz"


def jobs(files: Files, sizes: Sizes, seed: int) -> list[Job]:
    """What xTB has to do; no two trajectories share a seed, whatever ``seed`` is."""

    def trajectory(path: Path, temperature: int, n_frames: int, job_seed: int) -> Job:
        settings = {
            "temperature": temperature,
            "n_frames": n_frames,
            "stride": sizes.stride,
            "equilibration": sizes.equilibration,
            "seed": job_seed,
        }
        return Job("trajectory", path, n_frames, settings)

    lengths = [(path, 300, sizes.train_frames) for path in files.train]
    test, hot = files.tests.values()
    lengths += [(test, 300, sizes.test_frames), (hot, 600, sizes.hot_frames)]
    trajectories = [
        trajectory(path, temperature, n_frames, len(lengths) * seed + k)
        for k, (path, temperature, n_frames) in enumerate(lengths)
    ]
    return [
        *trajectories,
        Job("isolated_atoms", files.isolated_atoms, 3, {}),
        Job("torsion", files.torsion, 360 // sizes.scan_step + 1, {"step": sizes.scan_step}),
    ]


def write_training_config(files: Files, sizes: Sizes, seed: int) -> None:
    """Write the configuration that ``clebsch train`` reads, for people to change."""
    # a JSON string is a YAML string, whatever characters the path has
    train = "".join(f"\n    - {json.dumps(str(path))}" for path in files.train)
    command = shlex.join(["clebsch", "train", str(files.config), f"run={files.out / 'again'}"])
    text = f"""# What clebsch demo trained. Change what you like, then train into another folder:
#
#     {command}
#
# Every setting and its default: docs/configuration.md
data:
  train:{train}
  valid_count: {sizes.valid_count}        # of the training structures, to choose the best model
  isolated_atoms: {json.dumps(str(files.isolated_atoms))}

model: {sizes.model}         # clebsch presets lists them
dtype: float32
seed: {seed}

recipe: fast             # the learning rate falls to zero over the whole budget
training:
  {sizes.limit}
  eval_every: {sizes.eval_every}

run: {json.dumps(str(files.run))}
"""
    atomic_write(files.config, text)
