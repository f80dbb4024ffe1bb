"""Models of mace-torch 0.3.x as potentials that give the same numbers.

The files are read without mace-torch, e3nn or unpickling (``torch_archive``), the architecture
becomes a configuration (``mace_config``), and the weights are converted (``mace_weights``).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from ase.data import chemical_symbols
from torch import Tensor

from clebsch.errors import ConfigError, ModelFileError, did_you_mean
from clebsch.factory import assemble
from clebsch.interop.inert import Stub
from clebsch.interop.mace_config import check_class, heads_of, mace_config
from clebsch.interop.mace_embedding import check_properties, embedding_energies
from clebsch.interop.mace_weights import average_neighbors, copy_network, copy_repulsion
from clebsch.interop.modules import Module
from clebsch.interop.torch_archive import read_torch_file
from clebsch.models.message_passing import MessagePassing
from clebsch.nn.energy import StoredZBLRepulsion
from clebsch.potential import Potential


def choose_head(heads: Sequence[str], head: str | None, place: str) -> int:
    """The index of a head; of one it need not be named.

    Args:
        heads: names of a model's heads.
        head: the one to choose.
        place: names the file in errors.

    Raises:
        ConfigError: there is no such head, or there are several and none is chosen.
    """
    if head is None and len(heads) > 1:
        option = f"--head={shlex.quote(heads[0])}"  # whatever the name begins with
        raise ConfigError(
            f"{place}: the model has the heads {', '.join(heads)}; choose one: {option}, "
            f"or clebsch.load(..., head={heads[0]!r}). A file of one head alone, or of all "
            f"(--head=all), is made by clebsch convert {shlex.quote(place)} NEW.safetensors "
            f"{option}"
        )
    if head is None:
        return 0
    if head not in heads:
        raise ConfigError(f"{place}: no head {head!r}. {did_you_mean(head, heads)}")
    return heads.index(head)


def mace_heads(path: Path | str) -> list[str]:
    """Names of the heads of a mace-torch model.

    Raises:
        ModelFileError: the file holds none.
    """
    with _blamed_on(path):
        return heads_of(_read_model(path))


def read_mace_torch(
    path: Path | str,
    *,
    head: str | None = None,
    species: Sequence[str] | None = None,
    properties: Mapping[str, float] | None = None,
) -> Potential:
    """The potential that a file of mace-torch holds, on the reference backend.

    Args:
        path: a ``.model`` file, or a training checkpoint that holds a whole model.
        head: which of several heads.
        species: the elements to keep; all if None. Energies of structures of these stay the same.
        properties: of a model that embeds total charge, spin or the like, the values of them that
            the potential shall be for.

    Raises:
        ModelFileError: the file is damaged, hostile, or holds what is not supported.
        ConfigError: the model has no such head, element or property; several heads and none is
            chosen; or embedded properties without a value.
    """
    with _blamed_on(path):
        model = _read_model(path)
        index = choose_head(heads_of(model), head, model.place)
        values = dict(properties or {})
        check_properties(model, values)
        return _converted(model, index, species, values, Path(path).name)


@contextmanager
def _blamed_on(path: Path | str) -> Iterator[None]:
    """What no check foresaw is the file's fault; the cause stays attached, as it may be ours."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ModelFileError(
            f"{path}: its weights do not fit its architecture ({type(error).__name__}: {error})"
        ) from error


def _converted(
    model: Module,
    head: int,
    species: Sequence[str] | None,
    properties: dict[str, float],
    name: str,
) -> Potential:
    numbers = _atomic_numbers(model)
    elements = _elements(model, numbers, species)
    scale, shift = _scale_shift(model, head)
    references = _references(model, head) + embedding_energies(model, properties, head)
    potential = assemble(
        mace_config(model),
        [chemical_symbols[numbers[element]] for element in elements],
        references=[float(references[element]) for element in elements],
        avg_num_neighbors=average_neighbors(model.child("interactions").children()[0]),
        scale=scale,
        mean_energy=shift,
        dtype=torch.float64,
    )
    assert isinstance(potential.model, MessagePassing)
    with torch.no_grad():
        copy_network(model, potential.model, elements, head, properties)
        if isinstance(potential.prior, StoredZBLRepulsion):
            copy_repulsion(model, potential.prior, elements, scale)
    potential.model.to(_precision(model))
    broken = potential.tensor_not_finite()
    if broken is not None:
        raise ModelFileError(
            f"{model.place}: {broken} of the potential that it makes holds NaN or infinity; the "
            "file's numbers are too large, or none"
        )
    potential.provenance = {
        "imported": {
            "program": "mace-torch",
            "file": name,
            "class": model.kind,
            "head": heads_of(model)[head],
            **({"properties": properties} if properties else {}),
        }
    }
    return potential


def _read_model(path: Path | str) -> Module:
    """The model in a file: the whole file, or under ``model`` in a checkpoint.

    Raises:
        ModelFileError: there is none.
    """
    found = read_torch_file(path)
    if isinstance(found, dict) and isinstance(found.get("model"), Stub):
        found = found["model"]
    if isinstance(found, Stub):
        model = Module(found, str(path))
        check_class(model)
        return model
    if isinstance(found, dict):
        inner = found.get("model", found)
        if isinstance(inner, dict) and any(isinstance(value, Tensor) for value in inner.values()):
            raise ModelFileError(
                f"{path}: holds weights without the architecture they belong to (a state "
                "dictionary, as in mace-torch's checkpoints); use the .model file that the same "
                "training wrote"
            )
    raise ModelFileError(f"{path}: a file of torch, but it holds no model of mace-torch")


def _atomic_numbers(model: Module) -> list[int]:
    """Of the model's elements, in its order.

    Raises:
        ModelFileError: one is none of an element, or occurs twice.
    """
    found = model.tensor("atomic_numbers").tolist()
    numbers = [int(number) for number in found]
    known = all(0 < number < len(chemical_symbols) for number in numbers)
    if numbers != found or not known or len(set(numbers)) < len(numbers):
        raise ModelFileError(f"{model.place}: atomic numbers {found}")
    return numbers


def _elements(model: Module, numbers: list[int], species: Sequence[str] | None) -> list[int]:
    """Indices into the model's elements of those to keep, in order of atomic number."""
    known = {chemical_symbols[number]: index for index, number in enumerate(numbers)}
    wanted = list(known if species is None else species)
    for symbol in wanted:
        if symbol not in known:
            raise ConfigError(
                f"{model.place}: the model does not know {symbol}. {did_you_mean(symbol, known)}"
            )
    if not wanted:
        raise ConfigError(f"{model.place}: no elements are chosen")
    return sorted({known[symbol] for symbol in wanted}, key=lambda index: numbers[index])


def _of_head(values: Tensor, head: int, n_heads: int, model: Module) -> float:
    """A number for each head, or one for all."""
    flat = values.flatten()
    if len(flat) not in (1, n_heads):
        raise ModelFileError(f"{model.place}: {len(flat)} scales or shifts of {n_heads} heads")
    return float(flat[head if len(flat) > 1 else 0])


def _scale_shift(model: Module, head: int) -> tuple[float, float]:
    if not model.has("scale_shift"):
        return 1.0, 0.0
    block, n_heads = model.child("scale_shift"), len(heads_of(model))
    scale, shift = (
        _of_head(block.tensor(name), head, n_heads, model) for name in ("scale", "shift")
    )
    return scale, shift


def _references(model: Module, head: int) -> Tensor:
    """[Z] float64, eV."""
    energies = model.child("atomic_energies_fn").tensor("atomic_energies")
    table = torch.atleast_2d(energies)
    n_elements = len(model.tensor("atomic_numbers"))
    if table.shape[1] != n_elements or len(table) not in (1, len(heads_of(model))):
        raise ModelFileError(f"{model.place}: reference energies of shape {tuple(energies.shape)}")
    return table[head if len(table) > 1 else 0]


def _precision(model: Module) -> torch.dtype:
    """What the model was kept in; half precisions are read as float32."""
    stored = model.child("node_embedding").child("linear").stored_dtype("weight")
    return torch.float64 if stored == torch.float64 else torch.float32
