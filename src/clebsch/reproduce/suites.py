"""What each suite trains and judges: data, tests, models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from clebsch.errors import ConfigError, did_you_mean
from clebsch.models.presets import PRESETS

#: The ten molecules of the revised MD17, in the order of the MACE paper's table 1.
MOLECULES = (
    "aspirin",
    "azobenzene",
    "benzene",
    "ethanol",
    "malonaldehyde",
    "naphthalene",
    "paracetamol",
    "salicylic",
    "toluene",
    "uracil",
)
#: Structures to train on in learning curves of aspirin.
CURVE_SIZES = (25, 50, 100, 200, 400, 950)


@dataclass(frozen=True)
class HeldOut:
    """Structures that a model is judged by.

    Attributes:
        name: for tables.
        file: of the suite's data set.
        kind: "errors" of energies and forces; "scan": energies along a path, relative to the lowest
            of the reference; "curves": several paths, told apart by ``config_type``, each relative
            to its last structure.
        optional: left out where the file is missing.
        remark: what a reader of the table must know.
    """

    name: str
    file: str
    kind: Literal["errors", "scan", "curves"] = "errors"
    optional: bool = False
    remark: str = ""


@dataclass(frozen=True)
class Task:
    """A training set with its tests.

    Attributes:
        name: of the folder and the table.
        train: file of the suite's data set.
        tests: what the trained model is judged by.
        epochs: of the recipe ``fast``, unless settings say otherwise.
        eval_every: likewise, epochs between evaluations.
        batch_size: likewise, structures in a step; None: the recipe's.
        train_count: structures to train on; None: all that do not validate.
        valid_count: structures to validate on.
        isolated_atoms: file with energies of lone atoms; None: references are fitted.
    """

    name: str
    train: str
    tests: tuple[HeldOut, ...]
    epochs: int
    train_count: int | None = None
    valid_count: int = 50
    eval_every: int = 1
    batch_size: int | None = None
    isolated_atoms: str | None = None

    @property
    def files(self) -> dict[str, bool]:
        """Files of the data set that it needs, and whether it can do without."""
        needed = {self.train: False}
        if self.isolated_atoms is not None:
            needed[self.isolated_atoms] = False
        return needed | {test.file: test.optional for test in self.tests}


@dataclass(frozen=True)
class Suite:
    """A table or a figure of a paper.

    Attributes:
        name: of the command.
        title: of the table.
        data: name of the data set; None: nothing is trained.
        statistic: "mae" or "rmse", as published.
        tasks: trainings.
        models: what is trained unless the command says otherwise.
        variants: models of the suite's own, as settings of a configuration.
        layout: of the table: a line for each model; molecules down and models across; errors
            against the number of structures; or as "models", with figures of errors against the
            number of layers.
        compared_with: the published model that ratios are taken to.
        missing: why a test of this name may not be measured; "" for what no test is for.
    """

    name: str
    title: str
    data: str | None
    statistic: Literal["mae", "rmse"]
    tasks: tuple[Task, ...]
    models: tuple[str, ...]
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    layout: Literal["models", "molecules", "sizes", "layers"] = "models"
    compared_with: str | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    def task(self, name: str) -> Task:
        """The task of this name.

        Raises:
            ConfigError: there is none.
        """
        tasks = {task.name: task for task in self.tasks}
        if name not in tasks:
            raise ConfigError(
                f"suite {self.name} has no task {name!r}. {did_you_mean(name, tasks)}"
            )
        return tasks[name]

    def model_settings(self, name: str) -> tuple[str, ...]:
        """A model's settings, ``key=value``.

        Raises:
            ConfigError: it is neither a variant of the suite nor a preset.
        """
        if name in self.variants:
            return self.variants[name]
        if name not in PRESETS:
            raise ConfigError(
                f"unknown model {name!r}. {did_you_mean(name, [*self.variants, *PRESETS])}"
            )
        return (f"model={name}",)


def suite(name: str) -> Suite:
    """The suite of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SUITES:
        raise ConfigError(f"unknown suite {name!r}. {did_you_mean(name, SUITES)}")
    return SUITES[name]


_3BPA_TESTS = (
    HeldOut("300 K", "test_300K"),
    HeldOut("600 K", "test_600K"),
    HeldOut("1200 K", "test_1200K", optional=True),
    HeldOut(
        "1200 K proxy",
        "test_1200K_proxy",
        optional=True,
        remark="1200 K proxy: 83 structures of the official mixed-temperature training file, not "
        "the official test set of 2139; it stands beside no published number",
    ),
    HeldOut("dihedrals", "test_dih", optional=True),
)


def _3bpa(epochs: int) -> Task:
    return Task("300K", "train_300K", _3BPA_TESTS, epochs, isolated_atoms="iso_atoms")


def _rmd17(molecule: str, count: int, epochs: int, batch_size: int | None = None) -> Task:
    tests = (HeldOut("test", f"{molecule}/test_01"),)
    return Task(
        f"{molecule}-{count}",
        f"{molecule}/train_01",
        tests,
        epochs,
        train_count=count,
        # there are 50 structures to validate on, however few there are to train on
        eval_every=max(1, 500 // count),
        batch_size=batch_size,
    )


def _layers() -> dict[str, tuple[str, ...]]:
    families = {"mace": "mace_3bpa", "botnet": "botnet_3bpa", "nequip": "nequip_acac"}
    return {
        f"{family}_t{layers}": (f"model={preset}", f"model.layers={layers}")
        for family, preset in families.items()
        for layers in range(1, 6)
    }


def _orders() -> dict[str, tuple[str, ...]]:
    shapes = [(1, 0), (2, 0), (3, 0), (3, 1), (3, 2), (1, 1), (1, 2)]
    return {
        f"nu{order}_l{degree}": (
            "model=mace_few",
            f"model.product.correlation={order}",
            f"model.message_l={degree}",
        )
        for order, degree in shapes
    }


_NOT_AT_HAND = {
    "dihedrals": "Dihedral slices of 3BPA are not measured: test_dih.xyz of BOTNet-datasets was "
    "not at hand.",
    "1200 K": "The official 1200 K test set of 3BPA is not measured: test_1200K.xyz of "
    "BOTNet-datasets (2139 structures) was not at hand.",
}

SUITES = {
    one.name: one
    for one in (
        Suite(
            name="rmd17",
            title="Revised MD17: mean absolute errors on split 1",
            data="rmd17",
            statistic="mae",
            tasks=(
                *(_rmd17(molecule, 50, 150, batch_size=1) for molecule in MOLECULES),
                *(_rmd17(molecule, 950, 100) for molecule in MOLECULES),
            ),
            models=("mace_rmd17",),
            layout="molecules",
            compared_with="MACE",
        ),
        Suite(
            name="3bpa",
            title="3BPA, trained at 300 K: root mean square errors",
            data="3bpa",
            statistic="rmse",
            tasks=(_3bpa(300),),
            models=("mace_3bpa_l0", "mace_3bpa"),
            compared_with="MACE, L = 2",
            missing=_NOT_AT_HAND,
        ),
        Suite(
            name="acac",
            title="Acetylacetone, trained at 300 K: root mean square errors",
            data="acac",
            statistic="rmse",
            tasks=(
                Task(
                    "300K",
                    "train_300K",
                    (
                        HeldOut("300 K", "test_MD_300K"),
                        HeldOut("600 K", "test_MD_600K"),
                        HeldOut("torsion", "test_dihedral", "scan", optional=True),
                        HeldOut("proton transfer", "test_H_transfer", "scan", optional=True),
                    ),
                    epochs=300,
                    isolated_atoms="isolated_atoms",
                ),
            ),
            models=("mace_acac",),
            compared_with="MACE",
            missing={
                "": "Torsion and proton transfer are published as figures: no numbers stand here.",
                "torsion": "The torsion is not measured: test_dihedral.xyz of BOTNet-datasets was "
                "not at hand.",
                "proton transfer": "The proton transfer is not measured: test_H_transfer.xyz of "
                "BOTNet-datasets was not at hand.",
            },
        ),
        Suite(
            name="ethanol",
            title="Ethanol of the design-space paper: root mean square errors",
            data="ethanol",
            statistic="rmse",
            tasks=(
                Task(
                    "ethanol",
                    "train",
                    (
                        HeldOut("MD", "test_MD"),
                        HeldOut("H abstraction", "test_H_removal", "scan"),
                        HeldOut("mode 874 1/cm", "test_norm_mode_874", "scan"),
                        HeldOut("mode 3005 1/cm", "test_norm_mode_3005", "scan"),
                        HeldOut(
                            "dimers",
                            "test_dimers",
                            "curves",
                            remark="dimers: each curve relative to its own largest distance. The "
                            "isolated C and O of the data lie 1.99 and 2.96 eV above what the "
                            "dimers dissociate to, so that absolute energies cannot agree",
                        ),
                    ),
                    epochs=150,
                    isolated_atoms="isolated_atoms",
                ),
                Task(
                    "ethanol-methanol",
                    "train_eth_meth",
                    (HeldOut("MD of both", "test_eth_meth"),),
                    epochs=120,
                    isolated_atoms="isolated_atoms",
                ),
            ),
            models=("mace_rmd17",),
            missing={"": "No numbers of the published models are at hand: the paper has figures."},
        ),
        Suite(
            name="learning-curve",
            title="Learning curves of aspirin (figure 2 of the MACE paper): force MAE",
            data="rmd17",
            statistic="mae",
            tasks=tuple(
                # as many steps for all sizes: 4000 of five structures
                _rmd17("aspirin", count, epochs=-(-20_000 // count))
                for count in CURVE_SIZES
            ),
            models=("nu1_l0", "nu2_l0", "nu3_l0"),
            variants=_orders(),
            layout="sizes",
            missing={"": "The figure's slopes are not in the paper's text, so none stand here."},
        ),
        Suite(
            name="layers",
            title="Layers (figure 1 of the MACE paper): root mean square errors on 3BPA",
            data="3bpa",
            statistic="rmse",
            tasks=(_3bpa(100),),
            models=tuple(_layers()),
            variants=_layers(),
            layout="layers",
            missing=_NOT_AT_HAND,
        ),
        Suite(
            name="cost",
            title="Energies and forces of one 3BPA molecule (table 2 of the MACE paper)",
            data=None,
            statistic="rmse",
            tasks=(),
            models=(
                "mace_3bpa_l0",
                "mace_3bpa_l1",
                "mace_3bpa",
                "nequip_3bpa",
                "botnet_3bpa",
                "pace_3bpa",
                "allegro_3bpa",
                "ace_3bpa",
                "mace_small",
            ),
        ),
    )
}
