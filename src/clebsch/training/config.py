"""The configuration of a training run, a strict schema: unknown keys and wrong types are errors.

A configuration is a YAML file, a recipe's defaults under it and ``key=value`` settings over it.
"""

from __future__ import annotations

import os
from glob import glob
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from clebsch.data.read import LabelKeys
from clebsch.elements import not_an_element
from clebsch.models.ace_config import ACEConfig
from clebsch.models.config import ModelConfig, Section


def _absolute(path: Path) -> Path:
    """Paths are relative to the working folder; kept absolute, they still hold on resume."""
    return path.expanduser().absolute()


def _expanded(value: Any) -> Any:
    """Patterns such as data/*.xyz become the files that match now; others stay what they are."""
    several = isinstance(value, (list, tuple))
    files: list[Any] = []
    for item in value if several else [value]:
        is_pattern = isinstance(item, (str, Path)) and not set("*?[").isdisjoint(str(item))
        named = is_pattern and not Path(item).exists()
        files += (named and sorted(glob(os.path.expanduser(item)))) or [item]
    return tuple(files) if several or len(files) > 1 else files[0]


def _device(name: str) -> str:
    try:
        torch.device(name)
    except RuntimeError:
        raise ValueError("should be a device of torch such as cpu, cuda or cuda:1") from None
    return name


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
Paths = Annotated[AbsolutePath | tuple[AbsolutePath, ...], BeforeValidator(_expanded)]
Device = Annotated[str, AfterValidator(_device)]

#: Ways to say which structures validate, and the part of the training file that a configuration
#: file gets where it does not say.
VALIDATION_SETS = ("valid", "valid_fraction", "valid_count")
DEFAULT_VALID_FRACTION = 0.1

#: What a model can be chosen by: the validation loss, or an error on the validation structures.
Metric = Literal[
    "loss",
    "energy_mae",
    "energy_rmse",
    "energy_per_atom_mae",
    "energy_per_atom_rmse",
    "forces_mae",
    "forces_rmse",
    "stress_mae",
    "stress_rmse",
]


class DataConfig(Section):
    """Where structures and labels come from."""

    train: Paths = Field(
        description="file or files with labelled structures; a pattern such as data/*.xyz is "
        "several, those that match when training starts"
    )
    valid: Paths | None = Field(None, description="file or files to validate on")
    valid_fraction: float | None = Field(None, gt=0, lt=1, description="of the training file")
    valid_count: int | None = Field(None, ge=1, description="structures of the training file")
    train_count: int | None = Field(
        None,
        ge=1,
        description="train on so many structures, drawn from those that do not validate; all if "
        "null. With one seed, a larger number holds the structures of a smaller one",
    )
    keys: LabelKeys = LabelKeys()
    isolated_atoms: AbsolutePath | None = Field(None, description="file with single atoms")
    references: Literal["auto", "isolated", "fit", "none"] | dict[str, float] = Field(
        "auto",
        description="energies of lone atoms: isolated atoms of the data; fit, a least-squares fit, "
        "made once more on validation structures when training is over; auto, the first for "
        "elements that have them, a fit for others; none (zero: with model.mean_energy=constant "
        "the mean energy stands for them); or eV by element",
    )
    pbc: Literal["file", "none"] = Field(
        "file", description="none: boxes are dummies, treat every structure as a molecule"
    )

    @field_validator("references")
    @classmethod
    def _are_of_elements(cls, references: str | dict[str, float]) -> str | dict[str, float]:
        for symbol in references if isinstance(references, dict) else ():
            if problem := not_an_element(symbol):
                raise ValueError(problem)
        return references

    @model_validator(mode="after")
    def _one_validation_set(self) -> DataConfig:
        given = [name for name in VALIDATION_SETS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"give one of {', '.join(VALIDATION_SETS)}, not {found}")
        return self


class ReplayConfig(Section):
    """What a fine-tuned model shall not forget; see ``clebsch.training.replayed``."""

    structures: Paths = Field(
        description="file or files with structures like those that the initial model learnt from; "
        "it labels them itself, and labels in them are not read"
    )
    count: int | None = Field(None, ge=2, description="so many of them, drawn at random; null: all")
    batch_size: int | None = Field(
        None, ge=1, description="of them in a step; null: as many as a step has of the data"
    )
    weight: float = Field(1.0, gt=0, description="of their loss beside that of the data")
    readouts: Literal["own", "shared"] = Field(
        "own",
        description="own: the initial model's energies are read out apart from the data's, which "
        "may be of another level of theory; shared: both are of one level",
    )
    pbc: Literal["file", "none"] = Field("file", description="as data.pbc, of these structures")


class LossConfig(Section):
    """Weights and forms of the loss; see ``clebsch.training.loss``."""

    energy: float = Field(1.0, ge=0, description="weight of the energy term, 1/eV^2")
    forces: float = Field(1000.0, ge=0, description="weight of the forces term, Angstrom^2/eV^2")
    stress: float = Field(10.0, ge=0, description="weight of the stress term, 1/eV^2")
    energy_form: Literal["per_sqrt_atoms", "per_atom", "total"] = Field(
        "per_sqrt_atoms",
        description="energy error squared over N, over N^2, or as it is (the paper's equation 15)",
    )
    huber_delta: float | None = Field(
        None, gt=0, description="residuals above it count linearly; null: always squared"
    )

    @model_validator(mode="after")
    def _some_weight(self) -> LossConfig:
        if self.energy == self.forces == self.stress == 0:
            raise ValueError("all weights are zero, so there is nothing to train on")
        return self


class TrainingConfig(Section):
    """Optimiser, schedule, limits. There is always a limit: epochs, minutes, or both."""

    optimizer: Literal["amsgrad", "adam", "adamw", "muon"] = Field(
        "amsgrad",
        description="adamw decouples the weight decay from the gradient; muon makes the steps of "
        "linear maps orthogonal, without weight decay, and leaves the rest to amsgrad",
    )
    lr: float = Field(0.01, gt=0, description="highest learning rate")
    weight_decay: float = Field(
        5e-7,
        ge=0,
        description="on the weights of equations 10 and 11 alone; not on those of elements that "
        "the batch lacks",
    )
    schedule: Literal["plateau", "cosine", "linear", "constant"] = Field(
        description="cosine and linear fall over the whole budget of epochs or minutes"
    )
    warmup_steps: int = Field(0, ge=0, description="steps in which the rate rises to lr")
    final_lr: float = Field(0.0, ge=0, le=1, description="end of cosine and linear, times lr")
    plateau_patience: int = Field(50, ge=0, description="evaluations without a lower loss")
    plateau_factor: float = Field(0.8, gt=0, lt=1, description="what lr is then multiplied by")
    batch_size: int | None = Field(None, ge=1, description="structures in a step")
    batch_edges: int | None = Field(None, ge=1, description="or: at most so many edges in a step")
    max_epochs: int | None = Field(
        None, ge=1, description="epochs in all, those before a resume included"
    )
    max_minutes: float | None = Field(
        None, gt=0, description="wall time, reading the data and earlier parts of the run included"
    )
    ema_decay: float = Field(0.99, ge=0, lt=1, description="of the averaged weights, the result")
    clip_grad_norm: float | None = Field(
        None, gt=0, description="longest gradient over all weights; null: as it is"
    )
    metric: Metric = Field("loss", description="the validation metric that chooses the model")
    patience: int | None = Field(
        None, ge=1, description="stop after so many evaluations without a better model"
    )
    eval_every: int = Field(1, ge=1, description="epochs between evaluations")
    checkpoint_minutes: float = Field(2.0, ge=0, description="minutes between saved states")
    checkpoint_steps: int | None = Field(None, ge=1, description="also: steps between them")
    loss: LossConfig = LossConfig()

    @model_validator(mode="after")
    def _limits(self) -> TrainingConfig:
        if self.max_epochs is None and self.max_minutes is None:
            raise ValueError("give max_epochs or max_minutes, or training would never end")
        if (self.batch_size is None) == (self.batch_edges is None):
            raise ValueError("give one of batch_size and batch_edges")
        return self


class FitConfig(Section):
    """Fitting a linear model in closed form; see ``clebsch.training.linear_fit``.

    Weights multiply squared residuals; their ratios matter alone, the rest is found.
    """

    energy: float = Field(
        1000.0, ge=0, description="weight of squared energy errors over N atoms, 1/eV^2"
    )
    forces: float = Field(
        1.0, ge=0, description="weight of squared errors of force components, Angstrom^2/eV^2"
    )
    stress: float = Field(
        1.0, ge=0, description="weight of squared errors of virials over N atoms, 1/eV^2"
    )
    smoothness: float = Field(
        1.0, ge=0, description="the prior's standard deviations fall as (1 + degree)^-smoothness"
    )
    standardization: float = Field(
        0.5,
        ge=0,
        le=1,
        description="they grow as a function's contribution to all labels falls, to this power; 0: "
        "not at all; 1: all functions are expected to contribute alike",
    )
    regularization: Literal["evidence"] | Annotated[float, Field(gt=0)] = Field(
        "evidence",
        description="strength of the prior against the noise; evidence: the most probable one",
    )
    checkpoint_minutes: float = Field(
        10.0,
        ge=0,
        description="minutes between saved states, of 4 bytes times coefficients squared",
    )

    @property
    def loss(self) -> LossConfig:
        """The loss that validation tells of, with the same weights."""
        return LossConfig(energy=self.energy, forces=self.forces, stress=self.stress)

    @model_validator(mode="after")
    def _some_weight(self) -> FitConfig:
        if self.energy == self.forces == self.stress == 0:
            raise ValueError("all weights are zero, so there is nothing to fit")
        return self


class Config(Section):
    """Everything about a training run."""

    data: DataConfig
    model: ModelConfig = Field(discriminator="name")
    initial: AbsolutePath | None = Field(
        None,
        description="model file to start from, of Clebsch or of mace-torch: its architecture, "
        "elements, scale and weights; its references too, unless data.references says otherwise; "
        "no linear ACE, which is fitted in closed form",
    )
    replay: ReplayConfig | None = Field(
        None, description="learn the initial model's own energies and forces beside the data"
    )
    recipe: Literal["paper", "fast"] = Field(
        "fast", description="defaults of training, in the table below"
    )
    training: TrainingConfig
    fit: FitConfig = FitConfig()
    seed: int = Field(0, ge=0, description="of weights, split and shuffles")
    dtype: Literal["float32", "float64"] = Field("float32", description="precision of the network")
    device: Device = Field("cpu", description="where to train: cpu, cuda or cuda:1")
    tf32: bool = Field(
        False,
        description="on NVIDIA GPUs and in float32: products of matrices round their factors to 11 "
        "bits, as tensor cores do",
    )
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="CPU threads of each process; auto: as many as make a step faster, found by "
        "timing, at most as many as torch takes (OMP_NUM_THREADS) over all processes",
    )
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="CPU processes among which the structures of a batch are divided; auto: one "
        "for each thread that torch takes, in runs that are not over in a minute, unless threads "
        "is given; a fit in closed form has one process",
    )
    run: AbsolutePath = Field(
        default_factory=lambda: _absolute(Path("run")), description="folder of results"
    )
    tensorboard: bool = Field(
        False, description="also write scalars to RUN/tensorboard; of a fit in closed form, none"
    )

    @model_validator(mode="after")
    def _start_makes_sense(self) -> Config:
        if self.initial is not None and self.is_linear:
            raise ValueError("initial: linear ACE is fitted in closed form and starts from nothing")
        if self.replay is not None and self.initial is None:
            raise ValueError("replay: without an initial model there is nothing to be kept")
        return self

    @property
    def is_linear(self) -> bool:
        """Whether the model is fitted in closed form, as ``fit`` says; else ``training`` does."""
        return isinstance(self.model, ACEConfig)

    @property
    def loss(self) -> LossConfig:
        """The loss of training, or of the fit."""
        return self.fit.loss if self.is_linear else self.training.loss


#: Defaults of ``training`` by recipe. "paper" is appendix A.5.1 of the MACE paper with the loss
#: that its authors used (shared design, models.md 5.1); its number of epochs is assumed.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "optimizer": "amsgrad",
        "lr": 0.01,
        "weight_decay": 5e-7,
        "schedule": "plateau",
        "batch_size": 5,
        "max_epochs": 2000,
        "ema_decay": 0.99,
    },
    "fast": {
        "optimizer": "muon",
        "lr": 0.01,
        "weight_decay": 5e-7,
        "schedule": "linear",
        "warmup_steps": 50,
        "batch_size": 5,
        "max_epochs": 200,
        "ema_decay": 0.995,
        # With the paper's weight of 1, energies reach their accuracy long after forces do.
        "loss": {"energy": 50.0},
    },
}

#: What a recipe has in place of that where training starts from a model (docs/fine-tuning.md).
FINE_TUNING: dict[str, dict[str, Any]] = {"fast": {"lr": 0.003}}

#: A recipe's setting that an explicit one of the same group replaces.
ALTERNATIVES = (("max_epochs", "max_minutes"), ("batch_size", "batch_edges"))

DEFAULT_MODEL = "mace_small"
DEFAULT_RECIPE = "fast"
