"""Options, arguments and exit statuses that several commands share, and values of options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clebsch.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import torch

    from clebsch.data.labels import LabelKeys
    from clebsch.potential import Potential

#: Exit statuses; ``clebsch.cli`` says when each is given.
BAD_ANSWER, BAD_INPUT, INTERRUPTED = 1, 2, 130

Periodicity = Literal["file", "none"]

Model = Annotated[Path, typer.Argument(help="Model file, such as run/model.safetensors.")]
Structure = Annotated[Path, typer.Argument(help="File with a structure, of any format ASE reads.")]
Data = Annotated[
    list[Path],
    typer.Argument(help="Files with labelled structures: extended XYZ, .npz, .db, .traj, ..."),
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")]
TF32 = Annotated[
    bool,
    typer.Option(
        "--tf32",
        help="On NVIDIA GPUs, in float32: round factors of matrix products to 11 bits, as tensor "
        "cores do. Faster for large structures, less exact.",
    ),
]
DType = Annotated[
    str | None,
    typer.Option(help="Precision of the network: float32 or float64. As saved if not given."),
]
Index = Annotated[
    int, typer.Option(help="Which structure of the file, from 0; -1 is the last one.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")]
Head = Annotated[str | None, typer.Option(help="Which of several heads of the model.")]
Fix = Annotated[
    str | None,
    typer.Option(
        help="Values of properties that a model of mace-torch embeds, such as "
        "total_charge=0,total_spin=1; it is then one for structures of these."
    ),
]
Committee = Annotated[
    list[Path] | None,
    typer.Option(
        help="Another model file, trained from another seed: how far its forces and those of the "
        "model are apart tells how sure the model is. May be given several times."
    ),
]
OwnUncertainty = Annotated[
    bool,
    typer.Option("--uncertainty", help="Tell how sure a linear ACE is, which needs no committee."),
]
AsJSON = Annotated[
    bool, typer.Option("--json", help="Print JSON (eV, Angstrom) instead of a table.")
]
#: Options that say where labels are, and in which units and signs; with their help.
LABEL_OPTIONS = {
    "energy_key": "Key of the total energy. Usual names are found.",
    "forces_key": "Key of the forces. Usual names are found.",
    "stress_key": "Key of the stress. Usual names are found.",
    "virial_key": "Key of the virial. Usual names are found.",
    "stress_convention": "Sign of the stress: ase (tension positive; usual) or negative (VASP).",
    "virial_convention": "Sign of the virial: virial (-dE/d strain; usual) or dE_dstrain.",
    "energy_unit": "Unit of energies and virials: eV (usual), Hartree, kcal/mol, ...",
    "forces_unit": "Unit of forces: eV/Angstrom (usual), Hartree/Bohr, ...",
    "stress_unit": "Unit of the stress: eV/Angstrom^3 (usual), GPa, kbar, ...",
    "length_unit": "Unit of positions and cells: Angstrom (usual), Bohr or nm.",
}
EnergyKey = Annotated[str | None, typer.Option(help=LABEL_OPTIONS["energy_key"])]
EnergyUnit = Annotated[str | None, typer.Option(help=LABEL_OPTIONS["energy_unit"])]
#: Their values by the settings of ``LabelKeys``: what ``label_keys`` takes.
LabelOptions = dict[str, str | None]
Pbc = Annotated[
    str | None,
    typer.Option(help="Periodicity: file (as it says; usual) or none (boxes around molecules)."),
]


def load_model(
    model: Path, device: str, dtype: str | None = None, head: str | None = None
) -> Potential:
    """The potential of a model file.

    Raises:
        ClebschError: the file, the precision, the device or the head is invalid.
    """
    import clebsch

    return clebsch.load(model, dtype=precision(dtype), device=device, head=head)


def other_members(model: Path, committee: list[Path] | None, own: bool) -> list[Path] | None:
    """The files of a committee besides the model; None if no uncertainty is asked for.

    Args:
        model: the model.
        committee: what ``--committee`` names.
        own: whether the model's own uncertainty is asked for.

    Raises:
        ConfigError: a file is given twice, which would make the model look sure.
    """
    files = committee or []
    seen = {model.resolve()}
    for file in files:
        if file.resolve() in seen:
            raise ConfigError(f"--committee {file}: the same model twice tells nothing")
        seen.add(file.resolve())
    return files if files or own else None


def precision(name: str | None) -> torch.dtype | None:
    """The type of numbers of this name; None for that of the model file.

    Raises:
        ConfigError: neither "float32" nor "float64".
    """
    import torch

    precisions = {"float32": torch.float32, "float64": torch.float64}
    if name is not None and name not in precisions:
        raise ConfigError(f"unknown precision {name!r}. {did_you_mean(name, precisions)}")
    return None if name is None else precisions[name]


def fixed_properties(fix: str | None) -> dict[str, float]:
    """Numbers by name, out of the option ``--fix``.

    Raises:
        ConfigError: the text is something else.
    """
    if fix is None:
        return {}
    try:
        pairs = [part.split("=") for part in fix.split(",")]
        return {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise ConfigError(
            f"--fix {fix}: write names and numbers such as total_charge=0,total_spin=1"
        ) from None


def with_label_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``LABEL_OPTIONS`` in place of its keyword argument ``labels``."""
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name != "labels":
            parameters.append(parameter)
            continue
        parameters += [
            parameter.replace(
                name=name, annotation=Annotated[str | None, typer.Option(help=text)], default=None
            )
            for name, text in LABEL_OPTIONS.items()
        ]

    @wraps(command)
    def with_options(**given: Any) -> None:
        labels = {name.removesuffix("_key"): given.pop(name) for name in LABEL_OPTIONS}
        command(**given, labels=labels)

    setattr(with_options, "__signature__", signature.replace(parameters=parameters))  # noqa: B010
    with_options.__annotations__ = {}  # typer would look for the command's own
    return with_options


def label_keys(**options: str | None) -> LabelKeys | None:
    """Where the labels are and in which units and signs; None if no option says anything.

    Args:
        options: settings of ``LabelKeys`` by their names; None for what is not given.

    Raises:
        ConfigError: an unknown convention or unit.
    """
    from clebsch.data.read import LabelKeys
    from clebsch.data.units import unit_factor

    conventions = {
        "stress_convention": ("ase", "negative"),
        "virial_convention": ("virial", "dE_dstrain"),
    }
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        known = conventions.get(name, (value,))
        if value not in known:
            raise ConfigError(f"unknown {option} {value!r}. {did_you_mean(value, known)}")
        if name.endswith("_unit"):
            try:
                unit_factor(name.removesuffix("_unit"), value)
            except ValueError as error:
                raise ConfigError(f"{option}: {error}") from None
    return LabelKeys(**given) if given else None


def periodicity(choice: str | None) -> Periodicity | None:
    """How to take the periodicity of data files; None if nothing is chosen.

    Raises:
        ConfigError: neither "file" nor "none".
    """
    choices: dict[str, Periodicity] = {"file": "file", "none": "none"}
    if choice is None:
        return None
    if choice not in choices:
        raise ConfigError(f"unknown --pbc {choice!r}. {did_you_mean(choice, choices)}")
    return choices[choice]
